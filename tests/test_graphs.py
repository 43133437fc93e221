"""The graph of a table, and many worlds at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets import CausalGraphs
from tegu.datasets.causal_graphs import structural_distance
from tegu.engine.vectorise import Vectorised
from tegu.errors import InputError, InputTypeError
from tegu.graphs import TableTasks, discretised, learn, recover
from tegu.learners import CausalGraph
from tegu.models import MaskedMlps


def copied(source: Tensor, key: Tensor) -> Tensor:
    """The source's category with probability 0.8, else 0, 1 or 2, of falling probability."""
    u = keys.uniform(key, 2 * len(source)).reshape(2, -1)
    return torch.where(u[0] < 0.8, source, (3 * u[1] ** 2).floor())


def chain(n: int, key: Tensor, target: int = -1, value: int = 0) -> Tensor:
    """n rows of 2 -> 0 -> 1; the target, if any, is mostly set to a value."""
    columns: dict[int, Tensor] = {}
    source = (3 * keys.uniform(keys.fold(key, 9), n) ** 2).floor()
    for i in (2, 0, 1):
        if i == target:
            source = torch.full_like(source, value)
        columns[i] = source = copied(source, keys.fold(key, i))
    return torch.stack([columns[i] for i in range(3)], 1)


def test_a_table_gives_its_graph() -> None:
    """2 -> 0 -> 1 from six interventions of 150 rows; numbers say nothing of their targets."""
    tables, environments = [chain(900, keys.key(1))], [torch.zeros(900).long()]
    for number in range(6):
        tables.append(chain(150, keys.key(2, number), target=number % 3, value=1 + number // 3))
        environments.append(torch.full((150,), 20 - 7 * number))
    table = torch.cat(tables)
    belief = recover(table, torch.cat(environments), meta_iterations=200)
    truth = torch.zeros(3, 3)
    truth[0, 2] = truth[1, 0] = 1
    assert int(structural_distance(belief, truth)) == 0
    torch.testing.assert_close(belief, truth, rtol=0, atol=0.4)


def test_worlds_at_once_are_those_of_the_engine_alone() -> None:
    worlds = [CausalGraphs(n_shot=8, n_query=8, family="fork", world=i) for i in range(2)]
    model = MaskedMlps(3, 3, hidden=4)
    learner = CausalGraph(model=model, graphs=4, margin=0.0, rounds=1)
    found = learn(learner, worlds, meta_iterations=6, meta_batch=3)
    assert found.beliefs.shape == (6, 2, 3, 3)
    for number, world in enumerate(worlds):
        engine = Vectorised(learner)
        params = learner.init()
        outer = engine.outer_state(params)
        root = keys.fold(keys.key(0, "graphs"), number)
        for i in range(6):
            index = torch.arange(3 * i, 3 * i + 3)
            params, outer, loss = engine.update(
                params,
                outer,
                world.episodes(index),
                keys.fold(root, index),
                outer_lr=0.02 * (1 - i / 6),
                done=i / 6,
            )
            torch.testing.assert_close(found.losses[i, number], loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.beliefs[-1, number], learner.belief(params))
    assert float((found.beliefs[0] - found.beliefs[-1]).abs().max()) > 0.01


def test_table_episodes_hold_rows_of_one_intervention() -> None:
    table = torch.tensor([[0.0, 5], [1, 5], [2, 5], [0, 6], [1, 6], [0, 7]])
    environments = torch.tensor([2, 2, 2, 0, 0, 1])
    tasks = TableTasks(table, environments, n_shot=30, n_query=20)
    episodes = tasks.episodes(torch.arange(50))
    assert bool((episodes.query.x[..., 1] == 6).all())
    second = episodes.support.x[..., 1]
    assert bool((second == second[:, :1]).all())
    assert set(second.unique().tolist()) == {5.0, 7.0}
    assert set(episodes.support.x[second[:, 0] == 5][..., 0].unique().tolist()) == {0.0, 1.0, 2.0}


def test_continuous_columns_are_cut_at_quantiles() -> None:
    column = torch.arange(30.0)
    table = torch.stack([column, column % 4 * 7 - 3], 1)
    found = discretised(table, column >= 15, bins=3)
    assert found[:, 0].tolist() == [0] * 19 + [1] * 7 + [2] * 4  # cut at 18.5 and 25.5
    assert found[:, 1].tolist() == [i % 4 for i in range(30)]


def test_refused_tables() -> None:
    good = [[0.0, 1.0], [1.0, 0.0]] * 60
    marks = [0] * 60 + [1] * 60
    for table, environments, told in (
        ([[float("nan"), 1.0], *good[1:]], marks, "row 0, column 0"),
        ([[1.0, x[1]] for x in good], marks, "column 0 has one value"),
        (good, marks[:-1], "120 rows and 119"),
        (good, [1] * 120, "0 for rows without"),
        (good, [0] * 120, "at least one other"),
        (good, [0] * 100 + [1] * 20, "environment 1 has 20 rows"),
        (good, [0.5] * 120, "a whole number"),
        ([1.0] * 120, marks, "rows of at least two columns"),
    ):
        with pytest.raises(InputError, match=told):
            recover(table, environments)
    with pytest.raises(InputTypeError, match="without numbers"):
        recover([["a", "b"]] * 120, marks)


def test_environments_by_name_are_refused_and_frames_are_tables() -> None:
    for given in (["none", "drug"], np.array(["none", "drug"])):
        with pytest.raises(InputTypeError, match=r"environments that are a .* of no numbers"):
            recover([[0, 1], [1, 0]], given)

    class Frame:
        """What numpy makes a table of."""

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            return np.array([[0, 1], [1, 0], [1, 1]])

    assert discretised(Frame()).tolist() == [[0, 1], [1, 0], [1, 1]]
