"""Recipes: one TOML file for each result, with every setting that decides it.

A recipe has the sections [data], [model], [learner], [train], [engine] and
[evaluate]. What it leaves out takes the default written here; what it writes
wrong is refused with the nearest right name.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from tegu.errors import InputError, InputTypeError, unknown
from tegu.learners import LEARNERS, Learner
from tegu.networks import NETWORKS, Conv4Network, Network
from tegu.sources import SOURCES, Glyphs, Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 1 << 20  # bytes that a recipe may have


@dataclass(frozen=True)
class Train:
    """Meta-learning."""

    meta_iterations: int = 1000
    seconds: float = 0.0  # end after so much training, if that comes first; 0: no limit
    meta_batch: int = 5
    outer_lr: float = 1.0
    outer_lr_final: float = 0.0
    outer_schedule: str = "linear"  # linear or cosine: the way from the first to the last
    n_way: int = 5
    n_shot: int = 10
    n_query: int = 0
    batch: int = 64  # examples, where a learner is pre-trained on batches of all classes
    seed: int = 0
    validate_every: int = 0
    validate_episodes: int = 100
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Engine:
    """How fast it runs, and in which arithmetic."""

    vectorise: str = "auto"  # auto, vmap or loop
    compile: str = "auto"  # auto, on or off
    precision: str = "fp32"  # fp32, bf16 or auto: bf16 where the machine is faster in it
    cuda_graphs: bool = True  # on a GPU, replay what is done again and again as CUDA graphs
    checkpoint: bool = False  # run inner steps again on the way back, to save memory
    at_once: int = 0  # tasks of a meta-batch side by side; 0: all. Fewer take less memory
    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice
    workers: int = 0  # processes that draw tasks ahead of the work; 0: none


@dataclass(frozen=True)
class Cell:
    """One figure of a result, and the published one beside it."""

    n_way: int = 0  # 0: as in training
    n_shot: int = 1
    n_query: int = 1
    normalisation: str = "support"
    eval_batch: int = 0  # 0: the learner's
    published: float = -1.0  # below 0: none
    source: str = ""


@dataclass(frozen=True)
class Evaluate:
    """Task learning on unseen tasks."""

    episodes: int = 1000
    at_once: int = 50
    seed: int = 1
    split: str = "meta_test"
    cells: tuple[Cell, ...] = (Cell(),)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, every default filled in."""

    name: str
    title: str = ""
    source: str = ""
    beside: tuple[str, ...] = ()  # recipes whose figures belong into the same result
    data: Source = field(default_factory=Glyphs)
    model: Network = field(default_factory=Conv4Network)
    learner: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    engine: Engine = field(default_factory=Engine)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def plain(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only, as JSON keeps them."""
        out: dict[str, Any] = _plain(dataclasses.asdict(self))
        for section in ("data", "model"):
            out[section] = {"name": getattr(self, section).name, **out[section]}
        return out


# The least and the most that a number may be.
RANGES: dict[str, tuple[float, float]] = {
    "data.workers": (0, 1024),
    "data.hold": (0, 1 << 20),
    "data.least": (1, math.inf),
    "data.world": (0, 1 << 62),
    "data.alphabets": (1, 10**6),
    "data.characters": (1, 10**4),
    "data.drawers": (2, 200),
    "data.n_features": (1, 1 << 16),
    "model.width": (1, 1 << 16),
    "model.last": (1, 4),
    "model.widths": (1, 1 << 16),
    "model.depth": (10, 1000),
    "model.blocks": (1, 1000),
    "model.widen": (1, 1 << 10),
    "model.hidden": (1, 1 << 20),
    "model.layers": (1, 1000),
    "model.encoder_layers": (1, 1000),
    "model.decoder_layers": (1, 1000),
    "model.embedding_layers": (1, 1000),
    "model.decoder": (1, 1000),
    "model.encoder": (2, 1000),
    "model.heads": (1, 1 << 10),
    "model.feedforward": (1, 1 << 20),
    "model.components": (1, 1 << 16),
    "model.factor": (1, 1 << 10),
    "model.units": (0, 1 << 20),
    "model.view": (0, 1 << 16),
    "model.latent": (0, 1 << 16),
    "model.frequencies": (0, 64),
    "train.meta_iterations": (1, math.inf),
    "train.seconds": (0, math.inf),
    "train.meta_batch": (1, 1 << 20),
    "train.outer_lr": (0, math.inf),
    "train.outer_lr_final": (0, math.inf),
    "train.n_way": (2, 1 << 20),
    "train.n_shot": (1, 1 << 20),
    "train.n_query": (0, 1 << 20),
    "train.batch": (1, 1 << 20),
    "train.seed": (-(1 << 62), 1 << 62),
    "train.validate_every": (0, math.inf),
    "train.validate_episodes": (2, math.inf),
    "train.checkpoint_seconds": (0, math.inf),
    "engine.threads": (0, 1024),
    "engine.workers": (0, 1024),
    "engine.at_once": (0, math.inf),
    "evaluate.episodes": (2, 10**9),
    "evaluate.at_once": (1, 1 << 20),
    "evaluate.cells.n_way": (0, 1 << 20),
    "evaluate.cells.n_shot": (1, 1 << 20),
    "evaluate.cells.n_query": (1, 1 << 20),
    "evaluate.cells.eval_batch": (0, 1 << 20),
}

# What a learner gets from the other sections.
ELSEWHERE = ("model", "loss", "n_way", "n_classes", "numbers", "seed")
SECTIONS = {"train": Train, "engine": Engine, "evaluate": Evaluate}
NAMED = ("data", "model", "learner")  # sections whose keys depend on their name


def names() -> list[str]:
    """Recipes that come with tegu."""
    files = resources.files("tegu.recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load(name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe by name or by the path of a TOML file, with some settings replaced.

    Args:
        name: one of `names()`, or a path that ends in ".toml".
        overrides: values by dotted key, {"train.seed": 3}, say; strings are
            read as the type that the key has.

    Raises:
        InputError: no such recipe or key, or a value of the wrong type.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no file {name}", "a recipe in TOML", "Check the path.")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{name} is over 1 MiB", "a recipe in TOML", "Check the path.")
        text = path.read_text(encoding="utf-8", errors="replace")
    elif name in names():
        text = resources.files("tegu.recipes").joinpath(f"{name}.toml").read_text()
    else:
        raise unknown("recipe", name, names())
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as failure:
        raise InputError(f"{name} is not TOML: {failure}", "a recipe", "Mend that line.") from None
    raw.setdefault("name", Path(name).stem)
    return parse(raw, overrides or {})


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
    settings = {"train.n_shot": 1, **_start_of(cls, source), **source.start}
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
        _check_table(section, table)
        if name == "name" and value != _name_in(raw, section, _usual_name(raw, section)):
            table.clear()  # another model or learner has other settings
        table[name] = value
    if "train.outer_lr" not in (overrides or {}):
        _take_outer_lr(raw, before)
    for name in raw:
        if name not in {f.name for f in fields(Recipe)}:
            raise unknown("key", name, [f.name for f in fields(Recipe)])
    if not re.fullmatch(r"\w[\w.-]*", _typed("name", raw.get("name", ""), "str")):
        raise InputError(
            f"a recipe with the name '{raw.get('name', '')}'",
            "letters, digits, '.', '_' and '-', since runs and results are called after it",
            'Write name = "my-recipe", say.',
        )
    values: dict[str, Any] = {
        k: _typed(k, raw[k], "str") for k in ("name", "title", "source") if k in raw
    }
    values["beside"] = _beside(raw.get("beside", []))
    for name, cls in SECTIONS.items():
        values[name] = _section(name, cls, raw.get(name, {}))
    source = _named("data", "data set", SOURCES, {"name": "glyphs"}, raw.get("data", {}))
    values["data"] = source
    values["learner"] = learner = _learner(raw.get("learner", {}))
    usual = LEARNERS[learner["name"]].network or source.network
    values["model"] = _named("model", "model", NETWORKS, usual, raw.get("model", {}))
    return Recipe(**values)


def _take_outer_lr(raw: dict[str, Any], before: str) -> None:
    """Another learner's usual outer step: that of a mean of weights is none of a gradient's."""
    old, new = LEARNERS.get(before), LEARNERS.get(_name_in(raw, "learner", before))
    source = SOURCES.get(_name_in(raw, "data", "glyphs"))
    if not (old and new and source):
        return  # a name that is refused further on
    usual = _start_of(new, source)
    if (old.outer_update is None) != (new.outer_update is None) and "train.outer_lr" in usual:
        _check_table("train", table := raw.setdefault("train", {}))
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


def _start_of(cls: type[Learner], source: type[Source]) -> Mapping[str, Any]:
    """A learner's usual settings on such targets."""
    return cls.start_numbers if source.targets == "numbers" else cls.start


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


def _named(section: str, kind: str, known: Any, usual: Mapping[str, Any], table: Any) -> Any:
    """A section whose keys are the settings of the class that it names, or of the usual one."""
    _check_table(section, table)
    settings = {**({} if "name" in table else usual), **table}
    name = _typed(f"{section}.name", settings.pop("name"), "str")
    if name not in known:
        raise unknown(kind, name, known)
    for key in settings:
        own = [f.name for f in fields(known[name])]
        if key not in own:
            raise unknown(f"setting of the {kind} {name}", key, own)
    return _section(section, known[name], settings)


def _beside(given: Any) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)):
        raise InputTypeError(f"beside is {given!r}", "a list of recipes", "Write it as such.")
    for name in given:
        if name not in names():
            raise unknown("recipe", name, names())
    return tuple(given)


