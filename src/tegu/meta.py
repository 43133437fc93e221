"""The two phases in two calls: `meta_train`, then `adapt` on what it returns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu import keys
from tegu.adapted import Adapted, fitting
from tegu.arrays import Signature, numbered, read_inputs, read_labels, rows_of_floats, taken
from tegu.datasets import ClassDataset, tokens
from tegu.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tegu.engine.evaluate import Result, Score, evaluate
from tegu.engine.run import Run
from tegu.engine.train import Progress, Settings
from tegu.engine.train import meta_train as _meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Examples
from tegu.errors import InputError
from tegu.files import expanded
from tegu.inner import Params
from tegu.learners.learner import Learner
from tegu.losses import (
    cross_entropy,
    gaussian,
    measure_of,
    of_ones_own,
    regresses,
    token_cross_entropy,
)
from tegu.misfits import check_kinds, explained
from tegu.sampling import ClassBatches, Tasks
from tegu.threads import alone

PLAIN = (bool, int, float, str, tuple)  # settings of tasks that a run's file holds


@dataclass(frozen=True, eq=False)
class MetaLearned:
    """What phase 1 learned, ready to learn new tasks.

    Args:
        learner: the algorithm with its model and settings.
        params: what was meta-learned.
        shape: (C, H, W) of the images that it was learned from, where known: others are refused.
    """

    learner: Learner
    params: Params = field(repr=False)
    shape: tuple[int, ...] = field(default=(), repr=False)
    _widths: dict[tuple[int, ...], int] = field(default_factory=dict, init=False, repr=False)

    def adapt(self, x: Any, y: Any, *, seed: int = 0) -> Adapted:
        """Phase 2: learn a new task from its examples.

        Args:
            x: S inputs: a tensor, array or nested list, shape (S, ...).
            y: S labels of any hashable kind, or floating targets (S, D) where the
                learner's loss is one on numbers, a squared error or your own. Where it is one on
                sequences, both are rows of tokens, of unequal length if need be:
                `tegu.datasets.tokens.Vocabulary` makes them from words.
            seed: of the order in which examples are visited.

        Raises:
            InputError: numbers of inputs and labels differ, a number is NaN or
                infinite, the shape does not fit the model, or there are more
                classes than the model has outputs.
        """
        if set(self.learner.targets) <= {"pairs", "samples"}:
            raise InputError(
                f"a task with labels for {self.learner.name}, which learns what causes what",
                "a learner of classes, numbers or sequences",
                "Pass your table to tegu.causal.find_direction, or to tegu.graphs.recover.",
            )
        support, labels = self._support(x, y)
        key = keys.key(seed, "adapt", device=support.mask.device)
        with alone(self.learner.model), torch.no_grad():
            learner = self._for_labels(labels) if labels else self.learner
            self._check_width(learner, support, labels)
            try:
                state = learner.adapt(self.params, support, key)
            except (RuntimeError, ValueError, IndexError):
                self._widths.clear()  # a model may take other numbers of this shape, and not these
                self._check_width(learner, support, labels)
                raise
        n_targets = support.y.shape[-1] if support.y.is_floating_point() else 0
        signature = Signature.of(x, support.x)._replace(shape=self.shape)
        return Adapted(learner, self.params, state, labels, n_targets, signature)

    def _support(self, x: Any, y: Any) -> tuple[Examples, tuple[Hashable, ...]]:
        """Examples on the parameters' device, and what their classes are called."""
        some = next(iter(self.params.values()))
        labels: tuple[Hashable, ...] = ()
        if self.learner.loss is token_cross_entropy:
            model = self.learner.model
            kinds, longest = getattr(model, "n_outputs", 0), getattr(model, "longest", 1)
            inputs = tokens.rows(x, "x", kinds=getattr(model, "n_inputs", 0))
            targets = tokens.rows(y, "y", kinds=kinds, longest=longest - 1, end=True)
            what = "answers", "answer"
        else:
            # A copy: a task may keep its examples, and arrays are filled anew.
            inputs = read_inputs(x, "x", some.dtype).to(some.device, copy=True)
            Signature(self.shape).check(Signature.of(x, inputs))
            own = of_ones_own(self.learner.loss) and rows_of_floats(y)
            if regresses(self.learner.loss) or own:
                targets = read_inputs(y, "y", some.dtype).to(inputs)
                if targets.ndim != 2:
                    raise InputError(
                        f"y has shape {tuple(targets.shape)}",
                        "a row of targets for each input: (S, D)",
                        "Pass y[:, None] where each input has one target.",
                    )
            else:
                labels, targets = numbered(read_labels(y))
            what = "labels", "label"
        if len(targets) != len(inputs):
            raise InputError(
                f"{len(inputs)} inputs and {len(targets)} {what[0]}",
                f"one {what[1]} for each input",
                "Check that x and y come from the same examples.",
            )
        mask = torch.ones(len(inputs), dtype=torch.bool, device=some.device)
        return Examples(inputs.to(some.device), targets.to(some.device), mask), labels

    def _for_labels(self, labels: tuple[Hashable, ...]) -> Learner:
        """The learner for so many classes."""
        try:
            return self.learner.for_ways(len(labels))
        except InputError as failure:
            if len(labels) > 1:
                raise
            raise InputError(
                f"labels of one class only, {labels[0]!r}",
                "two classes or more",
                "Add examples of another class, of everything else, say.",
            ) from failure

    def _check_width(
        self, learner: Learner, support: Examples, labels: tuple[Hashable, ...]
    ) -> None:
        """Refuses more classes, or other targets, than the model has outputs."""
        if self.learner.loss is token_cross_entropy:
            return  # their tokens were looked at when they were read
        width = self._width(learner, support.x, bool(labels))
        count = support.y.shape[-1]
        # As many components, or whatever a loss of the user's makes of them.
        mixed = (learner.loss is gaussian and width % count == 0) or of_ones_own(learner.loss)
        if not labels and count != width and not mixed:
            raise InputError(
                f"y has {count} columns for a model of {width} targets",
                "a column for each",
                "Reshape y, or meta-train a model for as many.",
            )
        if learner is self.learner and len(labels) > width:
            raise InputError(
                f"{len(labels)} classes for a model with {width} outputs",
                f"at most {width} classes",
                "Meta-train with a larger n_way.",
            )

    def _width(self, learner: Learner, x: Tensor, classes: bool) -> int:
        """Outputs of the model, or numbers of a target, for inputs of a shape: asked once."""
        shape = tuple(x.shape[1:])
        if shape not in self._widths:
            with taken(x):
                if classes:
                    self._widths[shape] = learner.forward(self.params, x[:1]).shape[-1]
                else:
                    self._widths[shape] = learner.n_targets(self.params, x[:1])
        return self._widths[shape]

    def features(self, x: Any) -> Tensor:
        """The representation that all tasks share: (B, ...) to (B, D)."""
        some = next(iter(self.params.values()))
        inputs = read_inputs(x, "x", some.dtype).to(some)
        Signature(self.shape).check(Signature.of(x, inputs))
        with alone(self.learner.model), torch.no_grad(), taken(inputs):
            return self.learner.features(self.params, inputs)

    def evaluate(
        self,
        tasks: Tasks,
        *,
        episodes: int = 1000,
        at_once: int = 100,
        seconds: float = float("inf"),
        seed: int = 0,
        score: Score | None = None,
        metric: str | None = None,
        normalisations: Iterable[str] = (),
        progress: Callable[[int, float], None] | None = None,
    ) -> list[Result]:
        """Score on many episodes: one result for each normalisation.

        Args:
            tasks: where episodes come from, normally of "meta_test".
            episodes: how many.
            at_once: how many run side by side; bounds the memory.
            seconds: end after so much time, with as many episodes as were scored by then.
            seed: of the learner's own random numbers.
            score: of one episode's outputs and queries; None for the one that goes with the
                learner's loss. Outputs beyond the ways of the tasks are left out, as a
                learned task leaves them out.
            metric: what the score is called; None likewise.
            normalisations: score the same tasks under each; by default under the learner's own.
            progress: told the number of episodes done and the mean so far.

        Raises:
            InputError: tasks of more ways than the model has outputs.
        """
        check_kinds(self.learner, tasks)
        measure = measure_of(self.learner.loss)
        n_way = getattr(tasks, "n_way", 0)
        with (
            alone(self.learner.model),
            explained(self.learner, tasks, at_once=min(at_once, episodes), score=score),
        ):
            learner = self.learner.for_ways(n_way) if n_way else self.learner
            _check_outputs(learner, tasks)
            return evaluate(
                Vectorised(learner),
                self.params,
                tasks,
                episodes=episodes,
                at_once=at_once,
                seconds=seconds,
                seed=seed,
                score=_of_ways(score or measure.score, n_way),
                metric=metric or measure.metric,
                normalisations=normalisations,
                progress=progress,
            )

    def save(self, path: str | Path) -> None:
        """Writes what was meta-learned to one file, whole or not at all.

        Frozen parameters and buffers stay with the model; the file has digests of them.
        """
        name = f"{self.learner.name}/{type(self.learner.model).__name__}"
        notes = {"fixed": self.learner.fixed()}
        save_checkpoint(Path(path), Checkpoint(self.params, {}, 0, 0, name, notes))

    @classmethod
    def load(cls, path: str | Path, learner: Learner) -> MetaLearned:
        """Reads a file of `save`, or a run's checkpoint, for a learner built alike."""
        saved = load_checkpoint(Path(path))
        fixed = saved.notes.get("fixed")
        return cls(learner, fitting(saved.params, learner, where=path, fixed=fixed))


