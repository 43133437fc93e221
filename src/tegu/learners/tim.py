"""TIM: class centres that make the queries' labels certain, and the classes even.

Boudiaf, Masud, Rony, Dolz, Piantanida, Ben Ayed (2020), Transductive information
maximization for few-shot learning, arXiv:2008.11297, solved by alternating steps
(TIM-ADM). With features z of length 1 and

    p_ik = softmax over k of -temperature / 2 * |w_k - z_i|^2

the weights w minimise the cross-entropy of the support set, the entropy of each
query's label, and the negative entropy of the mean of the queries' labels, by turns
with targets q of the queries (proposition 1):

    q_ik ~ p_ik^(1+a) / (sum over queries of p_ik^(1+a))^(1/2)
    w_k <- (l/(1+a) sum over support of (y_ik z_i + p_ik (w_k - z_i))
            + |S|/|Q| sum over queries of (q_ik z_i + p_ik (w_k - z_i)))
           / (l/(1+a) sum over support of y_ik + |S|/|Q| sum over queries of q_ik)
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
from tegu.learners.head import class_means, members
from tegu.learners.learner import State
from tegu.learners.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class Tim(Pretrained):
    """Transductive: all queries of a task are answered together.

    The entropy of the mean label pulls towards classes of equal size among the
    queries: results rely on balanced queries, and suffer where they are not.

    Args:
        temperature: of the softmax.
        support_weight: weight l of the support set's cross-entropy.
        certainty: weight a of the entropy of each query's label.
        rounds: pairs of alternating steps.

    Reference:
        arXiv:2008.11297, with its settings. Differs from the paper: TIM-ADM alone,
        not TIM-GD; features are pre-trained as the run has it, without label smoothing.
    """

    name: ClassVar[str] = "tim"
    transductive: ClassVar[bool] = True
    later: ClassVar[tuple[str, ...]] = ("temperature", "support_weight", "certainty", "rounds")

    temperature: float = 15.0
    support_weight: float = 0.1
    certainty: float = 0.1
    rounds: int = 150

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "support_weight"):
            check_range(name, getattr(self, name), above=0)
        for name in ("certainty", "rounds"):
            check_range(name, getattr(self, name), 0)

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        return {"known": F.normalize(features, dim=-1), "member": member}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        # Classes come first: (N, B) for B items, so that a softmax over classes goes along rows.
        known, member, asked = state["known"], state["member"], F.normalize(features, dim=-1)
        centres, member = class_means(known, member), member.T
        shown, real = member.sum(0), mask.to(features.dtype)
        least, absent = torch.finfo(features.dtype).min, member.sum(1, keepdim=True) == 0
        of_support = self.support_weight / (1 + self.certainty)
        of_queries = shown.sum() / real.sum().clamp(min=1)
        total = of_support * member.sum(1, keepdim=True)

        def chances(items: Tensor) -> Tensor:
            """Logarithm of p: (N, B). What is the same for all classes cancels: |z|^2."""
            half = centres.square().sum(-1, keepdim=True) / 2
            scores = self.temperature * (centres @ items.T - half)
            return scores.masked_fill(absent, least).log_softmax(0)

        def pulled(items: Tensor, targets: Tensor, p: Tensor) -> Tensor:
            """Sum over items of target z + p (w - z): (N, D)."""
            return (targets - p) @ items + p.sum(1, keepdim=True) * centres

        for _ in range(self.rounds):
            p_known, log_p = chances(known).exp() * shown, chances(asked)
            power = ((1 + self.certainty) * log_p).masked_fill(absent | ~mask, least)
            q = (power - power.logsumexp(1, keepdim=True) / 2).softmax(0) * real
            above = of_support * pulled(known, member, p_known)
            above = above + of_queries * pulled(asked, q, log_p.exp() * real)
            below = total + of_queries * q.sum(1, keepdim=True)
            centres = above / below.clamp(min=torch.finfo(below.dtype).tiny)
        return chances(asked).T
