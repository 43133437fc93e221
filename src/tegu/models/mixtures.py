"""Mixtures of normal distributions: of one variable, and of one given another.

Bishop (1994), Mixture density networks, NCRG/94/004.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tegu.models.pair import Pair

FLOOR = 0.01  # least standard deviation, in the unit of the values


def log_normal(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-density of normal distributions."""
    z = (value - mean) * (-log_scale).exp()
    return -0.5 * z.square() - log_scale - 0.5 * math.log(2 * math.pi)


def log_mixture(value: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-density of mixtures: values (S,), components in the last axis."""
    parts = log_normal(value.unsqueeze(-1), mean, log_scale)
    return (logits.log_softmax(-1) + parts).logsumexp(-1)


def em_step(
    values: Tensor, weight: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of expectation and maximisation; a component without values stays as it is.

    Args:
        values: shape (S,).
        weight: shape (S,), 0 for padding.
        logits, mean, log_scale: shape (K,).

    Returns:
        The three of the new mixture.

    Reference:
        Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM
        algorithm. Differs: each component counts its old self as a thousandth of a value,
        so that none is ever empty.
    """
    log_scale = log_scale.clamp(min=math.log(FLOOR))  # as `Mixture` has it
    parts = logits.log_softmax(-1) + log_normal(values.unsqueeze(-1), mean, log_scale)
    share = parts.softmax(-1) * weight.unsqueeze(-1)  # (S, K)
    some = 1e-3
    n = share.sum(0) + some
    new = (torch.einsum("sk,s->k", share, values) + some * mean) / n
    squares = torch.einsum("sk,sk->k", share, (values.unsqueeze(-1) - new).square())
    old = (2 * log_scale).exp() + (mean - new).square()
    variance = (squares + some * old) / n
    return n.log() - n.sum().log(), new, 0.5 * variance.clamp(min=FLOOR**2).log()


class Mixture(nn.Module):
    """log p(v) under a mixture of K normal distributions.

    Args:
        components: K.
        spread: the means begin evenly from -spread to spread.
    """

    def __init__(self, components: int, spread: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.linspace(-spread, spread, components))
        gap = math.log(2 * spread / max(components - 1, 1))
        self.log_scale = nn.Parameter(torch.full((components,), gap))

    def forward(self, values: Tensor) -> Tensor:
        log_scale = self.log_scale.clamp(min=math.log(FLOOR))
        return log_mixture(values, self.logits, self.mean, log_scale)


class MixtureDensity(nn.Module):
    """log p(effect | cause): a network of the cause gives the mixture of the effect.

    Args:
        components: K.
        hidden: width of the hidden layer, tanh.
        spread: means begin within it, as in `Mixture`; hidden units look at causes within it.
        seed: of the initial weights.
    """

    def __init__(self, components: int, hidden: int, spread: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) * 2 - 1

        # Each hidden unit turns over at a place within the spread, over a fifth of it or more.
        slope = uniform(hidden) * 5 / spread
        self.weight = nn.Parameter(slope)
        self.bias = nn.Parameter(-slope * spread * uniform(hidden))
        self.out = nn.Parameter(uniform(hidden, 3 * components) * hidden**-0.5)
        means = torch.linspace(-spread, spread, components)
        scales = torch.full((components,), math.log(2 * spread / max(components - 1, 1)))
        self.out_bias = nn.Parameter(torch.cat([torch.zeros(components), means, scales]))

    def forward(self, cause: Tensor, effect: Tensor) -> Tensor:
        hidden = torch.tanh(cause.unsqueeze(-1) * self.weight + self.bias)
        logits, mean, log_scale = (hidden @ self.out + self.out_bias).chunk(3, -1)
        return log_mixture(effect, logits, mean, log_scale.clamp(min=math.log(FLOOR)))


def mixture_pair(
    *, components: int = 10, hidden: int = 32, spread: float = 8.0, seed: int = 0
) -> Pair:
    """Both factorisations of two numbers, by mixtures and mixture density networks.

    Args:
        components: K of every mixture.
        hidden: width of the networks.
        spread: half the range of both variables, about 0.
        seed: of the networks' initial weights.

    Reference:
        arXiv:1901.10912, appendix: 10 components, 32 hidden units. Differs from the paper:
        initial means and hidden units are spread over the range of the data, which is fitted
        sooner.
    """
    return Pair(
        lambda: Mixture(components, spread),
        lambda: MixtureDensity(components, hidden, spread, seed),
    )
