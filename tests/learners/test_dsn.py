"""Subspace networks against singular value decompositions and finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import DSN, ProtoNet
from tegu.learners.dsn import bases, overlap
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(4))


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=3, n_query=2).episodes(torch.arange(4))


def learner_of(**settings: object) -> DSN:
    return DSN(model=Mlp(6, 3, hidden=(8,), activation="tanh").double(), n_way=3, **settings)


def examples(shots: list[int], width: int) -> Examples:
    """Support set with a number of shots for each class, in mixed order."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    y = y[torch.randperm(len(y), generator=generator)]
    return Examples.dense(torch.randn(len(y), width, generator=generator).double(), y)


def subspaces(support: Examples, n_way: int) -> list[tuple[Tensor, Tensor]]:
    """Mean and orthonormal columns of each class, as the paper has them."""
    found = []
    for c in range(n_way):
        own = support.x[support.y == c]
        left = torch.linalg.svd((own - own.mean(0)).T, full_matrices=False).U
        found.append((own.mean(0), left[:, : len(own) - 1]))
    return found


def body_alone(**settings: object) -> DSN:
    model = nn.Identity()
    model.unused = nn.Parameter(torch.ones(1).double())
    return DSN(model=model, body="", **settings)


@pytest.mark.parametrize("shots", [[4, 4, 4], [2, 5, 3], [1, 1, 6]])
@pytest.mark.parametrize("width", [7, 30])
def test_scores_are_distances_to_the_subspaces_of_the_paper(shots: list[int], width: int) -> None:
    support = examples(shots, width)
    learner = body_alone(n_way=3, regulariser=1e-11)
    query = torch.randn(5, width, generator=torch.Generator().manual_seed(3)).double()
    state = learner.adapt(learner.init(), support, KEYS[0])
    found = learner.predict(learner.init(), state, query, torch.ones(5, dtype=torch.bool))
    columns = []
    for mean, basis in subspaces(support, 3):
        away = query - mean
        columns.append(-(away - away @ basis @ basis.T).square().sum(-1))
    torch.testing.assert_close(found, torch.stack(columns, 1), rtol=1e-7, atol=1e-7)


def test_the_overlap_is_that_of_the_paper() -> None:
    support = examples([3, 4, 5], 9)
    member = F.one_hot(support.y, 3).double()
    pairs = subspaces(support, 3)
    expected = sum(
        (pairs[c][1].T @ pairs[e][1]).square().sum() for c in range(3) for e in range(3) if c != e
    )
    found = overlap(bases(support.x, member, 1e-11), member)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_what_the_regulariser_leaves() -> None:
    """Two shots at +s and -s on an axis: r / (2 s^2 + r) of the squared length along it."""
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 5.0], [0.0, 5.0]], dtype=torch.float64)
    support = Examples.dense(x, torch.tensor([0, 0, 1, 1]))
    middle = x.mean(0)
    r = 0.3 * (x - middle).square().sum() / 4
    learner = body_alone(n_way=2, regulariser=0.3)
    state = learner.adapt(learner.init(), support, KEYS[0])
    query = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    found = learner.predict(learner.init(), state, query, torch.ones(1, dtype=torch.bool))
    expected = torch.stack([-(1 + 9 * r / (8 + r)), torch.tensor(-25.0, dtype=torch.float64)])
    torch.testing.assert_close(found[0], expected)


def test_one_shot_is_a_prototypical_network(episodes: Episode) -> None:
    single = Episode(*(Examples(*(field[:, ::3] for field in half)) for half in episodes))
    model = Mlp(6, 3, hidden=(8,)).double()
    found = [
        Vectorised(cls(model=model, n_way=3), vectorise="vmap").outer_gradient(
            cls(model=model, n_way=3).init(), single, KEYS
        )
        for cls in (DSN, ProtoNet)
    ]
    assert single.support.y[0].tolist() in (
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    )
    torch.testing.assert_close(found[0], found[1])


def plain_loss(learner: DSN, params: Params, episode: Episode) -> Tensor:
    """The outer loss by the module itself, class by class, with projections D x D."""
    model = learner.model
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(params[name])
    support, query = (half._replace(x=model.body(half.x)) for half in episode)
    r = learner.regulariser * (support.x - support.x.mean(0)).square().sum(-1).mean()
    columns, projections = [], []
    for c in range(3):
        own = support.x[support.y == c]
        centred = own - own.mean(0)
        inverse = torch.linalg.inv(centred @ centred.T + r * torch.eye(len(own)).double())
        projections.append(centred.T @ inverse @ centred)
        away = query.x - own.mean(0)
        rest = torch.eye(own.shape[1]).double() - projections[-1]
        columns.append(-torch.einsum("qd,de,qe->q", away, rest, away))
    loss = F.cross_entropy(torch.stack(columns, 1), query.y)
    pairs = [
        (projections[c] @ projections[e]).trace() for c in range(3) for e in range(3) if c != e
    ]
    return loss + learner.discriminative * torch.stack(pairs).sum()


@pytest.mark.parametrize("discriminative", [0.0, 0.5])
def test_the_outer_gradient_is_that_of_finite_differences(
    slopes: Any, discriminative: float, episodes: Episode
) -> None:
    learner = learner_of(regulariser=0.05, discriminative=discriminative)
    params = learner.init()
    grads, value = Vectorised(learner, vectorise="vmap").outer_gradient(params, episodes, KEYS)

    def loss(params: Params) -> Tensor:
        return torch.stack(
            [plain_loss(learner, params, select(episodes, t)) for t in range(4)]
        ).mean()

    torch.testing.assert_close(value, loss(params).detach())
    by_gradient, by_differences = slopes(loss, params, grads)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_equal_singular_values_have_a_derivative() -> None:
    """Three shots at the corners of an equilateral triangle: both singular values agree."""
    corners = torch.eye(3).double()
    query = torch.tensor([[0.2, -0.4, 0.9]], dtype=torch.float64)

    def distance(x: Tensor) -> Tensor:
        basis = bases(x, torch.ones(3, 1).double(), 1e-6)
        away = query - x.mean(0)
        return away.square().sum() - (away @ basis.T).square().sum()

    leaf = corners.clone().requires_grad_()
    (found,) = torch.autograd.grad(distance(leaf), leaf)
    assert found.isfinite().all()
    way, step = torch.tensor([[0.3, -1, 0.2], [0.5, 0.1, 0.7], [-0.4, 0.9, 0.6]]).double(), 1e-5
    expected = (distance(corners + step * way) - distance(corners - step * way)) / (2 * step)
    torch.testing.assert_close((found * way).sum(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_examples_have_a_derivative(dtype: torch.dtype) -> None:
    x = torch.ones(4, 3, dtype=dtype).requires_grad_()
    basis = bases(x, torch.ones(4, 1, dtype=dtype), 1e-3)
    (found,) = torch.autograd.grad((basis @ torch.ones(3, dtype=dtype)).square().sum(), x)
    assert found.isfinite().all()


def test_padding_spans_nothing() -> None:
    support = examples([3, 4, 2], 9)
    member = F.one_hot(support.y, 3).double()
    expected = bases(support.x[:7], member[:7], 0.01)
    mask = (torch.arange(9) < 7).double()[:, None]
    found = bases(support.x + 100 * (1 - mask), member * mask, 0.01)
    torch.testing.assert_close(found[:7], expected)
    assert (found[7:] == 0).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"regulariser": 0.0}, r"regulariser is 0.0; expected a number above 0"),
        ({"discriminative": -0.1}, r"discriminative is -0.1; expected at least 0"),
    ],
)
def test_what_is_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner_of(**settings)
