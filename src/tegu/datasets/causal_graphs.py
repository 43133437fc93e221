"""Worlds of a few categorical variables with a causal graph, and interventions on them.

Ke et al. (2019), Learning neural causal models from unknown interventions,
arXiv:1910.01075, section 4.1, and the code published with it. A graph is a matrix
(k, k) of 0 and 1; entry [i, j] says that variable j is a direct cause of variable i.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import SPLITS
from tegu.episodes import Episode, Examples
from tegu.errors import check_range, unknown

FAMILIES = ("chain", "fork", "collider", "jungle", "full", "random")
INTERVENTIONS = ("soft", "perfect")
SLOPE = 0.1  # of the leaky rectifier below zero
GAIN, BIAS = 2.5, 1.1  # of the true networks' weights and biases


def graph(family: str, k: int, key: Tensor, *, parents: float = 1.0) -> Tensor:
    """The graph of a family, its variables in a random order.

    Args:
        family: "chain" (0 to 1 to 2 ...), "fork" (0 to each other), "collider" (each
            other to the last), "jungle" (a binary tree, with an edge from each
            grandparent too), "full" (every pair), or "random" (Erdos and Renyi).
        k: number of variables.
        key: 0-d int64, of the order, and of a random graph's edges.
        parents: expected number of parents of a variable in a random graph.

    Returns:
        Shape (k, k), float64, 0 or 1, without cycles.

    Example:
        >>> int(graph("full", 4, keys.key(0)).sum())
        6
    """
    if family not in FAMILIES:
        raise unknown("family of graphs", family, FAMILIES)
    made = torch.zeros(k, k, dtype=torch.float64)
    drawn = keys.uniform(keys.fold(key, 1), k * k).reshape(k, k) < 2 * parents / max(k - 1, 1)
    for i in range(1, k):
        tree = {(i - 1) // 2, ((i - 1) // 2 - 1) // 2 if i > 2 else 0}
        made[i] = {
            "chain": torch.arange(k) == i - 1,
            "fork": torch.arange(k) == 0,
            "collider": (torch.arange(k) < i) & (i == k - 1),
            "jungle": torch.isin(torch.arange(k), torch.tensor(sorted(tree))),
            "full": torch.arange(k) < i,
            "random": (torch.arange(k) < i) & drawn[i],
        }[family]
    order = keys.permutation(keys.fold(key, 2), k)
    return made[order][:, order]


@dataclass(frozen=True)
class Mechanisms:
    """How each variable follows from its parents: a small network of one hidden layer.

    Leading axes (...) are worlds or interventions, k variables, N categories, H hidden
    units. Weights are orthogonal times 2.5 and biases uniform within 1.1, as published.
    """

    inner: Tensor  # (..., k, k * N, H), what is no parent masked where it is used
    inner_bias: Tensor  # (..., k, H)
    outer: Tensor  # (..., k, H, N)
    outer_bias: Tensor  # (..., k, N)

    @classmethod
    def drawn(cls, key: Tensor, k: int, inputs: int, hidden: int, n: int) -> Mechanisms:
        """k random networks for each key (...): float64."""
        at = keys.fold(key.unsqueeze(-1), torch.arange(k, device=key.device))
        return cls(
            GAIN * _orthogonal(keys.fold(at, 1), inputs, hidden),
            keys.uniform(keys.fold(at, 2), hidden, -BIAS, BIAS),
            GAIN * _orthogonal(keys.fold(at, 3), hidden, n),
            keys.uniform(keys.fold(at, 4), n, -BIAS, BIAS),
        )


def _orthogonal(key: Tensor, rows: int, columns: int) -> Tensor:
    """Matrices (..., rows, columns) with orthonormal rows or columns, whichever are fewer."""
    tall, wide = max(rows, columns), min(rows, columns)
    normal = keys.normal(key, tall * wide).unflatten(-1, (tall, wide))
    q, r = torch.linalg.qr(normal)
    q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q).unsqueeze(-2)
    out: Tensor = q if rows == tall else q.transpose(-2, -1)
    return out


@dataclass(frozen=True)
class CausalGraphs:
    """Interventions on one variable at a time of one world; the learner is not told which.

    The support set of an episode is drawn after an intervention on a variable chosen
    uniformly, the query set from the world as it is. Both hold categories 0 to N - 1
    as floating numbers, (S, k); targets are unused, and zero.

    Args:
        split: "meta_train", "meta_val" or "meta_test": other interventions, the same world.
        n_shot: rows after the intervention.
        n_query: rows without one.
        seed: of worlds and episodes.
        family: of the graph, see `graph`.
        variables: k.
        world: which of the family's worlds; graph and mechanisms are a function of
            (seed, family, variables, world).
        n_categories: N.
        parents: expected number of parents in a random graph.
        intervention: "soft": the variable follows from its parents in another way, by a
            new random network, as in the published code. "perfect": by a new random
            distribution that its parents have no say in.
        changed_query: query rows come after the intervention as well.

    Raises:
        InputError: an unknown split, family or intervention, or a count too small.

    Example:
        >>> CausalGraphs(n_shot=7, variables=3).episodes(torch.arange(2)).support.x.shape
        torch.Size([2, 7, 3])
    """

    split: str = "meta_train"
    n_shot: int = 128
    n_query: int = 64
    seed: int = 0
    _: KW_ONLY
    family: str = "random"
    variables: int = 3
    world: int = 0
    n_categories: int = 3
    parents: float = 1.0
    intervention: str = "soft"
    changed_query: bool = False

    def __post_init__(self) -> None:
        for kind, given, names in (
            ("split", self.split, SPLITS),
            ("family of graphs", self.family, FAMILIES),
            ("intervention", self.intervention, INTERVENTIONS),
        ):
            if given not in names:
                raise unknown(kind, given, names)
        for name, least in (("n_shot", 1), ("n_query", 1), ("variables", 2), ("n_categories", 2)):
            check_range(name, getattr(self, name), least)

    def _key(self) -> Tensor:
        path = ("causal-graphs", self.family, self.variables, self.world)
        return keys.key(self.seed, *path)

    @property
    def hidden(self) -> int:
        """Width of the true networks, as published."""
        return 4 * max(self.variables, self.n_categories)

    @property
    def _inputs(self) -> int:
        return self.variables * self.n_categories

    @cached_property
    def graph(self) -> Tensor:
        """The true graph (k, k)."""
        return graph(self.family, self.variables, keys.fold(self._key(), 1), parents=self.parents)

    @cached_property
    def mechanisms(self) -> Mechanisms:
        """The true networks, without an intervention."""
        at = keys.fold(self._key(), 2)
        return Mechanisms.drawn(at, self.variables, self._inputs, self.hidden, self.n_categories)

    def _keys(self, index: Tensor) -> Tensor:
        return keys.fold(keys.fold(self._key(), SPLITS.index(self.split) + 3), index)

    def targets(self, index: Tensor) -> Tensor:
        """Which variable each intervention is on: (T,) int64."""
        draw = keys.uniform(keys.fold(self._keys(index), 1), 1).squeeze(-1)
        return (draw * self.variables).long()

    def interventions(self, index: Tensor) -> tuple[Tensor, Mechanisms]:
        """Targets (T,) int64 and the networks (T, 1, ...) put in place there."""
        at = keys.fold(self._keys(index), 2)
        new = Mechanisms.drawn(at, 1, self._inputs, self.hidden, self.n_categories)
        if self.intervention == "perfect":
            new = replace(new, inner=torch.zeros_like(new.inner))
        return self.targets(index), new

    def probabilities(
        self, x: Tensor, i: int, changed: tuple[Tensor, Mechanisms] | None = None
    ) -> Tensor:
        """Distribution of variable i given the others: (T, S, k) to (T, S, N), float64.

        Args:
            x: categories; those of its parents count.
            i: which variable.
            changed: what `interventions` gave for the rows, or None.
        """
        seen = (x.unsqueeze(-1) == torch.arange(self.n_categories, device=x.device)).double()
        seen = (seen * self.graph[i].to(x.device).unsqueeze(-1)).flatten(-2)  # (T, S, k * N)
        fields = [field[i].to(x.device) for field in vars(self.mechanisms).values()]
        if changed is not None:
            targets, new = changed
            fields = [
                torch.where((targets == i).reshape(-1, *[1] * old.ndim), there[:, 0], old)
                for there, old in zip(vars(new).values(), fields, strict=True)
            ]
        inner, inner_bias, outer, outer_bias = fields
        hidden = seen @ inner + inner_bias.unsqueeze(-2)
        hidden = torch.nn.functional.leaky_relu(hidden, SLOPE)
        out: Tensor = (hidden @ outer + outer_bias.unsqueeze(-2)).softmax(-1)
        return out

    def rows(self, key: Tensor, n: int, changed: tuple[Tensor, Mechanisms] | None = None) -> Tensor:
        """n rows for each key (T,), parents before children: (T, n, k) float64."""
        x = torch.zeros(len(key), n, self.variables, dtype=torch.float64, device=key.device)
        for i in _order(self.graph):
            above = self.probabilities(x, i, changed).cumsum(-1)[..., :-1]
            draw = keys.uniform(keys.fold(key, i), n).unsqueeze(-1)
            value = (draw >= above).sum(-1, keepdim=True).double()
            x = torch.cat([x[..., :i], value, x[..., i + 1 :]], -1)
        return x

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on its device."""
        at, changed, halves = self._keys(index), self.interventions(index), []
        for x in (
            self.rows(keys.fold(at, 3), self.n_shot, changed),
            self.rows(keys.fold(at, 4), self.n_query, changed if self.changed_query else None),
        ):
            y = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
            halves.append(Examples.dense(x.to(torch.get_default_dtype()), y))
        return Episode(*halves)


