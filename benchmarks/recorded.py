"""What a benchmark's result tells of its own making: the command, and the trainings behind it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tegu.engine.train import Progress


def command(script: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """What to paste to get a result again: every option that is not at its default.

    Folders go by their option's name, DATA for --data-dir; a result file by its path.

    Args:
        script: `__file__`.
        parser: gives the defaults.
        arguments: what it read.
    """
    words = ["python", f"benchmarks/{Path(script).name}"]
    for name, value in vars(arguments).items():
        flag = f"--{name.replace('_', '-')}"
        if value == parser.get_default(name):
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [word for one in value for word in (flag, str(one))]
        elif isinstance(value, Path) and not value.suffix:
            words += [flag, name.removesuffix("_dir").upper()]
        else:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return " ".join(words)


def training(runs: Sequence[Progress], precision: str) -> dict[str, Any]:
    """The training of a result that stands on several runs, all seconds and iterations together.

    Args:
        runs: the last report of each.
        precision: that all had.
    """
    peaks = [last.peak_bytes for last in runs if last.peak_bytes is not None]
    return {
        "seconds": round(sum(last.seconds for last in runs), 1),
        "meta_iterations": sum(last.iteration for last in runs),
        "peak_bytes": max(peaks, default=None),
        "precision": precision,
        "commits": list(dict.fromkeys(commit for last in runs for commit in last.commits)),
    }
