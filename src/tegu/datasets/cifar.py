"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, split for few-shot learning.

Sources: Krizhevsky (2009), Learning multiple layers of features from tiny images;
Bertinetto et al. (2019), arXiv:1805.08136 (CIFAR-FS); Oreshkin et al. (2018),
arXiv:1805.10123 (FC100). Colour photos of 32 x 32 pixels, 600 of each class.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tegu.datasets.archives import download as fetch
from tegu.datasets.archives import read_members, stamp
from tegu.datasets.classes import ClassDataset
from tegu.datasets.images import cached_tensors, opened
from tegu.datasets.omniglot import ENVIRONMENT_VARIABLE
from tegu.datasets.splits import check_split
from tegu.errors import InputError
from tegu.files import cache_folder, expanded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = dict[str, list[NDArray[np.uint8]]]  # class -> images (3, 32, 32)

_SIDE = 32  # pixels
_COUNTS = (600, 300)  # images of a class: all, or half of them
_MEAN, _STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of all 60,000 images

_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"  # as that site publishes it
_LARGEST = 192 * 2**20  # bytes, packed or unpacked
_BINARY = "cifar-100-binary"
_ROW = 2 + 3 * _SIDE * _SIDE  # bytes: superclass, class, then red, green and blue

_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
# In this order CIFAR-100 numbers them.
_CLASSES = tuple(sorted(name for names in _SUPERCLASSES.values() for name in names))
_GROUP = {name: i for i, names in enumerate(_SUPERCLASSES.values()) for name in names}

# CIFAR-FS holds out single classes, FC100 whole superclasses; the rest is meta_train.
_HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar-fs": {
        "meta_val": (
            *("beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish"),
            *("lamp", "maple_tree", "motorcycle", "otter", "sea", "shark", "television", "tractor"),
        ),
        "meta_test": (
            *("baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck"),
            *("plain", "poppy", "rocket", "rose", "snail", "sweet_pepper", "table", "telephone"),
            *("wardrobe", "whale", "woman", "worm"),
        ),
    },
    "fc100": {
        "meta_val": (
            *_SUPERCLASSES["large_carnivores"],
            *_SUPERCLASSES["large_omnivores_and_herbivores"],
            *_SUPERCLASSES["non-insect_invertebrates"],
            *_SUPERCLASSES["small_mammals"],
        ),
        "meta_test": (
            *_SUPERCLASSES["aquatic_mammals"],
            *_SUPERCLASSES["insects"],
            *_SUPERCLASSES["medium_mammals"],
            *_SUPERCLASSES["people"],
        ),
    },
}


def load_cifar_fs(
    split: str, *, data_dir: str | Path | None = None, download: bool = True
) -> ClassDataset:
    """One split of CIFAR-FS: 64 / 16 / 20 classes of CIFAR-100, drawn at random once.

    Args:
        split: "meta_train", "meta_val" or "meta_test".
        data_dir: a folder that holds one of these, itself or in a subfolder called
            cifar100_fewshot or cifar100: cifar100.zip, as CIFAR-FS is distributed,
            in PNG or lossless WebP, and cifar100_train_val_rest.zip if there are
            further images; the folder cifar100/data extracted from them;
            cifar-100-binary.tar.gz, or the folder extracted from it. Left out: the
            folder that TEGU_DATA names, then the cache folder, then a download of
            the last of these archives.
        download: whether a download is allowed.

    Returns:
        Images (M, 3, 32, 32), uint8, with the means and deviations of CIFAR-100's
        channels; classes by name, superclasses as their groups; 600 images a class,
        or 300 where the source has half of them. The images of a class come in the
        order of their SHA-256, so that every source of the same images gives the
        same episodes.

    Raises:
        InputError: an unknown split, or data that are missing, damaged, or short
            of a class or of images.
    """
    return _load("cifar-fs", split, data_dir, download)


def load_fc100(
    split: str, *, data_dir: str | Path | None = None, download: bool = True
) -> ClassDataset:
    """One split of FC100: 60 / 20 / 20 classes of CIFAR-100, whole superclasses apart.

    Arguments, result and errors are those of `load_cifar_fs`.
    """
    return _load("fc100", split, data_dir, download)


def _load(name: str, split: str, data_dir: str | Path | None, download: bool) -> ClassDataset:
    check_split(split)
    classes = _classes(name, split)
    paths = _find(data_dir, download)
    stamps = "".join(stamp(path, _URL) for path in paths)
    if paths[0].name == f"{_BINARY}.tar.gz" and stamps != _MD5:
        raise InputError(
            f"{paths[0]} has MD5 {stamps}",
            f"{_MD5}, which its publisher states",
            f"Delete it, and download it again from {_URL}.",
        )
    mark = hashlib.sha256(f"{stamps} {classes}".encode()).hexdigest()[:16]

    def build() -> dict[str, torch.Tensor]:
        import numpy as np

        images = (_binary if paths[0].name.startswith(_BINARY) else _files)(paths, classes)
        _check(images, paths, f"{name} {split}")
        ordered = [
            image
            for one in classes
            for image in sorted(images[one], key=lambda a: hashlib.sha256(a.tobytes()).digest())
        ]
        counts = torch.tensor([len(images[one]) for one in classes])
        return {"images": torch.from_numpy(np.stack(ordered)), "counts": counts}

    tensors = cached_tensors(f"cifar100-{mark}", build)
    return ClassDataset(
        name=name,
        split=split,
        examples=tensors["images"],
        counts=tensors["counts"],
        class_names=classes,
        scale=1 / 255,
        mean=_MEAN,
        std=_STD,
        groups=torch.tensor([_GROUP[one] for one in classes]),
    )


