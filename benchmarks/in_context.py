"""Do networks that read a support set learn from it, and as much per second of training as MAML?

    python benchmarks/in_context.py omniglot --data-dir DATA --runs RUNS
    python benchmarks/in_context.py sinusoids --seconds 600

omniglot: the recipes of the LSTM, SNAIL and the transformer, each trained in a folder of its own under
RUNS (an unfinished run is gone on with, a finished one taken as it is), all scored on the same 5-way
1-shot tasks. `--only NAME` trains that one and writes no result.

sinusoids: the transformer, the LSTM and SNAIL against MAML with ten steps, each with the same seconds
of training in one process, one after another, all compiled. Compiling comes before the clock.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from tegu import keys, recipes, report
from tegu.engine.evaluate import evaluate
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.job import Job

OMNIGLOT = ("lstm-omniglot-5way", "snail-omniglot-5way", "in-context-omniglot-5way")
RESULTS = Path("benchmarks/results")
# Name in the table, recipe, and what replaces its settings.
RIVALS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("in-context", "in-context-sinusoids", {}),
    (
        "maml, 10 steps",
        "maml-sinusoids",
        {"learner.inner_steps": 10, "learner.eval_steps": 10},
    ),
    ("lstm", "in-context-sinusoids", {"learner.name": "lstm", "learner.hidden": 128}),
    (
        "snail",
        "in-context-sinusoids",
        {"learner.name": "snail", "learner.length": 16, "learner.filters": 32},
    ),
)


def told(name: str) -> Any:
    """Prints a line now and then."""
    shown = [0.0]

    def tell(progress: Progress) -> None:
        if time.monotonic() - shown[0] > 20:
            shown[0] = time.monotonic()
            print(
                f"  {name} {progress.iteration:,} {progress.seconds:.0f} s "
                f"loss {progress.loss:.4f} validation {progress.validation}",
                flush=True,
            )

    return tell


def omniglot(arguments: argparse.Namespace) -> None:
    cells, seconds, iterations = [], 0.0, 0
    for name in OMNIGLOT:
        if arguments.only and name != arguments.only:
            continue
        job = Job(recipes.load(name), arguments.data_dir)
        params, last = job.train(arguments.runs / name, resume=True, progress=told(name))
        seconds, iterations = seconds + last.seconds, iterations + last.iteration
        for cell, result in job.evaluate(params):
            print(f"{name} {result.value:.4f} ± {result.ci95:.4f}", flush=True)
            published = cell.published if cell.published >= 0 else None
            cells.append(
                report.cell(
                    result,
                    published=published,
                    source=job.recipe.source if published else "",
                    data="omniglot",
                    n_way=job.recipe.train.n_way,
                    n_shot=cell.n_shot,
                    n_query=cell.n_query,
                    learner=job.recipe.learner["name"],
                )
            )
    if not arguments.only:
        written("in-context-omniglot", "omniglot --data-dir DATA --runs RUNS", cells, seconds)


def sinusoids(arguments: argparse.Namespace) -> None:
    cells = []
    for label, recipe, changed in RIVALS:
        job = Job(recipes.load(recipe, changed))
        train, cell = job.recipe.train, job.recipe.evaluate.cells[0]
        engine = Vectorised(job.learner, compile=True)
        tasks = job.training_tasks()
        warm(engine, tasks.episodes(torch.arange(train.meta_batch)))
        settings = Settings(
            meta_iterations=10_000_000,
            seconds=arguments.seconds,
            meta_batch=train.meta_batch,
            outer_lr=train.outer_lr,
            outer_lr_final=train.outer_lr_final,
            outer_schedule=train.outer_schedule,
        )
        params, last = meta_train(engine, tasks, settings, progress=told(label))
        (result,) = evaluate(
            Vectorised(job.learner),
            params,
            job.tasks("meta_test", n_shot=cell.n_shot, n_query=cell.n_query, seed=1),
            episodes=1_000,
            at_once=500,
            score=job.measure.score,
            metric=job.measure.metric,
        )
        print(
            f"{label} {result.value:.4f} ± {result.ci95:.4f} after {last.iteration:,} iterations, "
            f"{last.seconds:.0f} s",
            flush=True,
        )
        protocol = {"n_shot": cell.n_shot, "n_query": cell.n_query, "learner": label}
        cells.append(report.cell(result, data="sinusoids", **protocol))
    command = f"sinusoids --seconds {arguments.seconds:g}"
    written("in-context-sinusoids", command, cells, arguments.seconds)


def warm(engine: Vectorised, episodes: Any) -> None:
    """Compiles an outer update; what it makes is thrown away."""
    params = engine.learner.init()
    at = keys.fold(keys.key(0), torch.arange(len(episodes.support.mask)))
    engine.update(params, engine.outer_state(params), episodes, at, outer_lr=0.0)


def written(name: str, command: str, cells: list[dict[str, Any]], seconds: float) -> None:
    """The result file; `seconds` are of all runs, or the budget of each."""
    training = {
        "seconds": round(seconds, 1),
        "meta_iterations": None,
        "peak_bytes": report.peak_bytes(),
    }
    document = report.result_document(
        name=name,
        command=f"python benchmarks/in_context.py {command}",
        seed=0,
        training=training,
        cells=cells,
    )
    report.write_result(RESULTS / f"{name}.json", document)
    print(report.table(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("omniglot", "sinusoids"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", choices=OMNIGLOT)
    parser.add_argument("--seconds", type=float, default=600, help="of each training on sinusoids")
    arguments = parser.parse_args()
    {"omniglot": omniglot, "sinusoids": sinusoids}[arguments.task](arguments)


if __name__ == "__main__":
    main()
