"""Draws batches of episodes: episode i is a function of (seed, split, i) alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.augment import Augment
from tegu.datasets.classes import ClassDataset
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range

BLOCK = 1 << 19  # numbers that are made floats at once: a core's cache holds them


class Tasks(Protocol):
    """A source of episodes, finite or endless."""

    @property
    def split(self) -> str:
        """ "meta_train", "meta_val" or "meta_test"."""
        ...

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch with leading axis T."""
        ...


@dataclass(frozen=True)
class FewShotTasks:
    """N-way classification episodes from examples grouped by class.

    Classes are drawn without replacement, and so are the examples of each
    class; labels 0 to n_way - 1 go to classes in the random order of the draw.
    What a draw costs does not depend on the number of classes.

    Args:
        data: where examples come from; episodes live on its device.
        n_way: classes per episode, 2 or more.
        n_shot: support examples per class.
        n_query: query examples per class; may be 0 for learners that need none.
        seed: of the whole sequence of episodes.
        augment: of images (B, C, H, W) and a key for each (B,), `tegu.datasets.augment`
            has some; applied to support and query images after `data.scale` and
            before `data.mean`. None: images as they are.
        within: all classes of an episode come from one group of `data.groups`,
            chosen uniformly among those with n_way classes or more.
    """

    data: ClassDataset
    n_way: int
    n_shot: int
    n_query: int = 1
    seed: int = 0
    augment: Augment | None = None
    within: bool = False

    def __post_init__(self) -> None:
        where = f"{self.data.name} {self.data.split}"
        for name, least in (("n_way", 2), ("n_shot", 1), ("n_query", 0)):
            check_range(name, getattr(self, name), least, todo=f"Pass {name}={least} or more.")
        if self.n_way > self.data.n_classes:
            raise InputError(
                f"n_way is {self.n_way}, but {where} has {self.data.n_classes} classes",
                "no more ways than classes",
                "Lower n_way, or use a split with more classes.",
            )
        need, small = self.n_shot + self.n_query, int(self.data.counts.argmin())
        if need > int(self.data.counts[small]):
            raise InputError(
                f"{self.n_shot} shots plus {self.n_query} queries make {need}, but class "
                f"'{self.data.class_names[small]}' of {where} has {int(self.data.counts[small])} "
                "examples",
                "no more shots and queries than examples",
                "Lower n_shot or n_query, or drop the small classes.",
            )
        _check_augment(self.data, self.augment)
        if self.within:
            self._check_groups(where)

    def _check_groups(self, where: str) -> None:
        if self.data.groups is None:
            raise InputError(
                f"within=True, but {where} has no groups of classes",
                "data with groups, such as Omniglot's alphabets",
                "Pass within=False, or a data set with `groups`.",
            )
        if (most := int(self.data.groups.unique(return_counts=True)[1].max())) < self.n_way:
            raise InputError(
                f"n_way is {self.n_way}, but the largest group of {where} has {most} classes",
                "no more ways than one group has classes",
                "Lower n_way, or pass within=False.",
            )

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """Classes by group (K,); of each group with n_way classes its size and first place."""
        assert self.data.groups is not None
        _, sizes = self.data.groups.unique(return_counts=True)  # in ascending order, as argsort
        starts, enough = sizes.cumsum(0) - sizes, sizes >= self.n_way
        return self.data.groups.argsort(stable=True), sizes[enough], starts[enough]

    @property
    def split(self) -> str:
        return self.data.split

    @property
    def waits(self) -> bool:
        """Whether a draw reads files: then a thread of its own may draw ahead."""
        return not isinstance(self.data.examples, Tensor)

    def episodes(self, index: Tensor) -> Episode:
        device = self.data.examples.device
        at = keys.fold(keys.key(self.seed, self.split, device=device), index.to(device))
        _, for_classes, for_rows, for_order, for_group, *for_augment = keys.parts(at, 7)
        classes = self._classes(for_classes, for_group)
        rows = keys.distinct(
            keys.parts(for_rows, self.n_way).T,
            self.data.counts[classes],
            self.n_shot + self.n_query,
        )  # (T, N, shots + queries), within the class
        rows = rows + self.data.starts[classes].unsqueeze(-1)
        labels = torch.arange(self.n_way, device=device).expand_as(classes).unsqueeze(-1)
        shots, queries = rows.split([self.n_shot, self.n_query], -1)
        # In class order, the place of a query among the others would give away its label.
        order = keys.permutation(for_order, self.n_way * self.n_query)
        halves = []
        for half, (part, shuffle) in enumerate(((shots, None), (queries, order))):
            chosen = part.flatten(1)
            y = labels.expand_as(part).flatten(1).contiguous()
            if shuffle is not None:
                chosen, y = chosen.gather(1, shuffle), y.gather(1, shuffle)
            x = _inputs(self.data, chosen, for_augment[half], self.augment)
            halves.append(Examples(x, y, torch.ones_like(y, dtype=torch.bool)))
        return Episode(*halves)

    def _classes(self, at: Tensor, for_group: Tensor) -> Tensor:
        """The classes of episodes by keys of shape (T,): shape (T, N), int64."""
        if not self.within:
            return keys.distinct(at, self.data.n_classes, self.n_way)
        members, sizes, starts = self._groups
        group = keys.distinct(for_group, len(sizes), 1)  # (T, 1)
        places = keys.distinct(at, sizes[group[:, 0]], self.n_way)
        return members[starts[group] + places]


