"""What people see: lines where nobody watches, a bar on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import threading

import pytest

from tegu import console
from tegu.engine.train import Progress
from tegu.errors import InputError


class Clock:
    """Stands in for the time module: a second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_a_line_every_tenth(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.bar("train", 1000, unit="iterations") as tell:
        for done in range(50, 1001, 50):
            tell(done, "loss 1.0")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "train: 1,000 iterations"
    assert lines[1] == "train: 50/1,000 iterations  loss 1.0"
    assert lines[2] == "train: 100/1,000 iterations, 50.0/s, 0:18 left  loss 1.0"
    assert lines[-1] == "train: 1,000/1,000 iterations, 50.0/s  loss 1.0"
    assert len(lines) == 12


def test_a_line_every_minute(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.bar("train", 100_000, unit="iterations") as tell:
        for done in range(1, 201):
            tell(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines[1:]] == [
        "train: 1",
        "train: 61",
        "train: 121",
        "train: 181",
    ]


def test_a_resumed_run_has_its_own_speed(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.bar("train", 1000, unit="iterations") as tell:
        tell(900)
        tell(950)
        tell(1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "train: 900/1,000 iterations",
        "train: 1,000/1,000 iterations, 50.0/s",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.9, "0:00"), (61, "1:01"), (3600, "1:00:00"), (90_061, "25:01:01")]
)
def test_time_left(seconds: float, shown: str) -> None:
    assert console._clock(seconds) == shown


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last picture holds the title, the counts, the unit and the note."""
    reader, writer = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        with contextlib.suppress(OSError):  # once the terminal is closed
            while data := os.read(reader, 4096):
                seen.append(data)

    watcher = threading.Thread(target=watch)
    watcher.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with console.bar("train", 40, unit="iterations") as tell:
            for done in (10, 40):
                tell(done, f"loss {1 / done}")
    watcher.join()
    os.close(reader)
    shown = b"".join(seen).decode()
    assert "\x1b[" in shown
    last = [line for line in shown.splitlines() if "iterations" in line][-1]
    for part in ("train", "40/40", "loss 0.025"):
        assert part in last


def test_complaints_have_three_parts(capsys: pytest.CaptureFixture[str]) -> None:
    console.complain(InputError("n_way is 1", "at least 2", "Pass n_way=2."))
    expected = "error: n_way is 1\n  expected: at least 2\n  what to do: Pass n_way=2.\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(
    ("metric", "validation", "shown"),
    [
        ("accuracy", None, "loss 0.500, 20 episodes/s"),
        ("accuracy", 0.954, "loss 0.500, validation accuracy 95.4%, 20 episodes/s"),
        ("mse", 0.954, "loss 0.500, validation mse 0.954, 20 episodes/s"),
    ],
)
def test_notes_of_training(metric: str, validation: float | None, shown: str) -> None:
    told: list[tuple[int, str]] = []
    tell = console.training(
        lambda done, note: told.append((done, note)), metric=metric, meta_batch=5
    )
    tell(Progress(4, 100, 1.0, 10.0))
    tell(Progress(8, 100, 0.5, 11.0, validation))
    assert told == [(4, "loss 1.000"), (8, shown)]
