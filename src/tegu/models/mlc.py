"""A transformer that answers a query by worked examples: encoder over both, then a decoder.

Lake and Baroni (2023), Human-like systematic generalization through a meta-learning neural
network, Nature 623:115-121. There the source of a standard transformer is a query followed by
all study examples, and each query has the examples encoded anew. Here the same layers encode
the examples alone, once; a query's words attend to themselves and to the examples' tokens, and
no example attends to a query. The decoder attends to both, as in the paper. With 24 queries over
14 examples that is a tenth of the work.

Shapes: S examples of L words and M symbols, E = L + M tokens each; Q queries; D the width.
Inside attention, heads come first: (H, groups, tokens, D / H).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.datasets.tokens import PAD, START
from tegu.errors import InputError, unknown
from tegu.models.linear import Linear
from tegu.models.norm import LayerNorm

REACH = ("example", "episode")

Drop = Callable[[Tensor], Tensor]


def _kept(x: Tensor) -> Tensor:
    return x


class Bank(NamedTuple):
    """Keys and values to attend to, with a mask that broadcasts to the scores."""

    key: Tensor
    value: Tensor
    mask: Tensor


class Study(NamedTuple):
    """What is kept of the study examples, K = S E tokens.

    Args:
        layers: input of each encoder layer that reaches over the episode, (K, D).
        memory: the encoder's output, (K, D).
        mask: real tokens, (K,).
    """

    layers: tuple[Tensor, ...]
    memory: Tensor
    mask: Tensor


class Attention(nn.Module):
    """Multi-head attention with the weights of `torch.nn.MultiheadAttention`.

    Args:
        width: D.
        heads: H, a divisor of D.
        generator: of the initial weights.
    """

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        bound = math.sqrt(6 / (4 * width))
        weight = torch.empty(3 * width, width).uniform_(-bound, bound, generator=generator)
        self.in_proj_weight = nn.Parameter(weight)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width, generator=generator)

    def _split(self, x: Tensor) -> Tensor:
        """(..., N, D) to (H, ..., N, D / H)."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).movedim(-2, 0)
        return heads

    def queries(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return self._split(F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width]))

    def bank(self, x: Tensor, mask: Tensor) -> Bank:
        """Keys and values of tokens (..., N, D)."""
        width = x.shape[-1]
        both = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = both.chunk(2, -1)
        return Bank(self._split(key), self._split(value), mask)

    def forward(self, x: Tensor, own: Bank | None, shared: Bank | None) -> Tensor:
        """Tokens (G, N, D) after attention, each group to its own bank and all to a shared one.

        Args:
            x: what asks.
            own: keys (H, G, N', D / H), mask (G, N or 1, N').
            shared: keys (H, K, D / H), mask (K,).
        """
        query = self.queries(x)
        mixed = attend(query * query.shape[-1] ** -0.5, own, shared)
        return F.linear(mixed.movedim(0, -2).flatten(-2), self.out_proj.weight, self.out_proj.bias)