def _learner(table: Any) -> dict[str, Any]:
    _check_table("learner", table)
    name = _typed("learner.name", table.get("name", "reptile"), "str")
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS)
    known = {f.name: f for f in fields(LEARNERS[name]) if f.name not in ELSEWHERE}
    settings = {k: v for k, v in table.items() if k != "name"}
    values = {k: f.default for k, f in known.items()}
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of {name}", key, known)
        values[key] = _typed(f"learner.{key}", value, type(known[key].default).__name__)
    return {"name": name, **values}


def _section(section: str, cls: Any, table: Any) -> Any:
    _check_table(section, table)
    known = {f.name: f for f in fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise unknown(f"key of [{section}]", key, known)
        if key == "cells":
            values[key] = _cells(value)
            continue
        values[key] = _typed(f"{section}.{key}", value, str(known[key].type))
        least, most = RANGES.get(f"{section}.{key}", (-math.inf, math.inf))
        for number in values[key] if isinstance(values[key], tuple) else [values[key]]:
            if not isinstance(number, str) and not least <= number <= most:
                wanted = f"at least {least}" if number < least else f"at most {most}"
                raise InputError(f"{section}.{key} is {value}", wanted, f"Change {key}.")
    missing = [k for k, f in known.items() if f.default is MISSING and k not in values]
    assert not missing, missing
    return cls(**values)


def _cells(value: Any) -> tuple[Cell, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InputTypeError(
            f"evaluate.cells is {value!r}",
            "one or more tables",
            "Write [[evaluate.cells]] above each in a TOML file.",
        )
    return tuple(_section("evaluate.cells", Cell, cell) for cell in value)


def _check_table(section: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise InputTypeError(f"{section} is {table!r}", "a table", f"Write [{section}] above it.")


def _typed(key: str, value: Any, kind: str) -> Any:
    wanted = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a word",
        "tuple[str, ...]": "a list of words",
    }.get(kind, "a list of whole numbers")
    wrong = InputTypeError(f"{key} is {value!r}", wanted, "Write it as such.")
    given = value
    if isinstance(value, str) and kind != "str":
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except (ValueError, RecursionError):  # TOMLDecodeError, or a number of too many digits
            raise wrong from None
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if kind.startswith("tuple"):
        of = str if "str" in kind else int
        if not isinstance(value, (list, tuple)) or not all(type(v) is of for v in value):
            raise wrong
        return tuple(value)
    if type(value).__name__ != kind:
        raise wrong
    if kind == "float" and value - value != 0:
        raise InputError(f"{key} is {given}", "a finite number", "Write one.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
