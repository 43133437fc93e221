"""Prior-fitted networks: a network that has seen so many tables that it reads a new one.

Mueller, Hollmann, Pineda Arango, Grabocka, Hutter (2022), Transformers can do Bayesian
inference, arXiv:2112.10510; Hollmann, Mueller, Eggensperger, Hutter (2023), TabPFN,
arXiv:2207.01848. Tasks are drawn from a prior; the network q, shown the rows and classes
of the support set, minimises

    - log q(y | x, support)        on average over queries and tasks   (equation 2)

which makes q the posterior predictive distribution under that prior, as near as the
network can come. A new table is learnt in one pass, with no step of gradient descent.

A row enters the network in two forms, next to each other: each column with mean 0 and
deviation 1 over the support set, and the same multiplied by C^(-1/2), where C is the
columns' correlation over the support set, shrunk towards none. Columns that do not vary
over the support set are left out, and both forms are multiplied by
sqrt(most columns / columns), so that few columns weigh as much as many.

A task may be read in several views, and the probabilities averaged: columns and classes in
another order, and in every second view each number replaced by its normal score, the normal
quantile of its place among the support set's numbers of that column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.episodes import Examples
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.head import exact
from tegu.learners.learner import Learner, State

ITERATIONS = 20  # of Newton and Schulz: each more than doubles eigenvalues down to 1e-6 of all


@dataclass(frozen=True, kw_only=True)
class PFN(Learner):
    """A transformer meta-trained on synthetic tables; a new table takes one pass.

    The model is a `tegu.models.TableTransformer`, or another with its `n_way`,
    `n_features` (twice the most columns), `remember(rows, classes, mask)` and
    `forward(rows, memory)`. Columns and classes are put in a random order in each
    episode of meta-training.

    Args:
        views: how many a new task is read in. 1: the order and the numbers as they are;
            2: normal scores in another order beside it, and so on.

    Reference:
        arXiv:2207.01848. Differs from it: the second form of the columns; columns take
        random places among n_features, and are scaled by the root of their share; values
        beyond 3 deviations grow as their logarithm; every second view takes normal
        scores, where theirs takes a power transform.
    """

    name: ClassVar[str] = "pfn"
    targets: ClassVar[tuple[str, ...]] = ("table classes",)
    later: ClassVar[tuple[str, ...]] = ("views",)
    start: ClassVar[Mapping[str, Any]] = {
        "train.outer_lr": 0.001,
        "train.meta_batch": 16,
        "train.outer_schedule": "cosine",
    }

    views: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("views", self.views, 1)
        if missing := [n for n in ("n_way", "n_features") if not hasattr(self.model, n)]:
            raise InputError(
                f"{type(self.model).__name__} without `{missing[0]}`",
                "a network that reads tables, as tegu.models.TableTransformer",
                "Write model.name=table-transformer, or give your network that attribute.",
            )

    @property
    def n_way(self) -> int:
        """Most classes N."""
        return int(self.model.n_way)  # type: ignore[arg-type]

    @property
    def n_columns(self) -> int:
        """Most columns F."""
        return int(self.model.n_features) // 2  # type: ignore[arg-type]

    def forward(
        self,
        params: Params,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        training: bool = False,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Scores (B, N) of rows (B, F) of a table of which nothing is known: all alike."""
        return self._flat(x).new_zeros(len(x), self.n_way)

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        columns, classes = self._orders(key, training)
        with exact(self._flat(support.x)) as x:
            state: State = {"reading": fitted(x, support.mask)}
            if len(columns) > 1:
                known = {"x": x, "mask": support.mask}
                scores = normal_scores(x, **known)
                state |= {"known": known, "scores": fitted(scores, support.mask)}
            rows = self._forms(state, x, len(columns))

        def seen(rows: Tensor, columns: Tensor, classes: Tensor) -> State:
            memory: State = self.call(
                "remember", params, ordered(rows, columns), classes[support.y], support.mask
            )
            return memory

        memory = vmap(seen)(rows, columns, classes)
        present = (F.one_hot(support.y, self.n_way) * support.mask[:, None]).sum(0) > 0
        return {
            **state,
            "columns": columns,
            "classes": classes,
            "memory": memory,
            "present": present,
        }

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        with exact(self._flat(query, len(state["reading"]["mean"]))) as x:
            rows = self._forms(state, x, len(state["columns"]))

        def scored(memory: State, rows: Tensor, columns: Tensor, classes: Tensor) -> Tensor:
            scores: Tensor = self.call("forward", params, ordered(rows, columns), memory)
            return scores[:, classes]

        scores = vmap(scored)(state["memory"], rows, state["columns"], state["classes"])
        if len(scores) > 1:
            scores = scores.log_softmax(-1).logsumexp(0, keepdim=True)
        return scores[0].masked_fill(~state["present"], torch.finfo(scores.dtype).min)

    def _forms(self, state: State, x: Tensor, views: int) -> Tensor:
        """Rows (Q, F) as each view takes them: shape (V, Q, 2 n_columns)."""
        forms = [read(state["reading"], x, self.n_columns)]
        if views > 1:
            scores = normal_scores(x, **state["known"])
            forms.append(read(state["scores"], scores, self.n_columns))
        return torch.stack([forms[view % 2] for view in range(views)])

    def _orders(self, key: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Places of columns (V, F) and names of classes (V, N) in each view."""
        views = 1 if training else self.views
        found = []
        for number, n in enumerate((self.n_columns, self.n_way)):
            same = torch.arange(n, device=key.device)
            orders = [
                same
                if not training and not view
                else keys.permutation(keys.fold(keys.fold(key, 1 + number), view), n)
                for view in range(views)
            ]
            found.append(torch.stack(orders))
        return found[0], found[1]

    def _flat(self, x: Tensor, columns: int = 0) -> Tensor:
        """Rows (S, ...) as (S, F).

        Raises:
            InputError: there are more columns than the network takes, or, where
                `columns` is given, others than the support set has.
        """
        x = x.flatten(1)
        if columns and x.shape[1] != columns:
            raise InputError(
                f"a table of {x.shape[1]} columns",
                f"the {columns} of the support set",
                "Pass the same columns in the same order.",
            )
        if x.shape[1] > self.n_columns:
            raise InputError(
                f"a table of {x.shape[1]} columns",
                f"at most {self.n_columns}, as the network was meta-trained",
                "Drop columns or take principal components, or meta-train a wider network.",
            )
        return x


def normal_scores(rows: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Each number of rows (Q, F) by its place among known ones of its column.

    Args:
        rows: shape (Q, F).
        x: the known rows, shape (S, F).
        mask: which of them are real, shape (S,) bool.

    Returns:
        The normal quantile of the share of known numbers below, equal ones by half, kept
        half a number away from 0 and 1: shape (Q, F).
    """
    n = mask.sum().clamp(min=1).to(rows.dtype)
    known = torch.where(mask[:, None], x, torch.inf)
    # Column after column: all at once would take rows by rows by columns of memory.
    pairs = [(rows[:, None, i], known[:, i]) for i in range(x.shape[1])]
    below = torch.stack([(theirs < mine).sum(1) for mine, theirs in pairs], 1)
    up_to = torch.stack([(theirs <= mine).sum(1) for mine, theirs in pairs], 1)
    least = 0.5 / n
    share = ((below + up_to) / (2 * n)).clamp(least, 1 - least)
    scores: Tensor = torch.special.ndtri(share)
    return scores


def fitted(x: Tensor, mask: Tensor) -> Params:
    """What the support set says of its columns.

    Args:
        x: shape (S, F).
        mask: shape (S,) bool, False where a row only pads.

    Returns:
        `mean` and `gain`, (F,), the latter 0 for columns that do not vary; `white`,
        (F, F); and how many columns do vary, 0-d.
    """
    weight = mask.to(x.dtype)[:, None]
    n = weight.sum().clamp(min=1)
    # Padding may hold anything; and sums of large numbers are taken about the first row.
    first = x[mask.to(torch.int64).argmax()]
    shifted = torch.where(mask[:, None], x - first, torch.zeros_like(x))
    mean = first + shifted.sum(0) / n
    centred = torch.where(mask[:, None], x - mean, torch.zeros_like(x))
    largest = centred.abs().amax(0)
    tiny = 16 * torch.finfo(x.dtype).eps * mean.abs() + torch.finfo(x.dtype).tiny
    varies = largest > tiny
    # By the largest first: squares of very large numbers would be infinite.
    unit = centred / torch.where(varies, largest, torch.ones_like(largest))
    deviation = (unit.square().sum(0) / n).sqrt() * largest
    gain = torch.where(varies, 1 / torch.where(varies, deviation, 1.0), 0.0)
    columns = varies.sum().clamp(min=1).to(x.dtype)
    mild = softened(centred * gain) * weight
    among = mild.T @ mild / n
    share = columns / (columns + n)
    eye = torch.eye(len(gain), dtype=x.dtype, device=x.device)
    shrunk = (1 - share) * among + share * eye
    white = inverse_root(torch.where(varies[:, None] & varies, shrunk, eye))
    return {"mean": mean, "gain": gain, "white": white, "columns": columns}


def read(reading: Params, x: Tensor, n_columns: int) -> Tensor:
    """Rows (Q, F) as the network takes them: standardised, and decorrelated.

    Returns:
        Shape (Q, 2 n_columns), zero where there are fewer columns.
    """
    plain = softened((x - reading["mean"]) * reading["gain"])
    forms = [F.pad(form, (0, n_columns - x.shape[1])) for form in (plain, plain @ reading["white"])]
    return torch.cat(forms, -1) * (n_columns / reading["columns"]).sqrt()


def softened(z: Tensor) -> Tensor:
    """Numbers as they are up to 3, their excess by its logarithm beyond."""
    beyond = (z.abs() - 3).clamp(min=0)
    return z.clamp(-3, 3) + z.sign() * torch.log1p(beyond)


def inverse_root(matrix: Tensor) -> Tensor:
    """C^(-1/2) of a symmetric positive definite matrix, by the coupled Newton iteration.

    Reference:
        Higham (2008), Functions of matrices, equation 6.35.
    """
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    size = matrix.square().sum().sqrt()
    y, z = matrix / size, eye
    for _ in range(ITERATIONS):
        step = (3 * eye - z @ y) / 2
        y, z = y @ step, step @ z
    return z / size.sqrt()


def ordered(rows: Tensor, columns: Tensor) -> Tensor:
    """Both forms of the columns (Q, 2F) in another order (F,)."""
    plain, white = rows.chunk(2, -1)
    return torch.cat([plain[:, columns], white[:, columns]], -1)
