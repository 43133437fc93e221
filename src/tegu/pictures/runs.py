"""Pictures of runs: how training went, what was reached, and what a learned task looks like."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tegu.errors import InputError
from tegu.losses import SHARES
from tegu.pictures.style import (
    BLUE,
    FAINT,
    GREEN,
    GRID,
    INK,
    ORANGE,
    RED,
    SKY,
    name_points,
    picture,
)
from tegu.report import check_figure, duration


def learning_curve(
    metrics: Sequence[dict[str, Any]],
    path: Path,
    *,
    title: str,
    chance: float | None = None,
    metric: str = "accuracy",
) -> None:
    """Validation figure and, below it, training loss over meta-iterations.

    Args:
        metrics: rows of a run's metrics: iteration, loss, validation, seconds.
        path: PNG to write.
        title: what the curve shows.
        chance: accuracy of guessing, 0 to 1, drawn as a dashed line.
        metric: "accuracy" or "mse".
    """
    if not metrics:
        raise InputError("no metrics", "one row or more", "Train with validate_every above 0.")
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    scale = 100 if metric in SHARES else 1
    name = f"validation {metric}, %" if metric in SHARES else f"validation {metric}"
    curves = [
        (name, _points(metrics, "validation", scale), BLUE),
        ("training loss", _points(metrics, "loss", 1), FAINT),
    ]
    curves = [curve for curve in curves if curve[1][0]]
    if not curves:
        raise InputError("metrics without a finite figure", "a loss or more", "Lower outer_lr.")
    with picture(path, title, (7.5, 4.8 if len(curves) == 2 else 3.2)) as figure:
        ratios = [3, 1.3][: len(curves)]
        panels = figure.subplots(len(curves), sharex=True, squeeze=False, height_ratios=ratios)
        for axes, (label, (x, y), colour) in zip(panels[:, 0], curves, strict=True):
            few = len(x) <= 25
            axes.plot(x, y, color=colour, marker="o" if few else "", ms=4, clip_on=False)
            axes.set_title(label, loc="left", fontsize=10, color=colour)
            percent = scale == 100 and colour == BLUE
            if percent:
                axes.set_ylim(0, 102)
                if chance is not None:
                    _chance_line(axes, 100 * chance)
            elif min(y) > 0 and max(y) > 20 * min(y):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                if min(y) >= 0:  # a log-likelihood, say, has no floor
                    axes.set_ylim(0, 1.08 * max(y) or 1)
                axes.yaxis.set_major_locator(MaxNLocator(4))
            last = f"{y[-1]:.1f} %" if percent else f"{y[-1]:.3g}"
            _beside(axes, x[-1], y[-1], last, colour)
        seconds = metrics[-1].get("seconds")
        took = f" ({duration(seconds)} of training)" if seconds else ""
        axes.set_xlabel(f"meta-iterations{took}")
        axes.set_xlim(0, max(row["iteration"] for row in metrics))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _points(
    metrics: Sequence[dict[str, Any]], key: str, scale: float
) -> tuple[list[int], list[float]]:
    rows = [(r["iteration"], r[key]) for r in metrics if r.get(key) is not None]
    rows = [(x, scale * y) for x, y in rows if math.isfinite(y)]
    return [x for x, _ in rows], [y for _, y in rows]


def _chance_line(axes: Any, value: float) -> None:
    axes.axhline(value, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate(
        f"chance, {value:.3g} %",
        (0.995, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=FAINT,
    )


def _beside(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontweight="bold",
        annotation_clip=False,
    )


def comparison(
    rows: Sequence[tuple[str, float, float]],
    path: Path,
    *,
    title: str,
    metric: str = "accuracy",
    label: str = "accuracy on unseen tasks, %",
    highlight: str | Collection[str] = (),
) -> None:
    """Bars side by side, with 95 % intervals.

    Args:
        rows: name, value and half-width of its interval (0 for none), top first;
            accuracies from 0 to 1.
        path: PNG to write.
        title: what the bars show.
        metric: "accuracy" or another, drawn as it is.
        label: of the axis; unit included.
        highlight: name or names of the rows in colour; by default the last.
    """
    if not rows:
        raise InputError("no rows to compare", "one or more", "Pass (name, value, ci95) rows.")
    for name, value, ci95 in rows:
        check_figure(f"the value of '{name}'", value, metric)
        check_figure(f"the interval of '{name}'", ci95, metric)
    percent = metric in SHARES
    chosen = (highlight,) if isinstance(highlight, str) else highlight
    scale, best = (100 if percent else 1), chosen or (rows[-1][0],)
    with picture(path, title, (7.5, 1.25 + 0.48 * len(rows))) as figure:
        axes = figure.subplots()
        for at, (name, value, ci95) in enumerate(rows):
            colour = BLUE if name in best else "#A9B4BC"
            axes.barh(at, scale * value, height=0.62, color=colour)
            if ci95:
                whisker = {"capsize": 3, "color": INK, "linewidth": 1.2}
                axes.errorbar(scale * value, at, xerr=scale * ci95, fmt="none", **whisker)
            text = f"{scale * value:.1f}" if percent else f"{value:.3g}"
            if ci95:
                text += f" ± {scale * ci95:.1f}" if percent else f" ± {ci95:.1g}"
            ink = BLUE if name in best else INK
            _beside(axes, scale * (value + ci95), at, f"{text} %" if percent else text, ink)
        names = [textwrap.fill(name, 34) for name, _, _ in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        if percent or min(value for _, value, _ in rows) >= 0:
            axes.set_xlim(0, 100 if percent else None)


def tradeoff(
    rows: Sequence[tuple[str, float, float, float]],
    path: Path,
    *,
    title: str,
    label: str = "one new task: learnt and answered, milliseconds",
) -> None:
    """Accuracy against what a task costs, a point with its interval for each row.

    Args:
        rows: name, accuracy from 0 to 1, half-width of its interval, milliseconds.
        path: PNG to write.
        title: what the picture shows.
        label: of the axis of costs, which is logarithmic.
    """
    if not rows:
        raise InputError("no rows to compare", "one or more", "Pass (name, value, ci95, ms) rows.")
    for name, value, ci95, cost in rows:
        check_figure(f"the value of '{name}'", value, "accuracy")
        check_figure(f"the interval of '{name}'", ci95, "accuracy")
        if not 0 < cost < math.inf:
            raise InputError(f"the cost of '{name}' is {cost}", "above 0", "Time it again.")
    ordered = sorted(rows, key=lambda row: -row[1])
    with picture(path, title, (8.5, 6.0)) as figure:
        axes = figure.subplots()
        for name, value, ci95, cost in ordered:
            first = name == ordered[0][0]
            axes.errorbar(
                cost,
                100 * value,
                yerr=100 * ci95,
                fmt="o",
                markersize=6,
                color=BLUE if first else FAINT,
                elinewidth=1.2,
            )
        low = min(100 * (value - ci95) for _, value, ci95, _ in ordered)
        high = max(100 * (value + ci95) for _, value, ci95, _ in ordered)
        room = max(high - low, 1.0)
        axes.set_ylim(low - 0.05 * room, high + 0.08 * room)
        axes.set_xscale("log")
        axes.set_xlim(min(r[3] for r in rows) / 1.5, max(r[3] for r in rows) * 2)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy on unseen tasks, %")
        colours = [BLUE, *[INK] * (len(ordered) - 1)]
        name_points(
            axes,
            [(r[0], r[3], 100 * r[1], c) for r, c in zip(ordered, colours, strict=True)],
        )


def episode(
    support: Tensor,
    support_labels: Tensor | Sequence[Hashable],
    query: Tensor,
    query_labels: Tensor | Sequence[Hashable],
    predicted: Tensor | Sequence[Hashable],
    path: Path,
    *,
    title: str,
    most: int = 4,
) -> None:
    """One episode: a column for each class, what was learned from, and the answers.

    Args:
        support: shape (S, C, H, W), any range; C is 1, or 3 for colour.
        support_labels: S labels.
        query: shape (Q, C, H, W).
        query_labels: the Q true labels; each has a support image.
        predicted: the Q answers.
        path: PNG to write.
        title: what the picture shows.
        most: rows of support, and of queries, at most; the rest are not drawn,
            yet counted.
    """
    learnt, true, said = _labels(support_labels), _labels(query_labels), _labels(predicted)
    for what, images, labels in (
        ("support", support, learnt),
        ("query", query, true),
        ("query", query, said),
    ):
        if len(images) != len(labels) or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                f"{what} images of shape {tuple(images.shape)} with {len(labels)} labels",
                "shape (S, C, H, W), C 1 or 3, and S labels",
                "Pass one label for each image.",
            )
    classes = list(dict.fromkeys(learnt))
    stray = [label for label in [*true, *said] if label not in classes]
    if stray:
        raise InputError(
            f"the label {stray[0]!r} has no support image",
            f"one of {', '.join(map(str, classes))}",
            "Name classes in the queries as in the support set.",
        )
    right = sum(a == b for a, b in zip(true, said, strict=True))
    columns = {c: [i for i, label in enumerate(learnt) if label == c][:most] for c in classes}
    asked = {c: [i for i, label in enumerate(true) if label == c][:most] for c in classes}
    above = max(map(len, columns.values()))
    below = max(map(len, asked.values()))
    dark = _dark(support)
    # A thin empty row parts the two halves.
    heights = [1.0] * above + [0.22] + [1.0] * below
    size = (1.15 + 1.3 * len(classes), 0.95 + 1.32 * (above + below))
    with picture(path, title, size) as figure:
        grid = figure.add_gridspec(
            len(heights),
            len(classes) + 1,
            height_ratios=heights,
            width_ratios=[0.75] + [1] * len(classes),
        )
        for first, count, text in (
            (0, above, "learn\nfrom"),
            (above + 1, below, f"answer\n\n{right} of {len(true)}\nright"),
        ):
            side = figure.add_subplot(grid[first : first + max(count, 1), 0])
            side.axis("off")
            side.text(0, 0.5, text, va="center", fontsize=11, transform=side.transAxes)
        for column, c in enumerate(classes, start=1):
            for row, i in enumerate(columns[c]):
                axes = _image(figure.add_subplot(grid[row, column]), support[i], dark, GRID, 1.0)
                if row == 0:
                    axes.set_title(_named(c), fontsize=10)
            for row, i in enumerate(asked[c]):
                good = said[i] == c
                colour = GREEN if good else RED
                axes = _image(
                    figure.add_subplot(grid[above + 1 + row, column]), query[i], dark, colour, 3
                )
                text = "✓" if good else f"✗ {_named(said[i])}"
                axes.set_xlabel(text, color=colour, fontweight="bold", fontsize=9.5, labelpad=3)


def _labels(labels: Tensor | Sequence[Hashable]) -> list[Hashable]:
    return labels.tolist() if isinstance(labels, Tensor) else list(labels)


def _named(label: Hashable) -> str:
    text = f"class {label}" if isinstance(label, int) else str(label)
    return text if len(text) <= 12 else text[:11] + "…"


def _dark(images: Tensor) -> bool:
    """Whether most of the pixels are on the dark side, all images taken together."""
    values = images.double()  # the sum of two bytes may be none
    return bool(values.median() < (values.min() + values.max()) / 2)


def _image(axes: Any, image: Tensor, dark: bool, frame: str, width: float) -> Any:
    """One image in a frame; dark strokes on white, whichever way the data has them."""
    pixels = image.detach().cpu().double()
    low, high = float(pixels.min()), float(pixels.max())
    pixels = (pixels - low) / (high - low or 1.0)
    if len(pixels) == 1:
        axes.imshow(pixels[0].numpy(), cmap="gray_r" if dark else "gray", vmin=0, vmax=1)
    else:
        axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=frame, linewidth=width)
    return axes


def sinusoid_fit(
    truth_x: Tensor,
    truth_y: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    fits: Sequence[tuple[str, Tensor]],
    path: Path,
    *,
    title: str,
) -> None:
    """Waves, the points that were learned from, and what was learned: a panel a task.

    Args:
        truth_x, truth_y: shape (Q,), (T, Q) or (T, Q, 1), in order of x.
        support_x, support_y: shape (S,), (T, S) or (T, S, 1).
        fits: name, "before" or "after 32 steps" say, and outputs of truth_y's shape.
        path: PNG to write.
        title: what the picture shows.
    """
    x, y, at, seen = (_tasks(t) for t in (truth_x, truth_y, support_x, support_y))
    curves = [(name, _tasks(t)) for name, t in fits]
    for what, one, other in [
        ("truth_y", y, x),
        ("support_y", seen, at),
        *((f"the fit '{name}'", curve, x) for name, curve in curves),
    ]:
        if one.shape != other.shape or len(one) != len(x):
            raise InputError(
                f"{what} of shape {tuple(one.shape)} beside {tuple(other.shape)}",
                f"the same shape, {len(x)} tasks",
                "Pass outputs at the points of truth_x.",
            )
    tasks = len(x)
    across = min(tasks, 3)
    down = -(-tasks // across)
    size = (2.9 * across + 1.5 if across > 1 else 6.5, 0.85 + 2.5 * down)
    colours = [RED, ORANGE, SKY, GREEN][: max(len(curves) - 1, 0)] + [BLUE] * bool(curves)
    with picture(path, title, size) as figure:
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        limit = 1.15 * max(float(t.abs().max()) for t in (y, seen, *(c for _, c in curves)))
        for t, axes in enumerate(panels.flat):
            if t >= tasks:
                axes.axis("off")
                continue
            axes.plot(x[t], y[t], color="#C4C4C4", linewidth=5)
            for (_, curve), colour in zip(curves, colours, strict=True):
                style = "--" if colour == RED else "-"
                axes.plot(x[t], curve[t], color=colour, linestyle=style, linewidth=1.8)
            axes.plot(at[t], seen[t], "o", color=INK, markersize=5, markeredgecolor="white")
            axes.set_ylim(-limit, limit)
            errors = [f"{float((curve[t] - y[t]).square().mean()):.2g}" for _, curve in curves]
            axes.set_title(f"squared error {' → '.join(errors)}", fontsize=9, color=FAINT)
        names = [
            ("wave", y, "#8A8A8A"),
            *((n, c, k) for (n, c), k in zip(curves, colours, strict=True)),
        ]
        figure.supxlabel("dots: the points that were learned from", fontsize=9, color=FAINT)
        last = across - 1
        ends = _apart([float(curve[last, -1]) for _, curve, _ in names], 0.16 * limit)
        for (name, _, colour), end in zip(names, ends, strict=True):
            _beside(panels[0, last], float(x[last, -1]), end, name, colour)


def _tasks(values: Tensor) -> Tensor:
    values = values.detach().cpu().double()
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values.squeeze(-1)
    return values[None] if values.ndim == 1 else values


def _apart(places: Sequence[float], least: float) -> list[float]:
    """The places, moved as little as needed to be `least` apart, in the same order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = list(places)
    for _ in range(100):
        for a, b in itertools.pairwise(order):
            short = least - (out[b] - out[a])
            if short > 1e-9:
                out[a], out[b] = out[a] - short / 2, out[b] + short / 2
    return out
