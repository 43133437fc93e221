"""The network of the transformer neural process: support and queries as one sequence.

Nguyen and Grover (2022), Transformer neural processes, arXiv:2207.04179, the diagonal
variant TNP-D.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.attention import Dense, attend, log_scale, waves
from tegu.models.linear import dense
from tegu.models.norm import LayerNorm

Layers = dict[str, Tensor]  # keys and values of a support set in each layer, and its mask


class TransformerProcess(nn.Module):
    """A transformer in which everyone attends to the support set and to nobody else.

    So queries do not bear on one another, and the keys and values of the support set in
    each layer, computed once, answer any query.

    Args:
        in_width: numbers in an input.
        out_width: D, numbers in a target.
        width: of the tokens.
        layers: blocks of attention and feed-forward network.
        heads: of each attention.
        hidden: width of the feed-forward networks.
        embedding_layers: dense layers from an example to its token.
        frequencies: octaves of sines and cosines of the inputs, for inputs from about -2 to
            2; 0 for none, as published.
        least_sd: that a predicted standard deviation stays above.
        seed: of the initial weights.

    Reference:
        arXiv:2207.04179, sections 4.1 and 4.2, and its published code, whose widths are
        the defaults. A token is (x, y), that of a query (x, 0). Differs from them: layers
        are normalised before attention and network, not after, with one more
        normalisation at the end, so that training needs no warm-up; projections have no
        bias; standard deviations come from a softplus above `least_sd`, not from an
        exponential; a flag tells queries from examples whose target is 0.
    """

    def __init__(
        self,
        in_width: int = 1,
        out_width: int = 1,
        *,
        width: int = 64,
        layers: int = 6,
        heads: int = 4,
        hidden: int = 128,
        embedding_layers: int = 4,
        frequencies: int = 0,
        least_sd: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(
                f"width is {width} with {heads} heads", "a multiple of heads", "Change one."
            )
        if not 0 < least_sd < 1:
            raise InputError(
                f"least_sd is {least_sd}", "above 0 and below 1", "Write least_sd=0.01."
            )
        make = torch.Generator().manual_seed(seed)
        self.in_width, self.out_width, self.least_sd = in_width, out_width, least_sd
        self.frequencies = frequencies
        read = in_width * (1 + 2 * frequencies) + out_width + 1
        self.embed = Dense([read, *[width] * embedding_layers], make)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, make) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.head = Dense([width, hidden, 2 * out_width], make)

    def encode(self, x: Tensor, y: Tensor, mask: Tensor) -> Layers:
        """A support set to its keys and values in each layer.

        Args:
            x: shape (S, in_width).
            y: shape (S, D).
            mask: shape (S,) bool, at least one True.

        Returns:
            "key.0", "value.0", "key.1" and so on, of shape (S, width), and "mask".
        """
        tokens = self._tokens(x, torch.cat([y, torch.ones_like(y[:, :1])], -1))
        found: Layers = {"mask": mask}
        for i, block in enumerate(cast("Iterable[Block]", self.blocks)):
            key, value = block.seen(tokens)
            found |= {f"key.{i}": key, f"value.{i}": value}
            if i + 1 < len(self.blocks):  # nobody looks at the tokens after the last
                tokens = block(tokens, key, value, mask)
        return found

    def decode(self, found: Layers, x: Tensor) -> Tensor:
        """Queries (Q, in_width) given a support set: mean beside log sd, shape (Q, 2 D)."""
        tokens = self._tokens(x, x.new_zeros(len(x), self.out_width + 1))
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, found[f"key.{i}"], found[f"value.{i}"], found["mask"])
        with torch.autocast(x.device.type, enabled=False):
            mean, raw = self.head(self.norm(tokens)).chunk(2, -1)
        return torch.cat([mean, log_scale(raw, self.least_sd)], -1)

    def _tokens(self, x: Tensor, told: Tensor) -> Tensor:
        """Whatever the precision of the blocks, numbers enter and leave in full."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.embed(torch.cat([waves(x, self.frequencies), told], -1))
            return out

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        """A support set and queries to mean beside log standard deviation: shape (Q, 2 D)."""
        return self.decode(self.encode(x, y, mask), query)


class Block(nn.Module):
    """Attention to the support set, then a network for each token by itself."""

    def __init__(self, width: int, heads: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_network = LayerNorm(width), LayerNorm(width)
        self.query = dense(width, width, generator, bias=False)
        self.key_value = dense(width, 2 * width, generator, bias=False)
        self.out = dense(width, width, generator)
        self.network = Dense([width, hidden, width], generator)

    def seen(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of support tokens (S, width)."""
        key, value = self.key_value(self.norm(tokens)).chunk(2, -1)
        return key, value

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, width) after looking at the support set's keys and values (S, width)."""
        seen = attend(self.query(self.norm(tokens)), key, value, mask, self.heads)
        tokens = tokens + self.out(seen)
        out: Tensor = tokens + self.network(self.norm_network(tokens))
        return out
