"""Synthetic tables: a prior over small tabular classification tasks.

Each episode is a table drawn from one of five families, after which its columns
are warped, cut into levels, rescaled, or replaced by noise:

| family | where columns and classes come from |
|---|---|
| causes | a random network; classes by a score of its last layer |
| effects | a random network; classes are among its inputs, columns are what they cause |
| clusters | one to three Gaussians for each class |
| linear | correlated columns; classes by linear scores with noise |
| rules | classes by the cell of a few axis-aligned cuts |

Reference:
    Mueller et al. (2022), Transformers can do Bayesian inference, arXiv:2112.10510;
    Hollmann et al. (2023), TabPFN, arXiv:2207.01848, section 4: priors of random
    networks and structural causal models, with columns taken from hidden nodes.
    Differs from them: networks have few and narrow layers, of one activation each,
    and sparse weights in place of sampled graphs; the three simpler families and the
    effects are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cache

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import check_split
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown

FAMILIES = ("causes", "effects", "clusters", "linear", "rules")
ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh,
    torch.relu,
    torch.sin,
    torch.abs,
    lambda x: x,
)
WIDTH, DEPTH = 24, 3  # units of a layer of a random network, and layers at most
CUTS = 5  # of a table of rules at most
CHUNK = 32  # episodes drawn at once, so that they fit the caches


@dataclass(frozen=True)
class SyntheticTables:
    """Classification tasks over random tables, a new table in each episode.

    Args:
        split: "meta_train", "meta_val" or "meta_test"; their tables differ.
        n_support: most support rows; fewer are padded.
        n_query: query rows. Those of a class without a support row are masked.
        seed: of the whole sequence of episodes.
        n_way: most classes; labels are below it.
        n_features: most columns; those that a table does not have are zero.
        least_support: fewest support rows.
        families: which of `FAMILIES` to draw from, equally often.

    Raises:
        InputError: an unknown split or family, or a count out of range.

    Example:
        >>> tables = SyntheticTables(n_support=20, n_query=4, n_features=8)
        >>> tables.episodes(torch.arange(3)).support.x.shape
        torch.Size([3, 20, 8])
    """

    split: str = "meta_train"
    n_support: int = 192
    n_query: int = 64
    seed: int = 0
    _: KW_ONLY
    n_way: int = 10
    n_features: int = 32
    least_support: int = 10
    families: tuple[str, ...] = FAMILIES

    def __post_init__(self) -> None:
        check_split(self.split)
        for name in self.families:
            if name not in FAMILIES:
                raise unknown("family", name, FAMILIES)
        if not self.families:
            raise InputError("no families", "one or more", f"Choose from {FAMILIES}.")
        for name, least in (
            ("n_query", 1),
            ("n_way", 2),
            ("n_features", 1),
            ("least_support", 1),
            ("n_support", self.least_support),
        ):
            check_range(name, getattr(self, name), least)

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on its device.

        Returns:
            x of shape (T, S, n_features), float32; y below `n_way`.
        """
        root = keys.key(self.seed, "tables", self.split, device=index.device)
        parts = [self._chunk(keys.fold(root, part)) for part in index.split(CHUNK)]
        fields = [torch.cat(same) for same in zip(*parts, strict=True)]
        return Episode(Examples(*fields[:3]), Examples(*fields[3:]))

    def _chunk(self, at: Tensor) -> tuple[Tensor, ...]:
        S, rows = self.n_support, self.n_support + self.n_query
        shape = Shape(at, rows, self.n_way, self.n_features)
        family = _below(at, 1, len(self.families))
        x = torch.zeros(len(at), rows, self.n_features, device=at.device)
        y = torch.zeros(len(at), rows, dtype=torch.int64, device=at.device)
        for number, name in enumerate(self.families):
            (mine,) = (family == number).nonzero(as_tuple=True)
            if len(mine):
                x[mine], y[mine] = _FAMILIES[name](shape.select(mine))
        x = _columns(at, x) * shape.used.unsqueeze(1)
        y = _labels(at, y, self.n_way)
        size = self._sizes(at)
        place = torch.arange(S, device=at.device)
        seen = place < size[:, None]  # (T, S)
        classes = torch.arange(self.n_way, device=at.device)
        present = ((y[:, :S, None] == classes) & seen[..., None]).any(1)  # (T, N)
        known = present.gather(1, y[:, S:])
        return x[:, :S] * seen[..., None], y[:, :S] * seen, seen, x[:, S:], y[:, S:], known

    def _sizes(self, at: Tensor) -> Tensor:
        """Support rows of each episode: half uniform, a fifth log-uniform, the rest full."""
        kind, u = keys.uniform(keys.fold(at, 2), 2).unbind(-1)
        low, high = self.least_support, self.n_support
        uniform = low + u * (high - low)
        logarithmic = low * (high / low) ** u
        size = torch.where(kind < 0.5, uniform, torch.where(kind < 0.7, logarithmic, high))
        return size.round().long()


