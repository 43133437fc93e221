"""iMAML against closed forms, and against how fast theory says it approaches them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets import Sinusoids
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select, size
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import IMaml, Maml
from tegu.losses import squared_error
from tegu.models import Mlp

KEYS = keys.fold(keys.key(0), torch.arange(3))
STRENGTH = 0.8


@pytest.fixture
def episodes() -> Episode:
    """Three waves between -2 and 2, so that no step overshoots."""
    tasks = Sinusoids(n_shot=5, n_query=6, amplitude=(0.1, 1.0), x=(-2.0, 2.0))
    halves = tasks.episodes(torch.arange(3))
    return Episode(*(half._replace(x=half.x.double(), y=half.y.double()) for half in halves))


def learner(hidden: tuple[int, ...], **settings: Any) -> IMaml:
    model = Mlp(1, 1, hidden=hidden, activation="tanh").double()
    defaults = {"strength": STRENGTH, "inner_lr": 0.1}
    return IMaml(model=model, loss=squared_error, **{**defaults, **settings})


def meta_gradient(made: IMaml, episodes: Episode) -> tuple[Tensor, Tensor]:
    """The learner's, flattened, and its loss."""
    grads, loss = Vectorised(made).outer_gradient(made.init(), episodes, KEYS[: size(episodes)])
    return torch.cat([g.flatten() for g in grads.values()]), loss


