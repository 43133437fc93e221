"""Recordings of one's own: WAV files in a folder with one sub-folder for each class.

    WORDS/yes/anna-1.wav              laid out as folders of images are

Every recording becomes a picture of its pitches over time, so that networks and learners for
images take it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from tegu.datasets.class_folders import SHARES, Division
from tegu.datasets.classes import ClassDataset
from tegu.datasets.folders import HELD, load_files, read_files
from tegu.datasets.sound_files import Spectrum


def load_sounds(
    path: str | Path,
    split: str,
    *,
    size: int = 32,
    seconds: float = 1.0,
    highest: float = 4000.0,
    shares: tuple[int, ...] = SHARES,
    seed: int = 0,
    least: int = 1,
    workers: int = 0,
    hold: int = HELD,
) -> ClassDataset:
    """One split of a folder of recordings, as pictures (1, size, size) of bytes.

    Args:
        path: the folder.
        split: "meta_train", "meta_val" or "meta_test".
        size: bands of pitch, and moments in time.
        seconds: of a recording; the loudest stretch of a longer one, silence around a shorter one.
        highest: upper end of the highest band, hertz.
        shares, seed, least, workers, hold: as for `load_folder`.

    Raises:
        InputError: the folder holds no classes in a layout that tegu knows, or a file is no
            recording.
    """
    form = Spectrum(size, seconds, highest)
    division = Division(shares=shares, seed=seed, least=least)
    return load_files(path, split, form, division, workers=workers, hold=hold)


def read_sounds(
    files: Iterable[str | Path],
    *,
    size: int = 32,
    seconds: float = 1.0,
    highest: float = 4000.0,
) -> Tensor:
    """Recordings as a model takes them that was trained on a folder: (B, 1, size, size), 0 to 1.

    Args:
        files: B paths.
        size, seconds, highest: as the training had them; see `load_sounds`.

    Raises:
        InputError: a file is no recording, or there are none.
    """
    return read_files(files, Spectrum(size, seconds, highest))
