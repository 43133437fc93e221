"""A run's folder: its recipe, metrics and checkpoint, of which nothing is ever torn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tegu.engine.checkpoint import Checkpoint, load_checkpoint
from tegu.errors import InputError
from tegu.files import expanded, read_object, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SHOWN = 4  # settings that differ, told with their values
LARGEST = 64 << 20  # bytes that a run's metrics or settings may have
CLASSES = "classes.json"
BEGAN = "began"  # key of a recipe: how long a run was to be at first, where it was prolonged
LONGEST = 1 << 30  # bytes of it; a longer list is not kept


@dataclass
class Run:
    """A run's folder: `recipe.json`, `metrics.jsonl`, `checkpoint.safetensors`.

    Args:
        folder: where; made if it is not there.
        recipe: everything that decides the result, as plain data.
        job: name of the job that starts the run, kept in a file `job`. A job whose
            processes are started again goes on with its own run without being told.
        same: whether two recipes are of one run; a run goes on under its recipe as it was
            written when the run began.
        classes: of training, and how many examples each has, where they may change from one
            day to the next; kept in a file `classes.json`.
        lengths: settings, by dotted name, that say how long it trains. A run that is resumed
            may have others, at least what it began with; from `settle` on its file tells both.
    """

    folder: Path
    recipe: dict[str, Any]
    job: str = ""
    same: Callable[[Any, Any], bool] = operator.eq
    classes: dict[str, int] | None = None
    lengths: tuple[str, ...] = ()
    _lines: list[str] = field(default_factory=list)
    _held: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.folder = expanded(self.folder)

    @property
    def checkpoint(self) -> Path:
        """The file that holds what was meta-learned so far."""
        return self.folder / "checkpoint.safetensors"

    def digest(self) -> str:
        """SHA-256 of the recipe that the run began with."""
        began = _with(self.recipe, self.recipe.get(BEGAN))
        began.pop(BEGAN, None)
        return hashlib.sha256(json.dumps(began, sort_keys=True).encode()).hexdigest()

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
        with contextlib.suppress(OSError):  # the first file that is written says why not
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        # What a kill in the middle of a write leaves behind; see write_atomically.
        unfinished = {
            path
            for name in (file.name, self.checkpoint.name, "metrics.jsonl", "job", CLASSES)
            for path in self.folder.glob(f".{name}.*")
        }
        mark = self.folder / "job"
        mine = bool(self.job) and mark.is_file() and mark.read_bytes() == self.job.encode()
        # The mark is written first, and alone it is no run.
        if self.folder.exists() and set(self.folder.iterdir()) - unfinished - {mark}:
            self._check_is_mine(file, resume=resume)
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
        if self.classes is not None:
            self._check_classes(self.classes)
        if not (resume and self.checkpoint.exists()):
            return None
        checkpoint = load_checkpoint(self.checkpoint)
        for values in read_metrics(self.folder / "metrics.jsonl"):
            if values["iteration"] <= checkpoint.iteration:
                self._lines.append(json.dumps(values))
        return checkpoint

    def settle(self) -> None:
        """Writes how long the run is to be, where that has changed: once nothing can refuse it."""
        file, now = self.folder / "recipe.json", json.loads(json.dumps(self.recipe))
        if BEGAN in now and read_object(file, LARGEST) != now:
            write_atomically(file, json.dumps(self.recipe, indent=1).encode())

    def _lock(self) -> None:
        """Keeps other processes off the folder until `close`, or the end of this one.

        Raises:
            InputError: another process has it.
        """
        if fcntl is None or self._held is not None or not self.folder.is_dir():
            return
        with contextlib.suppress(OSError):
            self._held = os.open(self.folder, os.O_RDONLY)
        if self._held is None:
            return
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(
                f"another process is at work in {self.folder}",
                "one process for each run",
                "Wait for its end, stop it, or choose another folder.",
            ) from None
        except OSError:
            pass  # a file system without locks

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes into the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _sign(self, mark: Path) -> None:
        if self.job:
            write_atomically(mark, self.job.encode())
        elif mark.exists():
            mark.unlink(missing_ok=True)

    def _check_is_mine(self, file: Path, *, resume: bool) -> None:
        """Takes the recipe of the folder, with other lengths where these may change."""
        if not file.is_file():
            raise InputError(
                f"{self.folder} is not empty and holds no run",
                "a new or empty folder, or a run to resume",
                "Choose another folder; nothing in this one was touched.",
            )
        try:
            other = read_object(file, LARGEST)
            began = other.pop(BEGAN, {})
            if not (isinstance(began, dict) and all(map(_number, began.values()))):
                raise ValueError(f"{BEGAN} is {began!r}")
        except ValueError as failure:
            raise InputError(
                f"{file} holds no settings",
                "a recipe that tegu has written",
                "Choose another folder.",
            ) from failure
        mine = json.loads(json.dumps(self.recipe))  # as it reads back: tuples are lists there
        before, now = _flat(other), _flat(mine)
        changed = {
            name: now[name]
            for name in (self.lengths if resume else ())
            if _number(before.get(name)) and _number(now.get(name)) and before[name] != now[name]
            if 0 < began.get(name, before[name]) <= now[name]  # 0 says: no limit
        }
        if not self.same(_with(other, changed), mine):
            differ = _changes(_with(other, changed), mine)
            raise InputError(
                f"{self.folder} belongs to a run with other settings ({differ})",
                "the settings that the run was started with",
                "Use those settings, or choose another folder.",
            )
        self.recipe = _with(other, changed)
        if began := {name: before[name] for name in changed} | began:
            self.recipe[BEGAN] = began
        if began and not self.lengths:
            raise InputError(
                f"{self.folder} holds a run that was prolonged ({BEGAN} with {json.dumps(began)})",
                "a run that its settings alone make again",
                "Go on with it by `tegu train`, or choose another folder.",
            )

    def _check_classes(self, classes: dict[str, int]) -> None:
        """Notes down what is trained on, or refuses other data than the run began with."""
        before = read_classes(self.folder)
        if before is None:
            # A run that an earlier version began may have been trained on others.
            data = json.dumps(classes).encode()
            if not self.checkpoint.exists() and len(data) <= LONGEST:
                write_atomically(self.folder / CLASSES, data)
        elif before != classes:
            raise InputError(
                f"training data of {len(classes)} classes and {sum(classes.values()):,} examples, "
                f"other than those that {self.folder} began with ({len(before)} and "
                f"{sum(before.values()):,})",
                "the same examples, so that the run goes on as if it had never stopped",
                "Put them back, or begin another run.",
            )

    def log(self, **values: Any) -> None:
        """Adds a line to the metrics."""
        self._lines.append(json.dumps(values))
        write_atomically(self.folder / "metrics.jsonl", ("\n".join(self._lines) + "\n").encode())


def read_classes(folder: Path) -> dict[str, int] | None:
    """Classes that a run was trained on and their sizes; None where it does not say.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / CLASSES
    if not file.is_file():
        return None
    try:
        classes: dict[str, int] = read_object(file, LONGEST)
        if not all(type(count) is int for count in classes.values()):
            raise ValueError("sizes that are no whole numbers")
    except ValueError as failure:
        raise InputError(
            f"{file} is no list of classes ({failure})",
            "the file that a run has written",
            "Move it away to go on without a look at whether the data are the same.",
        ) from failure
    return classes


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


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first of the settings that differ, with their values; only names of what is long."""
    one, other = _flat(before), _flat(now)
    told = []
    changed = (k for k in {*one, *other} if one.get(k) != other.get(k))
    # What one side lacks comes last: it may be new in this version, and as it was.
    for name in sorted(changed, key=lambda k: (k not in one or k not in other, k)):
        was, is_now = (json.dumps(side[name]) if name in side else "unset" for side in (one, other))
        short = len(was) + len(is_now) < 60
        told.append(f"{name} {was} there, {is_now} here" if short else f"{name} differs")
    more = [f"{len(told) - SHOWN} more"] if len(told) > SHOWN else []
    return "; ".join([*told[:SHOWN], *more])


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _with(settings: dict[str, Any], changed: Any) -> dict[str, Any]:
    """A copy of nested settings with some of them, by dotted name, replaced."""
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in settings.items()}
    for name, value in changed.items() if isinstance(changed, dict) else ():
        section, _, key = name.rpartition(".")
        if isinstance(out.get(section), dict):
            out[section][key] = value
    return out


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found
