"""Episodes of unequal size in one batch."""

from __future__ import annotations

import pytest
import torch

from tegu.episodes import Episode, Examples, select, size, stack
from tegu.errors import InputError


def episode(n_support: int, n_query: int, fill: float) -> Episode:
    halves = [
        Examples.dense(torch.full((n, 2), fill), torch.arange(n)) for n in (n_support, n_query)
    ]
    return Episode(*halves)


def test_dense_examples_have_no_padding() -> None:
    labelled = Examples.dense(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    assert labelled.mask.tolist() == [True, True, True]
    regression = Examples.dense(torch.zeros(3, 2), torch.zeros(3, 5))
    assert regression.mask.shape == (3,)
    batch = Examples.dense(torch.zeros(4, 3, 2), torch.zeros(4, 3, dtype=torch.int64))
    assert batch.mask.shape == (4, 3)


def test_stack_pads_both_halves_and_says_so() -> None:
    batch = stack([episode(1, 3, 1.0), episode(3, 2, 2.0)])
    assert size(batch) == 2
    assert batch.support.x.shape == (2, 3, 2)
    assert batch.support.x[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert batch.support.mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.query.y.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.query.mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.support.x.dtype == torch.float32
    assert batch.support.y.dtype == torch.int64


def test_select_takes_one_some_or_any_episodes() -> None:
    batch = stack([episode(2, 1, float(i)) for i in range(4)])
    assert select(batch, 3).support.x.unique().tolist() == [3]
    assert select(batch, 3).support.mask.shape == (2,)
    assert select(batch, slice(1, 3)).query.x.unique().tolist() == [1, 2]
    assert select(batch, torch.tensor([2, 0])).support.x[:, 0, 0].tolist() == [2, 0]
    assert size(select(batch, slice(1, 3))) == 2


def test_select_undoes_stack() -> None:
    alone = [episode(2, 1, 5.0), episode(2, 1, 6.0)]
    for i, one in enumerate(alone):
        torch.testing.assert_close(select(stack(alone), i), one, rtol=0, atol=0)


def test_dense_examples_count_rows_whatever_the_targets() -> None:
    tokens = Examples.dense(torch.zeros(4, 3).long(), torch.zeros(4, 5).long())
    assert tokens.mask.shape == (4,)
    batch = Examples.dense(torch.zeros(2, 4, 3), torch.zeros(2, 4, 1))
    assert batch.mask.shape == (2, 4)
    assert Examples.dense(torch.zeros(4, 3).byte(), torch.zeros(4).long()).mask.shape == (4,)
    with pytest.raises(InputError, match=r"targets of shape \(4,\) that are numbers"):
        Examples.dense(torch.zeros(4, 3), torch.zeros(4))
