"""Worlds of two variables, cause and effect, and interventions on the cause.

Each world has a mechanism p(effect | cause) and a training distribution. An episode changes the
distribution of the cause, and nothing else: its support set is drawn from that transfer
distribution. In the split "meta_train" its query set is drawn from the training distribution,
on which models of the pair are fitted; in the other splits it is drawn from the transfer
distribution, for the adapted models to be judged on.

Bengio et al. (2019), A meta-transfer objective for learning to disentangle causal mechanisms,
arXiv:1901.10912, sections 3 and 4, and the code published with it.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import SPLITS, check_split
from tegu.episodes import Episode, Examples
from tegu.errors import check_range


@dataclass(frozen=True)
class _Pairs:
    """What both kinds of worlds share.

    Args:
        split: "meta_train", "meta_val" or "meta_test"; their interventions differ.
        n_shot: pairs of the transfer distribution in a support set.
        n_query: pairs in a query set.
        seed: of everything random.
        world: which world; mechanisms are a function of (seed, world) alone.
        swapped: column 0 holds the effect, column 1 the cause.
    """

    split: str = "meta_train"
    n_shot: int = 20
    n_query: int = 256
    seed: int = 0
    _: KW_ONLY
    world: int = 0
    swapped: bool = False

    def __post_init__(self) -> None:
        check_split(self.split)
        for name in ("n_shot", "n_query"):
            check_range(name, getattr(self, name), 1)

    def _world_key(self) -> Tensor:
        return keys.key(self.seed, type(self).__name__, "world", self.world)

    def _episode_keys(self, index: Tensor) -> Tensor:
        return keys.fold(keys.fold(self._world_key(), SPLITS.index(self.split) + 1), index)

    def _halves(self, support: Tensor, query: Tensor) -> Episode:
        made = []
        for pairs in (support, query):
            x = self._observed(pairs).to(torch.get_default_dtype())
            made.append(Examples(x, x, torch.ones(x.shape[:-1], dtype=torch.bool)))
        return Episode(*made)

    def _observed(self, pairs: Tensor) -> Tensor:
        return pairs.flip(-1) if self.swapped else pairs


def dirichlet(key: Tensor, n: int) -> Tensor:
    """Uniform draws from the simplex, Dirichlet(1, ..., 1): (..., n), float64."""
    logs = -torch.log1p(-keys.uniform(key, n))
    return logs / logs.sum(-1, keepdim=True)


def random_network(at: Tensor, hidden: int, n: int, causes: Tensor | None) -> Tensor:
    """Distributions (..., n), float64, of networks with random weights, one for each key (...).

    Args:
        at: keys.
        hidden: units of the one hidden layer, leaky rectifiers.
        n: categories of causes and effects.
        causes: one key's effects given each of these; None: of each key, a marginal.
    """
    bias = keys.uniform(keys.fold(at, 1), hidden, -1.0, 1.0)
    last = keys.uniform(keys.fold(at, 2), n, -1.0, 1.0)
    out = keys.normal(keys.fold(at, 3), hidden * n).unflatten(-1, (hidden, n)) * (2 / n) ** 0.5
    if causes is not None:
        into = keys.normal(keys.fold(at, 4), n * hidden).unflatten(-1, (n, hidden))
        bias = bias + (2 / hidden) ** 0.5 * into[causes]
    active = F.leaky_relu(bias)
    logits: Tensor = (active.unsqueeze(-2) @ out).squeeze(-2) + last
    return logits.softmax(-1)


def categories(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draws from distributions (..., N) by numbers of [0, 1), shape (...): int64, 0 to N - 1."""
    ends = probabilities.cumsum(-1)[..., :-1]  # the last category takes what rounding leaves
    return (uniform.unsqueeze(-1) >= ends).sum(-1)


