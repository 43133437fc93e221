"""What the section [model] of a recipe may name: one class a network, its settings the keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tegu.models import Conv4, MaskedMlps, Mlp, ResNet12, WideResNet
from tegu.sources import Inputs


@dataclass(frozen=True, kw_only=True)
class Network:
    """The contract of a network: a subclass names a module and holds its settings.

    Class attributes:
        name: what a recipe calls it.
        takes: kinds of inputs that it reads: "images", "vectors", "tokens", "categories".
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[str, ...]]

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        """The module.

        Args:
            inputs: what it is given.
            outputs: of an answer; 0 for a network that ends in features.
            seed: of the initial weights.
        """
        raise TypeError(f"{type(self).__name__} has no build()")


@dataclass(frozen=True, kw_only=True)
class Conv4Network(Network):
    """Four convolutions.

    Args:
        width: filters of each layer.
        widths: filters of the four layers, in place of `width`.
        pool: max-pooling in place of strides.
    """

    name: ClassVar[str] = "conv4"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    width: int = 64
    widths: tuple[int, ...] = ()
    pool: bool = False

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        channels, size, _ = inputs.shape
        width = self.widths or self.width
        return Conv4(outputs, channels=channels, size=size, width=width, pool=self.pool, seed=seed)


@dataclass(frozen=True, kw_only=True)
class MaskedMlpsNetwork(Network):
    """A small network for each variable, blind to what a graph leaves out.

    Args:
        hidden: width of the hidden layer; 0 for four times the variables or categories.
    """

    name: ClassVar[str] = "masked-mlps"
    takes: ClassVar[tuple[str, ...]] = ("categories",)

    hidden: int = 0

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return MaskedMlps(inputs.shape[0], inputs.tokens, hidden=self.hidden, seed=seed)


@dataclass(frozen=True, kw_only=True)
class MlpNetwork(Network):
    """Dense layers.

    Args:
        hidden: widths of the hidden layers.
        activation: relu or tanh.
    """

    name: ClassVar[str] = "mlp"
    takes: ClassVar[tuple[str, ...]] = ("images", "vectors")

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        width = math.prod(inputs.shape)
        return Mlp(width, outputs, hidden=self.hidden, activation=self.activation, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ResNet12Network(Network):
    """ResNet-12.

    Args:
        widths: filters of the four blocks; the usual ones if empty.
    """

    name: ClassVar[str] = "resnet12"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    widths: tuple[int, ...] = ()

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        channels, size, _ = inputs.shape
        if self.widths:
            return ResNet12(outputs, channels=channels, size=size, seed=seed, widths=self.widths)
        return ResNet12(outputs, channels=channels, size=size, seed=seed)


@dataclass(frozen=True, kw_only=True)
class WrnNetwork(Network):
    """A wide residual network.

    Args:
        depth: layers.
        widen: factor of the filters.
    """

    name: ClassVar[str] = "wrn"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    depth: int = 28
    widen: int = 10

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return WideResNet(
            outputs, channels=inputs.shape[0], depth=self.depth, widen=self.widen, seed=seed
        )


NETWORKS: dict[str, type[Network]] = {
    cls.name: cls
    for cls in (
        Conv4Network,
        MaskedMlpsNetwork,
        MlpNetwork,
        ResNet12Network,
        WrnNetwork,
    )
}
