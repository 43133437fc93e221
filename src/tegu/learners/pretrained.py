"""Pre-training: all training classes in one classifier, the features of which tasks share.

What is meta-learned is a network that tells all training classes apart, by plain
supervised batches and no episodes. Tasks get a head of their own on its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Episode, pooled
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head


@dataclass(frozen=True, kw_only=True)
class Pretrained(Head):
    """Features from classifying all training classes; a head is fitted to each task.

    Meta-train it on `tegu.ClassBatches`, whose labels are class numbers of the split.

    Args:
        n_classes: training classes K.
        seed: of the classifier's initial weights.
    """

    pretrains: ClassVar[bool] = True
    start: ClassVar[Mapping[str, Any]] = {
        "learner.normalisation": "running",
        "train.outer_lr": 0.001,
        "train.meta_batch": 1,
    }

    n_classes: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            "n_classes",
            self.n_classes,
            2,
            todo="Pass the number of training classes, data.n_classes.",
        )

    def init(self) -> Params:
        """The model's weights, and those of the classifier under "classifier/"."""
        shape = (self.n_classes, self.feature_width())
        weight = self.drawn("classifier", shape, seed=self.seed)
        own = {"classifier/weight": weight, "classifier/bias": weight.new_zeros(self.n_classes)}
        return {**super().init(), **own}

    def uses_queries(self) -> bool:
        return False

    def classify(self, params: Params, features: Tensor) -> Tensor:
        """Scores (B, K) of the training classes for features (B, D)."""
        return F.linear(features, params["classifier/weight"], params["classifier/bias"])

    def observe(self, features: Tensor, mask: Tensor) -> None:
        """Called with the features (B, D) of each training batch, for statistics of them."""

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss of the classifier on the whole batch, support and queries alike."""
        both = pooled(episode)
        features = self.features(params, both.x, both.mask, training=True)
        self.observe(features, both.mask)
        return self.loss(self.classify(params, features), both)
