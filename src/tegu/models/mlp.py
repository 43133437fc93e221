"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tegu.errors import unknown
from tegu.models.linear import dense

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Mlp(nn.Module):
    """Dense layers with a non-linearity between them.

    Args:
        in_width: size of an input, flattened.
        out_width: number of outputs; 0 for none, so that a pass returns features.
        hidden: width of each hidden layer.
        activation: "relu" or "tanh".
        seed: of the initial weights (torch's default for dense layers).

    Attributes:
        body: flattens inputs, and all layers but the last.
        head: the last layer.
        feature_width: D, the width of the last hidden layer.

    Example:
        >>> [name for name, _ in Mlp(4, 2, hidden=(8,)).named_parameters()]
        ['body.1.weight', 'body.1.bias', 'head.weight', 'head.bias']
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        self.feature_width = in_width
        for width in hidden:
            layers += [dense(self.feature_width, width, generator), ACTIVATIONS[activation]()]
            self.feature_width = width
        self.body = nn.Sequential(*layers)
        self.head: nn.Module = nn.Identity()
        if out_width:
            self.head = dense(self.feature_width, out_width, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) to outputs (B, out_width), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out
