"""Commands that measure one thing against another at one budget."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

from tegu import bench, compare, recipes, report
from tegu import leaderboard as board
from tegu import pictures as draw
from tegu.commands.shared import Outcome, check_output, listed, output_of, replaced, settings_of
from tegu.console import bar
from tegu.errors import InputError, unknown
from tegu.job import Job
from tegu.leaderboard import Budget
from tegu.learners import LEARNERS


def leaderboard(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """All learners at one budget, each in a process of its own."""
    budget = _budget(Budget, arguments)
    learners = arguments.learner or board.contenders()
    for name in learners:
        if name not in board.contenders():
            raise unknown("learner of classes", name, board.contenders())
    boards = arguments.data or ["omniglot", "cifar-fs"]
    folder = arguments.run or Path("runs/leaderboard")
    output = output_of(arguments, folder, "leaderboard")
    check_output(folder / "entry.json", "Choose another --run.")
    words = [w for name in arguments.learner or () for w in ("--learner", name)]
    words += [w for name in arguments.data or () for w in ("--data", name)]
    words += _told(budget)
    with bar("leaderboard", len(learners) * len(boards), unit="entries") as tell:
        document = board.run(
            learners,
            boards,
            budget,
            folder,
            data_dir=arguments.data_dir,
            command=shlex.join(["tegu", "leaderboard", *words]),
            progress=lambda done, _total, note: tell(done, note),
        )
    report.write_result(output, document)
    pictures = board.draw(document, folder)
    text = [report.table(document["cells"]), *listed(pictures), f"result: {output}"]
    return document, "\n".join(text)


def compare_learners(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """Learners side by side, each in a process of its own."""
    budget, names = _budget(compare.Budget, arguments), arguments.learners
    data = arguments.data
    if data is None:
        able = compare.common(names)
        if not able:
            told = [f"{name} learns {' or '.join(LEARNERS[name].targets)}" for name in names]
            raise InputError(
                f"a comparison of {' and '.join(names)}, which learn no common kind of task",
                "learners with targets in common",
                f"Take others: {', '.join(told)}.",
            )
        data = able[0]
    folder = arguments.run or Path("runs/compare")
    output = output_of(arguments, folder, f"compare-{'-'.join(names)}")
    check_output(folder / "entry.json", "Choose another --run.")
    words = [*names, *(["--data", data] if arguments.data else []), *_told(budget)]
    command = shlex.join(["tegu", "compare", *words]) + replaced(arguments)
    with bar("compare", len(names), unit="learners") as tell:
        document, entries = compare.run(
            names,
            data,
            budget,
            folder,
            data_dir=arguments.data_dir,
            settings=overrides,
            command=command,
            progress=lambda done, _total, note: tell(done, note),
        )
    report.write_result(output, document)
    picture = folder / f"{data}-{'-'.join(names)}.png"
    draw.side_by_side(entries, picture, title=f"{' and '.join(names)} on {data}")
    header, *rows = document["table"]
    text = [report.aligned(header, rows), *listed([picture]), f"result: {output}"]
    return document, "\n".join(text)


def bench_recipe(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """Every way of running a recipe, timed in turn on this machine."""
    if arguments.output:
        check_output(arguments.output)
    if not 0 < arguments.seconds < math.inf:
        raise InputError(
            f"--seconds {arguments.seconds}", "a number above 0", "Write --seconds 20."
        )
    job = Job(recipes.load(arguments.recipe, overrides), arguments.data_dir)
    job.check()
    ways = bench.ways_of(job)
    with bar("bench", len(ways), unit="ways") as tell:
        found = bench.measure(
            job,
            seconds=arguments.seconds,
            ways=ways,
            progress=lambda done, _total, note: tell(done, note),
        )
    document = bench.document(
        job, found, command=f"tegu bench {arguments.recipe}{settings_of(arguments)}"
    )
    header, *rows = document["table"]
    text = [f"{job.recipe.name}, one meta-iteration:", report.aligned(header, rows)]
    for precision in ("fp32", "bf16"):
        if way := bench.fastest(found, precision):
            text.append(f"fastest in {precision}: {way.settings}")
    if arguments.output:
        report.write_result(arguments.output, document)
        text.append(f"result: {arguments.output}")
    return document, "\n".join(text)


def _budget(kind: type[Any], arguments: argparse.Namespace) -> Any:
    """A budget of some kind, whose fields are options of the command."""
    return kind(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(kind)})


def _told(budget: Any) -> list[str]:
    """The options that make this budget of the usual one."""
    usual = vars(type(budget)())
    said = {key: value for key, value in vars(budget).items() if value != usual[key]}
    return [
        word
        for key, value in said.items()
        for word in (f"--{key}", f"{value:g}" if isinstance(value, float) else str(value))
    ]
