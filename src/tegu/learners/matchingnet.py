"""Matching networks: an answer is a vote of the support set, weighted by similarity.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra (2016), Matching networks for
one shot learning, arXiv:1606.04080:

    a(x, x_i)  = softmax over the support set of cosine(f(x), f(x_i))   (section 2.1.1)
    p(y=k | x) = sum of a(x, x_i) over the examples of class k          (equation 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import members
from tegu.learners.learner import State
from tegu.learners.turns import Turns


@dataclass(frozen=True, kw_only=True)
class MatchingNet(Turns):
    """Attention over the support set by cosine similarity in a learned space.

    Args:
        scale: factor on the cosines; larger ones make the attention sharper.

    Reference:
        arXiv:1606.04080. Differs from the paper: no full-context embeddings, so
        that an example's features depend on no other example; the same features
        serve support and queries; cosines may be scaled, by 1 as in the paper
        unless `scale` says otherwise.
    """

    name: ClassVar[str] = "matchingnet"

    start: ClassVar[Mapping[str, Any]] = {**Turns.start, "learner.scale": 10.0}
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scale", self.scale, above=0, todo="Write 1, or 10.")

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        return {"directions": F.normalize(features, dim=-1), "member": member}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        """Logarithm of the attention that each class gets: (Q, N)."""
        least, member = torch.finfo(features.dtype).min, state["member"]
        cosines = self.scale * F.normalize(features, dim=-1) @ state["directions"].T  # (Q, S)
        shown = cosines.masked_fill(member.sum(-1) == 0, least)
        votes = shown[:, :, None].masked_fill(member == 0, least)  # (Q, S, N)
        scores: Tensor = votes.logsumexp(1) - shown.logsumexp(1, keepdim=True)
        return scores
