"""Sequence to sequence: LSTM encoder and decoder with attention, and one with a memory.

`Seq2Seq` is the plain network (Luong et al. 2015, arXiv:1508.04025, without input
feeding). `MemorySeq2Seq` reads a command in the light of a support set:

    k_j = last state of the command encoder on support command j
    v_j = last state of the action encoder on support actions j
    m_t = sum over j of softmax_j(h_t . k_j / sqrt(H)) v_j
    c_t = tanh(W [h_t; m_t] + b)

(Lake 2019, arXiv:1906.05381, section 3), where h_t are the command encoder's states
on the query, and its decoder attends to c_t in place of h_t.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.tokens import END, PAD, START
from tegu.errors import InputError, check_range
from tegu.models.linear import dense
from tegu.models.lstm import Lstm

NEVER = -1e4  # score of what cannot be; finite, so that a row of nothing else has gradients


class Context(NamedTuple):
    """What a decoder reads.

    Attributes:
        steps: (B, L, H), one for each token of a command.
        last: (B, H), what the decoder begins with.
        real: (B, L) bool, which steps are no padding.
    """

    steps: Tensor
    last: Tensor
    real: Tensor


class Memory(NamedTuple):
    """A support set as keys and values, (S, H) each, and which of them are real, (S,)."""

    key: Tensor
    value: Tensor
    real: Tensor


def ended(x: Tensor) -> Tensor:
    """Commands with END behind their last word: (B, L) to (B, L + 1) int64."""
    length = (x != PAD).sum(-1, keepdim=True)
    wider = F.pad(x, (0, 1), value=PAD)
    return torch.where(torch.arange(wider.shape[-1], device=x.device) == length, END, wider)


def check_dropout(rate: float) -> None:
    """Refuses a share that eight bits cannot tell from none or from all.

    Raises:
        InputError: it is neither 0 nor from 1/256 to 255/256, rounded.
    """
    if rate != 0 and not (0 < rate < 1 and 0 < round(256 * rate) < 256):
        raise InputError(
            f"dropout is {rate}", "0, or a share from 0.002 to 0.998", "Try 0.5, or 0."
        )


def kept(key: Tensor, shape: tuple[int, ...], rate: float, dtype: torch.dtype) -> Tensor:
    """Factors of dropout for each row: 0 for a share `rate` of them, else 1 / (1 - rate).

    Args:
        key: of each row, (B,) int64. What a row gets is its own: neither other rows nor
            longer ones change it.
        shape: of a row.
        rate: a multiple of 1/256 is exact, since eight bits decide.
        dtype: of the factors.

    Returns:
        Shape (B, *shape).
    """
    n = math.prod(shape)
    words = keys.bits(key, -(-n // 8))
    octets = (words[..., None] >> torch.arange(0, 64, 8, device=key.device)) & 255
    level = round(256 * rate)
    real = (octets.flatten(1)[:, :n] >= level).reshape(-1, *shape)
    return real.to(dtype) * (256 / (256 - level))


class Encoder(nn.Module):
    """Token embeddings and an LSTM over them in both directions."""

    def __init__(
        self,
        n_tokens: int,
        width: int,
        layers: int,
        dropout: float,
        generator: torch.Generator,
        *,
        packed: bool,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.embedding = _embedding(n_tokens, width, generator)
        self.lstm = Lstm(width, layers, 2, generator, packed=packed)

    def forward(self, x: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (B, L), each row with one at least, to states (B, L, H) and the last, (B, H)."""
        embedded, masks = _dropped(self, x, key, ways=2)
        start = embedded.new_zeros(len(x), embedded.shape[-1])
        out: tuple[Tensor, Tensor] = self.lstm(embedded, (x != PAD).sum(-1), start, masks)
        return out


