"""Commands about one run: train, evaluate, reproduce, and what there is to see of it."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tegu import pictures as draw
from tegu import recipes, report
from tegu.adapted import fitting
from tegu.commands.scoring import labelled, picture_cells, picture_fit, score
from tegu.commands.shared import (
    Outcome,
    check_output,
    listed,
    output_of,
    settings_of,
    training_of,
)
from tegu.console import bar, say, training
from tegu.engine.distribute import ALONE, Ranks
from tegu.engine.precision import half_pays
from tegu.engine.profile import Watch
from tegu.engine.run import read_classes, read_metrics
from tegu.engine.train import Progress
from tegu.errors import InputError
from tegu.inner import Params
from tegu.job import LENGTHS, Job
from tegu.learners import LEARNERS
from tegu.learners.learner import count_weights
from tegu.runs import CHECKPOINT, began_of, checkpoint_of, classes_of, recipe_of
from tegu.sources import Source


def train(
    arguments: argparse.Namespace, overrides: dict[str, Any], ranks: Ranks = ALONE
) -> Outcome:
    """Meta-learning into a run folder, with pictures of how it went."""
    begun = ranks.from_first(lambda: (_begun(arguments), ()))[0]
    with ranks.agreement():
        if begun is not None:
            recipe = recipes.parse(begun, overrides)
        elif arguments.recipe is None:
            data, learner = overrides.get("data.name", "glyphs"), overrides.get("learner.name")
            if learner is None:
                learner = "maml" if data == "sinusoids" else "reptile"
            recipe = recipes.starting(str(learner), str(data), overrides)
        else:
            recipe = recipes.load(arguments.recipe, overrides)
        job = Job(recipe, arguments.data_dir, ranks)
        job.check()
    folder = arguments.run or Path("runs") / job.recipe.name
    looks = arguments.profile and ranks.first
    with Watch(folder / "trace.json.gz") if looks else nullcontext() as watch:
        _, last, pictures = trained(job, folder, resume=arguments.resume, lengths=LENGTHS)
    document = {
        "run": str(folder),
        "meta_iterations": last.iteration,
        "seconds": round(last.seconds, 1),
        "loss": last.loss if math.isfinite(last.loss) else None,  # nothing was left to do
        "validation": last.validation,
        "pictures": [str(path) for path in pictures],
    }
    text = [f"meta-learned in {report.duration(last.seconds)}: {folder}", *listed(pictures)]
    if math.isnan(last.loss):
        by_time = last.iteration < last.total
        more = "--set train.seconds=" if by_time else "--meta-iterations "
        text.append(f"nothing was left to do; it goes on with a larger {more}N")
    if watch:
        document["profile"] = report.profile_document(watch)
        text += ["", report.profile(watch), ""]
    place = shlex.quote(str(folder))
    text.append(f"next: tegu evaluate {place}")
    if type(job.recipe.data).read is not Source.read:
        text.append(f"or:   tegu predict {place} EXAMPLES FILE, for files of yours")
    return document, "\n".join(text)


def _begun(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The settings of a run that is to go on, where the command line names no recipe."""
    if arguments.recipe is not None or not arguments.resume or arguments.run is None:
        return None
    return recipe_of(arguments.run) if (arguments.run / "recipe.json").exists() else None


