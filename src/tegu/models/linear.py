"""Dense layers whose start is a function of a generator."""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Linear):
    """Dense layer with Glorot's uniform start and a zero bias, from a generator."""

    def __init__(self, in_width: int, out_width: int, *, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_width, out_width
        weight = torch.empty(out_width, in_width)
        nn.init.xavier_uniform_(weight, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_width))


def dense(
    in_width: int, out_width: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """A layer with torch's usual initial weights, drawn from a generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, in_width, out_width, bias=bias)
    for parameter in layer.parameters():
        parameter.detach().uniform_(-(in_width**-0.5), in_width**-0.5, generator=generator)
    return layer
