"""Phase 1: meta-learning, as a loop that can be stopped anywhere and goes on exactly."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tegu import origin
from tegu.engine.batches import BLOCK, Drawn, WorkersError, batches
from tegu.engine.checkpoint import Checkpoint, save_checkpoint
from tegu.engine.distribute import ALONE, Meeting, Ranks, shared
from tegu.engine.memory import kept
from tegu.engine.profile import iterated, part
from tegu.engine.run import Run
from tegu.engine.stops import STOPS, Interrupted, stop_signals
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.errors import InputError, check_range, unknown
from tegu.inner import Params
from tegu.learners.learner import Learner, check_fixed
from tegu.losses import check_targets
from tegu.sampling import Tasks

OUTER_SCHEDULES = ("linear", "cosine")


@dataclass
class Progress:
    """What a run reports as it goes.

    Args:
        iteration: meta-iterations done.
        total: meta-iterations asked for.
        loss: mean training loss since the last report.
        seconds: of meta-training so far, earlier sessions of the run included and
            validation left out.
        validation: latest validation figure, if any.
        commits: of tegu's checkout, all that have trained this run; none without a folder.
        peak_bytes: most memory that one of its processes has held, where known.
        precision: of the passes through the model.
    """

    iteration: int
    total: int
    loss: float
    seconds: float
    validation: float | None = None
    commits: tuple[str, ...] = ()
    peak_bytes: int | None = None
    precision: str = "fp32"


@dataclass
class Settings:
    """How long and how fast to meta-learn.

    Args:
        meta_iterations: outer updates in all.
        seconds: end after so much meta-training, if it comes first; 0 for no such
            limit. Such a run depends on the machine's speed.
        meta_batch: episodes per outer update.
        outer_lr: step size of the first outer update.
        outer_lr_final: step size that it falls to.
        outer_schedule: "linear", or "cosine": along half a wave.
        seed: of the learner's random numbers.
        validate_every: meta-iterations between validations; 0 for none.
        checkpoint_seconds: at most this much work is lost when a run is killed.
        workers: processes that draw episodes ahead of the work; 0 for none.
    """

    meta_iterations: int
    meta_batch: int = 5
    outer_lr: float = 1.0
    outer_lr_final: float = 0.0
    seed: int = 0
    validate_every: int = 0
    checkpoint_seconds: float = 60.0
    seconds: float = 0.0
    outer_schedule: str = "linear"
    workers: int = 0

    def done(self, iteration: int, elapsed: float) -> float:
        """Share of the work that is behind, 0 to 1, after iterations and seconds."""
        share = iteration / self.meta_iterations
        return min(1.0, max(share, elapsed / self.seconds)) if self.seconds else share

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # which a run's settings could not hold
                setattr(self, name, value.item())
        if self.outer_schedule not in OUTER_SCHEDULES:
            raise unknown("outer schedule", self.outer_schedule, OUTER_SCHEDULES)
        for name, least in (
            ("meta_iterations", 1),
            ("meta_batch", 1),
            ("validate_every", 0),
            ("seconds", 0),
            ("outer_lr", 0),
            ("outer_lr_final", 0),
            ("checkpoint_seconds", 0),
            ("workers", 0),
        ):
            check_range(name, getattr(self, name), least)

    def outer_rate(self, done: float) -> float:
        """Step size of an outer update, when a share `done` of all lies behind."""
        along = done if self.outer_schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
        return (1 - along) * self.outer_lr + along * self.outer_lr_final


@dataclass
class _Sitting:
    """A run from a start to the next stop: where it stands, and what it does now and then.

    Args:
        settings: how long, how fast.
        run: where to keep checkpoints and metrics; None on all ranks but the first.
        progress: who is told about the run; likewise.
        ranks: the processes that share the work.
        params: what has been meta-learned.
        outer: the outer optimiser's state.
        fixed: the learner's `fixed`.
        report: how far the run has come.
        earlier: losses since the last report, from before the run was resumed.
        logged: sum and number of the losses reported since the last row of the metrics.
    """

    settings: Settings
    run: Run | None
    progress: Callable[[Progress], None] | None
    ranks: Ranks
    params: Params
    outer: Params
    fixed: dict[str, str]
    report: Progress
    earlier: list[float]
    logged: list[float]
    losses: list[Tensor] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = time.monotonic() - self.report.seconds
        self.kept = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether all iterations, or all seconds, are behind."""
        return self.settings.done(self.report.iteration, self.report.seconds) >= 1

    @property
    def at_interval(self) -> bool:
        """Whether a validation is due."""
        every = self.settings.validate_every
        return bool(every) and (self.ended or self.report.iteration % every == 0)

    def note(self) -> list[float]:
        """Signals seen on any rank; by the clock of rank 0, the time and whether to save."""
        now = time.monotonic()
        due = now - self.kept >= self.settings.checkpoint_seconds
        own = [now - self.started, float(due)] if self.ranks.first else [0.0, 0.0]
        return [float(signum in self.signals) for signum in STOPS] + own

    def unreported(self) -> list[float]:
        """Losses since the last report."""
        return [*self.earlier, *(torch.stack(self.losses).tolist() if self.losses else [])]

    def validated(self, validate: Callable[[Params], float]) -> None:
        """A validation, whose time is none of meta-training."""
        paused = time.monotonic()
        with part("validation"):
            self.report.validation = validate(self.params)
        self.started += time.monotonic() - paused

    def told(self, *, log: bool) -> None:
        """A report, in the metrics too if `log`.

        Raises:
            InputError: the loss is not finite.
        """
        report = self.report
        losses = self.unreported()
        report.loss = statistics.fmean(losses)
        if not math.isfinite(report.loss):
            raise shared(
                InputError(
                    f"the training loss is {report.loss} at iteration {report.iteration}",
                    "a finite loss",
                    "Lower inner_lr or outer_lr, or look for bad values in the data.",
                )
            )
        self.earlier, self.losses = [], []
        total, count = self.logged[0] + math.fsum(losses), self.logged[1] + len(losses)
        self.logged = [0.0, 0.0] if log else [total, count]
        if self.progress:
            self.progress(report)
        if self.run and log:
            self.run.log(
                iteration=report.iteration,
                loss=total / count,
                validation=report.validation,
                seconds=report.seconds,
            )

    def keep(self) -> None:
        """Saves a checkpoint.

        Raises:
            InputError: some parameter is not finite.
        """
        kept = {**self.params, **{f"outer/{k}": v for k, v in self.outer.items()}}
        if bad := [k for k, v in kept.items() if not bool(v.isfinite().all())]:
            raise shared(
                InputError(
                    f"'{bad[0]}' holds NaN or infinity after iteration {self.report.iteration}",
                    "finite numbers",
                    "Lower inner_lr or outer_lr, or look for bad values in the data; "
                    "an earlier checkpoint is unharmed.",
                )
            )
        known = [n for n in (self.report.peak_bytes, origin.peak_bytes()) if n is not None]
        self.report.peak_bytes = max(known, default=None)
        if self.run:
            notes = {
                "seconds": time.monotonic() - self.started,
                "losses": self.unreported(),
                "logged": self.logged,
                "precision": self.report.precision,
                "commits": self.report.commits,
                "fixed": self.fixed,
                "peak_bytes": self.report.peak_bytes,
            }
            save_checkpoint(
                self.run.checkpoint,
                Checkpoint(
                    self.params,
                    self.outer,
                    self.report.iteration,
                    self.settings.seed,
                    self.run.digest(),
                    notes,
                ),
            )
        self.kept = time.monotonic()

    def until_stopped(self, drawn: Iterator[Drawn]) -> Iterator[Drawn]:
        """The batches; a signal to all processes of a run ends those that draw them, too."""
        try:
            yield from drawn
        except WorkersError:
            if not self.signals or self.ranks.world > 1:
                raise
            self.keep()
            raise Interrupted(self.signals[0], self.report.iteration) from None


