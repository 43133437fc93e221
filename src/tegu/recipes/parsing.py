"""Plain data, as TOML or JSON hold it, made into a recipe: every name known, every value sound."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tegu.errors import InputError, InputTypeError, unknown
from tegu.learners import LEARNERS, Learner
from tegu.networks import NETWORKS
from tegu.recipes.settings import Engine, Evaluate, Recipe, Train
from tegu.recipes.shelf import names
from tegu.recipes.values import check_table, named, section_of, typed
from tegu.sources import SOURCES, Source

# What a learner gets from the other sections.
ELSEWHERE = ("model", "loss", "n_way", "n_classes", "numbers", "seed")
SECTIONS = {"train": Train, "engine": Engine, "evaluate": Evaluate}
NAMED = ("data", "model", "learner")  # sections whose keys depend on their name


def parse(raw: dict[str, Any], overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe from plain data, as TOML or JSON hold it."""
    raw = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    before = _name_in(raw, "learner", "reptile")
    # Names first: another name drops the settings of the one before, whatever the order.
    ordered = sorted((overrides or {}).items(), key=lambda item: _rank(item[0]))
    for key, value in ordered:
        section, _, name = key.partition(".")
        if section not in (*NAMED, *SECTIONS):
            raise unknown("section", section, [*NAMED, *SECTIONS])
        if not name:
            raise InputError(f"'{key}'", "SECTION.KEY", f"Write {section}.KEY=VALUE.")
        table = raw.setdefault(section, {})
        check_table(section, table)
        if name == "name" and value != _name_in(raw, section, _usual_name(raw, section)):
            table.clear()  # another model or learner has other settings
        table[name] = value
    if "train.outer_lr" not in (overrides or {}):
        _take_outer_lr(raw, before)
    for name in raw:
        if name not in {f.name for f in fields(Recipe)}:
            raise unknown("key", name, [f.name for f in fields(Recipe)])
    if not re.fullmatch(r"\w[\w.-]*", typed("name", raw.get("name", ""), "str")):
        raise InputError(
            f"a recipe with the name '{raw.get('name', '')}'",
            "letters, digits, '.', '_' and '-', since runs and results are called after it",
            'Write name = "my-recipe", say.',
        )
    values: dict[str, Any] = {
        k: typed(k, raw[k], "str") for k in ("name", "title", "source") if k in raw
    }
    values["beside"] = _beside(raw.get("beside", []))
    for name, cls in SECTIONS.items():
        values[name] = section_of(name, cls, raw.get(name, {}))
    source = named("data", "data set", SOURCES, {"name": "glyphs"}, raw.get("data", {}))
    values["data"] = source
    values["learner"] = learner = _learner(raw.get("learner", {}))
    usual = LEARNERS[learner["name"]].network or source.network
    values["model"] = named("model", "model", NETWORKS, usual, raw.get("model", {}))
    return Recipe(**values)


def _take_outer_lr(raw: dict[str, Any], before: str) -> None:
    """Another learner's usual outer step: that of a mean of weights is none of a gradient's."""
    old, new = LEARNERS.get(before), LEARNERS.get(_name_in(raw, "learner", before))
    source = SOURCES.get(_name_in(raw, "data", "glyphs"))
    if not (old and new and source):
        return  # a name that is refused further on
    usual = start_of(new, source)
    if (old.outer_update is None) != (new.outer_update is None) and "train.outer_lr" in usual:
        check_table("train", table := raw.setdefault("train", {}))
        table["outer_lr"] = usual["train.outer_lr"]
        table.pop("outer_lr_final", None)


def _rank(key: str) -> int:
    """Names before other settings; a model's after those that decide on the usual model."""
    return (key == "model.name") + 2 * (not key.endswith(".name"))


def _usual_name(raw: dict[str, Any], section: str) -> str:
    """What a section that names nothing is about."""
    usual = {"data": "glyphs", "learner": "reptile"}
    if section != "model":
        return usual.get(section, "")
    learner, data = (_name_in(raw, s, usual[s]) for s in ("learner", "data"))
    if learner not in LEARNERS or data not in SOURCES:
        return ""  # a name that is refused further on
    return str((LEARNERS[learner].network or SOURCES[data].network)["name"])


def _name_in(raw: dict[str, Any], section: str, usual: str) -> str:
    table = raw.get(section)
    return str(table.get("name", usual)) if isinstance(table, dict) else usual


def start_of(cls: type[Learner], source: type[Source]) -> Mapping[str, Any]:
    """A learner's usual settings on such targets."""
    return cls.start_numbers if source.targets == "numbers" else cls.start


def _beside(given: Any) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)):
        raise InputTypeError(f"beside is {given!r}", "a list of recipes", "Write it as such.")
    for name in given:
        if name not in names():
            raise unknown("recipe", name, names())
    return tuple(given)


def _learner(table: Any) -> dict[str, Any]:
    check_table("learner", table)
    name = typed("learner.name", table.get("name", "reptile"), "str")
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS)
    known = {f.name: f for f in fields(LEARNERS[name]) if f.name not in ELSEWHERE}
    settings = {k: v for k, v in table.items() if k != "name"}
    values = {k: f.default for k, f in known.items()}
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of {name}", key, known)
        values[key] = typed(f"learner.{key}", value, type(known[key].default).__name__)
    return {"name": name, **values}
