"""The speed benchmark: answers are held against float64 first, and a missing rival is said so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tegu import datasets, report, timing
from tegu.engine import vectorise
from tegu.errors import InputError

FOLDER = str(Path(__file__).resolve().parents[1] / "benchmarks")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, as it is when it is started."""
    monkeypatch.syspath_prepend(FOLDER)
    import speed

    def here(name: str, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(speed, "apart", here)
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
    assert json.loads(output.read_text())["command"] == made["command"]
    with pytest.raises(InputError, match="unknown row 'three'"):
        speed.main([*words, "--only", "three"])
    other = {**made, "commit": "0" * 40}
    output.write_text(json.dumps(other))
    with pytest.raises(InputError, match="whose commit differ"):
        speed.main([*words, "--only", "two"])
    assert json.loads(output.read_text()) == other


def test_a_result_of_some_rows_says_which(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed.Setup, "limits", {"fp32": 1e9, "bf16": 1e9})
    row = partial(contest, speed)
    monkeypatch.setattr(
        speed, "ROWS", {name: lambda _, name=name: iter([row(name)]) for name in ("one", "two")}
    )
    output = tmp_path / "some.json"
    for only, said in (("two", " --only two"), ("one", " --only two one"), ("two", " two one")):
        speed.main(["--output", str(output), "--rounds", "3", "--seconds", "0.1", "--only", only])
        assert json.loads(output.read_text())["command"].endswith(said)


def test_a_wrong_answer_is_not_timed() -> None:
    right = [torch.tensor([1.0, 2.0])]
    timing.refuse("work", "tegu", timing.apart([right[0] * (1 + 1e-6)], right), 1e-5)
    for wrong in (right[0] * 1.1, right[0] * float("nan"), right[0][:1]):
        with pytest.raises(InputError, match=r"work: tegu is .* away from the loop in float64"):
            timing.refuse("work", "tegu", timing.apart([wrong], right), 1e-2)


def test_a_row_starts_once_it_agrees_with_float64(speed: Any) -> None:
    """Each row refuses what is wrong before it yields; this one needs no rival installed."""
    first = next(iter(speed.ROWS["transductive"](speed.Setup())))
    first.ours(0)
    assert first.per > 0


def test_reptile_and_its_plain_loop_agree_with_float64(
    speed: Any, holding: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    next(iter(speed.ROWS["reptile"](speed.Setup(holding("omniglot")))))
    said = capsys.readouterr().out
    for who in ("tegu in fp64", "tegu in fp32", "plain loop in fp32"):
        assert who in said


def test_a_device_that_is_not_there(speed: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--device tpu; expected cpu.*\. Leave it out"):
        speed.main(["--device", "tpu", "--output", str(tmp_path / "speed.json")])


def test_graphs_are_contests_of_their_own(speed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """On a GPU; where one cannot be recorded, what was found before it stays."""
    assert [speed.Setup(device=name).graphs for name in ("cpu", "cuda")] == [
        (False,),
        (False, True),
    ]

    def row(setup: Any) -> Iterator[Any]:
        yield contest(speed, "a")
        raise RuntimeWarning("no CUDA graph, since it cannot be recorded")

    assert [one.work for one in speed.made(row, speed.Setup())] == ["a"]
    assert "left out: no CUDA graph" in capsys.readouterr().out
    peak = speed.Peak()
    assert not speed.memory(contest(speed, f"a{speed.GRAPHS}"), peak)


ALL = "sinusoids-1 sinusoids-5 maml reptile test-tasks protonet transductive sampling one-task"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rows would run")
@pytest.mark.parametrize("row", ALL.split())
def test_rows_go_where_they_are_told(speed: Any, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    """To a GPU that is not there: none runs on the processor instead."""
    noise = sys.modules["rows.sampling"].data
    monkeypatch.setattr(datasets, "load_omniglot", lambda *_, **__: noise(1_000))
    assert sorted(speed.ROWS) == sorted(ALL.split())
    with pytest.raises((InputError, AssertionError, RuntimeError), match=r"(?i)\bcuda|nvidia"):
        next(speed.ROWS[row](speed.Setup(device="cuda")))


class There(Tensor):
    """A tensor that says it is on "meta", and has numbers nevertheless."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        form = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        kind: Any = torch.Tensor
        made = kind._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device="meta", **form
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _apart(function, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """A device beside the processor, whose tensors do not mix with the processor's."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _apart(function, args, kwargs or {})


def _apart(function: Any, args: Any, kwargs: Any) -> Any:
    name = function._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [isinstance(x, There) for x in tensors]
    moves = name in ("aten::_to_copy", "aten::copy_")
    if any(there) and not moves:
        here = [x.shape for x, away in zip(tensors, there, strict=True) if x.ndim and not away]
        assert not here, f"{name} of tensors there and of {here} here"
    asked = kwargs.get("device")
    away = any(there) if asked is None else torch.device(asked).type == "meta"

    def inner(x: Any) -> Any:
        if isinstance(x, There):
            return x.inner
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == "meta" else x

    given = tree_map(inner, args)
    out = function(*given, **tree_map(inner, kwargs))
    if given and out is given[0]:  # in place
        return args[0]
    return tree_map(lambda x: There(x) if away and isinstance(x, Tensor) else x, out)


@pytest.mark.parametrize(("row", "contests"), [("sinusoids-1", 1), ("sampling", 2)])
def test_rows_mix_no_devices(
    speed: Any, monkeypatch: pytest.MonkeyPatch, row: str, contests: int
) -> None:
    """A GPU's rule, kept on a processor; not compiled, which would not hear of it."""
    monkeypatch.setattr(vectorise, "Compiled", lambda function: function)
    monkeypatch.setattr(sys.modules["rows.sampling"], "BLOCK", 200)
    with Elsewhere():
        with pytest.raises(AssertionError, match="aten::add of tensors there and of"):
            torch.ones(2, device="meta") + torch.ones(2)
        for one in islice(speed.ROWS[row](speed.Setup(device="meta")), contests):
            for act in (one.ours, one.theirs):
                made = tree_leaves(act(0)) if act else []
                assert {x.device.type for x in made if isinstance(x, Tensor)} <= {"meta"}
                assert made or not act


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
