"""SCAN by study examples, as MLC learns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu import datasets
from tegu.datasets import ClassDataset
from tegu.datasets.scan import ACTION_WORDS, COMMAND_WORDS
from tegu.datasets.scan_study import TASKS
from tegu.datasets.tokens import WORDS
from tegu.errors import unknown
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class ScanStudy(Source):
    """Pairs of a train file whose words trade places from episode to episode.

    Args:
        task: "add-jump", "around-right" or "length".
        shown: actions in a study example, at most.
        named: study examples show what each word does that trades places.
        lookups, short: episodes of a first and a second lesson, before the others.
    """

    name: ClassVar[str] = "scan-study"
    targets: ClassVar[str] = "sequences"
    network: ClassVar[Mapping[str, Any]] = {"name": "seq2seq"}
    start: ClassVar[Mapping[str, Any]] = {
        "train.n_shot": 10,
        "train.n_query": 8,
        "train.meta_batch": 16,
    }
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 10, "n_query": 8},)

    task: str = "add-jump"
    shown: int = 12
    named: bool = False
    lookups: int = 0
    short: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise unknown("data.task", self.task, TASKS)

    def inputs(self) -> Inputs:
        return Inputs(
            "tokens",
            (9,),
            outputs=WORDS + len(ACTION_WORDS),
            tokens=WORDS + len(COMMAND_WORDS),
            longest=49,
        )

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        return datasets.ScanStudy(
            self.task,
            wanted.split,
            wanted.n_shot,
            wanted.n_query,
            wanted.seed,
            shown=self.shown,
            named=self.named,
            lookups=self.lookups,
            short=self.short,
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        return {"data": f"scan {self.task}, by study examples"}
