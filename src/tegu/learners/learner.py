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

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook

from tegu.episodes import Episode, Examples
from tegu.errors import InputError, InputTypeError, unknown
from tegu.inner import Params, untransformed
from tegu.losses import Loss, cross_entropy, gaussian
from tegu.models.norm import BatchNorm, layers, statistics, unbuffered
from tegu.models.passes import passed, survey

State = dict[str, Any]
NORMALISATIONS = ("support", "transductive", "running")
TRACKED = "statistics/"  # running statistics among what is meta-learned
SCHEDULED = "schedule/"  # values that follow the course of meta-training, beside what is learned


class _Recordings(threading.local):
    """The recordings under way, of each thread its own."""

    def __init__(self) -> None:
        self.open: list[Params] = []


_recordings = _Recordings()


@contextmanager
def recording() -> Iterator[Params]:
    """Collects the batch statistics of passes with `training=True`, by their names in `params`."""
    seen: Params = {}
    _recordings.open.append(seen)
    try:
        yield seen
    finally:
        _recordings.open.pop()


def count_weights(params: Params) -> int:
    """Numbers in what is meta-learned, but for an optimiser's state and running statistics."""
    beside = ("inner/", TRACKED)
    return sum(value.numel() for name, value in params.items() if not name.startswith(beside))


def record(seen: Params) -> None:
    """Tells a recording of statistics by their names in `params`; nothing without one."""
    if _recordings.open:
        _recordings.open[-1].update({name: value.detach() for name, value in seen.items()})


