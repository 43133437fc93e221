"""Packed data: a folder with one array a split, and the names and sizes of its classes.

    PACK/classes.json     {"format": 1, "scale": ..., "splits": {"meta_train": {...}, ...}}
    PACK/meta_train.npy   (M, ...), bytes or floats, class after class

It is written in a stream and read row by row, so that neither needs memory for all of it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tegu.datasets.classes import ClassDataset, infinite
from tegu.datasets.rows import KINDS, NpyRows
from tegu.datasets.splits import SPLITS, check_split
from tegu.errors import InputError, InputTypeError
from tegu.files import FULL, expanded, hidden, write_atomic

FORMAT = 1
LARGEST = 1 << 30  # bytes that the list of classes may have
INDEX = "classes.json"
WANTED = "a folder that `tegu pack` or tegu.write_packed has made"


class Packable(NamedTuple):
    """One class on its way into a pack.

    Attributes:
        split: "meta_train", "meta_val" or "meta_test".
        name: of the class.
        rows: its examples, in chunks (n, ...), bytes or floats.
        group: what the class belongs to, an alphabet say; "" for nothing.
    """

    split: str
    name: str
    rows: Iterable[Tensor]
    group: str = ""


def write_packed(
    out: str | Path,
    classes: Iterable[Packable],
    *,
    about: Mapping[str, Any] | None = None,
    least: int = 1,
) -> dict[str, Any]:
    """Writes classes of examples as a pack: all of it, or nothing.

    Holds one chunk in memory at a time. Classes come in any order of splits; all rows have
    one shape and one type.

    Args:
        out: a folder that is not there yet.
        classes: each with its rows; a class without any is left out.
        about: what else to note down, how images were made say.
        least: a class with fewer rows is left out.

    Returns:
        What the pack's `classes.json` holds.

    Raises:
        InputError: the folder is there, rows differ in shape or kind, a row holds NaN or
            infinity, there are no classes, or the disk is full.

    Example:
        >>> rows = [torch.zeros(20, 3), torch.ones(5, 3)]  # in chunks, as they come
        >>> out = getfixture("tmp_path") / "pack"
        >>> _ = write_packed(out, [Packable("meta_train", "owl", rows)])
        >>> load_packed(out, "meta_train").examples[torch.tensor([19, 20])].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    out = expanded(out)
    try:
        json.dumps(dict(about or {}))
    except (TypeError, ValueError) as failure:
        raise InputTypeError(
            f"`about` that JSON cannot hold ({failure})", "texts and numbers", "Write str(value)."
        ) from failure
    with _whole(out) as folder:
        arrays: dict[str, _Array] = {}
        lists: dict[str, dict[str, list[Any]]] = {}
        home: dict[tuple[str, str], str] = {}  # the split of each class of a group
        try:
            for one in classes:
                check_split(one.split)
                if not (isinstance(one.name, str) and isinstance(one.group, str)):
                    raise InputTypeError(
                        f"a class called {one.name!r} of the group {one.group!r}",
                        "names that are texts",
                        "Write str(name).",
                    )
                array = arrays.setdefault(one.split, _Array(folder / f"{one.split}.npy"))
                before = array.rows
                whole = isinstance(one.rows, (Tensor, np.ndarray))
                for chunk in [one.rows] if whole else one.rows:
                    array.write(_plain(chunk, one.name), one.name)
                if array.rows - before < least:
                    array.shorten(before)
                if array.rows > before:
                    _check_new(one, home)
                    known = lists.setdefault(one.split, {"names": [], "counts": [], "groups": []})
                    known["names"].append(one.name)
                    known["counts"].append(array.rows - before)
                    known["groups"].append(one.group)
        finally:
            for split, array in arrays.items():
                array.close()
                if split not in lists:  # no class of it was large enough
                    array.path.unlink(missing_ok=True)
        if not lists:
            raise InputError(f"no example for {out}", "at least one", "Look at what was packed.")
        kinds = {arrays[split].kind for split in lists}
        if len(kinds) > 1:
            raise InputError(
                f"splits of {out} differ: {kinds}",
                "rows of one shape and kind",
                "Give all splits the same preparation.",
            )
        (kind, shape) = kinds.pop()
        images = kind == "|u1" and len(shape) == 3
        index = {
            "format": FORMAT,
            "shape": list(shape),
            "kind": kind,
            "scale": 1 / 255 if images else 1.0,
            "about": dict(about or {}),
            "splits": {s: _without_blanks(lists[s]) for s in SPLITS if s in lists},
        }
        write_atomic(folder / INDEX, json.dumps(index).encode())
    return index


def _check_new(one: Packable, home: dict[tuple[str, str], str]) -> None:
    """Refuses a class that is there already; otherwise notes down where it is."""
    if (who := (one.group, one.name)) in home:
        where = [home[who], one.split]
        raise InputError(
            f"the class '{one.name}' twice, in {' and in '.join(dict.fromkeys(where))}",
            "each class once, with all of its rows, in one split: tests are on unseen classes",
            "Put its rows together, or rename one of the two.",
        )
    home[who] = one.split