class Seq2Seq(nn.Module):
    """Commands to action sequences, with no support set.

    Args:
        n_inputs: tokens of commands, PAD, END and START among them.
        n_outputs: tokens of action sequences, likewise.
        longest: tokens of the longest answer it can give, END among them.
        width: of embeddings and states.
        layers: of each LSTM.
        dropout: share of embeddings, and of states between layers, that is dropped in
            training, where a learner gives a key.
        packed: fast recurrence for weights that all tasks share, see `tegu.models.lstm`;
            off for learners that change the weights from task to task.
        seed: of the initial weights.

    Reference:
        arXiv:1906.05381, its comparison network and published code. Differs from them:
        padding gets no attention; one bias for each gate.

    Example:
        >>> net = Seq2Seq(6, 7, longest=5, width=4)
        >>> net(torch.tensor([[3, 4], [5, 0]])).shape
        torch.Size([2, 5, 7])
    """

    generates: ClassVar[bool] = True  # a pass may be told the targets

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        longest: int,
        width: int = 200,
        layers: int = 2,
        dropout: float = 0.5,
        packed: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("longest", longest), ("width", width), ("layers", layers)):
            check_range(name, value, 1)
        check_dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        self.n_inputs, self.n_outputs, self.longest = n_inputs, n_outputs, longest
        self.width, self.layers, self.dropout, self.packed = width, layers, dropout, packed
        self.commands = Encoder(n_inputs, width, layers, dropout, generator, packed=packed)
        self.embedding = _embedding(n_outputs, width, generator)
        self.lstm = Lstm(width, layers, 1, generator, packed=packed)
        self.attended = dense(2 * width, width, generator)
        self.out = dense(width, n_outputs, generator)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits (B, M, V) for commands x (B, L): told the targets y (B, M), or greedily."""
        context = self.encode(x)
        return self.greedy(context) if y is None else self.told(context, y)

    def encode(self, x: Tensor, key: Tensor | None = None) -> Context:
        """A command's states; with a key for each row, (B,), under dropout."""
        x = ended(x)
        steps, last = self.commands(x, key)
        return Context(steps, last, x != PAD)

    def told(self, context: Context, y: Tensor, key: Tensor | None = None) -> Tensor:
        """Logits (B, M, V) of each token, given those before it: y (B, M) ends with END."""
        before = F.pad(y, (1, 0), value=START)[:, :-1]
        # Behind END nothing is asked, so nothing need be run.
        embedded, masks = _dropped(self, before, key, ways=1)
        lengths = (y != PAD).sum(-1).clamp(min=1)
        states, _ = self.lstm(embedded, lengths, context.last, masks)
        return self._logits(states, context)

    def greedy(self, context: Context) -> Tensor:
        """Logits (B, longest, V) where each token is the likeliest after those before it."""
        token = torch.full_like(context.real[:, 0], START, dtype=torch.int64)
        state, found = [(context.last, context.last)] * self.layers, []
        for _ in range(self.longest):
            state = self.lstm.step(self.embedding[token], state)
            logits = self._logits(state[-1][0][:, None], context)[:, 0]
            found.append(logits)
            token = logits.argmax(-1)
        return torch.stack(found, 1)

    def beam(self, context: Context, beams: int) -> Tensor:
        """Scores (B, longest, V) that are largest at the tokens of the likeliest answer found.

        Of each command the likeliest beginnings are kept, `beams` of them, and each is
        continued with every token; an answer that has ended stays as it is. The score is
        the sum of the tokens' log-probabilities, whatever the length.
        """
        batch, vocabulary = len(context.last), self.n_outputs

        def spread(value: Tensor) -> Tensor:
            return value[:, None].expand(-1, beams, *value.shape[1:]).flatten(0, 1)

        wide = Context(*(spread(value) for value in context))
        token = torch.full_like(wide.real[:, 0], START, dtype=torch.int64)
        state = [(wide.last, wide.last)] * self.layers
        # One beginning for now: the others are copies of it.
        best = torch.arange(beams, device=token.device) == 0
        score = torch.where(best, 0.0, -torch.inf).to(wide.last.dtype).expand(batch, -1)
        over = torch.zeros(batch, beams, dtype=torch.bool, device=token.device)
        only_pad = torch.where(
            torch.arange(vocabulary, device=token.device) == PAD, 0.0, -torch.inf
        )
        answer = token.new_zeros(batch, beams, 0)
        for _ in range(self.longest):
            state = self.lstm.step(self.embedding[token], state)
            logits = self._logits(state[-1][0][:, None], wide)[:, 0]
            more = logits.log_softmax(-1).unflatten(0, (batch, beams))
            more = torch.where(over[..., None], only_pad.to(more), more)
            score, chosen = (score[..., None] + more).flatten(1).topk(beams, -1)
            origin, token = chosen // vocabulary, chosen % vocabulary
            over = over.gather(1, origin) | (token == END)
            old = answer.gather(1, origin[..., None].expand(-1, -1, answer.shape[-1]))
            answer = torch.cat([old, token[..., None]], -1)
            at = origin[..., None].expand(-1, -1, self.width)
            state = [
                (_gathered(h, at, batch, beams), _gathered(c, at, batch, beams)) for h, c in state
            ]
            token = token.flatten()
        likeliest = answer[:, 0]  # topk sorts
        return F.one_hot(likeliest, vocabulary).to(score.dtype).log().clamp(min=NEVER)

    def _logits(self, states: Tensor, context: Context) -> Tensor:
        """Logits (B, M, V) from the decoder's states (B, M, H), by attention to the command."""
        scores = states @ context.steps.mT / self.width**0.5  # (B, M, L)
        scores = torch.where(context.real[:, None], scores, NEVER)
        seen = torch.cat([states, scores.softmax(-1) @ context.steps], -1)
        out: Tensor = self.out(self.attended(seen).tanh())
        return out


