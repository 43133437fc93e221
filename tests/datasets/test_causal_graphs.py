"""Worlds against exact enumeration of their distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.causal_graphs import (
    FAMILIES,
    CausalGraphs,
    Mechanisms,
    belief_entropy,
    graph,
    structural_distance,
)
from tegu.errors import InputError


def plain(field: Mechanisms, edges: list[list[float]], i: int, row: tuple[int, ...]) -> list[float]:
    """p(x_i = . | row), number by number, from networks (k, ...) of three categories."""
    inputs = [edges[i][j] * (row[j] == c) for j in range(len(row)) for c in range(3)]
    hidden = [
        float(b) + sum(a * float(w) for a, w in zip(inputs, column, strict=True))
        for column, b in zip(field.inner[i].T, field.inner_bias[i], strict=True)
    ]
    hidden = [max(value, 0.1 * value) for value in hidden]
    logits = [
        float(b) + sum(a * float(w) for a, w in zip(hidden, column, strict=True))
        for column, b in zip(field.outer[i].T, field.outer_bias[i], strict=True)
    ]
    exps = [math.exp(value) for value in logits]
    return [value / sum(exps) for value in exps]


def joint(field: Mechanisms, edges: list[list[float]], k: int) -> Tensor:
    """Probability of each of 3^k rows, in the order of itertools.product."""
    out = []
    for row in itertools.product(range(3), repeat=k):
        out.append(math.prod(plain(field, edges, i, row)[row[i]] for i in range(k)))
    return torch.tensor(out, dtype=torch.float64)


def counts(x: Tensor, k: int) -> Tensor:
    """Share of each of 3^k rows among (S, k)."""
    number = (x.long() * 3 ** torch.arange(k - 1, -1, -1)).sum(-1)
    return number.bincount(minlength=3**k).double() / len(x)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_graphs_have_no_cycle(family: str, k: int) -> None:
    found = graph(family, k, keys.key(3, k))
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert not torch.linalg.matrix_power(found, k).any()  # no path of k edges


def test_families() -> None:
    """Numbers of parents, in ascending order: whatever order the variables are in."""
    expected = {
        "chain": [0, 1, 1, 1, 1],
        "fork": [0, 1, 1, 1, 1],
        "collider": [0, 0, 0, 0, 4],
        "jungle": [0, 1, 1, 2, 2],
        "full": [0, 1, 2, 3, 4],
    }
    children = {"chain": 1, "fork": 4, "collider": 1, "jungle": 4, "full": 4}
    for family, parents in expected.items():
        found = graph(family, 5, keys.key(1, family))
        assert sorted(found.sum(1).tolist()) == parents
        assert int(found.sum(0).max()) == children[family]


def test_random_graphs_have_the_expected_number_of_parents() -> None:
    found = torch.stack([graph("random", 5, keys.key(i), parents=1.5) for i in range(400)])
    mean = float(found.sum(-1).mean())
    assert abs(mean - 1.5) < 4 * (10 * 0.75 * 0.25) ** 0.5 / 5 / 20  # four standard errors
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("family", ["collider", "jungle"])
def test_rows_have_the_joint_distribution(family: str) -> None:
    world = CausalGraphs(n_shot=1, n_query=40_000, family=family, variables=3)
    rows = world.episodes(torch.arange(1)).query.x[0]
    expected = joint(world.mechanisms, world.graph.tolist(), 3)
    error = (counts(rows, 3) - expected).abs()
    assert bool((error < 5 * (expected / 40_000).sqrt() + 1e-4).all())
    torch.testing.assert_close(expected.sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize("kind", ["soft", "perfect"])
def test_an_intervention_changes_one_conditional(kind: str) -> None:
    """The rows follow the joint distribution with the target's network exchanged."""
    world = CausalGraphs(n_shot=40_000, n_query=1, variables=3, family="full", intervention=kind)
    parents = world.graph.sum(1)
    index = next(i for i in range(20) if parents[world.targets(torch.tensor([i]))] == 2)
    index = torch.tensor([index])
    targets, new = world.interventions(index)
    target = int(targets[0])
    fields = {name: value.clone() for name, value in vars(world.mechanisms).items()}
    for name, value in vars(new).items():
        fields[name][target] = value[0, 0]
    expected = joint(Mechanisms(**fields), world.graph.tolist(), 3)
    found = counts(world.episodes(index).support.x[0], 3)
    assert bool(((found - expected).abs() < 5 * (expected / 40_000).sqrt() + 1e-4).all())
    usual = joint(world.mechanisms, world.graph.tolist(), 3)
    assert float((found - usual).abs().max()) > 0.02
    if kind == "perfect":
        rows = itertools.product(range(3), repeat=3)
        given = [plain(Mechanisms(**fields), world.graph.tolist(), target, row) for row in rows]
        assert all(one == given[0] for one in given)


def test_targets_are_uniform_and_told_to_nobody_but_the_judge() -> None:
    world = CausalGraphs(variables=4)
    shares = world.targets(torch.arange(4000)).bincount().double() / 4000
    assert bool(((shares - 0.25).abs() < 0.03).all())
    assert not any(bool(half.y.any()) for half in world.episodes(torch.arange(50)))


def test_an_episode_is_a_function_of_its_number() -> None:
    world = CausalGraphs(n_shot=5, n_query=4, family="jungle", variables=4)
    together, alone = world.episodes(torch.tensor([3, 8])), world.episodes(torch.tensor([8]))
    assert torch.equal(together.support.x[1], alone.support.x[0])
    assert torch.equal(together.query.x[1], alone.query.x[0])
    test = CausalGraphs("meta_test", n_shot=5, n_query=4, family="jungle", variables=4)
    assert torch.equal(test.graph, world.graph)
    assert not torch.equal(test.episodes(torch.tensor([8])).support.x, alone.support.x)


def test_changed_queries_come_after_the_intervention() -> None:
    usual = CausalGraphs(n_query=4000, family="chain", n_shot=4000)
    changed = CausalGraphs(n_query=4000, family="chain", n_shot=4000, changed_query=True)
    index = torch.arange(4)
    for one, same in ((usual, False), (changed, True)):
        support, query = one.episodes(index)
        far = [
            float((counts(a, 3) - counts(b, 3)).abs().sum())
            for a, b in zip(support.x, query.x, strict=True)
        ]
        assert (max(far) < 0.1) == same


def test_structural_distance_by_hand() -> None:
    """A missing edge and a false one count one each, a reversed one two."""
    truth = torch.zeros(4, 4)
    truth[1, 0] = truth[2, 1] = truth[3, 2] = 1
    missing, false, turned = truth.clone(), truth.clone(), truth.clone()
    missing[1, 0] = 0.4
    false[3, 0] = 0.6
    turned[1, 0], turned[0, 1] = 0.1, 0.9
    found = structural_distance(torch.stack([truth, missing, false, turned]), truth)
    assert found.tolist() == [0, 1, 1, 2]


def test_belief_entropy_by_hand() -> None:
    belief = torch.tensor([[0.0, 0.2], [0.9, 0.0]])
    truth = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    expected = -(math.log(0.9) + math.log(0.8)) / 2
    assert float(belief_entropy(belief, truth)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"family": "ring"}, "ring"),
        ({"intervention": "hard"}, "hard"),
        ({"split": "training"}, "training"),
        ({"variables": 1}, "variables is 1"),
        ({"n_shot": 0}, "n_shot is 0"),
    ],
)
def test_refused_settings(settings: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        CausalGraphs(**settings)  # type: ignore[arg-type]
