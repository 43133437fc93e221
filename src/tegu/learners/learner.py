"""The contract of a learner: pure functions for one episode.

| question | function |
|---|---|
| what is meta-learned? | `init()` |
| phase 2, learn a task | `begin`, then `step` as often as `steps` says |
| use what was learned | `predict` |
| phase 1, learn to learn | `outer_loss`, or `outer_update` where the update is no gradient |

Task learning is cut into steps because the engine compiles one step, and runs
it for many episodes at once; `adapt` strings the steps together. Nothing here
knows the engine, and no function changes its arguments or the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tegu.episodes import Episode, Examples
from tegu.errors import InputError, unknown
from tegu.inner import Params
from tegu.losses import Loss, cross_entropy
from tegu.models.norm import converted, statistics

State = dict[str, Any]
NORMALISATIONS = ("support", "transductive", "running")


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What every algorithm shares; an algorithm fills in the questions above.

    Args:
        model: any module; called through `torch.func.functional_call`.
        loss: of outputs and targets, `tegu.losses.cross_entropy` or your own.
        normalisation: where batch normalisation takes its statistics from when
            queries are answered. "support": the support set plus the one query;
            "transductive": all queries of the episode together; "running": the
            buffers of the model.
    """

    name: ClassVar[str]

    model: nn.Module = field(repr=False)
    loss: Loss = field(default=cross_entropy, repr=False)
    normalisation: str = "support"

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise unknown("normalisation", self.normalisation, NORMALISATIONS)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise InputError(
                "a model without trainable parameters",
                "at least one parameter that requires a gradient",
                "Unfreeze the layers that tasks should share.",
            )

    def for_ways(self, n_way: int) -> Learner:
        """The learner for tasks of n_way classes: itself, unless it has a setting `n_way`."""
        own = any(f.name == "n_way" for f in fields(self))
        return replace(self, n_way=n_way) if own else self  # type: ignore[call-arg]

    # What is meta-learned?

    def init(self) -> Params:
        """The model's own trainable parameters, as values that share no memory with it."""
        return {
            name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad
        }

    # Phase 2: learn a task.

    def steps(self, *, training: bool) -> int:
        """How many steps a task is learnt in, while meta-training or after."""
        return 0

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        """State before the first step. `key` is the episode's source of random numbers."""
        raise TypeError(f"{type(self).__name__} has no begin()")

    def step(self, params: Params, state: State, support: Examples, index: Tensor) -> State:
        """State after step `index` (0-d int64)."""
        raise TypeError(f"{type(self).__name__} has no step(), yet steps() is above 0")

    def finish(self, state: State) -> State:
        """What is left of the state once a task is learnt: all that `predict` needs."""
        return state

    def adapt(
        self, params: Params, support: Examples, key: Tensor, *, training: bool = False
    ) -> State:
        """Learn one task from its support set."""
        state = self.begin(params, support, key, training=training)
        for index in range(self.steps(training=training)):
            state = self.step(params, state, support, torch.tensor(index, device=key.device))
        return self.finish(state)

    # Use what was learned.

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        """Outputs for queries: (Q, ...) and mask (Q,) to (Q, N) or (Q, D)."""
        raise TypeError(f"{type(self).__name__} has no predict()")

    # Phase 1: learn to learn. An algorithm overrides `outer_update` or keeps this loss.

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss of the adapted learner on the query set; the engine takes its gradient."""
        state = self.adapt(params, episode.support, key, training=True)
        outputs = self.predict(params, state, episode.query.x, episode.query.mask)
        return self.loss(outputs, episode.query)

    outer_update: ClassVar[Callable[..., Params] | None] = None

    def features(self, params: Params, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The representation that all tasks share: (B, ...) to (B, D), by `model.body`.

        Batch normalisation sees the rows that `mask` marks, or the buffers under "running".
        """
        if not callable(getattr(self.model, "body", None)):
            raise InputError(
                f"{type(self.model).__name__} without a module or method named body",
                "a model whose feature extractor is its `body`",
                "Name that part of the model `body`.",
            )
        known = {name for name, _ in self.model.named_parameters()}
        inside = {f"model.{name}": p for name, p in params.items() if name in known}
        return self._call(_Body(self.model), inside, x, mask)

    # Helpers for algorithms.

    def forward(self, params: Params, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One pass of the model; batch normalisation sees the rows that `mask` marks."""
        return self._call(self.model, params, x, mask)

    def _call(self, module: nn.Module, params: Params, x: Tensor, mask: Tensor | None) -> Tensor:
        source = "running" if self.normalisation == "running" else "batch"
        # Copies, since torch.nn.BatchNorm counts its batches in place.
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        with statistics(source, mask, foreign=bool(converted(module))):
            out: Tensor = functional_call(module, {**buffers, **params}, (x,))
        return out

    def uses_statistics(self) -> bool:
        """Whether an answer depends on the other rows of its batch."""
        from tegu.models.norm import BatchNorm

        layers = [m for m in self.model.modules() if isinstance(m, BatchNorm)]
        return bool(layers or converted(self.model)) and self.normalisation != "running"

    def kept(self, support: Examples) -> tuple[Tensor, ...]:
        """What a state must hold of the support set for `answer`: (x, mask), or nothing."""
        return (support.x, support.mask) if self.uses_statistics() else ()

    def answer(
        self, params: Params, state: State, query: Tensor, mask: Tensor, *, features: bool = False
    ) -> Tensor:
        """Outputs for queries, or their features, under the learner's normalisation.

        "support" passes each query through the model alone with the support set,
        which `state["support"]` then holds as (x, mask): see `kept`.
        """
        run = self.features if features else self.forward
        if self.normalisation != "support" or not self.uses_statistics():
            return run(params, query, mask)
        support_x, support_mask = state["support"]
        seen = torch.cat([support_mask, support_mask.new_ones(1)])

        def alone(item: Tensor) -> Tensor:
            return run(params, torch.cat([support_x, item[None]]), seen)[-1]

        # One after another: a support set for each query at once would not fit the caches.
        return torch.stack([alone(item) for item in query])


class _Body(nn.Module):
    """A model cut off behind its body, which may be a module or a method."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model.body(x)  # type: ignore[operator]
        return out
