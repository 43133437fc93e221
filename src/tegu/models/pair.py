"""Two variables, factorised both ways: p(A) p(B|A) beside p(B) p(A|B)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Pair(nn.Module):
    """Log-likelihoods of pairs under both factorisations.

    Both directions are made by the same two functions. If these give equal initial values
    each time, as those of `category_pair` and `mixture_pair` do, exchanging the two columns
    of all data exchanges the two outputs, bit for bit: no direction has a head start.

    Args:
        marginal: makes a module of log p(v): values (S,) to (S,).
        conditional: makes a module of log p(effect | cause): `forward(cause, effect)`, both (S,),
            to (S,).

    Attributes:
        a: p(A), for A -> B.
        b_given_a: p(B | A).
        b: p(B), for B -> A.
        a_given_b: p(A | B).
    """

    def __init__(
        self, marginal: Callable[[], nn.Module], conditional: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.a, self.b_given_a = marginal(), conditional()
        self.b, self.a_given_b = marginal(), conditional()

    def forward(self, x: Tensor) -> Tensor:
        """Pairs (S, 2), column 0 is A, to log-likelihoods (S, 2) under A -> B and B -> A."""
        a, b = x[..., 0], x[..., 1]
        forth = self.a(a) + self.b_given_a(a, b)
        back = self.b(b) + self.a_given_b(b, a)
        return torch.stack([forth, back], -1)


def turned(pairs: Tensor, angle: Tensor) -> Tensor:
    """Pairs (..., 2) turned by an angle, 0-d, in radians: differentiable in both."""
    cos, sin, (a, b) = angle.cos(), angle.sin(), pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
