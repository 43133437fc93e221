"""Worlds of a few categorical variables, and interventions on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu import datasets
from tegu.datasets import ClassDataset
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class CausalGraphs(Source):
    """One world; its tasks are interventions on a variable that the learner is not told.

    Queries of meta-training come without the intervention, later ones after it.

    Args:
        family: of the graph: chain, fork, collider, jungle, full or random.
        variables: how many.
        world: which of the family's worlds.
        n_categories: of each variable.
        parents: expected number of parents in a random graph.
        intervention: soft or perfect.
    """

    name: ClassVar[str] = "causal-graphs"
    targets: ClassVar[str] = "samples"
    network: ClassVar[Mapping[str, Any]] = {"name": "masked-mlps"}
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 64, "n_query": 64},)

    family: str = "chain"
    variables: int = 3
    world: int = 0
    n_categories: int = 3
    parents: float = 1.0
    intervention: str = "soft"

    def inputs(self) -> Inputs:
        return Inputs("categories", (self.variables,), tokens=self.n_categories)

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        return datasets.CausalGraphs(  # not by `seed`, which would make it another world
            wanted.split,
            n_shot=wanted.n_shot,
            n_query=wanted.n_query,
            family=self.family,
            variables=self.variables,
            world=self.world,
            n_categories=self.n_categories,
            parents=self.parents,
            intervention=self.intervention,
            changed_query=not wanted.training,
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        return {"graph": f"{self.family}, {self.variables} variables"}
