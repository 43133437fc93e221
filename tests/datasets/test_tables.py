"""Synthetic tables: that number i decides a table, what is drawn, and bad requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from tegu import keys
from tegu.datasets.tables import CHUNK, FAMILIES, Shape, SyntheticTables, _labels, _parts
from tegu.engine.trees import map_tensors
from tegu.episodes import select
from tegu.errors import InputError

SMALL = SyntheticTables(n_support=30, n_query=10, n_features=12)


def test_number_i_decides_a_table() -> None:
    index = torch.arange(CHUNK + 8)
    batch = SMALL.episodes(index)
    back = SMALL.episodes(index.flip(0))
    for i in (0, 3, CHUNK - 1, CHUNK, CHUNK + 7):
        alone = select(SMALL.episodes(index[i : i + 1]), 0)
        for other in (select(batch, i), select(back, len(index) - 1 - i)):
            for half, same in zip(other, alone, strict=True):
                assert_close(half.x, same.x, rtol=1e-5, atol=1e-5)
                assert torch.equal(half.y, same.y)
                assert torch.equal(half.mask, same.mask)


@pytest.mark.parametrize("other", [{"split": "meta_test"}, {"seed": 1}])
def test_splits_and_seeds_have_tables_of_their_own(other: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"n_support": 30, "n_query": 10, "n_features": 12, **other}
    one, two = (
        SMALL.episodes(torch.arange(4)),
        SyntheticTables(**settings).episodes(torch.arange(4)),
    )
    for t in range(4):
        assert not torch.allclose(one.query.x[t], two.query.x[t])


def test_padding_and_what_is_masked() -> None:
    support, query = SyntheticTables(n_support=40, n_query=20).episodes(torch.arange(300))
    sizes = support.mask.sum(1)
    assert bool((support.mask == (torch.arange(40) < sizes[:, None])).all())
    assert int(sizes.min()) < 14
    assert int(sizes.max()) == 40
    assert float(support.x[~support.mask].abs().max()) == 0
    assert int(support.y[~support.mask].abs().max()) == 0
    for t in range(300):
        known = set(support.y[t][support.mask[t]].tolist())
        assert query.mask[t].tolist() == [y in known for y in query.y[t].tolist()]


def test_columns_are_counted_from_one_and_the_others_are_zero() -> None:
    tasks = SyntheticTables(n_features=12)
    x = tasks.episodes(torch.arange(400)).query.x
    filled = (x != 0).any(1).sum(1)  # a column may be constant, hardly ever at zero
    assert set(filled.tolist()) == set(range(1, 13))
    assert float(x.abs().amax((0, 1)).min()) > 0
    assert bool(x.isfinite().all())


def test_classes_are_two_to_ten_of_unequal_sizes_and_any_name() -> None:
    """A third have two classes; others two to ten alike; names are dealt at random."""
    shape = Shape(keys.fold(keys.key(0), torch.arange(4000)), 100, 10, 3)
    counts = torch.bincount(shape.n_classes, minlength=11)[2:] / 4000
    expected = torch.full((9,), 2 / 3 / 9) + torch.tensor([1 / 3] + [0.0] * 8)
    assert_close(counts, expected, atol=0.03, rtol=0)
    shares = shape._shares(200)
    assert_close(shares.sum(1), torch.ones(4000))
    assert bool((shares[~shape.classes] == 0).all())
    two = shares[shape.n_classes == 2][:, :2].amax(1)
    assert float(two.min()) < 0.55
    assert float(two.max()) > 0.9
    batch = SyntheticTables(n_way=4, n_support=40).episodes(torch.arange(2000))
    first = torch.bincount(batch.query.y.flatten(), minlength=4) / batch.query.y.numel()
    # Two classes in 1/3 + 2/9 of the tables, three and four in 2/9 each.
    two, three, four = 5 / 9, 2 / 9, 2 / 9
    low, mid, top = two / 2 + three / 3 + four / 4, three / 3 + four / 4, four / 4
    assert_close(first, torch.tensor([low, low, mid, top]), atol=0.02, rtol=0)


def test_names_of_classes_are_dealt_at_random_and_some_labels_are_wrong() -> None:
    at = keys.fold(keys.key(4), torch.arange(14_000))
    at = at[Shape(at, 1, 4, 1).n_classes == 4][:3000]
    named = _labels(at, torch.arange(4).repeat(3000, 10), 4)
    for n in range(4):
        found = torch.bincount(named[:, n], minlength=4) / 3000
        assert_close(found, torch.full((4,), 0.25), atol=0.04, rtol=0)
    alike = (named.unflatten(1, (10, 4)) == named[:, None, :4]).all(-1).all(-1)
    # Shares of wrong labels are uniform up to 0.15 in the last third; some spare all 40 rows.
    spared = (1 - 0.85**41) / (41 * 0.15)
    assert abs(float(alike.double().mean()) - (2 + spared) / 3) < 0.025
    right = named.unflatten(1, (10, 4)).mode(1).values.sort(-1).values == torch.arange(4)
    assert float(right.all(-1).double().mean()) > 0.99


def test_ranges_of_a_score_have_the_shares_that_were_drawn() -> None:
    shape = Shape(keys.fold(keys.key(1), torch.arange(50)), 1000, 5, 3)
    score = shape.normal(300, 1000)
    y, shares = shape.cut(310, score), shape._shares(310)
    for t in range(50):
        found = torch.bincount(y[t], minlength=5) / 1000
        assert_close(found, shares[t], atol=0.002, rtol=0)
        order = score[t].argsort()
        assert bool((y[t][order].diff() >= 0).all())


def test_classes_are_one_two_or_three_gaussians_alike() -> None:
    shape = Shape(keys.fold(keys.key(5), torch.arange(3000)), 60, 4, 3)
    most = _parts(shape, 3).amax(1)
    assert_close(torch.bincount(most) / 3000, torch.full((3,), 1 / 3), atol=0.03, rtol=0)


def test_normal_numbers_are_normal() -> None:
    shape = Shape(keys.fold(keys.key(2), torch.arange(40)), 1, 2, 1)
    drawn = shape.normal(1, 5000).double().numpy()
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.var() - 1) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.1
    neighbours = np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_can_be_learnt_from(family: str) -> None:
    """Five neighbours beat the largest class by five points on average, but are not perfect."""
    tasks = SyntheticTables("meta_val", n_support=150, least_support=150, families=(family,))
    batch, gains, right = tasks.episodes(torch.arange(60)), [], []
    for t in range(60):
        support, query = select(map_tensors(lambda x: x.numpy(), batch), t)
        x, y, asked, truth = support.x, support.y, query.x[query.mask], query.y[query.mask]
        deviation = x.std(0) + 1e-6
        nearest = KNeighborsClassifier(5).fit(x / deviation, y).predict(asked / deviation)
        right.append((nearest == truth).mean())
        gains.append(right[-1] - (truth == np.bincount(y).argmax()).mean())
    assert np.mean(gains) > 0.05
    assert np.mean(right) < 0.95


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "train"}, "unknown split 'train'"),
        ({"families": ("tree",)}, "unknown family 'tree'"),
        ({"families": ()}, "no families"),
        ({"n_way": 1}, "n_way is 1; expected at least 2"),
        ({"n_support": 5}, "n_support is 5; expected at least 10"),
        ({"n_query": 0}, "n_query is 0; expected at least 1"),
        ({"n_features": 0}, "n_features is 0; expected at least 1"),
    ],
)
def test_bad_requests(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SyntheticTables(**settings)
