"""MAML against quadratics, finite differences, and a plain loop over plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.inner import Params
from tegu.learners import IMaml, Maml
from tegu.losses import squared_error
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

Slopes = Callable[..., tuple[Tensor, Tensor]]  # of conftest.py
KEYS = keys.fold(keys.key(0), torch.arange(3))
STEPS = (1, 2, 5)


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    """Three episodes, 3-way 2-shot, two queries a class."""
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(3))


def network() -> Mlp:
    return Mlp(6, 3, hidden=(5,), activation="tanh").double()


def plain(w: list[Tensor], x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, w[0], w[1])), w[2], w[3])


class Point(nn.Module):
    """A weight, and nothing done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand_as(x)


class Attending(nn.Module):
    """torch's attention by its fused kernel, which has no second derivative of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, activation=torch.tanh, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x.unflatten(1, (3, 2))).flatten(1))
        return out


@pytest.mark.parametrize("kind", [Maml, IMaml])
def test_attention_has_a_second_derivative(episodes: Episode, kind: type[Maml | IMaml]) -> None:
    torch.manual_seed(0)
    learner = kind(model=Attending().double(), inner_lr=0.1)
    params = learner.init()
    looped, side_by_side = (
        Vectorised(learner, vectorise=how).outer_gradient(params, episodes, KEYS)[0]
        for how in ("loop", "vmap")
    )
    torch.testing.assert_close(looped, side_by_side)


def test_attentions_gradient_is_the_slope(episodes: Episode, slopes: Slopes) -> None:
    torch.manual_seed(0)
    learner = Maml(model=Attending().double(), inner_lr=0.1, inner_steps=2)
    params = learner.init()
    found, _ = Vectorised(learner).outer_gradient(params, episodes, KEYS)

    def mean_loss(params: Params) -> Tensor:
        return Vectorised(learner).outer_gradient(params, episodes, KEYS)[1]

    by_gradient, by_differences = slopes(mean_loss, params, found)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_meta_gradient_of_quadratics(how: str, first_order: bool, steps: int) -> None:
    """Inner (w - a)^2, outer (w_k - b)^2, at w = 2 with steps of 0.1 for two tasks (a, b).

    w_k = a + 0.8^k (2 - a); d outer / dw = 2 (w_k - b) 0.8^k; first order drops 0.8^k.
    """
    learner = Maml(
        model=Point(), loss=squared_error, inner_lr=0.1, inner_steps=steps, first_order=first_order
    )
    a, b = torch.tensor([[1.0, -3.0], [3.0, 0.5]], dtype=torch.float64)
    halves = [Examples.dense(torch.zeros(2, 1, 1).double(), t[:, None, None]) for t in (a, b)]
    grads, loss = Vectorised(learner, vectorise=how).outer_gradient(
        learner.init(), Episode(*halves), KEYS[:2]
    )
    end = a + 0.8**steps * (2 - a)
    slope = 2 * (end - b) * (1 if first_order else 0.8**steps)
    torch.testing.assert_close(grads, {"w": slope.mean()}, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss, (end - b).square().mean(), rtol=0, atol=1e-12)


def descended(start: list[Tensor], episodes: Episode, steps: int, lr: float) -> Tensor:
    """The outer loss by steps in place on one network, with no derivative to speak of."""
    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        support, query = select(episodes, t)
        model = network()
        for p, value in zip(model.parameters(), start, strict=True):
            p.data.copy_(value)
        optimiser = torch.optim.SGD(model.parameters(), lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(model(support.x), support.y).backward()
            optimiser.step()
        total += F.cross_entropy(model(query.x), query.y).detach() / 3
    return total


@pytest.mark.parametrize("steps", STEPS)
def test_the_meta_gradient_is_that_of_finite_differences(steps: int, episodes: Episode) -> None:
    learner = Maml(model=network(), inner_lr=0.3, inner_steps=steps)
    params = learner.init()
    grads, loss = Vectorised(learner).outer_gradient(params, episodes, KEYS)
    start, h = list(params.values()), 1e-5
    torch.testing.assert_close(loss, descended(start, episodes, steps, 0.3))
    generator = torch.Generator().manual_seed(steps)
    for _ in range(4):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in start]
        ends = []
        for sign in (1, -1):
            moved = [p + sign * h * d for p, d in zip(start, way, strict=True)]
            ends.append(descended(moved, episodes, steps, 0.3))
        ours = sum((g * d).sum() for g, d in zip(grads.values(), way, strict=True))
        torch.testing.assert_close(ours, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def looped(
    start: list[Tensor], episodes: Episode, steps: int, lr: float, *, first_order: bool
) -> tuple[Tensor, ...]:
    """The outer gradient by autograd, a task at a time."""
    leaves = [p.clone().requires_grad_() for p in start]
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        current = leaves
        for _ in range(steps):
            inner = F.cross_entropy(plain(current, support.x), support.y)
            grads = torch.autograd.grad(inner, current, create_graph=not first_order)
            current = [p - lr * g for p, g in zip(current, grads, strict=True)]
        losses.append(F.cross_entropy(plain(current, query.x), query.y))
    return torch.autograd.grad(torch.stack(losses).mean(), leaves)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_is_that_of_a_plain_loop(
    first_order: bool, steps: int, episodes: Episode
) -> None:
    learner = Maml(model=network(), inner_lr=0.3, inner_steps=steps, first_order=first_order)
    params = learner.init()
    expected = looped(list(params.values()), episodes, steps, 0.3, first_order=first_order)
    for how in ("vmap", "loop"):
        grads, _ = Vectorised(learner, vectorise=how).outer_gradient(params, episodes, KEYS)
        torch.testing.assert_close(tuple(grads.values()), expected, rtol=1e-10, atol=1e-12)


def test_the_task_is_learnt_by_plain_steps(episodes: Episode) -> None:
    """After meta-training: more steps than in it, and only weights are left."""
    learner = Maml(model=network(), inner_lr=0.3, inner_steps=1, eval_steps=4)
    params = learner.init()
    state = Vectorised(learner).adapt(params, episodes.support, KEYS)
    assert set(state) == {"weights", "support"}
    for t in range(3):
        support, query = select(episodes, t)
        current = [p.clone().requires_grad_() for p in params.values()]
        for _ in range(4):
            inner = F.cross_entropy(plain(current, support.x), support.y)
            grads = torch.autograd.grad(inner, current)
            current = [p - 0.3 * g for p, g in zip(current, grads, strict=True)]
        found = Vectorised(learner).predict(params, state, episodes.query)[t]
        torch.testing.assert_close(found, plain(current, query.x).detach())


def test_first_order_leaves_nothing_of_a_step_for_the_way_back(episodes: Episode) -> None:
    """Its only graph is the last pass and the sums that moved the weights."""
    learner = Maml(model=network(), inner_steps=3, first_order=True)
    leaves = {name: p.requires_grad_() for name, p in learner.init().items()}
    one = select(episodes, 0)
    state = learner.begin(leaves, one.support, KEYS[0], training=True)
    grads, value = learner.gradient(leaves, state, one.support, torch.tensor(0))
    assert not value.requires_grad
    assert not any(g.requires_grad for g in grads.values())
    state = learner.step(leaves, state, one.support, torch.tensor(0))
    for name, leaf in leaves.items():
        (slope,) = torch.autograd.grad(state["weights"][name].sum(), leaf)
        assert slope.unique().tolist() == [1.0]
