"""SimpleShot: nearest class mean on pre-trained features, centred and normalised.

Wang, Chao, Weinberger, van der Maaten (2019), SimpleShot: revisiting
nearest-neighbor classification for few-shot learning, arXiv:1911.04623, "CL2N":

    f <- f - mean of the training classes' features
    f <- f / |f|
    y  = class whose mean is nearest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Examples
from tegu.inner import Params
from tegu.learners.head import class_means, exact, members, squared_distances
from tegu.learners.learner import TRACKED, State, record
from tegu.learners.pretrained import Pretrained

BASE_MEAN = f"{TRACKED}base_mean"


@dataclass(frozen=True, kw_only=True)
class SimpleShot(Pretrained):
    """Nearest centroid after centring by the base classes' mean and L2 normalisation.

    Reference:
        arXiv:1911.04623. Differs from the paper: the base classes' mean is a running
        mean over pre-training, where the paper passes once over all training
        examples at its end; a score is the negative squared distance.
    """

    name: ClassVar[str] = "simpleshot"

    def init(self) -> Params:
        """Weights and classifier, and the running mean of the training features."""
        found = super().init()
        return {**found, BASE_MEAN: found["classifier/weight"].new_zeros(self.feature_width())}

    def observe(self, features: Tensor, mask: Tensor) -> None:
        with exact(features) as features:
            weight = mask.to(features.dtype)
            record({BASE_MEAN: weight @ features / weight.sum().clamp(min=1)})

    def transformed(self, params: Params, features: Tensor) -> Tensor:
        """Features (B, D) centred, and of length 1."""
        return F.normalize(features - params[BASE_MEAN], dim=-1)

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        return {"centroids": class_means(self.transformed(params, features), member)}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        return -squared_distances(self.transformed(params, features), state["centroids"])
