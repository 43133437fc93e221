"""Worlds of cause and effect: what is fixed, what changes, and by what law."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.interpolate import CubicSpline

from tegu import keys
from tegu.datasets.causal_pairs import (
    CategoryPairs,
    ContinuousPairs,
    categories,
    dirichlet,
    natural_spline,
)
from tegu.errors import InputError
from tegu.models.pair import turned

MANY = torch.arange(200)


def test_dirichlet_is_uniform_on_the_simplex() -> None:
    """Mean 1/n, variance (n - 1) / (n^2 (n + 1)): the moments of Dirichlet(1, ..., 1)."""
    drawn = dirichlet(keys.fold(keys.key(0), torch.arange(20_000)), 4)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000).double())
    assert bool((drawn > 0).all())
    mean, variance = drawn.mean(0), drawn.var(0)
    torch.testing.assert_close(mean, torch.full((4,), 0.25).double(), rtol=0, atol=0.006)
    torch.testing.assert_close(variance, torch.full((4,), 3 / 80).double(), rtol=0.05, atol=0)


def test_categories_are_drawn_by_their_probabilities() -> None:
    shares = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    at = torch.tensor([0.0, 0.4999, 0.5, 0.6999, 0.7001, 0.9999999999], dtype=torch.float64)
    assert categories(shares, at).tolist() == [0, 0, 2, 2, 3, 3]


def test_spline_is_that_of_scipy_inside_and_a_line_beyond() -> None:
    knots = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    values = torch.tensor([1.0, -2.0, 0.0, 4.0, -1.0], dtype=torch.float64)
    spline = CubicSpline(knots.numpy(), values.numpy(), bc_type="natural")
    x = torch.linspace(-2, 3, 101, dtype=torch.float64)
    torch.testing.assert_close(natural_spline(x, knots, values), torch.from_numpy(spline(x)))
    beyond = torch.tensor([-4.0, 5.0], dtype=torch.float64)
    ends = torch.tensor([spline(-2.0) - 2 * spline(-2.0, 1), spline(3.0) + 2 * spline(3.0, 1)])
    torch.testing.assert_close(natural_spline(beyond, knots, values), ends)
    three = natural_spline(x, knots[:3], values[:3])
    inside = x <= 0.5
    small = CubicSpline(knots[:3].numpy(), values[:3].numpy(), bc_type="natural")
    torch.testing.assert_close(three[inside], torch.from_numpy(small(x[inside])))


def test_interventions_change_the_cause_and_leave_the_mechanism() -> None:
    tasks = CategoryPairs(n_shot=2000, n_query=2000, n_categories=3, split="meta_val", world=4)
    support = tasks.episodes(MANY).support.x.long()
    causes = tasks.causes(MANY)
    for t in (0, 7):
        a, b = support[t].unbind(-1)
        shares = torch.bincount(a, minlength=3).double() / 2000
        torch.testing.assert_close(shares, causes[t], rtol=0, atol=0.04)
    assert not torch.allclose(causes[0], causes[7], atol=0.1)
    a, b = support.flatten(0, 1).unbind(-1)
    for cause in range(3):
        shares = torch.bincount(b[a == cause], minlength=3).double() / (a == cause).sum()
        torch.testing.assert_close(shares, tasks.mechanism[cause], rtol=0, atol=0.01)


def test_worlds_that_networks_draw() -> None:
    """A mechanism has no more degrees of freedom than the hidden layer; causes differ."""
    tasks = CategoryPairs(n_categories=10, network=3)
    logs = tasks.mechanism.log()
    centred = logs - logs.mean(-1, keepdim=True)
    centred = centred - centred.mean(0)
    ranks = torch.linalg.svdvals(centred)
    assert float(ranks[2]) > 1e-3
    assert float(ranks[3]) < 1e-10
    causes = tasks.causes(MANY)
    torch.testing.assert_close(causes.sum(-1), torch.ones(200).double())
    assert float(causes.std(0).min()) > 0.02
    assert torch.equal(causes[7:8], tasks.causes(MANY[7:8]))


def test_queries_of_training_are_those_that_models_are_fitted_to() -> None:
    tasks = CategoryPairs(n_query=2000, n_categories=3)
    pairs = tasks.episodes(MANY).query.x.long().flatten(0, 1)
    joint = torch.zeros(3, 3, dtype=torch.float64)
    joint.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs)).double(), accumulate=True)
    torch.testing.assert_close(joint / joint.sum(), tasks.training, rtol=0, atol=0.003)
    later = CategoryPairs(n_query=2000, n_categories=3, split="meta_test")
    a = later.episodes(MANY[:1]).query.x[0, :, 0].long()
    shares = torch.bincount(a, minlength=3).double() / 2000
    torch.testing.assert_close(shares, later.causes(MANY[:1])[0], rtol=0, atol=0.04)


def test_a_continuous_world_has_the_moments_that_it_states() -> None:
    tasks = ContinuousPairs(n_shot=2000, n_query=2000, world=2)
    episode = tasks.episodes(MANY)
    a, b = episode.support.x.double().unbind(-1)
    means = tasks.means(MANY)
    assert float(means.min()) > -4
    assert float(means.max()) < 4
    torch.testing.assert_close(a.mean(-1, keepdim=True), means, rtol=0, atol=0.2)
    noise = b - tasks.mechanism(a)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    before = episode.query.x[..., 0]
    assert float(before.mean()) == pytest.approx(0, abs=0.02)
    assert float(before.std()) == pytest.approx(2, abs=0.02)
    narrow = ContinuousPairs(n_shot=2000, n_query=2000, narrowed=0.5).episodes(MANY)
    assert float(narrow.support.x[..., 0].std(-1).mean()) == pytest.approx(1, abs=0.01)
    assert float(narrow.query.x[..., 0].std()) == pytest.approx(2, abs=0.02)
    other = ContinuousPairs(world=3)
    assert not torch.allclose(tasks.mechanism(a[0]), other.mechanism(a[0]))


def test_swapped_and_turned_worlds_show_the_same_pairs() -> None:
    index = torch.tensor([5, 2])
    for kind in (CategoryPairs, ContinuousPairs):
        plain, back = kind(), kind(swapped=True)
        assert torch.equal(plain.episodes(index).support.x, back.episodes(index).support.x.flip(-1))
    exchanged = CategoryPairs(swapped=True).training
    torch.testing.assert_close(exchanged, CategoryPairs().training.T)
    x = ContinuousPairs().episodes(index).query.x
    seen = ContinuousPairs(angle=0.3).episodes(index).query.x
    torch.testing.assert_close(turned(seen, torch.tensor(-0.3)), x, rtol=1e-4, atol=1e-5)
    quarter = turned(torch.tensor([[1.0, 0.0]]), torch.tensor(math.pi / 2))
    torch.testing.assert_close(quarter, torch.tensor([[0.0, 1.0]]))


def test_an_episode_is_a_function_of_its_number() -> None:
    for kind in (CategoryPairs, ContinuousPairs):
        some = kind().episodes(torch.tensor([9, 4]))
        alone = kind().episodes(torch.tensor([4]))
        assert torch.equal(some.support.x[1:], alone.support.x)
        assert not torch.equal(some.support.x[0], some.support.x[1])
        assert not torch.equal(
            some.support.x, kind(split="meta_val").episodes(torch.tensor([9, 4])).support.x
        )


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (CategoryPairs, {"split": "train"}, "unknown split 'train'"),
        (CategoryPairs, {"n_shot": 0}, "n_shot is 0; expected at least 1. Raise n_shot."),
        (ContinuousPairs, {"n_query": 0}, "n_query is 0; expected at least 1. Raise n_query."),
        (CategoryPairs, {"n_categories": 1}, "n_categories is 1; expected at least 2."),
        (CategoryPairs, {"network": -1}, "network is -1; expected at least 0. Try 8, or 0."),
        (ContinuousPairs, {"anchors": 2}, "anchors is 2; expected at least 3. Raise anchors."),
        (ContinuousPairs, {"noise": 0.0}, "noise is 0.0; expected a number above 0. Raise noise."),
        (ContinuousPairs, {"shift": math.inf}, "shift is inf; expected a number above 0, finite."),
    ],
)
def test_worlds_that_cannot_be(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as told:
        make(**settings)
    assert str(told.value).startswith(message)
