"""The causal graph of a table, or of many worlds at once.

Row i, column j of a belief (k, k) is the probability that j is a direct cause of i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.engine.trees import map_tensors
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, InputTypeError, check_range
from tegu.inner import Params
from tegu.learners import CausalGraph
from tegu.models import MaskedMlps
from tegu.sampling import Tasks

UPDATES = 600  # of a belief, unless told
BLOCK = 16  # meta-iterations whose episodes are drawn together
CATEGORIES = 10  # a column with more different values than this is cut into bins
ROWS = 30  # least number of rows in an environment


@dataclass(frozen=True)
class Learnt:
    """What came of learning the graphs of W worlds.

    Args:
        params: of the learner, with a leading axis W.
        beliefs: (M, W, k, k) after each meta-iteration; row i, column j for j causing i.
        losses: (M, W).
    """

    params: Params = field(repr=False)
    beliefs: Tensor
    losses: Tensor = field(repr=False)


def learn(
    learner: CausalGraph,
    worlds: Sequence[Tasks],
    *,
    meta_iterations: int = UPDATES,
    meta_batch: int = 8,
    outer_lr: float = 0.02,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Learnt:
    """Meta-trains one learner in each of W worlds of equal size, all in one pass.

    The outer step of the engine is a pure function, and worlds have nothing in common: it
    is mapped over them. For small networks that costs little more than one world does.

    Args:
        learner: all worlds start from its initial parameters.
        worlds: where episodes come from.
        meta_iterations: outer updates.
        meta_batch: episodes for each.
        outer_lr: step size of the first, which falls to 0.
        seed: of the learner's random numbers.
        progress: told the number of updates done.
    """
    if meta_iterations < 1:
        raise InputError(f"{meta_iterations} updates", "1 or more", "Ask for 600, say.")
    engine, n = Vectorised(learner, vectorise="vmap"), len(worlds)
    device = worlds[0].episodes(torch.arange(1)).support.x.device
    start = {name: p.to(device) for name, p in learner.init().items()}
    params, outer = (
        {name: p.expand(n, *p.shape).clone() for name, p in values.items()}
        for values in (start, engine.outer_state(start))
    )
    root = keys.fold(keys.key(seed, "graphs"), torch.arange(n))[:, None]
    beliefs, losses = [], []
    for iteration in range(meta_iterations):
        place = iteration % BLOCK * meta_batch
        if not place:
            index = iteration * meta_batch + torch.arange(BLOCK * meta_batch)
            block = map_tensors(_stack, *(world.episodes(index) for world in worlds))
            folded = keys.fold(root, index).to(device)
        rows = slice(place, place + meta_batch)
        episodes = map_tensors(lambda x, rows=rows: x[:, rows], block)
        done = iteration / meta_iterations

        def update(params: Params, outer: Params, episodes: Episode, at: Tensor) -> Any:
            rate = outer_lr * (1 - done)  # noqa: B023, called within this iteration
            return engine.update(params, outer, episodes, at, outer_lr=rate, done=done)  # noqa: B023

        params, outer, loss = vmap(update)(params, outer, episodes, folded[:, rows])
        beliefs.append(vmap(learner.belief)(params))
        losses.append(loss)
        if progress:
            progress(iteration + 1)
    return Learnt(params, torch.stack(beliefs), torch.stack(losses))


def _stack(*tensors: Tensor) -> Tensor:
    return torch.stack(tensors)


@dataclass(frozen=True)
class TableTasks:
    """Episodes from a table: rows of one intervention, and rows without one.

    Args:
        table: (M, k) categories 0 to N - 1.
        environments: (M,) int64; 0 where nothing was intervened on, and a number for each
            intervention, whose target is not told.
        n_shot: rows of an intervention chosen at random, drawn with replacement.
        n_query: rows without, likewise.
        seed: of the sequence of episodes.
        split: has no meaning here.
    """

    table: Tensor
    environments: Tensor
    n_shot: int = 64
    n_query: int = 64
    seed: int = 0
    split: str = "meta_train"

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64."""
        at = keys.fold(keys.key(self.seed, "table"), index)
        order = self.environments.argsort(stable=True)
        sizes = self.environments.bincount()
        starts = sizes.cumsum(0) - sizes
        changed = 1 + (keys.uniform(keys.fold(at, 1), 1)[:, 0] * (len(sizes) - 1)).long()
        halves = []
        for number, env, n in (
            (2, changed, self.n_shot),
            (3, torch.zeros_like(changed), self.n_query),
        ):
            draw = keys.uniform(keys.fold(at, number), n)
            rows = order[starts[env][:, None] + (draw * sizes[env][:, None]).long()]
            x = self.table[rows].to(torch.get_default_dtype())
            halves.append(Examples.dense(x, torch.zeros(x.shape[:2], dtype=torch.int64)))
        return Episode(*halves)