@dataclass(frozen=True)
class CategoryPairs(_Pairs):
    """Two variables of N categories; interventions draw the cause's distribution anew.

    Args:
        n_categories: N.
        network: distributions are those of networks with random weights and one hidden layer of
            so many units, as in the published code where its models are networks; 0 for
            Dirichlet(1), the paper's choice for tables. Interventions draw the cause's network
            anew, here with biases as wide as before, there with a tenth of it.

    The other arguments are those of every world here: split, n_shot, n_query, seed, world,
    swapped.

    Reference:
        arXiv:1901.10912, section 3: marginals and conditionals from Dirichlet(1).

    Example:
        >>> CategoryPairs(n_shot=3).episodes(torch.arange(2)).support.x.shape
        torch.Size([2, 3, 2])
    """

    n_categories: int = 10
    network: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("network", self.network, 0, todo="Try 8, or 0.")
        check_range("n_categories", self.n_categories, 2)

    @cached_property
    def mechanism(self) -> Tensor:
        """p(effect | cause): (N, N), a row for each cause, float64."""
        at, rows = keys.fold(self._world_key(), 11), torch.arange(self.n_categories)
        if self.network:
            return random_network(at, self.network, self.n_categories, rows)
        return dirichlet(keys.fold(at, rows), self.n_categories)

    @cached_property
    def training(self) -> Tensor:
        """The training distribution of the observed columns: (N, N), float64."""
        cause = self._marginal(keys.fold(self._world_key(), 12))
        joint = cause[:, None] * self.mechanism
        return joint.T if self.swapped else joint

    def causes(self, index: Tensor) -> Tensor:
        """The cause's distribution in episodes `index`: (T, N), float64."""
        return self._marginal(keys.fold(self._episode_keys(index), 1))

    def _marginal(self, at: Tensor) -> Tensor:
        if self.network:
            return random_network(at, self.network, self.n_categories, None)
        return dirichlet(at, self.n_categories)

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64: categories as floating numbers."""
        at, index = self._episode_keys(index), torch.as_tensor(index)
        transfer = self.causes(index)
        before = self.training.sum(0 if self.swapped else 1).expand(len(index), -1)
        return self._halves(
            self._drawn(keys.fold(at, 2), transfer, self.n_shot),
            self._drawn(
                keys.fold(at, 3),
                before if self.split == "meta_train" else transfer,
                self.n_query,
            ),
        )

    def _drawn(self, at: Tensor, cause: Tensor, n: int) -> Tensor:
        a = categories(cause.unsqueeze(-2), keys.uniform(keys.fold(at, 1), n))
        b = categories(self.mechanism[a], keys.uniform(keys.fold(at, 2), n))
        return torch.stack([a, b], -1)


def natural_spline(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """The cubic spline through points, without curvature at both ends, linear beyond them.

    Args:
        x: any shape.
        knots: shape (K,), ascending, K at least 3.
        values: shape (K,).
    """
    gap = knots.diff()
    # Second derivatives m: for each inner knot, h0 m0 + 2 (h0 + h1) m1 + h1 m2 = 6 (slope change).
    n = len(knots) - 2
    matrix = torch.diag(2 * (gap[:-1] + gap[1:]))
    if n > 1:
        matrix = matrix + torch.diag(gap[1:-1], 1) + torch.diag(gap[1:-1], -1)
    slopes = values.diff() / gap
    curve = torch.zeros_like(values)
    curve[1:-1] = torch.linalg.solve(matrix, 6 * slopes.diff())
    inside = x.clamp(knots[0], knots[-1])
    i = (torch.searchsorted(knots, inside.contiguous(), right=True) - 1).clamp(0, len(gap) - 1)
    h, left, right = gap[i], inside - knots[i], knots[i + 1] - inside
    out = (curve[i] * right**3 + curve[i + 1] * left**3) / (6 * h)
    out = out + (values[i] / h - curve[i] * h / 6) * right
    out = out + (values[i + 1] / h - curve[i + 1] * h / 6) * left
    first = slopes[0] - gap[0] * curve[1] / 6
    last = slopes[-1] + gap[-1] * curve[-2] / 6
    return out + torch.where(x < knots[0], first, last) * (x - inside)


@dataclass(frozen=True)
class ContinuousPairs(_Pairs):
    """A normal cause with a changing mean; the effect is a random spline of it plus noise.

    Args:
        anchors: points of the spline, evenly from -span to span.
        span: half the range of the anchors, and of the spline's values there.
        deviation: standard deviation of the cause.
        narrowed: its standard deviation after an intervention, in units of `deviation`.
        shift: interventions draw the cause's mean from -shift to shift; it is 0 in training.
        noise: standard deviation of the effect's noise.
        angle: the pair is observed turned by it, in radians: (X, Y) = (A cos - B sin,
            A sin + B cos). The encoder that turns it back has the angle -`angle`.

    The other arguments are those of every world here: split, n_shot, n_query, seed, world,
    swapped.

    Reference:
        arXiv:1901.10912, section 4 and the appendix, with the numbers of the published code: 10
        anchors, span 8, deviation 2, shift 4, noise 1. Differs from it: the spline is natural
        and goes on linearly beyond the anchors, where theirs goes on as a cubic.

    Example:
        >>> ContinuousPairs(n_shot=3).episodes(torch.arange(2)).query.x.shape
        torch.Size([2, 256, 2])
    """

    anchors: int = 10
    span: float = 8.0
    deviation: float = 2.0
    narrowed: float = 1.0
    shift: float = 4.0
    noise: float = 1.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("anchors", self.anchors, 3)
        for name in ("span", "deviation", "narrowed", "shift", "noise"):
            value = getattr(self, name)
            check_range(name, value, above=0)

    def mechanism(self, cause: Tensor) -> Tensor:
        """Mean effect of causes of any shape, float64."""
        knots = torch.linspace(-self.span, self.span, self.anchors, dtype=torch.float64)
        at = keys.fold(self._world_key(), 11)
        return natural_spline(cause, knots, keys.uniform(at, self.anchors, -self.span, self.span))

    def means(self, index: Tensor) -> Tensor:
        """The cause's mean in episodes `index`: (T, 1), float64."""
        return keys.uniform(keys.fold(self._episode_keys(index), 1), 1, -self.shift, self.shift)

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64."""
        at, mean = self._episode_keys(index), self.means(index)
        after = (mean, self.narrowed * self.deviation)
        before = (torch.zeros_like(mean), self.deviation)
        query = before if self.split == "meta_train" else after
        return self._halves(
            self._drawn(keys.fold(at, 2), *after, self.n_shot),
            self._drawn(keys.fold(at, 3), *query, self.n_query),
        )

    def _drawn(self, at: Tensor, mean: Tensor, deviation: float, n: int) -> Tensor:
        a = mean + deviation * keys.normal(keys.fold(at, 1), n)
        b = self.mechanism(a) + self.noise * keys.normal(keys.fold(at, 2), n)
        return torch.stack([a, b], -1)

    def _observed(self, pairs: Tensor) -> Tensor:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        a, b = super()._observed(pairs).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
