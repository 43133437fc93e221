"""Which of two columns is the cause? Bengio et al.'s belief, on a table that somebody brings.

The method learns from interventions: rows observed in several environments between which the
cause's distribution changed. Each repetition takes one environment for training, fits both
factorisations to a bootstrap sample of it in closed form (tables of categories, or a joint
mixture of normal distributions), and moves its belief by how both adapt to samples of the others.

Without environments there are no interventions in the data, and nothing that the method could
learn from by its own assumptions. Pseudo-interventions stand in for them: rows drawn with weights
that grow or fall with the rank of one column, then, from the same random numbers, of the other.
The two directions are treated alike, so that the draw favours neither; what remains is how much
more one conditional has to change than the other when the data are selected by its cause. That is
a guess about mechanisms, not a finding about interventions, and is told with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.columns import Columns
from tegu.engine.worlds import stacked, train_worlds
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown
from tegu.inner import Params
from tegu.learners.causal_transfer import GAMMA, CausalTransfer
from tegu.models.categories import category_pair, counts, tables_of
from tegu.models.experts import ExpertPair, fit_joint

KINDS = ("auto", "numbers", "categories")
UPDATES = 60  # of a belief, unless told
REPETITIONS = 12  # beliefs, likewise
FEWEST = 30  # rows of a table
FEWEST_IN = 10  # rows of an environment
LARGEST = 256  # categories that a column may have
MOST_CATEGORIES = 12  # that `auto` takes whole numbers for categories
ROWS = 600  # of a bootstrap sample, at most
SHOT = 100  # rows of an episode


@dataclass(frozen=True)
class Draws:
    """Episodes out of a table: training rows, and rows of transfer distributions.

    Args:
        training: shape (n, 2).
        transfers: rows of the other environments; none: pseudo-interventions on `training`.
        n_shot: rows of a support set, drawn with replacement.
        key: 0-d int64.
        strength: of pseudo-interventions: the weights of the outermost rows are e to the
            plus and minus so many.
        split: these are all for learning the belief.
    """

    training: Tensor
    transfers: tuple[Tensor, ...]
    n_shot: int
    key: Tensor
    strength: float = 3.0
    split: str = "meta_train"

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,); of pseudo-interventions two in turn are twins."""
        made = self._foreign(index) if self.transfers else self._selected(index)
        some = made[:, :1]
        halves = [Examples(x, x, torch.ones(x.shape[:-1], dtype=torch.bool)) for x in (made, some)]
        return Episode(*halves)

    def _foreign(self, index: Tensor) -> Tensor:
        at = keys.fold(self.key, index)
        which = (keys.uniform(keys.fold(at, 1), 1) * len(self.transfers)).long().squeeze(-1)
        sizes = torch.tensor([len(rows) for rows in self.transfers])[which]
        starts = torch.tensor([0, *(len(rows) for rows in self.transfers)]).cumsum(0)[which]
        rows = (keys.uniform(keys.fold(at, 2), self.n_shot) * sizes[:, None]).long()
        return torch.cat(self.transfers)[starts[:, None] + rows]

    def _selected(self, index: Tensor) -> Tensor:
        at = keys.fold(self.key, index // 2)  # twins: the same numbers, one column after the other
        side = torch.where(keys.bits(keys.fold(at, 1), 1) % 2 == 0, 1.0, -1.0).double()
        where = keys.uniform(keys.fold(at, 2), self.n_shot)
        made = []
        for column in range(2):
            # Ties share their rank: which of them comes first must not depend on the other column.
            ranks = _ranks(self.training[:, column])
            weight = (side * self.strength * ranks).exp()  # (T, n)
            order = self.training[:, column].argsort(stable=True)
            ends = weight[:, order].cumsum(-1)
            found = torch.searchsorted(ends, where * ends[:, -1:], right=True)
            made.append(self.training[order[found.clamp(max=len(order) - 1)]])
        even = (index % 2 == 0)[:, None, None]
        return torch.where(even, made[0], made[1])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from -1 to 1, ties in the middle of their range; float64."""
    ordered = values.sort().values
    low = torch.searchsorted(ordered, values.contiguous())
    high = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (low + high).double() / len(values) - 1


@dataclass(frozen=True)
class Verdict:
    """What was found about two columns.

    Attributes:
        names: of both columns.
        path: belief that the first is the cause: (repetitions, updates + 1), from 0.5 on.
        rows: of the table.
        environments: number of them; 1 where there are no labels.
        episodes: of each repetition.
        kind: "numbers" or "categories".
        seed: of everything random.
    """

    names: tuple[str, str]
    path: NDArray[np.float64]
    rows: int
    environments: int
    episodes: int
    kind: str
    seed: int

    @property
    def belief(self) -> float:
        """Median over repetitions of the last belief in first -> second."""
        return float(np.median(self.path[:, -1]))

    @property
    def band(self) -> tuple[float, float]:
        """10th and 90th percentile over repetitions."""
        low, high = np.quantile(self.path[:, -1], (0.1, 0.9))
        return float(low), float(high)

    @property
    def direction(self) -> str:
        """ "A -> B", "B -> A", or "undecided" where the band holds 0.5."""
        a, b = self.names
        low, high = self.band
        return f"{a} -> {b}" if low > 0.5 else f"{b} -> {a}" if high < 0.5 else "undecided"

    @property
    def warning(self) -> str:
        """What a reader must know before leaning on it; "" if nothing."""
        if self.environments > 1:
            return ""
        return (
            "no environments were given, so nothing in these data shows an intervention: the "
            "belief rests on pseudo-interventions, which is outside the method's assumptions"
        )


def find_direction(
    table: Columns,
    *,
    kind: str = "auto",
    seed: int = 0,
    repetitions: int = REPETITIONS,
    updates: int = UPDATES,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """The belief in first -> second of a table's two columns.

    Args:
        table: two columns, and labels of environments or none.
        kind: "numbers", "categories" (whole numbers that only name), or "auto": categories
            where both columns hold at most 12 different whole numbers.
        seed: of everything random.
        repetitions: beliefs, each with its own bootstrap sample and training environment.
        updates: of each belief, by two episodes each.
        progress: told how many updates are done.

    Raises:
        InputError: not two columns, too few rows, a constant column, or one environment.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    for name, value in (("repetitions", repetitions), ("updates", updates)):
        check_range(name, value, 1)
    groups = _checked(table)
    if kind == "auto":
        whole = bool((table.values == table.values.round()).all())
        few = all(len(np.unique(column)) <= MOST_CATEGORIES for column in table.values.T)
        kind = "categories" if whole and few else "numbers"
    values = _coded(table.values) if kind == "categories" else _standardised(table.values)
    rows = torch.from_numpy(values).to(torch.get_default_dtype())
    parts = list(groups.values()) if groups else [np.arange(len(rows))]
    sets = [rows[torch.from_numpy(part)] for part in parts]
    root = keys.key(seed, "causal")
    beliefs = [_repetition(sets, number, keys.fold(root, number)) for number in range(repetitions)]
    # One model for all: as many components as the smallest training set bears.
    fewest = min(len(part) for part in sets)
    n = int(rows.max()) + 1
    learner = _learner(kind, n if kind == "categories" else min(12, max(2, fewest // 20)))
    start = _fitted(learner, kind, beliefs, root, n)
    _, _, path = train_worlds(
        learner,
        start,
        beliefs,
        meta_iterations=updates,
        meta_batch=2,
        outer_lr=0.08,
        done=1.0,
        seed=seed,
        watch=lambda params: params[GAMMA].sigmoid(),
        progress=progress,
    )
    first, second = table.names
    whole_path = np.concatenate([np.full((1, repetitions), 0.5), path.double().numpy()])
    return Verdict((first, second), whole_path.T, len(rows), len(sets), 2 * updates, kind, seed)


def _learner(kind: str, size: int) -> CausalTransfer:
    if kind == "categories":
        return CausalTransfer(
            model=category_pair(size), inner_steps=5, inner_batch=20, inner_lr=0.5
        )
    return CausalTransfer(
        model=ExpertPair(size),
        evidence="mean",
        inner_optimiser="adam",
        inner_lr=0.02,
        inner_steps=3,
        inner_batch=0,
        em=1,
    )


def _repetition(sets: Sequence[Tensor], number: int, key: Tensor) -> Draws:
    """One training environment, in turn, as a bootstrap sample; the others as they are."""
    own = number % len(sets)
    n = min(ROWS, max(len(part) for part in sets))
    drawn = (keys.uniform(keys.fold(key, 1), n) * len(sets[own])).long()
    others = tuple(part for i, part in enumerate(sets) if i != own)
    return Draws(sets[own][drawn], others, SHOT, keys.fold(key, 2))


def _fitted(
    learner: CausalTransfer, kind: str, beliefs: Sequence[Draws], root: Tensor, n: int
) -> Params:
    """Parameters of every repetition, both directions from one joint distribution."""
    training = torch.stack([one.training for one in beliefs])
    if kind == "categories":
        used = counts(training.flatten(0, 1), n).gt(0)
        cells = used.any(1)[:, None] & used.any(0)[None, :]
        prior = 0.1 * cells + 1e-6  # of categories that one column has and the other has not
        fitted = tables_of(vmap(lambda x: counts(x, n))(training) + prior)
    else:
        components = len(learner.init()["a.mean"])
        at = keys.fold(keys.fold(root, 7), torch.arange(len(beliefs)))
        fitted = vmap(lambda x, key: ExpertPair.of(fit_joint(x, components, key)))(training, at)
    return {**stacked([learner.init() for _ in beliefs]), **fitted}


def _checked(table: Columns) -> dict[str, NDArray[np.int64]]:
    """Numbers of the rows of each environment, once the table is known to bear the method."""
    if table.values.shape[1] != 2:
        more = table.values.shape[1] > 2
        raise InputError(
            f"{table.values.shape[1]} column{'s' * more} of numbers",
            "two, a cause and an effect",
            "Keep the two in question, or find a graph: name the column that tells interventions "
            "apart with --environment COLUMN."
            if more
            else "Check the delimiter: commas, tabs, semicolons or blanks.",
        )
    if len(table.values) < FEWEST:
        raise InputError(
            f"{len(table.values)} rows", f"at least {FEWEST}", "Collect more observations."
        )
    table.check_varying()
    if table.labels is None:
        return {}
    at = np.array(table.labels)
    groups = {label: np.flatnonzero(at == label) for label in dict.fromkeys(table.labels)}
    if len(groups) < 2:
        raise InputError(
            f"all rows are of the environment '{table.labels[0]}'",
            "two environments or more",
            "Leave --environment out, or add rows observed under other conditions.",
        )
    for label, rows in groups.items():
        if len(rows) < FEWEST_IN:
            raise InputError(
                f"{len(rows)} rows of the environment '{label}'",
                f"at least {FEWEST_IN} of each",
                "Collect more of them, or drop that environment.",
            )
    return groups


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = (values - values.mean(0)) / values.std(0)
    return centred


def _coded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column's different values as 0, 1, ..."""
    coded = [np.unique(column, return_inverse=True)[1] for column in values.T]
    if (most := 1 + max(int(column.max()) for column in coded)) > LARGEST:
        raise InputError(
            f"a column of {most:,} different values as categories",
            f"at most {LARGEST}, each seen many times",
            "Leave out kind, or write kind=numbers.",
        )
    return np.stack(coded, 1).astype(np.float64)


def swapped(table: Columns) -> Columns:
    """The table with its two columns exchanged."""
    first, second = table.names
    return replace(table, names=(second, first), values=table.values[:, ::-1].copy())
