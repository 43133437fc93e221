"""Sequences of tokens: what every source of sequences and every network for them agree on.

A sequence is a row of whole numbers. Words count from `WORDS`; a target ends with
`END`, and `PAD` fills what is left of its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tegu.errors import InputError, InputTypeError, unknown

PAD, END, START, WORDS = 0, 1, 2, 3


@dataclass(frozen=True)
class Vocabulary:
    """Words and their tokens.

    Example:
        >>> some = Vocabulary(("dax", "fep"))
        >>> some.encode("fep dax")
        [4, 3]
        >>> some.decode([4, 3, 3])
        'fep dax dax'
    """

    words: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """The tokens of words between blanks.

        Raises:
            InputError: a word that is not in the vocabulary.
        """
        at = {word: WORDS + i for i, word in enumerate(self.words)}
        for word in text.split():
            if word not in at:
                raise unknown("word", word, self.words)
        return [at[word] for word in text.split()]

    def decode(self, row: Sequence[int]) -> str:
        """The words of tokens, until END."""
        return " ".join(self.words[token - WORDS] for token in spoken(row))


def spoken(row: Sequence[int]) -> list[int]:
    """The words' tokens of a row, until END, PAD left out.

    Example:
        >>> spoken([4, 0, 5, 1, 7])
        [4, 5]
    """
    tokens = [int(token) for token in row]
    until = tokens.index(END) if END in tokens else len(tokens)
    return [token for token in tokens[:until] if token >= WORDS]


def rows(given: Any, name: str, *, kinds: int = 0, longest: int = 0, end: bool = False) -> Tensor:
    """Sequences from a caller, checked and padded: (B, L) int64.

    Args:
        given: a tensor, array or list of rows of tokens, padded or of unequal length.
        name: what it is called in an error.
        kinds: of tokens that there are; 0 for no such limit.
        longest: words of a row, at most; 0 likewise.
        end: whether rows are to end with END; it is put there where it is missing.

    Raises:
        InputError: no rows, an empty row, a token that is no word of the vocabulary, or a
            row that is too long.

    Example:
        >>> rows([[3, 4], [5]], "y", end=True)
        tensor([[3, 4, 1],
                [5, 1, 0]])
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    kept: list[list[int]] = []
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise InputTypeError(
            f"{name} is a {type(given).__name__}",
            "rows of tokens",
            "Pass a list for each sequence.",
        )
    if not len(listed):
        raise InputError(f"{name} is empty", "at least one sequence", "Pass some examples.")
    for number, row in enumerate(listed):
        if (
            isinstance(row, str)
            or not isinstance(row, Sequence)
            or not all(isinstance(token, int) and not isinstance(token, bool) for token in row)
        ):
            raise InputTypeError(
                f"row {number} of {name} is {str(row)[:40]!r}",
                "whole numbers, one for each word",
                "Encode words first, with tegu.datasets.tokens.Vocabulary.",
            )
        words = list(row)
        while words and words[-1] == PAD:
            words.pop()
        if words and words[-1] == END:
            words.pop()
        if not words:
            raise InputError(
                f"row {number} of {name} has no words", "one or more", "Leave that row out."
            )
        for token in words:
            if token < WORDS or (kinds and token >= kinds):
                allowed = f"{WORDS} to {kinds - 1}" if kinds else f"{WORDS} or more"
                raise InputError(
                    f"row {number} of {name} holds the token {token}",
                    f"tokens of words, {allowed}",
                    "Meta-train with every word that will be asked, or mend the row.",
                )
        if longest and len(words) > longest:
            raise InputError(
                f"row {number} of {name} has {len(words)} words",
                f"at most {longest}, the longest that the model was made for",
                "Shorten it, or meta-train a model for longer ones.",
            )
        kept.append([*words, END] if end else words)
    return padded(kept)


def padded(given: Sequence[Sequence[int]]) -> Tensor:
    """Rows of tokens as one tensor (B, L) int64, L the longest.

    Example:
        >>> padded([[3, 4], [5]])
        tensor([[3, 4],
                [5, 0]])
    """
    width = max(map(len, given))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in given])


def renaming(kinds: int, own: Tensor, names: Tensor) -> Tensor:
    """What each token becomes in each of T episodes: (T, kinds) int64.

    Args:
        kinds: of tokens that there are.
        own: tokens that get other names, (n,).
        names: these, (T, n).

    Example:
        >>> renaming(6, torch.tensor([3, 4]), torch.tensor([[4, 3], [5, 4]]))
        tensor([[0, 1, 2, 4, 3, 5],
                [0, 1, 2, 5, 4, 5]])
    """
    return torch.arange(kinds).repeat(len(names), 1).index_copy(1, own, names)


def renamed(x: Tensor, table: Tensor) -> Tensor:
    """Tokens (T, ...) under each episode's `renaming` (T, kinds)."""
    return table.gather(1, x.flatten(1)).view_as(x)
