"""The gradient of an outer loss over the tasks of a meta-batch, in three ways that agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp, vmap

from tegu.engine.outer import OuterOptimiser, at_rate
from tegu.engine.precision import in_precision
from tegu.engine.trees import floats, map_tensors, with_floats
from tegu.episodes import Episode, Examples, select, size
from tegu.inner import Params
from tegu.learners.learner import SCHEDULED, TRACKED, Learner, State

MOMENTUM = 0.1  # share of a meta-iteration in the running statistics, as in torch

OuterLoss = Callable[[Params, Episode, Tensor], tuple[Tensor, Params]]
"""Of one episode: the loss, and the batch statistics that were seen."""

Found = tuple[Params, Params, Tensor]
"""The gradient by what is learnt, batch statistics, and the loss: means over tasks."""


def learnt(params: Params) -> Params:
    """What the outer optimiser changes: all but running statistics and scheduled values."""
    return {k: p for k, p in params.items() if not k.startswith((TRACKED, SCHEDULED))}


def moved(
    optimiser: OuterOptimiser, params: Params, outer: Params, found: Found, rate: Tensor
) -> tuple[Params, Params, Tensor]:
    """What an outer update by gradient changes: parameters, optimiser state; and the loss."""
    grads, seen, loss = found
    with torch.no_grad():
        new, outer = at_rate(optimiser, rate).update(learnt(params), grads, outer)
        tracked = {
            name: torch.lerp(params[name], value.to(params[name]), MOMENTUM)
            for name, value in seen.items()
        }
    return {**new, **tracked}, outer, loss


def side_by_side(loss: OuterLoss, params: Params, episodes: Episode, keys: Tensor) -> Found:
    """All tasks at once, under `vmap`."""

    def mean_loss(some: Params) -> tuple[Tensor, Params]:
        def one(episode: Episode, key: Tensor) -> tuple[Tensor, Params]:
            return loss({**params, **some}, episode, key)

        losses, seen = vmap(one)(episodes, keys)
        return losses.mean(), {name: value.mean(0) for name, value in seen.items()}

    grads, (value, seen) = grad_and_value(mean_loss, has_aux=True)(learnt(params))
    return grads, seen, value


def one_by_one(loss: OuterLoss, params: Params, episodes: Episode, keys: Tensor) -> Found:
    """One task after another; no task's graph outlives it."""
    total, n = None, size(episodes)
    for t in range(n):

        def one(some: Params, t: int = t) -> tuple[Tensor, Params]:
            return loss({**params, **some}, select(episodes, t), keys[t])

        grads, (value, seen) = grad_and_value(one, has_aux=True)(learnt(params))
        found = (grads, seen, value)
        total = found if total is None else map_tensors(torch.add, total, found)
    mean: Found = map_tensors(lambda x: x / n, total)
    return mean


class StepByStep:
    """All tasks at once, one inner step after another, from the last back to the first.

    Chain rule by hand: with the states s_0, ..., s_k of the tasks only, the step from s_i is
    run again to pull the gradient by s_{i+1} back to s_i and the parameters. So memory hardly
    grows with the number of steps.

    Args:
        learner: one whose outer loss is that of its last inner step.
        precision: "fp32" or "bf16", of the passes through the model.
        step: (params, state, support, index) to the next state, of T tasks.
        fast_step: the same, for the way forward.
        made: compiles a function, or leaves it.
    """

    def __init__(
        self,
        learner: Learner,
        precision: str,
        step: Callable[..., State],
        fast_step: Callable[..., State],
        made: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        self.learner, self.precision = learner, precision
        self._step, self._fast_step, self._fast_pull = step, fast_step, made(self._pull)

    def __call__(self, params: Params, episodes: Episode, keys: Tensor) -> Found:
        support = episodes.support
        at = [
            torch.full((), index, device=keys.device)
            for index in range(self.learner.steps(training=True))
        ]
        with torch.no_grad():
            states = [self._begin(params, support, keys)]
            for index in at:
                states.append(self._fast_step(params, states[-1], support, index))
        (grads, back), loss = grad_and_value(self._end, argnums=(0, 1))(
            params, floats(states[-1]), states[-1], episodes.query
        )
        for index in reversed(at):
            states.pop()
            more, back = self._fast_pull(params, states[-1], support, index, tuple(back))
            grads = map_tensors(torch.add, grads, more)
        pull: Any = vjp(lambda params: floats(self._begin(params, support, keys)), params)[1]
        grads = map_tensors(torch.add, grads, pull(list(back))[0])
        return learnt(grads), {}, loss

    def _begin(self, params: Params, support: Examples, keys: Tensor) -> State:
        def one(support: Examples, key: Tensor) -> State:
            with in_precision(self.precision, key.device):
                return self.learner.begin(params, support, key, training=True)

        made: State = map_tensors(Tensor.contiguous, vmap(one)(support, keys))
        return made

    def _end(self, params: Params, moving: list[Tensor], state: State, query: Examples) -> Tensor:
        def one(state: State, query: Examples) -> Tensor:
            with in_precision(self.precision, query.x.device):
                last = self.learner.finish(state, training=True)
                return self.learner.query_loss(params, last, query)

        return vmap(one)(with_floats(state, moving), query).mean()

    def _pull(
        self, params: Params, state: State, support: Examples, index: Tensor, back: Any
    ) -> tuple[Params, tuple[Tensor, ...]]:
        """Pulls a gradient by the floats of a step's outcome back through the step."""

        def run(params: Params, moving: list[Tensor]) -> list[Tensor]:
            return floats(self._step(params, with_floats(state, moving), support, index))

        pull: Any = vjp(run, params, floats(state))[1]
        grads, moved = pull(list(back))
        return grads, tuple(moved)
