"""Results as documents and tables.

A result document is plain data, `benchmarks/results/NAME.json`; tables and
pictures are made from it, so that no figure travels without its protocol.
Each file is written whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tegu import origin
from tegu.engine.evaluate import Result
from tegu.engine.profile import TRACED, Watch
from tegu.errors import InputError, check_range, unknown
from tegu.files import write_atomically
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
TRAINED = ("precision", "commits", "began")  # what training may tell besides

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
    *,
    name: str,
    command: str,
    seed: int,
    training: dict[str, Any],
    cells: list[dict[str, Any]],
    processes: int = 1,
) -> dict[str, Any]:
    """A result with all that it takes to get it again.

    Args:
        name: of the recipe or the benchmark.
        command: what to paste to get this document again.
        seed: of the run.
        training: `seconds`, `meta_iterations` and `peak_bytes`; None where unknown. `precision`
            where there was one, the `commits` that trained, and the lengths that it `began` with,
            where it was prolonged.
        cells: figures, as `cell` makes them, or timings.
        processes: that shared the work, each with the threads that are told.

    Raises:
        InputError: a key is missing or unknown, a cell has no finite figure, or
            an accuracy is not within 0 to 1.
    """
    document = {
        "name": name,
        "command": command,
        "commit": origin.commit(),
        "seed": seed,
        "versions": origin.versions(),
        "hardware": origin.hardware() | ({"processes": processes} if processes > 1 else {}),
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

    It may bring, as `table`, rows of text that show its figures better than a row for each.

    Raises:
        InputError: which key or figure is wrong, and what it should be.
    """
    _exactly({k: v for k, v in document.items() if k != "table"}, DOCUMENT, "the document")
    if len({len(row) for row in document.get("table", [[]])}) != 1:
        raise InputError(
            f"the table of '{document['name']}' has rows of different length",
            "as many texts in each row as in the first",
            "Mend the table.",
        )
    training = {k: v for k, v in document["training"].items() if k not in TRAINED}
    _exactly(training, TRAINING, "its training")
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
        values = {k: item[k] for k in ("ci95", "published") if item[k] is not None}
        values["value"] = item["value"]
        for key, value in values.items():
            check_figure(f"{key} of {where}", value, item["metric"])


def check_figure(what: str, value: Any, metric: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}", "a finite number", "Evaluate again.")
    if what.startswith(("ci95", "the interval")):
        check_range(what, value, 0, todo="Pass the half-width.")
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


def _processor(machine: dict[str, Any]) -> str:
    words = [machine["cpu"]]
    words += [known] if (known := machine.get("instructions")) else []
    cores, threads = machine["cores"], machine.get("threads") or machine["cores"]
    used = f"{threads} of {cores} cores" if threads < cores else f"{cores} core{'s' * (cores != 1)}"
    return ", ".join([*words, used])


# Tables


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Cells of a result document as lines of text, each figure with its protocol.

    Example:
        >>> one = Result("accuracy", 0.9541, 0.0012, 10_000, "meta_test", "support")
        >>> print(table([cell(one, data="omniglot", n_way=5, n_shot=1, published=0.9539)]))
        data      split      way  shot  normalisation  episodes  accuracy        published
        omniglot  meta_test    5     1  support          10,000  95.41 ± 0.12 %  95.39 %
    """
    return aligned(*_rows(cells))


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """Lines of text with a header; columns of whole numbers are right-aligned."""
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


def profile(watch: Watch) -> str:
    """Where the time of a run went, as lines of text."""
    per = max(watch.iterations, 1)
    parts = [
        [name, f"{seconds:.1f} s", f"{1e3 * seconds / per:.2f}", f"{share:.0%}"]
        for name, seconds, share in watch.shares()
    ]
    text = [aligned(["part", "time", "ms a meta-iteration", "share"], parts)]
    text.append(f"the first meta-iteration took {watch.first:.1f} s")
    if watch.operations:
        count = len(TRACED)
        rows = [
            [name, f"{calls / count:.0f}", f"{ms / count:.2f}"]
            for name, calls, ms in watch.operations
        ]
        header = ["operation", "calls", "ms a meta-iteration"]
        text += ["", aligned(header, rows), "", f"trace: {watch.trace}"]
    else:
        text.append(f"no trace: it takes {TRACED.stop} meta-iterations or more")
    return "\n".join(text)


def profile_document(watch: Watch) -> dict[str, Any]:
    """The same for programs: seconds by part, and milliseconds by operation of the trace."""
    return {
        "seconds": {name: round(seconds, 4) for name, seconds, _ in watch.shares()},
        "total": round(watch.total, 4),
        "first": round(watch.first, 4),
        "meta_iterations": watch.iterations,
        "operations": [
            {"name": name, "calls": calls, "ms": ms} for name, calls, ms in watch.operations
        ],
        "trace": str(watch.trace) if watch.operations else None,
    }


def markdown_table(document: dict[str, Any]) -> str:
    """The table of a result document for the documents, with its origin under it.

    A document that brings a table of its own, header first, gets that one. Figures and
    timings in one document make a table each.
    """
    check(document)
    own: list[list[str]] = document.get("table", [])
    kinds = [[c for c in document["cells"] if ("metric" in c) == kind] for kind in (True, False)]
    tables = [(own[0], own[1:])] if own else [_rows(cells) for cells in kinds if cells]
    body = "\n\n".join(_markdown(header, rows) for header, rows in tables)
    machine = document["hardware"]
    took = document["training"]["seconds"]
    origin = [
        f"`{document['command']}`",
        f"seed {document['seed']}",
        _commits(document),
        f"torch {document['versions']['torch']}",
        machine["gpu"] or _processor(machine),
        f"training {duration(took)}" if took else "",
        document["training"].get("precision") or "",
    ]
    return "\n".join([body, "", "; ".join(filter(None, origin)) + ".", ""])


def _commits(document: dict[str, Any]) -> str:
    """The commit that scored, and those that trained where there were others."""
    scored, trained = document["commit"], document["training"].get("commits", [])
    told = [f"commit {_short(scored)}"] if scored else []
    if trained and trained != [scored]:
        told.append(f"trained at {', '.join(_short(one) for one in trained)}")
    return ", ".join(told)


def _short(commit: str) -> str:
    """Twelve digits, and "-dirty" where that is part of it."""
    head, *dirty = commit.split("-")
    return "-".join([head[:12], *dirty])


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in y) + " |" for y in lines)


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
    middle = f"{item['ratio']:.2f}"
    if item["ratio_min"] is None or item["ratio_max"] is None:
        return middle
    return f"{middle} ({item['ratio_min']:.2f} to {item['ratio_max']:.2f})"


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
