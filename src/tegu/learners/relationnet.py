"""Relation networks: the comparison of a query with a class is learned as well.

Sung, Yang, Zhang, Xiang, Torr, Hospedales (2018), Learning to compare: relation
network for few-shot learning, arXiv:1711.06025:

    r(k, x) = g([sum of f over class k, f(x)]), in (0, 1)           (equation 1)
    loss    = sum over queries and classes of (r(k, x) - 1[y=k])^2  (equation 2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Episode, Examples
from tegu.errors import check_range, unknown
from tegu.inner import Params
from tegu.learners.head import Head, class_means, members
from tegu.learners.learner import State
from tegu.losses import squared_error

POOLS = ("sum", "mean")
OBJECTIVES = ("squared", "cross-entropy")


@dataclass(frozen=True, kw_only=True)
class RelationNet(Head):
    """A small network scores each pair of a class and a query.

    A score is the relation before its sigmoid: the largest wins either way.

    Args:
        hidden: units of the relation module.
        pool: "sum" or "mean" of a class's features. Sums grow with the shots, so
            that evaluation should have those of training; means do not.
        objective: "squared", the paper's; or "cross-entropy", the learner's loss
            on the softmax of the scores.
        seed: of the relation module's initial weights.

    Reference:
        arXiv:1711.06025. Differs from the paper: the relation module is a
        perceptron with one hidden layer on flattened features, where the paper has
        two convolutions on feature maps before it; the squared error is a mean; support and
        queries are normalised together while meta-training, where the code has them apart.
    """

    name: ClassVar[str] = "relationnet"

    hidden: int = 64
    pool: str = "sum"
    objective: str = "squared"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("hidden", self.hidden, 1)
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)

    def init(self) -> Params:
        """The model's weights, and those of the relation module under "relation/"."""
        first = self.drawn("first", (self.hidden, 2 * self.feature_width()), seed=self.seed)
        last = self.drawn("last", (1, self.hidden), seed=self.seed)
        return {
            **super().init(),
            "relation/first.weight": first,
            "relation/first.bias": first.new_zeros(self.hidden),
            "relation/last.weight": last,
            "relation/last.bias": last.new_zeros(1),
        }

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        summed = self.pool == "sum"
        return {"classes": member.T @ features if summed else class_means(features, member)}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        # The first layer on [class, query] is the sum of a layer on each.
        of_class, of_query = params["relation/first.weight"].chunk(2, -1)  # (hidden, D)
        classes = state["classes"] @ of_class.T + params["relation/first.bias"]
        pairs = F.relu(classes + (features @ of_query.T)[:, None])  # (Q, N, hidden)
        scores = F.linear(pairs, params["relation/last.weight"], params["relation/last.bias"])
        return scores.squeeze(-1)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        if self.objective == "cross-entropy":
            return super().outer_loss(params, episode, key)
        query = episode.query
        relations = self.answered(params, episode, *self.passed(params, episode)).sigmoid()
        wanted = F.one_hot(query.y, self.n_way).to(relations)
        return squared_error(relations, query._replace(y=wanted))  # equation 2
