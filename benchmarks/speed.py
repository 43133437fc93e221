"""How fast is tegu next to what people use, and how close to what the machine can do?

    python benchmarks/speed.py --install ENVIRONMENT
    ENVIRONMENT/bin/python benchmarks/speed.py --data-dir DATA

The first command makes an environment with the rivals: learn2learn, higher, TorchOpt and
easyfsl. The second has tegu and each of them do the same work, with the same weights,
tasks and precision, in turn, in one process; another row has a process of its own, so that it
does not matter what others left behind. Each answer is compared with a plain loop in float64
before anything is timed. `--only ROW ...` runs some rows and keeps the others of the result
file, if they come from the same commit, machine and versions.

Where a rival is not installed, its row says so. With `--device cuda` all of it runs on a GPU, tegu
once without CUDA graphs and once with them. fp32 is fp32 there: torch by default rounds the
inputs of convolutions, though not of matrix products, to TF32, which is switched off for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from rows import ROWS
from rows.contest import GRAPHS, Contest, Peak, Row, Setup, run
from rows.rivals import install

from tegu import origin, report
from tegu.engine.precision import half_pays
from tegu.errors import InputError, unknown
from tegu.processes import apart

COMMAND = (
    "python benchmarks/speed.py --data-dir DATA --rounds {rounds} --seconds {seconds:g}{there}"
)
ONLY = " --only "
NOTHING: dict[str, Any] = dict.fromkeys(report.TIMING)
ORIGIN = ("commit", "versions", "hardware")


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A document with the rows of another that it lacks.

    Raises:
        InputError: the two come from different commits, machines or versions.
    """
    if old is None:
        return new
    other = [key for key in ORIGIN if old[key] != new[key]]
    if other:
        raise InputError(
            f"rows of two results whose {' and '.join(other)} differ",
            "rows of one commit on one machine",
            "Run all rows again, or name another --output.",
        )
    peak = [document["training"]["peak_bytes"] for document in (old, new)]
    training = {**new["training"], "peak_bytes": max(peak) if all(peak) else None}
    cells = {_name(one): one for document in (old, new) for one in document["cells"]}
    command, _, rows = new["command"].partition(ONLY)
    before = old["command"].partition(ONLY)[2]
    if rows and before:
        command += ONLY + " ".join(dict.fromkeys([*before.split(), *rows.split()]))
    return {**new, "command": command, "training": training, "cells": list(cells.values())}


def _name(cell: dict[str, Any]) -> Any:
    if "metric" in cell:
        return json.dumps(cell["protocol"])
    # An absent rival's row makes room for the rival's own.
    rival = (cell["rival"] or "").partition(":")[0]
    return cell["work"], cell["precision"], rival


def made(row: Row, setup: Setup) -> Iterator[Contest]:
    """A row's contests, up to the first whose CUDA graph cannot be recorded: those come last."""
    try:
        yield from row(setup)
    except RuntimeWarning as refusal:
        print(f"  the others are left out: {refusal}")


def memory(contest: Contest, peak: Peak) -> list[dict[str, Any]]:
    """Bytes that one call of tegu, and of the rival, holds at its peak.

    Nothing where tegu replays: a CUDA graph holds its memory between calls.
    """
    if contest.work.endswith(GRAPHS):
        return []
    cells = []
    named = ("tegu", contest.ours), (contest.rival, contest.theirs)
    for who, act in named:
        if act:
            for _ in range(3):  # what is compiled at first calls is no memory of the work
                act(0)
        found = peak.of(partial(act, 0)) if act else None
        if found:
            work = f"{contest.work}, {contest.precision}: {who}"
            cells.append(
                {
                    "protocol": {"learner": work},
                    "metric": "bytes",
                    "value": found,
                    "ci95": None,
                    "episodes": 1,
                    "published": None,
                    "source": "",
                }
            )
    return cells


def measured(name: str, setup: Setup) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """A row's timings, what its calls hold in memory, and the most that the process held."""
    if setup.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        warnings.filterwarnings("error", "no CUDA graph", RuntimeWarning)
    cells: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    started = time.monotonic()
    print(f"{name}:", flush=True)
    for contest in made(ROWS[name], setup):
        held += memory(contest, Peak(setup.device))
        cells.append(run(contest, setup, setup.limits))
        print(report.table(cells[-1:]), flush=True)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return cells, held, origin.peak_bytes() or 0


def document(
    name: str,
    cells: list[dict[str, Any]],
    setup: Setup,
    only: Sequence[str] = (),
    peak: int | None = None,
) -> dict[str, Any]:
    training = {"seconds": None, "meta_iterations": None, "peak_bytes": peak}
    there = "" if setup.device == "cpu" else f" --device {setup.device}"
    command = COMMAND.format(rounds=setup.rounds, seconds=setup.seconds, there=there)
    return report.result_document(
        name=name,
        command=command + ONLY + " ".join(only) if only else command,
        seed=0,
        training=training,
        cells=cells,
    )


def keep(
    path: Path, cells: list[dict[str, Any]], setup: Setup, only: Sequence[str], peak: int
) -> None:
    """Writes a result; where only some rows were run, with the others that the file had."""
    old = json.loads(path.read_text()) if path.is_file() and only else None
    new = document(path.stem, cells, setup, only, peak or None)
    report.write_result(path, merged(old, new))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", type=Path, metavar="DIR", help="make the rivals' environment")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--rounds", type=int, default=20, help="at most, of each contest")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each contest, about")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="result file")
    arguments = parser.parse_args(argv)
    if arguments.install:
        print(f"now: {install(arguments.install)} {__file__} --data-dir DATA")
        return
    for name in arguments.only or ():
        if name not in ROWS:
            raise unknown("row", name, ROWS)
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if arguments.device not in there:
        raise InputError(
            f"--device {arguments.device}",
            " or ".join(there),
            "Leave it out, or run on a machine with a GPU and a torch that is built for it.",
        )
    if arguments.output is None:
        end = "" if arguments.device == "cpu" else f"-{arguments.device}"
        arguments.output = Path(f"benchmarks/results/speed{end}.json")
    setup = Setup(arguments.data_dir, arguments.rounds, arguments.seconds, arguments.device)
    # Held to the end, so that the result names the GPU, whatever else is freed.
    used = torch.zeros(1, device=arguments.device)
    if arguments.only and arguments.output.is_file():  # before anything is timed
        merged(
            json.loads(arguments.output.read_text()),
            document(arguments.output.stem, [NOTHING], setup),
        )
    if not half_pays(used.device):
        print("bf16 is left out: it is slower here than fp32")
    beside = arguments.output.with_name(f"{arguments.output.stem}-memory.json")
    cells: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    most = 0
    for name in arguments.only or ROWS:
        timed, bytes_held, peak = apart(name, measured, name, setup)
        cells, held, most = [*cells, *timed], [*held, *bytes_held], max(most, peak)
        keep(arguments.output, cells, setup, arguments.only or (), most)
        if held:
            keep(beside, held, setup, arguments.only or (), most)


if __name__ == "__main__":
    main()
