"""A joint mixture of normal distributions, factorised both ways in closed form.

p(a, b) = sum of w_k N((a, b); m_k, S_k) has the marginal mixture p(a) and, given a, a mixture of
straight lines: p(b|a) = sum of g_k(a) N(b; line_k(a), s_k), with g_k(a) the share of component
k at a. Both factorisations come from one joint, as tables of categories do, so that they differ in
nothing but what they learn next; and a rotation of the plane takes one such pair to another.

Xu, Jordan, Hinton (1995), An alternative model for mixtures of experts, NIPS.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tegu import keys
from tegu.models.mixtures import FLOOR, Mixture, log_normal
from tegu.models.pair import Pair


class Joint(NamedTuple):
    """A mixture of K normal distributions in the plane.

    Attributes:
        log_weight: shape (K,).
        mean: shape (K, 2).
        covariance: shape (K, 2, 2).
    """

    log_weight: Tensor
    mean: Tensor
    covariance: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """Pairs (S, 2) to (S, K): of each component, its weight in it."""
        s, t, v = (self.covariance[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        determinant = s * v - t * t
        a, b = (x.unsqueeze(-2) - self.mean).unbind(-1)  # (S, K)
        distance = (v * a * a - 2 * t * a * b + s * b * b) / determinant
        return self.log_weight - 0.5 * (distance + determinant.log()) - math.log(2 * math.pi)

    def turned(self, angle: Tensor) -> Joint:
        """Of the pairs turned by an angle, as `tegu.models.pair.turned` turns them."""
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        return Joint(self.log_weight, self.mean @ turn.mT, turn @ self.covariance @ turn.mT)


class Experts(nn.Module):
    """log p(effect | cause), a mixture of lines: shares by normal distributions of the cause."""

    def __init__(self, components: int, spread: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.linspace(-spread, spread, components))
        wide = math.log(2 * spread / max(components - 1, 1))
        self.log_scale = nn.Parameter(torch.full((components,), wide))
        self.value = nn.Parameter(torch.zeros(components))
        self.slope = nn.Parameter(torch.zeros(components))
        self.noise = nn.Parameter(torch.full((components,), wide))

    def forward(self, cause: Tensor, effect: Tensor) -> Tensor:
        cause, effect = cause.unsqueeze(-1), effect.unsqueeze(-1)
        # As narrow as a marginal may be, and no narrower, or one side would know more.
        scale, noise = (x.clamp(min=math.log(FLOOR)) for x in (self.log_scale, self.noise))
        share = (self.logits + log_normal(cause, self.mean, scale)).log_softmax(-1)
        line = self.value + self.slope * (cause - self.mean)
        return (share + log_normal(effect, line, noise)).logsumexp(-1)


class ExpertPair(Pair):
    """Both factorisations of two numbers, of one joint mixture unless adapted.

    Args:
        components: K.
        spread: half the range of both variables, about 0, before anything is fitted.
    """

    def __init__(self, components: int = 20, spread: float = 3.0) -> None:
        super().__init__(lambda: Mixture(components, spread), lambda: Experts(components, spread))

    @staticmethod
    def of(joint: Joint) -> dict[str, Tensor]:
        """Parameters that hold a joint mixture exactly, both ways."""
        aa, ab, bb = (joint.covariance[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        a, b = joint.mean.unbind(-1)
        out = {}
        for cause, effect, mean, value, own, other in (
            ("a", "b", a, b, aa, bb),
            ("b", "a", b, a, bb, aa),
        ):
            given = f"{effect}_given_{cause}"
            log_scale = 0.5 * own.log()
            for name in (cause, given):
                out[f"{name}.logits"] = joint.log_weight
                out[f"{name}.mean"] = mean
                out[f"{name}.log_scale"] = log_scale
            out[f"{given}.value"], out[f"{given}.slope"] = value, ab / own
            out[f"{given}.noise"] = 0.5 * (other - ab * ab / own).log()
        return out

    @staticmethod
    def joint(params: dict[str, Tensor]) -> Joint:
        """The joint mixture that p(a) p(b|a) stands for; b -> a is not looked at."""
        given = {name: params[f"b_given_a.{name}"] for name in ("value", "slope", "noise")}
        own = (2 * params["a.log_scale"]).exp()
        cross = given["slope"] * own
        other = (2 * given["noise"]).exp() + given["slope"] * cross
        covariance = torch.stack(
            [torch.stack([own, cross], -1), torch.stack([cross, other], -1)], -2
        )
        return Joint(
            params["a.logits"].log_softmax(-1),
            torch.stack([params["a.mean"], given["value"]], -1),
            covariance,
        )

    def turned(self, params: dict[str, Tensor], angle: Tensor) -> dict[str, Tensor]:
        """Parameters of the same distribution of pairs, seen turned by an angle."""
        return {**params, **self.of(self.joint(params).turned(angle))}


def fit_joint(
    x: Tensor, components: int, key: Tensor, *, steps: int = 100, floor: float = 0.05
) -> Joint:
    """Maximum likelihood of a joint mixture, by expectation and maximisation.

    Args:
        x: pairs, shape (S, 2); runs under `vmap`.
        components: K; their means begin at K of the pairs.
        key: 0-d int64, which pairs.
        steps: of EM.
        floor: least standard deviation of a component, in units of the variables' own.
    """
    ridge = torch.diag_embed(x.var(0)) * floor**2 + 1e-8 * torch.eye(2).to(x)
    mean = x[keys.permutation(key, len(x))[:components]]
    start = torch.diag_embed(x.var(0)) / components + ridge
    joint = Joint(
        torch.full_like(mean[:, 0], -math.log(len(mean))), mean, start.expand(len(mean), 2, 2)
    )
    for _ in range(steps):
        share = joint.log_density(x).softmax(-1)  # (S, K)
        n = share.sum(0) + 1e-3
        mean = (share.mT @ x + 1e-3 * joint.mean) / n.unsqueeze(-1)
        off = x.unsqueeze(-2) - mean  # (S, K, 2)
        squares = torch.einsum("sk,ski,skj->kij", share, off, off)
        covariance = (squares + 1e-3 * joint.covariance) / n[:, None, None] + ridge
        joint = Joint(n.log() - n.sum().log(), mean, covariance)
    return joint
