"""Runs a learner, written for one episode, on many episodes at once.

Under `vmap` every tensor of a learner's state gains a leading axis T. The inner
step, the unit that a run repeats thousands of times, can be compiled. A model
that `vmap` cannot run, because its control flow depends on data, say, is run in
a loop: same result, one warning that says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from tegu.engine.compiled import Compiled, lacks_memory
from tegu.engine.gradient import Found, StepByStep, learnt, moved, one_by_one, side_by_side
from tegu.engine.outer import OuterOptimiser
from tegu.engine.outer import outer_optimiser as made_optimiser
from tegu.engine.precision import chosen, in_precision
from tegu.engine.profile import part
from tegu.engine.recorded import Recorded
from tegu.engine.trees import map_tensors
from tegu.episodes import Episode, Examples, select, size
from tegu.errors import InputError, check_range, unknown
from tegu.inner import Params
from tegu.learners.learner import SCHEDULED, Learner, State, recording

VECTORISATIONS = ("auto", "vmap", "loop")


class Exchange(Protocol):
    """How an outer update over the tasks of several processes hears of the others' tasks.

    `tegu.engine.distribute.Meeting` is the one that there is.
    """

    first: int  # number of the first task here, among all of the meta-batch
    total: int  # tasks of the meta-batch

    def mean(self, tree: Any) -> Any:
        """Mean over all tasks, of the means over those here."""
        ...

    def sum(self, tree: Any) -> Any:
        """Sum over processes."""
        ...

    def gather(self, states: Any) -> Any:
        """The states of all tasks, from the states of those here."""
        ...


class Vectorised:
    """A learner over a leading axis of T episodes.

    Args:
        learner: any learner.
        vectorise: "vmap", "loop", or "auto": vmap, and loop where vmap fails.
        compile: whether to compile the inner step, or the outer gradient.
        precision: "fp32", or "bf16" for the passes through the model while
            task weights, optimiser state and outer update stay in fp32; "auto" for
            whichever this machine multiplies faster in.
        cuda_graphs: record whole updates, and the learning of tasks, as CUDA graphs, and
            replay them: of use where a GPU waits for the processor between small
            operations. Nothing on a CPU.
        checkpoint: keep only the task weights between inner steps and run each step
            again on the way back, so that memory hardly grows with their number.
        at_once: tasks of a meta-batch that run side by side; 0 for all. The others follow,
            and the outer update is the same, rounding aside: it bounds the memory.
        outer_optimiser: "adam" or "muon", `tegu.engine.outer`, where the learner has no outer
            update of its own.
        weight_decay: for muon.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        vectorise: str = "auto",
        compile: bool = False,
        precision: str = "fp32",
        cuda_graphs: bool = True,
        checkpoint: bool = False,
        at_once: int = 0,
        outer_optimiser: str = "adam",
        weight_decay: float = 0.0,
    ) -> None:
        if vectorise not in VECTORISATIONS:
            raise unknown("vectorisation", vectorise, VECTORISATIONS)
        self.learner, self.compile = learner, compile
        self._outer_optimiser, self._weight_decay = outer_optimiser, weight_decay
        self.optimiser = made_optimiser(outer_optimiser, learner, weight_decay)
        self.precision = chosen(precision, next(learner.model.parameters()).device)
        self.loop, self._tries = vectorise == "loop", vectorise == "auto"
        self._settled: set[str] = set()  # what has been found to run
        check_range("at_once", at_once, 0, todo="Write 0.")
        self.checkpoint, self._vectorise, self.at_once = checkpoint, vectorise, at_once
        if checkpoint and (
            learner.outer_update is not None
            or not learner.chained()
            or not learner.steps(training=True)
        ):
            raise InputError(
                f"checkpointed inner steps with {type(learner).__name__}",
                "a learner whose outer loss is that of its last inner step, as MAML's",
                "Switch engine.checkpoint off.",
            )
        if checkpoint and self.loop:
            raise InputError(
                "checkpointed inner steps, task by task",
                "tasks side by side, as few as need be",
                "Leave engine.vectorise out; engine.at_once=1 has one at a time.",
            )
        self.cuda_graphs = cuda_graphs
        self._replays = cuda_graphs and next(learner.model.parameters()).is_cuda

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            return Compiled(function) if compile else function

        def whole(function: Callable[..., Any]) -> Callable[..., Any]:
            return Recorded(function) if self._replays else function

        self._fast_step = made(self._step)
        self._checkpointed = StepByStep(learner, self.precision, self._step, self._fast_step, made)
        gradient = partial(side_by_side, self._loss)
        self._fast_gradient = made(gradient)
        self._slow_gradient = partial(one_by_one, self._loss)
        self._fast_update = made(partial(_updated, self.optimiser, gradient))
        self._slow_update = partial(_updated, self.optimiser, self._slow_gradient)
        self._whole_update = whole(self._gradient_update)
        self._whole_rule = whole(self._rule)
        self._whole_adapt = {
            training: whole(partial(self._adapt_vmap, training=training))
            for training in (True, False)
        }

    def of(self, learner: Learner, *, precision: str = "") -> Vectorised:
        """Another learner under the same settings, or in another precision."""
        return Vectorised(
            learner,
            vectorise=self._vectorise,
            compile=self.compile,
            precision=precision or self.precision,
            cuda_graphs=self.cuda_graphs,
            checkpoint=self.checkpoint,
            at_once=self.at_once,
            outer_optimiser=self._outer_optimiser,
            weight_decay=self._weight_decay,
        )

    def __str__(self) -> str:
        """How tasks are run, for people."""
        parts = ["task by task" if self.loop else "many tasks at once"]
        parts.append("compiled" if self.compile else "not compiled")
        parts += ["CUDA graphs"] if self._replays else []
        parts += ["inner steps checkpointed"] if self.checkpoint else []
        return ", ".join([*parts, self.precision])

    def _step(self, params: Params, state: State, support: Examples, index: Tensor) -> State:
        with in_precision(self.precision, support.x.device):
            return vmap(self.learner.step, in_dims=(None, 0, 0, None))(
                params, state, support, index
            )

    def adapt(
        self, params: Params, support: Examples, keys: Tensor, *, training: bool = False
    ) -> State:
        """Learn T tasks: the state that each ends with, stacked."""
        state: State = self._either(
            self._whole_adapt[training],
            partial(self._adapt_loop, training=training),
            params,
            support,
            keys,
            tasks=len(keys),
            what="adapt",
        )
        return state

    def _adapt_vmap(
        self, params: Params, support: Examples, keys: Tensor, *, training: bool
    ) -> State:
        with torch.no_grad():

            def begin(support: Examples, key: Tensor) -> State:
                with in_precision(self.precision, support.x.device):  # heads pass features here
                    return self.learner.begin(params, support, key, training=training)

            # Tasks that start from the same weights share their memory until here.
            state: State = map_tensors(Tensor.contiguous, vmap(begin)(support, keys))
            for index in range(self.learner.steps(training=training)):
                at = torch.full((), index, device=keys.device)
                state = self._fast_step(params, state, support, at)
            return self.learner.finish(state, training=training)

    def _adapt_loop(
        self, params: Params, support: Examples, keys: Tensor, *, training: bool
    ) -> State:
        states = []
        for t in range(len(keys)):
            one = Examples(*(field[t] for field in support))
            with torch.no_grad(), in_precision(self.precision, one.x.device):
                states.append(self.learner.adapt(params, one, keys[t], training=training))
        stacked: State = map_tensors(lambda *tensors: torch.stack(tensors), *states)
        return stacked

    def predict(
        self, params: Params, state: State, query: Examples, *, learner: Learner | None = None
    ) -> Tensor:
        """Outputs for the queries of T episodes: (T, Q, N) or (T, Q, D).

        `learner` may differ from the one that adapted in its normalisation.
        """
        chosen = learner or self.learner

        def one(state: State, x: Tensor, mask: Tensor) -> Tensor:
            return chosen.predict(params, state, x, mask)

        def looped() -> Tensor:
            rows = [
                one(map_tensors(lambda s, t=t: s[t], state), query.x[t], query.mask[t])
                for t in range(len(query.mask))
            ]
            return torch.stack(rows)

        with torch.no_grad(), in_precision(self.precision, query.x.device):
            out: Tensor = self._either(
                lambda: vmap(one)(state, query.x, query.mask),
                looped,
                tasks=len(query.mask),
                what="predict",
            )
        return out

    def outer_state(self, params: Params) -> Params:
        """State of the outer optimiser before the first update; none for a rule of its own."""
        if self.learner.outer_update is not None:
            return {}
        return self.optimiser.init(learnt(params))

    def update(
        self,
        params: Params,
        outer: Params,
        episodes: Episode,
        keys: Tensor,
        *,
        outer_lr: float,
        done: float = 1.0,
        others: Exchange | None = None,
    ) -> tuple[Params, Params, Tensor]:
        """One meta-iteration: by the learner's own rule, or by gradient of its outer loss.

        Args:
            params: what is meta-learned.
            outer: state of the outer optimiser.
            episodes: T of them.
            keys: shape (T,) int64.
            outer_lr: step size.
            done: share of meta-training that lies behind, for the learner's `schedule`.
            others: where other processes have the rest of the meta-batch.

        Returns:
            New parameters, new state of the outer optimiser, and the loss.
        """
        some = next(iter(params.values()))
        rate = torch.full_like(keys[0], outer_lr, dtype=some.dtype)
        undivided = others is None and not self._in_parts(keys)
        if self.learner.outer_update is not None:
            if undivided and self._replays:
                with part("inner loop"):  # all of it, in a profile
                    params, loss = self._whole_rule(params, episodes, keys, rate)
            else:
                params, loss = self.outer_step(
                    params, episodes, keys, outer_lr=outer_lr, others=others
                )
            return params, outer, loss
        staged = {SCHEDULED + k: v.to(some) for k, v in self.learner.schedule(done).items()}
        now = {**params, **staged}
        if undivided and not self.checkpoint and (self.compile or self._replays):
            # One program for both: a small network's update takes two thirds of the time. In a
            # profile, all of it is the inner loop.
            with part("inner loop"):
                after = self._whole_update(now, outer, episodes, keys, rate)
        else:
            with part("inner loop"):
                found = self._outer(now, episodes, keys)
            with part("outer step"):
                if others:
                    found = others.mean(found)
                after = moved(self.optimiser, params, outer, found, rate)
        new, outer, loss = after
        return {**params, **new}, outer, loss.detach()

    def _gradient_update(
        self, params: Params, outer: Params, episodes: Episode, keys: Tensor, rate: Tensor
    ) -> tuple[Params, Params, Tensor]:
        todo = params, outer, episodes, keys, rate
        after: tuple[Params, Params, Tensor] = self._either(
            self._fast_update, self._slow_update, *todo, tasks=len(keys), what="update"
        )
        return after

    def outer_step(
        self,
        params: Params,
        episodes: Episode,
        keys: Tensor,
        *,
        outer_lr: float,
        others: Exchange | None = None,
    ) -> tuple[Params, Tensor]:
        """One outer update by the learner's own rule; returns the mean inner loss too."""
        learner: Any = self.learner
        with part("inner loop"):
            state = self._learnt_tasks(params, episodes, keys)
        with part("outer step"), torch.no_grad():
            if others and learner.outer_terms is not None:
                total = others.total
                terms = learner.outer_terms(params, state, first=others.first, total=total)
                terms, loss = others.sum((terms, state["loss"].sum() / total))
                return learner.outer_move(params, terms, total=total, outer_lr=outer_lr), loss
            if others:
                state = others.gather(state)
            return learner.outer_update(params, state, outer_lr=outer_lr), state["loss"].mean()

    def _rule(
        self, params: Params, episodes: Episode, keys: Tensor, rate: Tensor
    ) -> tuple[Params, Tensor]:
        learner: Any = self.learner
        state = self._learnt_tasks(params, episodes, keys)
        with torch.no_grad():
            return learner.outer_update(params, state, outer_lr=rate), state["loss"].mean()

    def _learnt_tasks(self, params: Params, episodes: Episode, keys: Tensor) -> State:
        """The states that the tasks of a meta-batch end with."""
        if self.learner.goes_on():
            return self._adapt_serially(params, episodes, keys)
        states = [
            self.adapt(params, one.support, at, training=True)
            for one, at in self._parts(episodes, keys)
        ]
        if len(states) == 1:
            return states[0]
        joined: State = map_tensors(lambda *parts: torch.cat(parts), *states)
        return joined

    def _adapt_serially(self, params: Params, episodes: Episode, keys: Tensor) -> State:
        """Each task starts from what the one before has handed over."""
        states, current = [], params
        for t in range(size(episodes)):
            one = select(episodes, slice(t, t + 1)).support
            state = self.adapt(current, one, keys[t : t + 1], training=True)
            current = self.learner.handover(current, map_tensors(lambda s: s[0], state))
            states.append(state)
        stacked: State = map_tensors(lambda *tensors: torch.cat(tensors), *states)
        return stacked

    def outer_gradient(
        self, params: Params, episodes: Episode, keys: Tensor
    ) -> tuple[Params, Tensor]:
        """Gradient and value of the outer loss, averaged over the T episodes."""
        grads, _, loss = self._outer(params, episodes, keys)
        return grads, loss

    def _outer(self, params: Params, episodes: Episode, keys: Tensor) -> Found:
        """Gradient, batch statistics and value of the outer loss."""
        total: Any = None
        for one, at in self._parts(episodes, keys):
            share = len(at) / len(keys)
            if self.checkpoint:
                with _memory_for(len(at)):
                    found = self._checkpointed(params, one, at)
            else:
                ways = self._fast_gradient, self._slow_gradient
                found = self._either(*ways, params, one, at, tasks=len(at), what="gradient")
            if share < 1:
                found = map_tensors(lambda x, share=share: x * share, found)
            total = found if total is None else map_tensors(torch.add, total, found)
        mean: Found = total
        return mean

    def _in_parts(self, keys: Tensor) -> bool:
        return 0 < self.at_once < len(keys)

    def _parts(self, episodes: Episode, keys: Tensor) -> Iterator[tuple[Episode, Tensor]]:
        """Tasks that run side by side: all of them, or so many at a time."""
        count = self.at_once or len(keys)
        for start in range(0, len(keys), count):
            rows = slice(start, start + count)
            yield select(episodes, rows), keys[rows]

    def _loss(self, params: Params, episode: Episode, key: Tensor) -> tuple[Tensor, Params]:
        with in_precision(self.precision, key.device), recording() as seen:
            loss = self.learner.outer_loss(params, episode, key)
        return loss, seen

    def _either(
        self,
        fast: Callable[..., Any],
        slow: Callable[..., Any],
        *args: Any,
        tasks: int,
        what: str,
    ) -> Any:
        """The fast way where it runs; where it never has, the slow one is there to fall back on."""
        alone = tasks == 1 and not self.compile  # has no use for vmap
        with _memory_for(1 if self.loop else tasks):
            if self.loop or alone:
                return slow(*args)
            if what in self._settled or not self._tries:
                return fast(*args)
            out = self._tried(fast, slow, *args)
        self._settled.add(what)
        return out

    def _tried(self, fast: Callable[..., Any], slow: Callable[..., Any], *args: Any) -> Any:
        """The fast way, and where it fails the slow one from then on."""
        try:
            return fast(*args)
        except RuntimeError as failure:
            if lacks_memory(failure):
                raise
            out = slow(*args)  # where this fails too, its error is the user's to see
            self.loop = True
            reason = str(failure).strip().splitlines()[0]
            warnings.warn(
                f"tasks run one by one, since vmap cannot run this model: {reason}",
                RuntimeWarning,
                stacklevel=4,
            )
            return out


def _updated(
    optimiser: OuterOptimiser,
    gradient: Callable[..., Found],
    params: Params,
    outer: Params,
    episodes: Episode,
    keys: Tensor,
    rate: Tensor,
) -> tuple[Params, Params, Tensor]:
    return moved(optimiser, params, outer, gradient(params, episodes, keys), rate)


@contextmanager
def _memory_for(tasks: int) -> Iterator[None]:
    """Says what to lower where so many tasks do not fit.

    Raises:
        InputError: the memory is short.
    """
    try:
        yield
    except RuntimeError as failure:
        if not lacks_memory(failure):
            raise
        if tasks == 1:
            raise InputError(
                "a task that does not fit the memory",
                "a smaller model, or fewer examples",
                "Lower model.width, train.n_query or the images' size.",
            ) from failure
        raise InputError(
            f"{tasks} tasks side by side, which do not fit the memory",
            "fewer, or a smaller model",
            "Lower engine.at_once in training, evaluate.at_once in evaluation.",
        ) from failure
