"""Random numbers by key: published constants, ranges, uniformity, independence of batching."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

from tegu import keys


def test_the_first_words_of_splitmix64() -> None:
    """The finaliser's published sequence from seed 0."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    gamma, words = 0x9E3779B97F4A7C15, []
    for n in range(3):
        words.append(int(keys.key(n * gamma)) % (1 << 64))
    assert words == published


def test_keys_name_a_path() -> None:
    paths = [(), ("a",), ("b",), ("a", 0), ("a", 1), (0, "a"), (1,), ("a", "a")]
    found = {int(keys.key(seed, *path)) for seed in (0, 1, -1, 2**63) for path in paths}
    assert len(found) == 4 * len(paths)
    assert int(keys.key(3, "a", 5)) == int(keys.fold(keys.key(3, "a"), 5))


def test_whole_numbers_of_any_kind_are_seeds() -> None:
    for seed in (0, 7, -3, 2**62):
        assert keys.key(np.int64(seed)) == keys.key(seed)
    with pytest.raises(TypeError):
        keys.key(0.5)  # type: ignore[arg-type]


def test_fold_broadcasts() -> None:
    many = keys.fold(keys.key(0), torch.arange(4))
    assert many.tolist() == [int(keys.fold(keys.key(0), i)) for i in range(4)]
    table = keys.fold(many.unsqueeze(-1), torch.arange(3))
    assert table.shape == (4, 3)
    assert int(table[2, 1]) == int(keys.fold(many[2], 1))
    assert len(set(keys.fold(keys.key(0), torch.arange(100_000)).tolist())) == 100_000


@pytest.mark.parametrize("shape", [(), (4,), (4, 2)])
def test_parts_are_folds(shape: tuple[int, ...]) -> None:
    root = keys.fold(keys.key(0), torch.arange(8))[: max(1, math.prod(shape))].reshape(shape)
    found = keys.parts(root, 3)
    torch.testing.assert_close(found, torch.stack([keys.fold(root, i) for i in range(3)]))


def test_draws_stay_as_they_were() -> None:
    """A run that was stopped goes on with the episodes that it would have had."""
    at = keys.fold(keys.key(3, "meta_train"), torch.arange(2))
    assert keys.distinct(at, 1000, 5).tolist() == [
        [785, 608, 21, 827, 122],
        [902, 706, 950, 923, 586],
    ]
    assert keys.permutation(at, 5).tolist() == [[4, 3, 0, 2, 1], [1, 4, 3, 0, 2]]
    assert keys.bits(at, 1).tolist() == [[-2090719642762900258], [6332168060683142701]]


def test_bits_are_half_ones() -> None:
    words = keys.bits(keys.key(0), 4096)
    ones = torch.stack([(words >> i) & 1 for i in range(64)]).double().mean(1)
    assert bool(((ones - 0.5).abs() < 5 * 0.5 / 64).all())  # 5 standard errors of 4096 coins