def load_packed(path: str | Path, split: str) -> ClassDataset:
    """One split of a pack, whose rows are read from the file when an episode asks.

    Args:
        path: the pack's folder.
        split: "meta_train", "meta_val" or "meta_test".

    Raises:
        InputError: no pack, a damaged one, or one without that split.
    """
    check_split(split)
    folder, index = expanded(path), read_index(path)
    if split not in index["splits"]:
        raise InputError(
            f"{folder} has no {split}, only {' and '.join(index['splits'])}",
            f"a pack with {split}",
            "Pack classes for it too.",
        )
    part = index["splits"][split]
    names, rows = part.get("groups"), NpyRows(folder / f"{split}.npy")
    if tuple(rows.shape[1:]) != tuple(index["shape"]):
        raise InputError(
            f"{rows.path} has rows of shape {tuple(rows.shape[1:])}",
            f"{tuple(index['shape'])}, which {INDEX} says",
            "Pack the data again.",
        )
    at = {name: i for i, name in enumerate(dict.fromkeys(names or ()))}
    return ClassDataset(
        folder.absolute().name,
        split,
        rows,
        torch.tensor(part["counts"]),
        tuple(part["names"]),
        index["scale"],
        groups=torch.tensor([at[name] for name in names]) if names else None,
    )


def read_index(path: str | Path) -> dict[str, Any]:
    """What a pack holds: classes and sizes of each split, and the shape of a row.

    Raises:
        InputError: there is no pack, or its list of classes is not one.
    """
    folder = expanded(path)
    file = folder / INDEX
    if not file.is_file():
        raise InputError(f"{folder} holds no {INDEX}", WANTED, "Check data.path.")
    if file.stat().st_size > LARGEST:
        raise InputError(
            f"{file} has {file.stat().st_size:,} bytes",
            f"at most {LARGEST:,}",
            "Pack the data again.",
        )
    try:
        index: dict[str, Any] = json.loads(file.read_bytes())
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}")
        if not all(type(n) is int and n > 0 for n in index["shape"]):
            raise ValueError(f"shape {index['shape']}")
        if not math.isfinite(index["scale"]) or not index["splits"]:
            raise ValueError("no scale, or no split")
        for split, part in index["splits"].items():
            _check_part(split, part)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as failure:
        raise InputError(f"{file} is no list of classes ({failure})", WANTED, "Pack again.") from (
            failure
        )
    return index


def _check_part(split: str, part: dict[str, Any]) -> None:
    names, counts, groups = part["names"], part["counts"], part.get("groups") or part["names"]
    if split not in SPLITS or not len(names) == len(counts) == len(groups) > 0:
        raise ValueError(f"classes of {split}")
    if not all(isinstance(name, str) for name in [*names, *groups]):
        raise ValueError("a name that is no word")
    if not all(type(n) is int and 0 < n < 1 << 48 for n in counts):
        raise ValueError("a class whose size is no whole number above 0")


def _without_blanks(part: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Without groups where no class has one."""
    return part if any(part["groups"]) else {k: v for k, v in part.items() if k != "groups"}


def _plain(chunk: Any, name: str) -> np.ndarray[Any, Any]:
    """Rows as numpy has them, wherever a tensor lies."""
    try:
        if isinstance(chunk, Tensor):
            chunk = chunk.detach().cpu()
            chunk = chunk.float() if chunk.dtype == torch.bfloat16 else chunk
        return np.ascontiguousarray(chunk)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise InputTypeError(
            f"examples of '{name}' that are no rows of numbers",
            "arrays or tensors, (n, ...)",
            f"Convert them first: {failure}.",
        ) from failure


class _Array:
    """A `.npy` file in the making, whose number of rows is known at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.kind: tuple[str, tuple[int, ...]] = ("", ())  # of its numbers, and a row's shape
        self._file: BinaryIO | None = None

    def write(self, chunk: np.ndarray[Any, Any], name: str) -> None:
        found = chunk.dtype.str, chunk.shape[1:]
        if self._file is None:
            if found[0] not in KINDS or chunk.ndim < 2:
                raise InputError(
                    f"examples of '{name}' with {chunk.dtype} of shape {chunk.shape}",
                    "bytes or floats, (n, ...)",
                    "Convert them first.",
                )
            self.kind = found
            self._file = self.path.open("wb")
            self._head()
        if found != self.kind:
            raise InputError(
                f"examples of '{name}' with {chunk.dtype}, rows of shape {found[1]}",
                f"{self.kind[0]} and {self.kind[1]}, as those before",
                "Bring all to one shape and kind.",
            )
        if (bad := infinite(torch.from_numpy(chunk))) is not None:
            raise InputError(
                f"example {bad} of a chunk of '{name}' holds NaN or infinity",
                "finite numbers",
                "Clean the data, or drop that example.",
            )
        self._file.write(chunk.data)
        self.rows += len(chunk)

    def shorten(self, rows: int) -> None:
        """Back to so many rows."""
        if self._file is not None:
            (kind, shape), gone = self.kind, self.rows - rows
            self._file.seek(-gone * np.dtype(kind).itemsize * math.prod(shape), os.SEEK_END)
            self._file.truncate()
        self.rows = rows

    def _head(self) -> None:
        assert self._file is not None
        told = {"descr": self.kind[0], "fortran_order": False, "shape": (self.rows, *self.kind[1])}
        np.lib.format.write_array_header_1_0(self._file, told)  # leaves room for more rows

    def close(self) -> None:
        if self._file is not None:
            with self._file:
                self._file.seek(0)
                self._head()
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file = None


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when all of it is there.

    A kill leaves a folder beside it whose name begins with a dot; an error leaves nothing.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} is there", "a folder that is not", "Choose another, or remove it.")
    partial = hidden(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        partial.rename(out)
    except OSError as failure:
        if failure.errno not in FULL and not str(failure.filename or "").startswith(
            str(out.parent)
        ):
            raise  # of whoever makes the rows
        raise InputError(
            f"{out} cannot be written: {failure.strerror or failure}",
            "a disk with room for all of it, and a folder that can be written",
            "Make room, or choose another folder.",
        ) from failure
    finally:
        shutil.rmtree(partial, ignore_errors=True)
