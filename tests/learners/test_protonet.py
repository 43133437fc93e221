"""Prototypical networks against equations 1 and 2, by hand and by a plain loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.inner import Params
from tegu.learners import ProtoNet
from tegu.losses import cross_entropy

KEYS = keys.fold(keys.key(0), torch.arange(3))


def test_by_hand() -> None:
    """Two classes on a line, means 1 and 5; a query at 2 is 1 and 9 away, squared."""
    model = nn.Identity()
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    learner = ProtoNet(model=model, n_way=2, body="")
    x = torch.tensor([[0.0], [2.0], [5.0]], dtype=torch.float64)
    support = Examples.dense(x, torch.tensor([0, 0, 1]))
    state = learner.adapt(learner.init(), support, KEYS[0])
    assert state["prototypes"].tolist() == [[1], [5]]
    query = Examples.dense(torch.tensor([[2.0]]).double(), torch.tensor([1]))
    scores = learner.predict(learner.init(), state, query.x, query.mask)
    assert scores.tolist() == [[-1, -9]]
    assert math.isclose(float(cross_entropy(scores, query)), 8 + math.log1p(math.exp(-8)))


def reference(features: Any, params: Params, episodes: Episode) -> Tensor:
    """Mean loss over tasks, from the paper, one query after another."""
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        known, asked = features(params, support.x), features(params, query.x)
        for f, y in zip(asked, query.y, strict=True):
            distances = []
            for n in range(3):
                rows = [known[i] for i in range(len(known)) if support.y[i] == n]
                distances.append(((f - sum(rows) / len(rows)) ** 2).sum())
            losses.append(distances[int(y)] + torch.stack(distances).neg().exp().sum().log())
    return torch.stack(losses).mean()


def test_meta_gradient(
    smooth: nn.Module, smooth_features: Any, slopes: Any, toy_episodes: Episode
) -> None:
    """Against autograd through a plain loop, and against differences of it."""
    learner = ProtoNet(model=smooth, n_way=3)
    params = learner.init()
    wrt = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = reference(smooth_features, wrt, toy_episodes)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    found, value = Vectorised(learner).outer_gradient(params, toy_episodes, KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    by_gradient, by_differences = slopes(
        lambda p: reference(smooth_features, p, toy_episodes), params, found
    )
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)