@dataclass(frozen=True)
class Shape:
    """What is settled of T tables before their family draws them."""

    at: Tensor  # (T,) keys
    rows: int
    n_way: int
    n_features: int

    @property
    def n_classes(self) -> Tensor:
        """Classes of each table, (T,): two in a third of them, else 2 to n_way uniformly."""
        u = keys.uniform(keys.fold(self.at, 10), 2)
        many = 2 + (u[:, 1] * (self.n_way - 1)).long()
        return torch.where(u[:, 0] < 1 / 3, torch.full_like(many, 2), many)

    @property
    def used(self) -> Tensor:
        """Which columns a table has, (T, F) bool: 1 to F, fewer more often."""
        u = keys.uniform(keys.fold(self.at, 11), 1) ** 1.5
        return torch.arange(self.n_features, device=self.at.device) <= u * self.n_features

    @property
    def classes(self) -> Tensor:
        """Which classes a table has, (T, N) bool."""
        return torch.arange(self.n_way, device=self.at.device) < self.n_classes[:, None]

    def select(self, index: Tensor) -> Shape:
        return Shape(self.at[index], self.rows, self.n_way, self.n_features)

    # Draws by number; each number is used once in a family.

    def normal(self, number: int, *shape: int) -> Tensor:
        """(T, *shape) float32, standard normal by 16 bits each."""
        n = math.prod(shape)
        words = keys.bits(keys.fold(self.at, number), -(-n // 4))
        index = words.view(torch.int16)[:, :n].long() + 32768
        return _quantiles(self.at.device)[index].reshape(-1, *shape)

    def uniform(self, number: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(T, *shape) float32 in [low, high)."""
        drawn = keys.uniform(keys.fold(self.at, number), math.prod(shape), low, high)
        below = torch.tensor(high, dtype=torch.float32).nextafter(torch.tensor(low))
        return drawn.reshape(-1, *shape).float().clamp(max=float(below))  # rounding may reach it

    def scale(self, number: int, low: float, high: float) -> Tensor:
        """(T, 1, 1) float32, log-uniform from low to high."""
        return low * (high / low) ** self.uniform(number, 1, 1)

    def chosen(self, number: int) -> Tensor:
        """A class for each row, (T, L), with unequal shares."""
        share = self._shares(number).cumsum(-1)  # (T, N)
        u = self.uniform(number + 1, self.rows)
        return (u.unsqueeze(-1) >= share[:, None, :-1]).sum(-1)

    def _shares(self, number: int) -> Tensor:
        """Shares of the classes, (T, N), that sum to 1: from alike to very unequal."""
        power = self.uniform(number + 2, 1, high=2.0)
        weight = (-torch.log1p(-self.uniform(number, self.n_way))) ** power + 1e-3
        weight = weight * self.classes
        return weight / weight.sum(-1, keepdim=True)

    def cut(self, number: int, score: Tensor) -> Tensor:
        """Classes (T, L) as ranges of a score (T, L)."""
        rank = score.argsort(-1).argsort(-1) / self.rows
        edges = self._shares(number).cumsum(-1)[:, None, :-1]
        return (rank.unsqueeze(-1) >= edges).sum(-1)

    def largest(self, number: int, scores: Tensor) -> Tensor:
        """Classes (T, L) by the largest of scores (T, L, N), whose offsets are unequal."""
        scores = _standard(scores) + self.normal(number, 1, self.n_way) * self.scale(
            number + 1, 0.05, 1.0
        )
        return scores.masked_fill(~self.classes[:, None], -torch.inf).argmax(-1)


def _causes(shape: Shape) -> tuple[Tensor, Tensor]:
    causes = shape.normal(30, shape.rows, WIDTH)
    nodes, last = _network(shape, causes)
    scores = last @ shape.normal(31, WIDTH, shape.n_way)
    scores = _standard(scores) + shape.normal(32, shape.rows, shape.n_way) * shape.scale(
        33, 0.01, 0.5
    )
    y = torch.where(
        shape.uniform(34, 1) < 0.5, shape.cut(35, scores[..., 0]), shape.largest(39, scores)
    )
    return _picked(shape, nodes), y


def _effects(shape: Shape) -> tuple[Tensor, Tensor]:
    y = shape.chosen(30)
    centres = shape.normal(33, shape.n_way, WIDTH) * shape.scale(34, 0.5, 4.0)
    causes = shape.normal(35, shape.rows, WIDTH) + _rows(centres, y)
    nodes, _ = _network(shape, causes)
    return _picked(shape, nodes), y


def _clusters(shape: Shape) -> tuple[Tensor, Tensor]:
    y, each, F = shape.chosen(30), 3, shape.n_features
    # How far apart centres are must fall with the columns, or all tables of many were easy.
    apart = shape.scale(33, 0.7, 5.0) * shape.used.sum(-1).float()[:, None, None] ** -0.25
    centres = shape.normal(34, shape.n_way * each, F) * apart
    centres = centres * (shape.uniform(35, 1, F) < shape.uniform(36, 1, 1, low=0.3, high=1.5))
    which = _parts(shape, each)
    spread = torch.exp(0.5 * shape.normal(39, shape.n_way, F) * shape.uniform(40, 1, 1))
    noise = _correlated(shape, shape.normal(41, shape.rows, F))
    return _rows(centres, y * each + which) + noise * _rows(spread, y), y


def _parts(shape: Shape, most: int) -> Tensor:
    """Which Gaussian of its class a row is from, (T, L): all classes have 1 to `most` alike."""
    each = 1 + (shape.uniform(38, 1) * most).long()
    return (shape.uniform(37, shape.rows) * each).long()


def _linear(shape: Shape) -> tuple[Tensor, Tensor]:
    F = shape.n_features
    x = _correlated(shape, shape.normal(30, shape.rows, F)) * shape.used[:, None]
    weights = shape.normal(31, F, shape.n_way)
    weights = weights * (shape.uniform(32, F, 1) < shape.uniform(33, 1, 1, low=0.2, high=1.5))
    scores = _standard(x @ weights)
    scores = scores + shape.normal(34, shape.rows, shape.n_way) * shape.scale(35, 0.02, 1.0)
    y = torch.where(
        shape.uniform(36, 1) < 0.3, shape.cut(37, scores[..., 0]), shape.largest(45, scores)
    )
    return x, y


def _rules(shape: Shape) -> tuple[Tensor, Tensor]:
    F = shape.n_features
    x = _correlated(shape, shape.normal(30, shape.rows, F))
    among = shape.used.sum(-1, keepdim=True)
    column = (shape.uniform(31, CUTS) * among).long()  # (T, cuts)
    seen = _standard(x).gather(2, column[:, None].expand(-1, shape.rows, -1))
    side = seen > 0.8 * shape.normal(32, 1, CUTS)
    side = side & (torch.arange(CUTS, device=x.device) < 1 + shape.uniform(33, 1, 1) * CUTS)
    cell = (side * 2 ** torch.arange(CUTS, device=x.device)).sum(-1)  # (T, L)
    classes = (shape.uniform(34, 2**CUTS) * shape.n_classes[:, None]).long()
    # The first two cells hold different classes, or a single cut would often decide nothing.
    classes[:, 1] = torch.where(
        classes[:, 1] == classes[:, 0], (classes[:, 0] + 1) % shape.n_classes, classes[:, 1]
    )
    return x, classes.gather(1, cell)


_FAMILIES: dict[str, Callable[[Shape], tuple[Tensor, Tensor]]] = {
    "causes": _causes,
    "effects": _effects,
    "clusters": _clusters,
    "linear": _linear,
    "rules": _rules,
}


def _network(shape: Shape, causes: Tensor) -> tuple[Tensor, Tensor]:
    """A random network on (T, L, W): all nodes (T, L, (D+1) W), and the last layer."""
    depth = 1 + (shape.uniform(50, 1, 1) * DEPTH).long()
    kind = _below(shape.at, 51, len(ACTIVATIONS))
    groups = [(kind == a).nonzero(as_tuple=True)[0] for a in range(len(ACTIVATIONS))]
    sparse, noise = shape.uniform(52, 1, 1, low=0.1, high=1.5), shape.scale(53, 0.01, 0.5)
    few = 1 + shape.uniform(54, 1, 1) * WIDTH  # causes that a table has
    hidden = causes * (torch.arange(WIDTH, device=causes.device) < few)
    layers = [hidden]
    for layer in range(DEPTH):
        n = 60 + 5 * layer
        weight = shape.normal(n, WIDTH, WIDTH) * (shape.uniform(n + 1, WIDTH, WIDTH) < sparse)
        drive = _standard(hidden @ weight) + shape.normal(n + 2, 1, WIDTH)
        out = torch.empty_like(drive)
        for group, activation in zip(groups, ACTIVATIONS, strict=True):
            out[group] = activation(drive[group])
        out = out + shape.normal(n + 3, shape.rows, WIDTH) * noise
        hidden = torch.where(depth > layer, out, hidden)
        layers.append(hidden)
    return torch.cat(layers, -1), hidden


def _picked(shape: Shape, nodes: Tensor) -> Tensor:
    """Columns (T, L, F): nodes at random, rather of the later layers in half of the tables."""
    late = torch.arange(nodes.shape[-1], device=nodes.device) / nodes.shape[-1]
    order = shape.uniform(80, nodes.shape[-1]) - late * (shape.uniform(81, 1) < 0.5)
    F = min(shape.n_features, nodes.shape[-1])
    column = order.argsort(-1)[:, None, :F].expand(-1, shape.rows, -1)
    return torch.nn.functional.pad(nodes.gather(2, column), (0, shape.n_features - F))


def _correlated(shape: Shape, x: Tensor) -> Tensor:
    """Columns mixed with one another, from not at all to strongly."""
    F = shape.n_features
    few = 1 + shape.uniform(90, 1, 1) * 8  # shared factors
    factors = shape.normal(91, 8, F) * (torch.arange(8, device=x.device)[:, None] < few)
    strength = (shape.uniform(92, 1, 1) * 2 - 0.7).clamp(min=0)
    return x + strength * (shape.normal(93, shape.rows, 8) @ factors)


def _columns(at: Tensor, x: Tensor) -> Tensor:
    """Columns as tables have them: warped, in levels, noise, of any scale."""
    _, L, F = x.shape
    shape = Shape(at, L, 2, F)
    x = _standard(x).clamp(-5, 5)
    kind, strength = shape.uniform(100, 1, F), shape.uniform(101, 1, F)
    warped = shape.uniform(102, 1, 1) < 0.5  # the columns of a table are often of one kind
    steps = torch.exp(1.5 * strength)  # 1 to 4.5 levels for each standard deviation
    levels = (x * steps + shape.uniform(103, 1, F)).floor()
    power = x.sign() * (x.abs() + 1e-6) ** (0.5 + 2 * strength)
    skewed = torch.exp((0.3 + strength) * x)
    x = torch.where(warped & (kind < 0.25), skewed, x)
    x = torch.where(warped & (kind >= 0.25) & (kind < 0.45), power, x)
    in_levels = shape.uniform(104, 1, 1) ** 2
    x = torch.where(shape.uniform(105, 1, F) < in_levels * 0.8, levels, x)
    # The row above has the same distribution, and says nothing of this row's class.
    useless = (shape.uniform(106, 1, 1) - 0.5).clamp(min=0)
    x = torch.where(shape.uniform(107, 1, F) < useless, x.roll(1, 1), x)
    return x * torch.exp(2 * shape.normal(108, 1, F)) + 3 * shape.normal(109, 1, F)


def _labels(at: Tensor, y: Tensor, n_way: int) -> Tensor:
    """Classes under random names, some of them wrong in a third of the tables."""
    shape = Shape(at, y.shape[1], n_way, 1)
    wrong = 0.3 * (shape.uniform(110, 1) * 1.5 - 1).clamp(min=0)
    y = torch.where(shape.uniform(111, y.shape[1]) < wrong, y.roll(1, 1), y)
    order = shape.uniform(112, n_way).masked_fill(~shape.classes, 2.0).argsort(-1)
    return order.gather(1, y)


def _standard(x: Tensor) -> Tensor:
    """Columns of (T, L, F) with mean 0 and deviation 1, constant ones 0."""
    centred = x - x.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of (T, K, D) by index (T, L): (T, L, D)."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))


def _below(at: Tensor, number: int, n: int) -> Tensor:
    return (keys.uniform(keys.fold(at, number), 1)[:, 0] * n).long()


@cache
def _quantiles(device: torch.device) -> Tensor:
    """Normal quantiles of 65536 equal steps, float32."""
    steps = (torch.arange(65536, device=device, dtype=torch.float64) + 0.5) / 65536
    quantiles: Tensor = torch.special.ndtri(steps).float()
    return quantiles
