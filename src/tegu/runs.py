"""Runs as they were left: what they hold, and learners that go on from what was meta-learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tegu import recipes
from tegu.adapted import fitting
from tegu.engine.checkpoint import Checkpoint, load_checkpoint
from tegu.engine.run import BEGAN, LARGEST, Run
from tegu.errors import InputError
from tegu.files import expanded, read_object
from tegu.inner import Params
from tegu.job import Job
from tegu.meta import MetaLearned

CHECKPOINT = "checkpoint.safetensors"


def load_run(folder: str | Path, *, device: str = "cpu") -> MetaLearned:
    """What a run has meta-learned so far, ready to learn new tasks.

    It needs the run's folder alone, and none of the data that it was trained on; a run on a
    pack reads the pack's list of classes, which says what an example looks like.

    Args:
        folder: of `tegu train` or `tegu reproduce`.
        device: where tasks are to be learnt, whatever the run was trained on.

    Raises:
        InputError: there is no run, or its files do not belong together.
    """
    place = expanded(folder)
    plain, saved = recipe_of(place), checkpoint_of(place)
    # What served the training would change the program that this one is part of.
    serving = {"engine.device": device, "engine.workers": 0, "engine.threads": 0}
    recipe = recipes.parse(plain, serving)
    learner = Job(recipe, n_classes=classes_of(saved.params)).learner
    where, fixed = place / CHECKPOINT, saved.notes.get("fixed")
    params, inputs = fitting(saved.params, learner, where=where, fixed=fixed), recipe.data.inputs()
    return MetaLearned(learner, params, inputs.shape if inputs.kind == "images" else ())


def classes_of(params: Params) -> int:
    """Classes that a learner was pre-trained on; 0 for one that was not."""
    return len(params.get("classifier/weight", ()))


def recipe_of(run: Path) -> dict[str, Any]:
    """A run's settings, as plain data.

    Raises:
        InputError: there is no run, or its settings cannot be read.
    """
    return {name: value for name, value in _written(run).items() if name != BEGAN}


def began_of(run: Path) -> dict[str, Any]:
    """The lengths that a run began with, by dotted name, where it was prolonged."""
    found: dict[str, Any] = _written(run).get(BEGAN, {})
    return found


def _written(run: Path) -> dict[str, Any]:
    file = run / "recipe.json"
    if not file.is_file():
        raise InputError(
            f"{run} holds no run", "a folder that `tegu train` has made", "Check the path."
        )
    try:
        plain = read_object(file, LARGEST)
        if "learner" not in plain:
            raise ValueError("no learner")
    except ValueError:
        raise InputError(
            f"{file} is no recipe", "the settings that a run has written", "Train the run again."
        ) from None
    if not isinstance(plain["learner"], dict):
        raise InputError(
            f"{run} holds a run of tegu.meta_train",
            "a folder that `tegu train` has made",
            f"Read {run / CHECKPOINT} with tegu.MetaLearned.load, and the learner built alike.",
        )
    return plain


def checkpoint_of(run: Path) -> Checkpoint:
    """A run's checkpoint, which belongs to its settings.

    Raises:
        InputError: there is none, it is damaged, or of other settings.
    """
    checkpoint = load_checkpoint(run / CHECKPOINT)
    if checkpoint.recipe != Run(run, _written(run)).digest():
        raise InputError(
            f"{run / CHECKPOINT} belongs to other settings than {run / 'recipe.json'}",
            "the two files that one run has written",
            "Put the right one back, or train the run again.",
        )
    return checkpoint
