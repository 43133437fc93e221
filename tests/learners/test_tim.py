"""TIM-ADM against the update equations of proposition 1, in plain numpy."""

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
from tegu.learners import Tim
from tegu.learners.head import class_means, members, squared_distances

KEYS = keys.fold(keys.key(0), torch.arange(3))
SETTINGS: dict[str, Any] = {"temperature": 9.0, "support_weight": 0.3, "certainty": 0.2}


def chances(w: Any, z: Any) -> Any:
    """p_ik of each item, the softmax over classes of scaled distances."""
    p = np.zeros((len(z), len(w)))
    for i in range(len(z)):
        for k in range(len(w)):
            p[i, k] = np.exp(-SETTINGS["temperature"] / 2 * ((w[k] - z[i]) ** 2).sum())
        p[i] /= p[i].sum()
    return p


def reference(known: Any, y: Any, asked: Any, *, rounds: int, n_way: int = 3) -> Any:
    """Logarithms of p of the queries after `rounds` pairs of updates."""
    weight, a = SETTINGS["support_weight"], SETTINGS["certainty"]
    known = np.array([f / np.sqrt((f**2).sum()) for f in known])
    asked = np.array([f / np.sqrt((f**2).sum()) for f in asked])
    w = np.array([known[y == k].mean(0) for k in range(n_way)])
    ratio = len(known) / len(asked)
    for _ in range(rounds):
        p_known, p = chances(w, known), chances(w, asked)
        q = np.zeros_like(p)
        for i in range(len(asked)):
            for k in range(n_way):
                q[i, k] = p[i, k] ** (1 + a) / np.sqrt((p[:, k] ** (1 + a)).sum())
            q[i] /= q[i].sum()
        new = np.zeros_like(w)
        for k in range(n_way):
            above = np.zeros(w.shape[1])
            below = 0.0
            for i in range(len(known)):
                own = float(y[i] == k)
                above += weight / (1 + a) * (own * known[i] + p_known[i, k] * (w[k] - known[i]))
                below += weight / (1 + a) * own
            for i in range(len(asked)):
                above += ratio * (q[i, k] * asked[i] + p[i, k] * (w[k] - asked[i]))
                below += ratio * q[i, k]
            new[k] = above / below
        w = new
    return np.log(chances(w, asked))


@pytest.mark.parametrize("rounds", [0, 1, 12])
def test_against_the_paper(
    rounds: int, smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    learner = Tim(model=smooth, n_way=3, n_classes=7, rounds=rounds, **SETTINGS)
    params, engine = learner.init(), Vectorised(learner)
    state = engine.adapt(params, toy_episodes.support, KEYS)
    found = engine.predict(params, state, toy_episodes.query)
    for t in range(3):
        support, query = select(toy_episodes, t)
        known, asked = smooth_features(params, support.x), smooth_features(params, query.x)
        expected = reference(known.numpy(), support.y.numpy(), asked.numpy(), rounds=rounds)
        np.testing.assert_allclose(found[t].numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("asks", [[True, True, False, True, True, False], [True] * 6])
def test_padding_and_absent_classes(
    asks: list[bool], smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """A 5-way head shown two classes, with rows of padding."""
    learner = Tim(model=smooth, n_way=5, n_classes=7, rounds=12, **SETTINGS)
    params, (support, query) = learner.init(), select(toy_episodes, 0)
    shown, asked = support.y < 2, torch.tensor(asks)
    state = learner.adapt(params, support._replace(mask=shown), KEYS[0])
    found = learner.predict(params, state, query.x, asked)
    expected = reference(
        smooth_features(params, support.x[shown]).numpy(),
        support.y[shown].numpy(),
        smooth_features(params, query.x[asked]).numpy(),
        rounds=12,
        n_way=2,
    )
    np.testing.assert_allclose(found[asked][:, :2].numpy(), expected, rtol=1e-6, atol=1e-9)
    assert bool(found.isfinite().all())
    assert float(found.softmax(-1)[:, 2:].sum()) == 0


def test_queries_help(smooth: nn.Module, clusters: Any, judged: Any) -> None:
    """With the paper's settings, far above the nearest centroid on the same features."""
    learner = Tim(model=smooth, n_way=5, n_classes=7)
    nearest = judged(Tim(model=smooth, n_way=5, n_classes=7, rounds=0), {}, clusters)
    by_hand = []
    for support, query in clusters:
        known, asked = (f.x / f.x.norm(dim=1, keepdim=True) for f in (support, query))
        centres = class_means(known, members(support, 5, known))
        by_hand.append((squared_distances(asked, centres).argmin(-1) == query.y).double().mean())
    assert nearest == pytest.approx(float(torch.stack(by_hand).mean()))
    assert judged(learner, {}, clusters) > nearest + 0.04


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": 0.0}, r"temperature is 0\.0; expected a number above 0"),
        ({"support_weight": -1.0}, r"support_weight is -1\.0; expected a number above 0"),
        ({"certainty": -0.1}, r"certainty is -0\.1; expected at least 0"),
        ({"rounds": -1}, r"rounds is -1; expected at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str, smooth: nn.Module) -> None:
    with pytest.raises(InputError, match=text):
        Tim(model=smooth, n_classes=7, **settings)
