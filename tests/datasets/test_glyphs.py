"""Glyphs: the same bits each time, splits apart, no two classes that look alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageFont

from tegu.datasets import ClassDataset, glyphs, load_glyphs
from tegu.errors import InputError

SPLITS = ("meta_train", "meta_val", "meta_test")
SANS = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@pytest.fixture
def splits(kept_cache: None) -> list[ClassDataset]:
    """The three splits, with the default settings."""
    return [load_glyphs(split) for split in SPLITS]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decimal digits alone: quick to draw."""
    monkeypatch.setattr(glyphs, "_LETTERS", ("Nd",))
    monkeypatch.setattr(glyphs, "_MATHEMATICS", range(0))


def points(data: ClassDataset) -> list[int]:
    """The code points of the classes."""
    return [int(name.split()[0][2:], 16) for name in data.class_names]


def test_enough_classes_and_no_character_on_two_sides(splits: list[ClassDataset]) -> None:
    sizes = [data.n_classes for data in splits]
    assert sum(sizes) >= 600
    assert sizes[0] > sizes[2] > sizes[1] >= 50
    assert len({point for data in splits for point in points(data)}) == sum(sizes)
    for data in splits:
        assert torch.unique(data.counts).tolist() == [20]
        assert data.examples.shape == (20 * data.n_classes, 1, 28, 28)
        assert data.examples.dtype == torch.uint8
        assert data.scale == 1 / 255
    assert "U+0041 LATIN CAPITAL LETTER A" in [n for data in splits for n in data.class_names]


def test_many_scripts(splits: list[ClassDataset]) -> None:
    names = " ".join(name for data in splits for name in data.class_names)
    scripts = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "CANADIAN")
    assert all(names.count(f"{script} ") >= 5 for script in scripts)


def test_ink_on_white_within_the_frame(splits: list[ClassDataset]) -> None:
    for data in splits:
        ink = 1 - data.examples.float() / 255
        assert data.examples.flatten(1).amin(1).max() < 64  # each has black
        assert data.examples.flatten(1).amax(1).min() == 255  # and white
        assert ink.sum((1, 2, 3)).min() > 10  # pixels
        frame = torch.cat([ink[..., 0, :], ink[..., -1, :], ink[..., 0], ink[..., -1]], -1)
        assert frame.mean() < 0.01  # little is cut off


def test_examples_of_a_class_differ(splits: list[ClassDataset]) -> None:
    for data in splits:
        classes = data.examples.reshape(data.n_classes, 20, -1)
        assert all(len(images.unique(dim=0)) == 20 for images in classes)


def test_examples_of_a_class_differ_in_place_and_size(splits: list[ClassDataset]) -> None:
    for data in splits:
        ink = 1 - data.examples.float().reshape(-1, 20, 28, 28) / 255
        across = ink.sum(2) / ink.sum((2, 3))[..., None]  # share of the ink in each column
        column = torch.arange(28.0)
        centre = (across * column).sum(-1)
        width = (across * (column - centre[..., None]).square()).sum(-1).sqrt()
        assert centre.std(1).mean() > 0.8  # pixels
        assert (width.std(1) / width.mean(1)).mean() > 0.12


def test_placements_in_closed_form() -> None:
    """Turning and shearing keep areas, and the aspect does by its making."""
    move = np.random.default_rng(0).uniform(-1, 1, (50, 7))
    linear = glyphs._placements(move)[:, :, :2]
    size = 0.74 + 0.14 * move[:, 2]
    np.testing.assert_allclose(np.linalg.det(linear), size**-2, rtol=1e-12)
    plain = glyphs._placements(np.zeros((1, 7)))[0]
    np.testing.assert_allclose(plain, [[1 / 0.74, 0, 0], [0, 1 / 0.74, 0]], atol=1e-15)
    turn, shift = np.zeros((2, 1, 7))
    turn[0, 0], shift[0, 4] = 1, 1
    angle = np.radians(15)
    np.testing.assert_allclose(
        glyphs._placements(turn)[0, :, 0] * 0.74, [np.cos(angle), np.sin(angle)]
    )
    # The drawing's middle lies where the image was shifted to.
    np.testing.assert_allclose(glyphs._placements(shift)[0] @ [0.9 - 0.74, 0, 1], 0, atol=1e-15)


