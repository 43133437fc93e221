"""What the section [model] of a recipe may name: one class a network, its settings the keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tegu.models import Conv4, MemorySeq2Seq, Mlp, ResNet12, Seq2Seq, StudyTransformer, WideResNet
from tegu.sources import Inputs


@dataclass(frozen=True, kw_only=True)
class Network:
    """The contract of a network: a subclass names a module and holds its settings.

    Class attributes:
        name: what a recipe calls it.
        takes: kinds of inputs that it reads: "images", "vectors", "tokens".
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
class Seq2SeqNetwork(Network):
    """LSTM encoder and decoder with attention.

    Args:
        width: of embeddings and states.
        layers: of each LSTM.
        dropout: in training, for learners that give random numbers to it.
        packed: fast recurrence, for learners that do not change weights from task to task.
    """

    name: ClassVar[str] = "seq2seq"
    takes: ClassVar[tuple[str, ...]] = ("tokens",)
    module: ClassVar[type[Seq2Seq]] = Seq2Seq

    width: int = 200
    layers: int = 2
    dropout: float = 0.5
    packed: bool = False

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return self.module(
            inputs.tokens,
            outputs,
            steps=inputs.longest,
            width=self.width,
            layers=self.layers,
            dropout=self.dropout,
            packed=self.packed,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class MemorySeq2SeqNetwork(Seq2SeqNetwork):
    """The same with a memory of the support set."""

    name: ClassVar[str] = "memory-seq2seq"
    module: ClassVar[type[Seq2Seq]] = MemorySeq2Seq

    packed: bool = True


@dataclass(frozen=True, kw_only=True)
class StudyTransformerNetwork(Network):
    """An encoder over study examples and a query, and a decoder.

    Args:
        width: of tokens.
        heads: of attention.
        feedforward: width inside a block.
        decoder: layers; the encoder has three.
    """

    name: ClassVar[str] = "study-transformer"
    takes: ClassVar[tuple[str, ...]] = ("tokens",)

    width: int = 128
    heads: int = 8
    feedforward: int = 512
    decoder: int = 3

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return StudyTransformer(
            inputs.tokens,
            outputs,
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward,
            decoder=self.decoder,
            longest=inputs.longest,
            seed=seed,
        )


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
        MemorySeq2SeqNetwork,
        MlpNetwork,
        ResNet12Network,
        Seq2SeqNetwork,
        StudyTransformerNetwork,
        WrnNetwork,
    )
}
