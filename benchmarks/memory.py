"""What does second order through many steps cost in memory, and does adapting leave any behind?

    python benchmarks/memory.py --data-dir DATA

Two questions, each part in a process of its own, so that one peak does not hide another:

1. Peak memory of second-order MAML on Omniglot 5-way 1-shot (8 tasks, 75 queries, Conv-4 with
   strides) with 5 and with 50 inner steps, plain and checkpointed.
2. Memory after 100 and after 1,000 adaptations in a row, of MAML and of prototypical networks.

The result file holds bytes as values; a ratio of two of them is a cell of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tegu import keys, recipes, report
from tegu.engine.vectorise import Vectorised
from tegu.job import Job

STEPS = (5, 50)


def job(learner: str, data_dir: Path | None, **settings: Any) -> Job:
    """5-way 1-shot Omniglot with 15 queries a class."""
    own = {key.replace("__", "."): value for key, value in settings.items()}
    wanted = {"train.n_way": 5, "train.n_query": 15, "train.meta_batch": 8, **own}
    return Job(recipes.starting(learner, "omniglot", wanted), data_dir)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def gradient(steps: int, checkpoint: bool, data_dir: Path | None) -> int:
    """Peak bytes above what the process held before, of three meta-iterations."""
    settings = {"learner__inner_steps": steps, "learner__inner_lr": 0.01}
    one = job("maml", data_dir, **settings)
    params = one.learner.init()
    tasks = one.training_tasks()
    engine = Vectorised(one.learner, checkpoint=checkpoint)
    batch, at = tasks.episodes(torch.arange(8)), keys.fold(keys.key(0), torch.arange(8))
    outer = engine.outer_state(params)
    before = resident()
    for _ in range(3):
        params, outer, _ = engine.update(params, outer, batch, at, outer_lr=1e-3)
    peak = report.peak_bytes()
    assert peak is not None
    return peak - before


def adaptations(learner: str, data_dir: Path | None) -> tuple[int, int]:
    """Resident bytes after 100 and after 1,000 tasks learnt one after another."""
    one = job(learner, data_dir)
    params, tasks, engine = one.learner.init(), one.training_tasks(), Vectorised(one.learner)
    held = []
    for index in range(1000):
        batch = tasks.episodes(torch.tensor([index]))
        state = engine.adapt(params, batch.support, keys.key(index).reshape(1))
        engine.predict(params, state, batch.query)
        if index + 1 in (100, 1000):
            held.append(resident())
    return held[0], held[1]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def cell(work: str, value: float) -> dict[str, Any]:
    """A figure without an interval: it is counted, not sampled."""
    return {
        "protocol": {"data": "omniglot", "n_way": 5, "n_shot": 1, "n_query": 15, "learner": work},
        "metric": "bytes" if value > 100 else "ratio",
        "value": value,
        "ci95": None,
        "episodes": 8,
        "published": None,
        "source": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.json"))
    arguments = parser.parse_args()
    peaks = {
        (steps, checkpoint): apart(gradient, steps, checkpoint, arguments.data_dir)
        for steps in STEPS
        for checkpoint in (False, True)
    }
    cells = []
    for (steps, checkpoint), peak in peaks.items():
        kind = "checkpointed" if checkpoint else "plain"
        print(f"{steps} steps, {kind}: {peak / 2**20:.0f} MiB", flush=True)
        cells.append(cell(f"maml, {steps} steps, {kind}", peak))
    ratio = peaks[50, True] / peaks[5, True]
    print(f"50 steps against 5, both checkpointed: {ratio:.2f} times", flush=True)
    cells.append(cell("maml, 50 steps against 5, both checkpointed", ratio))
    for learner in ("maml", "protonet"):
        early, late = apart(adaptations, learner, arguments.data_dir)
        print(f"{learner}: {early / 2**20:.1f} MiB after 100 tasks, {late / 2**20:.1f} after 1,000")
        cells.append(cell(f"{learner}, held after 100 adaptations", early))
        cells.append(cell(f"{learner}, held after 1,000 adaptations", late))
    report.write_result(
        arguments.output,
        report.result_document(
            name="memory",
            command="python benchmarks/memory.py --data-dir DATA",
            seed=0,
            training={"seconds": None, "meta_iterations": None, "peak_bytes": None},
            cells=cells,
        ),
    )


if __name__ == "__main__":
    main()