def untracked(name: str) -> InputError:
    """The error for running statistics that meta-training did not keep."""
    return InputError(
        f"normalisation 'running' where '{name}' was not tracked in meta-training",
        "what was meta-learned under normalisation 'running'",
        "Meta-train with learner.normalisation=running, or answer under support or transductive.",
    )


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What every algorithm shares; an algorithm fills in the questions above.

    Args:
        model: any module; called through `torch.func.functional_call`.
        loss: of outputs and targets, `tegu.losses.cross_entropy` or your own.
        normalisation: where batch normalisation takes its statistics from when
            queries are answered. "support": the support set plus the one query;
            "transductive": all queries of the episode together; "running": running
            means over meta-training where the learner tracks them, else the
            buffers that the model came with.
        body: name of the module or method of the model that gives features; ""
            where the model itself ends in features.
    """

    name: ClassVar[str]
    tracks: ClassVar[bool] = False  # whether running statistics are meta-learned
    headless: ClassVar[bool] = False  # whether the model is asked for features alone
    # What targets may be: classes (named anew in each task), numbers, sequences or samples.
    targets: ClassVar[tuple[str, ...]] = ("classes", "numbers")
    measure: ClassVar[str] = ""  # of `tegu.losses.MEASURES`, where it is not that of the targets
    # Section [model] of a recipe that names none, for a learner that needs a network of its own.
    network: ClassVar[Mapping[str, Any]] = {}
    # Settings to start from, by dotted key of a recipe: for classes, and for numbers.
    start: ClassVar[Mapping[str, Any]] = {"train.outer_lr": 0.001, "train.n_query": 5}
    start_numbers: ClassVar[Mapping[str, Any]] = {"train.outer_lr": 0.001}
    pretrains: ClassVar[bool] = False  # whether meta-training is classification of all classes
    later: ClassVar[tuple[str, ...]] = ()  # settings that meta-training makes no use of
    transductive: ClassVar[bool] = False  # whether a query's answer depends on the other queries

    model: nn.Module = field(repr=False)
    loss: Loss = field(default=cross_entropy, repr=False)
    normalisation: str = "support"
    body: str = "body"

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            given = self.model.__name__ if isinstance(self.model, type) else self.model
            raise InputTypeError(
                f"the model {given!s:.80}, a {type(self.model).__name__}",
                "a torch.nn.Module",
                "Write model=tegu.models.Mlp(8, 5), say.",
            )
        if self.normalisation not in NORMALISATIONS:
            raise unknown("normalisation", self.normalisation, NORMALISATIONS)
        own = any(isinstance(m, BatchNorm) for m in self.model.modules())
        if self.normalisation == "running" and own and not self.tracks:
            raise InputError(
                f"normalisation 'running' with {type(self).__name__}, which learns no running "
                "statistics",
                "support or transductive",
                "Write normalisation=support, or take a learner by metric or closed form.",
            )
        bare = unbuffered(self.model)
        if self.normalisation == "running" and bare:
            raise InputError(
                f"normalisation 'running' with the layer '{bare[0]}', which keeps no statistics",
                "layers with running statistics, or another normalisation",
                "Build it with track_running_stats=True, or write normalisation=support.",
            )
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

    @classmethod
    def extra_inputs(cls, settings: Mapping[str, Any]) -> int:
        """How many inputs the model takes beyond an example's own, for some settings.

        Numbers of a vector, channels of an image; the learner fills them in.
        """
        return 0

    # What is meta-learned?

    def init(self) -> Params:
        """The model's own trainable parameters, as values that share no memory with it.

        Running statistics are among them where they are tracked; the engine keeps
        these, and takes no gradient.
        """
        own = {
            name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad
        }
        return {**own, **{TRACKED + name: b.clone() for name, b in self.tracked().items()}}

    def tracked(self) -> Params:
        """Buffers whose running statistics are meta-learned, by name."""
        if not self.tracks or self.normalisation != "running":
            return {}
        names = {f"{n}.{kind}" for n in layers(self.model) for kind in _KINDS}
        return {n: b for n, b in self.model.named_buffers() if n in names}

    def fixed(self) -> dict[str, str]:
        """What an answer depends on beside what is meta-learned, by name: digests of it.

        Frozen parameters and the buffers that `state_dict` has; statistics of batch normalisation
        only where `running` reads the model's own.
        """
        model = self.model
        read = self.normalisation == "running" and not self.tracked()
        unread = {f"{n}.{k}" for n in ([] if read else layers(model)) for k in _KINDS}
        counts = {f"{n}.num_batches_tracked" for n in layers(model)}
        trained = {  # of tied ones all names, as `state_dict` has them
            n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad
        }
        left = trained | unread | counts
        rest = {n: v for n, v in model.state_dict().items() if n not in left}
        return {n: _digest(v) for n, v in rest.items() if isinstance(v, Tensor)}

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

    def finish(self, state: State, *, training: bool) -> State:
        """What is left of the state once a task is learnt: all that `predict` needs.

        While meta-training, all that `outer_update` needs too.
        """
        return state

    def adapt(
        self, params: Params, support: Examples, key: Tensor, *, training: bool = False
    ) -> State:
        """Learn one task from its support set."""
        state = self.begin(params, support, key, training=training)
        for index in range(self.steps(training=training)):
            state = self.step(params, state, support, torch.full((), index, device=key.device))
        return self.finish(state, training=training)

    # Use what was learned.

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        """Outputs for queries: (Q, ...) and mask (Q,) to (Q, N) or (Q, D)."""
        raise TypeError(f"{type(self).__name__} has no predict()")

    # Phase 1: learn to learn. An algorithm overrides `outer_update` or keeps this loss.

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss of the adapted learner on the query set; the engine takes its gradient."""
        state = self.adapt(params, episode.support, key, training=True)
        return self.query_loss(params, state, episode.query)

    def query_loss(self, params: Params, state: State, query: Examples) -> Tensor:
        """Loss on queries once a task is learnt."""
        return self.loss(self.predict(params, state, query.x, query.mask), query)

    def schedule(self, done: float) -> Params:
        """Values that change in the course of meta-training, by their names.

        The engine asks before each outer gradient, and `outer_loss` finds them in `params`
        under "schedule/NAME". They are neither learned nor kept. Values may change all the
        time; which names there are marks a phase, for each of which the engine compiles
        once. After meta-training, and wherever `outer_loss` is called without the engine,
        there are none: that should be what the last phase is.

        Args:
            done: share of the meta-iterations that lie behind, at least 0 and below 1.
        """
        return {}

    def uses_queries(self) -> bool:
        """Whether meta-training looks at query examples, so that episodes must have some."""
        return type(self).outer_update is None

    def goes_on(self) -> bool:
        """Whether a task of a meta-batch starts from what the one before it hands over."""
        return False

    def handover(self, params: Params, state: State) -> Params:
        """What the next task starts from, where each goes on from the one before."""
        raise TypeError(f"{type(self).__name__} has no handover(), yet goes_on() is true")

    def chained(self) -> bool:
        """Whether the outer loss is that of the queries after the last step and nothing else.

        Then the engine may take its gradient step by step.
        """
        return type(self).outer_loss is Learner.outer_loss

    outer_update: ClassVar[Callable[..., Params] | None] = None
    # Where `outer_update` needs of the tasks' states only a sum over tasks: `outer_terms` gives
    # some tasks' part of it, and `outer_move` updates by the whole. Then processes that share a
    # meta-batch add up their parts; without them each is told all the states.
    outer_terms: ClassVar[Callable[..., Params] | None] = None
    outer_move: ClassVar[Callable[..., Params] | None] = None

    def n_targets(self, params: Params, x: Tensor) -> int:
        """How many numbers each input's target has, where targets are numbers.

        Args:
            x: inputs (B, ...), by which a misfit with the model shows.
        """
        width = self.forward(params, x).shape[-1]
        return width // 2 if self.loss is gaussian else width

    def features(
        self, params: Params, x: Tensor, mask: Tensor | None = None, *, training: bool = False
    ) -> Tensor:
        """The representation that all tasks share: (B, ...) to (B, D), by `body`.

        Batch normalisation sees the rows that `mask` marks. Under "running" it uses
        running statistics, or the rows and records them where `training`.
        """
        if not self.body:
            return self.forward(params, x, mask, training=training).flatten(1)
        if not callable(_member(self.model, self.body)):
            raise InputError(
                f"{type(self.model).__name__} without a module or method named {self.body}",
                "a model whose feature extractor is its `body`",
                "Name that part of the model `body`, or tell the learner its name: body=NAME.",
            )
        part = _Part(self.model, self.body)
        inside = {f"model.{name}": p for name, p in params.items()}
        return self._call(part, inside, x, mask, training, prefix="model.").flatten(1)

    # Helpers for algorithms.

    def forward(
        self,
        params: Params,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        training: bool = False,
        targets: Tensor | None = None,
    ) -> Tensor:
        """One pass of the model; batch normalisation as in `features`.

        A model that `generates` takes the targets (B, M) as its second argument, and so
        writes token after token of the right sequence; without them, after its own.
        """
        more = (targets,) if self.generates() and targets is not None else ()
        return self._call(self.model, params, x, mask, training, *more)

    def generates(self) -> bool:
        """Whether the model writes sequences, token after token: its own word for it."""
        return bool(getattr(self.model, "generates", False))

    def _call(
        self,
        module: nn.Module,
        params: Params,
        x: Tensor,
        mask: Tensor | None,
        training: bool,
        *more: Tensor,
        prefix: str = "",
    ) -> Tensor:
        parameters, own, tied, foreign = survey(module)
        # Copies, since torch.nn.BatchNorm counts its batches in place.
        buffers = {name: b.clone() for name, b in own.items()}
        tracked = self.tracked()
        running = self.normalisation == "running" and not (training and tracked)
        seen: dict[int, tuple[Tensor, Tensor]] | None = {} if training and tracked else None
        if running:
            for name in tracked:
                if prefix + TRACKED + name not in params:
                    raise untracked(name)
                buffers[prefix + name] = params[prefix + TRACKED + name]
        inside = {name: p for name, p in params.items() if name in parameters}
        source = "running" if running else "batch"
        with statistics(source, mask, foreign=foreign, seen=seen), _attention():
            out: Tensor = passed(module, {**buffers, **inside}, (x, *more), tied)
        if seen is not None:
            for name in tracked:
                layer, _, kind = name.rpartition(".")
                told = seen.get(id(buffers[f"{prefix}{layer}.{_KINDS[0]}"]))
                if told is not None:
                    record({TRACKED + name: told[_KINDS.index(kind)]})
        return out

    def call(self, method: str | Callable[..., Any], params: Params, *given: Any) -> Any:
        """A method of the model, or a function of it, under `params`.

        Other parameters than the model's are left out. As in `forward`, nothing is dropped at
        random, nothing is normalised by a pass before, and the model's buffers stay.
        """
        part = _Method(self.model, method)
        parameters, own, tied, foreign = survey(part)
        inside = {f"model.{name}": p for name, p in params.items()}
        inside = {name: p for name, p in inside.items() if name in parameters}
        buffers = {name: b.clone() for name, b in own.items()}
        with statistics("batch", foreign=foreign), _attention():
            return passed(part, {**buffers, **inside}, given, tied)

    def uses_statistics(self) -> bool:
        """Whether an answer depends on the other rows of its batch."""
        return bool(layers(self.model)) and self.normalisation != "running"

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


