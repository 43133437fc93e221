"""The command that learns a task from a user's files, and answers about others."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tegu import recipes
from tegu.adapted import Adapted
from tegu.commands.shared import Outcome, check_output
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
    if arguments.save:
        check_output(arguments.save, "Choose another --save.")
    source = recipes.parse(recipe_of(arguments.run)).data
    if type(source).read is Source.read:
        raise source.no_files()
    learned = load_run(arguments.run, device=arguments.device)
    if learned.learner.transductive:
        raise InputError(
            f"{learned.learner.name}, which looks at all queries of a task together",
            "a learner that answers each by itself",
            "Train simpleshot or protonet, say; or learn the task in Python, with tegu.load_run.",
        )
    learned = replace(learned, learner=_alone(learned.learner))
    named = source.listed(arguments.files)
    task = _task(learned, source, arguments.task)
    answers: list[dict[str, Any]] = []
    many = len(named) > AT_ONCE
    title = f"predict {arguments.run.name}"
    with bar(title, len(named), unit="queries") if many else nullcontext() as tell:
        for start in range(0, len(named), AT_ONCE):
            some = named[start : start + AT_ONCE]
            answers += _answers(task, source, some)
            if tell:
                tell(start + len(some), "")
    if all("error" in one for one in answers):
        raise InputError(answers[0]["error"], "files as the run was trained on", "Check the paths.")
    if arguments.save:
        task.save(arguments.save)
    document = {
        "run": str(arguments.run),
        "labels": list(task.labels),
        "answers": answers,
        "task": str(arguments.save) if arguments.save else None,
    }
    return document, _text(document)


def _answers(task: Adapted, source: Source, some: list[str]) -> list[dict[str, Any]]:
    """An answer for each; where one cannot be read, what is wrong with it."""
    try:
        rows = task.predict_proba(source.read(some)).tolist()
    except InputError as error:
        if len(some) == 1:
            return [{"query": some[0], "error": error.given}]
        return [answer for one in some for answer in _answers(task, source, [one])]
    names = [str(label) for label in task.labels]
    return [
        {
            "query": one,
            "label": task.labels[max(range(len(row)), key=row.__getitem__)],
            "probabilities": dict(zip(names, row, strict=True)),
        }
        for one, row in zip(some, rows, strict=True)
    ]


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
        if "error" in one:
            lines.append(f"{one['query']:{width}}  {one['error']}")
            continue
        sure = max(one["probabilities"].values())
        lines.append(f"{one['query']:{width}}  {one['label']!s:{longest}}  {sure:.2f}")
    if document["task"]:
        lines.append(f"task: {document['task']}")
    return "\n".join(lines)
