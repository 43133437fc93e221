"""Sequences that a caller gives."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tegu.datasets.tokens import Vocabulary, rows
from tegu.errors import InputError, InputTypeError


def test_rows_are_padded_and_end() -> None:
    expected = [[3, 4, 1], [5, 1, 0]]
    for given in ([[3, 4], [5]], torch.tensor([[3, 4], [5, 0]]), np.array([[3, 4, 1], [5, 1, 0]])):
        assert rows(given, "y", end=True).tolist() == expected
    assert rows([[3, 4, 1], (5,)], "x").tolist() == [[3, 4], [5, 0]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "x is empty"),
        ([[3], []], "row 1 of x has no words"),
        ([[3], [0, 0]], "row 1 of x has no words"),
        ([[3], [4, 9]], "row 1 of x holds the token 9; expected tokens of words, 3 to 8"),
        ([[3, 0, 4]], "row 0 of x holds the token 0"),
        ([[3, 1, 4]], "row 0 of x holds the token 1"),
        ([[-1]], "row 0 of x holds the token -1"),
        ([[3, 3, 3, 3]], "row 0 of x has 4 words; expected at most 3"),
    ],
)
def test_what_is_no_sequence_is_said(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        rows(given, "x", kinds=9, longest=3)


@pytest.mark.parametrize("given", ["jump", [3, 4], [["jump"]], [[3.5]], 7, torch.ones(2, 2)])
def test_what_is_no_row_of_tokens_is_said(given: Any) -> None:
    with pytest.raises(InputTypeError, match=r"rows of tokens|whole numbers, one for each word"):
        rows(given, "x")


def test_words() -> None:
    some = Vocabulary(("dax", "fep"))
    assert some.decode([4, 1, 3]) == "fep"
    with pytest.raises(InputError, match=r"unknown word 'fop'.*Did you mean 'fep'"):
        some.encode("dax fop")