def _order(edges: Tensor) -> list[int]:
    """Variables with parents before children."""
    left, done = dict(enumerate(edges.tolist())), list[int]()
    while left:
        free = [i for i, row in left.items() if not any(row[j] for j in left)]
        assert free, "a graph with a cycle"
        done += free
        left = {i: row for i, row in left.items() if i not in free}
    return done


def structural_distance(belief: Tensor, truth: Tensor) -> Tensor:
    """Structural Hamming distance: entries where the two graphs differ.

    An edge too many, or too few, counts one; an edge turned round counts two, as in the
    published code (elsewhere it may count one).

    Args:
        belief: (..., k, k) probabilities of edges; above 0.5 counts as an edge.
        truth: (..., k, k), 0 or 1.

    Example:
        >>> chain = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> int(structural_distance(chain.T, chain)), int(structural_distance(0 * chain, chain))
        (4, 2)
    """
    return ((belief > 0.5) != (truth > 0.5)).sum((-2, -1))


def belief_entropy(belief: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of the belief to the true graph, nats for each pair in order.

    Args:
        belief: (..., k, k) probabilities of edges; the diagonal is left out.
        truth: (..., k, k), 0 or 1.

    Example:
        >>> belief_entropy(torch.full((2, 2), 0.5), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        tensor(0.6931)
    """
    k = belief.shape[-1]
    right = torch.where(truth > 0.5, belief, 1 - belief).clamp(min=1e-12)
    off = 1 - torch.eye(k, dtype=belief.dtype, device=belief.device)
    return -(right.log() * off).sum((-2, -1)) / (k * (k - 1))