def _checked(learner: Learner, tasks: Tasks) -> Episode:
    """An episode, of which the learner can learn."""
    one = tasks.episodes(torch.arange(1))
    if not one.query.mask.shape[1] and learner.uses_queries():
        raise InputError(
            f"episodes without queries for {type(learner).__name__}",
            "queries, which it meta-learns from",
            "Pass tasks with n_query=5, say.",
        )
    check_targets(learner.loss, one.support)
    return one


def _sitting(
    engine: Vectorised,
    tasks: Tasks,
    settings: Settings,
    run: Run | None,
    resume: bool,
    progress: Callable[[Progress], None] | None,
    ranks: Ranks,
) -> _Sitting:
    """A run at its start, or where its checkpoint left it; on all ranks the same."""
    params = engine.learner.init()
    if small := [k for k, v in params.items() if v.is_floating_point() and v.itemsize < 4]:
        raise InputError(
            f"'{small[0]}' in {params[small[0]].dtype}, in which small updates round to nothing",
            "parameters in float32 or float64",
            "Leave the model in float32 and choose precision='bf16' for the passes through it.",
        )
    # Before the run's folder holds anything: what is refused now may be right the next time.
    drawn = _checked(engine.learner, tasks).support.x.device
    # Where the tasks are drawn, unless that is the processor.
    device = drawn if drawn.type != "cpu" else next(iter(params.values())).device
    params = {k: v.to(device) for k, v in params.items()}
    start, fixed = (params, engine.outer_state(params)), engine.learner.fixed()

    def begin() -> tuple[list[Any], tuple[Params, ...]]:
        saved = run.open(resume=resume) if run else None
        if run and not saved:
            run.settle()
        if not (run and saved):
            return [0, 0.0, [], [], None, [0.0, 0.0], engine.precision], start
        if saved.recipe != run.digest():
            raise InputError(
                f"{run.checkpoint} belongs to other settings",
                "a checkpoint of this run",
                "Choose another folder.",
            )
        kept = saved.params, saved.outer
        own, other = (
            [{k: (v.shape, v.dtype) for k, v in one.items()} for one in both]
            for both in (kept, start)
        )
        if own != other:
            raise InputError(
                f"{run.checkpoint} holds other parameters than this learner has",
                "a checkpoint of the same model",
                "Choose another folder.",
            )
        check_fixed(saved.notes.get("fixed"), fixed, where=run.checkpoint)
        if saved.iteration > settings.meta_iterations:
            raise InputError(
                f"{settings.meta_iterations} meta-iterations for a run that has done "
                f"{saved.iteration}",
                "as many or more",
                f"Ask for {saved.iteration} to end it here.",
            )
        told = [saved.iteration, *_noted(saved.notes, run.checkpoint)]
        run.settle()
        return [*told, saved.notes.get("precision", engine.precision)], kept

    told, found = ranks.from_first(begin)
    iteration, seconds, losses, commits, peak, logged, precision = told
    # In the order of a start: sums round as their order has it, and a file has none.
    params, outer = (
        {k: one[k].to(device) for k in like} for one, like in zip(found, start, strict=True)
    )
    report = Progress(iteration, settings.meta_iterations, float("nan"), seconds)
    report.commits, report.peak_bytes, report.precision = tuple(commits), peak, precision
    if not ranks.first:
        run = progress = None
    return _Sitting(settings, run, progress, ranks, params, outer, fixed, report, losses, logged)


