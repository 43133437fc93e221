"""PT-MAP against its algorithm in plain numpy, with Sinkhorn's own products."""

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
from tegu.learners import PtMap

KEYS = keys.fold(keys.key(0), torch.arange(3))
SETTINGS: dict[str, Any] = {"power": 0.4, "sharpness": 6.0, "rate": 0.3}


def unit(rows: Any) -> Any:
    return np.array([f / np.sqrt((f**2).sum()) for f in rows])


def transformed(features: Any) -> Any:
    """Power transform with the sign kept, then centred, on the sphere each time."""
    raised = np.zeros_like(features)
    for i, j in np.ndindex(features.shape):
        sign = -1 if features[i, j] < 0 else 1
        raised[i, j] = sign * (abs(features[i, j]) + 1e-6) ** SETTINGS["power"]
    sphere = unit(raised)
    return unit(sphere - sphere.mean(0))


def sinkhorn(z: Any, c: Any, times: int) -> Any:
    plan = np.zeros((len(z), len(c)))
    for i in range(len(z)):
        for j in range(len(c)):
            plan[i, j] = np.exp(-SETTINGS["sharpness"] * ((z[i] - c[j]) ** 2).sum())
    for _ in range(times):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True) * len(z) / len(c)
    return plan


def reference(known: Any, y: Any, asked: Any, *, rounds: int, times: int, n_way: int = 3) -> Any:
    """Logarithms of the last plan."""
    known, asked = transformed(known), transformed(asked)
    c = np.array([known[y == j].mean(0) for j in range(n_way)])
    for _ in range(rounds):
        plan = sinkhorn(asked, c, times)
        for j in range(n_way):
            own = known[y == j]
            total = own.sum(0) + sum(plan[i, j] * asked[i] for i in range(len(asked)))
            c[j] += SETTINGS["rate"] * (total / (len(own) + plan[:, j].sum()) - c[j])
    return np.log(sinkhorn(asked, c, times))


@pytest.mark.parametrize(("rounds", "times"), [(0, 1), (1, 3), (15, 40)])
def test_against_the_paper(
    rounds: int, times: int, smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    learner = PtMap(model=smooth, n_way=3, n_classes=7, rounds=rounds, sinkhorn=times, **SETTINGS)
    params, engine = learner.init(), Vectorised(learner)
    state = engine.adapt(params, toy_episodes.support, KEYS)
    found = engine.predict(params, state, toy_episodes.query)
    for t in range(3):
        support, query = select(toy_episodes, t)
        known, asked = smooth_features(params, support.x), smooth_features(params, query.x)
        assert bool((asked < 0).any())
        assert bool((asked > 0).any())
        expected = reference(
            known.numpy(), support.y.numpy(), asked.numpy(), rounds=rounds, times=times
        )
        np.testing.assert_allclose(found[t].numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("asks", [[True, True, False, True, True, False], [True] * 6])
def test_padding_and_absent_classes(
    asks: list[bool], smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """A 5-way head shown two classes, with rows of padding."""
    learner = PtMap(model=smooth, n_way=5, n_classes=7, **SETTINGS)
    params, (support, query) = learner.init(), select(toy_episodes, 0)
    shown, asked = support.y < 2, torch.tensor(asks)
    state = learner.adapt(params, support._replace(mask=shown), KEYS[0])
    found = learner.predict(params, state, query.x, asked)
    expected = reference(
        smooth_features(params, support.x[shown]).numpy(),
        support.y[shown].numpy(),
        smooth_features(params, query.x[asked]).numpy(),
        rounds=20,
        times=50,
        n_way=2,
    )
    np.testing.assert_allclose(found[asked][:, :2].numpy(), expected, rtol=1e-6, atol=1e-9)
    assert bool(found.isfinite().all())
    assert float(found.softmax(-1)[:, 2:].sum()) == 0


def test_the_plan_has_even_rows_and_columns(smooth: nn.Module, clusters: Any) -> None:
    """Columns sum to 15; rows to 1, within 0.02 after 50 normalisations and closer after 300.

    More of them change no answer.
    """
    support, query = clusters[0]
    answers = []
    for times, within in ((50, 0.02), (300, 0.001)):
        learner = PtMap(model=smooth, n_way=5, n_classes=7, sinkhorn=times)
        state = {**learner.fit({}, support.x, support), "present": torch.ones(5) > 0}
        plan = learner.score({}, state, query.x, query.mask).exp()
        torch.testing.assert_close(plan.sum(1), torch.ones(75).double(), rtol=0, atol=within)
        torch.testing.assert_close(plan.sum(0), torch.full((5,), 15.0).double())
        answers.append(plan.argmax(1).tolist())
    assert answers[0] == answers[1]


def test_queries_help(smooth: nn.Module, clusters: Any, judged: Any) -> None:
    """Far above the nearest centroid, on features as they are or transformed alike."""
    settings: Any = {"model": smooth, "n_way": 5, "n_classes": 7}
    learner = PtMap(**settings)
    shares = []
    for transform in (lambda half: half.x, lambda half: learner.transformed(half.x, half.mask)):
        right = []
        for support, query in clusters:
            apart = torch.cdist(transform(query), transform(support))
            right.append((support.y[apart.argmin(1)] == query.y).double().mean())
        shares.append(float(torch.stack(right).mean()))
    assert judged(learner, {}, clusters) > max(shares) + 0.04


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"power": 0.0}, r"power is 0\.0; expected a number above 0"),
        ({"sharpness": -1.0}, r"sharpness is -1\.0; expected a number above 0"),
        ({"rate": 1.5}, r"rate is 1\.5; expected 0 to 1"),
        ({"rounds": -1}, r"rounds is -1; expected at least 0"),
        ({"sinkhorn": 0}, r"sinkhorn is 0; expected at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str, smooth: nn.Module) -> None:
    with pytest.raises(InputError, match=text):
        PtMap(model=smooth, n_classes=7, **settings)
