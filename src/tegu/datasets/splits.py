"""The three splits of meta-learning, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from tegu.errors import unknown

SPLITS = ("meta_train", "meta_val", "meta_test")


def check_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """Refuses a split that there is not.

    Raises:
        InputError: with the nearest name.
    """
    if split not in splits:
        raise unknown("split", split, splits)
