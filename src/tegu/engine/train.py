"""Phase 1: meta-learning, as a loop that can be stopped anywhere and goes on exactly."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu.engine.batches import BLOCK, batches
from tegu.engine.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)
from tegu.engine.distribute import ALONE, Meeting, Ranks, shared
from tegu.engine.profile import iterated, part
from tegu.engine.vectorise import Vectorised
from tegu.errors import InputError, unknown
from tegu.inner import Params
from tegu.sampling import Tasks

OUTER_SCHEDULES = ("linear", "cosine")
STOPS = (signal.SIGINT, signal.SIGTERM)
LARGEST = 64 << 20  # bytes that a run's metrics or settings may have


class Interrupted(Exception):  # noqa: N818, the run is whole
    """A run was asked to stop, has saved a checkpoint, and can be resumed."""

    def __init__(self, signum: int, iteration: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after iteration {iteration}")
        self.signum, self.iteration = signum, iteration


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
    """

    iteration: int
    total: int
    loss: float
    seconds: float
    validation: float | None = None


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

    def done(self, iteration: int, elapsed: float) -> float:
        """Share of the work that is behind, 0 to 1, after iterations and seconds."""
        share = iteration / self.meta_iterations
        return min(1.0, max(share, elapsed / self.seconds)) if self.seconds else share

    def __post_init__(self) -> None:
        if self.outer_schedule not in OUTER_SCHEDULES:
            raise unknown("outer schedule", self.outer_schedule, OUTER_SCHEDULES)
        for name, least in (
            ("meta_iterations", 1),
            ("meta_batch", 1),
            ("validate_every", 0),
            ("seconds", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}", f"at least {least}", f"Raise {name}."
                )

    def outer_rate(self, done: float) -> float:
        """Step size of an outer update, when a share `done` of all lies behind."""
        along = done if self.outer_schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
        return (1 - along) * self.outer_lr + along * self.outer_lr_final


