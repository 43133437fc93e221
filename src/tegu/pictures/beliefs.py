"""A picture of beliefs on their way: medians, and bands of most of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tegu.pictures.style import COLOURS, FAINT, literal, picture


def belief_paths(
    paths: Sequence[tuple[str, NDArray[np.float64]]],
    path: Path,
    *,
    title: str,
    label: str,
    unit: str = "episodes",
    each: int = 1,
    others: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """The median of each group of beliefs, and the band from 10 to 90 per cent of it.

    Args:
        paths: name of a group, and its beliefs, shape (R, steps + 1), from 0 to 1.
        path: PNG to write.
        title: what the picture shows.
        label: what the beliefs are in.
        unit: what a step is one of.
        each: so many of the unit to a step.
        others: by the name of a group, beliefs of its counterpart, in its colour and dashed.
    """
    label = literal(label)
    with picture(path, title, (7.5, 4.2 if len(paths) == 1 else 4.8)) as figure:
        axes = figure.subplots()
        axes.axhline(0.5, color=FAINT, linewidth=1.0)
        longest = max(beliefs.shape[1] for _, beliefs in paths) - 1
        for (name, first), colour in zip(paths, COLOURS * len(paths), strict=False):
            second = (others or {}).get(name)
            for beliefs, line in ((first, "-"), (second, (0, (4, 2)))):
                if beliefs is None:
                    continue
                steps = np.arange(beliefs.shape[1]) * each
                low, median, high = np.quantile(beliefs, (0.1, 0.5, 0.9), axis=0)
                axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
                shown = name if line == "-" else None
                axes.plot(steps, median, color=colour, linestyle=line, label=shown)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(0, longest * each)
        axes.set_xlabel(unit)
        axes.set_ylabel(label)
        if len(paths) > 1:
            figure.legend(loc="outside lower left", ncols=2, frameon=False)
