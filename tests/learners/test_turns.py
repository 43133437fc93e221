"""Every example as support in its turn: against a plain loop over the groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select, stack
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import MatchingNet, ProtoNet
from tegu.learners.turns import groups

KEYS = keys.fold(keys.key(0), torch.arange(3))


def episode_of(support: list[int], query: list[int], *, seed: int) -> Episode:
    """Random inputs with these labels."""
    generator = torch.Generator().manual_seed(seed)
    halves = [
        Examples.dense(
            torch.randn(len(y), 6, generator=generator, dtype=torch.float64), torch.tensor(y)
        )
        for y in (support, query)
    ]
    return Episode(*halves)


def dealt(y: list[int], shots: dict[int, int]) -> list[int]:
    """Groups one example after another, by counting."""
    seen: dict[int, int] = {}
    found = []
    for label in y:
        place = seen.get(label, 0)
        seen[label] = place + 1
        found.append(place // shots[label] if label in shots else -1)
    return found


@pytest.mark.parametrize(
    ("support", "query", "shots"),
    [
        ([0, 1, 2], [2, 0, 1, 1, 2, 0], {0: 1, 1: 1, 2: 1}),
        ([0, 0, 1, 1], [1, 0, 1, 0, 0], {0: 2, 1: 2}),
        ([0, 1, 1, 2], [1, 2, 1, 0, 1], {0: 1, 1: 2, 2: 1}),
        ([0, 2], [2, 1, 0, 1], {0: 1, 2: 1}),  # no support of class 1
    ],
)
def test_groups(support: list[int], query: list[int], shots: dict[int, int]) -> None:
    found = groups(episode_of(support, query, seed=0), 3).tolist()
    assert found == dealt(support + query, shots)


def test_padding_is_in_no_group() -> None:
    longer = episode_of([0, 1, 2], [0, 1, 2, 2], seed=0)
    shorter = episode_of([0, 1], [1], seed=1)
    padded = select(stack([longer, shorter]), 1)
    assert groups(padded, 3).tolist() == [0, 0, -1, 1, -1, -1, -1]


def reference(features: Any, params: Params, episode: Episode, turns: int) -> Tensor:
    """Mean loss of what each group can be asked, by nearest class mean."""
    x = torch.cat([half.x for half in episode])
    y = torch.cat([half.y for half in episode])
    shots = {int(n): int((episode.support.y == n).sum()) for n in episode.support.y.unique()}
    group = torch.tensor(dealt(y.tolist(), shots))
    points, losses = features(params, x), []
    for turn in range(turns):
        shown = [n for n in range(3) if bool(((group == turn) & (y == n)).any())]
        means = {n: points[(group == turn) & (y == n)].mean(0) for n in shown}
        for i in range(len(y)):
            if group[i] != turn and int(y[i]) in shown:
                scores = torch.stack([-((points[i] - means[n]) ** 2).sum() for n in shown])
                losses.append(-scores.log_softmax(0)[shown.index(int(y[i]))])
    return torch.stack(losses).mean()


BALANCED = [
    ([0, 1, 2], [0, 1, 2, 2, 1, 0]),
    ([2, 0, 1], [1, 0, 2, 0, 1, 2]),
    ([1, 2, 0], [2, 2, 0, 0, 1, 1]),
]
RAGGED = [
    ([0, 1, 1, 2], [1, 2, 1, 0, 1, 1, 0]),
    ([0, 2], [2, 0, 2, 0, 2]),  # of class 1 nothing
    ([1, 0, 2], [1, 1, 1, 1, 0]),
]


@pytest.mark.parametrize("labels", [BALANCED, RAGGED], ids=["balanced", "ragged"])
def test_meta_gradient(
    labels: list[tuple[list[int], list[int]]], smooth: nn.Module, smooth_features: Any, slopes: Any
) -> None:
    """Against autograd through the loop, and against differences of it."""
    episodes = [episode_of(*each, seed=i) for i, each in enumerate(labels)]
    learner = ProtoNet(model=smooth, n_way=3, turns=4)
    params = learner.init()

    def by_hand(p: Params) -> Tensor:
        each = [reference(smooth_features, p, episode, 4) for episode in episodes]
        return torch.stack(each).mean()

    wrt = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = by_hand(wrt)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    found, value = Vectorised(learner).outer_gradient(params, stack(episodes), KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    by_gradient, by_differences = slopes(by_hand, params, found)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_one_shot_and_one_query_is_the_mean_of_both_ways(smooth: nn.Module) -> None:
    """Support and queries exchanged, by the learner that does not exchange them."""
    episode = episode_of([0, 1, 2], [2, 0, 1], seed=4)
    turned = Episode(episode.query, episode.support)
    both_ways, plain = (
        MatchingNet(model=smooth, n_way=3, scale=5.0, turns=turns) for turns in (2, 1)
    )
    params = plain.init()
    found = both_ways.outer_loss(params, episode, KEYS[0])
    both = [plain.outer_loss(params, each, KEYS[0]) for each in (episode, turned)]
    torch.testing.assert_close(found, torch.stack(both).mean())


def test_answers_are_those_without_turns(smooth: nn.Module) -> None:
    episode = episode_of([0, 1, 2], [2, 0, 1], seed=5)
    answers = []
    for turns in (3, 1):
        learner = ProtoNet(model=smooth, n_way=3, turns=turns)
        params = learner.init()
        state = learner.adapt(params, episode.support, KEYS[0])
        answers.append(learner.predict(params, state, episode.query.x, episode.query.mask))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)


def test_no_turn_at_all(smooth: nn.Module) -> None:
    with pytest.raises(InputError, match="turns is 0; expected at least 1"):
        ProtoNet(model=smooth, turns=0)
