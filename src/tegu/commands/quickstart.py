"""The first command that people try: what meta-learning adds, in three minutes."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from tegu import pictures as draw
from tegu import recipes, report
from tegu.commands.runs import trained
from tegu.commands.scoring import picture_episode, protocol_of, score_cell
from tegu.commands.shared import Outcome, check_output, listed, settings_of, training_of
from tegu.engine.evaluate import Result
from tegu.errors import InputError
from tegu.inner import Params
from tegu.job import Job

LABELS = {
    "scratch": "trained from scratch on the support set",
    "before": "Reptile before meta-training",
    "after": "Reptile after meta-training",
}


def quickstart(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """Meta-learning next to learning from scratch, on characters nobody has shown it."""
    job = Job(recipes.load("reptile-glyphs", overrides), arguments.data_dir)
    characters = job.recipe.data.name in ("glyphs", "omniglot")
    if not characters or job.recipe.learner["name"] != "reptile":
        raise InputError(
            f"a quick start with {job.recipe.learner['name']} on {job.recipe.data.name}",
            "reptile on glyphs or omniglot",
            "Use `tegu train` for others.",
        )
    job.check()
    if arguments.output:
        check_output(arguments.output)
    if arguments.resume and not arguments.run:
        raise InputError("--resume without --run", "the run to go on with", "Add --run DIR.")
    folder = arguments.run = arguments.run or _new_folder(Path("runs") / "quickstart")
    params, last, pictures = trained(job, folder, resume=arguments.resume)
    cell, way = job.recipe.evaluate.cells[0], job.recipe.train.n_way
    rows = _scored(job, params)
    pictures = [*_drawn(job, params, rows, folder), *pictures]
    after, protocol = rows["after"], protocol_of(job, cell)
    cells = [
        report.cell(row, **{**protocol, "learner": LABELS[name]}) for name, row in rows.items()
    ]
    output = arguments.output or folder / "quickstart.json"
    report.write_result(
        output,
        report.result_document(
            name="quickstart",
            command=f"tegu quickstart{settings_of(arguments)}",
            seed=job.recipe.train.seed,
            training=training_of(last),
            cells=cells,
        ),
    )
    document = {
        "chance": 1 / way,
        **{name: row.value for name, row in rows.items()},
        "ci95": after.ci95,
        "intervals": {name: row.ci95 for name, row in rows.items()},
        "episodes": after.episodes,
        "seconds": 0.0,
        "protocol": {**protocol, "split": after.split, "normalisation": after.normalisation},
        "run": str(folder),
        "pictures": [str(path) for path in pictures],
        "result": str(output),
    }
    lines = [
        f"{way}-way {cell.n_shot}-shot on {after.episodes} tasks of unseen characters",
        f"chance: {1 / way:.1%}",
        report.table(cells),
        *listed(pictures),
        f"result: {output}",
        f"next: tegu info {shlex.quote(str(folder))}, tegu train --help, tegu recipes",
    ]
    return document, "\n".join(lines)


def _scored(job: Job, params: Params) -> dict[str, Result]:
    """Accuracy of each of `LABELS` on the same tasks."""
    learner: Any = job.learner
    fresh = learner.init()
    # From scratch: the same network and images, a common Adam, and time to converge.
    scratch = replace(learner, carry=False, beta1=0.9, eval_steps=3 * learner.eval_steps)
    contestants = {
        "scratch": (scratch, {k: v for k, v in fresh.items() if "/" not in k}),
        "before": (learner, fresh),
        "after": (learner, params),
    }
    cell = job.recipe.evaluate.cells[0]
    return {
        name: score_cell(job, cell, chosen, start, title=f"evaluate {name}")
        for name, (chosen, start) in contestants.items()
    }


def _drawn(job: Job, params: Params, rows: dict[str, Result], folder: Path) -> list[Path]:
    """The accuracies side by side, and one task with the answers to it."""
    cell, way = job.recipe.evaluate.cells[0], job.recipe.train.n_way
    bars = [("chance", 1 / way, 0.0)]
    bars += [(LABELS[name], row.value, row.ci95) for name, row in rows.items()]
    gain = 100 * (rows["after"].value - rows["scratch"].value)
    title = f"Unseen characters, {way}-way {cell.n_shot}-shot: {gain:+.0f} points by meta-learning"
    pictures = [folder / "comparison.png", folder / "episode.png"]
    draw.comparison(bars, pictures[0], title=title, highlight=[LABELS["after"]])
    picture_episode(job, cell, params, pictures[1])
    return pictures


def _new_folder(wanted: Path) -> Path:
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
