"""MetaOptNet's heads against scikit-learn and scipy, derivatives against differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Head, MetaOptNetRidge, MetaOptNetSVM
from tegu.learners.svm import machine
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(4))
ALL = torch.ones(3).double()


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(4))


def problem(seed: int, width: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (9, width) of three overlapping classes, and one-hot targets."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, width, generator=generator).double()
    x = x + torch.randn(3, width, generator=generator).double().repeat(3, 1)
    return spread * x, torch.eye(3).double().repeat(3, 1)


def weights(x: Tensor, y: Tensor, present: Tensor = ALL, cost: float = 0.1) -> Tensor:
    return machine(x, y, present, cost=cost, iterations=25)[0]


@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize(("spread", "cost"), [(0.1, 0.1), (1.0, 0.1), (1.0, 3.0), (10.0, 0.1)])
def test_weights_are_those_of_scikit_learn(width: int, spread: float, cost: float) -> None:
    for seed in range(4):
        x, y = problem(seed, width, spread)
        theirs = LinearSVC(
            multi_class="crammer_singer", C=cost, fit_intercept=False, tol=1e-10, max_iter=10**7
        )
        theirs.fit(x.numpy(), y.argmax(-1).numpy())
        expected = torch.from_numpy(theirs.coef_.T)
        torch.testing.assert_close(weights(x, y, cost=cost), expected, rtol=0, atol=1e-5)


def test_alpha_is_that_of_a_plain_quadratic_program() -> None:
    """By scipy's sequential least squares on the dual as the paper writes it."""
    x, y = problem(0, 12)
    kernel, bound = (x @ x.T).numpy(), 0.1 * y.numpy()

    def dual(flat: np.ndarray) -> tuple[float, np.ndarray]:
        alpha = flat.reshape(9, 3)
        value = 0.5 * np.sum(alpha * (kernel @ alpha)) - np.sum(y.numpy() * alpha)
        return float(value), (kernel @ alpha - y.numpy()).ravel()

    sums = np.kron(np.eye(9), np.ones((1, 3)))
    expected = minimize(
        dual,
        np.zeros(27),
        jac=True,
        method="SLSQP",
        bounds=[(None, b) for b in bound.ravel()],
        constraints=[{"type": "eq", "fun": lambda a: sums @ a, "jac": lambda a: sums}],
        options={"ftol": 1e-15, "maxiter": 1000},
    ).x.reshape(9, 3)
    _, alpha = machine(x, y, ALL, cost=0.1, iterations=25)
    torch.testing.assert_close(alpha, torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert alpha.sum(-1).abs().max() < 1e-14
    assert (alpha - 0.1 * y).max() < 1e-11
    free = ((alpha - 0.1 * y) < -1e-6).sum(-1)
    assert set(free.tolist()) >= {1, 2}  # both kinds of example: inside and on the margin


@pytest.mark.parametrize("width", [4, 20])
def test_the_derivative_is_that_of_the_solution(width: int) -> None:
    """One problem at a time, many under vmap, and by differences of the solution."""
    xs = torch.stack([problem(seed, width)[0] for seed in range(4)])
    y = problem(0, width)[1]
    generator = torch.Generator().manual_seed(7)
    probe = torch.randn(width, 3, generator=generator).double()

    def ours(x: Tensor) -> Tensor:
        return (weights(x, y) * probe).sum()

    together = vmap(grad(ours))(xs)
    for t in range(4):
        leaf = xs[t].clone().requires_grad_()
        (plain,) = torch.autograd.grad(ours(leaf), leaf)
        torch.testing.assert_close(together[t], plain, rtol=1e-8, atol=1e-9)
        for _ in range(3):
            way, step = torch.randn(9, width, generator=generator).double(), 1e-6
            expected = (ours(xs[t] + step * way) - ours(xs[t] - step * way)) / (2 * step)
            found = (together[t] * way).sum()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_derivative_can_be_traced() -> None:
    """As the engine does before it compiles; a few iterations have every operation."""
    xs = torch.stack([problem(seed, 12)[0] for seed in range(2)])
    y = problem(0, 12)[1]

    def ours(x: Tensor) -> Tensor:
        return machine(x, y, ALL, cost=0.1, iterations=2)[0].square().sum()

    gradient = vmap(grad(ours))
    torch.testing.assert_close(make_fx(gradient)(xs)(2 * xs), gradient(2 * xs))


def learner_of(cls: type[Head], **settings: object) -> Head:
    return cls(model=Mlp(6, 3, hidden=(5,), activation="tanh").double(), n_way=3, **settings)


@pytest.mark.parametrize(
    "learner",
    [learner_of(MetaOptNetSVM, cost=0.3, scale=1.5), learner_of(MetaOptNetRidge, regulariser=0.5)],
    ids=["svm", "ridge"],
)
def test_the_outer_gradient_is_that_of_finite_differences(
    slopes: Any, learner: Head, episodes: Episode
) -> None:
    params = learner.init()
    grads, value = Vectorised(learner, vectorise="vmap").outer_gradient(params, episodes, KEYS)

    @torch.no_grad()
    def loss(params: Params) -> Tensor:
        for name, p in learner.model.named_parameters():
            p.copy_(params[name])
        losses = []
        for t in range(4):
            support, query = select(episodes, t)
            x, y = learner.model.body(support.x), torch.eye(3).double()[support.y]
            if isinstance(learner, MetaOptNetSVM):
                found = weights(x, y, cost=0.3)
            else:
                theirs = Ridge(alpha=0.5, fit_intercept=False, solver="cholesky")
                found = torch.from_numpy(theirs.fit(x.numpy(), y.numpy()).coef_.T)
            scores = params["head/scale"] * (learner.model.body(query.x) @ found)
            losses.append(F.cross_entropy(scores, query.y))
        return torch.stack(losses).mean()

    torch.testing.assert_close(value, loss(params))
    by_gradient, by_differences = slopes(loss, params, grads, step=1e-6)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-5, atol=1e-8)
    assert grads["head/scale"].abs() > 1e-4


