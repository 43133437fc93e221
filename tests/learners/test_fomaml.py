"""FOMAML against plain loops: Finn's, and the one in the code of Nichol et al."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.train import Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.learners import Fomaml
from tegu.learners.finetune import cycle
from tegu.models import Conv4, Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))
LR = 0.3


def tasks(data: ClassDataset) -> FewShotTasks:
    double = replace(data, examples=data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=3, n_query=2)


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    """Three episodes, 3-way 3-shot, two queries a class."""
    return tasks(toy_data).episodes(torch.arange(3))


def network() -> Mlp:
    return Mlp(6, 3, hidden=(5,), activation="tanh").double()


def plain(w: list[Tensor], x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, w[0], w[1])), w[2], w[3])


def slope(w: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in w]
    return list(torch.autograd.grad(F.cross_entropy(plain(leaves, x), y), leaves))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_separate_tail_is_the_query_set(steps: int, episodes: Episode) -> None:
    learner = Fomaml(model=network(), inner_lr=LR, inner_steps=steps)
    params = learner.init()
    total = [torch.zeros_like(p) for p in params.values()]
    for t in range(3):
        support, query = select(episodes, t)
        w = list(params.values())
        for _ in range(steps):
            w = [p - LR * g for p, g in zip(w, slope(w, support.x, support.y), strict=True)]
        total = [a + g / 3 for a, g in zip(total, slope(w, query.x, query.y), strict=True)]
    for how in ("vmap", "loop"):
        grads, _ = Vectorised(learner, vectorise=how).outer_gradient(params, episodes, KEYS)
        torch.testing.assert_close(list(grads.values()), total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 2, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_shared_tail_is_one_more_mini_batch(steps: int, batch: int, episodes: Episode) -> None:
    """As the published code has it: train, back up, train once more, subtract."""
    learner = Fomaml(
        model=network(), inner_lr=LR, inner_steps=steps, inner_batch=batch, tail="shared"
    )
    params = learner.init()
    update = [torch.zeros_like(p) for p in params.values()]
    for t in range(3):
        x, y, mask = select(episodes, t).support
        rows = [list(range(9))] * (steps + 1)
        if batch:
            rows = cycle(KEYS[t], mask, batch=batch, steps=steps + 1).tolist()
        w = backup = list(params.values())
        for mini in rows:
            backup = w
            w = [p - LR * g for p, g in zip(w, slope(w, x[mini], y[mini]), strict=True)]
        update = [u + (a - b) / 3 for u, a, b in zip(update, w, backup, strict=True)]
    nothing = episodes._replace(query=episodes.query._replace(x=torch.full((3, 6, 6), torch.nan)))
    for how in ("vmap", "loop"):
        grads, _ = Vectorised(learner, vectorise=how).outer_gradient(params, nothing, KEYS)
        steps_of_sgd = [-LR * g for g in grads.values()]
        torch.testing.assert_close(steps_of_sgd, update, rtol=1e-10, atol=1e-12)


def test_a_shared_tail_learns_without_queries(toy_data: ClassDataset) -> None:
    source = replace(tasks(toy_data), n_query=0)
    learner = Fomaml(model=network(), inner_lr=LR, inner_steps=2, inner_batch=3, tail="shared")
    assert not learner.uses_queries()
    assert Fomaml(model=network()).uses_queries()
    seen = []
    meta_train(
        Vectorised(learner), source, Settings(128, 4, 0.02), progress=lambda p: seen.append(p.loss)
    )
    assert seen[-1] < 0.85 * seen[0]


def test_what_is_refused(toy_images: ClassDataset) -> None:
    with pytest.raises(InputError, match=r"unknown tail 'seperate'.*Did you mean 'separate'"):
        Fomaml(model=network(), tail="seperate")
    with pytest.raises(InputError, match=r"first_order is false with fomaml.*Take maml"):
        Fomaml(model=network(), first_order=False)
    with pytest.raises(InputError, match="checkpointed inner steps with Fomaml"):
        Vectorised(Fomaml(model=network(), tail="shared"), checkpoint=True)


def test_checkpointed_steps_have_the_same_gradient(toy_images: ClassDataset) -> None:
    images = tasks(toy_images).episodes(torch.arange(3))
    learner = Fomaml(
        model=Conv4(3, size=8, width=4).double(),
        inner_lr=LR,
        inner_steps=3,
        inner_batch=4,
        normalisation="transductive",
    )
    found, expected = (
        Vectorised(learner, checkpoint=c).outer_gradient(learner.init(), images, KEYS)
        for c in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
