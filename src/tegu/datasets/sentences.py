"""Sentences of one's own: a table of texts and labels, every text as a vector of what is in it.

    text,label
    where is my card,card_arrival

Words, pairs of neighbouring words, and runs of three to five letters are hashed into places of a
vector. Nothing is fitted: a text becomes the same vector whatever else there is, so that what was
meta-learned knows the texts of a new task. What a place is worth, meta-training learns.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tegu.datasets.class_folders import SHARES, Division, composed
from tegu.datasets.classes import ClassDataset
from tegu.datasets.splits import check_split
from tegu.errors import InputError, InputTypeError
from tegu.files import expanded

LARGEST = 256 << 20  # bytes of a file
LONGEST = 10_000  # characters of a text
MOST_BYTES = 16 << 30  # of the vectors of a table
SIZES = (64, 1 << 16)
TEXTS = ("text", "sentence", "utterance", "query")  # what a column of texts may be called
LABELS = ("label", "category", "intent", "class")
ROWS = 4096  # texts that are hashed at once

Row = tuple[int, dict[str, Any]]  # line number, and cells by column


class ColumnError(InputError):
    """A table without the column that is asked for."""


def load_sentences(
    path: str | Path,
    split: str,
    *,
    text: str = "",
    label: str = "",
    size: int = 2048,
    shares: tuple[int, ...] = SHARES,
    seed: int = 0,
    least: int = 1,
) -> ClassDataset:
    """One split of a file of labelled texts, as vectors (size,).

    Args:
        path: CSV with a header, tab-separated if its name ends in .tsv; or JSON lines, an
            object a line, if it ends in .jsonl. In UTF-8.
        split: "meta_train", "meta_val" or "meta_test".
        text: column of the texts; "": the one called text, sentence, utterance or query.
        label: column of the classes; "": the one called label, category, intent or class.
        size: numbers in a vector, half for words and half for letters.
        shares: of the three splits among the classes.
        seed: of that division.
        least: classes with fewer texts are left out.

    Raises:
        InputError: no such file or column, a cell that is empty, or no class in the split.
    """
    check_split(split)
    check_size(size)
    division = Division(shares=shares, seed=seed, least=least)
    file = expanded(path)
    texts: dict[str, list[str]] = {}
    for words, name in read_texts(file, text=text, label=label):
        texts.setdefault(composed(name), []).append(words)
    names = sorted(texts)
    sizes = [len(texts[name]) for name in names]
    if max(sizes) < least:
        raise InputError(
            f"no class of {file} has {least} texts, the largest has {max(sizes)}",
            "at least one class that is large enough",
            "Lower least.",
        )
    at = division.parts(names, sizes)[split]
    if not at:
        raise InputError(
            f"no class of {file} is in {split}",
            "at least one",
            f"Add classes, change the shares, now {list(shares)}, or lower least, now {least}.",
        )
    chosen = [names[i] for i in at]
    return ClassDataset(
        file.stem,
        split,
        read_sentences([one for name in chosen for one in texts[name]], size=size),
        torch.tensor([len(texts[name]) for name in chosen]),
        tuple(chosen),
    )


def read_sentences(texts: Iterable[str], *, size: int = 2048) -> Tensor:
    """Texts as vectors (B, size), float32, with a mean square of 1; an empty text is 0.

    Args:
        texts: B of them.
        size: as the training had it; see `load_sentences`.

    Raises:
        InputError: no texts, or scikit-learn is not installed.
    """
    check_size(size)
    if isinstance(texts, str):
        raise InputTypeError("a text in place of a list", "texts in a list", "Write [text].")
    given = list(texts)
    if (bad := next((one for one in given if not isinstance(one, str)), "")) != "":
        raise InputTypeError(
            f"a text that is a {type(bad).__name__}, {bad!r}", "texts", "Drop it, or write ''."
        )
    check_room(len(given), size)
    listed = [_encodable(one[:LONGEST]) for one in given]
    if not listed:
        raise InputError("no texts", "at least one", "Check what was listed.")
    out = np.empty((len(listed), size), np.float32)
    for start in range(0, len(listed), ROWS):
        rows = slice(start, start + ROWS)
        for half, columns in enumerate((slice(None, size // 2), slice(size // 2, None))):
            out[rows, columns] = _hashers(size // 2)[half].transform(listed[rows]).toarray()
    out *= np.float32((size / 2) ** 0.5)  # each half had length 1
    return torch.from_numpy(out)


def check_room(texts: int, size: int) -> None:
    """Refuses vectors that would fill the memory.

    Raises:
        InputError: they have more than `MOST_BYTES`.
    """
    if (needed := 4 * texts * size) > MOST_BYTES:
        raise InputError(
            f"{texts:,} texts of {size:,} numbers, {needed / 1e9:.0f} GB",
            f"at most {MOST_BYTES / 1e9:.0f} GB",
            "Lower size, or take some of the texts.",
        )


def read_lines(file: Path) -> list[str]:
    """The texts of a file that has one in each line; blank lines are passed over.

    Raises:
        InputError: there is no such file, no text in it, or it is too large or not in UTF-8.
    """
    found = [line.strip() for line in _text(file).split("\n") if line.strip()]
    if not found:
        raise InputError(f"{file} holds no text", "a text in each line", "Check the path.")
    return found


def read_texts(file: Path, *, text: str = "", label: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a file with their labels; see `load_sentences`."""
    rows = _lines(file) if file.suffix.lower() == ".jsonl" else _cells(file)
    names: tuple[str, str] | None = None
    for number, row in rows:
        if names is None:
            names = (
                _column(file, row, text, TEXTS, "text"),
                _column(file, row, label, LABELS, "label"),
            )
        cells = [row.get(name) for name in names]
        for name, cell in zip(names, cells, strict=True):
            if not isinstance(cell, (str, int)) or not str(cell).strip():
                raise InputError(
                    f"line {number} of {file} holds {cell!r} as its {name}",
                    "a text and a label in each row",
                    "Fill it in, or drop that row.",
                )
        yield str(cells[0]), _encodable(str(cells[1])).strip()
    if names is None:
        raise InputError(
            f"{file} holds no rows", "a header, and a row for each text", "Check that it is right."
        )


