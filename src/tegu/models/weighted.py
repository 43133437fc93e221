"""Vectors as they are, each place with a learned weight, and a learned view of them beside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tegu.models.linear import Linear

SHARE = 0.5  # length of the view, where the weighted vector has 1
SCALE = 3.0  # of features at the start


class Body(nn.Module):
    """Features s * u(u(e^w x), u(V u(e^w x)) / 2), where u makes a vector's length 1."""

    def __init__(self, in_width: int, view: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_width))
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.view = None
        if view:
            start = torch.randn(view, in_width, generator=generator) * in_width**-0.5
            self.view = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) to features (B, D)."""
        x = _unit(x.flatten(1) * self.weight.exp())
        if self.view is not None:
            x = _unit(torch.cat([x, SHARE * _unit(x @ self.view.T)], -1))
        return self.scale * x


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, and of 0 where they are 0; with derivatives of every order there."""
    square = x.square().sum(-1, keepdim=True)
    return x * torch.where(square > 0, square, torch.ones_like(square)).rsqrt()


class Weighted(nn.Module):
    """For long vectors of counts, hashed words say, of which a task shows few.

    At the start features compare as the inputs themselves do, by their cosines. Meta-training
    learns how much each place of the input tells (as the inverse document frequency of text
    retrieval does, by its own measure), and a linear view in which different words may be alike.

    Args:
        in_width: size of an input, flattened.
        n_way: number of outputs N; 0 for none, so that a pass returns features.
        view: numbers in the view; 0 for none.
        seed: of the initial weights.

    Attributes:
        body: inputs to features, which all have one length.
        head: the dense layer behind it.
        feature_width: D, in_width + view.

    Example:
        >>> model = Weighted(6, view=2)
        >>> model.feature_width, model(torch.ones(1, 6)).norm().round().item()
        (8, 3.0)
    """

    def __init__(self, in_width: int, n_way: int = 0, *, view: int = 64, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.feature_width = in_width + view
        self.body = Body(in_width, view, generator=generator)
        self.head = (
            Linear(self.feature_width, n_way, generator=generator) if n_way else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) to scores (B, N), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out
