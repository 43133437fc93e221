"""Tables that people bring: every form that is read, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tegu import columns
from tegu.columns import Columns, read_columns
from tegu.errors import InputError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5\n-3,4e1\n",
        "1\t2.5\n-3\t4e1",
        "  1   2.5 \n\n# a remark\n -3 40\n",
        "1;2.5\r\n-3;40\r\n",
        '\ufeff"1","2.5"\n"-3","40"\n',
    ],
)
def test_forms_of_text(tmp_path: Path, text: str) -> None:
    table = read_columns(write(tmp_path, text))
    np.testing.assert_array_equal(table.values, [[1, 2.5], [-3, 40]])
    assert table.names == ("column 1", "column 2")
    assert table.labels is None
    assert table.environments() == {}


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_columns(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is no regular file"):
        read_columns(tmp_path / "pipe")


@pytest.mark.parametrize("wanted", ["site", "2"])
def test_header_and_environments(tmp_path: Path, wanted: str) -> None:
    path = write(tmp_path, "dose,site,effect\n1,north,2\n3,7,4\n5,north,6\n")
    table = read_columns(path, environment=wanted)
    assert table.names == ("dose", "effect")
    assert table.labels == ("north", "7", "north")
    groups = table.environments()
    assert list(groups) == ["north", "7"]
    np.testing.assert_array_equal(groups["north"], [[1, 2], [5, 6]])
    np.testing.assert_array_equal(groups["7"], [[3, 4]])


def test_no_header_with_words_as_labels(tmp_path: Path) -> None:
    table = read_columns(write(tmp_path, "1 2 control\n3 4 treated"), environment="3")
    assert table.values.tolist() == [[1, 2], [3, 4]]
    assert table.labels == ("control", "treated")


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("", None, "{} is empty; expected rows of numbers. Check that it is the right file."),
        ("a,b\n", None, "{} holds a header and no rows; expected rows of numbers. Check"),
        (
            "1,2\n3\n",
            None,
            "line 2 of {} has 1 columns; expected 2 columns, as in the lines before. Mend that",
        ),
        (
            "a,b\n1,2\n\n3,x\n",
            None,
            "line 4 of {} holds 'x' in b; expected a number. Code it as a number, or, if it",
        ),
        ("1,2\n3,nan\n", None, "line 2 of {} holds nan in column 2; expected a finite number."),
        ("1,2\n-inf,3\n", None, "line 2 of {} holds -inf in column 1; expected a finite number"),
        ("1,2\n3,\n", None, "line 2 of {} holds nothing in column 2; expected a finite number."),
        (
            "a,b,site\n1,2,x\n",
            "sight",
            "unknown column 'sight'; expected one of a, b, site. Did you mean 'site'?",
        ),
        ("1,2\n3,4\n", "3", "column 3 of {}; expected 1 to 2. Count the columns from 1."),
        (
            "1,2,x\n3,4,\n",
            "3",
            "line 2 of {} has no label in column 3; expected an environment for each row. Fill",
        ),
        (b"\xff\xfe1,2", None, "{} is not text in UTF-8; expected CSV, or columns between"),
    ],
)
def test_what_is_said_of_bad_tables(
    tmp_path: Path, text: str | bytes, environment: str | None, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as told:
        read_columns(path, environment=environment)
    assert str(told.value).startswith(message.format(path))


def test_missing_files_folders_and_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"there is no file .*no\.csv; expected a text file"):
        read_columns(tmp_path / "no.csv")
    with pytest.raises(InputError, match=r"is a folder; expected a text file of numbers\. Name"):
        read_columns(tmp_path)
    monkeypatch.setattr(columns, "LARGEST", 10)
    with pytest.raises(InputError, match=r"has 12 bytes; expected at most 10\. Take a sample"):
        read_columns(write(tmp_path, "1,2\n3,4\n5,6\n"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Height, cm\tWeight, kg\n1\t2\n", ("Height, cm", "Weight, kg")),
        ('"dose, mg";"effect"\n1;2\n', ("dose, mg", "effect")),
        ("a;b,c\n1,2\n", ("a;b", "c")),
        ("a,b\n1,\t2\n", ("a", "b")),
        ("a,b\t\n1,2\t\n", ("a", "b")),
    ],
)
def test_what_cuts_all_lines_alike_separates(
    tmp_path: Path, text: str, names: tuple[str, ...]
) -> None:
    table = read_columns(write(tmp_path, text))
    assert table.names == names
    np.testing.assert_array_equal(table.values, [[1, 2]])


def test_commas_for_points(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds '2,5' in b; .*decimal point.*points, not commas"):
        read_columns(write(tmp_path, "a;b\n1;2\n1;2,5\n"))


def test_labels_alone(tmp_path: Path) -> None:
    table = read_columns(write(tmp_path, "site\nnorth\nsouth\n"), environment="site")
    assert table.values.shape == (2, 0)
    assert table.labels == ("north", "south")


def test_a_byte_that_is_no_text_far_down(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not text in UTF-8"):
        read_columns(write(tmp_path, b"1,2\n" * 5000 + b"\xff,2\n"))


@pytest.mark.parametrize(
    ("values", "labels", "text"),
    [
        (np.zeros((3, 3)), None, r"values of shape \(3, 3\) for 2 names"),
        (np.zeros((3, 2)), ("a", "b"), "2 labels for 3 rows"),
        (np.full((3, 2), np.nan), None, "NaN or infinity"),
    ],
)
def test_tables_that_are_none(values: Any, labels: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Columns(("a", "b"), values, labels)


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    assert read_columns(str(write(tmp_path, "1,2\n3,4\n"))).values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (",a,b\n0,1.5,2\n1,2.5,3\n7,3.5,4\n", ("a", "b")),
        (",a,b\n0,1.5,2\n0,2.5,3\n", ("column 1", "a", "b")),
        (",a,b\n0.5,1.5,2\n1,2.5,3\n", ("column 1", "a", "b")),
        ("row,a,b\n0,1.5,2\n1,2.5,3\n", ("row", "a", "b")),
    ],
    ids=["an index", "one number twice", "no whole numbers", "with a name"],
)
def test_an_index_as_pandas_writes_it(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    found = read_columns(tmp_path / "table.csv")
    assert found.names == names
    assert found.values.shape[1] == len(names)
    assert found.values[1, -1] == 3
