"""Attention over a set with padding, and dense layers, as they are where tasks are read as sets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.models.linear import dense


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Multi-head scaled dot-product attention of each query to a set.

    Args:
        query: shape (Q, D).
        key, value: shape (S, D).
        mask: shape (S,) bool, the members of the set; others have no weight.
        heads: H, a divisor of D.

    Returns:
        Shape (Q, D), the heads beside each other.

    Reference:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2, without the projections.
    """
    values = value.unflatten(-1, (heads, -1)).transpose(-2, -3)
    weights = attention(query, key, mask, heads).to(value.dtype)
    out: Tensor = (weights @ values).transpose(-2, -3).flatten(-2)
    return out


def attention(query: Tensor, key: Tensor, mask: Tensor, heads: int) -> Tensor:
    """What each query attends to: weights (H, Q, S) that sum to 1 over the set.

    Arguments are those of `attend`.
    """
    query = query * (query.shape[-1] // heads) ** -0.5
    q, k = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in (query, key))
    alike = q @ k.transpose(-1, -2)
    # Added, since filling every row of scores costs as much as the softmax.
    outside = torch.zeros_like(mask, dtype=alike.dtype)
    outside = outside.masked_fill(~mask, torch.finfo(alike.dtype).min)
    weights: Tensor = (alike + outside).softmax(-1)
    return weights


class Dense(nn.Sequential):
    """Dense layers with ReLU between them: widths from the inputs' to the outputs'."""

    def __init__(self, widths: Sequence[int], generator: torch.Generator) -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [dense(a, b, generator), nn.ReLU()]
        super().__init__(*layers[:-1])


class SelfAttention(nn.Module):
    """Members of a set look at each other: projections, attention, residual, as in ANPs.

    Args:
        width: D of the members.
        heads: H.
        generator: of the initial weights.
    """

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        # Without biases: those of keys would change nothing.
        self.mixer = dense(width, 3 * width, generator, bias=False)
        self.out = dense(width, width, generator)

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        """Members (S, D) with their mask (S,) to the same shape."""
        query, key, value = self.mixer(items).chunk(3, -1)
        out: Tensor = items + self.out(attend(query, key, value, mask, self.heads))
        return out


def waves(x: Tensor, count: int) -> Tensor:
    """Inputs beside their sines and cosines at `count` octaves: (B, W) to (B, W (1 + 2 count)).

    The longest period is 4. Products of two such vectors depend on the distance of their
    inputs, which is what attention by place needs.

    Reference:
        Rahimi, Recht (2007), random Fourier features; the octaves are those of Mildenhall
        et al. (2020), arXiv:2003.08934, section 5.1.
    """
    if not count:
        return x
    octaves = 2.0 ** torch.arange(count, dtype=x.dtype, device=x.device)
    angles = (0.5 * math.pi * x.unsqueeze(-1) * octaves).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], -1)


def log_scale(raw: Tensor, least: float) -> Tensor:
    """Log of a standard deviation above `least`: log(least + (1 - least) softplus(raw))."""
    return (least + (1 - least) * F.softplus(raw)).log()
