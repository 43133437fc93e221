"""A picture of beliefs on their way: medians, and bands of most of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tegu.report import BLUE, FAINT, GREEN, ORANGE, RED, SKY, picture

COLOURS = (BLUE, RED, GREEN, ORANGE, SKY)


def belief_paths(
    paths: Sequence[tuple[str, NDArray[np.float64]]],
    path: Path,
    *,
    title: str,
    label: str,
    unit: str = "episodes",
    each: int = 1,
) -> None:
    """One panel: the median of each group of beliefs, and the band from 10 to 90 per cent of it.

    Args:
        paths: name of a group, and its beliefs, shape (R, steps + 1), from 0 to 1.
        path: PNG to write.
        title: what the picture shows.
        label: what the beliefs are in.
        unit: what a step is one of.
        each: so many of the unit to a step.
    """
    with picture(path, title, (7.5, 4.2)) as figure:
        axes = figure.subplots()
        axes.axhline(0.5, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
        ends: list[tuple[float, str, str]] = []
        longest = max(beliefs.shape[1] for _, beliefs in paths) - 1
        for (name, beliefs), colour in zip(paths, COLOURS * len(paths), strict=False):
            steps = np.arange(beliefs.shape[1]) * each
            low, median, high = np.quantile(beliefs, (0.1, 0.5, 0.9), axis=0)
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(steps, median, color=colour, label=name)
            ends.append((float(median[-1]), name, colour))
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(0, longest * each)
        axes.set_xlabel(unit)
        axes.set_ylabel(label)
        axes.legend(loc="center right", frameon=False)
