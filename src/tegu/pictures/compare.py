"""A picture of learners side by side."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from tegu.losses import SHARES
from tegu.pictures.style import COLOURS, picture


def side_by_side(entries: dict[str, dict[str, Any]], path: Path, *, title: str) -> None:
    """Accuracy against training time, and the cost of a task as it grows."""
    from matplotlib.ticker import ScalarFormatter

    sequences = next(iter(entries.values()))["growth"][0]["length"] is not None
    with picture(path, title, (11.0 if sequences else 8.5, 4.2)) as figure:
        panels = figure.subplots(1, 3 if sequences else 2)
        metric = next(iter(entries.values()))["curve"][-1][2]["metric"]
        scale = 100 if metric in SHARES else 1
        for (name, one), colour in zip(entries.items(), cycle(COLOURS), strict=False):
            style = {"color": colour, "marker": "o", "ms": 4, "label": name}
            values = [scale * result["value"] for _, _, result in one["curve"]]
            errors = [scale * result["ci95"] for _, _, result in one["curve"]]
            panels[0].errorbar([p[0] for p in one["curve"]], values, yerr=errors, **style)
            first, *rest = (g for g in one["growth"] if g["adapt_ms"] is not None)
            sizes = [first, *(g for g in rest if g["length"] == first["length"])]
            panels[1].plot([g["support"] for g in sizes], [g["adapt_ms"] for g in sizes], **style)
            if sequences:
                long = [first, *(g for g in rest if g["length"] != first["length"])]
                panels[2].plot([g["length"] for g in long], [g["adapt_ms"] for g in long], **style)
        panels[0].set_ylabel(f"{metric} on unseen tasks" + (", %" if scale == 100 else ""))
        panels[0].set_xlabel("seconds of meta-training")
        panels[0].legend(frameon=False)
        panels[1].set_ylabel("learn one task, milliseconds")
        panels[1].set_xlabel("support examples")
        for axes in panels[1:]:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        panels[0].set_xscale("log", base=2)
        for axes in panels:
            axes.xaxis.set_major_formatter(ScalarFormatter())
        if sequences:
            panels[2].set_xlabel("tokens of an answer")
