"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Source: Lake, Salakhutdinov and Tenenbaum (2015), Human-level concept learning
through probabilistic program induction; images from
https://github.com/brendenlake/omniglot (MIT licence), 105 x 105, one bit.
"""

from __future__ import annotations

import io
import os
import random
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tegu.datasets.archives import content_digest, read_members
from tegu.datasets.archives import download as fetch
from tegu.datasets.classes import ClassDataset
from tegu.datasets.images import cached_tensors, opened, with_rotations
from tegu.datasets.splits import SPLITS, check_split
from tegu.errors import InputError, check_range, unknown
from tegu.files import cache_folder, expanded

if TYPE_CHECKING:
    from PIL.Image import Image

PARTITIONS = ("reptile", "vinyals", "vinyals-trainval", "alphabets")
SHRINK = ("nearest", "mean", "crop")
ENVIRONMENT_VARIABLE = "TEGU_DATA"

_SIDE = 105  # pixels
_DRAWERS = 20
_ROOM = 1.2  # side of the square around the ink, as a multiple of the ink's longer side
_DOT = 30  # pixels: ink smaller than this is not enlarged further
_BACKGROUND, _EVALUATION, _RUNS = "images_background", "images_evaluation", "all_runs"
_CHARACTERS = {_BACKGROUND: 964, _EVALUATION: 659}
_MEMBER = re.compile(
    r"(images_(?:background|evaluation))/([^/]+)/(character\d\d)/(\d{4}_\d\d\.png)"
)
_RUN_MEMBER = re.compile(r"run\d\d/(?:(?:training|test)/\w+\.png|class_labels\.txt)")

# Of what is inside (archives.content_digest): upstream's archives, repacked ones and
# extracted folders are held to the same bytes.
_IMAGES_DIGEST = "c1307e6d0b654c99200a14ee187e6e5fa6415b396950d09db55aef1cd151fc08"
_RUNS_DIGEST = "d05aea1bb96142c5d6b820d7761928008fdee503135b61dba2ee87384364d5f0"

_UPSTREAM = "https://github.com/brendenlake/omniglot/raw/master/python/"
_URLS = {
    _BACKGROUND: _UPSTREAM + "images_background.zip",
    _EVALUATION: _UPSTREAM + "images_evaluation.zip",
    _RUNS: _UPSTREAM + "one-shot-classification/all_runs.zip",
}
# As torchvision publishes them, for a download; what is inside is checked whenever it is read.
_MD5 = {
    _BACKGROUND: "68d2efa1b9178cc56df9314c21c6e718",
    _EVALUATION: "6b91aef0f799c5bb55b94e3f2daec811",
}

# The split of Vinyals et al. (2016), Matching Networks, as listed in
# jakesnell/prototypical-networks (MIT licence): whole alphabets, but for Gurmukhi,
# whose characters 1 to 41 are in meta_train and 42 to 45 in meta_test.
_VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
_VINYALS_TEST = (
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Sylheti",
    "Syriac_(Serto)",
    "Tengwar",
    "Tibetan",
    "ULOG",
)
_VINYALS_TEST_GURMUKHI = tuple(f"character{i}" for i in range(42, 46))


class Character(NamedTuple):
    """One class: where it comes from and what it is called."""

    part: str  # images_background or images_evaluation
    alphabet: str
    name: str  # characterNN, counted within the alphabet


class LakeRuns(NamedTuple):
    """The 20 one-shot runs of Lake et al. (2015), each within one alphabet.

    support: shape (20, 20, 1, H, H), uint8; run r's image of class c at [r, c].
    query: shape (20, 20, 1, H, H), uint8.
    labels: shape (20, 20), int64; the class of each query image.
    """

    support: Tensor
    query: Tensor
    labels: Tensor


def load_omniglot(
    split: str,
    *,
    partition: str = "reptile",
    data_dir: str | Path | None = None,
    rotations: bool = False,
    size: int = 28,
    shrink: str = "nearest",
    download: bool = True,
    seed: int = 0,
    held_out: int = 0,
) -> ClassDataset:
    """One split of Omniglot: paper is 255 and ink is 0, as in the source.

    Args:
        split: "meta_train", "meta_val" or "meta_test".
        partition: which characters go where.
            "reptile": all characters shuffled, 1,200 to meta_train and 423 to
            meta_test, no meta_val. With seed 0 these are the characters, in the
            order, that the code of Nichol et al. (2018) draws by default.
            "vinyals": 1,028 / 172 / 423 (Vinyals et al. 2016).
            "vinyals-trainval": 1,200 / none / 423, the same with both in meta_train, as
            Snell et al. (2017) trained for their figures.
            "alphabets": 964 of the 30 background alphabets in meta_train, 659 of
            the 20 evaluation alphabets in meta_test (Lake et al. 2015); meta_val
            holds `held_out` of the background alphabets.
        data_dir: folder with images_background.zip and images_evaluation.zip, or
            with these as extracted folders, or the parent of such a folder called
            omniglot. Left out: the folder that TEGU_DATA names, then the cache
            folder, then a download.
        rotations: add each class turned by 90, 180 and 270 degrees as a class of
            its own. The two published protocols add them to meta_train ("reptile")
            or to every split ("vinyals", "vinyals-trainval").
        size: side of the images in pixels, 8 to 105.
        shrink: how 105 pixels become `size`. "nearest" takes the nearest pixel, as the
            published codes do, and thin strokes break; "mean" takes the mean of the area;
            "crop" too, but of the square around the ink alone, so that a character fills
            its image wherever and however large it was drawn.
        download: whether a download is allowed.
        seed: of the shuffle ("reptile") or the choice of held-out alphabets.
        held_out: how many background alphabets go to meta_val, 0 to 29;
            for "alphabets" alone.

    Returns:
        Images (M, 1, size, size), uint8, 20 for each class; alphabets are the
        groups of classes, and turned alphabets groups of their own.

    Raises:
        InputError: an unknown name, a split that the partition lacks, or data that
            are missing, unreadable or not Omniglot.

    Differs from the source: shrunk by taking the nearest pixel, so that an image
    keeps two values; this is what the Reptile code does. See `shrink`.
    """
    if partition not in PARTITIONS:
        raise unknown("partition", partition, PARTITIONS)
    check_split(split)
    _check_settings(split, partition, size, held_out)
    _check_shrink(shrink)
    folder = _folder(data_dir, download, _BACKGROUND, _EVALUATION)
    characters, images = _all_images(size, shrink, folder)
    chosen = _partition(characters, partition, seed, held_out)[split]
    row = {character: i for i, character in enumerate(characters)}
    rows = torch.tensor([row[character] for character in chosen])
    alphabets = sorted({character.alphabet for character in characters})
    data = ClassDataset(
        name="omniglot",
        split=split,
        examples=images.reshape(-1, _DRAWERS, 1, size, size)[rows].flatten(0, 1),
        counts=torch.full((len(chosen),), _DRAWERS),
        class_names=tuple(f"{c.alphabet}/{c.name}" for c in chosen),
        scale=1 / 255,
        groups=torch.tensor([alphabets.index(character.alphabet) for character in chosen]),
    )
    return with_rotations(data) if rotations else data


def load_lake_runs(
    *,
    data_dir: str | Path | None = None,
    size: int = 28,
    shrink: str = "nearest",
    download: bool = True,
) -> LakeRuns:
    """The 20-way one-shot runs of Lake et al. (2015), from all_runs.zip.

    They are drawn from the evaluation alphabets: meta-train on the meta_train
    split of the "alphabets" partition only.

    Args:
        data_dir: folder with all_runs.zip, or the parent of such a folder called
            omniglot; left out, as for `load_omniglot`.
        size: side of the images in pixels, 8 to 105.
        shrink: as for `load_omniglot`.
        download: whether a download is allowed.

    Returns:
        Support and query images (20, 20, 1, size, size), uint8, paper 255 and
        ink 0, and the queries' classes (20, 20), int64.

    Raises:
        InputError: the archive is missing, unreadable or not Lake's.
    """
    _check_size(size)
    _check_shrink(shrink)
    path = _source(_folder(data_dir, download, _RUNS), _RUNS)
    files = read_members(path, _RUN_MEMBER, _URLS[_RUNS])
    if content_digest(files) != _RUNS_DIGEST:
        raise _not_upstream(path, files)
    support, query, labels = [], [], []
    for run in sorted({name.split("/")[0] for name in files}):
        lines = files[f"{run}/class_labels.txt"].decode().split()
        pairs = sorted(zip(lines[::2], lines[1::2], strict=True))  # (test image, its class's image)
        training = sorted({image for _, image in pairs})
        support += [_decode(files[name], size, shrink) for name in training]
        query += [_decode(files[name], size, shrink) for name, _ in pairs]
        labels += [training.index(image) for _, image in pairs]
    shape = (20, 20, 1, size, size)
    return LakeRuns(
        torch.stack(support).reshape(shape),
        torch.stack(query).reshape(shape),
        torch.tensor(labels).reshape(20, 20),
    )


def _check_settings(split: str, partition: str, size: int, held_out: int) -> None:
    _check_size(size)
    if not 0 <= held_out <= 29 or (held_out and partition != "alphabets"):
        raise InputError(
            f"held_out is {held_out} with partition '{partition}'",
            "0, or 1 to 29 of the 30 background alphabets with partition 'alphabets'",
            "Change held_out, or pass partition='alphabets'.",
        )
    if split == "meta_val" and partition in ("reptile", "vinyals-trainval"):
        raise InputError(
            f"partition '{partition}' has no meta_val split",
            "meta_train (1,200 characters) or meta_test (423)",
            "For a validation split pass partition='vinyals'.",
        )
    if split == "meta_val" and partition == "alphabets" and not held_out:
        raise InputError(
            "partition 'alphabets' with held_out=0 has no meta_val split",
            "meta_train (30 alphabets) or meta_test (20)",
            "Pass held_out=5 to hold out 5 background alphabets for it.",
        )


def _check_size(size: int) -> None:
    check_range("size", size, 8, _SIDE, todo="Pass size=28, say.")


def _check_shrink(shrink: str) -> None:
    if shrink not in SHRINK:
        raise unknown("way to shrink", shrink, SHRINK)


def _partition(
    characters: list[Character], partition: str, seed: int, held_out: int
) -> dict[str, list[Character]]:
    """The characters of each split; `characters` are sorted by alphabet and name."""
    if partition == "reptile":
        shuffled = list(characters)
        random.Random(seed).shuffle(shuffled)
        return {"meta_train": shuffled[:1200], "meta_val": [], "meta_test": shuffled[1200:]}
    splits: dict[str, list[Character]] = {name: [] for name in SPLITS}
    background = sorted({c.alphabet for c in characters if c.part == _BACKGROUND})
    held = random.Random(seed).sample(background, held_out)
    for character in characters:
        if partition.startswith("vinyals"):
            val = partition == "vinyals" and character.alphabet in _VINYALS_VAL
            test = _vinyals_test(character)
        else:
            val, test = character.alphabet in held, character.part == _EVALUATION
        splits["meta_val" if val else "meta_test" if test else "meta_train"].append(character)
    return splits


def _vinyals_test(character: Character) -> bool:
    if character.alphabet == "Gurmukhi":
        return character.name in _VINYALS_TEST_GURMUKHI
    return character.alphabet in _VINYALS_TEST


def _all_images(size: int, shrink: str, folder: Path) -> tuple[list[Character], Tensor]:
    """All characters, sorted, and their images (32460, 1, size, size) in that order.

    The splits of one run share what is read from archives; an archive that has changed is
    read again. Extracted folders, whose files can change unseen, are read each time.
    """
    sources = [_source(folder, part) for part in (_BACKGROUND, _EVALUATION)]
    if any(source.is_dir() for source in sources):
        return _read_images(size, shrink, folder)
    state = [source.stat() for source in sources]
    return _kept_images(
        size, shrink, folder, *((s.st_ino, s.st_mtime_ns, s.st_size) for s in state)
    )


@lru_cache(maxsize=1)
def _kept_images(
    size: int, shrink: str, folder: Path, *archives: tuple[int, int, int]
) -> tuple[list[Character], Tensor]:
    return _read_images(size, shrink, folder)


def _read_images(size: int, shrink: str, folder: Path) -> tuple[list[Character], Tensor]:
    files = {
        name: data
        for part in (_BACKGROUND, _EVALUATION)
        for name, data in read_members(_source(folder, part), _MEMBER, _URLS[part]).items()
    }
    order = sorted(files, key=lambda name: name.split("/", 1)[1])  # alphabets of both parts merged
    characters = list(dict.fromkeys(Character(*name.split("/")[:3]) for name in order))
    for part, expected in _CHARACTERS.items():
        found = sum(character.part == part for character in characters)
        images = sum(name.startswith(part) for name in files)
        if (found, images) != (expected, expected * _DRAWERS):
            raise InputError(
                f"{_source(folder, part)} holds {found:,} characters and {images:,} images",
                f"{expected:,} characters with {_DRAWERS} images each, called "
                f"{part}/ALPHABET/characterNN/NNNN_NN.png",
                f"Replace it with {_URLS[part]}.",
            )
    if content_digest(files) != _IMAGES_DIGEST:
        raise _not_upstream(folder, files)
    suffix = "" if shrink == "nearest" else f"-{shrink}"
    tensors = cached_tensors(
        f"omniglot-{size}{suffix}-{_IMAGES_DIGEST[:16]}",
        lambda: {"images": torch.stack([_decode(files[name], size, shrink) for name in order])},
    )
    return characters, tensors["images"]


def _not_upstream(where: Path, files: dict[str, bytes]) -> InputError:
    """The error for files that are not upstream's: names the first image that is none."""
    given = f"{where}: the files differ from upstream's"
    for name, data in files.items():
        if name.endswith(".png") and opened(data, _SIDE) is None:
            given = f"{where}: {name} is not a {_SIDE} x {_SIDE} image"
            break
    return InputError(
        given,
        "the files of github.com/brendenlake/omniglot, unchanged",
        f"Replace it with the archives from {_UPSTREAM}.",
    )


