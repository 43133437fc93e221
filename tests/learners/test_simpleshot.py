"""SimpleShot: the mean of the training features is tracked; nearest centroid by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.learners import SimpleShot
from tegu.learners.simpleshot import BASE_MEAN

KEYS = keys.fold(keys.key(0), torch.arange(3))


def test_the_base_mean_is_tracked(
    smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """Share 0.1 of each iteration's mean over batches, padding left out; no gradient."""
    mask = toy_episodes.support.mask.clone()
    mask[:, 2] = False
    batches = Episode(toy_episodes.support._replace(mask=mask), toy_episodes.query)
    learner = SimpleShot(model=smooth, n_way=3, n_classes=7)
    for how in ("vmap", "loop"):
        engine = Vectorised(learner, vectorise=how)
        params = learner.init()
        outer = engine.outer_state(params)
        expected = torch.zeros(5, dtype=torch.float64)
        assert params[BASE_MEAN].tolist() == [0] * 5
        for _ in range(3):
            means = []
            for t in range(3):
                support, query = select(batches, t)
                rows = list(smooth_features(params, support.x)[[0, 1, 3, 4, 5]])
                rows += list(smooth_features(params, query.x))
                means.append(sum(rows) / len(rows))
            expected = 0.9 * expected + 0.1 * sum(means) / 3
            params, outer, _ = engine.update(params, outer, batches, KEYS, outer_lr=0.05)
            torch.testing.assert_close(params[BASE_MEAN], expected)
        assert not any(BASE_MEAN in name for name in outer)
        gradients, _ = engine.outer_gradient(params, batches, KEYS)
        assert BASE_MEAN not in gradients


def test_nearest_centroid(smooth: nn.Module, smooth_features: Any, toy_episodes: Episode) -> None:
    learner = SimpleShot(model=smooth, n_way=3, n_classes=7)
    params = learner.init()
    params[BASE_MEAN] = torch.linspace(-1, 1, 5, dtype=torch.float64)
    engine = Vectorised(learner)
    state = engine.adapt(params, toy_episodes.support, KEYS)
    found = engine.predict(params, state, toy_episodes.query)
    for t in range(3):
        support, query = select(toy_episodes, t)
        known = smooth_features(params, support.x) - params[BASE_MEAN]
        known = torch.stack([f / f.norm() for f in known])
        asked = smooth_features(params, query.x) - params[BASE_MEAN]
        for q, f in enumerate(asked):
            for n in range(3):
                centroid = known[support.y == n].mean(0)
                distance = ((f / f.norm() - centroid) ** 2).sum()
                torch.testing.assert_close(found[t, q, n], -distance)