def attend(query: Tensor, own: Bank | None, shared: Bank | None) -> Tensor:
    """One softmax over two banks: (H, G, N, E) to (H, G, N, E), scaled queries.

    The banks stay apart, so that nothing as large as the scores is copied; the sum of
    both is divided by at the end.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    if own is not None:
        scores = query @ own.key.transpose(-1, -2)
        parts.append((_masked(scores, own.mask), own.value))
    if shared is not None:
        groups = query.shape[1:3]
        flat = query.flatten(1, 2)  # (H, G N, E): one large product a head
        scores = (flat @ shared.key.transpose(-1, -2)).unflatten(1, groups)
        parts.append((_masked(scores, shared.mask), shared.value))
    top = parts[0][0].amax(-1, keepdim=True).detach()
    for scores, _ in parts[1:]:
        top = torch.maximum(top, scores.amax(-1, keepdim=True).detach())
    masses, mixed = [], []
    for scores, value in parts:
        weight = (scores - top).exp()
        masses.append(weight.sum(-1, keepdim=True))
        if value.ndim == query.ndim:
            mixed.append(weight @ value)
        else:
            mixed.append((weight.flatten(1, 2) @ value).unflatten(1, weight.shape[1:3]))
    return sum(mixed[1:], mixed[0]) / sum(masses[1:], masses[0])


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward pair, normalised before each (pre-norm).

    Names and weights are those of `torch.nn.TransformerEncoderLayer`.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, generator)
        self.linear1 = Linear(width, feedforward, generator=generator)
        self.linear2 = Linear(feedforward, width, generator=generator)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor, shared: Bank | None, drop: Drop = _kept) -> Tensor:
        """Groups of tokens (G, N, D), mask (G, N), each attending to its group and `shared`."""
        seen = self.norm1(x)
        x = x + drop(self.self_attn(seen, self.self_attn.bank(seen, mask[:, None]), shared))
        return self.fed(x, drop)

    def over(self, x: Tensor, mask: Tensor, drop: Drop = _kept) -> Tensor:
        """The same where all groups see one another."""
        seen = self.norm1(x)
        shared = self.self_attn.bank(seen.flatten(0, 1), mask.flatten())
        return self.fed(x + drop(self.self_attn(seen, None, shared)), drop)

    def fed(self, x: Tensor, drop: Drop) -> Tensor:
        out: Tensor = x + drop(self.linear2(F.gelu(self.linear1(self.norm2(x)))))
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, a feed-forward pair; pre-norm.

    Names and weights are those of `torch.nn.TransformerDecoderLayer`.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, generator)
        self.multihead_attn = Attention(width, heads, generator)
        self.linear1 = Linear(width, feedforward, generator=generator)
        self.linear2 = Linear(feedforward, width, generator=generator)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        own: Bank,
        shared: Bank,
        drop: Drop = _kept,
        past: Bank | None = None,
    ) -> tuple[Tensor, Bank]:
        """Output tokens (Q, N, D); with the keys and values of all tokens so far.

        Args:
            x: all tokens, or the last one with a `past`.
            own: each query's words.
            shared: the study examples.
            drop: dropout.
            past: keys and values of the tokens before.
        """
        seen = self.norm1(x)
        size = x.shape[1]
        if past is None:
            causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
            now = self.self_attn.bank(seen, causal)
        else:
            new = self.self_attn.bank(seen, past.mask)
            key = torch.cat([past.key, new.key], -2)
            value = torch.cat([past.value, new.value], -2)
            now = Bank(key, value, past.mask.new_ones(1, key.shape[-2]))
        x = x + drop(self.self_attn(seen, now, None))
        x = x + drop(self.multihead_attn(self.norm2(x), own, shared))
        out = x + drop(self.linear2(F.gelu(self.linear1(self.norm3(x)))))
        return out, now


class StudyTransformer(nn.Module):
    """Encoder and decoder over study examples and queries.

    Args:
        words: size of the command vocabulary, the three special tokens included.
        symbols: size of the output vocabulary, alike.
        width: D.
        heads: of attention.
        feedforward: width between the two dense layers of a block.
        encoder: how far each encoder layer reaches: "example" (its own example or query) or
            "episode" (all study examples too).
        decoder: number of decoder layers.
        longest: tokens of an answer, its end included.
        tells: words of a command at most, where the model has a head that says what study
            examples mean, for a second loss of `tegu.learners.Mlc`; 0 for no such head.
        seed: of the initial weights.

    Differs from the paper: examples are encoded once (see the module's text); by default two of
    three encoder layers reach over one example or query alone; positions start
    anew in each example and each output, which words and symbols of different embeddings and
    the layers of reach "example" make possible, so that the order of the examples does not
    matter; a learned vector marks the words of a query; layers are normalised first, not last.

    Example:
        >>> model = StudyTransformer(12, 9, width=16, heads=2, feedforward=32, longest=5)
        >>> study, asked = torch.tensor([[3, 0], [3, 4]]), torch.tensor([[4, 3]])
        >>> outputs = torch.tensor([[3, 1, 0], [4, 3, 1]])
        >>> model(study, outputs, torch.tensor([True, True]), asked).shape
        torch.Size([1, 5, 9])
    """

    def __init__(
        self,
        words: int,
        symbols: int,
        *,
        width: int = 128,
        heads: int = 8,
        feedforward: int = 512,
        encoder: Sequence[str] = ("example", "episode", "example"),
        decoder: int = 3,
        longest: int = 9,
        tells: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for reach in encoder:
            if reach not in REACH:
                raise unknown("reach of an encoder layer", reach, REACH)
        if heads < 1 or width % (2 * heads):
            raise InputError(
                f"a width of {width} for {heads} heads",
                "an even number for each head",
                "Change one of the two.",
            )
        generator = torch.Generator().manual_seed(seed)
        self.width, self.longest, self.encoder_reach = width, longest, tuple(encoder)
        self.n_inputs, self.n_outputs = words, symbols
        self.word = nn.Parameter(torch.randn(words, width, generator=generator))
        self.symbol = nn.Parameter(torch.randn(symbols, width, generator=generator))
        self.asked = nn.Parameter(torch.randn(width, generator=generator))
        self.encoder = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, generator) for _ in encoder
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, feedforward, generator) for _ in range(decoder)
        )
        self.norm_memory, self.norm_out = LayerNorm(width), LayerNorm(width)
        self.out = Linear(width, symbols, generator=generator)
        self.tells = tells
        if tells:
            self.meaning = Linear(width, words + symbols + tells, generator=generator)

    def matrices(self) -> dict[str, int]:
        """Matrices of encoder and decoder, by name; queries, keys and values are stacked."""
        inside = [n for n, p in self.named_parameters() if p.ndim == 2 and "coder" in n]
        return {name: 3 if name.endswith("in_proj_weight") else 1 for name in inside}

    def study(self, commands: Tensor, outputs: Tensor, mask: Tensor, drop: Drop = _kept) -> Study:
        """Encodes examples: words (S, L), symbols (S, M), real examples (S,)."""
        x = torch.cat(
            [self._placed(self.word[commands]), self._placed(self.symbol[outputs])], 1
        )  # (S, E, D)
        real = torch.cat([commands, outputs], 1) != PAD
        real = real & mask[:, None]
        x, layers = drop(x), []
        for layer, reach in zip(self.encoder, self.encoder_reach, strict=True):
            if reach == "episode":
                layers.append(x.flatten(0, 1))
                x = layer.over(x, real, drop)  # type: ignore[operator]
            else:
                x = layer(x, real, None, drop)
        return Study(tuple(layers), self.norm_memory(x).flatten(0, 1), real.flatten())

    def tell(self, study: Study) -> tuple[Tensor, ...]:
        """What each token of the study examples means.

        Returns:
            Scores of words (K, words), of symbols (K, symbols), and of places in the token's own
            command (K, tells).
        """
        sizes = self.n_inputs, self.n_outputs, self.tells
        told: tuple[Tensor, ...] = self.meaning(study.memory).split(sizes, -1)
        return told

    def read(self, study: Study, queries: Tensor, drop: Drop = _kept) -> tuple[list[Bank], ...]:
        """Encodes queries (Q, L): for each decoder layer the banks of queries and of examples."""
        x, real, known = self._placed(self.word[queries]) + self.asked, queries != PAD, 0
        x = drop(x)
        for layer, reach in zip(self.encoder, self.encoder_reach, strict=True):
            shared = None
            if reach == "episode":
                before = layer.norm1(study.layers[known])  # type: ignore[operator]
                shared = layer.self_attn.bank(before, study.mask)  # type: ignore[operator, union-attr]
                known += 1
            x = layer(x, real, shared, drop)
        x = self.norm_memory(x)
        crossed = [layer.multihead_attn for layer in self.decoder]
        own = [a.bank(x, real[:, None]) for a in crossed]  # type: ignore[operator, union-attr]
        shared_banks = [a.bank(study.memory, study.mask) for a in crossed]  # type: ignore[operator, union-attr]
        return own, shared_banks

    def answer(self, study: Study, queries: Tensor, targets: Tensor, drop: Drop = _kept) -> Tensor:
        """Scores (Q, M, V) of the next symbol, with the right ones (Q, M) before it."""
        own, shared = self.read(study, queries, drop)
        before = F.pad(targets[:, :-1], (1, 0), value=START)
        x = drop(self._placed(self.symbol[before]))
        for layer, mine, theirs in zip(self.decoder, own, shared, strict=True):
            x, _ = layer(x, mine, theirs, drop)
        out: Tensor = self.out(self.norm_out(x))
        return out

    def generate(self, study: Study, queries: Tensor) -> Tensor:
        """Scores (Q, longest, V) of symbols, each after the likeliest ones before it."""
        own, shared = self.read(study, queries)
        token = torch.full_like(queries[:, 0], START)
        past: list[Bank | None] = [None] * len(self.decoder)
        found = []
        for at in range(self.longest):
            x = self._placed(self.symbol[token][:, None], at)
            for i, layer in enumerate(self.decoder):
                x, past[i] = layer(x, own[i], shared[i], past=past[i])
            found.append(self.out(self.norm_out(x[:, 0])))
            token = found[-1].argmax(-1)
        return torch.stack(found, 1)

    def forward(self, commands: Tensor, outputs: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        """Answers by greedy decoding, as scores (Q, longest, V)."""
        return self.generate(self.study(commands, outputs, mask), queries)

    def _placed(self, x: Tensor, first: int = 0) -> Tensor:
        """Embeddings (G, N, D) with sines of their positions (Vaswani et al. 2017, 3.5)."""
        at = torch.arange(first, first + x.shape[1], device=x.device, dtype=x.dtype)
        rate = torch.arange(0, self.width, 2, device=x.device, dtype=x.dtype) / self.width
        angle = at[:, None] * torch.exp(-math.log(10_000.0) * rate)
        return x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
