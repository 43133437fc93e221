"""PT-MAP: features made more Gaussian, then labels by optimal transport.

Hu, Gripon, Pateux (2021), Leveraging the feature distribution in transfer-based
few-shot learning, arXiv:2006.03806:

    f <- (f + eps)^power / |(f + eps)^power|                         power transform
    c_j: mean of the support features of class j
    `rounds` times (algorithm 1):
        M = Sinkhorn plan of exp(-sharpness |f_i - c_j|^2) with rows that sum to 1
            and columns that sum to |Q| / N
        c_j <- c_j + rate (weighted mean by M, support included, - c_j)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import members, squared_distances
from tegu.learners.learner import State
from tegu.learners.pretrained import Pretrained

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class PtMap(Pretrained):
    """Transductive: all queries of a task are answered together.

    The plan gives each class the same share of the queries: results rely on
    balanced queries, and a query asked alone belongs to all classes alike.

    Args:
        power: exponent of the transform.
        sharpness: of the transport plan, the inverse of its regularisation.
        rate: share of the way that a centre moves in each round.
        rounds: updates of the centres.
        sinkhorn: normalisations of rows and columns for each plan; rows of the last
            plan sum to 1 but for a hundredth or so.

    Reference:
        arXiv:2006.03806 and its published code, where support set and queries are
        each centred and normalised once more. Differs from them: a fixed number of
        normalisations instead of a tolerance; a negative feature, of which theirs
        have none, keeps its sign; no rotation by QR, which changes no distance.
    """

    name: ClassVar[str] = "pt-map"
    transductive: ClassVar[bool] = True
    later: ClassVar[tuple[str, ...]] = ("power", "sharpness", "rate", "rounds", "sinkhorn")

    power: float = 0.5
    sharpness: float = 10.0
    rate: float = 0.2
    rounds: int = 20
    sinkhorn: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("power", "sharpness"):
            check_range(name, getattr(self, name), above=0)
        check_range("rate", self.rate, 0, 1, todo="Write 0.2.")
        for name, minimum in (("rounds", 0), ("sinkhorn", 1)):
            check_range(name, getattr(self, name), minimum)

    def transformed(self, features: Tensor, mask: Tensor) -> Tensor:
        """Power transform, then centred by the rows that count, and of length 1: (B, D)."""
        size = (features.abs() + EPSILON) ** self.power
        sphere = F.normalize(torch.where(features < 0, -size, size), dim=-1)
        weight = mask.to(features.dtype)
        return F.normalize(sphere - weight @ sphere / weight.sum().clamp(min=1), dim=-1)

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        known = self.transformed(features, support.mask)
        member = members(support, self.n_way, features)
        return {"sums": member.T @ known, "counts": member.sum(0)}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        asked, counts = self.transformed(features, mask), state["counts"][:, None]
        centres = state["sums"] / counts.clamp(min=1)
        real = state["present"][:, None] & mask
        for _ in range(self.rounds):
            plan = self.plan(asked, centres, state["present"], mask).exp() * real
            total = (counts + plan.sum(1, keepdim=True)).clamp(min=1)
            centres = centres + self.rate * ((state["sums"] + plan @ asked) / total - centres)
        return self.plan(asked, centres, state["present"], mask).T

    def plan(self, asked: Tensor, centres: Tensor, present: Tensor, mask: Tensor) -> Tensor:
        """Logarithm of the Sinkhorn plan (N, Q); of classes and queries that count."""
        near = -self.sharpness * squared_distances(centres, asked)
        real = near.masked_fill(~(present[:, None] & mask), torch.finfo(near.dtype).min)
        share = (mask.sum().clamp(min=1) / present.sum()).to(near.dtype).log()  # queries a class
        of_class, absent, none = torch.zeros_like(near[:, :1]), ~present[:, None], ~mask
        for _ in range(self.sinkhorn):
            of_query = -(real + of_class).logsumexp(0).masked_fill(none, 0.0)
            of_class = share - (real + of_query).logsumexp(1, keepdim=True)
            of_class = of_class.masked_fill(absent, 0.0)
        return near + of_query + of_class
