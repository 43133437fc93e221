"""Networks as a user of plain PyTorch writes them, with tegu's weights and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tegu.inner import Params

Net = TypeVar("Net", bound=nn.Module)


class PlainConv4(nn.Module):
    """Conv-4 of `nn.Conv2d` and `nn.BatchNorm2d`, with strides or max-pooling.

    Batch normalisation uses the batch's own statistics; `tracks` keeps running ones beside.
    """

    def __init__(
        self, outputs: int, *, pool: bool = False, width: int = 64, size: int = 28, tracks: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, width, width, width):
            layers += [
                nn.Conv2d(channels, width, 3, stride=1 if pool else 2, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=1e-5 if pool else 1e-3, track_running_stats=tracks),
                nn.ReLU(),
            ]
            if pool:
                layers.append(nn.MaxPool2d(2))
        self.per_layer, self.width = (4 if pool else 3), width
        self.side = size // 16 if pool else -(-size // 16)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        if outputs:
            self.layers.append(nn.Linear(self.side**2 * width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def named(self, tensors: Mapping[str, Tensor]) -> Params:
        """Tensors by this network's names, in the form and by the names of tegu's Conv4."""
        out: Params = {}
        for layer in range(4):
            at = self.per_layer * layer
            kernel = tensors[f"layers.{at}.weight"].permute(2, 3, 1, 0)
            out[f"body.convs.{layer}.weight"] = kernel.reshape(-1, self.width)
            for kind in ("weight", "bias"):
                out[f"body.norms.{layer}.{kind}"] = tensors[f"layers.{at + 1}.{kind}"]
        last = f"layers.{4 * self.per_layer + 1}"
        if f"{last}.weight" in tensors:
            head = tensors[f"{last}.weight"].unflatten(1, (self.width, self.side, self.side))
            out["head.weight"] = head.permute(0, 2, 3, 1).flatten(1)
            out["head.bias"] = tensors[f"{last}.bias"]
        return out

    def unnamed(self, params: Params) -> Params:
        """The way back: tegu's tensors by this network's names."""
        out: Params = {}
        for layer in range(4):
            at, kernel = self.per_layer * layer, params[f"body.convs.{layer}.weight"]
            kernel = kernel.reshape(3, 3, -1, self.width).permute(3, 2, 0, 1)
            out[f"layers.{at}.weight"] = kernel.contiguous()
            for kind in ("weight", "bias"):
                out[f"layers.{at + 1}.{kind}"] = params[f"body.norms.{layer}.{kind}"]
        if "head.weight" in params:
            last = f"layers.{4 * self.per_layer + 1}"
            head = params["head.weight"].unflatten(1, (self.side, self.side, self.width))
            out[f"{last}.weight"] = head.permute(0, 3, 1, 2).flatten(1).contiguous()
            out[f"{last}.bias"] = params["head.bias"]
        return out


class PlainMlp(nn.Module):
    """Dense layers and ReLUs."""

    def __init__(self, width: int, outputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def _pairs(self) -> list[tuple[str, str]]:
        last, kinds = len(self.layers) - 1, ("weight", "bias")
        inner = [(f"layers.{i}.{k}", f"body.{i + 1}.{k}") for i in range(0, last, 2) for k in kinds]
        return [*inner, *((f"layers.{last}.{k}", f"head.{k}") for k in kinds)]

    def named(self, tensors: Mapping[str, Tensor]) -> Params:
        return {ours: tensors[own] for own, ours in self._pairs()}

    def unnamed(self, params: Params) -> Params:
        return {own: params[ours] for own, ours in self._pairs()}


def with_weights(model: Net, params: Params) -> Net:
    """The network with these weights, as numbers of their own, in their dtype and place."""
    model = model.to(next(iter(params.values())))
    own: Any = model
    with torch.no_grad():
        for name, value in own.unnamed(params).items():
            model.get_parameter(name).copy_(value)
    return model


class Rounded(nn.Module):
    """A network whose passes are in bfloat16 where autocast says so, with float32 answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            out: Tensor = self.model(x)
        return out.float()
