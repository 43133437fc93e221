"""A picture of predictive bands: what learners say of functions, and what is exact."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tegu.errors import InputError
from tegu.pictures.style import BLUE, FAINT, INK, picture


class Band(NamedTuple):
    """Mean and standard deviation of T functions on a grid, each of shape (T, G)."""

    mean: Tensor
    sd: Tensor


def predictive_bands(
    grid: Tensor,
    support: Sequence[tuple[Tensor, Tensor]],
    exact: Band,
    learnt: Sequence[tuple[str, Band]],
    path: Path,
    *,
    title: str,
) -> None:
    """A row a function, a column a learner: its band in colour over the exact one.

    A band reaches two standard deviations of an observation to both sides of the mean.

    Args:
        grid: shape (G,), inputs in order.
        support: inputs and targets of each of the T functions, two of shape (S,).
        exact: the reference.
        learnt: name and band of each learner.
        path: PNG to write.
        title: what the picture shows.
    """
    shape = (len(support), len(grid))
    for name, band in [("the reference", exact), *learnt]:
        if any(tuple(part.shape) != shape for part in band):
            raise InputError(
                f"{name} with a mean of shape {tuple(band.mean.shape)}",
                f"{shape[0]} functions at {shape[1]} inputs",
                "Predict at the grid's inputs.",
            )
    if not learnt:
        raise InputError("no learners", "one or more", "Pass (name, band) pairs.")
    x = grid.detach().cpu().double().numpy()
    size = (2.7 * len(learnt) + 0.6, 1.9 * len(support) + 1.2)
    with picture(path, title, size) as figure:
        panels = figure.subplots(
            len(support), len(learnt), sharex=True, sharey="row", squeeze=False
        )
        for row, (at, seen) in enumerate(support):
            for column, (name, band) in enumerate(learnt):
                axes = panels[row, column]
                for (mean, sd), colour, alpha, style in (
                    ((exact.mean[row], exact.sd[row]), FAINT, 0.28, "--"),
                    ((band.mean[row], band.sd[row]), BLUE, 0.25, "-"),
                ):
                    middle, half = (v.detach().cpu().double().numpy() for v in (mean, 2 * sd))
                    axes.fill_between(
                        x, middle - half, middle + half, color=colour, alpha=alpha, linewidth=0
                    )
                    axes.plot(x, middle, color=colour, linestyle=style, linewidth=1.3)
                points = (v.detach().cpu().double().numpy() for v in (at, seen))
                axes.plot(*points, "o", color=INK, markersize=4, markeredgecolor="white", mew=0.5)
                axes.set_xlim(x[0], x[-1])
                if row == 0:
                    axes.set_title(name, fontsize=10)
            panels[row, 0].set_ylabel(f"{len(at)} points", fontsize=9)
        told = (
            "dots: the points that were learned from; grey: exact; blue: learnt "
            "(mean, and two standard deviations)"
        )
        figure.supxlabel(textwrap.fill(told, int(13 * size[0])), fontsize=9, color=FAINT)