def meta_train(
    learner: Learner,
    tasks: Tasks,
    *,
    meta_iterations: int,
    meta_batch: int = 5,
    outer_lr: float | None = None,
    outer_lr_final: float = 0.0,
    outer_schedule: str = "linear",
    outer_optimiser: str = "adam",
    weight_decay: float = 0.0,
    seed: int = 0,
    run: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    vectorise: str = "auto",
    compile: bool = False,
    precision: str = "fp32",
    at_once: int = 0,
) -> MetaLearned:
    """Phase 1: learn, over many tasks, what a new task can start from.

    Args:
        learner: the algorithm, around any `torch.nn.Module`.
        tasks: training episodes, `tegu.FewShotTasks` or `tegu.Sinusoids`, say.
        meta_iterations: outer updates.
        meta_batch: episodes per outer update.
        outer_lr: step size of the first outer update; None for the learner's usual one, 1
            for Reptile and 0.001 where the outer update is Adam's.
        outer_lr_final: step size that it falls to.
        outer_schedule: "linear" or "cosine", the way there.
        outer_optimiser: "adam", or "muon" where the network names its matrices.
        weight_decay: of these matrices, with muon.
        seed: of the learner's random numbers.
        run: a folder for checkpoints; None keeps nothing.
        resume: go on from the folder's checkpoint, also to more meta-iterations than it was
            begun with: from there on step size and schedules are those of so many.
        progress: told how it goes.
        vectorise: "auto", "vmap" or "loop".
        compile: compile the inner step; worth it from some thousand iterations.
        precision: "fp32", "bf16", or "auto": bf16 where the machine is faster in it.
        at_once: tasks of a meta-batch side by side, 0 for all: fewer take less memory.

    Returns:
        What was meta-learned; call its `adapt`.

    Raises:
        InputError: tasks that the learner cannot learn, or a folder of something else.
        tegu.engine.stops.Interrupted: Ctrl-C or SIGTERM, where there is a `run`: it holds a
            checkpoint, and `resume=True` goes on. A `KeyboardInterrupt`.

    Example:
        >>> model = tegu.models.Mlp(1, 1, hidden=(40, 40))
        >>> learner = tegu.Reptile(model=model, loss=tegu.losses.squared_error, inner_lr=0.01)
        >>> learned = tegu.meta_train(learner, tegu.Sinusoids(), meta_iterations=2)
        >>> learned.adapt([[0.0], [1.0]], [[0.0], [0.8]]).predict([[0.5]]).shape
        torch.Size([1, 1])
    """
    check_kinds(learner, tasks)
    if outer_lr is None:
        outer_lr = float(learner.start["train.outer_lr"])
    with explained(learner, tasks, at_once=meta_batch):
        _check_tasks(learner, tasks)
    settings = Settings(
        meta_iterations, meta_batch, outer_lr, outer_lr_final, seed, outer_schedule=outer_schedule
    )
    engine = Vectorised(
        learner,
        vectorise=vectorise,
        compile=compile,
        precision=precision,
        at_once=at_once,
        outer_optimiser=outer_optimiser,
        weight_decay=weight_decay,
    )
    folder = None
    if run is not None:
        known = {
            "learner": re.sub(r" at 0x[0-9a-f]+", "", f"{learner!r} around {learner.model!r}"),
            "loss": _named(learner.loss),
            "tasks": _describe(tasks),
            "settings": {k: v for k, v in vars(settings).items() if k != "workers"},
        }
        if outer_optimiser != "adam":
            known |= {"outer": {"outer_optimiser": outer_optimiser, "weight_decay": weight_decay}}
        usual = _usual(tasks)
        known |= {"precision": precision}
        lengths = ("settings.meta_iterations",)
        folder = Run(expanded(run), known, same=partial(_same, usual), lengths=lengths)
    with explained(learner, tasks, at_once=meta_batch):
        params, _ = _meta_train(
            engine, tasks, settings, run=folder, resume=resume, progress=progress
        )
    return MetaLearned(learner, params)


