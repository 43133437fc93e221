"""BOIL against finite differences on a plain network whose head no step moves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Boil
from tegu.models import Conv4
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))


class Network(nn.Module):
    """A body, a head, and a scale behind them, which is no part of the body either."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(3))
        generator = torch.Generator().manual_seed(4)
        for p in self.parameters():
            p.data.uniform_(-0.8, 0.8, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * self.head(self.body(x))
        return out


def learner_of(model: nn.Module | None = None, **settings: Any) -> Boil:
    own = {"inner_steps": 3, "eval_steps": 3, "inner_lr": 0.5, "normalisation": "transductive"}
    return Boil(model=(model or Network()).double(), **{**own, **settings})


def tasks(data: ClassDataset) -> FewShotTasks:
    double = replace(data, examples=data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2)


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    """Three episodes, 3-way 2-shot, two queries a class."""
    return tasks(toy_data).episodes(torch.arange(3))


def adapted(params: Params, episode: Episode, steps: int) -> nn.Module:
    """One network whose parameters an optimiser moves in place: the head with a rate of 0."""
    model = Network().double()
    for name, p in model.named_parameters():
        p.data.copy_(params[name])
    rest = [p for name, p in model.named_parameters() if not name.startswith("body")]
    optimiser = torch.optim.SGD(
        [{"params": rest, "lr": 0.0}, {"params": model.body.parameters()}], lr=0.5
    )
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(episode.support.x), episode.support.y).backward()
        optimiser.step()
    return model


def descended(params: Params, episodes: Episode, steps: int) -> Tensor:
    losses = []
    for t in range(3):
        one = select(episodes, t)
        losses.append(F.cross_entropy(adapted(params, one, steps)(one.query.x), one.query.y))
    return torch.stack(losses).mean().detach()


@pytest.mark.parametrize("steps", [1, 5])
def test_the_meta_gradient_is_that_of_finite_differences(
    steps: int, slopes: Any, episodes: Episode
) -> None:
    learner = learner_of(inner_steps=steps)
    params = learner.init()
    grads, loss = Vectorised(learner).outer_gradient(params, episodes, KEYS)
    torch.testing.assert_close(loss, descended(params, episodes, steps))
    descent = partial(descended, episodes=episodes, steps=steps)
    found, expected = slopes(descent, params, grads, kinds=("body", "head", "scale", ""), count=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_is_that_of_a_plain_loop(first_order: bool, episodes: Episode) -> None:
    """First order: the head learns from the queries alone, not from how it steered the body."""
    learner = learner_of(first_order=first_order)
    params = learner.init()
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}

    def plain(w: Params, x: Tensor) -> Tensor:
        hidden = F.linear(x, w["body.0.weight"], w["body.0.bias"]).tanh()
        return w["scale"] * F.linear(hidden, w["head.weight"], w["head.bias"])

    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        w = dict(leaves)
        for _ in range(3):
            names = [name for name in w if name.startswith("body")]
            inner = F.cross_entropy(plain(w, support.x), support.y)
            found = torch.autograd.grad(
                inner, [w[name] for name in names], create_graph=not first_order
            )
            moved = {name: w[name] - 0.5 * g for name, g in zip(names, found, strict=True)}
            w = {**w, **moved}
        losses.append(F.cross_entropy(plain(w, query.x), query.y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
    for settings in ({"vectorise": "vmap"}, {"vectorise": "loop"}, {"checkpoint": True}):
        grads, _ = Vectorised(learner, **settings).outer_gradient(params, episodes, KEYS)
        found = tuple(grads[name] for name in leaves)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_is_left_of_a_task_is_its_body(episodes: Episode) -> None:
    learner = learner_of()
    params = learner.init()
    state = Vectorised(learner).adapt(params, episodes.support, KEYS)
    assert set(state) == {"weights", "support"}
    assert set(state["weights"]) == {"body.0.weight", "body.0.bias"}
    found = Vectorised(learner).predict(params, state, episodes.query)
    for t in range(3):
        one = select(episodes, t)
        expected = adapted(params, one, 3)(one.query.x).detach()
        torch.testing.assert_close(found[t], expected)


def test_conv4(toy_images: ClassDataset) -> None:
    images = tasks(toy_images).episodes(torch.arange(3))
    learner = learner_of(Conv4(3, size=8, width=4))
    params = learner.init()
    weights = Vectorised(learner).adapt(params, images.support, KEYS)["weights"]
    assert set(params) - set(weights) == {"head.weight", "head.bias"}
    assert all(not torch.equal(weights[name][0], params[name]) for name in weights)


def test_a_model_without_a_body(episodes: Episode) -> None:
    learner = learner_of(nn.Linear(6, 3))
    with pytest.raises(InputError, match="Linear without a module named 'body' to be trained"):
        Vectorised(learner).outer_gradient(learner.init(), episodes, KEYS)
