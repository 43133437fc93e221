"""Sine waves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu import datasets
from tegu.datasets import ClassDataset
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class Sinusoids(Source):
    """Regression of one number on one.

    Args:
        phase: phases are drawn from 0 to this, radians.
        frequency_spread: how far frequencies lie from 1, at most.
        grid_query: training queries are evenly spaced; otherwise drawn like the support set.
    """

    name: ClassVar[str] = "sinusoids"
    targets: ClassVar[str] = "numbers"
    network: ClassVar[Mapping[str, Any]] = {"name": "mlp", "hidden": [40, 40]}
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 10, "n_query": 50},)

    phase: float = 2 * math.pi
    grid_query: bool = True
    frequency_spread: float = 0.0

    def inputs(self) -> Inputs:
        return Inputs("vectors", (1,), outputs=1)

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        return datasets.Sinusoids(
            wanted.split,
            n_shot=wanted.n_shot,
            n_query=wanted.n_query,
            seed=wanted.seed,
            grid_query=self.grid_query or wanted.split != "meta_train",
            phase=(0.0, self.phase),
            frequency=(1.0 - self.frequency_spread, 1.0 + self.frequency_spread),
        )