def _encodable(text: str) -> str:
    """Without halves of a character, as JSON may hold where an emoji was cut in two."""
    return text.encode("utf-8", "replace").decode()


def check_size(size: int) -> None:
    """Refuses vectors that cannot be made.

    Raises:
        InputError: too short or long, or of an odd number.
    """
    if not SIZES[0] <= size <= SIZES[1] or size % 2:
        raise InputError(
            f"vectors of {size} numbers",
            f"an even number, {SIZES[0]} to {SIZES[1]:,}",
            "Take 2048.",
        )


@cache
def _hashers(size: int) -> tuple[Any, Any]:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as failure:
        raise InputError(
            "texts, and no scikit-learn to read them with",
            "tegu with its extra for texts",
            "Run: pip install scikit-learn",
        ) from failure
    return (
        HashingVectorizer(
            n_features=size, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", dtype=np.float32
        ),
        HashingVectorizer(
            n_features=size, analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32
        ),
    )


def _column(file: Path, row: dict[str, Any], given: str, usual: Sequence[str], what: str) -> str:
    if given and given in row:
        return given
    names = [name for name in row if str(name).strip().lower() in usual]
    if not given and len(names) == 1:
        return names[0]
    raise ColumnError(
        f"{file} with the columns {', '.join(str(name) for name in row)}",
        f"a column '{given}'"
        if given
        else f"one column called {', '.join(usual[:-1])} or {usual[-1]}",
        f"Say which one holds the {what}s: data.{what}=COLUMN, {what}= in Python.",
    )


def _text(file: Path) -> str:
    if not file.is_file():
        given = f"{file} is a folder" if file.is_dir() else f"there is no file {file}"
        raise InputError(given, "a file of texts and labels", "Check the path.")
    if (size := file.stat().st_size) > LARGEST:
        raise InputError(f"{file} has {size:,} bytes", f"at most {LARGEST:,}", "Take some rows.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as failure:
        raise InputError(
            f"{file} is not text in UTF-8", "CSV or JSON lines in UTF-8", "Save it as such."
        ) from failure


def _cells(file: Path) -> Iterator[Row]:
    mark = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), delimiter=mark, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"line {reader.line_num} of {file} has more or fewer cells than the header",
                    f"{len(reader.fieldnames or ())} cells",
                    'Put texts with commas in quotes: "like this, say".',
                )
            yield reader.line_num, row
    except csv.Error as failure:
        raise InputError(
            f"line {reader.line_num} of {file}: {failure}", "CSV", "Export it anew."
        ) from failure


def _lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}")
        except (ValueError, RecursionError) as failure:
            raise InputError(
                f"line {number} of {file} is no JSON object ({failure})",
                'lines such as {"text": "...", "label": "..."}',
                "Mend that line.",
            ) from failure
        yield number, row
