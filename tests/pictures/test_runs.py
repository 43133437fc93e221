"""Pictures of runs: what is drawn, and what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tegu import pictures
from tegu.errors import InputError
from tegu.pictures import runs
from tegu.pictures.style import BLUE, FAINT, GREEN, RED


def rows(n: int) -> list[dict[str, Any]]:
    """Metrics of a run in which the last validation is missing."""
    return [
        {
            "iteration": 10 * i,
            "loss": 1 / i,
            "validation": None if i == n else 1 - 0.8 / i,
            "seconds": i,
        }
        for i in range(1, n + 1)
    ]


def looks_drawn(path: Path, size: tuple[float, float], colours: list[str]) -> None:
    """A PNG of `size` inches with each of the colours, and with its margin left free."""
    image = Image.open(path)
    assert image.format == "PNG"
    assert image.size == pytest.approx([150 * side for side in size], abs=1)
    pixels = torch.tensor(list(image.convert("RGB").tobytes())).reshape(*image.size[::-1], 3)
    for colour in colours:
        rgb = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert int((pixels == rgb).all(-1).sum()) > 40, f"{path.name} has no {colour}"
    rim = torch.cat([pixels[:4].flatten(0, 1), pixels[-4:].flatten(0, 1)])
    rim = torch.cat([rim, pixels[:, :4].flatten(0, 1), pixels[:, -4:].flatten(0, 1)])
    assert int(rim.min()) == 255, f"something of {path.name} is cut off"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_learning_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    pictures.learning_curve(rows(40), path, title="It learns", chance=0.2)
    looks_drawn(path, (7.5, 4.8), [BLUE, FAINT])
    pictures.learning_curve(rows(1), path, title="Loss alone", metric="mse")
    looks_drawn(path, (7.5, 3.2), [FAINT])
    with pytest.raises(InputError, match="no metrics; expected one row or more"):
        pictures.learning_curve([], path, title="Nothing")


def test_a_log_likelihood_has_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure()

    @contextmanager
    def kept(*_: Any) -> Iterator[Figure]:
        yield figure

    monkeypatch.setattr(runs, "picture", kept)
    below = [{**row, "validation": -0.1 * row["iteration"]} for row in rows(3)]
    pictures.learning_curve(below, tmp_path / "x.png", title="Below zero", metric="log-likelihood")
    low, high = figure.axes[0].get_ylim()
    assert low <= min(row["validation"] for row in below)
    assert high >= max(row["validation"] for row in below)


def test_comparison(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    bars = [("chance", 0.2, 0.0), ("from scratch, on the support set alone", 0.4, 0.01)]
    pictures.comparison([*bars, ("Reptile", 0.99, 0.004)], path, title="It " + "really " * 20)
    looks_drawn(path, (7.5, 1.25 + 0.48 * 3), [BLUE])
    with pytest.raises(InputError, match=r"value of 'chance' is 20; .* from 0 to 1"):
        pictures.comparison([("chance", 20, 0)], path, title="Per cent")
    with pytest.raises(InputError, match="interval of 'a' is -1; expected at least 0"):
        pictures.comparison([("a", 2, -1)], path, title="Negative", metric="mse")
    with pytest.raises(InputError, match="no rows to compare"):
        pictures.comparison([], path, title="Nothing")


def test_episode(tmp_path: Path) -> None:
    path = tmp_path / "episode.png"
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names, labels = ["owl", "a long name indeed"], torch.tensor([0, 1, 1, 0])
    asked = [names[i] for i in labels]
    said = [*asked[:3], names[1]]
    pictures.episode(images[:2], names, images, asked, said, path, title="Two classes")
    looks_drawn(path, (1.15 + 2.6, 0.95 + 1.32 * 3), [GREEN, RED])
    pictures.episode(images, labels, images.expand(4, 3, 8, 8), labels, labels, path, title="Right")
    looks_drawn(path, (1.15 + 2.6, 0.95 + 1.32 * 4), [GREEN])
    with pytest.raises(InputError, match=r"query images of shape \(4, 1, 8, 8\) with 3 labels"):
        pictures.episode(images, labels, images, labels, labels[:3], path, title="Short")
    with pytest.raises(InputError, match="label 1 has no support image; expected one of 0"):
        pictures.episode(images[:1], [0], images, labels, labels, path, title="Stray")


def test_sinusoid_fit(tmp_path: Path) -> None:
    path = tmp_path / "fit.png"
    x = torch.linspace(-5, 5, 50).expand(4, 50)
    y = torch.arange(1, 5)[:, None] * torch.sin(x)
    fits = [("before", 0 * y), ("after 32 steps", (0.9 * y).unsqueeze(-1))]
    pictures.sinusoid_fit(x, y, x[:, ::9], y[:, ::9], fits, path, title="It fits")
    looks_drawn(path, (2.9 * 3 + 1.5, 0.85 + 2.5 * 2), [BLUE, RED])
    pictures.sinusoid_fit(x[0], y[0], x[0, ::9], y[0, ::9], [], path, title="A wave")
    looks_drawn(path, (6.5, 0.85 + 2.5), ["#C4C4C4"])
    short = [("before", y[:, 1:])]
    with pytest.raises(InputError, match=r"fit 'before' of shape \(4, 49\) beside \(4, 50\)"):
        pictures.sinusoid_fit(x, y, x[:, ::9], y[:, ::9], short, path, title="Short")


def test_pictures_leave_matplotlib_as_it_was_and_load_it_late(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 7.0, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        pictures.comparison([("a", 0.5, 0.1)], tmp_path / "a.png", title="One")
        assert dict(matplotlib.rcParams) == before
    code = "import sys, tegu.pictures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_labels_keep_apart_and_in_order() -> None:
    moved = runs._apart([0.0, 0.05, 3.0, 0.1], 1.0)
    order = [moved[i] for i in (0, 1, 3, 2)]
    assert all(b - a > 0.99 for a, b in itertools.pairwise(order))
    assert runs._apart([0.0, 2.0], 1.0) == [0.0, 2.0]