_KINDS = ("running_mean", "running_var")


def _member(model: nn.Module, name: str) -> Any:
    """A method of the model, or a module anywhere inside it; None where there is none."""
    return dict(model.named_modules()).get(name) or getattr(model, name, None)


def check_fixed(told: Any, now: dict[str, str], *, where: str | Path) -> None:
    """Refuses other frozen parts of a model than those that something was learned beside.

    Args:
        told: `Learner.fixed` of then; what is no dict, or leaves a name out, is not compared.
        now: that of now.
        where: the file that tells it.
    """
    told = told if isinstance(told, dict) else {}
    if other := [name for name in now if told.get(name, now[name]) != now[name]]:
        raise InputError(
            f"{where} was learned beside another '{other[0]}', which no file of tegu's holds",
            "the frozen parameters and buffers that the model had then",
            "Load them into the model first, or seed what draws them.",
        )


def _digest(value: Tensor) -> str:
    """The same on every device and in float32 and float64."""
    value = value.detach().cpu().contiguous()
    value = value.float() if value.is_floating_point() else value
    content = value.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(value.shape)}".encode() + content).hexdigest()


def _attention() -> AbstractContextManager[None]:
    """Has torch's attention computed so that it runs under `vmap` and is differentiated twice.

    Its fused kernels are run task by task, and have no second derivative.
    """
    written_out: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return nullcontext() if untransformed() else written_out