def test_uniform_and_normal_have_their_moments() -> None:
    n = 100_000
    u, z = keys.uniform(keys.key(1), n, -2.0, 3.0), keys.normal(keys.key(2), n)
    assert u.dtype == z.dtype == torch.float64
    assert -2 <= float(u.min()) < -1.999
    assert 2.999 < float(u.max()) < 3
    assert float(u.mean()) == pytest.approx(0.5, abs=5 * (25 / 12 / n) ** 0.5)
    assert float(z.mean()) == pytest.approx(0, abs=5 / n**0.5)
    assert float(z.var()) == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert float((z.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.008)
    assert bool(z.isfinite().all())


def test_permutations_are_uniform() -> None:
    """Each of the six orders of three comes up a sixth of the time."""
    orders = keys.permutation(keys.fold(keys.key(0), torch.arange(6000)), 3)
    assert orders.sort(-1).values.unique(dim=0).tolist() == [[0, 1, 2]]
    found, counts = orders.unique(dim=0, return_counts=True)
    assert len(found) == 6
    assert bool(((counts - 1000).abs() < 5 * 30).all())  # 30: a little above one deviation


def test_distinct_is_a_uniform_draw_in_random_order() -> None:
    """Each of the 20 ordered pairs out of five comes up a twentieth of the time."""
    pairs = keys.distinct(keys.fold(keys.key(0), torch.arange(20_000)), 5, 2)
    found, counts = pairs.unique(dim=0, return_counts=True)
    assert len(found) == 20
    assert bool((found[:, 0] != found[:, 1]).all())
    assert bool(((counts - 1000).abs() < 5 * 32).all())


def test_distinct_takes_a_population_for_each_key() -> None:
    population = torch.tensor([3, 4, 1000, 10**12])
    drawn = keys.distinct(keys.fold(keys.key(0), torch.arange(4)), population, 3)
    assert sorted(drawn[0].tolist()) == [0, 1, 2]
    for row, size in zip(drawn.tolist(), population.tolist(), strict=True):
        assert len(set(row)) == 3
        assert all(0 <= item < size for item in row)
    assert int(drawn[3].max()) > 10**6


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: keys.bits(k, 5),
        lambda k: keys.uniform(k, 5),
        lambda k: keys.normal(k, 5),
        lambda k: keys.permutation(k, 5),
        lambda k: keys.distinct(k, 9, 5),
    ],
    ids=["bits", "uniform", "normal", "permutation", "distinct"],
)
def test_a_key_draws_the_same_alone_in_a_batch_and_under_vmap(draw) -> None:
    many = keys.fold(keys.key(0), torch.arange(7))
    alone = torch.stack([draw(one) for one in many])
    torch.testing.assert_close(draw(many), alone, rtol=0, atol=0)
    torch.testing.assert_close(vmap(draw)(many), alone, rtol=0, atol=0)
    assert len(alone.unique(dim=0)) == 7


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 26, 100, 101, 4096, 5000])
def test_a_shuffle_holds_each_number_once(n: int) -> None:
    root = keys.fold(keys.key(0), torch.arange(4))[:, None]
    orders = keys.shuffled(root, torch.arange(n), n)
    assert orders.sort(-1).values.tolist() == [list(range(n))] * 4
    assert n < 26 or len(orders.unique(dim=0)) == 4


@pytest.mark.parametrize(("n", "orders"), [(3, 6), (4, 24), (5, 120), (6, 720)])
def test_shuffles_of_few_are_uniform(n: int, orders: int) -> None:
    """Pearson's chi-square over all orders, 5 deviations above its mean at most."""
    found = keys.shuffled(keys.fold(keys.key(3), torch.arange(24_000))[:, None], torch.arange(n), n)
    counts = found.unique(dim=0, return_counts=True)[1].double()
    assert len(counts) == orders
    expected = 24_000 / orders
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < orders - 1 + 5 * (2 * (orders - 1)) ** 0.5


def test_shuffles_of_many_keep_no_trace_of_the_order() -> None:
    """Where the first number goes is uniform, and so is the step between neighbours."""
    n, shuffles = 5000, 50_000
    key = keys.fold(keys.key(1), torch.arange(shuffles))[:, None]
    pair = keys.shuffled(key, torch.tensor([0, 1]), n)
    for values in (pair[:, 0], (pair[:, 1] - pair[:, 0]) % n):
        counts = torch.bincount(values, minlength=n).double()[values.min() :]
        expected = shuffles / len(counts)
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi2 - len(counts)) < 5 * (2 * len(counts)) ** 0.5
    one = keys.shuffled(keys.key(5), torch.arange(n), n).double()
    for lag in (1, 2, 70, 71, 72):  # 71 is the width of a row of pairs
        assert abs(float(torch.corrcoef(torch.stack([one[:-lag], one[lag:]]))[0, 1])) < 5 / n**0.5


def test_a_place_of_a_vast_shuffle() -> None:
    n = 10**15 + 7
    place = torch.tensor([0, 1, n - 1, 123_456_789])
    alone = [int(keys.shuffled(keys.key(2), one, n)) for one in place]
    assert keys.shuffled(keys.key(2), place, n).tolist() == alone
    assert len(set(alone)) == 4
    assert all(0 <= x < n for x in alone)
    assert max(alone) > n // 1000
