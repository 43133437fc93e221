"""What does second order through many steps cost in memory, and does adapting leave any behind?

    python benchmarks/memory.py --data-dir DATA

Three questions, each part in a process of its own, so that one peak does not hide another:

1. Peak memory of second-order MAML on Omniglot 5-way 1-shot (8 tasks, 75 queries, Conv-4 with
   strides) with 5 and with 50 inner steps, plain and checkpointed.
2. Memory after 100 and after 1,000 adaptations in a row, of MAML and of prototypical networks.
3. Peak memory of second-order MAML with larger networks (4 tasks of colour images of 32 pixels, 2
   inner steps): all at once, with blocks run again, task by task, and both.

The result file holds bytes as values; a ratio of two of them is a cell of its own.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from recorded import command

from tegu import keys, origin, recipes, report
from tegu.datasets import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.job import Job
from tegu.learners import Maml
from tegu.models import ResNet12, ViT
from tegu.processes import apart
from tegu.sampling import FewShotTasks

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
    peak = origin.peak_bytes()
    assert peak is not None
    return peak - before


def larger(network: str, checkpoint: bool, at_once: int) -> int:
    """Peak bytes above what the process held before, of two outer gradients on noise."""
    model: torch.nn.Module = (
        ResNet12(5, widths=(64, 128, 256, 512), checkpoint=checkpoint)
        if network == "resnet12"
        else ViT(5, blocks=12, checkpoint=checkpoint)
    )
    learner = Maml(model=model, inner_lr=0.01, inner_steps=2, normalisation="transductive")
    x = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = ClassDataset("noise", "meta_train", x, torch.tensor([10] * 10), tuple("abcdefghij"))
    batch = FewShotTasks(data, n_way=5, n_shot=1, n_query=1).episodes(torch.arange(4))
    params, at = learner.init(), keys.fold(keys.key(0), torch.arange(4))
    engine = Vectorised(learner, at_once=at_once)
    before = resident()
    for _ in range(2):
        engine.outer_gradient(params, batch, at)
    peak = origin.peak_bytes()
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


def cell(
    work: str, value: float, data: str = "omniglot", *, n_query: int = 15, episodes: int = 8
) -> dict[str, Any]:
    """A figure without an interval: it is counted, not sampled."""
    protocol = {"data": data, "n_way": 5, "n_shot": 1, "n_query": n_query, "learner": work}
    return {
        "protocol": protocol,
        "metric": "bytes" if value > 100 else "ratio",
        "value": value,
        "ci95": None,
        "episodes": episodes,
        "published": None,
        "source": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.json"))
    arguments = parser.parse_args()
    peaks = {
        (steps, checkpoint): apart(
            f"{steps} steps", gradient, steps, checkpoint, arguments.data_dir
        )
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
        early, late = apart(learner, adaptations, learner, arguments.data_dir)
        print(f"{learner}: {early / 2**20:.1f} MiB after 100 tasks, {late / 2**20:.1f} after 1,000")
        cells.append(cell(f"{learner}, held after 100 adaptations", early, episodes=100))
        cells.append(cell(f"{learner}, held after 1,000 adaptations", late, episodes=1000))
    for network in ("resnet12", "vit"):
        for checkpoint, at_once in ((False, 0), (True, 0), (False, 1), (True, 1)):
            peak = apart(network, larger, network, checkpoint, at_once)
            kind = f"{'blocks run again' if checkpoint else 'plain'}, {at_once or 4} tasks at once"
            print(f"{network}, {kind}: {peak / 2**20:.0f} MiB", flush=True)
            work = f"maml, {network}, {kind}"
            cells.append(cell(work, peak, "noise", n_query=1, episodes=4))
    report.write_result(
        arguments.output,
        report.result_document(
            name="memory",
            command=command(__file__, parser, arguments),
            seed=0,
            training={"seconds": None, "meta_iterations": None, "peak_bytes": None},
            cells=cells,
        ),
    )


if __name__ == "__main__":
    main()
