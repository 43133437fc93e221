"""What meta-learning adds in three domains: photographs, spoken words, and what people ask for.

    python benchmarks/applications.py --data-dir DATA --run FOLDER

- image: CIFAR-FS, photographs of kinds that training never showed;
- speech: Arabic speech commands (Ghandoura et al. 2021), 40 words by 30 speakers, one recording
  each, at 8 kHz; words that training never had, by the same speakers;
- language: Banking77 (Casanueva et al. 2020), questions to a bank, of intents that training
  never had.

In each, on the same tasks: what a task's support set tells by itself, by the nearest class mean
of the inputs and by logistic regression; and a meta-trained prototypical network. Words and
intents are divided by tegu (`data.shares`).

Entries are kept under --run; --only does some of them, and a call without it brings all together.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recorded import command
from torch import Tensor

from tegu import entries, origin, recipes, report
from tegu.datasets.archives import read_members
from tegu.engine.evaluate import Result
from tegu.episodes import Examples, select
from tegu.job import Job
from tegu.learners.head import class_means, members
from tegu.losses import accuracy

URL = "https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset"
RECORDING = re.compile(r"dataset/[\w ]+/[\w-]+\.wav")
# Settings of each: the data, the network, and how training tasks are drawn.
APPLICATIONS: dict[str, dict[str, Any]] = {
    "image": {"data.name": "cifar-fs", "model.name": "conv4"},
    "speech": {
        "data.name": "sounds",
        "data.augment": "standard",
        "data.shares": [24, 6, 10],
        "model.name": "conv4",
    },
    "language": {
        "data.name": "sentences",
        "data.shares": [42, 10, 25],
        "data.least": 20,
        "model.name": "weighted",
    },
}
LEARNER = "protonet"
N_WAY, N_QUERY, SHOTS = 5, 5, (1, 5)
LONGER = {"image": 3}  # photographs take more time than the others


def place(name: str, data_dir: Path | None, folder: Path) -> str:
    """Where an application's own files are: unpacked, if they come in an archive."""
    where = data_dir or Path()
    if name == "language":
        return str(where / "banking77" / "train.csv")
    if name == "speech":
        out = folder / "arabic-speech-commands"
        if not out.is_dir():
            unpacked = out.with_name(f".{out.name}")
            archive = where / "arabic_speech_commands" / "clips_8khz.zip"
            for file, data in read_members(archive, RECORDING, URL).items():
                target = unpacked / Path(file).relative_to("dataset")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            unpacked.rename(out)
        return str(out)
    return ""


def job(name: str, arguments: argparse.Namespace) -> Job:
    """The training of an application."""
    settings = dict(APPLICATIONS[name])
    data = settings.pop("data.name")
    if path := place(name, arguments.data_dir, arguments.run):
        settings["data.path"] = path
    settings |= {
        "train.meta_iterations": 10_000_000,
        "train.seconds": arguments.seconds * LONGER.get(name, 1),
        "train.validate_every": 0,
        "train.seed": arguments.seed,
        "train.n_way": 20,
        "train.n_query": 5,
        "engine.threads": arguments.threads,
        "engine.compile": "off",
        "evaluate.episodes": arguments.episodes,
    }
    recipe = recipes.starting(LEARNER, data, settings)
    mode = recipe.learner["normalisation"]
    cells = tuple(
        recipes.Cell(n_way=N_WAY, n_shot=n_shot, n_query=N_QUERY, normalisation=mode)
        for n_shot in SHOTS
    )
    recipe = replace(recipe, evaluate=replace(recipe.evaluate, cells=cells))
    return Job(recipe, arguments.data_dir)


def cells(name: str, shown: str, results: list[Result]) -> list[dict[str, Any]]:
    """Figures of one row of the table, by shots."""
    data = {"image": "CIFAR-FS", "speech": "Arabic speech commands", "language": "Banking77"}[name]
    return [
        report.cell(result, data=data, n_way=N_WAY, n_shot=shot, n_query=N_QUERY, learner=shown)
        for shot, result in zip(SHOTS, results, strict=True)
    ]


def trained(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures after meta-training."""
    one = job(name, arguments)
    one.check()
    params, last = one.train(None)
    training = {"seconds": round(last.seconds, 1), "meta_iterations": last.iteration}
    results = [result for _, result in one.evaluate(params)]
    return {"cells": cells(name, LEARNER, results), "training": training}


NONE: dict[str, Any] = {"seconds": 0.0, "meta_iterations": 0}


def unlearnt(
    name: str,
    shown: str,
    score: Callable[[Examples, Examples], Tensor],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Figures of a rule that learns a task from its support set alone.

    Args:
        name: of the application.
        shown: what the rule is called.
        score: scores (Q, N) of an episode's queries, from support set and queries.
        arguments: of the command.
    """
    one = job(name, arguments)
    results = []
    for cell in one.recipe.evaluate.cells:
        tasks = one.tasks(
            "meta_test",
            n_way=N_WAY,
            n_shot=cell.n_shot,
            n_query=N_QUERY,
            seed=one.recipe.evaluate.seed,
        )
        scores = []
        for index in range(one.recipe.evaluate.episodes):
            support, query = select(tasks.episodes(torch.tensor([index])), 0)
            scores.append(accuracy(score(unit(support), unit(query)), query))
        each = torch.stack(scores).double()
        half = 1.96 * float(each.std()) / len(each) ** 0.5
        results.append(Result("accuracy", float(each.mean()), half, len(each), "meta_test", "none"))
    return {"cells": cells(name, shown, results), "training": NONE}


def unit(examples: Examples) -> Examples:
    """Inputs as vectors (B, D) of mean 0 and length 1."""
    flat = examples.x.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return examples._replace(x=flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-9))


def nearest(support: Examples, query: Examples) -> Tensor:
    """Products with the class means."""
    means = class_means(support.x, members(support, N_WAY, support.x))
    scores: Tensor = query.x @ means.T
    return scores


def logistic(support: Examples, query: Examples) -> Tensor:
    """Probabilities of scikit-learn's logistic regression, C of 10 since vectors are short."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=10.0).fit(support.x.numpy(), support.y.numpy())
    return torch.from_numpy(fitted.predict_proba(query.x.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/applications"))
    parser.add_argument("--only", action="append", default=[], choices=APPLICATIONS)
    parser.add_argument(
        "--seconds",
        type=float,
        default=200,
        help="of each training; three times as many for images",
    )
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/applications.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    for name in arguments.only or APPLICATIONS:
        rules = {"nearest class mean of the inputs": nearest, "logistic regression": logistic}
        rows: dict[str, Callable[[], dict[str, Any]]] = {
            shown: partial(unlearnt, name, shown, rule, arguments) for shown, rule in rules.items()
        }
        rows[LEARNER] = partial(trained, name, arguments)
        wanted = job(name, arguments).recipe.plain()
        for row, make in rows.items():
            file = f"{name}-{row.replace(' ', '-')}.json"
            kept = entries.entry(arguments.run / file, wanted, make)
            made.append(kept)
            found += kept["cells"]
            print(report.table(kept["cells"]), flush=True)
    document = report.result_document(
        name=arguments.output.stem,
        command=command(__file__, parser, arguments),
        seed=arguments.seed,
        training={
            "seconds": sum(one["training"]["seconds"] for one in made),
            "meta_iterations": sum(one["training"]["meta_iterations"] for one in made),
            "peak_bytes": origin.peak_bytes(),
            "precision": "fp32",
            "commits": entries.commits(made),
        },
        cells=found,
    )
    report.write_result(arguments.output, document)


if __name__ == "__main__":
    main()
