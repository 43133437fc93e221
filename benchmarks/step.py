"""How fast is one meta-iteration of Reptile on Omniglot, next to a plain PyTorch loop?

    python benchmarks/step.py --data-dir DATA

The work of `reptile-omniglot-5way`: 5 tasks, 5 steps each on 10 images, Conv-4
with strides. The plain loop is what a user would write: `nn.Conv2d`,
`nn.BatchNorm2d`, `torch.optim.Adam` with one state for all tasks, one task
after another. Both are given the same tasks and mini-batches. First their
results are compared in float64; then they take turns, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tegu import keys, recipes, report
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.inner import Params
from tegu.job import Job
from tegu.learners.finetune import cycle

RECIPE = "reptile-omniglot-5way"
OUTER_LR = 1.0


class PlainReptile:
    """Reptile as a loop over tasks and steps on one module."""

    def __init__(self, weights: Params, dtype: torch.dtype = torch.float32) -> None:
        layers: list[nn.Module] = []
        for width in (1, 64, 64, 64):
            layers += [
                nn.Conv2d(width, 64, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(64, eps=1e-3, track_running_stats=False),
                nn.ReLU(),
            ]
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 5)).to(dtype)
        with torch.no_grad():
            for layer in range(4):
                kernel = weights[f"body.convs.{layer}.weight"]
                kernel = kernel.reshape(3, 3, -1, 64).permute(3, 2, 0, 1)
                self.network[3 * layer].weight.copy_(kernel)
            head = weights["head.weight"].reshape(5, 2, 2, 64).permute(0, 3, 1, 2)
            self.network[-1].weight.copy_(head.reshape(5, 256))
            self.network[-1].bias.copy_(weights["head.bias"])
        # beta1 = 0 as published; torch counts the warm-up of v as TensorFlow does.
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-3, betas=(0.0, 0.999))

    def iterate(self, x: Tensor, y: Tensor, order: Tensor) -> None:
        """One meta-iteration on tasks x (T, S, 1, H, W), y (T, S), rows order (T, steps, B)."""
        parameters = list(self.network.parameters())
        old = [p.detach().clone() for p in parameters]
        total = [torch.zeros_like(p) for p in old]
        for task in range(len(x)):
            for rows in order[task]:
                self.optimiser.zero_grad()
                F.cross_entropy(self.network(x[task, rows]), y[task, rows]).backward()
                self.optimiser.step()
            with torch.no_grad():
                for p, before, sum_ in zip(parameters, old, total, strict=True):
                    sum_ += p
                    p.copy_(before)
        with torch.no_grad():
            for p, before, sum_ in zip(parameters, old, total, strict=True):
                p.copy_(before + OUTER_LR * (sum_ / len(x) - before))


def drawn(job: Job, index: Tensor) -> tuple[Episode, Tensor, Tensor]:
    """Episodes, their keys, and the rows of their mini-batches (T, steps, B)."""
    train, learner = job.recipe.train, job.recipe.learner
    tasks = job.tasks("meta_train", n_shot=train.n_shot, n_query=0, seed=train.seed)
    episodes, at = tasks.episodes(index), keys.fold(keys.key(0, "meta_train"), index)
    steps, batch = learner["inner_steps"], learner["inner_batch"]
    order = [
        cycle(key, mask, batch=batch, steps=steps)
        for key, mask in zip(at, episodes.support.mask, strict=True)
    ]
    return episodes, at, torch.stack(order)


def difference(job: Job) -> float:
    """How far apart one serial meta-iteration takes the two in float64, as a share of the way."""
    episodes, at, order = drawn(job, torch.arange(5))
    # By plain gradient descent: the two Adams put epsilon in different places.
    learner = replace(job.learner, serial=True, inner_optimiser="sgd", inner_lr=0.01)
    weights = {k: v.double() for k, v in learner.init().items()}
    plain = PlainReptile(weights, torch.float64)
    plain.optimiser = torch.optim.SGD(plain.network.parameters(), lr=0.01)
    x, y = episodes.support.x.double(), episodes.support.y
    plain.iterate(x, y, order)
    support = episodes.support._replace(x=x)
    engine = Vectorised(learner, vectorise="vmap")
    ours, _ = engine.outer_step(weights, Episode(support, episodes.query), at, outer_lr=OUTER_LR)
    apart = way = 0.0
    for layer in range(4):
        name = f"body.convs.{layer}.weight"
        theirs = plain.network[3 * layer].weight.detach().permute(2, 3, 1, 0).reshape(-1, 64)
        apart += float((theirs - ours[name]).square().sum())
        way += float((weights[name] - ours[name]).square().sum())
    return (apart / way) ** 0.5


def rate(dtype: torch.dtype) -> float:
    """The machine's own floating-point operations per second, in large matrix products."""
    a = torch.rand(2048, 2048).to(dtype)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def alternate(
    ours: Callable[[int], None], theirs: Callable[[int], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each in turn: a round is five iterations of one, then of the other."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 2):  # the first two warm up
        for act, times in zip((ours, theirs), found, strict=True):
            start = time.perf_counter()
            for i in range(5):
                act(5 * number + i)
            times.append((time.perf_counter() - start) / 5)
    return found[0][2:], found[1][2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step.json"))
    arguments = parser.parse_args()
    job = Job(recipes.load(RECIPE), arguments.data_dir)
    apart = difference(job)
    print(f"apart after one meta-iteration in float64: {apart:.1e} of the way")
    if apart > 1e-9:
        raise SystemExit("the two loops disagree; no timing is worth anything")

    per = job.recipe.train.meta_batch
    index = torch.arange(per * 64)
    episodes, at, order = drawn(job, index)
    x, y = episodes.support.x, episodes.support.y
    initial = job.learner.init()
    plain = PlainReptile(initial)
    with FlopCounterMode(display=False) as counter:
        plain.iterate(x[:per], y[:per], order[:per])
    work = counter.get_total_flops()
    cells = []
    for precision, compiled in (("fp32", False), ("fp32", True), ("bf16", True)):
        engine = Vectorised(job.learner, compile=compiled, precision=precision)
        params = initial

        def ours(i: int, engine: Vectorised = engine) -> None:
            nonlocal params
            rows = slice(i % 64 * per, (i % 64 + 1) * per)
            support = type(episodes.support)(*(field[rows] for field in episodes.support))
            query = type(episodes.query)(*(field[rows] for field in episodes.query))
            params, _ = engine.outer_step(
                params, Episode(support, query), at[rows], outer_lr=OUTER_LR
            )

        def theirs(i: int) -> None:
            rows = slice(i % 64 * per, (i % 64 + 1) * per)
            plain.iterate(x[rows], y[rows], order[rows])

        mine, rival = alternate(ours, theirs, arguments.rounds)
        ratios = [b / a for a, b in zip(mine, rival, strict=True)]
        limit = rate(torch.bfloat16 if precision == "bf16" else torch.float32)
        cells.append(
            {
                "work": f"Reptile, Omniglot 5-way, {'compiled' if compiled else 'not compiled'}",
                "rival": "a plain PyTorch loop, fp32",
                "precision": precision,
                "ours_ms": 1e3 * statistics.median(mine),
                "rival_ms": 1e3 * statistics.median(rival),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "share_of_limit": work / limit / statistics.median(mine),
            }
        )
        print(report.table(cells))
    document = report.result_document(
        name="step",
        command="python benchmarks/step.py --data-dir DATA",
        seed=0,
        training={"seconds": None, "meta_iterations": None, "peak_bytes": report.peak_bytes()},
        cells=cells,
    )
    report.write_result(arguments.output, document)


if __name__ == "__main__":
    main()
