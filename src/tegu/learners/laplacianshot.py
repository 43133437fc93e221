"""LaplacianShot: near queries get near labels.

Ziko, Dolz, Granger, Ben Ayed (2020), Laplacian regularized few-shot learning,
arXiv:2006.15486. With a_qk the squared distance of query q to prototype k, and
w_qp = 1 where query p is among the nearest of query q, algorithm 1 is

    y_q <- softmax(-a_q)
    y_q <- softmax(-a_q + weight * sum over p of w_qp y_p)          `rounds` times
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
from tegu.learners.head import class_means, members, squared_distances
from tegu.learners.learner import State
from tegu.learners.simpleshot import SimpleShot


@dataclass(frozen=True, kw_only=True)
class LaplacianShot(SimpleShot):
    """Transductive: all queries of a task are answered together, on SimpleShot's features.

    Nothing in it counts the queries of a class, but `rectify` shifts the queries'
    mean onto that of the support set, which relies on balanced queries.

    Args:
        weight: of the neighbours' labels. The paper chooses it on validation tasks
            from 0.1 to 1.5.
        neighbours: other queries that a query is tied to. The paper's k = 3 counts,
            in its published code, the query itself.
        rounds: updates of the labels.
        rectify: move the prototypes towards the queries first, as the paper does
            for its best results.

    Reference:
        arXiv:2006.15486 and its published code. Differs from them: updates do not
        stop early; a class that no example is nearest to keeps its prototype when
        rectified; answers are scored as they are, where the code matches
        classes to labels once more.
    """

    name: ClassVar[str] = "laplacianshot"
    transductive: ClassVar[bool] = True
    later: ClassVar[tuple[str, ...]] = ("weight", "neighbours", "rounds", "rectify")

    weight: float = 1.0
    neighbours: int = 2
    rounds: int = 20
    rectify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "neighbours", "rounds"):
            check_range(name, getattr(self, name), 0)

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        known = self.transformed(params, features)
        state = {"prototypes": class_means(known, member)}
        return {**state, "known": known, "member": member} if self.rectify else state

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        asked, prototypes = self.transformed(params, features), state["prototypes"]
        if self.rectify:
            asked, prototypes = rectified(state, asked, mask)
        least = torch.finfo(features.dtype).min
        near = -squared_distances(asked, prototypes).masked_fill(~state["present"], -least)
        ties = nearest(asked, mask, count=min(self.neighbours, len(mask)))
        labels = near.log_softmax(-1)
        for _ in range(self.rounds):
            labels = (near + self.weight * ties @ labels.exp()).log_softmax(-1)
        return labels


def nearest(items: Tensor, mask: Tensor, *, count: int) -> Tensor:
    """Which other real items are among the `count` nearest of each: 0 or 1, (Q, Q)."""
    itself = torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    apart = squared_distances(items, items).masked_fill(itself | ~mask, float("inf"))
    found = apart.topk(count, dim=-1, largest=False)
    ties = F.one_hot(found.indices, len(mask)) * found.values.isfinite()[:, :, None]
    return ties.sum(1).to(items.dtype)


def rectified(state: State, asked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (Q, D) shifted to the mean of the support set, and new prototypes (N, D).

    A prototype becomes the mean, over support and queries nearest to it by cosine, of
    the feature times the softmax of ten times the cosines.
    """
    known, member, old = state["known"], state["member"], state["prototypes"]
    shown, real = member.sum(-1), mask.to(asked.dtype)
    shift = shown @ known / shown.sum() - real @ asked / real.sum().clamp(min=1)
    asked = asked + shift
    items, counts = torch.cat([known, asked]), torch.cat([shown, real])
    alike = 10 * F.normalize(items, dim=-1) @ F.normalize(old, dim=-1).T
    alike = alike.masked_fill(~state["present"], torch.finfo(alike.dtype).min)
    won = F.one_hot(alike.argmax(-1), len(old)).to(alike.dtype) * counts[:, None]
    new = (won * alike.softmax(-1)).T @ items / won.sum(0)[:, None].clamp(min=1)
    return asked, torch.where(won.sum(0)[:, None] > 0, new, old)
