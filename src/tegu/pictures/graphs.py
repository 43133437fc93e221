"""Pictures of learnt causal graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu.pictures.style import COLOURS, FAINT, INK, literal, picture


def recovery(
    distances: Mapping[str, Tensor], truth: Tensor, belief: Tensor, path: Path, *, meta_batch: int
) -> None:
    """Distance to the true graph against episodes, and one world's graph beside the belief.

    Args:
        distances: by label, (M, W) structural Hamming distances after each meta-iteration.
        truth: (k, k), 0 or 1.
        belief: (k, k) probabilities.
        path: of the picture.
        meta_batch: episodes of a meta-iteration.
    """
    with picture(path, "Causal graphs from interventions on unknown variables", (10, 4)) as figure:
        curve, left, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
        for (label, values), colour in zip(distances.items(), COLOURS, strict=False):
            seen = torch.arange(1, len(values) + 1) * meta_batch
            low, middle, high = values.double().quantile(
                torch.tensor([0.25, 0.5, 0.75]).double(), 1
            )
            curve.fill_between(seen, low, high, color=colour, alpha=0.15, linewidth=0)
            curve.plot(seen, middle, color=colour, label=label)
        curve.set_xlabel("episodes")
        curve.set_title("structural Hamming distance: median, quartiles", loc="left", fontsize=10)
        curve.set_ylim(bottom=0)
        curve.legend(frameon=False)
        for axes, values, title in ((left, truth, "true graph"), (right, belief, "belief")):
            _matrix(axes, values, title)


def belief_graph(names: Sequence[str], belief: Tensor, path: Path, *, title: str) -> None:
    """A graph of named variables: an arrow for each likely edge, and all beliefs.

    Args:
        names: of the k variables.
        belief: (k, k) probabilities; row i, column j that j is a direct cause of i.
        path: of the picture.
        title: what it shows.
    """
    names, k = [literal(name) for name in names], len(names)
    with picture(path, title, (10, 4.6)) as figure:
        left, right = figure.subplots(1, 2)
        angle = torch.arange(k) * 2 * torch.pi / k + torch.pi / 2
        places = torch.stack([angle.cos(), angle.sin()], 1).tolist()
        for effect in range(k):
            for cause in range(k):
                if cause == effect or not (strength := float(belief[effect, cause])) > 0.5:
                    continue
                both = bool(belief[cause, effect] > 0.5)
                left.annotate(
                    "",
                    places[effect],
                    places[cause],
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": COLOURS[0],
                        "alpha": strength,
                        "linewidth": 1 + 2 * (strength - 0.5),
                        "shrinkA": 24,
                        "shrinkB": 24,
                        "connectionstyle": f"arc3,rad={0.2 if both else 0.0}",
                    },
                )
        for (x, y), name in zip(places, names, strict=True):
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": FAINT}
            left.text(x, y, _short(name), ha="center", va="center", color=INK, bbox=box)
        left.set_xlim(-1.4, 1.4)
        left.set_ylim(-1.3, 1.3)
        left.set_axis_off()
        _matrix(right, belief, "belief that the column is a direct cause of the row")
        told = [_short(name) for name in names]
        right.set_yticks(range(k), told)
        right.set_xticks(range(k), told)
        if max(map(len, told)) > 5:
            right.tick_params("x", rotation=30)


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def _matrix(axes: Any, values: Tensor, title: str) -> None:
    axes.imshow(values.double().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("cause")
    axes.set_ylabel("effect")
    axes.set_xticks(range(len(values)))
    axes.set_yticks(range(len(values)))
    axes.grid(False)
    axes.spines[:].set(visible=True, color=FAINT)
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            if i != j:
                colour = "white" if value > 0.6 else INK
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", color=colour, fontsize=8)
