"""Sine waves: the regression tasks of the meta-learning literature."""

from __future__ import annotations

import math
import operator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import check_split
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range


@dataclass(frozen=True)
class Sinusoids:
    """Tasks y = amplitude * sin(frequency * x + phase), a new wave in each episode.

    Args:
        split: "meta_train", "meta_val" or "meta_test"; their waves differ.
        n_shot: support points, drawn uniformly from the range of x.
        n_query: query points.
        seed: of the whole sequence of episodes.
        grid_query: query points evenly spaced over the range of x, both ends
            included; otherwise drawn from it as support points are.
        amplitude: range, lowest and highest.
        phase: range, radians. Nichol et al. draw from (0, 2 pi), the default;
            Finn et al. from (0, pi), half as many waves: name yours with a figure.
        x: range of inputs.
        frequency: range; the default is 1 for all waves.

    Raises:
        InputError: an unknown split, a count below 1, or a range that is not two
            finite numbers, the lower first.

    Reference:
        Finn et al. (2017), arXiv:1703.03400, section 5.1; Nichol et al. (2018),
        arXiv:1803.02999, section 4.

    Example:
        >>> Sinusoids(n_shot=3).episodes(torch.arange(2)).support.x.shape
        torch.Size([2, 3, 1])
    """

    split: str = "meta_train"
    n_shot: int = 10
    n_query: int = 50
    seed: int = 0
    _: KW_ONLY
    grid_query: bool = True
    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, 2 * math.pi)
    x: tuple[float, float] = (-5.0, 5.0)
    frequency: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        check_split(self.split)
        for name in ("n_shot", "n_query"):
            check_range(name, getattr(self, name), 1)
        for name in ("amplitude", "phase", "x", "frequency"):
            given = tuple(getattr(self, name))
            ordered = operator.le if name == "frequency" else operator.lt
            if len(given) != 2 or not (all(map(math.isfinite, given)) and ordered(*given)):
                raise InputError(
                    f"the range of {name} is {given}",
                    "two finite numbers, the lower first",
                    f"Pass {name}=(low, high).",
                )

    def _keys(self, index: Tensor) -> Tensor:
        return keys.fold(keys.key(self.seed, "sinusoids", self.split, device=index.device), index)

    def waves(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude and phase (radians) of episodes `index`: two of shape (T, 1), float64."""
        at = self._keys(index)
        return (
            keys.uniform(keys.fold(at, 1), 1, *self.amplitude),
            keys.uniform(keys.fold(at, 2), 1, *self.phase),
        )

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on its device.

        Returns:
            Inputs and targets of shape (T, S, 1), default dtype; every row real.
        """
        amplitude, phase = self.waves(index)
        at = self._keys(index)
        low, high = self.frequency
        frequency = keys.uniform(keys.fold(at, 5), 1, low, high) if low < high else low
        support = keys.uniform(keys.fold(at, 3), self.n_shot, *self.x)
        if self.grid_query:
            grid = torch.linspace(*self.x, self.n_query, dtype=torch.float64, device=index.device)
            query = grid.expand(len(index), -1)
        else:
            query = keys.uniform(keys.fold(at, 4), self.n_query, *self.x)
        dtype = torch.get_default_dtype()
        halves = []
        for x in (support, query):
            y = amplitude * torch.sin(frequency * x + phase)
            mask = torch.ones_like(x, dtype=torch.bool)
            halves.append(Examples(x.unsqueeze(-1).to(dtype), y.unsqueeze(-1).to(dtype), mask))
        return Episode(*halves)
