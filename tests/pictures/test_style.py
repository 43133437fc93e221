"""Names beside points: apart from each other and from the points, and inside the axes."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tegu.pictures.style import name_points


@pytest.mark.parametrize("spread", [1.0, 0.15])
def test_names_in_a_crowd_stay_apart(spread: float) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlim(1, 100)
    axes.set_ylim(0, 1)
    points = [
        (f"learner {i}", 10 ** (1 + spread * ((i * 7) % 12 - 6) / 12), 0.5 + spread * i / 30, "k")
        for i in range(12)
    ]
    name_points(axes, points)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [Text.get_window_extent(note, renderer) for note in axes.texts]
    assert [note.get_text() for note in axes.texts] == [name for name, *_ in points]
    inside = axes.get_window_extent(renderer)
    for box in boxes:
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for x, y in axes.transData.transform([(x, y) for _, x, y, _ in points]):
        assert not any(box.contains(x, y) for box in boxes)


def test_a_name_without_room_stands_right_of_its_point() -> None:
    figure = Figure(figsize=(1, 1))
    axes = figure.subplots()
    name_points(axes, [("a name longer than the picture is wide", 0.5, 0.5, "k")])
    assert axes.texts[0].get_ha() == "left"
