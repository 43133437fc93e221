"""The contract of a source: all that a recipe's section [data] decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from tegu.datasets import ClassDataset
from tegu.datasets.augment import Augment
from tegu.datasets.splits import check_split
from tegu.errors import InputError
from tegu.sampling import Tasks


@dataclass(frozen=True)
class Inputs:
    """What a network is given, and what it answers with where the data decide that.

    Args:
        kind: "images", "vectors", "tokens", "tables", "categories" or "pairs".
        shape: of one example: (C, H, W), (D,), (L,) of a sequence of tokens, or (k,) of
            categorical variables.
        outputs: numbers, or kinds of tokens, in an answer; 0 where that is up to the
            classes of a task.
        tokens: kinds of tokens in an input, or of categories; of these only.
        longest: tokens in the longest answer, of tokens only.
    """

    kind: str
    shape: tuple[int, ...]
    outputs: int = 0
    tokens: int = 0
    longest: int = 0

    def wider(self, extra: int) -> Inputs:
        """With so many more channels or numbers."""
        return Inputs(self.kind, (self.shape[0] + extra, *self.shape[1:]), self.outputs)


class Wanted(NamedTuple):
    """Which episodes a source is asked for.

    Attributes:
        split: "meta_train", "meta_val" or "meta_test".
        n_way: classes of a task, where there are some.
        n_shot: support examples, of each class where there are some.
        n_query: query examples, likewise; 0 only where there are classes.
        seed: of the whole sequence of episodes.
        training: whether these are learned from, and so may be varied.
    """

    split: str
    n_way: int
    n_shot: int
    n_query: int
    seed: int
    training: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where tasks come from. A subclass is one data set; its fields are the keys of [data].

    Class attributes:
        name: what a recipe calls it.
        targets: "classes", "numbers", "sequences", "samples", "pairs" or "table classes" (of rows,
            which no data set holds by class); a learner says which of them it learns.
        network: section [model] of a recipe that names none.
        start: settings to start from, by dotted key of a recipe.
        cells: figures of a recipe to start from, where these are not by class and shot.
        downloads: whether it needs files that do not come with tegu.
        changes: whether its classes are a user's, who may add some.

    Args:
        validation: split of the progress figure; "": the usual one.
    """

    name: ClassVar[str]
    targets: ClassVar[str] = "classes"
    network: ClassVar[Mapping[str, Any]] = {"name": "conv4"}
    start: ClassVar[Mapping[str, Any]] = {}
    cells: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    downloads: ClassVar[bool] = False
    changes: ClassVar[bool] = False

    validation: str = ""

    def __post_init__(self) -> None:
        if self.validation:
            check_split(self.validation)

    def inputs(self) -> Inputs:
        """What a network for it is given."""
        raise TypeError(f"{type(self).__name__} has no inputs()")

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        """Examples of a split by class, where there are some."""
        raise InputError(
            f"classes of {self.name}, whose targets are {self.targets}",
            "a data set of classes",
            "Take glyphs or omniglot, say.",
        )

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        """Episodes of a split.

        Args:
            wanted: which, and of what size.
            data: what `load` gave, on its device; None without classes.
        """
        raise TypeError(f"{type(self).__name__} has no tasks()")

    def varied(self) -> Augment | None:
        """How training examples are varied, if they are."""
        return None

    def examples(self, place: Path) -> tuple[list[str], list[str]]:
        """What a new task is learnt from, in files of a user's: what `read` takes, and labels.

        Args:
            place: a folder with one sub-folder for each class, or a table.

        Raises:
            InputError: nothing of the kind is there, or files cannot be examples of this source.
        """
        raise self.no_files()

    def listed(self, files: Sequence[Path]) -> list[str]:
        """What is asked about, one by one, as `read` takes it: the files themselves, or texts."""
        return [str(file) for file in files]

    def read(self, some: Sequence[str]) -> Tensor:
        """Inputs (B, ...) of what `examples` or `listed` gave."""
        raise self.no_files()

    def no_files(self) -> InputError:
        """The error for files that cannot be examples of this source."""
        return InputError(
            f"files for a run on {self.name}",
            "a run on folder, sounds or sentences, whose examples are files or texts",
            "Learn the task in Python: tegu.load_run(RUN).adapt(x, labels).",
        )

    def validated(self) -> str:
        """The split of the progress figure."""
        return self.validation or "meta_val"

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        """What a figure of a split must say beside the data's name, the split, ways and shots."""
        return {}
