"""Synthetic tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu.datasets import ClassDataset, SyntheticTables
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class Tables(Source):
    """Classification of rows; shots and queries are rows of a table, at most and in all.

    Args:
        n_features: most columns.
        least_support: fewest support rows.
        families: which of `tegu.datasets.tables.FAMILIES` to draw from; all if empty.
    """

    name: ClassVar[str] = "tables"
    targets: ClassVar[str] = "table classes"
    network: ClassVar[Mapping[str, Any]] = {"name": "table-transformer"}
    start: ClassVar[Mapping[str, Any]] = {
        "train.n_way": 10,
        "train.n_shot": 192,
        "train.n_query": 64,
    }
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 192, "n_query": 64},)

    n_features: int = 32
    least_support: int = 10
    families: tuple[str, ...] = ()

    def inputs(self) -> Inputs:
        return Inputs("tables", (self.n_features,))

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        some: dict[str, Any] = {"families": self.families} if self.families else {}
        return SyntheticTables(
            wanted.split,
            wanted.n_shot,
            wanted.n_query,
            wanted.seed,
            n_way=wanted.n_way,
            n_features=self.n_features,
            least_support=min(self.least_support, wanted.n_shot),
            **some,
        )
