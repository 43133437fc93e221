"""A small smooth network with features, episodes for it, and slopes by differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.inner import Params
from tegu.learners import Head, Learner
from tegu.sampling import FewShotTasks

Slopes = Callable[..., tuple[Tensor, Tensor]]
AsPlain = Callable[..., Params]
AsDifferences = Callable[..., None]
Clusters = tuple[Examples, Examples]
Judge = Callable[[Head, Params, list[Clusters]], float]
Features = Callable[[Params, Tensor], Tensor]


class Smooth(nn.Module):
    """Vectors of width 6 to features of width 5, in float64."""

    feature_width = 5

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.body = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5))
        for p in self.parameters():
            p.data.uniform_(-0.7, 0.7, generator=generator)
        self.double()


@pytest.fixture
def smooth() -> nn.Module:
    return Smooth()


@pytest.fixture
def smooth_features() -> Features:
    """The features of `smooth`, written out."""

    def features(params: Params, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ params["body.0.weight"].T + params["body.0.bias"])
        return hidden @ params["body.2.weight"].T + params["body.2.bias"]

    return features


@pytest.fixture
def toy_episodes(toy_data: ClassDataset) -> Episode:
    """Three episodes, 3-way 2-shot with two queries a class, in float64."""
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(3))


@pytest.fixture
def slopes() -> Slopes:
    """Slopes of a function along random directions: by its gradient, and by differences."""

    def measure(
        function: Callable[[Params], Tensor],
        at: Params,
        gradient: Params,
        *,
        kinds: Sequence[str] = ("",),
        count: int = 4,
        step: float = 1e-5,
    ) -> tuple[Tensor, Tensor]:
        """`count` directions for each kind: along them, parameters move whose names begin so."""
        generator = torch.Generator().manual_seed(11)
        by_gradient, by_differences = [], []
        for kind in [kind for kind in kinds for _ in range(count)]:
            way = {
                k: torch.randn(v.shape, generator=generator).to(v)
                for k, v in at.items()
                if k.startswith(kind)
            }
            ends = [
                function({k: v + sign * step * way.get(k, 0) for k, v in at.items()}).detach()
                for sign in (1, -1)
            ]
            by_differences.append((ends[0] - ends[1]) / (2 * step))
            by_gradient.append(sum((gradient[k] * way[k]).sum() for k in way))
        return torch.stack(by_gradient), torch.stack(by_differences)

    return measure


@pytest.fixture
def as_plain() -> AsPlain:
    """The outer gradient, held against autograd's through a loss that is written out."""

    def check(
        learner: Learner,
        params: Params,
        episodes: Episode,
        plain: Callable[[Params, Episode], Tensor],
        *,
        rtol: float = 1e-10,
        unused: bool = False,
    ) -> Params:
        """`unused`: the loss may leave some parameters out; otherwise that is an error."""
        count = len(episodes.support.y)
        at = keys.fold(keys.key(0), torch.arange(count))
        found, loss = Vectorised(learner).outer_gradient(params, episodes, at)
        leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
        expected_loss = torch.stack([plain(leaves, select(episodes, t)) for t in range(count)])
        mean = expected_loss.mean()
        expected = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=unused)
        assert found.keys() == leaves.keys()
        torch.testing.assert_close(list(found.values()), list(expected), rtol=rtol, atol=1e-12)
        torch.testing.assert_close(loss, mean.detach(), rtol=1e-12, atol=0)
        return found

    return check


@pytest.fixture
def as_differences(slopes: Slopes) -> AsDifferences:
    """The outer gradient in float64, held against differences of a loss that is written out."""

    def check(
        learner: Learner,
        params: Params,
        episodes: Episode,
        plain: Callable[[Params, Episode], Tensor],
    ) -> None:
        count = len(episodes.support.y)
        at = keys.fold(keys.key(0), torch.arange(count))
        found, _ = Vectorised(learner).outer_gradient(params, episodes, at)

        def mean_loss(moved: Params) -> Tensor:
            leaves = {k: p.requires_grad_() for k, p in moved.items()}
            return torch.stack([plain(leaves, select(episodes, t)) for t in range(count)]).mean()

        by_gradient, by_differences = slopes(mean_loss, params, found, count=5)
        torch.testing.assert_close(by_gradient, by_differences, rtol=0, atol=1e-6)

    return check


@pytest.fixture
def clusters() -> list[Clusters]:
    """Twenty 5-way 1-shot tasks of separated classes, fifteen queries each.

    Features are positive; classes lie further apart than their examples, but one
    example tells little of where its class lies.
    """
    generator = torch.Generator().manual_seed(6)
    made = []
    for _ in range(20):
        centres = 3 * torch.rand(5, 30, generator=generator).double()
        spread = torch.randn(5, 16, 30, generator=generator).double()
        features = (centres[:, None] + 0.9 * spread).clamp(min=0)
        y = torch.arange(5)
        support = Examples.dense(features[:, 0], y)
        order = torch.randperm(75, generator=generator)
        query = Examples.dense(features[:, 1:].flatten(0, 1)[order], y.repeat_interleave(15)[order])
        made.append((support, query))
    return made


@pytest.fixture
def judged() -> Judge:
    """Share of right answers of a head on such tasks, features as they are."""

    def judge(learner: Head, params: Params, tasks: list[Clusters]) -> float:
        shares = []
        for support, query in tasks:
            state = {**learner.fit(params, support.x, support), "present": torch.ones(5) > 0}
            scores = learner.score(params, state, query.x, query.mask)
            shares.append((scores.argmax(-1) == query.y).double().mean())
        return float(torch.stack(shares).mean())

    return judge