@dataclass
class Run:
    """A run's folder: `recipe.json`, `metrics.jsonl`, `checkpoint.safetensors`.

    Args:
        folder: where; made if it is not there.
        recipe: everything that decides the result, as plain data.
        job: name of the job that starts the run, kept in a file `job`. A job whose
            processes are started again goes on with its own run without being told.
    """

    folder: Path
    recipe: dict[str, Any]
    job: str = ""
    _lines: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """The file that holds what was meta-learned so far."""
        return self.folder / "checkpoint.safetensors"

    def digest(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()

    def open(self, *, resume: bool) -> Checkpoint | None:
        """Starts the folder, or reads where it stopped.

        Raises:
            InputError: the folder holds something else, or another run.
        """
        file = self.folder / "recipe.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(
                f"{self.folder} is a file", "a folder for the run", "Choose another name."
            )
        # What a kill in the middle of a write leaves behind; see write_atomically.
        unfinished = {
            path
            for name in (file.name, self.checkpoint.name, "metrics.jsonl", "job")
            for path in self.folder.glob(f".{name}.*")
        }
        mark = self.folder / "job"
        mine = bool(self.job) and mark.is_file() and mark.read_bytes() == self.job.encode()
        # The mark is written first, and alone it is no run.
        if self.folder.exists() and set(self.folder.iterdir()) - unfinished - {mark}:
            self._check_is_mine(file)
            resume = resume or mine
            if not resume:
                raise InputError(
                    f"{self.folder} holds a run already",
                    "a new or empty folder",
                    "Add --resume to go on with it, or choose another folder.",
                )
            self._sign(mark)
        else:
            self._sign(mark)
            write_atomically(file, json.dumps(self.recipe, indent=1).encode())
        for path in unfinished:
            path.unlink(missing_ok=True)
        if not (resume and self.checkpoint.exists()):
            return None
        checkpoint = load_checkpoint(self.checkpoint)
        for values in read_metrics(self.folder / "metrics.jsonl"):
            if values["iteration"] <= checkpoint.iteration:
                self._lines.append(json.dumps(values))
        return checkpoint

    def _sign(self, mark: Path) -> None:
        if self.job:
            write_atomically(mark, self.job.encode())
        elif mark.exists():
            mark.unlink(missing_ok=True)

    def _check_is_mine(self, file: Path) -> None:
        if not file.is_file():
            raise InputError(
                f"{self.folder} is not empty and holds no run",
                "a new or empty folder, or a run to resume",
                "Choose another folder; nothing in this one was touched.",
            )
        try:
            other = json.loads(file.read_text())
            if not isinstance(other, dict):
                raise ValueError(f"a {type(other).__name__}")
        except (ValueError, RecursionError) as failure:
            raise InputError(
                f"{file} holds no settings",
                "a recipe that tegu has written",
                "Choose another folder.",
            ) from failure
        mine = json.loads(json.dumps(self.recipe))  # as it reads back: tuples are lists there
        if other != mine:
            changed = sorted(k for k in {*other, *mine} if other.get(k) != mine.get(k))
            raise InputError(
                f"{self.folder} belongs to a run with other settings ({', '.join(changed)} differ)",
                "the settings that the run was started with",
                "Use those settings, or choose another folder.",
            )

    def log(self, **values: Any) -> None:
        """Adds a line to the metrics."""
        self._lines.append(json.dumps(values))
        write_atomically(self.folder / "metrics.jsonl", ("\n".join(self._lines) + "\n").encode())


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict a line; none where there is no file.

    Raises:
        InputError: a line is not what a run writes; the last may be cut short.
    """
    if not file.is_file():
        return []
    if file.stat().st_size > LARGEST:
        raise InputError(
            f"{file} has {file.stat().st_size:,} bytes", f"at most {LARGEST:,}", "Shorten it."
        )
    lines = file.read_bytes().splitlines()
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if type(values["iteration"]) is not int:
                raise ValueError("iteration is no whole number")
        except (ValueError, KeyError, TypeError, RecursionError) as failure:
            if number == len(lines) and number > 1:
                break  # it was being written when the machine stopped
            raise InputError(
                f"line {number} of {file} holds no figures of a run",
                "lines that tegu has written",
                "Move the file away to go on without its learning curve.",
            ) from failure
        found.append(values)
    return found


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
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved first.
    """
    ranks.check(engine.learner, settings.meta_batch)
    params = engine.learner.init()
    some = tasks.episodes(torch.arange(1)).support.x
    params = {k: v.to(some.device) for k, v in params.items()}
    outer = engine.outer_state(params)
    start = params, outer

    def begin() -> tuple[list[Any], tuple[Params, ...]]:
        saved = run.open(resume=resume) if run else None
        if not (run and saved):
            return [0, 0.0, []], start
        if saved.recipe != run.digest():
            raise InputError(
                f"{run.checkpoint} belongs to other settings",
                "a checkpoint of this run",
                "Choose another folder.",
            )
        spent = float(saved.notes.get("seconds", 0.0))
        unreported = [float(loss) for loss in saved.notes.get("losses", [])]
        return [saved.iteration, spent, unreported], (saved.params, saved.outer)

    (first, seconds, before), found = ranks.from_first(begin)
    params, outer = ({k: v.to(some.device) for k, v in one.items()} for one in found)
    if not ranks.first:
        run = progress = None
    report = Progress(first, settings.meta_iterations, float("nan"), seconds)
    if settings.done(first, seconds) >= 1:
        return params, report  # resumed at its end, which may be one of time
    started, kept = time.monotonic() - seconds, time.monotonic()
    losses: list[Tensor] = []

    def unreported() -> list[float]:
        """Losses since the last report, those before the run was resumed among them."""
        return [*before, *(torch.stack(losses).tolist() if losses else [])]

    def keep() -> None:
        bad = [k for k, v in params.items() if not bool(v.isfinite().all())]
        if bad:
            raise shared(
                InputError(
                    f"'{bad[0]}' holds NaN or infinity after iteration {report.iteration}",
                    "finite numbers",
                    "Lower inner_lr or outer_lr, or look for bad values in the data; "
                    "an earlier checkpoint is unharmed.",
                )
            )
        if run:
            save_checkpoint(
                run.checkpoint,
                Checkpoint(
                    params,
                    outer,
                    report.iteration,
                    settings.seed,
                    run.digest(),
                    {"seconds": time.monotonic() - started, "losses": unreported()},
                ),
            )

    def note() -> list[float]:
        """Signals seen on any rank; by the clock of rank 0, the time and whether to save."""
        now = time.monotonic()
        due = now - kept >= settings.checkpoint_seconds
        own = [now - started, float(due)] if ranks.first else [0.0, 0.0]
        return [float(signum in stopped) for signum in STOPS] + own

    meeting = Meeting(ranks, settings.meta_batch, note)
    meets = {"others": meeting} if ranks.world > 1 else {}
    with _stop_signals() as stopped:
        for iteration, episodes, key in batches(
            tasks,
            meta_batch=settings.meta_batch,
            seed=settings.seed,
            first=first,
            last=settings.meta_iterations,
            own=ranks.part(settings.meta_batch),
        ):
            done = settings.done(iteration, report.seconds)
            rate = settings.outer_rate(done)
            params, outer, loss = engine.update(
                params, outer, episodes, key, outer_lr=rate, done=done, **meets
            )
            losses.append(loss)
            *signals, report.seconds, due = meeting.told()
            report.iteration = iteration + 1
            last = settings.done(report.iteration, report.seconds) >= 1
            every = settings.validate_every
            noted = last or bool(every and report.iteration % every == 0)
            if validate and every and noted:
                paused = time.monotonic()
                with part("validation"):
                    report.validation = validate(params)
                started += time.monotonic() - paused
            if noted or len(before) + len(losses) >= BLOCK:
                report.loss = statistics.fmean(unreported())
                if not math.isfinite(report.loss):
                    raise shared(
                        InputError(
                            f"the training loss is {report.loss} at iteration {report.iteration}",
                            "a finite loss",
                            "Lower inner_lr or outer_lr, or look for bad values in the data.",
                        )
                    )
                before, losses = [], []
                if progress:
                    progress(report)
                if run and every and noted:
                    run.log(
                        iteration=report.iteration,
                        loss=report.loss,
                        validation=report.validation,
                        seconds=report.seconds,
                    )
            if ranks.world == 1:  # need not wait for the next meeting
                signals = [float(signum in stopped) for signum in STOPS]
            stop = [signum for signum, seen in zip(STOPS, signals, strict=True) if seen]
            if stop or last or due:
                with part("checkpoint"):
                    keep()
                kept = time.monotonic()
            iterated()
            if stop and not last:
                raise Interrupted(stop[0], report.iteration)
            if last:
                break
    return params, report


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that an iteration is never torn apart."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    handlers = {}
    for signum in STOPS:
        handlers[signum] = signal.signal(signum, lambda number, _frame: seen.append(number))
    try:
        yield seen
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
