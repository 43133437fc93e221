"""Prototypical networks: a class is where its examples lie on average.

Snell, Swersky, Zemel (2017), Prototypical networks for few-shot learning,
arXiv:1703.05175:

    c_k    = mean of the features of class k              (equation 1)
    p(y=k) = softmax over k of -|f(x) - c_k|^2            (equation 2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tegu.episodes import Examples
from tegu.inner import Params
from tegu.learners.head import class_means, members, squared_distances
from tegu.learners.learner import State
from tegu.learners.turns import Turns


@dataclass(frozen=True, kw_only=True)
class ProtoNet(Turns):
    """Nearest class mean in a learned space.

    Meta-training with more ways than evaluation has is the paper's main lever;
    `n_way` may differ between the two.

    Reference:
        arXiv:1703.05175. Differs from the paper: nowhere, unless `turns` is above 1.
    """

    name: ClassVar[str] = "protonet"

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        return {"prototypes": class_means(features, members(support, self.n_way, features))}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        return -squared_distances(features, state["prototypes"])
