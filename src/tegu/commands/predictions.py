"""The command that learns a task from a user's files, and answers about others."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tegu import recipes
from tegu.adapted import Adapted
from tegu.commands.shared import Outcome
from tegu.console import bar
from tegu.errors import InputError
from tegu.learners.learner import Learner
from tegu.meta import MetaLearned
from tegu.runs import load_run, recipe_of
from tegu.sources import Source

AT_ONCE = 64  # queries that are read and answered together
KEPT = ".safetensors"  # how the name of a task's file ends


def predict(arguments: argparse.Namespace) -> Outcome:
    """Names for files, after a few examples of each class."""
    if arguments.save and arguments.save.suffix != KEPT:
        raise InputError(
            f"--save {arguments.save}", f"a name that ends in {KEPT}", f"Write task{KEPT}, say."
        )
    source = recipes.parse(recipe_of(arguments.run)).data
    learned = load_run(arguments.run, device=arguments.device)
    learned = replace(learned, learner=_alone(learned.learner))
    task = _task(learned, source, arguments.task)
    if arguments.save:
        task.save(arguments.save)
    named, answers = source.listed(arguments.files), []
    many = len(named) > AT_ONCE
    title = f"predict {arguments.run.name}"
    with bar(title, len(named), unit="queries") if many else nullcontext() as tell:
        for start in range(0, len(named), AT_ONCE):
            some = named[start : start + AT_ONCE]
            for one, row in zip(some, task.predict_proba(source.read(some)).tolist(), strict=True):
                best = max(range(len(row)), key=row.__getitem__)
                answers.append(
                    {
                        "query": one,
                        "label": task.labels[best],
                        "probabilities": dict(zip(map(str, task.labels), row, strict=True)),
                    }
                )
            if tell:
                tell(start + len(some), "")
    document = {
        "run": str(arguments.run),
        "labels": list(task.labels),
        "answers": answers,
        "task": str(arguments.save) if arguments.save else None,
    }
    return document, _text(document)


def _task(learned: MetaLearned, source: Source, place: Path) -> Adapted:
    """Read where it was kept, or learnt from examples."""
    if place.suffix == KEPT:
        return Adapted.load(place, learned.learner)
    examples, labels = source.examples(place)
    return learned.adapt(source.read(examples), labels)


def _alone(learner: Learner) -> Learner:
    """The learner, with answers that do not depend on what is asked beside them."""
    together = learner.normalisation == "transductive"
    return replace(learner, normalisation="support") if together else learner


def _text(document: dict[str, Any]) -> str:
    answers = document["answers"]
    width = max(len(one["query"]) for one in answers)
    longest = max(len(str(label)) for label in document["labels"])
    lines = []
    for one in answers:
        sure = max(one["probabilities"].values())
        lines.append(f"{one['query']:{width}}  {one['label']!s:{longest}}  {sure:.2f}")
    if document["task"]:
        lines.append(f"task: {document['task']}")
    return "\n".join(lines)