def discretised(table: Any, usual: Any = None, *, bins: int = 3) -> Tensor:
    """Columns as categories 0, 1, ...: (M, k) int64.

    A column with at most 10 different values keeps them, in ascending order. Any other is
    cut at quantiles into `bins` whose shares of the rows are binomial: a quarter, a half, a
    quarter. Were they equal, an intervention on a variable without causes could not be
    seen: rows are as likely as before, wherever they have moved.

    Args:
        table: (M, k) numbers.
        usual: (M,) bool, the rows whose quantiles count; None for all.
        bins: categories of a column that is cut, 3 or more.

    Raises:
        InputError: a missing value, a column with one value only, or no table at all.

    Example:
        >>> discretised([[0.0, 7], [1.0, 7], [9.0, 5]])[:, 1].tolist()
        [1, 1, 0]
    """
    try:
        values = _tensor(table).to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise InputTypeError(
            f"a table that is a {type(table).__name__} without numbers throughout",
            "rows of numbers, (M, k)",
            "Replace names by numbers first.",
        ) from failure
    if values.ndim != 2 or values.shape[1] < 2 or not len(values):
        raise InputError(
            f"a table of shape {tuple(values.shape)}",
            "rows of at least two columns: (M, k)",
            "Pass one row for each observation.",
        )
    if not bool(values.isfinite().all()):
        row, column = (~values.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"the table holds no number in row {row}, column {column}",
            "finite numbers",
            "Drop the row, or fill in what is missing.",
        )
    check_range("bins", bins, 3, todo="Write bins=3, say.")
    chosen = torch.ones(len(values), dtype=torch.bool) if usual is None else torch.as_tensor(usual)
    columns = []
    for number, column in enumerate(values.T):
        found, place = column.contiguous().unique(return_inverse=True)
        if len(found) > CATEGORIES:
            shares = [math.comb(bins - 1, i) / 2 ** (bins - 1) for i in range(bins - 1)]
            cuts = column[chosen].quantile(torch.tensor(shares, dtype=torch.float64).cumsum(0))
            # Where most rows are at the largest value, all below it are the other category.
            cuts = cuts.unique().clamp(max=found[-2])
            _, place = torch.bucketize(column.contiguous(), cuts).unique(return_inverse=True)
        if not int(place.max()):
            raise InputError(
                f"column {number} has one value only",
                "columns that vary",
                "Drop the column: it has no cause to be found.",
            )
        columns.append(place)
    return torch.stack(columns, 1)


def _tensor(given: Any) -> Tensor:
    """Arrays, lists and frames as a tensor."""
    return given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))


def recover(
    table: Any,
    environments: Any,
    *,
    bins: int = 3,
    seed: int = 0,
    meta_iterations: int = UPDATES,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> Tensor:
    """Belief about the causal graph of a table's columns.

    An intervention is noticed where it makes values that were rare. One on a variable
    without causes, whose categories are all equally likely, goes unseen.

    Args:
        table: (M, k) numbers; see `discretised` for what becomes of continuous ones.
        environments: (M,) whole numbers: 0 for rows without an intervention, any other
            for the rows of one intervention on one column. Which column is not asked.
        bins: categories of a continuous column.
        seed: of everything random.
        meta_iterations: outer updates.
        progress: told the number of updates done.
        settings: of the learner, `tegu.learners.CausalGraph`.

    Returns:
        (k, k) probabilities: row i, column j that j is a direct cause of i.

    Raises:
        InputError: something missing, no rows without an intervention, no intervention,
            or an environment with fewer than 30 rows.
    """
    try:
        labels = _tensor(environments)
    except TypeError as failure:
        raise InputTypeError(
            f"environments that are a {type(environments).__name__} of no numbers",
            "a whole number for each row",
            "Number the interventions from 1, and write 0 where there was none.",
        ) from failure
    if labels.is_floating_point() or labels.ndim != 1:
        raise InputError(
            f"environments of shape {tuple(labels.shape)} and type {labels.dtype}",
            "a whole number for each row",
            "Number the interventions from 1, and write 0 where there was none.",
        )
    if len(labels) != len(table):
        raise InputError(
            f"{len(table)} rows and {len(labels)} environments",
            "one for each row",
            "Check that both come from the same table.",
        )
    found, place, sizes = labels.unique(return_inverse=True, return_counts=True)
    if 0 not in found or len(found) < 2:
        raise InputError(
            f"environments {found.tolist()}",
            "0 for rows without an intervention, and at least one other",
            "Without interventions a graph's edges cannot be told from their reverse.",
        )
    if int(sizes.min()) < ROWS:
        which = int(sizes.argmin())
        raise InputError(
            f"environment {int(found[which])} has {int(sizes[which])} rows",
            f"at least {ROWS} in each",
            "Collect more rows, or leave that environment out.",
        )
    zero = int((found == 0).nonzero()[0, 0])
    order = torch.where(place == zero, 0, torch.where(place < zero, place + 1, place))
    categories = discretised(table, labels == 0, bins=bins)
    k, n = categories.shape[1], int(categories.max()) + 1
    learner = CausalGraph(model=MaskedMlps(k, n, seed=seed), **settings)
    tasks = TableTasks(categories, order, seed=seed)
    learnt = learn(learner, [tasks], meta_iterations=meta_iterations, seed=seed, progress=progress)
    return learnt.beliefs[-1, 0]
