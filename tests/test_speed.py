"""The speed benchmark: answers are held against float64 first, and a missing rival is said so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tegu import report, timing
from tegu.errors import InputError

FOLDER = str(Path(__file__).resolve().parents[1] / "benchmarks")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, as it is when it is started."""
    monkeypatch.syspath_prepend(FOLDER)
    import speed

    yield speed
    for name in [name for name in sys.modules if name.partition(".")[0] in ("speed", "rows")]:
        del sys.modules[name]


def contest(speed: Any, work: str, **changed: Any) -> Any:
    given = {"precision": "fp32", "rival": "nobody", "ours": int, "theirs": int} | changed
    return speed.Contest(work, **given)


def test_rows_are_kept_and_replaced(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed.Setup, "limits", {"fp32": 1e9, "bf16": 1e9})
    rows = {
        "one": lambda setup: iter([contest(speed, "a", flops=1000), contest(speed, "b")]),
        "two": lambda setup: iter([contest(speed, "c", theirs=None)]),
    }
    monkeypatch.setattr(speed, "ROWS", rows)
    output = tmp_path / "speed.json"
    words = ["--output", str(output), "--rounds", "3", "--seconds", "0.1"]
    speed.main(words)
    made = json.loads(output.read_text())
    report.check(made)
    assert [cell["work"] for cell in made["cells"]] == ["a", "b", "c"]
    assert made["cells"][0]["share_of_limit"] > 0
    assert made["cells"][2]["rival"] == "nobody: not installed"
    assert made["cells"][2]["ratio"] is None
    rows["two"] = lambda setup: iter([contest(speed, "c")])
    speed.main([*words, "--only", "two"])
    again = json.loads(output.read_text())["cells"]
    assert [cell["rival"] for cell in again] == ["nobody"] * 3
    assert again[:2] == made["cells"][:2]
    with pytest.raises(InputError, match="unknown row 'three'"):
        speed.main([*words, "--only", "three"])
    other = {**made, "commit": "0" * 40}
    output.write_text(json.dumps(other))
    with pytest.raises(InputError, match="whose commit differ"):
        speed.main([*words, "--only", "two"])
    assert json.loads(output.read_text()) == other


def test_a_wrong_answer_is_not_timed() -> None:
    right = [torch.tensor([1.0, 2.0])]
    timing.refuse("work", "tegu", timing.apart([right[0] * (1 + 1e-6)], right), 1e-5)
    for wrong in (right[0] * 1.1, right[0] * float("nan"), right[0][:1]):
        with pytest.raises(InputError, match=r"work: tegu is .* away from the loop in float64"):
            timing.refuse("work", "tegu", timing.apart([wrong], right), 1e-2)


@pytest.mark.parametrize("row", ["transductive"])
def test_rows_agree_with_float64(speed: Any, row: str) -> None:
    """Against what is installed: each row refuses what is wrong before it yields."""
    first = next(iter(speed.ROWS[row](speed.Setup())))
    first.ours(0)
    assert first.per > 0


@pytest.mark.parametrize(("of_512", "rows"), [(0.002, 2048), (0.3, 512)])
def test_a_rate_is_not_measured_for_minutes(
    monkeypatch: pytest.MonkeyPatch, of_512: float, rows: int
) -> None:
    """Eight emulated products of 2,048 rows take some; those of 512 tell as much."""
    asked: list[int] = []

    def product(precision: str, device: torch.device, n: int, *, times: int) -> float:
        asked.append(n)
        return of_512 * (n / 512) ** 3

    monkeypatch.setattr(timing, "product", product)
    assert timing.limit("bf16") == pytest.approx(2 * 512**3 / of_512)
    assert asked == [512, rows]