def _noted(notes: dict[str, Any], file: Path) -> list[Any]:
    """Seconds, losses not reported, commits, most memory, losses not logged: of a checkpoint."""
    try:
        spent = float(notes.get("seconds", 0.0))
        losses = [float(loss) for loss in notes.get("losses", [])]
        commits = [str(commit) for commit in notes.get("commits", ["unknown"])]
        peak = notes.get("peak_bytes")
        total, count = (float(number) for number in notes.get("logged", (0.0, 0.0)))
        return [spent, losses, commits, None if peak is None else int(peak), [total, count]]
    except (TypeError, ValueError, OverflowError) as failure:
        raise InputError(
            f"{file} with notes that are none of a run's ({failure})",
            "a checkpoint that tegu has written",
            "Take another copy, or start the run again in a new folder.",
        ) from failure


@kept()
def meta_train(
    engine: Vectorised,
    tasks: Tasks,
    settings: Settings,
    *,
    run: Run | None = None,
    resume: bool = False,
    validate: Callable[[Params], float] | None = None,
    progress: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Params, Progress]:
    """Meta-learning: outer updates over batches of training episodes.

    Args:
        engine: the learner, vectorised.
        tasks: training episodes; iteration i uses episodes i * meta_batch and on.
        settings: how long, how fast.
        run: where to keep checkpoints and metrics; None keeps nothing.
        resume: go on from the run's checkpoint if there is one.
        validate: figure of some parameters on validation tasks.
        progress: told about the run now and then.
        ranks: the processes that share the work; rank 0 reads and writes the run, and
            reports. All of them call this function alike.

    Returns:
        What was meta-learned, and the last report.

    Raises:
        Interrupted: Ctrl-C or SIGTERM, where there is a run; a checkpoint was saved first.
        KeyboardInterrupt: a second of them, before that was done.
        InputError: episodes without queries, for a learner that learns from them.
    """
    ranks.check(engine.learner, settings.meta_batch)
    with contextlib.ExitStack() as stack:
        if run:
            stack.callback(run.close)
        now = _sitting(engine, tasks, settings, run, resume, progress, ranks)
        if now.report.precision != engine.precision:  # "auto" as the run, or rank 0, has it
            engine = engine.of(engine.learner, precision=now.report.precision)
        return _trained(engine, tasks, now, validate)


