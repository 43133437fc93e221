"""A transformer over the rows of a table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.attention import attend, attention

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
        if heads < 1 or width % heads:
            raise InputError(
                f"width {width} for {heads} heads", "a multiple of the heads", "Change one of them."
            )
        self.n_way, self.n_features, self.heads = n_way, n_features, heads
        generator = torch.Generator().manual_seed(seed)
        self.row = _drawn(generator, width, n_features)
        self.row_shift = _filled(width)
        self.classes = _drawn(generator, n_way, width, bound=0.5)
        self.blocks = nn.ModuleList(_Block(width, hidden, heads, generator) for _ in range(layers))
        self.last, self.last_shift = _filled(width, value=1.0), _filled(width)
        self.vote_query = _drawn(generator, width, width)
        self.vote_key = _drawn(generator, width, width)
        self.read, self.read_shift = _filled(n_way, width), _filled(n_way)

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
            tokens, both = block(tokens, mask)
            kept.append(both)
        last = _normed(tokens, self.last, self.last_shift)
        votes = F.linear(last, self.vote_key)
        return {"layers": torch.stack(kept), "keys": votes, "votes": member, "mask": mask}

    def forward(self, rows: Tensor, memory: Memory) -> Tensor:
        """Scores (Q, N) of rows (Q, D); the least there is for classes without a known row."""
        mask = memory["mask"]
        tokens = F.linear(rows, self.row, self.row_shift)
        for block, both in zip(self.blocks, memory["layers"], strict=True):
            tokens, _ = block(tokens, mask, both)
        last = _normed(tokens, self.last, self.last_shift)
        read = F.linear(last, self.read, self.read_shift)
        query = F.linear(last, self.vote_query)
        weights = attention(query, memory["keys"], mask, self.heads)
        share = weights.mean(0) @ memory["votes"].to(weights.dtype)
        dtype = torch.promote_types(share.dtype, torch.float32)
        scores = read.to(dtype) + torch.log(share.to(dtype) + 1e-3)
        present = memory["votes"].sum(0) > 0
        return scores.masked_fill(~present, torch.finfo(scores.dtype).min)


class _Block(nn.Module):
    """A layer: attention to the known rows, then a dense network, both added."""

    def __init__(self, width: int, hidden: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_shift = _filled(width, value=1.0), _filled(width)
        self.query = _drawn(generator, width, width)
        self.both = _drawn(generator, 2 * width, width)  # keys, then values
        self.mix = _filled(width, width)
        self.norm2, self.norm2_shift = _filled(width, value=1.0), _filled(width)
        self.wide, self.wide_shift = _drawn(generator, hidden, width), _filled(hidden)
        self.narrow, self.narrow_shift = _filled(width, hidden), _filled(width)

    def forward(
        self, tokens: Tensor, mask: Tensor, both: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (Q, width) after the layer, and the keys and values (S, 2 width) they saw.

        These are of the known rows; None: the tokens are these rows.
        """
        normed = _normed(tokens, self.norm, self.norm_shift)
        if both is None:
            both = F.linear(normed, self.both)
        key, value = both.chunk(2, -1)
        mixed = attend(F.linear(normed, self.query), key, value, mask, self.heads)
        tokens = tokens + F.linear(mixed, self.mix)
        normed = _normed(tokens, self.norm2, self.norm2_shift)
        wide = F.gelu(F.linear(normed, self.wide, self.wide_shift), approximate="tanh")
        return tokens + F.linear(wide, self.narrow, self.narrow_shift), both


def _normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], gain, shift)


def _drawn(generator: torch.Generator, *shape: int, bound: float = 0.0) -> nn.Parameter:
    """Uniform within the bound, or so that inputs of variance 1 give outputs of variance 1."""
    bound = bound or (3 / shape[-1]) ** 0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


def _filled(*shape: int, value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, value))