def _check_tasks(learner: Learner, tasks: Tasks) -> None:
    """Refuses tasks whose labels are not those that the learner is built for."""
    name, batches = type(learner).__name__, isinstance(tasks, ClassBatches)
    if learner.pretrains or batches:
        told = getattr(learner, "n_classes", 0)
        asked = tasks.data.n_classes if isinstance(tasks, ClassBatches) else 0
        if asked != told:
            raise InputError(
                f"{f'batches of {asked} classes' if asked else 'few-shot tasks'} for {name}"
                + (f" with n_classes={told}" if told else ""),
                "tegu.sampling.ClassBatches of as many classes" if told else "few-shot tasks",
                f"Pass ClassBatches(data, batch=64), and {name} n_classes=data.n_classes."
                if told
                else "Pass tegu.FewShotTasks(data, n_way=5, n_shot=1, n_query=5), say.",
            )
        return
    _check_outputs(learner, tasks)


def _of_ways(score: Score, n_way: int) -> Score:
    """A score of the outputs that tasks of so many ways have; of all where 0."""
    if not n_way:
        return score
    return lambda outputs, query: score(outputs[..., :n_way], query)


def _check_outputs(learner: Learner, tasks: Tasks) -> None:
    """Refuses tasks of more classes than the learner can answer with."""
    name = type(learner).__name__
    told, asked = getattr(learner, "n_way", 0), getattr(tasks, "n_way", 0)
    if asked and not told and learner.loss is cross_entropy:
        one = tasks.episodes(torch.arange(1)).support.x[0, :1]
        params = learner.init()
        with torch.no_grad(), taken(one):
            told = learner.forward(params, one.to(next(iter(params.values())))).shape[-1]
        if asked > told:
            raise InputError(
                f"tasks of {asked} ways for a model with {told} outputs",
                "an output for each class of a task",
                f"Build the model with {asked} outputs, or pass n_way={told}.",
            )
    elif told and asked > told:
        raise InputError(
            f"tasks of {asked} ways for {name} with n_way={told}",
            "no more ways than the learner's",
            f"Build {name} with n_way={asked}.",
        )


def _named(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _usual(tasks: Tasks) -> dict[str, Any]:
    """Settings of tasks that are left at their defaults, as plain data."""
    known: tuple[Field[Any], ...] = fields(tasks) if is_dataclass(tasks) else ()
    found = {
        one.name: one.default
        for one in known
        if isinstance(one.default, PLAIN) and getattr(tasks, one.name) == one.default
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def _same(usual: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs are one; what an earlier version did not know of counts as usual."""
    ours = other.get("tasks", {})
    theirs = one.get("tasks", {})
    if isinstance(theirs, dict):
        theirs = {**{k: v for k, v in usual.items() if k in ours}, **theirs}
    return {**one, "tasks": theirs} == other


def _describe(tasks: Tasks) -> dict[str, Any]:
    own = {name: value for name, value in vars(tasks).items() if not name.startswith("_")}
    facts: dict[str, Any] = {k: v for k, v in own.items() if isinstance(v, PLAIN)}
    if isinstance(data := getattr(tasks, "data", None), ClassDataset):
        facts["data"] = [data.name, data.split, data.n_classes, len(data.examples)]
    # Two functions cannot be compared over two processes, but one and none can.
    return {**facts, "augment": True} if getattr(tasks, "augment", None) else facts
