"""Results as documents, tables and pictures.

A result document is plain data, `benchmarks/results/NAME.json`; tables and
pictures are made from it, so that no figure travels without its protocol.
Each file is written whole or not at all. matplotlib is imported when the
first picture is drawn, and no global state of it is touched for long.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tegu.engine.checkpoint import write_atomically
from tegu.engine.evaluate import Result
from tegu.errors import InputError, unknown
from tegu.losses import SHARES

PROTOCOL = (
    "data",
    "graph",
    "split",
    "within",
    "n_way",
    "n_shot",
    "n_query",
    "normalisation",
    "transductive",
    "learner",
)
FIGURE = ("protocol", "metric", "value", "ci95", "episodes", "published", "source")
COST = ("training_seconds", "meta_iterations", "adapt_ms", "peak_bytes", "state_bytes")
TIMING = (
    "work",
    "rival",
    "precision",
    "ours_ms",
    "rival_ms",
    "ratio",
    "ratio_min",
    "ratio_max",
    "share_of_limit",
)
DOCUMENT = ("name", "command", "commit", "seed", "versions", "hardware", "training", "cells")
TRAINING = ("seconds", "meta_iterations", "peak_bytes")

# Documents


def cell(
    result: Result,
    *,
    published: float | None = None,
    source: str = "",
    **protocol: Any,
) -> dict[str, Any]:
    """One figure of a result document.

    Args:
        result: value, interval, episodes, split and normalisation.
        published: the figure to compare with, in the result's own unit.
        source: where that figure is printed.
        protocol: data, n_way, n_shot, n_query; graph, family and size of a causal one;
            within, "group" where all classes of a task are of one; transductive, where
            queries are answered together;
            learner, where a figure is not that of the document's own. None leaves a
            key out.

    Example:
        >>> one = Result("mse", 0.05, 0.01, 1000, "meta_test", "none")
        >>> cell(one, data="sinusoids", n_shot=10, n_way=None)["protocol"]["n_shot"]
        10
    """
    given = {**protocol, "split": result.split}
    if result.normalisation != "none":
        given["normalisation"] = result.normalisation
    for name in given:
        if name not in PROTOCOL:
            raise unknown("protocol key", name, PROTOCOL)
    return {
        "protocol": {k: given[k] for k in PROTOCOL if given.get(k) is not None},
        "metric": result.metric,
        "value": result.value,
        "ci95": result.ci95,
        "episodes": result.episodes,
        "published": published,
        "source": source,
    }


def result_document(
    *, name: str, command: str, seed: int, training: dict[str, Any], cells: list[dict[str, Any]]
) -> dict[str, Any]:
    """A result with all that it takes to get it again.

    Args:
        name: of the file, without ".json".
        command: what to paste to get this document again.
        seed: of the run.
        training: `seconds`, `meta_iterations` and `peak_bytes`; None where unknown.
        cells: figures, as `cell` makes them, or timings.

    Raises:
        InputError: a key is missing or unknown, a cell has no finite figure, or
            an accuracy is not within 0 to 1.
    """
    document = {
        "name": name,
        "command": command,
        "commit": commit(),
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(),
        "training": training,
        "cells": cells,
    }
    check(document)
    return document


def write_result(path: Path, document: dict[str, Any]) -> None:
    """Writes a result document, checked, whole or not at all."""
    check(document)
    write_atomically(Path(path), (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def check(document: dict[str, Any]) -> None:
    """Refuses a document that is not of the form every reader expects.

    Raises:
        InputError: which key or figure is wrong, and what it should be.
    """
    _exactly(document, DOCUMENT, "the document")
    _exactly(document["training"], TRAINING, "its training")
    if not document["cells"]:
        raise InputError(
            f"the result '{document['name']}' has no cells", "one or more", "Evaluate first."
        )
    for number, item in enumerate(document["cells"]):
        where = f"cell {number}"
        if "metric" not in item:
            _exactly(item, TIMING, where)
            continue
        _exactly({k: v for k, v in item.items() if k != "cost"}, FIGURE, where)
        if "cost" in item:
            _exactly(item["cost"], COST, f"the cost of {where}")
        for key in item["protocol"]:
            if key not in PROTOCOL:
                raise unknown("protocol key", key, PROTOCOL)
        values = {k: item[k] for k in ("value", "ci95", "published") if item[k] is not None}
        for key, value in values.items():
            _figure(f"{key} of {where}", value, item["metric"])


def _figure(what: str, value: Any, metric: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}", "a finite number", "Evaluate again.")
    if what.startswith(("ci95", "the interval")) and value < 0:
        raise InputError(f"{what} is {value}", "0 or more", "Pass the half-width.")
    if metric in SHARES and not 0 <= value <= 1:
        raise InputError(f"{what} is {value}", "an accuracy from 0 to 1", "Divide per cent by 100.")


def _exactly(given: dict[str, Any], keys: Sequence[str], what: str) -> None:
    missing, extra = [k for k in keys if k not in given], [k for k in given if k not in keys]
    if missing or extra:
        told = [f"lacks {', '.join(missing)}"] if missing else []
        told += [f"has the unknown {', '.join(map(str, extra))}"] if extra else []
        raise InputError(
            f"{what} {' and '.join(told)}", f"the keys {', '.join(keys)}", "Mend the keys."
        )


def commit() -> str | None:
    """Commit of the checkout that this package is run from, or None outside one.

    "-dirty" is added where files differ from it that may decide a result:
    documents, and results themselves, do not count.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed, perhaps into a folder of somebody else's repository
    aside = [f":(top,exclude){folder}" for folder in ("benchmarks/results", "docs")]
    changed = _git("status", "--porcelain", "--", ":(top)", *aside)
    head = _git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and changed else head


