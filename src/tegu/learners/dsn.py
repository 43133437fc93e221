"""Deep subspace networks: a class is the flat that its examples span.

Simon, Koniusz, Nock, Harandi (2020), Adaptive subspaces for few-shot learning,
CVPR. Of class c with mean m_c, the K examples less m_c span a space of K - 1
dimensions; with orthonormal columns P_c of it

    d_c(x)  = |(I - P_c P_c') (x - m_c)|^2
    p(y=c)  = softmax over c of -d_c(x)
    loss    = cross-entropy + discriminative * sum over c != e of |P_c' P_e|^2

The paper takes P_c from a singular value decomposition, whose derivative is
infinite where two singular values are equal. Only the projection matters, and
with the centred examples A_c as rows it is A_c' (A_c A_c')^-1 A_c. Here

    P_c' = L^-1 A_c,  L L' = A_c A_c' + r I,

which makes d_c(x) = |z|^2 - |P_c' z|^2 for z = x - m_c. Along a direction in which
the examples spread with singular value s, the share r / (s^2 + r) of z's square
remains, where the paper leaves none: none as r goes to 0, and no division by 0
where examples coincide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tegu.episodes import Episode, Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head, class_means, exact, members, squared_distances
from tegu.learners.learner import State


def bases(features: Tensor, member: Tensor, regulariser: float) -> Tensor:
    """Rows P_c' of all classes, one row for each example of a class.

    Args:
        features: shape (S, D).
        member: shape (S, N), 0 or 1; rows of zeros are padding.
        regulariser: r, in units of the mean squared distance of the examples from
            their common mean.

    Returns:
        Shape (S, D); zero for padding.
    """
    real = member.sum(-1, keepdim=True)
    middle = (features * real).sum(0) / real.sum().clamp(min=1)
    spread = ((features - middle).square() * real).sum() / real.sum().clamp(min=1)
    centred = features * real - member @ class_means(features, member)
    eye = torch.eye(len(features), dtype=features.dtype, device=features.device)
    little = regulariser * spread.clamp(min=torch.finfo(spread.dtype).eps)
    # Classes apart: the factor of this matrix has no entry between two of them.
    gram = (centred @ centred.T) * (member @ member.T) + little * eye
    factor = torch.linalg.cholesky_ex(gram).L
    found: Tensor = torch.linalg.solve_triangular(factor, centred, upper=False)
    return found


@dataclass(frozen=True, kw_only=True)
class DSN(Head):
    """Nearest subspace in a learned space.

    A class of one example has no direction and is a point, as in prototypical
    networks.

    Args:
        regulariser: r of the module's docstring, in units of the mean squared
            distance of the support features from their common mean.
        discriminative: weight of the term that turns the subspaces of an episode
            away from one another in meta-training; 0 for none. The published code
            takes 0.03 with Conv-4 and none with ResNet-12.

    Reference:
        Simon et al. (2020), section 4, and the code published with it. Differs
        from the paper: the regulariser. Differs from the code: that one adds the
        mirrored image where there is one shot, takes the root of d_c with Conv-4,
        and with ResNet-12 centres nothing and divides d_c by the width of the features, times a
        learned scale; there support and queries are normalised apart, over eight episodes each.
    """

    name: ClassVar[str] = "dsn"
    # One shot spans no subspace: trained so, it would be a prototypical network.
    start: ClassVar[Mapping[str, Any]] = {**Head.start, "train.n_shot": 5}

    regulariser: float = 1e-3
    discriminative: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regulariser", self.regulariser, above=0)
        check_range("discriminative", self.discriminative, 0, todo="Try 0.03, or 0.")

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        means, basis = class_means(features, member), bases(features, member, self.regulariser)
        return {
            "means": means,
            "basis": basis,
            "origin": (basis * (member @ means)).sum(-1),  # P_c' m_c
            "member": member,
        }

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        along = features @ state["basis"].T - state["origin"]  # P_c' z, for all c at once
        near: Tensor = along.square() @ state["member"]
        return near - squared_distances(features, state["means"])

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss on the queries, and the overlap of the subspaces."""
        known, asked = self.passed(params, episode)
        loss = self.loss(self.answered(params, episode, known, asked), episode.query)
        if not self.discriminative:
            return loss
        with exact(known) as features:
            member = members(episode.support, self.n_way, features)
            between = overlap(bases(features, member, self.regulariser), member)
        return loss + self.discriminative * between


def overlap(basis: Tensor, member: Tensor) -> Tensor:
    """Sum of |P_c' P_e|^2 over ordered pairs of different classes."""
    return ((basis @ basis.T).square() * (1 - member @ member.T)).sum()
