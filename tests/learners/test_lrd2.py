"""LR-D2 against scikit-learn, and its derivative against problems solved anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import LRD2
from tegu.learners.lrd2 import logistic
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(4))


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(4))


def learner_of(**settings: object) -> LRD2:
    return LRD2(model=Mlp(6, 3, hidden=(5,), activation="tanh").double(), n_way=3, **settings)


def problem(seed: int, width: int, spread: float) -> tuple[Tensor, Tensor]:
    """Features (9, width) and one-hot targets (9, 3)."""
    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(9, width, generator=generator).double()
    return x, torch.eye(3).double().repeat(3, 1)


def solved(x: Tensor, y: Tensor, strength: float | Tensor) -> Tensor:
    """Plain Newton, class by class, in the D numbers of w, to the last digit."""
    found = []
    for target in y.T:
        w = torch.zeros(x.shape[1]).double()
        for _ in range(40):
            p = torch.sigmoid(x @ w)
            slope = x.T @ (p - target) + strength * w
            curve = x.T @ torch.diag(p * (1 - p)) @ x + strength * torch.eye(len(w)).double()
            w = w - torch.linalg.solve(curve, slope)
        assert slope.norm() < 1e-12
        found.append(w)
    return torch.stack(found, 1)


@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize(("spread", "strength"), [(1.0, 0.1), (1.0, 50.0), (5.0, 0.01)])
def test_weights_are_those_of_scikit_learn(width: int, spread: float, strength: float) -> None:
    x, y = problem(0, width, spread)
    weight = torch.tensor(strength, dtype=torch.float64)
    found = logistic(x, y, weight, iterations=20)
    for k in range(3):
        theirs = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-12, max_iter=10_000)
        theirs.fit(x.numpy(), y[:, k].numpy())
        expected = torch.from_numpy(theirs.coef_[0])
        torch.testing.assert_close(found[:, k], expected, rtol=0, atol=1e-5)


def test_steps_that_lead_astray_are_cut() -> None:
    """Newton's own steps do not arrive here in 40; cut ones solve the problem in 20."""
    x, y = problem(14, 4, 100.0)
    x[:, 0] += 200
    strength = torch.tensor(0.01, dtype=torch.float64)
    found = logistic(x, y, strength, iterations=20)
    slope = x.T @ (torch.sigmoid(x @ found) - y) + strength * found
    assert slope.norm() < 1e-8
    with pytest.raises(AssertionError):
        solved(x, y, 0.01)


def test_single_precision_solves_as_well(episodes: Episode) -> None:
    x, y = problem(1, 20, 1.0)
    found = logistic(x.float(), y.float(), torch.tensor(0.1), iterations=20)
    torch.testing.assert_close(found.double(), solved(x, y, 0.1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [4, 20])
def test_the_derivative_is_that_of_the_solution(width: int) -> None:
    """By features and lambda, one problem at a time and many under vmap."""
    seeds = range(3)
    xs, ys = (
        torch.stack(part) for part in zip(*(problem(s, width, 1.0) for s in seeds), strict=True)
    )
    strength = torch.tensor(0.3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    probe = torch.randn(width, 3, generator=generator).double()

    def ours(x: Tensor, strength: Tensor, y: Tensor) -> Tensor:
        return (logistic(x, y, strength, iterations=20) * probe).sum()

    by_x, by_strength = vmap(grad(ours, argnums=(0, 1)), in_dims=(0, None, 0))(xs, strength, ys)
    for t in seeds:
        x, s = (
            xs[t].requires_grad_(False).clone().requires_grad_(),
            strength.clone().requires_grad_(),
        )
        plain = torch.autograd.grad(ours(x, s, ys[t]), [x, s])
        torch.testing.assert_close((by_x[t], by_strength[t]), plain)
        way, step = torch.randn(9, width, generator=generator).double(), 1e-5
        ends = [(solved(xs[t] + e * way, ys[t], 0.3) * probe).sum() for e in (step, -step)]
        expected = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((by_x[t] * way).sum(), expected, rtol=1e-6, atol=1e-8)
        ends = [(solved(xs[t], ys[t], 0.3 + e) * probe).sum() for e in (step, -step)]
        expected = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(by_strength[t], expected, rtol=1e-6, atol=1e-8)


def test_the_derivative_can_be_traced() -> None:
    """As the engine does before it compiles; a few iterations have every operation."""
    xs, y = torch.stack([problem(seed, 12, 1.0)[0] for seed in range(2)]), problem(0, 12, 1.0)[1]
    strength = torch.tensor(0.3, dtype=torch.float64)

    def ours(x: Tensor) -> Tensor:
        return logistic(x, y, strength, iterations=2).square().sum()

    gradient = vmap(grad(ours))
    torch.testing.assert_close(make_fx(gradient)(xs)(2 * xs), gradient(2 * xs))


def test_the_outer_gradient_is_that_of_finite_differences(slopes: Any, episodes: Episode) -> None:
    learner = learner_of(regulariser=0.2)
    params = learner.init()
    grads, value = Vectorised(learner, vectorise="vmap").outer_gradient(params, episodes, KEYS)

    @torch.no_grad()
    def loss(params: Params) -> Tensor:
        for name, p in learner.model.named_parameters():
            p.copy_(params[name])
        losses = []
        for t in range(4):
            support, query = select(episodes, t)
            x, asked = (
                F.pad(learner.model.body(half.x), (0, 1), value=1) for half in (support, query)
            )
            weights = solved(
                x, torch.eye(3).double()[support.y], params["logistic/log_lambda"].exp()
            )
            losses.append(F.cross_entropy(asked @ weights, query.y))
        return torch.stack(losses).mean()

    torch.testing.assert_close(value, loss(params))
    by_gradient, by_differences = slopes(loss, params, grads)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)
    assert grads["logistic/log_lambda"].abs() > 1e-4


def test_padding_weighs_nothing() -> None:
    x, y = problem(2, 5, 1.0)
    strength = torch.tensor(0.3, dtype=torch.float64)
    expected = logistic(x[:7], y[:7], strength, iterations=20)
    mask = (torch.arange(9) < 7).double()
    found = logistic(x * mask[:, None], y * mask[:, None], strength, iterations=20)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"iterations is 0; expected at least 1"):
        learner_of(iterations=0)
    with pytest.raises(InputError, match=r"regulariser is -1.0; expected a number above 0"):
        learner_of(regulariser=-1.0)
