"""How near to the true causal graph does a learner come that is not told what was changed?

    python benchmarks/causal_graphs.py

Random worlds of every family and size, three categories a variable, mechanisms and soft
interventions as in Ke et al. (2019), arXiv:1910.01075. Every episode is an intervention on one
variable, chosen uniformly and not told; the learner sees 64 rows after it and 64 without. The
worlds of a cell are learnt in one pass. A figure is over worlds: the median and the 90 % quantile
of the structural Hamming distance (an edge turned round counts two), and the mean cross-entropy
of the belief to the true graph, nats a pair. Seconds are of this process alone, on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu import origin, report
from tegu.datasets import CausalGraphs
from tegu.datasets.causal_graphs import FAMILIES, belief_entropy, structural_distance
from tegu.graphs import Learnt, learn
from tegu.learners import CausalGraph
from tegu.models import MaskedMlps
from tegu.pictures import recovery

LISTS = ("families", "sizes")


def learnt(family: str, k: int, count: int, arguments: argparse.Namespace) -> tuple[Learnt, Tensor]:
    """Beliefs about `count` worlds, and their true graphs (W, k, k)."""
    worlds = [
        CausalGraphs(n_shot=64, n_query=64, family=family, variables=k, world=number)
        for number in range(count)
    ]
    learner = CausalGraph(model=MaskedMlps(k, 3), **arguments.set)
    found = learn(
        learner,
        worlds,
        meta_iterations=arguments.meta_iterations,
        meta_batch=arguments.meta_batch,
        seed=arguments.seed,
    )
    return found, torch.stack([world.graph for world in worlds])


def cells(graph: str, distances: Tensor, entropy: Tensor, cost: dict[str, Any]) -> list[Any]:
    """Figures of one family and size."""
    quantiles = distances.double().quantile(torch.tensor([0.5, 0.9], dtype=torch.float64))
    values = {
        "distance, median": float(quantiles[0]),
        "distance, 90 % quantile": float(quantiles[1]),
        "cross-entropy of the belief": float(entropy.mean()),
    }
    protocol = {"data": "causal-graphs", "graph": graph, "split": "meta_train", "n_shot": 64}
    return [
        {
            "protocol": {**protocol, "n_query": 64, "learner": "causal-graph"},
            "metric": metric,
            "value": value,
            "ci95": None,
            "episodes": len(distances),
            "published": None,
            "source": "",
            "cost": cost,
        }
        for metric, value in values.items()
    ]


def setting(text: str) -> tuple[str, float]:
    """NAME=NUMBER."""
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--sizes", nargs="+", type=int, default=range(3, 9))
    parser.add_argument("--worlds", type=int, default=12, help="for each cell of 3 to 5 variables")
    parser.add_argument("--large", type=int, default=4, help="worlds of 6 to 8 variables")
    parser.add_argument("--meta-iterations", type=int, default=600)
    parser.add_argument("--meta-batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", type=setting, default=[], help="of the learner")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/causal-graphs.json")
    )
    parser.add_argument("--picture", type=Path, default=Path("docs/images/causal-graphs.png"))
    arguments = parser.parse_args()
    options = [f"--{name} {' '.join(map(str, getattr(arguments, name)))}" for name in LISTS]
    if arguments.set:
        options.append("--set " + " ".join(f"{name}={value}" for name, value in arguments.set))
    options += [f"--seed {arguments.seed}"] if arguments.seed else []
    arguments.set = dict(arguments.set)
    torch.set_num_threads(1)
    made, courses, example, began = [], {}, None, time.process_time()
    for k in arguments.sizes:
        course = []
        for family in arguments.families:
            start, count = time.process_time(), arguments.worlds if k < 6 else arguments.large
            found, truth = learnt(family, k, count, arguments)
            seconds = time.process_time() - start
            along = structural_distance(found.beliefs, truth)  # (M, W)
            entropy = belief_entropy(found.beliefs[-1].double(), truth)
            graph = f"{family}, {k} variables"
            cost = {
                "training_seconds": round(seconds, 1),
                "meta_iterations": arguments.meta_iterations,
                "adapt_ms": None,
                "peak_bytes": origin.peak_bytes(),
                "state_bytes": None,
            }
            made += cells(graph, along[-1], entropy, cost)
            course.append(along)
            if example is None and (family, k) == ("jungle", 5):
                example = truth[0], found.beliefs[-1, 0]
            print(
                f"{graph}: distances {sorted(along[-1].tolist())}, "
                f"cross-entropy {float(entropy.mean()):.3f}, {seconds:.0f} s",
                flush=True,
            )
        courses[f"{k} variables"] = torch.cat(course, 1)
    command = f"python benchmarks/causal_graphs.py --worlds {arguments.worlds}"
    command += f" --large {arguments.large} --meta-iterations {arguments.meta_iterations}"
    document = report.result_document(
        name="causal-graphs",
        command=" ".join([command, f"--meta-batch {arguments.meta_batch}", *options]),
        seed=arguments.seed,
        training={
            "seconds": round(time.process_time() - began, 1),
            "meta_iterations": arguments.meta_iterations,
            "peak_bytes": origin.peak_bytes(),
        },
        cells=made,
    )
    report.write_result(arguments.output, document)
    if example is not None:
        drawn = {label: values for label, values in courses.items() if label[0] in "3458"}
        recovery(drawn, *example, arguments.picture, meta_batch=arguments.meta_batch)


if __name__ == "__main__":
    main()
