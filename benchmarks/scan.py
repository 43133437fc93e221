"""Does meta-training with changing meanings let a sequence network combine words it was shown once?

    python benchmarks/scan.py --data-dir DATA --run RUNS

Meta sequence-to-sequence learning (Lake 2019) on its tasks: mutual exclusivity, and SCAN's splits
add-jump, around-right and length; beside it the same network without a memory, trained in the
ordinary way on each split's train file. Every command of a split's test file is asked once, and an
answer counts if all of it is right. Without --data-dir the grammar makes the same pairs.

A training that is finished under --run is not done again, so that `--only add-jump` and so on can
come first, one after another, and a call without --only brings them together.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from recorded import command, training

from tegu import report
from tegu.datasets import MutualExclusivity, Scan
from tegu.engine.evaluate import Result, evaluate
from tegu.engine.precision import chosen
from tegu.engine.run import Run
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.inner import Params
from tegu.learners.seq2seq import MetaSeq2Seq
from tegu.losses import exact_match
from tegu.models.seq2seq import MemorySeq2Seq, Seq2Seq

OUTPUT = Path("benchmarks/results/scan-meta-seq2seq.json")
SOURCE = "Lake (2019), arXiv:1906.05381 (unconfirmed)"


@dataclass(frozen=True)
class Experiment:
    """One training and its test.

    Args:
        task: of `Scan`, or "mutual-exclusivity".
        published: exact match, 0 to 1.
        iterations: outer updates.
        meta_batch: episodes of each.
        n_support: support pairs of an episode.
        n_query: query pairs of an episode in training.
        tested: query pairs of a test episode; divides the test file.
        episodes: of the test; the test file once.
        memory: whether the network has one.
        strict: "jump" never means what it means in the end.
    """

    task: str
    published: float | None
    iterations: int
    meta_batch: int = 2
    n_support: int = 20
    n_query: int = 20
    tested: int = 20
    episodes: int = 1000
    memory: bool = True
    strict: bool = False


JUMP: dict[str, Any] = {"tested": 2, "episodes": 3853}
AROUND: dict[str, Any] = {"tested": 4, "episodes": 1119}
LONG: dict[str, Any] = {"tested": 5, "episodes": 784}
PLAIN: dict[str, Any] = {"memory": False, "n_support": 1, "n_query": 64, "meta_batch": 1}
EXPERIMENTS = {
    "mutual-exclusivity": Experiment("mutual-exclusivity", 1.0, 4_000, meta_batch=4),
    "add-jump": Experiment("add-jump", 0.9995, 6_000, **JUMP),
    "around-right": Experiment("around-right", 0.9996, 6_000, **AROUND),
    "length": Experiment("length", 0.1664, 4_000, meta_batch=1, n_support=100, **LONG),
    "add-jump-strict": Experiment("add-jump", None, 6_000, strict=True, **JUMP),
    "add-jump-augmented": Experiment("add-jump-augmented", 0.9871, 6_000, **JUMP),
    "plain-add-jump": Experiment("add-jump", 0.0003, 2_500, **PLAIN, **JUMP),
    "plain-around-right": Experiment("around-right", 0.0668, 2_500, **PLAIN, **AROUND),
    "plain-length": Experiment("length", 0.0771, 2_500, **PLAIN, **LONG),
}


def tasks(one: Experiment, split: str, data_dir: Path | None, seed: int) -> Any:
    """Episodes of a split."""
    n_query = one.n_query if split == "meta_train" else one.tested
    if one.task == "mutual-exclusivity":
        return MutualExclusivity(split, n_query, seed)
    return Scan(
        one.task,
        split,
        one.n_support,
        n_query,
        seed,
        meanings="permuted" if one.memory else "true",
        strict=one.strict,
        data_dir=data_dir,
    )


def engine_of(one: Experiment, source: Any, precision: str, beam: int = 1) -> Vectorised:
    """The network and its learner."""
    kind = MemorySeq2Seq if one.memory else Seq2Seq
    net = kind(source.n_inputs, source.n_outputs, longest=source.steps, packed=True)
    return Vectorised(MetaSeq2Seq(model=net, beam=beam), vectorise="vmap", precision=precision)


def trained(name: str, arguments: argparse.Namespace) -> tuple[Params, Progress]:
    """One training run, or what is left of it."""
    one = EXPERIMENTS[name]
    if arguments.iterations:
        one = replace(one, iterations=arguments.iterations)
    source = tasks(one, "meta_train", arguments.data_dir, arguments.seed)
    engine = engine_of(one, source, arguments.precision)
    settings = Settings(
        meta_iterations=one.iterations,
        meta_batch=one.meta_batch,
        outer_lr=0.001,
        outer_lr_final=0.00005,
        seed=arguments.seed,
        validate_every=250,
    )
    validation = replace(tasks(one, "meta_val", arguments.data_dir, arguments.seed), n_query=20)
    judge = engine_of(one, source, "fp32")

    def validate(params: Params) -> float:
        found = evaluate(
            judge,
            params,
            validation,
            episodes=16,
            at_once=16,
            score=exact_match,
            metric="exact match",
        )
        return found[0].value

    def told(progress: Progress) -> None:
        said = "" if progress.validation is None else f" {progress.validation:.1%} right"
        print(
            f"  {progress.iteration:,} loss {progress.loss:.4f}{said} {progress.seconds:.0f} s",
            flush=True,
        )

    run = Run(arguments.run / name, {**asdict(one), "seed": arguments.seed})
    return meta_train(
        engine, source, settings, run=run, resume=True, validate=validate, progress=told
    )


def cell(name: str, params: Params, beam: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The test's figure."""
    one = EXPERIMENTS[name]
    source = tasks(one, "meta_test", arguments.data_dir, arguments.seed)
    (result,) = evaluate(
        engine_of(one, source, "fp32", beam),
        params,
        source,
        episodes=one.episodes,
        at_once=64,
        score=exact_match,
        metric="exact match",
    )
    plain = Result(result.metric, result.value, result.ci95, result.episodes, result.split, "none")
    shown = "seq2seq" if one.memory else "without memory, ordinary training"
    shown += ", jump never I_JUMP" if one.strict else ""
    shown += f", beam {beam}" if beam > 1 else ""
    data = one.task if one.task == "mutual-exclusivity" else f"scan {one.task}"
    return report.cell(
        plain,
        published=one.published,
        source=SOURCE if one.published is not None else "",
        data=data,
        n_shot=source.episodes(torch.arange(1)).support.x.shape[1] if one.memory else None,
        n_query=one.tested,
        learner=shown,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/scan"), help="folder of trainings")
    parser.add_argument("--only", action="append", default=[], choices=EXPERIMENTS)
    parser.add_argument("--beam", type=int, default=1, help="also search with so many beams")
    parser.add_argument("--iterations", type=int, default=0, help="other than those above")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    cells, runs = [], []
    for name in arguments.only or EXPERIMENTS:
        print(name, flush=True)
        params, last = trained(name, arguments)
        runs.append(last)
        for beam in dict.fromkeys((1, arguments.beam)):
            cells.append(cell(name, params, beam, arguments))
            print(report.table(cells[-1:]), flush=True)
    document = report.result_document(
        name=arguments.output.stem,
        command=command(__file__, parser, arguments),
        seed=arguments.seed,
        training=training(runs, chosen(arguments.precision, torch.device("cpu"))),
        cells=cells,
    )
    report.write_result(arguments.output, document)
    print(report.table(cells))


if __name__ == "__main__":
    main()
