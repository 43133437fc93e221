"""Which classes a folder of files holds, and which split each belongs to."""

from __future__ import annotations

import itertools
import os
import shlex
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import SPLITS
from tegu.errors import InputError

SHARES = (64, 16, 20)  # of the classes, in the proportion of miniImageNet
DEEPEST = 16  # folders inside each other
OTHERS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class FileForm(Protocol):
    """What every file becomes: bytes of one shape, (channels, size, size).

    Attributes:
        kind: what such a file is called.
        suffixes: how its name may end, in small letters.
        bytes: of one example.
    """

    @property
    def kind(self) -> str: ...

    @property
    def suffixes(self) -> frozenset[str]: ...

    @property
    def channels(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def decode(self, file: str) -> Tensor:
        """A file as uint8.

        Raises:
            InputError: it is none of the kind, damaged, or too large.
        """
        ...


class Class(NamedTuple):
    """A class of files.

    Attributes:
        name: path of its folder, without the split's.
        group: the folder around it; "" for none.
        files: their paths, in order of their names.
    """

    name: str
    group: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which classes are used, and which split each belongs to where folders do not say so.

    Args:
        shares: of meta_train, meta_val and meta_test among the classes, in any unit.
        seed: of the division. Who adds a class changes the split of a few others at most.
        least: classes with fewer images are left out.
    """

    shares: tuple[int, ...] = SHARES
    seed: int = 0
    least: int = 1

    def __post_init__(self) -> None:
        if len(self.shares) != 3 or min(self.shares) < 0 or not sum(self.shares):
            raise InputError(
                f"shares {list(self.shares)}",
                "three numbers, of meta_train, meta_val and meta_test, none below 0",
                "Write [64, 16, 20], say.",
            )

    def parts(self, names: Sequence[str], sizes: Sequence[int]) -> dict[str, list[int]]:
        """Numbers of the classes of each split, in order.

        Classes are put into a random order, where each one's own name decides on its place,
        and cut into three.
        """
        root = keys.key(self.seed, "classes of a folder")
        marks = torch.tensor([zlib.crc32(_bytes(composed(name))) for name in names])
        order = keys.fold(root, marks).argsort(stable=True).tolist() if names else []
        kept = [i for i in order if sizes[i] >= self.least] or order
        total, parts, at, passed = sum(self.shares), {}, 0, 0
        for split, share in zip(SPLITS, self.shares, strict=True):
            passed += share
            end = round(len(kept) * passed / total)
            parts[split] = sorted(kept[at:end])
            at = end
        return parts


def _plain(name: str) -> str:
    """A folder's name without regard to capitals and hyphens, as people write splits."""
    return name.casefold().replace("-", "_").replace(" ", "_")


def _layout(form: FileForm) -> str:
    return f"one sub-folder for each class, with its {form.kind}s in it"


def _check_folder(folder: Path, form: FileForm) -> None:
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", f"a folder with {_layout(form)}", "Check the path.")


def _empty(folder: Path, form: FileForm) -> InputError:
    return InputError(
        f"{folder} holds no {form.kind}s",
        f"{_layout(form)}: files ending in {', '.join(sorted(form.suffixes))}",
        "Check the path.",
    )


def classes_of(folder: Path, division: Division, form: FileForm) -> dict[str, list[Class]]:
    """The classes of each split, in order of their names.

    Raises:
        InputError: no folder, no files of the kind, or a layout that leaves open what the
            classes are.
    """
    _check_folder(folder, form)
    inside = {entry.name for entry in _entries(folder) if _is_folder(entry)}
    divided = inside & set(SPLITS)
    if nearly := sorted(n for n in inside - divided if _plain(n) in SPLITS):
        raise InputError(
            f"{folder} holds {nearly[0]}",
            "meta_train, meta_val and meta_test, written so, or classes",
            f"Rename it: mv {shlex.quote(nearly[0])} {_plain(nearly[0])}",
        )
    if divided and inside - divided:
        raise InputError(
            f"{folder} holds {sorted(divided)[0]} beside {sorted(inside - divided)[0]}",
            "either meta_train, meta_val and meta_test, or classes",
            "Move one or the other out.",
        )
    if inside and {_plain(name) for name in inside} <= OTHERS:
        raise InputError(
            f"{folder} is divided into {' and '.join(sorted(inside))}",
            "one sub-folder for each class, or meta_train, meta_val and meta_test with "
            "different classes in each",
            "Meta-learning is tested on classes that it has not seen: put all classes side by "
            "side into one folder, and tegu divides them.",
        )
    if divided:
        parts = {s: _walk(folder / s, form) if s in divided else [] for s in SPLITS}
        _check_disjoint(folder, parts)
    else:
        classes = _walk(folder, form)
        _check_division_below(folder, classes)
        _check_side_by_side(folder, classes, form)
        at = division.parts([c.name for c in classes], [len(c.files) for c in classes])
        parts = {split: [classes[i] for i in rows] for split, rows in at.items()}
    if not any(parts.values()):
        raise _empty(folder, form)
    kept = {s: [c for c in part if len(c.files) >= division.least] for s, part in parts.items()}
    if not any(kept.values()):
        most = max(len(one.files) for part in parts.values() for one in part)
        raise InputError(
            f"no class of {folder} has {division.least} {form.kind}s, the largest has {most}",
            "at least one class that is large enough",
            "Lower least.",
        )
    return kept


def _check_division_below(folder: Path, classes: list[Class]) -> None:
    """Refuses a division into splits further down, which would be dealt anew."""
    tops: dict[str, set[str]] = {}  # folders with files below them, by the folder that holds them
    for one in classes:
        parts = one.name.split("/")
        for at, part in enumerate(parts[:-1]):
            tops.setdefault("/".join(parts[:at]), set()).add(part)
    for place, inside in tops.items():
        names = {_plain(name) for name in inside}
        if names & set(SPLITS) or (len(names) > 1 and names <= OTHERS):
            there = folder / place
            raise InputError(
                f"{there} is divided into {' and '.join(sorted(inside))}",
                "classes, or meta_train, meta_val and meta_test at the top of the folder",
                f"Pass {there} if these are tegu's splits; else put all classes side by side into "
                "one folder, and tegu divides them.",
            )


def _check_side_by_side(folder: Path, classes: list[Class], form: FileForm) -> None:
    """Refuses the same classes in folders for training and for tests."""
    below: dict[str, set[str]] = {}
    for one in classes:
        parts = one.name.split("/")
        for at, part in enumerate(parts[:-1]):
            if _plain(part) in OTHERS:
                below.setdefault("/".join(parts[: at + 1]), set()).add("/".join(parts[at + 1 :]))
    for first, second in itertools.combinations(sorted(below), 2):
        if both := below[first] & below[second]:
            raise InputError(
                f"the class '{min(both)}' of {folder} is in {first} and in {second}",
                "one sub-folder for each class, or meta_train, meta_val and meta_test with "
                "different classes in each",
                "Meta-learning is tested on classes that it has not seen: put all "
                f"{form.kind}s of a class into one folder, and tegu divides the classes.",
            )


def class_files(folder: Path, form: FileForm) -> list[Class]:
    """All classes of a folder, in order of their names, in no split.

    Raises:
        InputError: there is no such folder, no class in it, or files lie where none belong.
    """
    _check_folder(folder, form)
    if not (found := _walk(folder, form)):
        raise _empty(folder, form)
    return found


def _walk(folder: Path, form: FileForm) -> list[Class]:
    """All classes below a folder."""
    found: list[Class] = []

    def visit(place: Path, name: str, above: tuple[tuple[int, int], ...]) -> None:
        stat = place.stat()
        mark = stat.st_dev, stat.st_ino
        if mark in above or len(above) > DEEPEST:
            raise InputError(
                f"{place} leads back into a folder around it"
                if mark in above
                else f"{place} lies {len(above)} folders deep",
                f"{_layout(form)}, {DEEPEST} levels at most",
                "Remove that link." if mark in above else f"Move the {form.kind}s up.",
            )
        files, folders = [], []
        for entry in _entries(place):
            if _is_folder(entry):
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in form.suffixes:
                files.append(entry.path)
        if files and (folders or not name):
            beside = f"folders such as {folders[0]}" if folders else "no sub-folder around it"
            raise InputError(
                f"the {form.kind} {files[0]} with {beside}",
                _layout(form),
                "Move it into its class's folder.",
            )
        if files:
            found.append(Class(name, os.path.dirname(name), tuple(files)))
        for other in folders:
            visit(place / other, f"{name}/{other}" if name else other, (*above, mark))

    visit(folder, "", ())
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as failure:
        raise InputError(
            f"{folder} cannot be read: {failure.strerror}",
            "folders that may be read",
            "Change its permissions, or move it away.",
        ) from failure
    return sorted(shown, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, say
        return False


def composed(name: str) -> str:
    """A name whose accents are parts of its letters, as most systems write them; macOS may not."""
    return unicodedata.normalize("NFC", name)


def _bytes(name: str) -> bytes:
    """The same on every machine; of a name that is no text, those that it has on disk."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which Windows allows
        return name.encode("utf-8", "surrogatepass")


def _check_disjoint(folder: Path, parts: dict[str, list[Class]]) -> None:
    seen: dict[str, str] = {}
    for split, part in parts.items():
        for one in part:
            if (first := seen.setdefault(composed(one.name), split)) != split:
                raise InputError(
                    f"the class '{one.name}' of {folder} is in {first} and in {split}",
                    "different classes in each split, since tests are on unseen ones",
                    "Move all its files into one of the two.",
                )
