"""Worlds of a cause and its effect, and interventions on the cause."""

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
class CausalPairs(Source):
    """One world of two variables; its tasks are interventions on the cause.

    Queries of meta-training come from the training distribution, later ones from the
    distribution after the intervention.

    Args:
        n_categories: of both variables; 0 for numbers.
        world: which one.
        swapped: the effect comes first.
    """

    name: ClassVar[str] = "causal-pairs"
    targets: ClassVar[str] = "pairs"
    network: ClassVar[Mapping[str, Any]] = {"name": "pair"}
    start: ClassVar[Mapping[str, Any]] = {"train.n_shot": 100, "train.n_query": 256}
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 100, "n_query": 50},)

    n_categories: int = 10
    world: int = 0
    swapped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_categories < 0 or self.n_categories == 1:
            raise InputError(
                f"data.n_categories is {self.n_categories}",
                "2 or more, or 0 for numbers",
                "Write data.n_categories=10.",
            )

    def inputs(self) -> Inputs:
        return Inputs("pairs", (2,), tokens=self.n_categories)

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        shown: dict[str, Any] = {  # not by `seed`, which would make it another world
            "split": wanted.split,
            "n_shot": wanted.n_shot,
            "n_query": wanted.n_query,
            "world": self.world,
            "swapped": self.swapped,
        }
        if self.n_categories:
            return datasets.CategoryPairs(n_categories=self.n_categories, **shown)
        return datasets.ContinuousPairs(**shown)
