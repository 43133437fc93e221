"""Support and queries change places: every example of a task is support in its turn.

Laenen, Bertinetto (2021), On episodes, prototypical networks, and few-shot learning,
arXiv:2012.09831: to keep the two apart in meta-training wastes most comparisons that
one pass of the features allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tegu.episodes import Episode, Examples, pooled
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head, members


@dataclass(frozen=True, kw_only=True)
class Turns(Head):
    """A head so cheap that an episode can be learnt many times over.

    Args:
        turns: while meta-training, deal each class's examples into groups of as many as it
            has shots, and let so many groups, one after another, be the support set of all
            the others, as far as they show their classes. 1: support and queries as they
            are drawn; 1 + queries / shots: every example in its turn, from one pass of the
            features.
    """

    turns: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("turns", self.turns, 1, todo="Write turns=1, or 6.")

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        if self.turns == 1:
            return super().outer_loss(params, episode, key)
        features = torch.cat(self.passed(params, episode))
        both, group = pooled(episode), groups(episode, self.n_way)
        shown = len(episode.support.mask)  # the most that a group holds

        def turn(index: Tensor) -> tuple[Tensor, Tensor]:
            mine = group == index
            rows = (~mine).long().argsort(stable=True)[:shown]
            known = Examples(both.x[rows], both.y[rows], mine[rows])
            state = self._fitted(params, features[rows], known)
            # Only of classes that the group shows: sizes may differ.
            asked = both._replace(mask=both.mask & ~mine & state["present"][both.y])
            loss = self.loss(self._scored(params, state, features, asked.mask), asked)
            return loss, asked.mask.sum()

        losses, counts = torch.func.vmap(turn)(torch.arange(self.turns, device=features.device))
        found: Tensor = (losses * counts).sum() / counts.sum().clamp(min=1)
        return found


def groups(episode: Episode, n_way: int) -> Tensor:
    """Which group each example of support and queries belongs to: (S + Q,), int64.

    The support set is group 0. Padding, and classes without support, are in none: -1.
    """
    both = pooled(episode)
    member = members(both, n_way, both.mask.float())
    place = (member.cumsum(0) * member).sum(-1) - 1  # within the class
    shots = members(episode.support, n_way, both.mask.float()).sum(0)[both.y]
    found = (place / shots.clamp(min=1)).floor().long()
    return torch.where(both.mask & (shots > 0), found, -1)