def reproduce(
    arguments: argparse.Namespace, overrides: dict[str, Any], ranks: Ranks = ALONE
) -> Outcome:
    """A recipe from start to end: run, every figure of it, result file."""
    with ranks.agreement():
        job = Job(recipes.load(arguments.recipe, overrides), arguments.data_dir, ranks)
        name = job.recipe.name
        folder = arguments.run or Path("runs") / name
        others = _beside(job, arguments, overrides)
        for one in (job, *others):
            one.check()
        output = output_of(arguments, folder, name, check=ranks.first)
    params, last, pictures = trained(job, folder, resume=arguments.resume)
    cells = score(job, params)
    if others:
        cells = labelled(cells, job)
        for other in others:
            # Inside the folder of the run that it belongs to.
            learned, _, more = trained(other, folder / other.recipe.name, resume=arguments.resume)
            cells += labelled(score(other, learned), other)
            pictures += more
        if ranks.first:
            pictures.append(picture_cells(job, cells, folder / "comparison.png"))
    document = report.result_document(
        name=name,
        command=f"tegu reproduce {arguments.recipe}{settings_of(arguments)}",
        seed=job.recipe.train.seed,
        training=training_of(last),
        cells=cells,
        processes=ranks.world,
    )
    if ranks.first:
        report.write_result(output, document)
    text = [report.table(cells), *listed(pictures), f"result: {output}"]
    return document, "\n".join(text)


def _beside(job: Job, arguments: argparse.Namespace, overrides: dict[str, Any]) -> list[Job]:
    """The recipes beside this one, under the same settings but for the network and the learner."""
    shared = {k: v for k, v in overrides.items() if k.split(".")[0] not in ("model", "learner")}
    shared.pop("train.outer_lr", None)
    return [
        Job(recipes.load(name, shared), arguments.data_dir, job.ranks) for name in job.recipe.beside
    ]


def _later(recipe: dict[str, Any]) -> tuple[str, ...]:
    """The learner's settings that training made no use of."""
    settings = recipe["learner"]
    name = str(settings.get("name")) if isinstance(settings, dict) else ""
    return LEARNERS[name].later if name in LEARNERS else ()


def evaluate_run(
    arguments: argparse.Namespace, overrides: dict[str, Any], ranks: Ranks = ALONE
) -> Outcome:
    """Scores what a run has meta-learned so far."""

    def read() -> tuple[dict[str, Any], tuple[Params, ...]]:
        recipe = recipe_of(arguments.run)
        # Where data lie may change, and new classes may lie there.
        free = ["data.path", *(f"learner.{name}" for name in _later(recipe))]
        for key in overrides:
            if key.split(".")[0] not in ("evaluate", "engine") and key not in free:
                raise InputError(
                    f"{key} in an evaluation",
                    f"settings of [evaluate] or [engine], {', '.join(free)}; the others were fixed "
                    "in training",
                    "Train another run with it.",
                )
        checkpoint = checkpoint_of(arguments.run)
        classes = read_classes(arguments.run)
        told = {"seconds": None, "peak_bytes": None, "commits": [], **checkpoint.notes}
        training = {name: told[name] for name in ("seconds", "peak_bytes", "commits")}
        training["meta_iterations"] = checkpoint.iteration
        if began := began_of(arguments.run):
            training["began"] = began
        found = {
            "recipe": recipe,
            "training": training,
            "classes": [*(classes or ())],
            "fixed": checkpoint.notes.get("fixed"),
        }
        return found, (checkpoint.params,)

    saved, (params,) = ranks.from_first(read)
    with ranks.agreement():
        # Tasks of an evaluation are drawn where they are learnt.
        recipe = recipes.parse(saved["recipe"], {"engine.workers": 0, **overrides})
        job = Job(recipe, arguments.data_dir, ranks, n_classes=classes_of(params))
        if getattr(recipe.data, "path", "") == saved["recipe"].get("data", {}).get("path", ""):
            job.check_unseen(saved["classes"])
        where = arguments.run / CHECKPOINT
        params = fitting(params, job.learner, where=where, fixed=saved["fixed"])
    params = {k: v.to(job.recipe.engine.device) for k, v in params.items()}
    output = arguments.output or arguments.run / "evaluation.json"
    if ranks.first:
        check_output(output)
    cells = score(job, params)
    document = report.result_document(
        name=job.recipe.name,
        command=f"tegu evaluate RUN{settings_of(arguments)}",
        seed=job.recipe.train.seed,
        training=saved["training"],
        cells=cells,
        processes=ranks.world,
    )
    if ranks.first:
        report.write_result(output, document)
    return document, f"{report.table(cells)}\nresult: {output}"


