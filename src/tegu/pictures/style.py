"""The house's style: colours, fonts, and an empty figure that is written at the end."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tegu.files import write_atomically

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


AWAY = (8, 16, 26, 38, 52)  # of a name from its point, typographical points
AROUND = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)  # degrees, in order of liking


def name_points(axes: Any, points: Sequence[tuple[str, float, float, str]]) -> None:
    """Writes names beside points, none over another name or a point where there is room.

    Args:
        axes: of one figure, whose limits are set.
        points: name, x, y, colour; the first ones choose first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    canvas: Any = FigureCanvasAgg(axes.figure)
    renderer = canvas.get_renderer()
    axes.figure.draw_without_rendering()  # so that the layout is known
    centres = axes.transData.transform([(x, y) for _, x, y, _ in points])
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in centres]
    inside = axes.get_window_extent(renderer)
    for name, x, y, colour in points:
        note = axes.annotate(
            literal(name),
            (x, y),
            (AWAY[0], 0),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
            zorder=1.5,  # its line ends under the point
            arrowprops={"arrowstyle": "-", "color": "#C4CBD0", "linewidth": 0.6, "shrinkB": 4},
        )

        def placed(away: float, angle: float, note: Any = note) -> Any:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            note.set_position((away * across, away * up))
            note.set_ha("left" if across > 0.1 else "right" if across < -0.1 else "center")
            note.set_va("bottom" if up > 0.6 else "top" if up < -0.6 else "center")
            note.update_positions(renderer)
            return Text.get_window_extent(note, renderer)

        for place in itertools.product(AWAY, AROUND):
            box = placed(*place)
            if inside.containsx(box.x0) and inside.containsx(box.x1):
                within = inside.containsy(box.y0) and inside.containsy(box.y1)
                if within and not any(box.overlaps(other) for other in taken):
                    break
        else:
            box = placed(AWAY[0], AROUND[0])
        taken.append(box)
