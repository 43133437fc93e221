"""Matching networks against equation 1, by hand and by a plain loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import MatchingNet

KEYS = keys.fold(keys.key(0), torch.arange(3))


def test_by_hand() -> None:
    """Support along the axes and a diagonal query: cosines 1/sqrt(2), 1/sqrt(2), -1/sqrt(2)."""
    model = nn.Identity()
    model.unused = nn.Parameter(torch.ones((), dtype=torch.float64))
    learner = MatchingNet(model=model, n_way=2, body="")
    x = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0]], dtype=torch.float64)
    support = Examples.dense(x, torch.tensor([0, 1, 1]))
    state = learner.adapt(learner.init(), support, KEYS[0])
    query = torch.tensor([[7.0, 7.0]], dtype=torch.float64)
    shares = learner.predict({}, state, query, torch.tensor([True])).softmax(-1)
    up, down = math.exp(2**-0.5), math.exp(-(2**-0.5))
    expected = torch.tensor([[up, up + down]], dtype=torch.float64) / (2 * up + down)
    torch.testing.assert_close(shares, expected)


def scores_by_hand(known: Tensor, y: Tensor, asked: Tensor, *, scale: float) -> list[list[Tensor]]:
    """log p(y=k | x) of each query and class, summed term by term."""
    rows = []
    for f in asked:
        cosines = [scale * (f @ g) / (f.norm() * g.norm()) for g in known]
        top = max(cosines)
        total = sum((c - top).exp() for c in cosines)
        row = []
        for n in range(3):
            own = [c for c, label in zip(cosines, y, strict=True) if int(label) == n]
            most = max(own)
            row.append(most + sum((c - most).exp() for c in own).log() - top - total.log())
        rows.append(row)
    return rows


def reference(features: Any, params: Params, episodes: Episode, *, scale: float) -> Tensor:
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        known, asked = features(params, support.x), features(params, query.x)
        rows = scores_by_hand(known, support.y, asked, scale=scale)
        losses += [-row[int(y)] for row, y in zip(rows, query.y, strict=True)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_meta_gradient(
    scale: float, smooth: nn.Module, smooth_features: Any, slopes: Any, toy_episodes: Episode
) -> None:
    """Against autograd through a plain loop, and against differences of it."""
    learner = MatchingNet(model=smooth, n_way=3, scale=scale)
    params = learner.init()
    wrt = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = reference(smooth_features, wrt, toy_episodes, scale=scale)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    found, value = Vectorised(learner).outer_gradient(params, toy_episodes, KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    by_gradient, by_differences = slopes(
        lambda p: reference(smooth_features, p, toy_episodes, scale=scale), params, found
    )
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_sharp_attention_neither_vanishes_nor_overflows(
    smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """At a scale where most attentions are 0 as numbers, their logarithms are exact."""
    learner, one = MatchingNet(model=smooth, n_way=3, scale=3000.0), select(toy_episodes, 0)
    params = learner.init()
    state = learner.adapt(params, one.support, KEYS[0])
    found = learner.predict(params, state, one.query.x, one.query.mask)
    known, asked = smooth_features(params, one.support.x), smooth_features(params, one.query.x)
    expected = scores_by_hand(known, one.support.y, asked, scale=3000.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert float(found.min()) < -745  # the exponential of which is 0
    totals = found.exp().sum(-1)
    torch.testing.assert_close(totals, torch.ones_like(totals))


def test_a_scale_that_is_none(smooth: nn.Module) -> None:
    with pytest.raises(InputError, match=r"scale is 0; expected a number above 0"):
        MatchingNet(model=smooth, scale=0)