def _git(*arguments: str) -> str | None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).resolve().parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of what computes a result."""
    from tegu import __version__

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "tegu": __version__,
    }


def hardware() -> dict[str, Any]:
    """The machine: `cpu`, `cores`, `threads` of torch, `memory_bytes`, `gpu` or None."""
    cpu, memory = platform.processor() or platform.machine(), None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        pass  # not Linux: what is known is told
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_bytes() -> int | None:
    """Most memory that this process has held: of the GPU if it used one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# Tables


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Cells of a result document as lines of text, each figure with its protocol.

    Example:
        >>> one = Result("accuracy", 0.9541, 0.0012, 10_000, "meta_test", "support")
        >>> print(table([cell(one, data="omniglot", n_way=5, n_shot=1, published=0.9539)]))
        data      split      way  shot  normalisation  episodes  accuracy        published
        omniglot  meta_test    5     1  support          10,000  95.41 ± 0.12 %  95.39 %
    """
    header, rows = _rows(cells)
    numeric = [all(row[i].replace(",", "").isdigit() for row in rows) for i in range(len(header))]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)


def markdown_table(document: dict[str, Any]) -> str:
    """The table of a result document for the documents, with its origin under it."""
    check(document)
    header, rows = _rows(document["cells"])
    lines = [header, ["---"] * len(header), *rows]
    body = ["| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines]
    machine = document["hardware"]
    took = document["training"]["seconds"]
    origin = [
        f"`{document['command']}`",
        f"seed {document['seed']}",
        f"commit {document['commit'][:12]}" if document["commit"] else "",
        f"torch {document['versions']['torch']}",
        machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores",
        f"training {duration(took)}" if took else "",
    ]
    return "\n".join([*body, "", "; ".join(filter(None, origin)) + ".", ""])


def _rows(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    if cells and "metric" not in cells[0]:
        columns = [
            ("work", [c["work"] for c in cells]),
            ("against", [c["rival"] for c in cells]),
            ("precision", [c["precision"] for c in cells]),
            ("ours, ms", [_number(c["ours_ms"]) for c in cells]),
            ("theirs, ms", [_number(c["rival_ms"]) for c in cells]),
            ("times as fast", [_ratio(c) for c in cells]),
            ("share of limit", [_percent(c["share_of_limit"]) for c in cells]),
        ]
    else:
        names = {k: k.removeprefix("n_") for k in ("learner", *PROTOCOL[:-1])}
        columns = [(names[k], [_said(c["protocol"].get(k, "")) for c in cells]) for k in names]
        metrics = [c["metric"] for c in cells]
        one = len(set(metrics)) == 1
        columns += [
            ("episodes", [f"{c['episodes']:,}" for c in cells]),
            ("metric", [""] * len(cells) if one else metrics),
            (metrics[0] if one else "value", [_value(c) for c in cells]),
            ("published", [shown(c["published"], c["metric"]) for c in cells]),
            ("meta-iterations", [_cost(c, "meta_iterations", "{:,}") for c in cells]),
            ("one task, ms", [_cost(c, "adapt_ms", "{:.3g}") for c in cells]),
            ("peak, MiB", [_cost(c, "peak_bytes", "{:,.0f}", 1 << 20) for c in cells]),
            ("a task's state, KiB", [_cost(c, "state_bytes", "{:,.3g}", 1 << 10) for c in cells]),
        ]
    kept = [(name, texts) for name, texts in columns if any(texts)]
    return [name for name, _ in kept], [list(row) for row in zip(*(t for _, t in kept))]  # noqa: B905


def _cost(item: dict[str, Any], key: str, form: str, unit: int = 1) -> str:
    value = item.get("cost", {}).get(key)
    return "" if value is None else form.format(value / unit if unit > 1 else value)


def _said(value: Any) -> str:
    return "yes" if value is True else str(value)


def _value(item: dict[str, Any]) -> str:
    if item["ci95"] is None:
        return shown(item["value"], item["metric"])
    if item["metric"] in SHARES:
        return f"{100 * item['value']:.2f} ± {100 * item['ci95']:.2f} %"
    return f"{item['value']:.4g} ± {item['ci95']:.2g}"


def _ratio(item: dict[str, Any]) -> str:
    if item["ratio"] is None:
        return ""
    return f"{item['ratio']:.2f} ({item['ratio_min']:.2f} to {item['ratio_max']:.2f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def shown(value: float | None, metric: str) -> str:
    """A figure as people read it: "95.39 %" for 0.9539 of accuracy, else the number."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if metric in SHARES else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "41 s", "12 min" or "1 h 08 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


