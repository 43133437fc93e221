"""All learners at one budget: the same network, data, cores and seconds of training.

Each entry, a learner on a data set, runs in a process of its own, so that its
peak memory is its own too, and leaves a file behind; a leaderboard that was
stopped goes on with the entries that are missing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tegu import entries, keys, origin, pictures, recipes, report
from tegu.engine.trees import tensors_of
from tegu.engine.vectorise import Vectorised
from tegu.errors import unknown
from tegu.files import expanded
from tegu.job import Job
from tegu.learners import LEARNERS
from tegu.processes import apart

REPEATS = 20  # timings of one task, after two that do not count
SCORING = 60.0  # seconds for the tasks of as many shots; learners by gradient may manage fewer
META_BATCH = 4  # tasks of a meta-iteration at most: of a short budget, more and smaller steps


@dataclass(frozen=True)
class Board:
    """A data set and the figures wanted on it.

    Args:
        n_way: classes of a test task.
        shots: examples per class, a figure each.
        settings: of the data and the network, by dotted key.
        apart: on a processor, tasks that have weights of their own follow one another: what
            several of them need does not fit its caches. With four tasks of CIFAR-FS side by
            side, a meta-iteration of FOMAML took 736 ms in place of 348.
    """

    n_way: int
    shots: tuple[int, ...]
    settings: dict[str, Any]
    apart: bool = False


BOARDS = {
    "omniglot": Board(20, (1,), {"data.partition": "vinyals", "model.name": "conv4"}),
    "cifar-fs": Board(5, (1, 5), {"model.name": "conv4", "model.pool": True}, True),
    "glyphs": Board(5, (1,), {"model.name": "conv4", "model.width": 32}),
}


@dataclass(frozen=True)
class Budget:
    """What every entry gets.

    Args:
        seconds: of meta-training, everything included.
        episodes: test tasks for each figure, or as many as are answered in `SCORING` seconds, two
            blocks of them at least.
        seed: of weights, training tasks and random numbers.
        precision: "fp32", "bf16", or "auto": bf16 where the machine is faster in it.
        threads: processor threads; 0 for torch's own choice.
        device: "cpu" or "cuda".
    """

    seconds: float = 180.0
    episodes: int = 1000
    seed: int = 0
    precision: str = "fp32"
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        entries.limited(self.seconds)


def contenders() -> list[str]:
    """Learners of classes, by name."""
    return sorted(name for name, cls in LEARNERS.items() if "classes" in cls.targets)


def job(learner: str, data: str, budget: Budget, data_dir: Path | None = None) -> Job:
    """The training of one entry.

    Raises:
        InputError: no such learner or board, or data that are missing.
    """
    if data not in BOARDS:
        raise unknown("leaderboard", data, BOARDS)
    board = BOARDS[data]
    settings: dict[str, Any] = {
        **board.settings,
        "train.meta_iterations": 10_000_000,
        "train.seconds": float(budget.seconds),
        "train.validate_every": 0,
        "train.seed": budget.seed,
        "evaluate.episodes": budget.episodes,
        "engine.precision": budget.precision,
        "engine.threads": budget.threads,
        "engine.device": budget.device,
        "engine.compile": "off",
    }
    recipe = recipes.starting(learner, data, settings)
    own = "n_way" in LEARNERS[learner].__dataclass_fields__
    n_way = max(recipe.train.n_way, board.n_way) if own else board.n_way
    meta_batch = min(recipe.train.meta_batch, META_BATCH)
    mode = recipe.learner["normalisation"]
    modes = ("running",) if mode == "running" else ("support", "transductive")
    cells = tuple(
        recipes.Cell(
            n_way=board.n_way,
            n_shot=shot,
            n_query=15 if LEARNERS[learner].transductive else 1,
            normalisation=name,
        )
        for shot in board.shots
        for name in modes
    )
    recipe = replace(
        recipe,
        train=replace(recipe.train, n_way=n_way, meta_batch=meta_batch),
        evaluate=replace(recipe.evaluate, cells=cells),
    )
    if board.apart and mode != "running" and budget.device == "cpu":
        recipe = replace(
            recipe,
            engine=replace(recipe.engine, at_once=1),
            evaluate=replace(recipe.evaluate, at_once=1),
        )
    return Job(recipe, data_dir)


def entry(learner: str, data: str, budget: Budget, data_dir: Path | None = None) -> dict[str, Any]:
    """Trains, scores and times one learner: {"cells": [...], "training": {...}}."""
    one = job(learner, data, budget, data_dir)
    one.check()
    params, last = one.train(None)
    training = {
        "seconds": round(last.seconds, 1),
        "meta_iterations": last.iteration,
        "peak_bytes": origin.peak_bytes(),
    }
    cells = []
    for cell, result in one.evaluate(params, seconds=SCORING):
        chosen = one.judge(cell)
        adapt_ms, state_bytes = _task(one, cell, one.engine(chosen, steps=0), params)
        protocol: dict[str, Any] = {
            "data": data,
            "n_way": cell.n_way,
            "n_shot": cell.n_shot,
            "n_query": cell.n_query,
            "transductive": True if chosen.transductive else None,
            "learner": learner,
        }
        cost = {
            "training_seconds": training["seconds"],
            "meta_iterations": training["meta_iterations"],
            "adapt_ms": adapt_ms,
            "peak_bytes": training["peak_bytes"],
            "state_bytes": state_bytes,
        }
        cells.append({**report.cell(result, **protocol), "cost": cost})
    return {"cells": cells, "training": training}


def _task(one: Job, cell: Any, engine: Vectorised, params: Any) -> tuple[float, int]:
    """Milliseconds to learn one task and answer its queries, and bytes of what was learned."""
    tasks = one.tasks(
        "meta_test", n_way=cell.n_way, n_shot=cell.n_shot, n_query=cell.n_query, seed=7
    )
    batch = tasks.episodes(torch.arange(1))
    at = keys.key(0, device=batch.support.x.device).reshape(1)
    took = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        state = engine.adapt(params, batch.support, at)
        engine.predict(params, state, batch.query).sum().item()  # waits for a GPU
        took.append(1e3 * (time.perf_counter() - began))
    size = sum(x.numel() * x.element_size() for x in tensors_of(state))
    return statistics.median(took[2:]), size


def _apart(learner: str, data: str, *rest: Any) -> dict[str, Any]:
    """`entry` in a process of its own."""
    found: dict[str, Any] = apart(f"{learner} on {data}", entry, learner, data, *rest)
    return found


def run(
    learners: Iterable[str],
    boards: Iterable[str],
    budget: Budget,
    folder: str | Path,
    *,
    data_dir: Path | None = None,
    command: str = "tegu leaderboard",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """The whole leaderboard as a result document, best first on each board.

    Finished entries are taken from `folder`.

    Args:
        learners: names.
        boards: data sets.
        budget: of each entry.
        folder: one file an entry, so that nothing is measured twice.
        data_dir: a folder of data sets to look in first.
        command: for the document.
        progress: told how many of how many entries are done, and the last figure.
    """
    names = list(dict.fromkeys(learners))
    pairs = [(learner, data) for data in dict.fromkeys(boards) for learner in names]
    settings = []
    for learner, data in pairs:
        one = job(learner, data, budget, data_dir)
        one.check()
        settings.append(one.recipe.plain())  # and not the job, which has data of its own
        del one
    cells, made, totals = [], [], {"seconds": 0.0, "meta_iterations": 0, "peak_bytes": 0}
    for number, ((learner, data), own) in enumerate(zip(pairs, settings, strict=True)):
        kept = entries.entry(
            expanded(folder) / f"{data}-{learner}.json",
            own,  # the budget is part of it
            partial(_apart, learner, data, budget, data_dir),
            recipes.alike,
        )
        made.append(kept)
        cells += kept["cells"]
        totals["seconds"] += kept["training"]["seconds"]
        totals["meta_iterations"] += kept["training"]["meta_iterations"]
        totals["peak_bytes"] = max(totals["peak_bytes"], kept["training"]["peak_bytes"] or 0)
        if progress:
            best = max(kept["cells"], key=lambda cell: float(cell["value"]))
            progress(number + 1, len(pairs), f"{learner} on {data}: {best['value']:.1%}")
    order = list(BOARDS)
    cells.sort(
        key=lambda c: (order.index(c["protocol"]["data"]), c["protocol"]["n_shot"], -c["value"])
    )
    return report.result_document(
        name="leaderboard",
        command=command,
        seed=budget.seed,
        training={**totals, "commits": entries.commits(made)},
        cells=cells,
    )


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """A picture for each board and number of shots: accuracy against what a task costs.

    Of a learner's figures the honest one, without transduction, where there is one.

    Args:
        document: of `run`.
        folder: where to.
    """
    rows: dict[tuple[str, int], dict[str, tuple[str, float, float, float]]] = {}
    for one in document["cells"]:
        protocol = one["protocol"]
        name, place = protocol["learner"], (protocol["data"], protocol["n_shot"])
        figure = (name, one["value"], one["ci95"], one["cost"]["adapt_ms"])
        if protocol.get("normalisation") != "transductive":
            rows.setdefault(place, {})[name] = figure
        else:
            rows.setdefault(place, {}).setdefault(name, figure)
    drawn = []
    for (data, n_shot), each in rows.items():
        drawn.append(folder / f"{data}-{n_shot}-shot.png")
        way = f"{BOARDS[data].n_way}-way {n_shot}-shot"
        pictures.tradeoff(
            list(each.values()),
            drawn[-1],
            title=f"{data}, {way}: what each learner reaches, and what a task costs",
        )
    return drawn