class _Method(nn.Module):
    """A module whose forward is some method of a model, or a function of it."""

    def __init__(self, model: nn.Module, method: str | Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *given: Any) -> Any:
        if isinstance(self.method, str):
            return getattr(self.model, self.method)(*given)
        return self.method(self.model, *given)


class _Part(nn.Module):
    """A model cut off behind one of its parts, a method or a module of any depth.

    `body` is the front part by its name, and called alone. Any other module is reached
    by running the model until that module answers.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        part = _member(self.model, self.name)
        if self.name == "body" or not isinstance(part, nn.Module):
            out: Tensor = part(x)
            return out

        class Answered(Exception):  # noqa: N818, no error
            pass

        answer: list[Tensor] = []
        thread = threading.get_ident()

        def watch(module: nn.Module, _given: Any, output: Tensor) -> None:
            if module is part and threading.get_ident() == thread:
                answer.append(output)
                raise Answered

        # A hook of torch's own list, not of the module, which stays as it is.
        handle = register_module_forward_hook(watch)
        try:
            self.model(x)
        except Answered:
            return answer[0]
        finally:
            handle.remove()
        raise InputError(
            f"{self.name} is no part of a pass through {type(self.model).__name__}",
            "a layer that the model's forward calls",
            "Name another layer.",
        )
