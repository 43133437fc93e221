"""Examples grouped by class: the form that every classification source takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tegu.datasets.rows import Chosen, Rows
from tegu.errors import InputError


@dataclass(frozen=True, eq=False)
class ClassDataset:
    """Examples of many classes in one tensor, class after class.

    Classes may differ in size. Nothing is copied per episode but the rows
    that the episode uses: drawing a batch of episodes is one gather. Data
    larger than memory have `Rows` in place of a tensor, which read the rows
    that an episode uses from files.

    Args:
        name: what reports call it, "omniglot" say.
        split: "meta_train", "meta_val" or "meta_test".
        examples: shape (M, ...), any dtype; images are uint8 (M, C, H, W). A tensor,
            or rows in files: `load_packed` and `load_folder` make those.
        counts: shape (K,), int64, size of each class in order; they sum to M.
        class_names: K names.
        scale: factor from the stored values to the model's floats, 1/255
            for images.
        mean: of each channel, taken from the floats; empty for none.
        std: deviation of each channel, which the rest is divided by.
        groups: shape (K,), int64, the group of each class, where classes have
            some: Omniglot's alphabets, say. None where they have not.
    """

    name: str
    split: str
    examples: Tensor | Rows
    counts: Tensor
    class_names: tuple[str, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        where = f"{self.name} {self.split}"
        if self.counts.ndim != 1 or len(self.counts) != len(self.class_names):
            raise InputError(
                f"{where}: {tuple(self.counts.shape)} class sizes for "
                f"{len(self.class_names)} class names",
                "one size for each name",
                "Pass counts and class_names of equal length.",
            )
        if int(self.counts.sum()) != len(self.examples):
            raise InputError(
                f"{where}: class sizes sum to {int(self.counts.sum())}, "
                f"but there are {len(self.examples)} examples",
                "sizes that sum to the number of examples",
                "Count the examples of each class again.",
            )
        if (empty := (self.counts < 1).nonzero().flatten()).numel():
            raise InputError(
                f"{where}: class '{self.class_names[int(empty[0])]}' is empty",
                "at least one example in each class",
                "Remove the class, or add examples to it.",
            )
        if self.groups is not None and (
            self.groups.shape != self.counts.shape or self.groups.dtype != torch.int64
        ):
            raise InputError(
                f"{where}: groups of shape {tuple(self.groups.shape)} and {self.groups.dtype}",
                f"an int64 for each of {len(self.counts)} classes",
                "Pass one group number for each class.",
            )
        if self.mean or self.std:
            self._check_channels(where)
        if isinstance(self.examples, Tensor) and (row := infinite(self.examples)) is not None:
            raise InputError(
                f"{where}: example {row} holds NaN or infinity",
                "finite numbers",
                "Clean the data, or drop that example.",
            )

    def _check_channels(self, where: str) -> None:
        channels = self.examples.shape[1] if len(self.examples.shape) > 1 else 0
        if not len(self.mean) == len(self.std) == channels:
            raise InputError(
                f"{where}: {len(self.mean)} means and {len(self.std)} deviations "
                f"for {channels} channels",
                "one of each for each channel",
                "Pass mean and std of that length, or neither.",
            )
        numbers = torch.tensor([self.mean, self.std])
        if not bool(numbers.isfinite().all()) or min(self.std) <= 0:
            raise InputError(
                f"{where}: mean {self.mean}, std {self.std}",
                "finite numbers, and deviations above 0",
                "Take them from the training images.",
            )

    @cached_property
    def ends(self) -> Tensor:
        """The row behind each class: shape (K,), int64."""
        return self.counts.cumsum(0)

    @cached_property
    def starts(self) -> Tensor:
        """First row of each class: shape (K,), int64."""
        return self.ends - self.counts

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def read(self) -> ClassDataset:
        """The same data in memory, on the examples' device."""
        if isinstance(self.examples, Tensor):
            return self
        return replace(self, examples=self.examples[torch.arange(len(self.examples))])

    @property
    def tensor(self) -> Tensor:
        """All examples, which are in memory.

        Raises:
            InputError: they lie in files.
        """
        if isinstance(self.examples, Tensor):
            return self.examples
        raise InputError(
            f"{self.name} {self.split}, which lies in files",
            "examples in memory",
            "Call read() first, if they fit.",
        )

    def where(self, keep: Callable[[str], bool]) -> ClassDataset:
        """The classes whose names `keep` says yes to, in the same order.

        Raises:
            InputError: it says yes to none.
        """
        chosen = [i for i, name in enumerate(self.class_names) if keep(name)]
        if not chosen:
            raise InputError(
                f"none of the {self.n_classes} classes of {self.name} {self.split}",
                "at least one",
                f"Names look like '{self.class_names[0]}'.",
            )
        return self.take(chosen)

    def take(self, chosen: Sequence[int]) -> ClassDataset:
        """Some classes by their numbers, in that order."""
        at = torch.tensor(chosen, device=self.counts.device)
        starts, ends = self.starts.tolist(), self.ends.tolist()
        rows = torch.cat([torch.arange(starts[i], ends[i]) for i in chosen])
        examples: Tensor | Rows = (
            self.examples[rows.to(self.examples.device)]
            if isinstance(self.examples, Tensor)
            else Chosen(self.examples, rows)
        )
        return replace(
            self,
            examples=examples,
            counts=self.counts[at],
            class_names=tuple(self.class_names[i] for i in chosen),
            groups=None if self.groups is None else self.groups[at].unique(return_inverse=True)[1],
        )

    def to(self, device: torch.device | str) -> ClassDataset:
        """The same data on another device."""
        return replace(
            self,
            examples=self.examples.to(device),
            counts=self.counts.to(device),
            groups=None if self.groups is None else self.groups.to(device),
        )


def infinite(examples: Tensor) -> int | None:
    """The first of some examples (M, ...) that holds NaN or infinity; None where none does."""
    if not examples.is_floating_point() or bool(examples.isfinite().all()):
        return None
    return int((~examples.reshape(len(examples), -1).isfinite().all(1)).nonzero()[0])
