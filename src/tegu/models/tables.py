"""A transformer over the rows of a table."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError

Memory = dict[str, Tensor]


class TableTransformer(nn.Module):
    """Rows with known classes attend to one another, rows with unknown ones to these.

    A row is one token. Layers normalise first, and their last matrices start at zero.
    The classes of a row are read out twice, and the two are added: by a linear layer on
    its last token, and by attention to the known rows, each of which votes for its class.

    Args:
        n_way: most classes N.
        n_features: numbers in a row, D.
        width: of a token.
        layers: of attention and a dense network each.
        heads: of attention; the width is a multiple of them.
        hidden: width of the dense networks.
        seed: of the initial weights.

    Reference:
        Hollmann et al. (2023), TabPFN, arXiv:2207.01848. Differs from it: smaller;
        layers normalise first; a query row does not attend to itself; the votes are
        added (there a dense network alone reads out).

    Example:
        >>> net = TableTransformer(n_way=3, n_features=2, width=8, layers=1, heads=2)
        >>> rows, classes = torch.zeros(5, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> memory = net.remember(rows, classes, torch.ones(5, dtype=torch.bool))
        >>> net(torch.zeros(4, 2), memory).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        n_way: int = 10,
        n_features: int = 64,
        *,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(
                f"width {width} for {heads} heads", "a multiple of the heads", "Change one of them."
            )
        self.n_way, self.n_features, self.heads = n_way, n_features, heads
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, scale: float | None = None) -> nn.Parameter:
            bound = shape[-1] ** -0.5 * math.sqrt(3) if scale is None else scale
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        def filled(*shape: int, value: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value))

        self.row = drawn(width, n_features)
        self.row_shift = filled(width)
        self.classes = drawn(n_way, width, scale=0.5)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.norm, block.norm_shift = filled(width, value=1.0), filled(width)
            block.query, block.both = drawn(width, width), drawn(2 * width, width)
            block.mix = filled(width, width)
            block.norm2, block.norm2_shift = filled(width, value=1.0), filled(width)
            block.wide, block.wide_shift = drawn(hidden, width), filled(hidden)
            block.narrow, block.narrow_shift = filled(width, hidden), filled(width)
            self.blocks.append(block)
        self.last, self.last_shift = filled(width, value=1.0), filled(width)
        self.vote_query, self.vote_key = drawn(width, width), drawn(width, width)
        self.read, self.read_shift = filled(n_way, width), filled(n_way)

    def remember(self, rows: Tensor, classes: Tensor, mask: Tensor) -> Memory:
        """What queries need of the known rows.

        Args:
            rows: shape (S, D), of mean 0 and deviation 1 or so.
            classes: shape (S,) int64.
            mask: shape (S,) bool, False where a row only pads.

        Returns:
            Keys and values of each layer, (layers, S, 2 width); keys of the votes
            (S, width); the votes (S, N); the mask.
        """
        member = F.one_hot(classes, self.n_way).to(rows.dtype) * mask[:, None]
        tokens = F.linear(rows, self.row, self.row_shift) + member @ self.classes
        kept = []
        for block in self.blocks:
            normed = self._normed(tokens, block.norm, block.norm_shift)
            both = F.linear(normed, block.both)
            kept.append(both)
            tokens = self._layer(block, tokens, normed, both, mask)
        last = self._normed(tokens, self.last, self.last_shift)
        votes = F.linear(last, self.vote_key)
        return {"layers": torch.stack(kept), "keys": votes, "votes": member, "mask": mask}

    def forward(self, rows: Tensor, memory: Memory) -> Tensor:
        """Scores (Q, N) of rows (Q, D); the least there is for classes without a known row."""
        mask = memory["mask"]
        tokens = F.linear(rows, self.row, self.row_shift)
        for block, both in zip(self.blocks, memory["layers"], strict=True):
            normed = self._normed(tokens, block.norm, block.norm_shift)
            tokens = self._layer(block, tokens, normed, both, mask)
        last = self._normed(tokens, self.last, self.last_shift)
        read = F.linear(last, self.read, self.read_shift)
        weights = self._weights(F.linear(last, self.vote_query), memory["keys"], mask)
        share = weights.mean(0) @ memory["votes"].to(weights.dtype)
        dtype = torch.promote_types(share.dtype, torch.float32)
        scores = read.to(dtype) + torch.log(share.to(dtype) + 1e-3)
        present = memory["votes"].sum(0) > 0
        return scores.masked_fill(~present, torch.finfo(scores.dtype).min)

    def _layer(
        self, block: nn.Module, tokens: Tensor, normed: Tensor, both: Tensor, mask: Tensor
    ) -> Tensor:
        key, value = both.chunk(2, -1)
        weights = self._weights(F.linear(normed, block.query), key, mask)
        mixed = (weights.to(value.dtype) @ self._split(value)).transpose(0, 1).flatten(1)
        tokens = tokens + F.linear(mixed, block.mix)
        normed = self._normed(tokens, block.norm2, block.norm2_shift)
        wide = F.gelu(F.linear(normed, block.wide, block.wide_shift), approximate="tanh")
        return tokens + F.linear(wide, block.narrow, block.narrow_shift)

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Attention (heads, Q, S) to the rows that `mask` marks."""
        query, key = self._split(query), self._split(key)
        alike = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return alike.masked_fill(~mask, torch.finfo(alike.dtype).min).softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (heads, rows, width / heads)

    def _normed(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], gain, shift)