def _decode(data: bytes, size: int, shrink: str) -> Tensor:
    """One image as (1, size, size), uint8, paper 255 and ink 0."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if shrink == "nearest":
            small = image.resize((size, size), Image.Resampling.NEAREST).convert("L")
        elif shrink == "mean":
            small = image.convert("L").resize((size, size), Image.Resampling.BOX)
        else:
            small = cropped(image.convert("L"), size)
    return torch.from_numpy(np.array(small, dtype=np.uint8))[None]


def cropped(image: Image, size: int) -> Image:
    """The square around the ink, which may reach beyond the paper."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    around = ImageOps.expand(image, _SIDE, fill=255)
    left, top, right, bottom = ImageOps.invert(around).getbbox() or (_SIDE, _SIDE, _SIDE, _SIDE)
    x, y = (left + right) / 2, (top + bottom) / 2
    half = max(right - left, bottom - top, _DOT) * _ROOM / 2
    box = (x - half, y - half, x + half, y + half)
    return around.resize((size, size), Resampling.BOX, box=box)


def _source(folder: Path, part: str) -> Path:
    """The part's archive, or its extracted folder."""
    archive, extracted = folder / f"{part}.zip", folder / part
    return extracted if extracted.is_dir() and not archive.exists() else archive


def _folder(data_dir: str | Path | None, download: bool, *parts: str) -> Path:
    """The folder that holds all the parts, after a download if need be."""

    def lacks(folder: Path) -> list[str]:
        return [part for part in parts if not _source(folder, part).exists()]

    cache, data_dir = cache_folder() / "omniglot", data_dir or None
    named = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE)
    folders = [expanded(named), expanded(named) / "omniglot"] if named else []
    if data_dir is None:
        folders.append(cache)
    for folder in folders:
        if not lacks(folder):
            return folder
    if data_dir is not None or not download:
        # The folder that has most of it is the one that was meant.
        nearest = min(folders, key=lambda folder: len(lacks(folder)))
        raise _missing(nearest, lacks(nearest))
    for part in lacks(cache):
        try:
            fetch(_URLS[part], cache / f"{part}.zip", md5=_MD5.get(part))
        except OSError as error:
            why = f", and {_URLS[part]} gave no answer ({error})"
            raise _missing(cache, lacks(cache), why) from error
    return cache


def _missing(folder: Path, parts: list[str], why: str = "") -> InputError:
    files = " and ".join(f"{part}.zip" for part in parts)
    links = " and ".join(_URLS[part] for part in parts)
    return InputError(
        f"no {files} in {folder}{why}",
        "Omniglot's archives there, or the folders extracted from them",
        f"Put {links} into that folder, or name a folder that has the files: --data-dir, "
        f"data_dir=, or the environment variable {ENVIRONMENT_VARIABLE}.",
    )
