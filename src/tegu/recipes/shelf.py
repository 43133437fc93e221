"""Recipes as files: those that come with tegu, and people's own."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

from tegu.errors import InputError, unknown
from tegu.files import expanded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 1 << 20  # bytes that a recipe may have


def names() -> list[str]:
    """Recipes that come with tegu."""
    files = resources.files("tegu.recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read(name: str | Path) -> dict[str, Any]:
    """What a recipe file says, unchecked, by name or by path, with its file's name as its own."""
    name = str(name)
    if name.endswith(".toml"):
        path = expanded(name)
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
    return raw