@dataclass(frozen=True)
class ClassBatches:
    """Batches of a classifier of all classes, in the form of episodes without queries.

    Labels are class numbers of the split. All examples are shuffled and dealt out,
    and shuffled again when they run out: batch i is a function of (seed, split, i),
    and costs the same however many examples there are.

    Args:
        data: where examples come from; batches live on its device.
        batch: examples per batch.
        seed: of the whole sequence of batches.
        augment: of images (B, C, H, W) and keys (B,), as for `FewShotTasks`.
    """

    data: ClassDataset
    batch: int
    seed: int = 0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        check_range("batch", self.batch, 1, todo="Pass batch=64, say.")
        _check_augment(self.data, self.augment)

    @property
    def split(self) -> str:
        return self.data.split

    @property
    def waits(self) -> bool:
        """Whether a draw reads files: then a thread of its own may draw ahead."""
        return not isinstance(self.data.examples, Tensor)

    def episodes(self, index: Tensor) -> Episode:
        examples = self.data.examples
        root = keys.key(self.seed, self.split, "batches", device=examples.device)
        within = torch.arange(self.batch, device=examples.device)
        dealt = index.to(examples.device)[:, None] * self.batch + within  # (T, batch)
        epoch, place = dealt // len(examples), dealt % len(examples)
        rows = keys.shuffled(keys.fold(root, epoch), place, len(examples))
        y = torch.searchsorted(self.data.ends, rows, right=True)
        at = keys.fold(keys.fold(root, 1 << 40), index.to(examples.device))
        x = _inputs(self.data, rows, at, self.augment)
        support = Examples(x, y, torch.ones_like(y, dtype=torch.bool))
        return Episode(support, Examples(*(field[:, :0] for field in support)))


def _check_augment(data: ClassDataset, augment: Augment | None) -> None:
    if augment is not None and len(data.examples.shape) != 4:
        raise InputError(
            f"augmentation of {data.name} {data.split}, whose examples have shape "
            f"{tuple(data.examples.shape[1:])}",
            "images of shape (C, H, W)",
            "Pass augment=None.",
        )


def _inputs(data: ClassDataset, rows: Tensor, at: Tensor, augment: Augment | None) -> Tensor:
    """Examples by their numbers (T, S), as the model takes them: (T, S, ...).

    `at` are keys, shape (T,).
    """
    x = _floats(data, rows)
    if augment is not None and x.shape[1]:
        each = keys.fold(at[:, None], torch.arange(x.shape[1], device=x.device))
        x = augment(x.flatten(0, 1), each.flatten()).unflatten(0, x.shape[:2])
    if data.mean:
        shape = (-1, *[1] * (x.ndim - 3))  # one for each channel, the axis behind T and S
        mean, std = (
            torch.cat([x.new_full((1,), v) for v in values]).reshape(shape)
            for values in (data.mean, data.std)
        )
        x = (x - mean) / std
    return x


def _floats(data: ClassDataset, rows: Tensor) -> Tensor:
    """Examples by their numbers (T, S), times their scale: (T, S, ...)."""
    examples, flat, shape = data.examples, rows.flatten(), data.examples.shape[1:]
    as_stored = data.scale == 1 and examples.dtype.is_floating_point
    if not isinstance(examples, Tensor):
        found = examples[rows]
        if as_stored:
            return found
        return found.to(torch.get_default_dtype(), copy=True).mul_(data.scale)
    # `index_select` copies whole rows, in a tenth of the time that indexing takes.
    if as_stored:
        return examples.index_select(0, flat).reshape(*rows.shape, *shape)
    out = torch.empty(len(flat), *shape, device=examples.device)
    fit = BLOCK // max(1, math.prod(shape)) if examples.device.type == "cpu" else len(flat)
    each = max(1, fit)
    for part, to in zip(flat.split(each), out.split(each), strict=True):
        to.copy_(examples.index_select(0, part)).mul_(data.scale)
    return out.reshape(*rows.shape, *shape)
