"""Does a transformer that met many small languages learn a new one from a few examples?

    python benchmarks/mlc.py --run RUNS

Two trainings of MLC (Lake and Baroni 2023), by the recipes mlc-grammars and mlc-scan-add-jump.
The first is asked about grammars unlike those of training; about the grammar that people were
taught, in many wordings and orders ("gold"); and about the one episode that people saw
("human"). The second is asked every command of the test file once. An answer counts if all of
it is right. The published 0.824 is that of sampled answers of the paper's model, which was trained
to answer as people do, errors included; people had 0.807.

A training that is finished under --run is not done again, so that `--only grammars` can come
first, and a call without --only brings both together. So can one over several processes, under
the same limit of seconds:

    torchrun --standalone --nproc-per-node 2 -m -- tegu train mlc-grammars \
        --set train.seconds=4800 --run RUNS/mlc-grammars
    python benchmarks/mlc.py --run RUNS --only grammars --seconds 4800
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from recorded import command, training

from tegu import recipes, report
from tegu.engine.evaluate import evaluate
from tegu.engine.train import Progress
from tegu.inner import Params
from tegu.job import Job
from tegu.recipes import Cell

OUTPUT = Path("benchmarks/results/mlc.json")
NAMES = {"grammars": "mlc-grammars", "add-jump": "mlc-scan-add-jump"}
# What is asked of each: the setting data.test, episodes, and whether the published figure is of it.
ASKED: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "grammars": (("meta_test", 1000, False), ("gold", 1000, True), ("human", 2, False)),
    "add-jump": (("", 0, True),),
}


def trained(name: str, arguments: argparse.Namespace) -> tuple[Job, Params, Progress]:
    """One training, or what is left of it."""
    changed: dict[str, Any] = {"train.seed": arguments.seed, "engine.device": arguments.device}
    changed |= {"engine.workers": arguments.workers, "train.seconds": arguments.seconds}
    if arguments.iterations:
        changed["train.meta_iterations"] = arguments.iterations
    job = Job(recipes.load(NAMES[name], changed))
    started = time.process_time()

    def told(progress: Progress) -> None:
        said = "" if progress.validation is None else f" {progress.validation:.1%} right"
        print(
            f"  {progress.iteration:,} loss {progress.loss:.4f}{said} {progress.seconds:.0f} s, "
            f"{time.process_time() - started:.0f} s of processor",
            flush=True,
        )

    params, last = job.train(arguments.run / NAMES[name], resume=True, progress=told)
    return job, params, last


def cells(
    name: str, job: Job, params: Params, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The figures of a training."""
    found = []
    for test, episodes, published in ASKED[name]:
        changed = {"train.seed": arguments.seed, "engine.device": arguments.device}
        changed |= {"data.test": test} if test else {}
        other = Job(recipes.load(NAMES[name], changed))
        cell: Cell = other.recipe.evaluate.cells[0]
        tasks = other.tasks(
            "meta_test",
            n_shot=cell.n_shot,
            n_query=cell.n_query,
            seed=other.recipe.evaluate.seed,
        )
        (result,) = evaluate(
            job.engine(job.judge(cell), steps=0),
            params,
            tasks,
            episodes=episodes or other.recipe.evaluate.episodes,
            at_once=50,
            seed=other.recipe.evaluate.seed,
            score=job.measure.score,
            metric=job.measure.metric,
        )
        found.append(
            report.cell(
                result,
                published=cell.published if published else None,
                source=job.recipe.source if published else "",
                n_shot=cell.n_shot,
                n_query=cell.n_query,
                **other.recipe.data.protocol(),
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/mlc"), help="folder of trainings")
    parser.add_argument("--only", action="append", default=[], choices=NAMES)
    parser.add_argument("--iterations", type=int, default=0, help="other than the recipe's")
    parser.add_argument("--seconds", type=float, default=0, help="end a training by them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    found, runs = [], []
    for name in arguments.only or NAMES:
        print(name, flush=True)
        job, params, last = trained(name, arguments)
        runs.append(last)
        found += cells(name, job, params, arguments)
        print(report.table(found), flush=True)
    document = report.result_document(
        name=arguments.output.stem,
        command=command(__file__, parser, arguments),
        seed=arguments.seed,
        training=training(runs, job.training_engine.precision),
        cells=found,
    )
    report.write_result(arguments.output, document)


if __name__ == "__main__":
    main()
