"""MLC: compositional rules learned from a few examples by a transformer that has met many.

Lake and Baroni (2023), Human-like systematic generalization through a meta-learning neural
network, Nature 623:115-121, Methods. Meta-training over episodes whose words mean something
else each time; an episode's study examples are read, and

    loss = mean over tokens of queries, and study examples asked again, of
           -log p(token | tokens before it, query, study)

Where a study example is one word and one symbol, it says what that word means. With `told` above 0
there is a second loss, which a query does not show: of every word that has a meaning, its symbol is
to be told from the encoded examples; of every symbol, its word, and where that stands in the
example's own command.

Nothing is updated for a task: what it teaches is in the encoded examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import Learner, State
from tegu.losses import Loss, masked_mean, token_cross_entropy
from tegu.models.mlc import Study
from tegu.models.seq2seq import check_dropout


@dataclass(frozen=True, kw_only=True)
class Mlc(Learner):
    """Queries answered from study examples in one pass.

    Args:
        model: `tegu.models.StudyTransformer`, or a module with its `study`, `answer` and
            `generate`.
        dropout: share of activations dropped while meta-training, on embeddings and on what
            each block adds.
        recall: study examples that are asked as queries too, while meta-training; -1 for all.
        told: weight of the second loss, while meta-training. It needs a model that `tells`. Where
            no study example is one word and one symbol, it is 0.
        views: how many times a new task is read, after meta-training: as it is, then with all
            words and all symbols under names of one another. The answer of a query is the one
            that most views agree on. Only where no word has a meaning that outlives a task.

    Reference:
        Nature 623:115-121 and the authors' code, brendenlake/MLC. Differs from them: as
        `StudyTransformer` says; the second loss is not theirs; each episode's mean over tokens
        counts alike; no dropout on attention weights or inside the feed-forward pair; Adam with
        its usual betas (in the recipes Muon, with weight decay), where theirs has 0.9 and 0.95 and
        an epoch of warming up. On SCAN the authors have another code and another network,
        brendenlake/MLC-ML, whose encoder reads a query joined to one study example at a time.
    """

    name: ClassVar[str] = "mlc"
    targets: ClassVar[tuple[str, ...]] = ("sequences",)
    network: ClassVar[Mapping[str, Any]] = {"name": "study-transformer"}
    start: ClassVar[Mapping[str, Any]] = {"train.outer_lr": 0.001}
    later: ClassVar[tuple[str, ...]] = ("views",)

    loss: Loss = field(default=token_cross_entropy, repr=False)
    dropout: float = 0.1
    recall: int = -1
    told: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = "study", "answer", "generate", "n_inputs", "n_outputs"
        if missing := [name for name in needed if not hasattr(self.model, name)]:
            raise InputError(
                f"{type(self.model).__name__} without `{missing[0]}`",
                "a network that reads study examples, as tegu.models.StudyTransformer",
                "Write model.name=study-transformer, or give your network that attribute.",
            )
        check_dropout(self.dropout)
        check_range("told", self.told, 0, todo="Write 0 or 0.3.")
        if self.told and not getattr(self.model, "tells", 0):
            raise InputError(
                f"told is {self.told} with a network that does not tell",
                "a StudyTransformer with `tells`",
                "Write model.tells=true, or leave told out.",
            )
        check_range("recall", self.recall, -1, todo="Write -1.")
        check_range("views", self.views, 1, todo="Write 1, or 8.")

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        if training or self.views == 1:
            return {"study": self.call("study", params, *support)}
        words, symbols = (
            self._names(keys.fold(key, i), count)  # type: ignore[arg-type]
            for i, count in enumerate((self.model.n_inputs, self.model.n_outputs))
        )

        def viewed(words: Tensor, symbols: Tensor) -> Any:
            return self.call("study", params, words[support.x], symbols[support.y], support.mask)

        return {"study": vmap(viewed)(words, symbols), "words": words, "symbols": symbols}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        def answered(study: Any, query: Tensor) -> Tensor:
            out: Tensor = self.call("generate", params, Study(*study), query)
            return out

        if "words" not in state:
            return answered(state["study"], query)
        scores = vmap(lambda study, names: answered(study, names[query]))(
            state["study"], state["words"]
        )  # (V, Q, M, N)
        scores = vmap(lambda scores, names: scores[..., names])(scores, state["symbols"])
        return agreed(scores)

    def _names(self, key: Tensor, count: int) -> Tensor:
        """Tokens under other names, (V, count): the first as they are, none of the special ones."""
        tokens, own = torch.arange(count, device=key.device), []
        for view in range(self.views):
            drawn = keys.permutation(keys.fold(key, view), count - WORDS) + WORDS
            own.append(torch.cat([tokens[:WORDS], drawn]) if view else tokens)
        return torch.stack(own)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        support, asked = episode
        rows = [torch.arange(len(half.mask), device=key.device) for half in episode]
        studied, answered = (keys.fold(keys.fold(key, i), row) for i, row in enumerate(rows))
        study = self.call("study", params, *support, _dropout(self.dropout, studied))
        if self.recall:
            again = rows[0]
            if self.recall > 0:
                drawn = keys.fold(keys.fold(key, 2), rows[0])
                last = torch.iinfo(drawn.dtype).max  # padding is never drawn before an example
                again = drawn.masked_fill(~support.mask, last).argsort()[: self.recall]
            pairs = zip(asked, support, strict=True)
            asked = Examples(*(_joined(q, s.index_select(0, again)) for q, s in pairs))
            answered = torch.cat([answered, keys.fold(keys.fold(key, 3), again)])
        drop = _dropout(self.dropout, answered)
        loss = self.loss(self.call("answer", params, study, asked.x, asked.y, drop), asked)
        if self.told:
            said = self.call("tell", params, study)
            loss = loss + self.told * telling_loss(said, support)
        return loss


def telling_loss(said: tuple[Tensor, ...], support: Examples) -> Tensor:
    """Cross-entropy of what tokens of study examples are to tell, each of three means by itself.

    Args:
        said: scores of words, of symbols and of places, `StudyTransformer.tell`.
        support: the S study examples, of L words and M symbols each.
    """
    words, symbols, places = said
    x, y = support.x, support.y
    plain = support.mask & ((x != PAD).sum(-1) == 1) & ((y != PAD).sum(-1) == 2)  # END is one
    word, symbol = x[:, 0] * plain, y[:, 0] * plain
    # What has no meaning keeps PAD, and is not asked; neither are PAD and END, which 0 stands for.
    of_symbol = torch.zeros_like(symbols[0], dtype=x.dtype).scatter(0, symbol, word)
    of_word = torch.zeros_like(words[0], dtype=x.dtype).scatter(0, word, symbol)
    found = of_symbol[y] * (y >= WORDS)  # (S, M)
    asked = of_word[x] * (x >= WORDS)  # (S, L)
    rows = x.shape[0], x.shape[1] + y.shape[1]
    words, symbols, places = (part.unflatten(0, rows) for part in (words, symbols, places))
    length = x.shape[1]
    there = (x[:, None] == found[..., None]) & (found != PAD)[..., None]  # (S, M, L)
    where = F.pad(there, (0, places.shape[-1] - length)).to(places.dtype)
    share = where / where.sum(-1, keepdim=True).clamp(min=1)
    placed = -(share * places[:, length:].log_softmax(-1)).sum(-1)
    return (
        token_cross_entropy(words[:, length:], support._replace(y=found))
        + token_cross_entropy(symbols[:, :length], support._replace(y=asked))
        + masked_mean(placed, there.any(-1))
    )


def agreed(scores: Tensor) -> Tensor:
    """Scores (Q, M, N) of one view of (V, Q, M, N): whose answer most views have, query by query.

    An answer is the likeliest tokens up to their END. Of those with as many views the one that
    a view is surest of.
    """
    likely, tokens = scores.log_softmax(-1).max(-1)
    ends = tokens == END
    tokens = tokens.masked_fill(ends.cumsum(-1) > 0, END)
    said = ends.cumsum(-1) - ends.long() == 0  # up to the first END, and that too
    sure = (likely * said).sum(-1).exp()  # (V, Q), 1 at most
    votes = (tokens[:, None] == tokens[None]).all(-1).sum(1) + sure / 2
    at = votes.argmax(0)[None, :, None, None].expand(1, *scores.shape[1:])
    return scores.gather(0, at)[0]


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """Rows of tokens one after the other, padded to the longer kind; or masks."""
    if one.ndim == 1:
        return torch.cat([one, other])
    size = max(one.shape[1], other.shape[1])
    return torch.cat([F.pad(x, (0, size - x.shape[1]), value=PAD) for x in (one, other)])


def _dropout(rate: float, rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Dropout of (G, ...), where each row's masks are functions of its key, new in each call."""
    calls = 0
    least = round(rate * 256)  # eight bytes of a word decide on eight activations

    def drop(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if not least:
            return x
        size = x[0].numel()
        words = keys.bits(keys.fold(rows, calls), -(-size // 8))  # (G, size / 8)
        byte = (words[..., None] >> torch.arange(0, 64, 8, device=x.device)) & 255
        kept = byte.flatten(1)[:, :size].view(x.shape) >= least
        return x * kept / (1 - least / 256)

    return drop
