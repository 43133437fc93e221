"""Examples grouped by class: taking some of the classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tegu.datasets.classes import ClassDataset
from tegu.errors import InputError


def test_some_classes_keep_their_examples_and_their_groups(toy_data: ClassDataset) -> None:
    """Of 9, 5, 7, 6, 11, 5 and 8 examples; groups that are left are numbered anew."""
    grouped = replace(toy_data, groups=torch.tensor([4, 0, 4, 2, 2, 0, 1]))
    found = grouped.where(lambda name: name in "bdg")
    assert found.class_names == ("b", "d", "g")
    assert found.counts.tolist() == [5, 6, 8]
    assert found.groups is not None
    assert found.groups.tolist() == [0, 2, 1]
    rows = [*range(9, 14), *range(21, 27), *range(43, 51)]
    torch.testing.assert_close(found.examples, toy_data.examples[rows], rtol=0, atol=0)
    assert toy_data.where(lambda name: name == "a").groups is None


def test_no_class_left(toy_data: ClassDataset) -> None:
    with pytest.raises(InputError, match="none of the 7 classes of toy meta_train"):
        toy_data.where(lambda name: name == "z")
