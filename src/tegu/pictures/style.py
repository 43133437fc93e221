"""The house's style: colours, fonts, and an empty figure that is written at the end."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tegu.engine.checkpoint import write_atomically

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


def literal(text: str) -> str:
    """Text in which a dollar sign is one, and opens no formula."""
    return text.replace("$", r"\$")


@contextmanager
def picture(path: Path, title: str, size: tuple[float, float]) -> Iterator[Any]:
    """An empty figure of `size` inches with the house's style, written at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.09)  # type: ignore[union-attr, call-arg]
        wrapped = textwrap.fill(literal(title), int(size[0] * 10), break_on_hyphens=False)
        figure.suptitle(wrapped, x=0.12 / size[0], ha="left", fontsize=12, fontweight="bold")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomically(Path(path), buffer.getvalue())
