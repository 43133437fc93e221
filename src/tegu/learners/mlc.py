"""MLC: compositional rules learned from a few examples by a transformer that has met many.

Lake and Baroni (2023), Human-like systematic generalization through a meta-learning neural
network, Nature 623:115-121, Methods. Meta-training over episodes whose words mean something
else each time; an episode's study examples are read, and

    loss = mean over tokens of queries, and study examples asked again, of
           -log p(token | tokens before it, query, study)

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
from tegu.losses import Loss, token_cross_entropy
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
        views: how many times a new task is read, after meta-training: as it is, then with all
            words and all symbols under names of one another. The answer of a query is the one
            that most views agree on. Only where no word has a meaning that outlives a task.

    Reference:
        Nature 623:115-121 and the authors' code, brendenlake/MLC. Differs from them: as
        `StudyTransformer` says; each episode's mean over tokens counts alike; no dropout on
        attention weights or inside the feed-forward pair; Adam with its usual betas and without
        weight decay, where theirs has 0.9 and 0.95 and an epoch of warming up. On SCAN
        the authors have another code and another network, brendenlake/MLC-ML, whose encoder reads
        a query joined to one study example at a time.
    """

    name: ClassVar[str] = "mlc"
    targets: ClassVar[tuple[str, ...]] = ("sequences",)
    network: ClassVar[Mapping[str, Any]] = {"name": "study-transformer"}
    start: ClassVar[Mapping[str, Any]] = {"train.outer_lr": 0.001}
    later: ClassVar[tuple[str, ...]] = ("views",)

    loss: Loss = field(default=token_cross_entropy, repr=False)
    dropout: float = 0.1
    recall: int = -1
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
        return self.loss(self.call("answer", params, study, asked.x, asked.y, drop), asked)


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
