"""Recipes: one TOML file for each result, with every setting that decides it.

A recipe has the sections [data], [model], [learner], [train], [engine] and
[evaluate]. What it leaves out takes the default written here; what it writes
wrong is refused with the nearest right name.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from tegu.errors import InputError, unknown
from tegu.learners import LEARNERS
from tegu.recipes.parsing import parse, start_of
from tegu.recipes.settings import Cell, Engine, Evaluate, Recipe, Train
from tegu.recipes.shelf import names, read
from tegu.sources import SOURCES

__all__ = [
    "Cell",
    "Engine",
    "Evaluate",
    "Recipe",
    "Train",
    "alike",
    "load",
    "names",
    "parse",
    "starting",
]


def load(name: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe by name or by the path of a TOML file, with some settings replaced.

    Args:
        name: one of `names()`, or a path that ends in ".toml".
        overrides: values by dotted key, {"train.seed": 3}, say; strings are
            read as the type that the key has.

    Raises:
        InputError: no such recipe or key, or a value of the wrong type.
    """
    return parse(read(name), overrides or {})


def starting(learner: str, data: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe to start from, for a learner on a data set: its class knows the settings.

    Args:
        learner: one of `tegu.learners.LEARNERS`.
        data: a data set's name.
        overrides: as for `load`.

    Raises:
        InputError: no such learner or setting.
    """
    if learner not in LEARNERS:
        raise unknown("learner", learner, LEARNERS)
    if data not in SOURCES:
        raise unknown("data set", data, SOURCES)
    cls, source = LEARNERS[learner], SOURCES[data]
    settings = {"train.n_shot": 1, **start_of(cls, source), **source.start}
    raw: dict[str, Any] = {
        "name": re.sub(r"[^\w.-]+", "p", f"{learner}-{data}"),
        "title": f"{learner} on {data}",
        "data": {"name": data},
        "model": dict(cls.network or source.network),
        "learner": {"name": learner},
        "train": {"validate_every": 100},
    }
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if section != "data" or name in {f.name for f in fields(source)}:
            raw.setdefault(section, {})[name] = value
    changed = overrides or {}
    mode = changed.get("learner.normalisation", raw["learner"].get("normalisation", "support"))
    cells: list[dict[str, Any]] = [dict(cell) for cell in source.cells]
    if not cells:
        own = any(f.name == "n_way" for f in fields(cls))  # else its network has as many outputs
        ways = str(changed.get("train.n_way", 5))  # who trains on fewer may have no more classes
        own = own and not (ways.isdecimal() and int(ways) < 5)
        n_way, n_query = 5 if own else 0, 15 if cls.transductive else 1
        modes = (mode, "support") if mode == "transductive" else (mode,)
        cells = [
            {"n_way": n_way, "n_shot": n_shot, "n_query": n_query, "normalisation": one}
            for one in modes
            for n_shot in (1, 5)
        ]
    raw["evaluate"] = {"cells": cells}
    return parse(raw, changed)


def alike(one: Any, other: Any) -> bool:
    """Whether two recipes, as plain data, decide the same result.

    Another version of tegu may have written one of them: settings that it lacks count as usual.
    What only decides how fast a result comes does not count.
    """
    try:
        first, second = (_deciding(parse(plain)) for plain in (one, other))
    except (InputError, AttributeError, TypeError):
        return bool(one == other)
    return first == second


def _deciding(recipe: Recipe) -> Recipe:
    engine = dataclasses.replace(recipe.engine, workers=0)
    if engine.device == "cpu":
        engine = dataclasses.replace(engine, cuda_graphs=True)
    train = dataclasses.replace(recipe.train, checkpoint_seconds=Train.checkpoint_seconds)
    own: Any = {f.name: f.default for f in fields(recipe.data) if f.name in ("hold", "workers")}
    data = dataclasses.replace(recipe.data, **own)
    return dataclasses.replace(recipe, engine=engine, train=train, data=data)
