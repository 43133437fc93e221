"""LaplacianShot against its bound updates, in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import LaplacianShot, SimpleShot
from tegu.learners.laplacianshot import rectified
from tegu.learners.simpleshot import BASE_MEAN

KEYS = keys.fold(keys.key(0), torch.arange(3))


def softmax(row: Any) -> Any:
    e = np.exp(row - row.max())
    return e / e.sum()


def cosine(a: Any, b: Any) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def reference(
    known: Any,
    y: Any,
    asked: Any,
    *,
    base: Any,
    neighbours: int,
    rounds: int,
    rectify: bool = False,
    weight: float = 0.6,
    n_way: int = 3,
) -> Any:
    """Logarithms of the labels of the queries after `rounds` updates."""
    known = np.array([(f - base) / np.sqrt(((f - base) ** 2).sum()) for f in known])
    asked = np.array([(f - base) / np.sqrt(((f - base) ** 2).sum()) for f in asked])
    m = np.array([known[y == k].mean(0) for k in range(n_way)])
    if rectify:
        asked = asked + known.mean(0) - asked.mean(0)
        sums, counts = np.zeros_like(m), np.zeros(n_way)
        for f in np.concatenate([known, asked]):
            shares = softmax(np.array([10 * cosine(f, m[k]) for k in range(n_way)]))
            k = int(shares.argmax())
            sums[k] += shares[k] * f
            counts[k] += 1
        m = np.array([sums[k] / counts[k] if counts[k] else m[k] for k in range(n_way)])
    a = np.array([[((f - m[k]) ** 2).sum() for k in range(n_way)] for f in asked])
    tied = []
    for q in range(len(asked)):
        apart = sorted((((asked[q] - asked[p]) ** 2).sum(), p) for p in range(len(asked)) if p != q)
        tied.append([p for _, p in apart[:neighbours]])
    labels = np.array([softmax(-a[q]) for q in range(len(asked))])
    for _ in range(rounds):
        labels = np.array(
            [softmax(-a[q] + weight * sum(labels[p] for p in tied[q])) for q in range(len(asked))]
        )
    return np.log(labels)


def with_mean(learner: SimpleShot) -> Params:
    return {**learner.init(), BASE_MEAN: torch.linspace(-0.5, 0.7, 5, dtype=torch.float64)}


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize(("neighbours", "rounds"), [(2, 1), (3, 20), (40, 5)])
def test_against_the_paper(
    rectify: bool,
    neighbours: int,
    rounds: int,
    smooth: nn.Module,
    smooth_features: Any,
    toy_episodes: Episode,
) -> None:
    learner = LaplacianShot(
        model=smooth,
        n_way=3,
        n_classes=7,
        weight=0.6,
        neighbours=neighbours,
        rounds=rounds,
        rectify=rectify,
    )
    params, engine = with_mean(learner), Vectorised(learner)
    state = engine.adapt(params, toy_episodes.support, KEYS)
    found = engine.predict(params, state, toy_episodes.query)
    for t in range(3):
        support, query = select(toy_episodes, t)
        expected = reference(
            smooth_features(params, support.x).numpy(),
            support.y.numpy(),
            smooth_features(params, query.x).numpy(),
            base=params[BASE_MEAN].numpy(),
            neighbours=neighbours,
            rounds=rounds,
            rectify=rectify,
        )
        np.testing.assert_allclose(found[t].numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("asks", [[True, True, False, True, False, False], [True] * 6])
@pytest.mark.parametrize("rectify", [False, True])
def test_padding_and_absent_classes(
    rectify: bool, asks: list[bool], smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """A 5-way head shown two classes, with rows of padding.

    Three queries are fewer than the neighbours asked for.
    """
    learner = LaplacianShot(
        model=smooth, n_way=5, n_classes=7, weight=0.6, neighbours=4, rectify=rectify
    )
    params, (support, query) = with_mean(learner), select(toy_episodes, 0)
    shown, asked = support.y < 2, torch.tensor(asks)
    state = learner.adapt(params, support._replace(mask=shown), KEYS[0])
    found = learner.predict(params, state, query.x, asked)
    expected = reference(
        smooth_features(params, support.x[shown]).numpy(),
        support.y[shown].numpy(),
        smooth_features(params, query.x[asked]).numpy(),
        base=params[BASE_MEAN].numpy(),
        neighbours=4,
        rounds=20,
        rectify=rectify,
        n_way=2,
    )
    np.testing.assert_allclose(found[asked][:, :2].numpy(), expected, rtol=1e-6, atol=1e-9)
    assert bool(found.isfinite().all())
    assert float(found.softmax(-1)[:, 2:].sum()) == 0


def test_a_query_alone_has_no_neighbours(smooth: nn.Module, toy_episodes: Episode) -> None:
    """Then it is SimpleShot, but for the normalisation of the scores."""
    settings: Any = {"model": smooth, "n_way": 3, "n_classes": 7}
    learner, plain = LaplacianShot(**settings), SimpleShot(**settings)
    params, (support, query) = with_mean(plain), select(toy_episodes, 0)
    one, mask = query.x[:1], query.mask[:1]
    found = learner.predict(params, learner.adapt(params, support, KEYS[0]), one, mask)
    expected = plain.predict(params, plain.adapt(params, support, KEYS[0]), one, mask)
    torch.testing.assert_close(found, expected.log_softmax(-1))


def test_a_class_that_nothing_is_nearest_to_keeps_its_prototype(smooth: nn.Module) -> None:
    """Two classes in one direction: the farther one loses every example."""
    old = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    state = {
        "known": old,
        "member": torch.eye(3, dtype=torch.float64),
        "prototypes": old,
        "present": torch.tensor([True, True, True]),
    }
    asked = torch.tensor([[1.0, 0.1], [0.1, 1.0]], dtype=torch.float64)
    _, new = rectified(state, asked, torch.tensor([True, True]))
    assert bool(new.isfinite().all())
    assert new[1].tolist() == [2, 0]
    assert new[0].tolist() != [1, 0]


@pytest.mark.parametrize("rectify", [False, True])
def test_queries_help(rectify: bool, smooth: nn.Module, clusters: Any, judged: Any) -> None:
    """Above the nearest centroid on the same features."""
    settings: Any = {"model": smooth, "n_way": 5, "n_classes": 7}
    params = {BASE_MEAN: torch.full((30,), 1.5, dtype=torch.float64)}
    nearest = judged(SimpleShot(**settings), params, clusters)
    found = judged(LaplacianShot(**settings, rectify=rectify), params, clusters)
    assert found > nearest + 0.02


@pytest.mark.parametrize("name", ["weight", "neighbours", "rounds"])
def test_bad_settings(name: str, smooth: nn.Module) -> None:
    settings: Any = {name: -1}
    with pytest.raises(InputError, match=f"{name} is -1; expected at least 0"):
        LaplacianShot(model=smooth, n_classes=7, **settings)
