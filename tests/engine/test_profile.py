"""Where time goes: parts add up, a trace is written, and nobody pays who does not look."""

from __future__ import annotations

import gzip
import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tegu import report
from tegu.cli import main
from tegu.engine.profile import PARTS, TRACED, Watch, iterated, part


def work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.ones(8, 8) @ torch.ones(8, 8)


def test_nothing_is_counted_unless_somebody_looks() -> None:
    assert isinstance(part("sampling"), nullcontext)
    iterated()


def test_each_part_gets_its_own_time(tmp_path: Path) -> None:
    with Watch(tmp_path / "trace.json.gz") as watch:
        for _ in range(TRACED.stop):
            with part("sampling"):
                work(0.01)
            with part("inner loop"):
                work(0.03)
            work(0.01)
            iterated()
    assert isinstance(part("sampling"), nullcontext)  # nobody looks any more
    n = watch.iterations
    assert n == TRACED.stop
    assert watch.seconds["sampling"] >= 0.01 * n
    assert watch.seconds["inner loop"] >= 0.03 * n
    assert watch.seconds["outer step"] == 0
    shares = watch.shares()
    assert [name for name, _, _ in shares] == [*PARTS, "other"]
    assert sum(seconds for _, seconds, _ in shares) == pytest.approx(watch.total)
    assert sum(share for _, _, share in shares) == pytest.approx(1)
    other = shares[-1][1]
    assert other >= 0.01 * n
    with gzip.open(watch.trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"sampling", "inner loop", "aten::mm"} <= names
    assert any(name == "aten::mm" for name, _, _ in watch.operations)
    told = report.profile(watch)
    assert "inner loop" in told
    assert str(watch.trace) in told


def test_a_short_run_has_no_trace_and_says_so(tmp_path: Path) -> None:
    with Watch(tmp_path / "trace.json.gz") as watch:
        for _ in range(TRACED.stop - 1):
            work(0.001)
            iterated()
    assert not watch.operations
    assert not list(tmp_path.iterdir())
    assert "no trace" in report.profile(watch)
    assert report.profile_document(watch)["trace"] is None


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--learner", "maml", "--data", "sinusoids", "--meta-iterations", "6"]
    words += ["--run", str(tmp_path / "run"), "--profile", "--json"]
    assert main([*words, "--set", "train.validate_every=3"]) == 0
    found = json.loads(capsys.readouterr().out)["profile"]
    assert found["meta_iterations"] == 6
    for name in PARTS:
        assert found["seconds"][name] > 0, name
    assert found["operations"]
    assert Path(found["trace"]).is_file()
    assert main([*words, "--set", "train.validate_every=3", "--resume"]) == 0  # nothing is left