# Pictures

DPI = 150
INK, FAINT, GRID = "#222222", "#767676", "#E4E4E4"
# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, ORANGE, SKY, GREEN, RED = "#0072B2", "#E69F00", "#56B4E9", "#009E73", "#D55E00"
COLOURS = (BLUE, RED, GREEN, ORANGE, SKY)  # of curves side by side
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


@contextmanager
def picture(path: Path, title: str, size: tuple[float, float]) -> Iterator[Any]:
    """An empty figure of `size` inches with the house's style, written at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.09)  # type: ignore[union-attr, call-arg]
        wrapped = textwrap.fill(title, int(size[0] * 10), break_on_hyphens=False)
        figure.suptitle(wrapped, x=0.12 / size[0], ha="left", fontsize=12, fontweight="bold")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomically(Path(path), buffer.getvalue())


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
    highlight: str | None = None,
) -> None:
    """Bars side by side, with 95 % intervals.

    Args:
        rows: name, value and half-width of its interval (0 for none), top first;
            accuracies from 0 to 1.
        path: PNG to write.
        title: what the bars show.
        metric: "accuracy" or another, drawn as it is.
        label: of the axis; unit included.
        highlight: name of the row in colour; by default the last.
    """
    if not rows:
        raise InputError("no rows to compare", "one or more", "Pass (name, value, ci95) rows.")
    for name, value, ci95 in rows:
        _figure(f"the value of '{name}'", value, metric)
        _figure(f"the interval of '{name}'", ci95, metric)
    percent = metric in SHARES
    scale, best = (100 if percent else 1), highlight or rows[-1][0]
    with picture(path, title, (7.5, 1.25 + 0.48 * len(rows))) as figure:
        axes = figure.subplots()
        for at, (name, value, ci95) in enumerate(rows):
            colour = BLUE if name == best else "#A9B4BC"
            axes.barh(at, scale * value, height=0.62, color=colour)
            if ci95:
                whisker = {"capsize": 3, "color": INK, "linewidth": 1.2}
                axes.errorbar(scale * value, at, xerr=scale * ci95, fmt="none", **whisker)
            text = f"{scale * value:.1f}" if percent else f"{value:.3g}"
            if ci95:
                text += f" ± {scale * ci95:.1f}" if percent else f" ± {ci95:.1g}"
            ink = BLUE if name == best else INK
            _beside(axes, scale * (value + ci95), at, f"{text} %" if percent else text, ink)
        names = [textwrap.fill(name, 34) for name, _, _ in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
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
        _figure(f"the value of '{name}'", value, "accuracy")
        _figure(f"the interval of '{name}'", ci95, "accuracy")
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
        axes.set_xlim(min(r[3] for r in rows) / 1.5, max(r[3] for r in rows) * 4)
        # Names stand right of their points, moved apart where points crowd.
        places = _apart([-100 * row[1] for row in ordered], room / 26)
        for (name, value, _, cost), place in zip(ordered, places, strict=True):
            axes.annotate(
                name,
                (cost, 100 * value),
                (cost * 1.12, -place),
                fontsize=8.5,
                va="center",
                color=BLUE if name == ordered[0][0] else INK,
                arrowprops={"arrowstyle": "-", "color": "#D5DBDF", "linewidth": 0.6},
            )
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy on unseen tasks, %")


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
    return bool(images.median() < (images.min() + images.max()) / 2)


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
