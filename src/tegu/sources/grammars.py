"""Random interpretation grammars, and the one that people were taught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu import datasets
from tegu.datasets import ClassDataset
from tegu.datasets.grammars import COMMANDS, OUTPUTS, STUDY
from tegu.datasets.tokens import WORDS
from tegu.errors import unknown
from tegu.sampling import Tasks
from tegu.sources.source import Inputs, Source, Wanted

TESTS = ("meta_test", "gold", "human")


@dataclass(frozen=True, kw_only=True)
class Grammars(Source):
    """Commands of made-up words and the symbols they stand for.

    Args:
        longest: words of a command and symbols of an output, at most.
        test: what figures are of: "meta_test", grammars unlike those of training; "gold",
            the grammar that people were taught, in many wordings; "human", the one episode
            that they saw.
        study: "random", "simple", "taught" or "mixed": which commands of a generated grammar are
            shown.
        lookups, functions: episodes of a first and a second lesson, before the others.
    """

    name: ClassVar[str] = "grammars"
    targets: ClassVar[str] = "sequences"
    network: ClassVar[Mapping[str, Any]] = {"name": "seq2seq"}
    start: ClassVar[Mapping[str, Any]] = {
        "train.meta_batch": 16,
        "train.n_shot": 14,
        "train.n_query": 10,
    }
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_shot": 14, "n_query": 10},)

    longest: int = 8
    test: str = "meta_test"
    study: str = "random"
    lookups: int = 0
    functions: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test not in TESTS:
            raise unknown("data.test", self.test, TESTS)
        if self.study not in STUDY:
            raise unknown("data.study", self.study, STUDY)

    def inputs(self) -> Inputs:
        return Inputs(
            "tokens",
            (self.longest,),
            outputs=WORDS + len(OUTPUTS),
            tokens=WORDS + len(COMMANDS),
            longest=self.longest + 1,
        )

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        return datasets.Grammars(
            self.test if wanted.split == "meta_test" else wanted.split,
            wanted.n_shot,
            wanted.n_query,
            wanted.seed,
            longest=self.longest,
            study=self.study,
            lookups=self.lookups,
            functions=self.functions,
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        return {"data": f"grammars, {self.test if split == 'meta_test' else split}"}