@pytest.mark.parametrize(
    ("solver", "strength", "rate"), [("cg", STRENGTH, 0.1), ("neumann", 20.0, 0.03)]
)
def test_a_quadratic_has_a_closed_form(
    solver: str, strength: float, rate: float, episodes: Episode
) -> None:
    """Lines: with A = (x, 1) and v = (slope, offset), all is linear algebra of 2 by 2."""
    made = learner(
        (), inner_steps=250, inner_lr=rate, solver=solver, strength=strength, solver_steps=40
    )
    params = made.init()
    theta = torch.cat([params["head.weight"][0], params["head.bias"]])
    expected, losses = torch.zeros(2, dtype=torch.float64), 0.0
    eye = torch.eye(2, dtype=torch.float64)
    for t in range(3):
        (x, y, _), (query_x, query_y, _) = select(episodes, t)
        a, query_a = (torch.cat([z, torch.ones_like(z)], 1) for z in (x, query_x))
        hessian = 2 / len(a) * a.T @ a
        right = 2 / len(a) * (a.T @ y)[:, 0] + strength * theta
        end = torch.linalg.solve(hessian + strength * eye, right)
        error = query_a @ end - query_y[:, 0]
        slope = 2 / len(error) * query_a.T @ error
        expected += strength * torch.linalg.solve(hessian + strength * eye, slope) / 3
        losses += float(error.square().mean()) / 3
    found, loss = meta_gradient(made, episodes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert float(loss) == pytest.approx(losses, abs=1e-10)


def network(weights: Tensor, x: Tensor) -> Tensor:
    """Four hidden units, from one vector of 13 weights."""
    a, b, c, d = weights.split([4, 4, 4, 1])
    return torch.tanh(x * a + b) @ c[:, None] + d


class Exact:
    """A task solved to the last digit by Newton's method, with dense Hessians."""

    def __init__(
        self, theta: Tensor, episode: Episode, *, strength: float = STRENGTH, rate: float = 0.1
    ) -> None:
        (x, y, _), (query_x, query_y, _) = episode

        def support_loss(w: Tensor) -> Tensor:
            return (network(w, x) - y).square().mean()

        def regularised(w: Tensor) -> Tensor:
            return support_loss(w) + strength / 2 * (w - theta).square().sum()

        w = theta.clone()
        for step in range(300):  # gradient descent into the basin that the learner is in
            w = w - rate * torch.autograd.functional.jacobian(regularised, w)
            if step > 290:
                slope = torch.autograd.functional.jacobian(regularised, w)
                curve = torch.autograd.functional.hessian(regularised, w)
                w = w - torch.linalg.solve(curve, slope)
        self.weights = w
        self.hessian = torch.autograd.functional.hessian(support_loss, w)

        def query_loss(w: Tensor) -> Tensor:
            return (network(w, query_x) - query_y).square().mean()

        self.slope = torch.autograd.functional.jacobian(query_loss, w)
        self.matrix = torch.eye(len(w), dtype=w.dtype) + self.hessian / strength
        self.gradient = torch.linalg.solve(self.matrix, self.slope)
        self.loss = float(query_loss(w))


def flat(params: Params) -> Tensor:
    return torch.cat([p.flatten() for p in params.values()])


def test_a_network_s_gradient_is_the_exact_one_where_all_has_converged(episodes: Episode) -> None:
    made = learner((4,), inner_steps=300, solver_steps=40)
    tasks = [Exact(flat(made.init()), select(episodes, t)) for t in range(3)]
    found, loss = meta_gradient(made, episodes)
    expected = torch.stack([task.gradient for task in tasks]).mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert float(loss) == pytest.approx(sum(task.loss for task in tasks) / 3, abs=1e-9)
    first = torch.stack([task.slope for task in tasks]).mean(0)
    assert (first - expected).norm() > 0.3 * expected.norm()  # first order would be far off


def test_the_exact_gradient_is_that_of_the_whole_trajectory(episodes: Episode) -> None:
    """What differentiating through very many steps gives: the two references agree."""
    theta = flat(learner((4,)).init())
    one = select(episodes, 0)
    start = theta.clone().requires_grad_()
    w = start
    for _ in range(400):
        loss = (network(w, one.support.x) - one.support.y).square().mean()
        loss = loss + STRENGTH / 2 * (w - start).square().sum()
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        w = w - 0.1 * g
    query = (network(w, one.query.x) - one.query.y).square().mean()
    (through,) = torch.autograd.grad(query, start)
    torch.testing.assert_close(through, Exact(theta, one).gradient, rtol=0, atol=1e-9)


def test_each_inner_step_shrinks_the_error_by_its_factor(episodes: Episode) -> None:
    """Descent near a minimum: by the largest |1 - inner_lr (lambda + h)| over eigenvalues h."""
    one = select(episodes, slice(0, 1))
    exact = Exact(flat(learner((4,)).init()), select(episodes, 0))
    counts = [80, 110, 140, 170]
    errors = [
        float(
            (
                meta_gradient(learner((4,), inner_steps=k, solver_steps=40), one)[0]
                - exact.gradient
            ).norm()
        )
        for k in counts
    ]
    curve = torch.linalg.eigvalsh(exact.hessian)
    factor = float((1 - 0.1 * (STRENGTH + curve)).abs().max())
    slopes = [math.log(b / a) / 30 for a, b in pairwise(errors)]
    assert errors[0] < 0.1
    assert slopes == sorted(slopes)  # faster at first, until the slowest direction is what is left
    assert slopes[-1] == pytest.approx(math.log(factor), rel=0.05)
    assert slopes[-1] < math.log(factor)


def test_each_step_of_the_neumann_series_shrinks_the_error_by_its_factor(
    episodes: Episode,
) -> None:
    """By the largest |h| / lambda."""
    one = select(episodes, slice(0, 1))
    settings: dict[str, Any] = {"inner_steps": 200, "inner_lr": 0.05, "solver": "neumann"}
    settings["strength"] = 10.0
    theta = flat(learner((4,)).init())
    exact = Exact(theta, select(episodes, 0), strength=10.0, rate=0.05)
    factor = float(torch.linalg.eigvalsh(exact.hessian).abs().max()) / 10
    errors = [
        float(
            (
                meta_gradient(learner((4,), solver_steps=k, **settings), one)[0] - exact.gradient
            ).norm()
        )
        for k in (10, 15, 20)
    ]
    slopes = [math.log(b / a) / 5 for a, b in pairwise(errors)]
    assert slopes == pytest.approx([math.log(factor)] * 2, rel=0.05)


def test_conjugate_gradients_keep_their_bound(episodes: Episode) -> None:
    """In the matrix's norm: at most 2 ((sqrt k - 1) / (sqrt k + 1))^steps, k its condition."""
    one = select(episodes, slice(0, 1))
    exact = Exact(flat(learner((4,)).init()), select(episodes, 0))
    curve = torch.linalg.eigvalsh(exact.matrix)
    assert curve[0] > 0
    root = math.sqrt(float(curve[-1] / curve[0]))

    def distance(x: Tensor) -> float:
        error = x - exact.gradient
        return float((error @ exact.matrix @ error).sqrt())

    whole = distance(torch.zeros_like(exact.gradient))
    last = whole
    for steps in range(1, 10):
        made = learner((4,), inner_steps=300, solver_steps=steps)
        found = distance(meta_gradient(made, one)[0])
        assert found <= 2 * ((root - 1) / (root + 1)) ** steps * whole + 1e-9
        assert found < 0.9 * last or found < 1e-9
        last = found
    assert last < 1e-5 * whole


def test_the_published_code_s_way(episodes: Episode) -> None:
    """Steps on the support loss, one on the pull, a damped matrix; no pull after training."""
    made = learner((4,), pull="last", damping=3.0, inner_steps=5, eval_steps=5, solver_steps=40)
    theta, total = flat(made.init()), torch.zeros(13, dtype=torch.float64)
    losses = []
    for t in range(3):
        (x, y, _), (query_x, query_y, _) = select(episodes, t)

        def support_loss(w: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            return (network(w, x) - y).square().mean()

        w = theta
        for _ in range(5):
            w = w - 0.1 * torch.autograd.functional.jacobian(support_loss, w)
        state = made.adapt(made.init(), select(episodes, t).support, KEYS[t])
        torch.testing.assert_close(flat(state["weights"]), w, rtol=1e-10, atol=1e-12)
        w = (w - 0.1 * STRENGTH * (w - theta)).requires_grad_()
        loss = (network(w, query_x) - query_y).square().mean()
        (slope,) = torch.autograd.grad(loss, w)
        hessian = torch.autograd.functional.hessian(support_loss, w.detach())
        matrix = torch.eye(13, dtype=torch.float64) + hessian / (STRENGTH + 3.0)
        total += torch.linalg.solve(matrix, slope) / 3
        losses.append(loss.detach())
    found, mean = meta_gradient(made, episodes)
    torch.testing.assert_close(found, total, rtol=0, atol=1e-10)
    torch.testing.assert_close(mean, torch.stack(losses).mean(), rtol=1e-12, atol=0)


def test_adam_finds_the_same_minimum(episodes: Episode) -> None:
    adam = learner((4,), inner_optimiser="adam", beta1=0.9, inner_lr=0.005, inner_steps=600)
    sgd = learner((4,), inner_steps=300)
    torch.testing.assert_close(
        meta_gradient(adam, episodes)[0], meta_gradient(sgd, episodes)[0], rtol=0, atol=1e-4
    )


def test_no_graph_goes_through_the_inner_loop(episodes: Episode) -> None:
    """Weights on their way know nothing of what they started from; MAML's do."""
    seen: list[bool] = []

    def watched(cls: type[Any]) -> Any:
        class Watched(cls):  # type: ignore[misc]
            def move(self, params: Params, state: Any, *rest: Any) -> Any:
                seen.extend(w.requires_grad for w in state["weights"].values())
                return super().move(params, state, *rest)

        model = Mlp(1, 1, hidden=(4,), activation="tanh").double()
        return Watched(model=model, loss=squared_error, inner_steps=2)

    for cls, graph in ((IMaml, False), (Maml, True)):
        made = watched(cls)
        params = {name: p.requires_grad_() for name, p in made.init().items()}
        loss = made.outer_loss(params, select(episodes, 0), KEYS[0])
        assert seen == [graph] * 8
        assert loss.requires_grad
        seen.clear()


def test_a_converged_solver_stays(episodes: Episode) -> None:
    """Steps after the residual is zero to the last bit change nothing, and give no NaN."""
    found = [
        meta_gradient(learner((), inner_steps=50, solver_steps=k), episodes)[0] for k in (4, 200)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


def test_an_answer_that_is_right_already_has_no_gradient(episodes: Episode) -> None:
    zero = Episode(*(half._replace(y=torch.zeros_like(half.y)) for half in episodes))
    made = learner(())
    params = {name: torch.zeros_like(p) for name, p in made.init().items()}
    grads, loss = Vectorised(made).outer_gradient(params, zero, KEYS)
    assert float(loss) == 0
    assert all(bool((g == 0).all()) for g in grads.values())


def test_a_task_keeps_weights_alone(episodes: Episode) -> None:
    """Those that plain descent on the regularised loss ends with."""
    made = learner((4,), eval_steps=7)
    params = made.init()
    state = Vectorised(made).adapt(params, episodes.support, KEYS)
    assert set(state) == {"weights", "support"}
    theta = flat(params)
    w, x, y = theta, episodes.support.x[1], episodes.support.y[1]
    for _ in range(7):
        w = w.requires_grad_()
        loss = F.mse_loss(network(w, x), y) + STRENGTH / 2 * (w - theta.detach()).square().sum()
        w = (w - 0.1 * torch.autograd.grad(loss, w)[0]).detach()
    found = torch.cat([p[1].flatten() for p in state["weights"].values()])
    torch.testing.assert_close(found, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"solver": "gc"}, r"unknown solver 'gc'.*Did you mean 'cg'"),
        ({"pull": "never"}, "unknown way to pull 'never'"),
        ({"damping": -1.0}, r"damping is -1\.0; expected at least 0"),
        ({"strength": 0.0}, r"strength is 0\.0; expected a number above 0"),
        ({"solver_steps": 0}, "solver_steps is 0; expected at least 1"),
    ],
)
def test_what_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner((4,), **settings)
