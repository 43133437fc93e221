"""Columns of numbers out of a text file that somebody brings, with a label for each row or none."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tegu.errors import InputError, unknown
from tegu.files import expanded

LARGEST = 64_000_000  # bytes of a file
DELIMITERS = (",", "\t", ";")
LOOKED_AT = 100  # lines, to tell what separates columns


@dataclass(frozen=True)
class Columns:
    """A table of numbers.

    Attributes:
        names: of the k columns, from the header, or "column 1" and so on.
        values: shape (n, k), float64, all finite.
        labels: of each row, which environment it was observed in; None without such a column.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.values)
        if len(shape) != 2 or shape[1] != len(self.names):
            raise InputError(
                f"values of shape {shape} for {len(self.names)} names",
                "a column for each name, (n, k)",
                "Check the names, or transpose the values.",
            )
        if self.labels is not None and len(self.labels) != shape[0]:
            raise InputError(
                f"{len(self.labels)} labels for {shape[0]} rows", "one for each", "Check them."
            )
        if not np.isfinite(self.values).all():
            raise InputError("values with NaN or infinity", "finite numbers", "Clean the rows.")

    def check_varying(self) -> None:
        """Refuses a column that has one value only.

        Raises:
            InputError: which one, by its name.
        """
        for name, column in zip(self.names, self.values.T, strict=True):
            if (column == column[0]).all():
                raise InputError(
                    f"{name} is {column[0]:g} in every row",
                    "a column that varies",
                    "Choose another column: nothing can be learnt about a constant.",
                )

    def environments(self) -> dict[str, NDArray[np.float64]]:
        """Rows of each environment, by its label, in the order of the file; {} without labels."""
        if self.labels is None:
            return {}
        at = np.array(self.labels)
        return {label: self.values[at == label] for label in dict.fromkeys(self.labels)}


def read_columns(path: str | Path, *, environment: str | None = None) -> Columns:
    """Reads CSV, tab-separated, semicolon-separated or white-space separated text.

    Args:
        path: a file in UTF-8. A first line without any number is a header; empty lines, and
            lines that begin with "#", do not count. A first column without a name in a header,
            of whole numbers of which none comes twice, is an index as pandas writes it, and
            left out.
        environment: name or number, counted from 1, of the column of labels; all the others
            hold numbers.

    Raises:
        InputError: there is no such file or column, the file is too large or no text, its rows
            differ in length, or a cell holds no finite number.
    """
    path = expanded(path)
    rows = _cells(path)
    first = next(rows)
    names = [f"column {i + 1}" for i in range(len(first[1]))]
    unnamed = len(names) > 1 and not first[1][0].strip()
    if any(_number(cell) is not None for cell in first[1]):
        rows = itertools.chain([first], rows)
    else:
        names = [cell.strip() or old for cell, old in zip(first[1], names, strict=True)]
    at = None if environment is None else _column(environment, names, path)
    numbers, labels = array("d"), []
    for line, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                f"line {line} of {path} has {len(cells)} columns",
                f"{len(names)} columns, as in the lines before",
                "Mend that line, or separate all cells alike.",
            )
        for j, cell in enumerate(cells):
            if j != at:
                numbers.append(_finite(cell, line, names[j], path))
            elif label := cell.strip():
                labels.append(sys.intern(label))
            else:
                raise InputError(
                    f"line {line} of {path} has no label in {names[j]}",
                    "an environment for each row",
                    "Fill it in, or drop that row.",
                )
    kept = tuple(name for j, name in enumerate(names) if j != at)
    if not numbers and not labels:
        raise InputError(
            f"{path} holds a header and no rows",
            "rows of numbers",
            "Check that it is the right file.",
        )
    values = np.frombuffer(numbers).reshape(-1, len(kept)) if kept else np.empty((len(labels), 0))
    if unnamed and at != 0 and _is_index(values[:, 0]):
        kept, values = kept[1:], values[:, 1:]
    return Columns(kept, values, None if at is None else tuple(labels))


def _is_index(values: np.ndarray) -> bool:
    return bool((values == values.round()).all()) and len(np.unique(values)) == len(values)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of every line that counts, one at least."""
    if not path.exists():
        raise InputError(f"there is no file {path}", "a text file of numbers", "Check the path.")
    if path.is_dir():
        raise InputError(f"{path} is a folder", "a text file of numbers", "Name a file in it.")
    if not path.is_file():
        raise InputError(f"{path} is no regular file", "a text file of numbers", "Save it first.")
    if (size := path.stat().st_size) > LARGEST:
        raise InputError(
            f"{path} has {size:,} bytes", f"at most {LARGEST:,}", "Take a sample of its rows."
        )
    try:
        some = list(itertools.islice(_lines(path), LOOKED_AT))
        if not some:
            raise InputError(
                f"{path} is empty", "rows of numbers", "Check that it is the right file."
            )
        mark = _delimiter([line for _, line in some])
        for number, line in _lines(path):
            yield number, _split(line, mark)
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is not text in UTF-8", "CSV, or columns between blanks", "Export it as CSV."
        ) from None
    except csv.Error as failure:
        raise InputError(f"{path}: {failure}", "cells of numbers", "Export it as CSV.") from failure


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, line.rstrip("\n")


def _delimiter(lines: list[str]) -> str | None:
    """What cuts all lines into equally many cells, most of them numbers; None for white space."""
    shares: dict[str, float] = {}
    for mark in DELIMITERS:
        rows = [_split(line, mark) for line in lines]
        if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            cells = [cell for row in rows[1:] or rows for cell in row]
            # A comma may be a decimal point, which is told further on.
            shares[mark] = sum(_number(c.replace(",", ".")) is not None for c in cells) / len(cells)
    if shares:
        return max(shares, key=shares.__getitem__)
    return next((mark for mark in DELIMITERS if mark in lines[0]), None)


def _split(line: str, mark: str | None) -> list[str]:
    if mark is None:
        return line.split()
    if '"' not in line:
        return line.split(mark)
    return next(csv.reader([line], delimiter=mark))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _finite(cell: str, line: int, name: str, path: Path) -> float:
    value = _number(cell)
    if value is None and _number(cell.replace(",", ".")) is not None:
        raise InputError(
            f"line {line} of {path} holds '{cell.strip()[:40]}' in {name}",
            "a number with a decimal point",
            "Export it with points, not commas.",
        )
    if value is None and cell.strip():
        raise InputError(
            f"line {line} of {path} holds '{cell.strip()[:40]}' in {name}",
            "a number",
            "Code it as a number, or, if it names an environment, add --environment COLUMN.",
        )
    if value is None or not math.isfinite(value):
        raise InputError(
            f"line {line} of {path} holds {'nothing' if value is None else value} in {name}",
            "a finite number",
            "Fill it in, or drop that row.",
        )
    return value


def _column(wanted: str, names: list[str], path: Path) -> int:
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal():
        if 1 <= int(wanted) <= len(names):
            return int(wanted) - 1
        raise InputError(
            f"column {wanted} of {path}", f"1 to {len(names)}", "Count the columns from 1."
        )
    raise unknown("column", wanted, names)
