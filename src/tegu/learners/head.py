"""Shared features, and a head that each task gets from its support features at once.

What prototypical networks, ridge regression and their kin have in common: an
algorithm fills in `fit` and `score`, both in closed form on features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.learner import Learner, State


@dataclass(frozen=True, kw_only=True)
class Head(Learner):
    """A feature extractor for all tasks, and a head for each.

    While meta-training, support and queries pass through the extractor together,
    and batch normalisation sees them both, as in the published codes; afterwards
    `normalisation` decides. Heads are fitted and score in fp32 at least, also
    where the passes through the extractor are in bf16.

    Args:
        n_way: classes of a task.
    """

    tracks: ClassVar[bool] = True

    n_way: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_way < 2:
            raise InputError(f"n_way is {self.n_way}", "at least 2", "Raise n_way.")

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        """The head: features (S, D) of the support set, whose y and mask are (S,)."""
        raise TypeError(f"{type(self).__name__} has no fit()")

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        """Scores (Q, N) of query features (Q, D); the softmax of them are probabilities."""
        raise TypeError(f"{type(self).__name__} has no score()")

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        features = self.features(params, support.x, support.mask, training=training)
        return {**self._fitted(params, features, support), "support": self.kept(support)}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        features = self.answer(params, state, query, mask, features=True)
        return self._scored(params, state, features, mask)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss on the queries, with one pass for support and queries."""
        support, query = episode
        features = self.features(
            params,
            torch.cat([support.x, query.x]),
            torch.cat([support.mask, query.mask]),
            training=True,
        )
        known, asked = features.split([len(support.mask), len(query.mask)])
        state = self._fitted(params, known, support)
        return self.loss(self._scored(params, state, asked, query.mask), query)

    def _fitted(self, params: Params, features: Tensor, support: Examples) -> State:
        with torch.autocast(features.device.type, enabled=False):
            features = _single(features)
            present = members(support, self.n_way, features).sum(0) > 0
            return {**self.fit(params, features, support), "present": present}

    def _scored(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        """Scores, the least there is for classes that the support set does not show."""
        with torch.autocast(features.device.type, enabled=False):
            scores = self.score(params, state, _single(features), mask)
        return scores.masked_fill(~state["present"], torch.finfo(scores.dtype).min)


def _single(features: Tensor) -> Tensor:
    """Features in fp32 where their own precision is less."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def members(support: Examples, n_way: int, like: Tensor) -> Tensor:
    """Which support example belongs to which class: 0 or 1, (S, N), padding to none.

    Args:
        support: y (S,) int64, mask (S,) bool.
        n_way: number of classes N.
        like: gives dtype.
    """
    return one_hot(support.y, n_way).to(like.dtype) * support.mask[:, None]


def class_means(features: Tensor, member: Tensor) -> Tensor:
    """Mean feature of each class: (S, D) and (S, N) to (N, D); zero for an absent class."""
    return member.T @ features / member.sum(0)[:, None].clamp(min=1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances: (Q, D) and (N, D) to (Q, N).

    By the products of the vectors, without a tensor of their differences.
    """
    return (a.square().sum(-1)[:, None] - 2 * a @ b.T + b.square().sum(-1)).clamp(min=0)