def _trained(
    engine: Vectorised, tasks: Tasks, now: _Sitting, validate: Callable[[Params], float] | None
) -> tuple[Params, Progress]:
    """The iterations that are left."""
    settings, ranks, report = now.settings, now.ranks, now.report
    if now.ended:
        return now.params, report  # resumed at its end, which may be one of time
    if now.run and (commit := origin.commit()) and commit not in report.commits:
        report.commits += (commit,)
    some = next(iter(now.params.values()))
    meeting = Meeting(ranks, settings.meta_batch, now.note)
    meets = {"others": meeting} if ranks.world > 1 else {}
    # Without a folder there is nothing to save before the end, and Ctrl-C is Python's own.
    with (
        stop_signals(now.signals, alone=not meets) if now.run or meets else contextlib.nullcontext()
    ):
        drawn = batches(
            tasks,
            meta_batch=settings.meta_batch,
            seed=settings.seed,
            first=report.iteration,
            last=settings.meta_iterations,
            own=ranks.part(settings.meta_batch),
            device=some.device,
            dtype=some.dtype,
            workers=settings.workers,
        )
        for iteration, episodes, key in now.until_stopped(drawn):
            done = settings.done(iteration, report.seconds)
            now.params, now.outer, loss = engine.update(
                now.params,
                now.outer,
                episodes,
                key,
                outer_lr=settings.outer_rate(done),
                done=done,
                **meets,
            )
            now.losses.append(loss)
            *signals, report.seconds, due = meeting.told()
            report.iteration = iteration + 1
            last = now.ended
            if validate and now.at_interval:
                now.validated(validate)
            if last or now.at_interval or len(now.earlier) + len(now.losses) >= BLOCK:
                now.told(log=now.at_interval)
            if ranks.world == 1:  # need not wait for the next meeting
                signals = [float(signum in now.signals) for signum in STOPS]
            stop = [signum for signum, seen in zip(STOPS, signals, strict=True) if seen]
            if stop or last or due:
                with part("checkpoint"):
                    now.keep()
            iterated()
            if stop:  # after the last one too: what comes then is not wanted either
                raise Interrupted(stop[0], report.iteration)
            if last:
                break
    return now.params, report
