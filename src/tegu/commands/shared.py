"""What several commands do alike: where results go, and how they are told."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from tegu.engine.train import Progress
from tegu.errors import InputError

Outcome = tuple[dict[str, Any], str]


def output_of(
    arguments: argparse.Namespace, folder: Path, name: str, *, check: bool = True
) -> Path:
    """Where a result goes: as told, else among the project's results, else into the folder."""
    shared = Path("benchmarks/results")
    path: Path = arguments.output or (shared if shared.is_dir() else folder) / f"{name}.json"
    if check:
        check_output(path)
    return path


def check_output(path: Path, todo: str = "Choose another --output.") -> None:
    """Refuses a file that could not be written after hours of training."""
    whole = path.absolute()
    there = next((folder for folder in whole.parents if folder.exists()), whole)
    if (
        (path.exists() and not path.is_file())
        or not there.is_dir()
        or not os.access(there, os.W_OK)
    ):
        raise InputError(
            f"{path} cannot be written",
            "a file in a folder that can be written",
            todo,
        )


def settings_of(arguments: argparse.Namespace) -> str:
    """The options that change a result, for its record."""
    words = [replaced(arguments)]
    for name in ("threads", "episodes"):
        if (value := getattr(arguments, name, None)) is not None:
            words.append(f" --{name} {value}")
    return "".join(words)


def replaced(arguments: argparse.Namespace) -> str:
    """The settings that `--set` replaces; paths stay out of a record."""
    named = [item for item in arguments.set if not item.strip().startswith("data.path")]
    return "".join(f" --set {shlex.quote(item)}" for item in named)


def listed(pictures: list[Path]) -> list[str]:
    return [f"picture: {path}" for path in pictures]


def training_of(last: Progress) -> dict[str, Any]:
    return {
        "seconds": round(last.seconds, 1),
        "meta_iterations": last.iteration,
        "peak_bytes": last.peak_bytes,
        "precision": last.precision,
        "commits": list(last.commits),
    }
