"""Prior-fitted networks: how a table is read, against numpy; passes, against plain ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm, percentileofscore
from torch import Tensor
from torch.testing import assert_close

import tegu
from tegu import keys
from tegu.datasets import SyntheticTables
from tegu.engine.trees import map_tensors
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.learners import PFN
from tegu.learners.pfn import fitted, inverse_root, normal_scores, read
from tegu.models import Mlp, TableTransformer

TABLES = SyntheticTables(n_support=14, least_support=9, n_query=4, n_way=4, n_features=5)
KEYS = keys.fold(keys.key(3), torch.arange(3))


@pytest.fixture
def learner() -> PFN:
    model = TableTransformer(4, 10, width=8, layers=2, heads=2, hidden=12).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return PFN(model=model)


@pytest.fixture
def episodes() -> Episode:
    batch = TABLES.episodes(torch.arange(3))
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, batch)


def read_by_numpy(support: np.ndarray, asked: np.ndarray, F: int) -> np.ndarray:
    """Both forms of `asked`, column by column, with the root by eigenvectors."""

    def soft(z: np.ndarray) -> np.ndarray:
        return np.where(abs(z) > 3, np.sign(z) * (3 + np.log(np.maximum(abs(z), 3) - 2)), z)

    varying = [f for f in range(support.shape[1]) if len(set(support[:, f])) > 1]
    mean, deviation = support[:, varying].mean(0), support[:, varying].std(0)
    known, z = soft((support[:, varying] - mean) / deviation), None
    z = soft((asked[:, varying] - mean) / deviation)
    n, columns = len(support), len(varying)
    share = columns / (columns + n)
    values, vectors = np.linalg.eigh((1 - share) * known.T @ known / n + share * np.eye(columns))
    white = z @ (vectors / np.sqrt(values)) @ vectors.T
    out = np.zeros((2, len(asked), F))
    out[0][:, varying], out[1][:, varying] = z, white
    return np.concatenate(out, -1) * np.sqrt(F / columns)


def scores_by_scipy(support: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Normal scores of `asked`, number by number."""
    percent = [
        [percentileofscore(support[:, f], row[f], kind="mean") for f in range(len(row))]
        for row in asked
    ]
    half = 0.5 / len(support)
    return norm.ppf(np.clip(np.array(percent) / 100, half, 1 - half))


def raw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A table as users have it: one constant column, scales far apart, an outlier."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(40, 5)) @ generator.normal(size=(5, 5))
    x[:, 2] = 7.0
    x[3, 1] = 60.0
    x = x * [1e-6, 1.0, 1.0, 1e9, 40.0] + [0.0, 1e4, 0.0, 0.0, -3.0]
    return x, generator.normal(size=(6, 5)) * [1e-6, 1.0, 1.0, 1e9, 40.0]


def test_a_table_is_read_as_numpy_reads_it() -> None:
    x, asked = raw()
    padded = torch.cat([torch.tensor(x), torch.full((9, 5), 1e12, dtype=torch.float64)])
    reading = fitted(padded, torch.arange(49) < 40)
    found = read(reading, torch.tensor(asked), 8)
    assert_close(found, torch.tensor(read_by_numpy(x, asked, 8)), rtol=1e-7, atol=1e-8)


def test_normal_scores_are_scipys() -> None:
    x, asked = raw()
    x[5:9], x[10, 0] = x[0], asked[0, 0]  # equal numbers, within and across
    padded = torch.cat([torch.tensor(x), torch.full((9, 5), torch.nan, dtype=torch.float64)])
    for rows in (asked, x):
        found = normal_scores(torch.tensor(rows), padded, torch.arange(49) < 40)
        assert_close(found, torch.tensor(scores_by_scipy(x, rows)))


def test_a_second_view_does_not_see_how_numbers_are_spaced(learner: PFN) -> None:
    """Squeezed column by column, in the same order: the same normal scores, other numbers."""
    learner = replace(learner, views=2)
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12)
    known = [Examples(one, y % 4, torch.ones(12).bool()) for one in (x, x.exp())]
    params = learner.init()
    first, second = (learner.adapt(params, one, KEYS[0], training=False) for one in known)
    assert_close(first["scores"], second["scores"])
    one, other = (map_tensors(lambda m: m[1], s["memory"]) for s in (first, second))
    assert_close(one, other)
    assert not torch.equal(first["reading"]["mean"], second["reading"]["mean"])


