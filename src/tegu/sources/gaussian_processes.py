"""Draws from Gaussian processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu import datasets
from tegu.datasets import ClassDataset
from tegu.errors import InputError
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class GaussianProcesses(Source):
    """Regression of one number on one, with sets of different sizes.

    `n_shot` is the most points that a support set has; an episode has between `fewest` and
    so many.

    Args:
        kernel: rbf, matern52 or periodic.
        fewest: support points of the smallest sets.
        noise: standard deviation of an observation about the function.
    """

    name: ClassVar[str] = "gp"
    targets: ClassVar[str] = "numbers"
    network: ClassVar[Mapping[str, Any]] = {"name": "mlp", "hidden": [64, 64]}
    start: ClassVar[Mapping[str, Any]] = {"train.n_shot": 46, "train.n_query": 32}
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 46, "n_query": 32},)

    kernel: str = "rbf"
    fewest: int = 3
    noise: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._process("meta_train", max(self.fewest, 1), 1, 0)

    def inputs(self) -> Inputs:
        return Inputs("vectors", (1,), outputs=1)

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        if wanted.n_shot < self.fewest:
            raise InputError(
                f"at most {wanted.n_shot} support points and at least {self.fewest}",
                "n_shot of data.fewest or more",
                f"Write train.n_shot=46, say, or data.fewest={wanted.n_shot}.",
            )
        return self._process(wanted.split, wanted.n_shot, wanted.n_query, wanted.seed)

    def _process(self, split: str, most: int, n_query: int, seed: int) -> Tasks:
        return datasets.GaussianProcesses(
            split,
            n_support=(self.fewest, most),
            n_query=n_query,
            seed=seed,
            kernel=self.kernel,
            noise=self.noise,
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        return {"data": f"gp-{self.kernel}, noise {self.noise:g}, from {self.fewest} points"}
