"""Learning a task by some steps of an optimiser, from weights that all tasks share.

The task-learning half of Reptile, of joint training, and of whatever else
meta-learns where gradient descent should start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tegu import keys
from tegu.episodes import Examples
from tegu.errors import InputError, check_range
from tegu.inner import InnerOptimiser, Params, gradient, optimiser
from tegu.learners.learner import Learner, State


def cycle(key: Tensor, mask: Tensor, *, batch: int, steps: int) -> Tensor:
    """Rows of the mini-batches of an inner loop: shape (steps, batch), int64.

    Real rows are shuffled, dealt out, and shuffled again when they run out,
    a batch spanning the seam if need be; padding is never dealt.

    Args:
        key: 0-d int64.
        mask: shape (S,) bool, at least one row real.
        batch: rows per mini-batch.
        steps: number of mini-batches.
    """
    dealt = torch.arange(steps * batch, device=mask.device)
    real = mask.sum()
    order = keys.bits(keys.fold(key, dealt // real), len(mask))  # one order for each epoch
    order = torch.where(mask, order >> 1, torch.iinfo(torch.int64).max).argsort(-1)
    return order.gather(-1, (dealt % real)[:, None]).reshape(steps, batch)


@dataclass(frozen=True, kw_only=True)
class FineTune(Learner):
    """Mini-batch steps of an inner optimiser on the support set.

    Args:
        inner_optimiser: "adam" or "sgd".
        inner_lr: its step size.
        momentum: of sgd.
        beta1: of adam; 0 keeps no running mean.
        inner_steps: steps per task while meta-training.
        inner_batch: rows of a mini-batch while meta-training; 0 for the whole
            support set in each step.
        eval_steps: steps per task after meta-training.
        eval_batch: rows of a mini-batch after meta-training; 0 likewise.
        carry: the optimiser's state is meta-learned with the weights, so that a
            task goes on from it; otherwise every task starts afresh. Only for the
            optimisers of `carries`, whose state the algorithm has a rule for.
        summed: the loss of a mini-batch is the sum over its rows in units of
            `inner_batch`: the mean while meta-training, and less for smaller
            batches after it. Otherwise, and where a step takes the whole support set,
            it is the mean.
    """

    targets: ClassVar[tuple[str, ...]] = ("classes", "numbers", "sequences")
    later: ClassVar[tuple[str, ...]] = ("eval_steps", "eval_batch")
    carries: ClassVar[tuple[str, ...]] = ()

    inner_optimiser: str = "adam"
    inner_lr: float = 1e-3
    momentum: float = 0.0
    beta1: float = 0.0
    inner_steps: int = 5
    inner_batch: int = 10
    eval_steps: int = 50
    eval_batch: int = 5
    carry: bool = False
    summed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("inner_steps", 1), ("inner_batch", 0), ("eval_batch", 0)):
            check_range(name, getattr(self, name), least)
        check_range("eval_steps", self.eval_steps, 0)
        check_range("inner_lr", self.inner_lr, above=0, todo="Try 0.001 with adam.")
        for name in ("momentum", "beta1"):
            check_range(name, getattr(self, name), 0, below=1, todo="Try 0.9, or 0.")
        _ = self.optimiser  # an unknown name is an error here, not in the first step
        if self.carry and self.inner_optimiser not in self.carries:
            raise InputError(
                f"carry with {self.inner_optimiser} and {type(self).__name__}",
                "an optimiser that every task starts afresh",
                "Leave out carry.",
            )

    @property
    def optimiser(self) -> InnerOptimiser:
        """The update rule of the inner loop."""
        return optimiser(
            self.inner_optimiser, lr=self.inner_lr, momentum=self.momentum, beta1=self.beta1
        )

    def init(self) -> Params:
        """Initial weights, and the optimiser's state under names that begin with "inner/"."""
        weights = super().init()
        state = self.optimiser.init(weights) if self.carry else {}
        return {**weights, **{f"inner/{name}": value for name, value in state.items()}}

    def adaptable(self, params: Params) -> Params:
        """What a task changes: all weights, unless an algorithm says otherwise."""
        return split(params)[0]

    def steps(self, *, training: bool) -> int:
        return self.inner_steps if training else self.eval_steps

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        weights, inner = self.adaptable(params), split(params)[1]
        state = {
            "weights": weights,
            "inner": inner if self.carry else self.optimiser.init(weights),
            "loss": next(iter(weights.values())).new_zeros(()),
            "support": self.kept(support),
        }
        if batch := self.inner_batch if training else self.eval_batch:
            steps = self.steps(training=training)
            state["order"] = cycle(key, support.mask, batch=batch, steps=steps)
        return state

    def step(self, params: Params, state: State, support: Examples, index: Tensor) -> State:
        grads, value = self.gradient(params, state, support, index)
        weights, inner = self.move(params, state, grads, index)
        return {**state, "weights": weights, "inner": inner, "loss": value}

    def gradient(
        self, params: Params, state: State, support: Examples, index: Tensor
    ) -> tuple[Params, Tensor]:
        """Gradient of `batch_loss` by the task's weights, and its value."""

        def loss(weights: Params) -> Tensor:
            return self.batch_loss(params, {**state, "weights": weights}, support, index)

        return gradient(loss, state["weights"])

    def batch_loss(self, params: Params, state: State, support: Examples, index: Tensor) -> Tensor:
        """Loss of the task's weights on the mini-batch of step `index`."""
        batch, mask, scale = self.batch(state, support, index)
        weights = {**params, **state["weights"]}
        return scale * self.loss(self.forward(weights, batch.x, mask, targets=batch.y), batch)

    def batch(
        self, state: State, support: Examples, index: Tensor
    ) -> tuple[Examples, Tensor | None, float]:
        """The mini-batch of step `index`, which of its rows are real, and its loss's factor."""
        if "order" not in state:
            return support, support.mask, 1.0
        rows = row(state["order"], index)
        scale = len(rows) / self.inner_batch if self.summed and self.inner_batch else 1.0
        return Examples(*(field[rows] for field in support)), None, scale

    def move(
        self, params: Params, state: State, grads: Params, index: Tensor
    ) -> tuple[Params, Params]:
        """Weights after one update, and the optimiser's state; `index` numbers the step."""
        return self.optimiser.update(state["weights"], grads, state["inner"])

    def finish(self, state: State, *, training: bool) -> State:
        done = ("order",) if training else ("order", "inner", "loss")
        return {k: v for k, v in state.items() if k not in done}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        return self.answer({**params, **state["weights"]}, state, query, mask)

    def query_loss(self, params: Params, state: State, query: Examples) -> Tensor:
        if not self.generates():
            return super().query_loss(params, state, query)
        weights = {**params, **state["weights"]}
        return self.loss(self.forward(weights, query.x, query.mask, targets=query.y), query)


def split(params: Params) -> tuple[Params, Params]:
    """Weights, and the optimiser's state."""
    weights = {k: v for k, v in params.items() if not k.startswith("inner/")}
    inner = {k.removeprefix("inner/"): v for k, v in params.items() if k.startswith("inner/")}
    return weights, inner


def row(values: Tensor, at: Tensor) -> Tensor:
    """Row `at`, 0-d int64, of values (k, ...)."""
    return values.index_select(0, at.reshape(1)).squeeze(0)
