"""Shared features, and a head that each task gets from its support features at once.

What prototypical networks, ridge regression and their kin have in common: an
algorithm fills in `fit` and `score`, both in closed form on features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tegu import keys
from tegu.episodes import Episode, Examples, pooled
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import Learner, State


@dataclass(frozen=True, kw_only=True)
class Head(Learner):
    """A feature extractor for all tasks, and a head for each.

    While meta-training, support and queries pass through the extractor together, and batch
    normalisation sees them both, as in the published codes of prototypical networks, R2-D2 and
    FEAT; those of MetaOptNet, DSN and relation networks pass the halves one after the other.
    Afterwards `normalisation` decides.

    Args:
        n_way: classes of a task.
    """

    tracks: ClassVar[bool] = True
    headless: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ("classes",)
    start: ClassVar[Mapping[str, Any]] = {
        "learner.normalisation": "running",
        "train.outer_lr": 0.001,
        "train.meta_batch": 1,
        "train.n_way": 20,
        "train.n_query": 5,
    }

    n_way: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("n_way", self.n_way, 2)

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
        known, asked = self.passed(params, episode)
        return self.loss(self.answered(params, episode, known, asked), episode.query)

    def passed(self, params: Params, episode: Episode) -> tuple[Tensor, Tensor]:
        """Features (S, D) of the support set and (Q, D) of the queries, from one pass."""
        both = pooled(episode)
        features = self.features(params, both.x, both.mask, training=True)
        known, asked = features.split([len(half.mask) for half in episode])
        return known, asked

    def answered(self, params: Params, episode: Episode, known: Tensor, asked: Tensor) -> Tensor:
        """Scores (Q, N) of query features by the head of the support features."""
        state = self._fitted(params, known, episode.support)
        return self._scored(params, state, asked, episode.query.mask)

    def feature_width(self) -> int:
        """Width D of the features, as the model tells it."""
        width = getattr(self.model, "feature_width", None)
        if not isinstance(width, int):
            raise InputError(
                f"{type(self.model).__name__} without an attribute feature_width",
                "a model that tells how wide its features are",
                "Set model.feature_width = D, numbers in the features of one example.",
            )
        return width

    def drawn(self, name: str, shape: tuple[int, ...], *, seed: int) -> Tensor:
        """Initial values of a weight beside the model's, from its name and a seed.

        Uniform within plus and minus the root of 1 / fan-in, the last axis; dtype and
        device are the model's.
        """
        bound, n = shape[-1] ** -0.5, math.prod(shape)
        values = keys.uniform(keys.key(seed, name), n, -bound, bound).reshape(shape)
        return values.to(next(self.model.parameters()))

    def _fitted(self, params: Params, features: Tensor, support: Examples) -> State:
        with exact(features) as features:
            present = members(support, self.n_way, features).sum(0) > 0
            return {**self.fit(params, features, support), "present": present}

    def _scored(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        """Scores, the least there is for classes that the support set does not show."""
        with exact(features) as features:
            scores = self.score(params, state, features, mask)
        return scores.masked_fill(~state["present"], torch.finfo(scores.dtype).min)


@contextmanager
def exact(features: Tensor) -> Iterator[Tensor]:
    """The features in at least 32 bits, and no lower precision for what is done with them."""
    with torch.autocast(features.device.type, enabled=False):
        yield features.to(torch.promote_types(features.dtype, torch.float32))


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

    By the products of the vectors, without a tensor of their differences; from their middle, so
    that features far from 0 lose no digits.
    """
    middle = b.mean(0, keepdim=True).detach()  # moves all alike: it has no gradient
    a, b = a - middle, b - middle
    return (a.square().sum(-1)[:, None] - 2 * a @ b.T + b.square().sum(-1)).clamp(min=0)