class MemorySeq2Seq(Seq2Seq):
    """Commands to action sequences in the light of a support set.

    A pass without a memory is one with an empty memory.

    Args: as `Seq2Seq`.

    Reference:
        arXiv:1906.05381, section 3 and its published code. Differs from them as
        `Seq2Seq` does.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        longest: int,
        width: int = 200,
        layers: int = 2,
        dropout: float = 0.5,
        packed: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            n_inputs,
            n_outputs,
            longest=longest,
            width=width,
            layers=layers,
            dropout=dropout,
            packed=packed,
            seed=seed,
        )
        generator = torch.Generator().manual_seed(seed + 1)
        self.actions = Encoder(n_outputs, width, layers, dropout, generator, packed=packed)
        self.recalled = dense(2 * width, width, generator)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits (B, M, V), with nothing in memory."""
        nothing = self.out.weight.new_zeros(1, self.width)
        memory = Memory(nothing, nothing, torch.zeros(1, dtype=torch.bool, device=x.device))
        context = self.recall(self.encode(x), memory)
        return self.greedy(context) if y is None else self.told(context, y)

    def memorise(self, x: Tensor, y: Tensor, real: Tensor) -> Memory:
        """A support set, (S, L) and (S, M), as keys and values."""
        return Memory(self.encode(x).last, self.stored(y), real)

    def stored(self, y: Tensor, key: Tensor | None = None) -> Tensor:
        """Values (S, H) of action sequences (S, M)."""
        # A row that only pads has no token: one step of PAD keeps its numbers finite.
        some = torch.where((y != PAD).any(-1, keepdim=True), y, END)
        value: Tensor = self.actions(some, key)[1]
        return value

    def recall(self, context: Context, memory: Memory) -> Context:
        """A command's states, each with what the memory holds for it."""
        scores = context.steps @ memory.key.mT / self.width**0.5  # (B, L, S)
        weight = torch.where(memory.real, scores, NEVER).softmax(-1)
        # With nothing in memory, nothing is recalled: weights of padding are no weights.
        found = (weight * memory.real) @ memory.value
        steps = self.recalled(torch.cat([context.steps, found], -1)).tanh()
        end = context.real.sum(-1) - 1
        at = end[:, None, None].expand(-1, 1, steps.shape[-1])
        return Context(steps, steps.gather(1, at)[:, 0], context.real)


def _gathered(value: Tensor, at: Tensor, batch: int, beams: int) -> Tensor:
    rows: Tensor = value.unflatten(0, (batch, beams)).gather(1, at).flatten(0, 1)
    return rows


def _dropped(
    part: Encoder | Seq2Seq, tokens: Tensor, key: Tensor | None, *, ways: int
) -> tuple[Tensor, list[Tensor | None]]:
    """Embedded tokens (B, L, H), and factors of dropout for the states between layers."""
    embedded = part.embedding[tokens]
    more = part.lstm.layers - 1
    if key is None or not part.dropout:
        return embedded, [None] * more
    length, width = embedded.shape[1:]
    first, *masks = [
        kept(keys.fold(key, i), (length, width * (ways if i else 1)), part.dropout, embedded.dtype)
        for i in range(1 + more)
    ]
    return embedded * first, [*masks]


def _embedding(n_tokens: int, width: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(n_tokens, width).normal_(generator=generator))
