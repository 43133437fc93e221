"""Do networks that read a support set learn from it, and as much per second of training as MAML?

    python benchmarks/in_context.py omniglot --data-dir DATA --runs RUNS
    python benchmarks/in_context.py sinusoids --seconds 300

omniglot: the recipes of the LSTM, SNAIL and the transformer, each trained in a folder of its own
under RUNS (an unfinished run is gone on with, a finished one taken as it is), all scored on the
same 5-way 1-shot tasks, once as they come and once in `--views` orders and namings.

sinusoids: the transformer, the LSTM and SNAIL against MAML with ten steps, each with the same
seconds of training in one thread. Seconds are processor time, which other work on the machine does
not stretch: the cost of an iteration of each is measured first, in turn and compiled, and each is
given as many as fit. What a training then took is in its figure's cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tegu import keys, origin, recipes, report
from tegu.compare import cost
from tegu.engine.evaluate import evaluate
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import select
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
        {
            "learner.name": "snail",
            "learner.length": 16,
            "learner.filters": 32,
            "learner.key_width": [32, 64, 64],
            "learner.value_width": [16, 32, 32],
        },
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
    cells, seconds = [], 0.0
    for name in arguments.only or OMNIGLOT:
        job = Job(recipes.load(name), arguments.data_dir)
        params, last = job.train(arguments.runs / name, resume=True, progress=told(name))
        seconds += last.seconds
        for views in dict.fromkeys((1, arguments.views)):
            learner = job.recipe.learner["name"]
            said = f"{learner}, {views} views" if views > 1 else learner
            once = Job(recipes.load(name, {"learner.views": views}), arguments.data_dir)
            for cell, result in once.evaluate(params):
                print(f"{said} {result.value:.4f} ± {result.ci95:.4f}", flush=True)
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
                        learner=said,
                    )
                )
    only = "".join(f" --only {name}" for name in arguments.only)
    command = f"omniglot --data-dir DATA --runs RUNS{only} --views {arguments.views}"
    written("in-context-omniglot", command, cells, seconds)


def sinusoids(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    jobs = [(label, Job(recipes.load(recipe, changed))) for label, recipe, changed in RIVALS]
    engines = [Vectorised(job.learner, compile=True) for _, job in jobs]
    prices = iteration_costs([job for _, job in jobs], engines)
    cells = []
    for (label, job), engine, price in zip(jobs, engines, prices, strict=True):
        train, cell = job.recipe.train, job.recipe.evaluate.cells[0]
        settings = Settings(
            meta_iterations=max(1, round(arguments.seconds / price)),
            meta_batch=train.meta_batch,
            outer_lr=train.outer_lr,
            outer_lr_final=train.outer_lr_final,
            outer_schedule=train.outer_schedule,
        )
        started = time.process_time()
        params, last = meta_train(engine, job.training_tasks(), settings, progress=told(label))
        took = time.process_time() - started
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
            f"{label} {result.value:.4f} ± {result.ci95:.4f} after {last.iteration:,} iterations "
            f"of {1e3 * price:.2f} ms, {took:.0f} s",
            flush=True,
        )
        episode = job.training_tasks().episodes(torch.arange(1))
        adapt_ms, _, state_bytes = cost(Vectorised(job.learner), params, episode, seconds=10)
        spent = {
            "training_seconds": round(took, 1),
            "meta_iterations": last.iteration,
            "adapt_ms": adapt_ms,
            "peak_bytes": None,
            "state_bytes": state_bytes,
        }
        figure = report.cell(
            result, data="sinusoids", n_shot=cell.n_shot, n_query=cell.n_query, learner=label
        )
        cells.append({**figure, "cost": spent})
    command = f"sinusoids --seconds {arguments.seconds:g}"
    written("in-context-sinusoids", command, cells, arguments.seconds)


def iteration_costs(jobs: list[Job], engines: list[Vectorised], rounds: int = 9) -> list[float]:
    """Processor seconds of a meta-iteration of each, drawing tasks included: medians, in turn."""
    times: list[list[float]] = [[] for _ in jobs]
    for turn in range(rounds + 1):
        for job, engine, kept in zip(jobs, engines, times, strict=True):
            per, started = job.recipe.train.meta_batch, time.process_time()
            drawn = job.training_tasks().episodes(torch.arange(32 * per))
            params = engine.learner.init()
            outer, at = engine.outer_state(params), keys.fold(keys.key(0), torch.arange(per))
            for i in range(32):
                some = select(drawn, slice(i * per, (i + 1) * per))
                params, outer, _ = engine.update(params, outer, some, at, outer_lr=1e-3)
            if turn:  # the first compiles
                kept.append((time.process_time() - started) / 32)
    return [statistics.median(kept) for kept in times]


def written(name: str, command: str, cells: list[dict[str, Any]], seconds: float) -> None:
    """The result file; `seconds` are of all runs, or the budget of each."""
    training = {
        "seconds": round(seconds, 1),
        "meta_iterations": None,
        "peak_bytes": origin.peak_bytes(),
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
    parser.add_argument("--only", action="append", default=[], choices=OMNIGLOT)
    parser.add_argument("--views", type=int, default=16, help="of each task of Omniglot")
    parser.add_argument("--seconds", type=float, default=300, help="of each training on sinusoids")
    arguments = parser.parse_args()
    {"omniglot": omniglot, "sinusoids": sinusoids}[arguments.task](arguments)


if __name__ == "__main__":
    main()