@pytest.mark.parametrize("width", [3, 30])
@pytest.mark.parametrize("spread", [0.1, 1.0, 100.0])
def test_25_iterations_arrive(width: int, spread: float) -> None:
    """Also where more examples than dimensions make single systems singular."""
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(8, n, width, generator=generator).double() for n in (25, 5, 1)]
    x = spread * (parts[0].relu() + 0.7 * parts[1].repeat(1, 5, 1) + parts[2])
    y = torch.eye(5).double().repeat(5, 1)

    def found(x: Tensor, iterations: int) -> Tensor:
        return machine(x, y, torch.ones(5).double(), cost=0.1, iterations=iterations)[0]

    by = [vmap(found, in_dims=(0, None))(x, iterations) for iterations in (25, 60)]
    error = (by[0] - by[1]).norm(dim=(1, 2)) / by[1].norm(dim=(1, 2))
    assert error.max() < 1e-7


def test_the_gap_smooths() -> None:
    """The weights move by less, the smaller it is, and the derivative is that of what is found."""
    x, y = problem(1, 12)

    def found(x: Tensor, gap: float) -> Tensor:
        return machine(x, y, ALL, cost=0.1, iterations=25, gap=gap)[0]

    off = [(found(x, gap) - found(x, 1e-13)).norm() for gap in (1e-2, 1e-4, 1e-6)]
    assert off[0] > 10 * off[1] > 100 * off[2] > 0
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(9, 12, generator=generator).double()
    slope = (grad(lambda x: found(x, 1e-2).square().sum())(x) * way).sum()
    ends = [found(x + step * way, 1e-2).square().sum() for step in (1e-6, -1e-6)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_padding_has_no_weight() -> None:
    x, y = problem(1, 12)
    mask = (torch.arange(9) < 7).double()[:, None]
    expected, alone = machine(x[:7], y[:7], ALL, cost=0.1, iterations=25)
    found, alpha = machine(x * mask, y * mask, ALL, cost=0.1, iterations=25)
    assert (alpha[7:] == 0).all()
    torch.testing.assert_close(alpha[:7], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_classes_without_examples_do_not_compete() -> None:
    x, y = problem(2, 12)
    wide = F.pad(y, (1, 1))
    present = torch.tensor([0.0, 1, 1, 1, 0]).double()
    found, alpha = machine(x, wide, present, cost=0.1, iterations=25)
    torch.testing.assert_close(found[:, 1:4], weights(x, y), rtol=0, atol=1e-12)
    assert (alpha[:, [0, 4]] == 0).all()
    one = y.clone().zero_()
    one[:, 1] = 1
    lonely, _ = machine(x, one, torch.tensor([0.0, 1, 0]).double(), cost=0.1, iterations=25)
    torch.testing.assert_close(lonely, torch.zeros(12, 3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [MetaOptNetSVM, MetaOptNetRidge])
def test_single_precision_solves_as_well(cls: type[Head], episodes: Episode) -> None:
    support = select(episodes, 0).support
    support = support._replace(x=20 * support.x)
    learner = cls(model=Mlp(6, 3, hidden=(16,)), n_way=3)
    single = support._replace(x=support.x.float())
    state = learner.adapt(learner.init(), single, KEYS[0])
    twin = cls(model=Mlp(6, 3, hidden=(16,)).double(), n_way=3)
    exact = twin.adapt(twin.init(), support, KEYS[0])
    assert state["weights"].dtype == torch.float32
    error = (state["weights"] - exact["weights"]).norm() / exact["weights"].norm()
    assert error < 1e-6


@pytest.mark.parametrize(
    ("cls", "settings", "text"),
    [
        (MetaOptNetSVM, {"cost": 0.0}, r"cost is 0.0; expected a number above 0"),
        (MetaOptNetSVM, {"scale": -1.0}, r"scale is -1.0; expected a number above 0"),
        (MetaOptNetSVM, {"gap": 0.0}, r"gap is 0.0; expected a number above 0"),
        (MetaOptNetSVM, {"iterations": 0}, r"iterations is 0; expected at least 1"),
        (MetaOptNetRidge, {"regulariser": 0.0}, r"regulariser is 0.0; expected a number above 0"),
        (MetaOptNetRidge, {"scale": 0.0}, r"scale is 0.0; expected a number above 0"),
    ],
)
def test_what_is_refused(cls: type[Head], settings: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner_of(cls, **settings)