def _classes(name: str, split: str) -> tuple[str, ...]:
    held_out = _HELD_OUT[name]
    if split != "meta_train":
        return tuple(sorted(held_out[split]))
    return tuple(sorted({*_CLASSES} - {one for names in held_out.values() for one in names}))


def _files(paths: list[Path], classes: tuple[str, ...]) -> Images:
    """The images of some classes, from archives or a folder of image files."""
    import numpy as np

    names = "|".join(map(re.escape, classes))
    wanted = re.compile(rf"(?:cifar100/)?data/({names})/[^/]+\.(?:png|webp)")
    images: Images = {one: [] for one in classes}
    seen = set()
    for path in paths:
        for name, data in read_members(path, wanted, _URL, total=_LARGEST).items():
            image = opened(data, _SIDE)
            if image is None or image.mode != "RGB":
                raise InputError(
                    f"{path}: {name} is not a colour image of {_SIDE} x {_SIDE} pixels",
                    "PNG or WebP files of CIFAR-100's images",
                    f"Replace the file, or all of them with {_URL}.",
                )
            if name not in seen:
                images[name.split("/")[-2]].append(np.asarray(image).transpose(2, 0, 1).copy())
            seen.add(name)
    return images


def _binary(paths: list[Path], classes: tuple[str, ...]) -> Images:
    """The images of some classes, from CIFAR-100's binary version."""
    import numpy as np

    wanted = re.compile(rf"{_BINARY}/(?:train|test)\.bin")
    members = read_members(paths[0], wanted, _URL, largest=_LARGEST, total=_LARGEST)
    data = b"".join(members[name] for name in sorted(members))
    if len(data) % _ROW:
        raise InputError(
            f"{paths[0]} holds {len(data):,} bytes of images",
            f"{_ROW:,} bytes for each",
            f"Delete it, and download it again from {_URL}.",
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, _ROW)
    return {
        one: list(rows[rows[:, 1] == _CLASSES.index(one), 2:].reshape(-1, 3, _SIDE, _SIDE))
        for one in classes
    }


def _check(images: Images, paths: list[Path], split: str) -> None:
    """Refuses a source that lacks a class, or some images of one."""
    for name, some in images.items():
        if len(some) not in _COUNTS:
            raise InputError(
                f"{' and '.join(map(str, paths))}: {len(some)} images of the class '{name}'",
                f"{' or '.join(map(str, _COUNTS))} of each of the {len(images)} classes of {split}",
                f"Replace it with {_URL}.",
            )


def _find(data_dir: str | Path | None, download: bool) -> list[Path]:
    """Where the images are, after a download if need be: one source, or an archive and its rest."""
    cache, data_dir = cache_folder() / "cifar100", data_dir or None
    named = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE)
    root = expanded(named) if named else None
    folders = [root, root / "cifar100_fewshot", root / "cifar100"] if root else []
    if data_dir is None:
        folders.append(cache)
    for folder in folders:
        if found := _sources(folder):
            return found
    if data_dir is not None or not download:
        raise _missing(folders[0])
    archive = cache / f"{_BINARY}.tar.gz"
    try:
        fetch(_URL, archive, md5=_MD5, limit=_LARGEST)
    except OSError as error:
        raise _missing(cache, f", and {_URL} gave no answer ({error})") from error
    return [archive]


def _sources(folder: Path) -> list[Path]:
    archive, rest = folder / "cifar100.zip", folder / "cifar100_train_val_rest.zip"
    if archive.exists():
        return [archive, rest] if rest.exists() else [archive]
    for path in (folder / "cifar100" / "data", folder / "data"):
        if all((path / one).is_dir() for one in _CLASSES):  # one may be in any folder
            return [path]
    for path in (folder / f"{_BINARY}.tar.gz", folder / _BINARY):
        if path.exists():
            return [path]
    return []


def _missing(folder: Path, why: str = "") -> InputError:
    return InputError(
        f"no cifar100.zip or {_BINARY}.tar.gz in {folder}{why}",
        "one of CIFAR-100's archives there, or the folder extracted from it",
        f"Put {_URL} into that folder, or name a folder that has the files: --data-dir, "
        f"data_dir=, or the environment variable {ENVIRONMENT_VARIABLE}.",
    )
