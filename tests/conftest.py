"""Small seeded data for every test, and the folder of real data for those that read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tegu.datasets.classes import ClassDataset
from tegu.engine.compiled import can_compile
from tegu.errors import unknown

torch.set_num_threads(1)  # tensors are small here: a second thread costs more than it brings


def _absent(reason: str) -> None:
    """Skips on a user's machine, and fails where all checks are to be made."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def compiler() -> None:
    """What torch.compile needs."""
    if not can_compile():
        _absent("torch.compile needs a C++ compiler; none is here")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: TEGU_TEST_DATA, else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TEGU_TEST_DATA") or beside)
    if not folder.is_dir():
        _absent(f"no real data at {folder}; set TEGU_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture
def holding(shared_data: Path) -> Callable[[str], Path]:
    """The folder of real data, which must have a data set of this name."""

    def found(name: str) -> Path:
        if not (shared_data / name).exists():
            _absent(f"no {name} in {shared_data}")
        return shared_data

    return found


def _classes(name: str, split: str, shape: tuple[int, ...], spread: float) -> ClassDataset:
    counts = torch.tensor([9, 5, 7, 6, 11, 5, 8])
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(counts), *shape, generator=generator)
    noise = torch.randn(int(counts.sum()), *shape, generator=generator)
    examples = centres.repeat_interleave(counts, 0) + spread * noise
    return ClassDataset(name, split, examples, counts, tuple("abcdefg"))


@pytest.fixture(scope="session")
def toy_data() -> ClassDataset:
    """Seven classes of 5 to 11 vectors of width 6 around one centre each."""
    return _classes("toy", "meta_train", (6,), 0.3)


@pytest.fixture(scope="session")
def toy_images() -> ClassDataset:
    """Seven classes of 5 to 11 one-channel images of 8 by 8."""
    return _classes("toy_images", "meta_train", (1, 8, 8), 0.3)


def _glyphs(split: str) -> ClassDataset:
    if split not in ("meta_train", "meta_val", "meta_test"):
        raise unknown("split", split, ["meta_train", "meta_val", "meta_test"])
    generator = torch.Generator().manual_seed(len(split))
    centres = torch.randint(0, 2, (8, 1, 1, 28, 28), generator=generator)
    specks = torch.rand(8, 20, 1, 28, 28, generator=generator) < 0.1
    images = (255 * (centres ^ specks.long())).to(torch.uint8).flatten(0, 1)
    return ClassDataset("glyphs", split, images, torch.tensor([20] * 8), tuple("abcdefgh"), 1 / 255)


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes take glyphs and scribbles from eight classes a split, which nobody needs to draw."""
    monkeypatch.setattr("tegu.sources.images.load_glyphs", _glyphs)
    monkeypatch.setattr("tegu.sources.images.load_scribbles", lambda split, **_: _glyphs(split))


@pytest.fixture(scope="session")
def photos() -> Callable[..., Path]:
    """Makes a folder of small images, so many of each class by its path, no two alike."""

    def make(folder: Path, counts: Mapping[str, int], *, kinds: tuple[str, ...] = ("png",)) -> Path:
        number = 0
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for i in range(count):
                number += 1
                shape = (8 + number % 3, 8 + number % 5, 3)
                pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
                file = folder / name / f"{i:02d}.{kinds[i % len(kinds)]}"
                Image.fromarray(pixels).save(file)
        return folder

    return make
