"""Meta sequence-to-sequence learning: a support set read into a key-value memory.

Lake (2019), Compositional generalization through meta sequence-to-sequence
learning, arXiv:1906.05381:

    memory  = (last state of each support command, last state of its actions)
    context = each state of a query command, with what attention finds in memory
    loss    = cross-entropy of the actions of queries, and of the support pairs asked again

Nothing of the network changes from task to task; a task is its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import Learner, State
from tegu.losses import Loss, token_cross_entropy
from tegu.models.seq2seq import Context, Memory, MemorySeq2Seq, Seq2Seq


@dataclass(frozen=True, kw_only=True)
class MetaSeq2Seq(Learner):
    """A sequence network whose support set is its memory; or, without one, trained plainly.

    Args:
        model: `MemorySeq2Seq`; or `Seq2Seq`, which sees no support set and learns to
            answer as ordinary training would, for comparison.
        rehearse: in training, support pairs are asked again as queries, where there is a memory.
        beam: width of the search for the likeliest answer; 1 takes the likeliest
            token each time.

    Reference:
        arXiv:1906.05381 and its published code: 10,000 updates of one episode each,
        Adam with 0.001 and from the middle on 0.0001, dropout 0.5. Differs from them:
        gradients are not clipped; a support command asked again has the dropout that it had in
        memory; the step size falls as the recipe says; without memory no support pairs are asked.
    """

    name: ClassVar[str] = "seq2seq"
    targets: ClassVar[tuple[str, ...]] = ("sequences",)
    start: ClassVar[Mapping[str, Any]] = {
        "model.name": "memory-seq2seq",
        "train.outer_lr": 0.001,
        "engine.compile": "off",  # rows are packed by their lengths, which no tracer knows
    }
    start_numbers: ClassVar[Mapping[str, Any]] = {}
    later: ClassVar[tuple[str, ...]] = ("beam",)

    loss: Loss = field(default=token_cross_entropy, repr=False)
    rehearse: bool = True
    beam: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, Seq2Seq):
            raise InputError(
                f"{type(self.model).__name__} as the network of seq2seq",
                "MemorySeq2Seq, or Seq2Seq for training without a memory",
                "Write model.name=memory-seq2seq.",
            )
        check_range("beam", self.beam, 1, todo="Write 1, or 5.")

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        if not isinstance(self.model, MemorySeq2Seq):
            return {"real": support.mask}
        memory = self.call("memorise", params, *support)
        return {"key": memory.key, "value": memory.value, "real": memory.real}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        def answer(net: Seq2Seq) -> Tensor:
            context = net.encode(query)
            if isinstance(net, MemorySeq2Seq):
                context = net.recall(context, Memory(state["key"], state["value"], state["real"]))
            return net.greedy(context) if self.beam == 1 else net.beam(context, self.beam)

        out: Tensor = self.call(answer, params)
        return out

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Teacher-forced loss on the queries, with dropout out of the episode's key."""
        support, query = episode

        def told(net: Seq2Seq) -> tuple[Tensor, Examples]:
            own, others = (_rows(keys.fold(key, i), half) for i, half in enumerate(episode))
            if not isinstance(net, MemorySeq2Seq):
                context = net.encode(query.x, keys.fold(others, 0))
                return net.told(context, query.y, keys.fold(others, 1)), query
            asked, rows, n = _joined(support, query), torch.cat([own, others]), len(own)
            context = net.encode(asked.x, keys.fold(rows, 0))
            value = net.stored(support.y, keys.fold(own, 2))
            memory = Memory(context.last[:n], value, support.mask)
            if not self.rehearse:
                context = Context(*(part[n:] for part in context))
                asked, rows = query, others
            return net.told(net.recall(context, memory), asked.y, keys.fold(rows, 1)), asked

        outputs, asked = self.call(told, params)
        return self.loss(outputs, asked)


def _rows(key: Tensor, half: Examples) -> Tensor:
    """A key for each row, whatever rows come after it."""
    return keys.fold(key, torch.arange(len(half.mask), device=key.device))


def _joined(one: Examples, two: Examples) -> Examples:
    """Two sets as one, padded to the wider."""

    def both(a: Tensor, b: Tensor) -> Tensor:
        if a.dim() == 1:
            return torch.cat([a, b])
        width = max(a.shape[1], b.shape[1])
        return torch.cat([F.pad(v, (0, width - v.shape[1])) for v in (a, b)])

    return Examples(*(both(a, b) for a, b in zip(one, two, strict=True)))
