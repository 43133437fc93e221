"""How near do neural processes come to the exact predictive of the process that drew a function?

    python benchmarks/neural_processes.py

Trains the recipes cnp-gp, np-gp, anp-gp and tnp-gp on the same draws, as many for each, once with
the observation noise of the published comparison and once with a larger one. Scores them on the
same test functions: mean log-likelihood of a query in nats, beside that of the exact Gaussian
process with the true hyper-parameters, and of one that must infer these from the support set, which
no learner can beat on average either. A gap is the exact figure less the learner's, its interval
that of the differences. Trainings can be interrupted: the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recorded import command
from torch import Tensor
from torch.func import vmap

from tegu import datasets, keys, origin, recipes, report
from tegu.datasets.gaussian_processes import KERNELS, posterior
from tegu.engine.trees import tensors_of
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Examples, select
from tegu.inner import Params
from tegu.job import Job
from tegu.losses import log_likelihood, moments
from tegu.pictures import Band, predictive_bands

Runs = dict[str, tuple[Job, Params, float]]  # job, parameters and seconds by learner
NOISES = (0.1, 0.02)
PUBLISHED = 0.02  # the noise of the published figures
NAMES = ("cnp", "np", "anp", "tnp")
GAP = "gap to the exact process, nats"
SHOWN = (5, 12, 25)  # support sizes in the picture
AT_ONCE = 200


def job_of(name: str, noise: float, arguments: argparse.Namespace) -> Job:
    changed: dict[str, Any] = {"train.seed": arguments.seed, "engine.threads": 1}
    changed["data.noise"] = noise
    if arguments.meta_iterations:
        changed["train.meta_iterations"] = arguments.meta_iterations
    return Job(recipes.load(f"{name}-gp", changed))


def trained(name: str, noise: float, arguments: argparse.Namespace) -> tuple[Job, Params, float]:
    """One training run, or what it has made already; its seconds with it."""
    job = job_of(name, noise, arguments)
    print(
        f"{name}, noise {noise:g}: {job.recipe.train.meta_iterations:,} meta-iterations", flush=True
    )
    every = job.recipe.train.validate_every

    def told(progress: Any) -> None:
        if progress.iteration % every == 0:
            print(
                f"  {progress.iteration:,} loss {progress.loss:.3f} validation "
                f"{progress.validation} {progress.seconds:.0f} s",
                flush=True,
            )

    params, last = job.train(arguments.run / f"{name}-{noise:g}", resume=True, progress=told)
    return job, params, last.seconds


def test_tasks(job: Job) -> Any:
    """The test functions of the recipe's figure."""
    cell = job.recipe.evaluate.cells[0]
    return job.tasks("meta_test", n_shot=cell.n_shot, n_query=cell.n_query, seed=1)


def scores(job: Job, params: Params, episodes: int) -> Tensor:
    """Log-likelihood of each test function."""
    engine, tasks, found = Vectorised(job.learner), test_tasks(job), []
    root = keys.key(1, "evaluate", "meta_test")
    for index in torch.arange(episodes).split(AT_ONCE):
        batch = tasks.episodes(index)
        state = engine.adapt(params, batch.support, keys.fold(root, index))
        outputs = engine.predict(params, state, batch.query)
        found.append(vmap(log_likelihood)(outputs, batch.query))
    return torch.cat(found).double()


def references(tasks: Any, episodes: int) -> tuple[Tensor, Tensor]:
    """The same of the exact process, and of one with inferred hyper-parameters."""
    exact, inferred = [], []
    for index in torch.arange(episodes).split(AT_ONCE):
        exact.append(vmap(log_likelihood)(tasks.exact(index), tasks.episodes(index).query))
        inferred.append(tasks.inferred_log_likelihood(index).mean(1))
    return torch.cat(exact), torch.cat(inferred)


def cost(job: Job, params: Params, seconds: float) -> dict[str, Any]:
    """What training took, and what a new task and its queries take of one core's time."""
    engine, batch, took = Vectorised(job.learner), test_tasks(job).episodes(torch.arange(1)), []
    for _ in range(12):
        began = time.process_time()
        state = engine.adapt(params, batch.support, keys.key(0).reshape(1))
        engine.predict(params, state, batch.query)
        took.append(1e3 * (time.process_time() - began))
    return {
        "training_seconds": round(seconds, 1),
        "meta_iterations": job.recipe.train.meta_iterations,
        "adapt_ms": statistics.median(took[2:]),
        "peak_bytes": None,
        "state_bytes": sum(x.numel() * x.element_size() for x in tensors_of(state)),
    }


