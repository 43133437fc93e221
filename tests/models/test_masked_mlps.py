"""The stacked networks against one plain network at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tegu.errors import InputError
from tegu.models import MaskedMlps


def plain(net: MaskedMlps, row: list[int], graph: list[list[int]], i: int) -> float:
    """log p(x_i | parents) of one row, number by number."""
    k, n, h = net.variables, net.n_categories, net.inner_bias.shape[1]
    inputs = [float(graph[i][j] and row[j] == c) for j in range(k) for c in range(n)]
    hidden = []
    for u in range(h):
        total = float(net.inner_bias[i, u])
        total += sum(inputs[a] * float(net.inner[i, a, u]) for a in range(k * n))
        hidden.append(total if total > 0 else 0.1 * total)
    logits = [
        float(net.outer_bias[i, c]) + sum(hidden[u] * float(net.outer[i, u, c]) for u in range(h))
        for c in range(n)
    ]
    return logits[row[i]] - math.log(sum(math.exp(value) for value in logits))


@pytest.fixture
def net() -> MaskedMlps:
    return MaskedMlps(3, 4, hidden=5, seed=1).double().requires_grad_(False)


@pytest.fixture
def rows() -> Tensor:
    return torch.tensor([[0, 1, 2], [3, 3, 0], [2, 0, 1], [1, 2, 3]], dtype=torch.float64)


GRAPHS = torch.tensor(
    [
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
        [[0, 0, 1]] * 2 + [[0] * 3],
    ]
)


def test_log_likelihoods_are_those_of_single_networks(net: MaskedMlps, rows: Tensor) -> None:
    found = net(rows, GRAPHS.double())
    expected = [
        [[plain(net, row, graph, i) for i in range(3)] for row in rows.long().tolist()]
        for graph in GRAPHS.tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_variables_that_are_no_parents_have_no_say(net: MaskedMlps, rows: Tensor) -> None:
    """With the graph 0 -> 1: another value of 2 changes the likelihood of 2 alone."""
    graph = torch.zeros(1, 3, 3, dtype=torch.float64)
    graph[0, 1, 0] = 1
    other = torch.cat([rows[:, :2], (rows[:, 2:] + 1) % 4], 1)
    before, after = net(rows, graph), net(other, graph)
    torch.testing.assert_close(before[..., :2], after[..., :2], rtol=0, atol=0)
    assert not torch.allclose(before[..., 2], after[..., 2])


def test_initial_weights_are_orthogonal(net: MaskedMlps) -> None:
    for weight in (*net.inner, *net.outer):
        wide = weight if len(weight) < weight.shape[1] else weight.T
        torch.testing.assert_close(wide @ wide.T, torch.eye(len(wide)).double(), atol=1e-6, rtol=0)


def test_refused_sizes() -> None:
    with pytest.raises(InputError, match="variables is 1"):
        MaskedMlps(1, 3)
