"""Settings as files and command lines give them: of the right type and within their bounds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from tegu.errors import InputError, InputTypeError, unknown
from tegu.recipes.settings import Cell

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    "train.weight_decay": (0, math.inf),
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


def named(section: str, kind: str, known: Any, usual: Mapping[str, Any], table: Any) -> Any:
    """A section whose keys are the settings of the class that it names, or of the usual one."""
    check_table(section, table)
    settings = {**({} if "name" in table else usual), **table}
    name = typed(f"{section}.name", settings.pop("name"), "str")
    if name not in known:
        raise unknown(kind, name, known)
    for key in settings:
        own = [f.name for f in fields(known[name])]
        if key not in own:
            raise unknown(f"setting of the {kind} {name}", key, own)
    return section_of(section, known[name], settings)


def section_of(section: str, cls: Any, table: Any) -> Any:
    check_table(section, table)
    known = {f.name: f for f in fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise unknown(f"key of [{section}]", key, known)
        if key == "cells":
            values[key] = _cells(value)
            continue
        values[key] = typed(f"{section}.{key}", value, str(known[key].type))
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
    return tuple(section_of("evaluate.cells", Cell, cell) for cell in value)


def check_table(section: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise InputTypeError(f"{section} is {table!r}", "a table", f"Write [{section}] above it.")


def typed(key: str, value: Any, kind: str) -> Any:
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