def cell(
    job: Job, name: str, values: Tensor, metric: str, spent: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Mean over test functions, with its interval."""
    of_recipe, episodes = job.recipe.evaluate.cells[0], len(values)
    quoted = metric != GAP and name == job.learner.name and of_recipe.published >= 0
    quoted = quoted and getattr(job.recipe.data, "noise", None) == PUBLISHED
    protocol = {
        "split": "meta_test",
        "n_shot": of_recipe.n_shot,
        "n_query": of_recipe.n_query,
        **job.recipe.data.protocol(),
        "learner": name,
    }
    found = {
        "protocol": {key: protocol[key] for key in report.PROTOCOL if key in protocol},
        "metric": metric,
        "value": float(values.mean()),
        "ci95": 1.96 * float(values.std()) / episodes**0.5,
        "episodes": episodes,
        "published": of_recipe.published if quoted else None,
        "source": job.recipe.source if quoted else "",
    }
    return {**found, "cost": spent} if spent else found


def draw(runs: Runs, means: dict[str, float], path: Path) -> None:
    """Bands of every learner on the first test functions with so many support points."""
    tasks = replace(test_tasks(next(iter(runs.values()))[0]), n_query=1)
    assert isinstance(tasks, datasets.GaussianProcesses)
    sizes = tasks.episodes(torch.arange(1_000)).support.mask.sum(1)
    index = torch.stack([(sizes == size).nonzero()[0, 0] for size in SHOWN])
    batch, grid = tasks.episodes(index), torch.linspace(*tasks.x, 201)
    x, y, mask = batch.support
    wide = grid.double().expand(len(index), -1)
    found = posterior(
        x[..., 0].double(),
        y[..., 0].double(),
        mask,
        wide,
        KERNELS[tasks.kernel],
        tasks.hyper(index),
        tasks.noise,
    )
    at = grid[None, :, None].expand(len(index), -1, -1)
    asked = Examples(at, torch.zeros_like(at), torch.ones(at.shape[:2], dtype=torch.bool))
    bands = []
    for name, (job, params, _) in runs.items():
        engine = Vectorised(job.learner)
        state = engine.adapt(params, batch.support, keys.fold(keys.key(0), index))
        mean, sd = moments(engine.predict(params, state, asked), 1)
        bands.append((f"{name}, {means[name]:.2f} nats", Band(mean[..., 0], sd[..., 0])))
    support = [
        (one.support.x[one.support.mask][:, 0], one.support.y[one.support.mask][:, 0])
        for one in (select(batch, t) for t in range(len(index)))
    ]
    predictive_bands(
        grid,
        support,
        Band(found.mean, found.sd),
        bands,
        path,
        title=f"New functions from a Gaussian process (exact: {means['exact']:.2f} nats)",
    )


def scored(runs: Runs, episodes: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Cells of the references and of every learner, and the means of the log-likelihoods."""
    first = next(iter(runs.values()))[0]
    exact, inferred = references(test_tasks(first), episodes)
    told = partial(cell, first)
    cells = [
        told("exact process", exact, "log-likelihood"),
        told("process with inferred hyper-parameters", inferred, "log-likelihood"),
        told("process with inferred hyper-parameters", exact - inferred, GAP),
    ]
    means = {"exact": float(exact.mean())}
    for name, (job, params, seconds) in runs.items():
        own = scores(job, params, episodes)
        means[name] = float(own.mean())
        cells.append(cell(job, name, own, "log-likelihood", cost(job, params, seconds)))
        cells.append(cell(job, name, exact - own, GAP))
    return cells, means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learner", action="append", choices=NAMES, help="default: all")
    parser.add_argument("--noise", action="append", type=float, help="default: 0.1 and 0.02")
    parser.add_argument("--meta-iterations", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--episodes", type=int, default=4_000, help="test functions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, default=Path("runs/neural-processes"))
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/neural-processes.json")
    )
    parser.add_argument("--picture", type=Path, default=Path("docs/images/neural-processes.png"))
    parser.add_argument("--train-only", action="store_true", help="write no result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, noises = arguments.learner or list(NAMES), arguments.noise or list(NOISES)
    runs = {noise: {name: trained(name, noise, arguments) for name in names} for noise in noises}
    if arguments.train_only:
        return
    cells = []
    for noise in noises:
        more, means = scored(runs[noise], arguments.episodes)
        cells += more
        if noise == noises[0]:
            draw(runs[noise], means, arguments.picture)
    document = report.result_document(
        name="neural-processes",
        command=command(__file__, parser, arguments),
        seed=arguments.seed,
        training={
            "seconds": round(sum(run[2] for some in runs.values() for run in some.values()), 1),
            "meta_iterations": runs[noises[0]][names[0]][0].recipe.train.meta_iterations,
            "peak_bytes": origin.peak_bytes(),
        },
        cells=cells,
    )
    report.write_result(arguments.output, document)
    print(report.table(cells))


if __name__ == "__main__":
    main()
