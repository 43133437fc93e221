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
from tegu.inner import Params
from tegu.learners.head import Head, members


@dataclass(frozen=True, kw_only=True)
class Turns(Head):
    """A head so cheap that an episode can be learnt many times over.

    Args:
        in_turn: while meta-training, deal each class's examples into groups of as many as
            it has shots, and let each group be the support set of all the others. One
            pass of the features then gives 1 + queries / shots tasks in place of one.
    """

    in_turn: bool = False

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        if not self.in_turn:
            return super().outer_loss(params, episode, key)
        features = torch.cat(self.passed(params, episode))
        both, group = pooled(episode), groups(episode, self.n_way)
        shown = len(episode.support.mask)  # the most that a group holds

        def turn(index: Tensor) -> Tensor:
            mine = group == index
            rows = (~mine).long().argsort(stable=True)[:shown]
            known = Examples(both.x[rows], both.y[rows], mine[rows])
            asked = both._replace(mask=both.mask & ~mine)
            state = self._fitted(params, features[rows], known)
            return self.loss(self._scored(params, state, features, asked.mask), asked)

        turns = 1 + -(-len(episode.query.mask) // shown)
        losses: Tensor = torch.func.vmap(turn)(torch.arange(turns, device=features.device))
        return losses.mean()


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