def upright(point: int) -> NDArray[np.float64]:
    """A character in DejaVu Sans, filling 16 x 16 pixels, centred to mean 0, length 1."""
    font = ImageFont.truetype(str(SANS), 64, layout_engine=ImageFont.Layout.BASIC)
    mask = font.getmask(chr(point), mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask))
    image.thumbnail((16, 16), Image.Resampling.BOX)
    square = Image.new("L", (16, 16))
    square.paste(image, ((16 - image.width) // 2, (16 - image.height) // 2))
    grey = np.asarray(square, dtype=np.float64).ravel()
    grey -= grey.mean()
    return grey / np.linalg.norm(grey)


def test_no_two_classes_look_alike(splits: list[ClassDataset]) -> None:
    covered = FT2Font(str(SANS)).get_charmap()
    seen = [point for data in splits for point in points(data) if point in covered]
    assert len(seen) > 600
    drawn = np.stack([upright(point) for point in seen])
    likeness = drawn @ drawn.T - np.eye(len(drawn))
    # Identical shapes are at 1; this drawing is made apart from the package's own.
    assert likeness.max() < 0.95


@pytest.mark.parametrize(
    "group", ["A\u0391\u0410", "oO0\u039f\u03bf\u041e\u043e", "cC\u0421\u03f2"]
)
def test_look_alikes_across_scripts_are_one_class(splits: list[ClassDataset], group: str) -> None:
    seen = [point for data in splits for point in points(data)]
    assert sum(seen.count(ord(character)) for character in group) == 1


@pytest.mark.usefixtures("few")
def test_the_same_bits_each_time(cache: Path) -> None:
    first = load_glyphs("meta_train", size=20, per_class=5)
    kept = load_glyphs("meta_train", size=20, per_class=5)
    (path,) = cache.iterdir()
    path.unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + threads % 2)
    torch.manual_seed(123)
    np.random.seed(123)
    try:
        again = load_glyphs("meta_train", size=20, per_class=5)
    finally:
        torch.set_num_threads(threads)
    assert first.class_names == kept.class_names == again.class_names
    torch.testing.assert_close(first.examples, kept.examples, rtol=0, atol=0)
    torch.testing.assert_close(first.examples, again.examples, rtol=0, atol=0)


@pytest.mark.usefixtures("few")
def test_the_seed_changes_drawings_and_split() -> None:
    a, b = load_glyphs("meta_train", seed=0), load_glyphs("meta_train", seed=1)
    assert a.class_names != b.class_names
    (shared, *_) = set(a.class_names) & set(b.class_names)
    images = [d.examples[20 * d.class_names.index(shared)] for d in (a, b)]
    assert not torch.equal(*images)


@pytest.mark.usefixtures("few")
def test_no_global_random_state_is_touched() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    load_glyphs("meta_train")
    assert (torch.rand(1).item(), np.random.rand()) == expected


@pytest.mark.usefixtures("few")
def test_each_face_once_before_any_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing else varied, 16 examples of a digit show all its 16 faces."""
    for name in ("_BEND", "_INK_SPREAD"):
        monkeypatch.setattr(glyphs, name, 0.0)
    still = glyphs._placements(np.zeros((1, 7)))
    monkeypatch.setattr(glyphs, "_placements", lambda move: still.repeat(len(move), 0))
    data = load_glyphs("meta_train", per_class=32)
    faces = data.examples.reshape(data.n_classes, 2, 16, -1)
    digit = next(i for i, point in enumerate(points(data)) if point < 128)
    first, second = faces[digit]
    assert len(first.unique(dim=0)) == 16
    torch.testing.assert_close(first.unique(dim=0), second.unique(dim=0))


@pytest.mark.parametrize(
    ("split", "settings", "match"),
    [
        ("meta_tset", {}, "unknown split 'meta_tset'; expected .* Did you mean 'meta_test'"),
        ("meta_train", {"size": 100}, "size is 100; expected 8 to 64"),
        ("meta_train", {"per_class": 0}, "per_class is 0; expected 1 to 200"),
    ],
)
def test_bad_settings(split: str, settings: dict[str, int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_glyphs(split, **settings)


def test_a_matplotlib_without_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"DejaVuSans.ttf is missing; expected the fonts that"):
        load_glyphs("meta_train")


def test_importing_the_sources_asks_for_neither_pillow_nor_matplotlib() -> None:
    code = (
        "import sys, tegu.datasets; print([m for m in ('PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
