"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import unknown


class Mlp(nn.Module):
    """Dense layers with a non-linearity between them.

    Args:
        in_width: size of an input, flattened.
        out_width: number of outputs.
        hidden: width of each hidden layer.
        activation: "relu" or "tanh".
        seed: of the initial weights (torch's default for dense layers).
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
        generator = torch.Generator().manual_seed(seed)
        widths = [in_width, *hidden, out_width]
        self.layers = nn.ModuleList()
        for a, b in pairwise(widths):
            layer = torch.nn.utils.skip_init(nn.Linear, a, b)
            for parameter in layer.parameters():
                parameter.detach().uniform_(-(a**-0.5), a**-0.5, generator=generator)
            self.layers.append(layer)
        known: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}
        if activation not in known:
            raise unknown("activation", activation, known)
        self.activation = known[activation]

    def body(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) to the last hidden layer (B, hidden[-1])."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) to outputs (B, out_width)."""
        out: Tensor = self.layers[-1](self.body(x))
        return out