def info(arguments: argparse.Namespace) -> Outcome:
    """What a run folder holds."""
    plain = recipe_of(arguments.run)
    recipe, checkpoint = recipes.parse(plain), checkpoint_of(arguments.run)
    metrics = read_metrics(arguments.run / "metrics.jsonl")
    names = sorted(path.name for path in arguments.run.iterdir() if path.is_file())
    document = {
        "run": str(arguments.run),
        "recipe": recipe.name,
        "learner": recipe.learner["name"],
        "data": recipe.data.name,
        "iteration": checkpoint.iteration,
        "meta_iterations": recipe.train.meta_iterations,
        "seconds": checkpoint.notes.get("seconds"),
        "commits": checkpoint.notes.get("commits", []),
        "parameters": count_weights(checkpoint.params),
        "digest": checkpoint.digest(),
        "validation": metrics[-1].get("validation") if metrics else None,
        "files": names,
    }
    return document, "\n".join(f"{key:<16} {_inline(value)}" for key, value in document.items())


def list_recipes(arguments: argparse.Namespace) -> Outcome:
    """All recipes, or one with every default filled in."""
    if arguments.recipe:
        plain = recipes.load(arguments.recipe).plain()
        lines = [f"{plain['name']}: {plain['title']}"]
        if plain["source"]:
            lines.append(f"source: {plain['source']}")
        for section in ("data", "model", "learner", "train", "engine", "evaluate"):
            lines.append(f"[{section}]")
            for key, value in plain[section].items():
                shown = f"{len(value)} figures" if key == "cells" else json.dumps(value)
                lines.append(f"  {key} = {shown}")
        return plain, "\n".join(lines)
    found = [recipes.load(name) for name in recipes.names()]
    width = max(len(recipe.name) for recipe in found)
    document = {"recipes": [{"name": r.name, "title": r.title, "source": r.source} for r in found]}
    return document, "\n".join(f"{r.name:<{width}}  {r.title}" for r in found)


def trained(
    job: Job, folder: Path, *, resume: bool, lengths: tuple[str, ...] = ()
) -> tuple[Params, Progress, list[Path]]:
    recipe, metric = job.recipe, job.measure.metric
    if names := _converted(job):
        say(f"{len(names)} BatchNorm layers use the task's own statistics: {', '.join(names)}")
    threads = f", {torch.get_num_threads()} threads" if recipe.engine.device == "cpu" else ""
    say(
        f"engine: {job.training_engine}, {recipe.engine.device}{threads}; see [engine] to change it"
    )
    if recipe.engine.precision == "bf16" and not half_pays(torch.device(recipe.engine.device)):
        say(
            "bf16 is slower than fp32 on this machine: --set engine.precision=auto takes the faster"
        )
    limit, title = round(recipe.train.seconds), f"meta-train {recipe.name}"
    total, unit = (limit, "s") if limit else (recipe.train.meta_iterations, "iterations")
    with bar(title, total, unit=unit) as tell:
        told = training(
            tell, metric=metric, meta_batch=recipe.train.meta_batch, by_time=bool(limit)
        )
        params, last = job.train(folder, resume=resume, lengths=lengths, progress=told)
    pictures: list[Path] = []
    if not job.ranks.first:
        return params, last, pictures
    if metrics := read_metrics(folder / "metrics.jsonl"):
        pictures.append(folder / "learning-curve.png")
        chance = 1 / recipe.train.n_way if metric == "accuracy" else None
        title = f"{recipe.title or recipe.name}: {job.validation.replace('_', '-')} tasks"
        draw.learning_curve(metrics, pictures[-1], title=title, chance=chance, metric=metric)
    if job.recipe.data.name == "sinusoids":
        pictures.append(folder / "fit.png")
        picture_fit(job, params, pictures[-1])
    return params, last, pictures


def _converted(job: Job) -> list[str]:
    from tegu.models.norm import converted

    return converted(job.learner.model)


def _inline(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