def test_numbers_of_any_size_are_read_in_32_bits_too() -> None:
    x, _ = raw()
    for size in (1e-25, 1.0, 1e25):
        with np.errstate(all="raise"):
            reading = fitted(
                torch.tensor(x / [1e-6, 1, 1, 1e9, 40]).float() * size, torch.ones(40).bool()
            )
            assert bool((reading["gain"] > 0).tolist() == [True, True, False, True, True])
            assert all(bool(value.isfinite().all()) for value in reading.values())


def test_inverse_root_of_badly_conditioned_matrices() -> None:
    """Eigenvalues as far apart as shrinkage by at least 1/1000 leaves those of 32 columns."""
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))
    for least in (0.5, 0.01):
        values = np.geomspace(least, 32, 32)
        matrix, expected = (q * values) @ q.T, (q / np.sqrt(values)) @ q.T
        assert_close(
            inverse_root(torch.tensor(matrix)), torch.tensor(expected), rtol=1e-6, atol=1e-6
        )


def by_hand(learner: PFN, episode: Episode, orders: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Probabilities of the queries, averaged over views, by calls of the model."""
    (x, y, seen), query = episode.support, episode.query.x
    x, y = x[seen], y[seen]
    total = torch.zeros(len(query), 4, dtype=torch.float64)
    for view, (columns, classes) in enumerate(orders):
        support, rows = x.numpy(), query.numpy()
        if view % 2:
            support, rows = scores_by_scipy(support, support), scores_by_scipy(support, rows)
        known, asked = (torch.tensor(read_by_numpy(support, r, 5)) for r in (support, rows))
        known, asked = (
            torch.stack([r[:, c] for c in [*columns, *(columns + 5)]], 1) for r in (known, asked)
        )
        memory = learner.model.remember(known, classes[y], torch.ones(len(y), dtype=torch.bool))
        scores = learner.model(asked, memory).softmax(-1)
        for n in range(4):
            total[:, n] += scores[:, classes[n]]
    return total / len(orders)


@pytest.mark.parametrize("views", [1, 3])
def test_answers_are_those_of_plain_passes(learner: PFN, episodes: Episode, views: int) -> None:
    """Padded rows left out, one view after another; the first view is the order as it is."""
    learner, params = replace(learner, views=views), learner.init()
    engine = Vectorised(learner, vectorise="vmap")
    state = engine.adapt(params, episodes.support, KEYS)
    found = engine.predict(params, state, episodes.query).log_softmax(-1)
    slow = Vectorised(learner, vectorise="loop")
    looped = slow.predict(params, slow.adapt(params, episodes.support, KEYS), episodes.query)
    assert_close(looped.log_softmax(-1), found)
    for t in range(3):
        orders = list(zip(state["columns"][t], state["classes"][t], strict=True))
        assert orders[0][0].tolist() == [0, 1, 2, 3, 4]
        assert orders[0][1].tolist() == [0, 1, 2, 3]
        assert len({tuple(columns.tolist()) for columns, _ in orders}) == views
        with torch.no_grad():
            expected = by_hand(learner, select(episodes, t), orders).log()
        present = sorted(set(episodes.support.y[t][episodes.support.mask[t]].tolist()))
        assert_close(found[t][:, present], expected[:, present], rtol=1e-6, atol=1e-6)
        absent = [n for n in range(4) if n not in present]
        assert not absent or float(found[t][:, absent].max()) < -1e30


@pytest.mark.parametrize("views", [1, 3])
def test_meta_gradient_is_that_of_plain_passes(learner: PFN, episodes: Episode, views: int) -> None:
    """In training there is one view, in a random order."""
    params = learner.init()
    grads, loss = Vectorised(replace(learner, views=views)).outer_gradient(params, episodes, KEYS)
    losses = []
    for t in range(3):
        one = select(episodes, t)
        columns, classes = learner._orders(KEYS[t], training=True)
        assert columns[0].tolist() != [0, 1, 2, 3, 4]
        found = by_hand(learner, one, [(columns[0], classes[0])])
        asked = one.query.mask.nonzero()[:, 0]
        losses.append(-found[asked, one.query.y[asked]].log().mean())
    expected = sum(losses) / 3
    assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-8)
    wanted = torch.autograd.grad(expected, list(learner.model.parameters()))
    for (name, _), grad in zip(learner.model.named_parameters(), wanted, strict=True):
        assert_close(grads[name], grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.fixture
def learned(learner: PFN) -> tegu.MetaLearned:
    return tegu.MetaLearned(learner, learner.init())


def test_raw_tables_with_any_labels(learned: tegu.MetaLearned) -> None:
    """Units, constant columns and the names of classes do not matter to what is answered."""
    x, asked = raw()
    names = np.array(["setosa", "virginica", "other"])[np.arange(40) % 3]
    adapted = learned.adapt(x, names)
    assert adapted.labels == ("setosa", "virginica", "other")
    assert set(adapted.predict(asked)) <= set(names)
    expected = adapted.predict_proba(asked)
    assert_close(expected.sum(1), torch.ones(6, dtype=torch.float64))
    assert expected.shape == (6, 3)
    unit, shift = np.array([5.0, 1e3, 2.0, 1e-7, 1.0]), np.array([0.0, 3.0, 1.0, 0.0, -9.0])
    other = learned.adapt(x * unit + shift, names.tolist()).predict_proba(asked * unit + shift)
    assert_close(other, expected, rtol=1e-6, atol=1e-7)
    fewer = learned.adapt(x[:, :2], names).predict_proba(asked[:, :2])
    assert_close(
        learned.adapt(np.insert(x[:, :2], 2, 3.0, 1), names).predict_proba(
            np.insert(asked[:, :2], 2, 3.0, 1)
        ),
        fewer,
    )
    assert not torch.allclose(fewer, expected)


def test_a_single_row_and_constant_tables_give_finite_answers(learned: tegu.MetaLearned) -> None:
    for x, y in (([[1.0, 2.0]], ["a"]), ([[1.0, 2.0]] * 3, ["a", "b", "a"])):
        found = learned.adapt(x, y).predict_proba([[5.0, -2.0]])
        assert bool(found.isfinite().all())
        assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_bad_tables(learned: tegu.MetaLearned) -> None:
    x = np.zeros((4, 6))
    with pytest.raises(InputError, match="a table of 6 columns; expected at most 5"):
        learned.adapt(x, [0, 1, 0, 1])
    adapted = learned.adapt(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(InputError, match="a table of 3 columns; expected the 4 of the"):
        adapted.predict(np.eye(3))
    with pytest.raises(InputError, match="5 classes for a model with 4 outputs"):
        learned.adapt(np.eye(5), range(5))
    x[2, 1] = np.nan
    with pytest.raises(InputError, match="x holds NaN or infinity in row 2"):
        learned.adapt(x[:, :5], [0, 1, 0, 1])


@pytest.mark.parametrize("settings", [{"views": 0}])
def test_bad_settings(learner: PFN, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="views is 0; expected at least 1"):
        replace(learner, **settings)


def test_a_small_network_learns_the_prior() -> None:
    """On tables it never saw: better than new, and than the votes of shares alone."""
    tasks = SyntheticTables(n_support=40, n_query=20, n_way=3, n_features=4, families=("linear",))
    model = TableTransformer(3, 8, width=16, layers=1, heads=2, hidden=16)
    learned = tegu.meta_train(
        PFN(model=model), tasks, meta_iterations=60, meta_batch=16, outer_lr=0.01
    )
    unseen = replace(tasks, split="meta_test")
    (after,) = learned.evaluate(unseen, episodes=64)
    (before,) = tegu.MetaLearned(learned.learner, learned.learner.init()).evaluate(
        unseen, episodes=64
    )
    assert after.value > before.value + 0.05


def test_a_network_that_reads_no_tables() -> None:
    with pytest.raises(InputError, match="Mlp without `n_way`"):
        PFN(model=Mlp(4, 3))
