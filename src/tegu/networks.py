"""What the section [model] of a recipe may name: one class a network, its settings the keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tegu.models import (
    Conv4,
    Mlp,
    NeuralProcess,
    ResNet12,
    TransformerProcess,
    WideResNet,
)
from tegu.sources import Inputs


@dataclass(frozen=True, kw_only=True)
class Network:
    """The contract of a network: a subclass names a module and holds its settings.

    Class attributes:
        name: what a recipe calls it.
        takes: kinds of inputs that it reads: "images", "vectors", "tokens".
        reads_sets: whether it reads a support set too, for learners that ask for it by
            name and for no others.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[str, ...]]
    reads_sets: ClassVar[bool] = False

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
class ProcessNetwork(Network):
    """Encoder and decoder of a neural process.

    Args:
        width: of hidden layers and representations.
        path: mean, attention, or nothing: how a query sees the support set beside z.
        latent: width of the latent variable z; 0 for none.
        heads: of attention.
        self_attention: whether support points look at each other.
        encoder_layers: dense layers of the encoder.
        decoder_layers: dense layers of the decoder.
        frequencies: octaves of sines and cosines of the inputs; 0 for none.
    """

    name: ClassVar[str] = "neural-process"
    takes: ClassVar[tuple[str, ...]] = ("vectors",)
    reads_sets: ClassVar[bool] = True

    width: int = 128
    path: str = "mean"
    latent: int = 0
    heads: int = 8
    self_attention: bool = False
    encoder_layers: int = 4
    decoder_layers: int = 4
    frequencies: int = 0

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return NeuralProcess(inputs.shape[0], outputs, seed=seed, **vars(self))


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
class TransformerProcessNetwork(Network):
    """Transformer over a support set and queries.

    Args:
        width: of the tokens.
        layers: blocks.
        heads: of attention.
        hidden: width of the feed-forward networks.
        embedding_layers: dense layers from an example to its token.
        frequencies: octaves of sines and cosines of the inputs; 0 for none.
    """

    name: ClassVar[str] = "transformer-process"
    takes: ClassVar[tuple[str, ...]] = ("vectors",)
    reads_sets: ClassVar[bool] = True

    width: int = 64
    layers: int = 6
    heads: int = 4
    hidden: int = 128
    embedding_layers: int = 4
    frequencies: int = 0

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return TransformerProcess(inputs.shape[0], outputs, seed=seed, **vars(self))


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
        MlpNetwork,
        ProcessNetwork,
        ResNet12Network,
        TransformerProcessNetwork,
        WrnNetwork,
    )
}
