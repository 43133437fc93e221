"""What a person sees while tegu works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

from tegu.engine.train import Progress
from tegu.errors import InputError
from tegu.losses import SHARES

SILENCE = 60.0  # seconds without a line, at most


def say(text: str) -> None:
    """A line for people, on standard error so that standard output stays a program's."""
    if sys.stderr is not None:  # closed by whoever started the program
        print(text, file=sys.stderr, flush=True)


def complain(error: InputError, speaker: str = "") -> None:
    """An error in its three parts, and who has it where there are several processes."""
    say(f"{speaker}error: {error.given}\n  expected: {error.expected}\n  what to do: {error.todo}")


@contextmanager
def silent(*, unless: bool) -> Iterator[None]:
    """Nothing on standard error, where another process says the same."""
    if unless:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


Tell = Callable[[int, str], None]


@contextmanager
def bar(title: str, total: int, *, unit: str) -> Iterator[Tell]:
    """A progress bar with time left and speed; without a terminal, a line every
    tenth and at least every minute.

    Args:
        title: what is being done.
        total: how many units it takes.
        unit: "iterations" or "episodes".
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with _rich_bar(title, total, unit) as tell:
            yield tell
        return
    say(f"{title}: {total:,} {unit}")
    yield _lines(title, total, unit)


def _lines(title: str, total: int, unit: str) -> Tell:
    """Speed and time left count from the first report: a resumed run begins in the middle."""
    first: list[tuple[int, float]] = []
    next_line, next_time = 0.0, 0.0

    def tell(done: int, note: str = "") -> None:
        nonlocal next_line, next_time
        now, share = time.monotonic(), done / total
        if not first:
            first.append((done, now))
        if share < next_line and now < next_time and done < total:
            return
        next_line, next_time = int(share * 10) / 10 + 0.1, now + SILENCE
        passed = now - first[0][1]
        speed = (done - first[0][0]) / passed if passed > 0 else 0.0
        shown = f", {speed:.1f}/s" if speed else ""
        left = f", {_clock((total - done) / speed)} left" if speed and done < total else ""
        say(f"{title}: {done:,}/{total:,} {unit}{shown}{left}{'  ' + note if note else ''}")

    return tell


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


@contextmanager
def _rich_bar(title: str, total: int, unit: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, note="", speed="")

        def tell(done: int, note: str = "") -> None:
            speed = progress.tasks[0].speed
            shown = f"{speed:.0f}/s" if speed else ""
            progress.update(task, completed=done, note=note, speed=shown)

        yield tell


def training(
    tell: Tell, *, metric: str, meta_batch: int, by_time: bool = False
) -> Callable[[Progress], None]:
    """Turns a run's reports into a bar's notes; `by_time` counts seconds, not iterations."""
    began: list[tuple[int, float]] = []

    def told(report: Progress) -> None:
        if not began:
            began.append((report.iteration, report.seconds))
        note = f"loss {report.loss:.3f}"
        if report.validation is not None:
            shown = f"{report.validation:.1%}" if metric in SHARES else f"{report.validation:.3f}"
            note += f", validation {metric} {shown}"
        passed = report.seconds - began[0][1]
        if passed > 0:
            rate = (report.iteration - began[0][0]) * meta_batch / passed
            note += f", {rate:.0f} episodes/s"
        tell(int(report.seconds) if by_time else report.iteration, note)

    return told
