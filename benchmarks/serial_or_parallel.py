"""What does it cost Reptile to run the tasks of a meta-batch side by side?

    python benchmarks/serial_or_parallel.py --data-dir DATA

The published code runs them one after another, and its Adam state goes from
task to task. tegu starts all of a meta-batch from one state. Both ways are
trained from the same seeds with the settings of `reptile-omniglot-5way`, but
for a shorter run, and scored on the same unseen tasks, other ones for each seed. The
interval is over episodes, all seeds pooled.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from recorded import command

from tegu import origin, recipes, report
from tegu.engine.evaluate import Result
from tegu.job import Job


def run(serial: bool, seed: int, arguments: argparse.Namespace) -> list[Result]:
    """Trains once, and scores plain and transductive 1-shot."""
    overrides: dict[str, Any] = {
        "learner.serial": serial,
        "train.seed": seed,
        "train.meta_iterations": arguments.meta_iterations,
        "train.validate_every": 0,
        "engine.compile": "on",
        "evaluate.episodes": arguments.episodes,
        "evaluate.seed": 1 + seed,
    }
    recipe = recipes.load("reptile-omniglot-5way", overrides)
    one_shot = tuple(cell for cell in recipe.evaluate.cells if cell.n_shot == 1)
    recipe = replace(recipe, evaluate=replace(recipe.evaluate, cells=one_shot))
    job = Job(recipe, arguments.data_dir)
    start = time.monotonic()
    params, _ = job.train(None)
    print(f"serial {serial}, seed {seed}: trained in {time.monotonic() - start:.0f} s", flush=True)
    return [result for _, result in job.evaluate(params)]


def pooled(results: list[Result]) -> Result:
    """One figure over the episodes of several runs."""
    episodes = sum(one.episodes for one in results)
    value = sum(one.value * one.episodes for one in results) / episodes
    # Sum of squared deviations: within each run, and of the runs' means.
    squares = sum(
        (one.ci95 / 1.96) ** 2 * one.episodes**2 + one.episodes * (one.value - value) ** 2
        for one in results
    )
    return replace(
        results[0], value=value, episodes=episodes, ci95=1.96 * math.sqrt(squares) / episodes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--meta-iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=1000)
    default = Path("benchmarks/results/reptile-serial-or-parallel.json")
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    start, cells = time.monotonic(), []
    for name, serial in (("reptile, serial", True), ("reptile, parallel", False)):
        runs = [run(serial, seed, arguments) for seed in range(arguments.seeds)]
        for results in zip(*runs, strict=True):
            protocol: dict[str, Any] = {"data": "omniglot", "n_way": 5, "n_shot": 1, "n_query": 1}
            cells.append(report.cell(pooled(list(results)), learner=name, **protocol))
        print(report.table(cells), flush=True)
    document = report.result_document(
        name="reptile-serial-or-parallel",
        command=command(__file__, parser, arguments),
        seed=0,
        training={
            "seconds": round(time.monotonic() - start, 1),
            "meta_iterations": arguments.meta_iterations,
            "peak_bytes": origin.peak_bytes(),
        },
        cells=cells,
    )
    report.write_result(arguments.output, document)


if __name__ == "__main__":
    main()
