"""The picture of beliefs: what is drawn, as matplotlib holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tegu.pictures import beliefs, style


def test_medians_bands_and_counterparts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    @contextmanager
    def kept(*arguments: Any) -> Iterator[Any]:
        with style.picture(*arguments) as figure:
            yield figure
            seen.append(figure)

    monkeypatch.setattr(beliefs, "picture", kept)
    rising = np.array([[0.5, 0.6, 0.7], [0.5, 0.8, 0.9], [0.5, 0.7, 0.8]])
    path = tmp_path / "path.png"
    beliefs.belief_paths(
        [("tables", rising), ("networks", rising[:, :2])],
        path,
        title="a title",
        label="belief",
        each=2,
        others={"tables": 1 - rising},
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = seen[0].axes
    level, tables, other, networks = axes.lines
    assert level.get_ydata()[0] == 0.5
    np.testing.assert_allclose(tables.get_xdata(), [0, 2, 4])
    np.testing.assert_allclose(tables.get_ydata(), [0.5, 0.7, 0.8])
    np.testing.assert_allclose(other.get_ydata(), [0.5, 0.3, 0.2])
    assert other.get_color() == tables.get_color() != networks.get_color()
    assert tables.get_linestyle() == "-" != other.get_linestyle()
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(np.quantile(rising[:, 2], 0.9))
    named = [text.get_text() for text in seen[0].legends[0].get_texts()]
    assert named == ["tables", "networks"]
