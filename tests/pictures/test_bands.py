"""The picture of predictive bands shows what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tegu.errors import InputError
from tegu.pictures import Band, bands, predictive_bands
from tegu.pictures.style import BLUE, FAINT

GRID = torch.linspace(-1, 1, 5)
SUPPORT = [(torch.zeros(2), torch.ones(2)), (torch.ones(1), torch.zeros(1))]
EXACT = Band(torch.zeros(2, 5), torch.ones(2, 5))


def learnt(shift: float) -> Band:
    return Band(EXACT.mean + shift, 0.5 * EXACT.sd)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn, and not written."""
    drawn: list[Figure] = []

    @contextmanager
    def kept(path: Path, title: str, size: tuple[float, float]) -> Iterator[Figure]:
        drawn.append(Figure(figsize=size))
        yield drawn[-1]

    monkeypatch.setattr(bands, "picture", kept)
    return drawn


def filled(collection: Any) -> tuple[float, float]:
    """Lowest and highest point of a band."""
    y = collection.get_paths()[0].vertices[:, 1]
    return y.min(), y.max()


def test_each_panel_has_both_bands_and_the_points(figures: list[Figure], tmp_path: Path) -> None:
    fits = [("cnp", learnt(1.0)), ("tnp", learnt(-2.0))]
    predictive_bands(GRID, SUPPORT, EXACT, fits, tmp_path / "bands.png", title="Bands")
    panels = figures[0].axes
    assert len(panels) == 4
    for i, axes in enumerate(panels):
        shift, (x, y) = (1.0, -2.0)[i % 2], SUPPORT[i // 2]
        exact, own, points = axes.get_lines()
        assert [to_hex(line.get_color()).upper() for line in (exact, own)] == [FAINT, BLUE]
        np.testing.assert_allclose(exact.get_ydata(), 0.0)
        np.testing.assert_allclose(own.get_ydata(), shift)
        np.testing.assert_allclose(points.get_xydata(), torch.stack([x, y], -1))
        np.testing.assert_allclose(filled(axes.collections[0]), (-2.0, 2.0))
        np.testing.assert_allclose(filled(axes.collections[1]), (shift - 1.0, shift + 1.0))
    assert [axes.get_title() for axes in panels] == ["cnp", "tnp", "", ""]
    assert [axes.get_ylabel() for axes in panels] == ["2 points", "", "1 points", ""]


def test_a_picture_is_written(tmp_path: Path) -> None:
    path = tmp_path / "bands.png"
    predictive_bands(GRID, SUPPORT, EXACT, [("cnp", learnt(1.0))], path, title="Bands")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_bands_of_another_grid_are_refused(tmp_path: Path) -> None:
    short = Band(torch.zeros(2, 4), torch.ones(2, 4))
    with pytest.raises(InputError, match="cnp with a mean of shape"):
        predictive_bands(GRID, SUPPORT, EXACT, [("cnp", short)], tmp_path / "x.png", title="")
    with pytest.raises(InputError, match="the reference with a mean"):
        predictive_bands(GRID, SUPPORT, short, [("cnp", EXACT)], tmp_path / "x.png", title="")
    with pytest.raises(InputError, match="no learners"):
        predictive_bands(GRID, SUPPORT, EXACT, [], tmp_path / "x.png", title="")
