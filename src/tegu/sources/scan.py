"""SCAN with changing meanings, and words that exclude one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu import datasets
from tegu.datasets import ClassDataset
from tegu.datasets.scan_tasks import KINDS, MEANINGS
from tegu.errors import InputError, unknown
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class Scan(Source):
    """Commands of SCAN, made from its grammar.

    Args:
        task: "add-jump", "add-jump-augmented", "around-right" or "length".
        meanings: "permuted" in each training episode; or "true", which is ordinary training
            on the split's train file.
        strict: "jump" never means in training what it means in the test.
    """

    name: ClassVar[str] = "scan"
    targets: ClassVar[str] = "sequences"
    network: ClassVar[Mapping[str, Any]] = {"name": "seq2seq"}
    start: ClassVar[Mapping[str, Any]] = {
        "train.n_shot": 20,
        "train.n_query": 20,
        "train.meta_batch": 2,
    }
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 20, "n_query": 2},)

    task: str = "add-jump"
    meanings: str = "permuted"
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in KINDS:
            raise unknown("data.task", self.task, KINDS)
        if self.meanings not in MEANINGS:
            raise unknown("data.meanings", self.meanings, MEANINGS)

    def inputs(self) -> Inputs:
        source = datasets.Scan(self.task)
        return Inputs(
            "tokens",
            (source.longest,),
            outputs=source.n_outputs,
            tokens=source.n_inputs,
            longest=source.steps,
        )

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        return datasets.Scan(
            self.task,
            wanted.split,
            wanted.n_shot,
            wanted.n_query,
            wanted.seed,
            meanings=self.meanings,
            strict=self.strict,
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        # Isolated commands in a test, however many pairs training shows.
        shown = KINDS[self.task].support if split == "meta_test" else None
        return {"data": f"scan {self.task}", **({"n_shot": len(shown)} if shown else {})}


@dataclass(frozen=True, kw_only=True)
class MutualExclusivity(Source):
    """Four words, four symbols, and three of the words' meanings shown.

    Args:
        longest: words of the longest query.
    """

    name: ClassVar[str] = "mutual-exclusivity"
    targets: ClassVar[str] = "sequences"
    network: ClassVar[Mapping[str, Any]] = {"name": "seq2seq"}
    start: ClassVar[Mapping[str, Any]] = {
        "train.n_shot": 3,
        "train.n_query": 20,
        "train.meta_batch": 4,
    }
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 3, "n_query": 20},)

    longest: int = 6

    def inputs(self) -> Inputs:
        source = datasets.MutualExclusivity(longest=self.longest)
        return Inputs(
            "tokens",
            (self.longest,),
            outputs=source.n_outputs,
            tokens=source.n_inputs,
            longest=source.steps,
        )

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        if wanted.n_shot != 3:
            raise InputError(
                f"n_shot is {wanted.n_shot} on mutual-exclusivity",
                "3: all but one of its four words",
                "Write n_shot=3.",
            )
        return datasets.MutualExclusivity(
            wanted.split, wanted.n_query, wanted.seed, longest=self.longest
        )
