"""What the section [model] of a recipe may name: one class a network, its settings the keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tegu.errors import InputError
from tegu.models import (
    Conv4,
    ConvNet,
    MaskedMlps,
    MemorySeq2Seq,
    Mlp,
    NeuralProcess,
    ResNet12,
    Seq2Seq,
    StudyTransformer,
    TableTransformer,
    TransformerProcess,
    ViT,
    Weighted,
    WideResNet,
    category_pair,
    mixture_pair,
)
from tegu.models.mlc import REACH
from tegu.sources import Inputs


@dataclass(frozen=True, kw_only=True)
class Network:
    """The contract of a network: a subclass names a module and holds its settings.

    Class attributes:
        name: what a recipe calls it.
        takes: kinds of inputs that it reads: "images", "vectors", "tokens", "tables",
            "categories", "pairs".
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


def _square(inputs: Inputs) -> tuple[int, int]:
    """Channels and side of images.

    Raises:
        InputError: sides of unequal length.
    """
    channels, height, width = inputs.shape
    if height != width:
        raise InputError(
            f"images of {height} x {width}",
            "as high as wide, for this network",
            "Write model.name=mlp, or pad the images to a square.",
        )
    return channels, height


@dataclass(frozen=True, kw_only=True)
class Conv4Network(Network):
    """Four convolutions.

    Args:
        width: filters of each layer.
        widths: filters of the four layers, in place of `width`.
        pool: max-pooling in place of strides.
        last: how many layers, from the last back, have their outputs among the features.
    """

    name: ClassVar[str] = "conv4"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    width: int = 64
    widths: tuple[int, ...] = ()
    pool: bool = False
    last: int = 1

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        channels, size = _square(inputs)
        return Conv4(
            outputs,
            channels=channels,
            size=size,
            width=self.widths or self.width,
            pool=self.pool,
            last=self.last,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class ConvNetNetwork(Network):
    """Convolutions, as many as you like.

    Args:
        widths: filters of each layer.
        strides: of each layer, 1 or 2.
    """

    name: ClassVar[str] = "convnet"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    widths: tuple[int, ...] = (32, 64, 64, 128, 128)
    strides: tuple[int, ...] = (2, 2, 1, 2, 1)

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        channels, size = _square(inputs)
        return ConvNet(
            outputs,
            channels=channels,
            size=size,
            widths=self.widths,
            strides=self.strides,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedMlpsNetwork(Network):
    """A small network for each variable, blind to what a graph leaves out.

    Args:
        factor: width of the hidden layer, in units of the variables or of the categories,
            whichever are more.
    """

    name: ClassVar[str] = "masked-mlps"
    takes: ClassVar[tuple[str, ...]] = ("categories",)

    factor: int = 4

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        k, n = inputs.shape[0], inputs.tokens
        return MaskedMlps(k, n, hidden=self.factor * max(k, n), seed=seed)


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
class PairNetwork(Network):
    """Cause and effect, both ways: distributions of categories, or mixtures of numbers.

    Args:
        units: width of the hidden layers; for categories 0 stands for tables.
        components: of mixtures.
    """

    name: ClassVar[str] = "pair"
    takes: ClassVar[tuple[str, ...]] = ("pairs",)

    units: int = 0
    components: int = 10

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        if inputs.tokens:
            return category_pair(inputs.tokens, hidden=self.units, seed=seed)
        return mixture_pair(components=self.components, hidden=self.units or 32, seed=seed)


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
        checkpoint: run each block again for its gradient, to save memory.
    """

    name: ClassVar[str] = "resnet12"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    widths: tuple[int, ...] = ()
    checkpoint: bool = False

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        channels, size = _square(inputs)
        own = {"widths": self.widths} if self.widths else {}
        return ResNet12(
            outputs, channels=channels, size=size, checkpoint=self.checkpoint, seed=seed, **own
        )


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
            longest=inputs.longest,
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
        encoder: layers; the second, the fourth and so on reach over all study examples.
        decoder: layers.
        tells: whether it has a head that tells what study examples mean, for `learner.told`.
    """

    name: ClassVar[str] = "study-transformer"
    takes: ClassVar[tuple[str, ...]] = ("tokens",)
    reads_sets: ClassVar[bool] = True

    width: int = 128
    heads: int = 8
    feedforward: int = 512
    encoder: int = 3
    decoder: int = 3
    tells: bool = False

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return StudyTransformer(
            inputs.tokens,
            outputs,
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward,
            encoder=[REACH[layer % 2] for layer in range(self.encoder)],
            decoder=self.decoder,
            longest=inputs.longest,
            tells=inputs.shape[0] if self.tells else 0,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class TableNetwork(Network):
    """A transformer over the rows of a table.

    Args:
        width: of a token.
        layers: of attention and a dense network each.
        heads: of attention.
        hidden: width of the dense networks.
    """

    name: ClassVar[str] = "table-transformer"
    takes: ClassVar[tuple[str, ...]] = ("tables",)

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 256

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return TableTransformer(
            outputs,
            2 * inputs.shape[0],  # two forms of each column
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            hidden=self.hidden,
            seed=seed,
        )


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
class ViTNetwork(Network):
    """A small vision transformer.

    Args:
        patch: height and width of a patch, a divisor of the images' size.
        width: of a patch's vector.
        blocks: of attention and a dense network each.
        heads: of attention, a divisor of the width.
        checkpoint: run each block again for its gradient, to save memory.
    """

    name: ClassVar[str] = "vit"
    takes: ClassVar[tuple[str, ...]] = ("images",)

    patch: int = 4
    width: int = 192
    blocks: int = 6
    heads: int = 3
    checkpoint: bool = False

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        channels, size = _square(inputs)
        return ViT(outputs, channels=channels, size=size, seed=seed, **vars(self))


@dataclass(frozen=True, kw_only=True)
class WeightedNetwork(Network):
    """The inputs with learned weights, and a linear view of them beside.

    Args:
        view: numbers in the view; 0 for none.
    """

    name: ClassVar[str] = "weighted"
    takes: ClassVar[tuple[str, ...]] = ("vectors",)

    view: int = 64

    def build(self, inputs: Inputs, outputs: int, *, seed: int) -> nn.Module:
        return Weighted(math.prod(inputs.shape), outputs, view=self.view, seed=seed)


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
        ConvNetNetwork,
        MaskedMlpsNetwork,
        MemorySeq2SeqNetwork,
        MlpNetwork,
        PairNetwork,
        ProcessNetwork,
        ResNet12Network,
        Seq2SeqNetwork,
        StudyTransformerNetwork,
        TransformerProcessNetwork,
        TableNetwork,
        ViTNetwork,
        WeightedNetwork,
        WrnNetwork,
    )
}
