"""Draws batches of episodes: episode i is a function of (seed, split, i) alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.episodes import Episode, Examples
from tegu.errors import InputError


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

    Args:
        data: where examples come from; episodes live on its device.
        n_way: classes per episode, 2 or more.
        n_shot: support examples per class.
        n_query: query examples per class; may be 0 for learners that need none.
        seed: of the whole sequence of episodes.
    """

    data: ClassDataset
    n_way: int
    n_shot: int
    n_query: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        where = f"{self.data.name} {self.data.split}"
        for name, least in (("n_way", 2), ("n_shot", 1), ("n_query", 0)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}",
                    f"at least {least}",
                    f"Pass {name}={least} or more.",
                )
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

    @property
    def split(self) -> str:
        return self.data.split

    def episodes(self, index: Tensor) -> Episode:
        device = self.data.examples.device
        at = keys.fold(keys.key(self.seed, self.split, device=device), index.to(device))
        classes = keys.distinct(keys.fold(at, 1), self.data.n_classes, self.n_way)  # (T, N)
        rows = keys.distinct(
            keys.fold(keys.fold(at, 2).unsqueeze(-1), torch.arange(self.n_way, device=device)),
            self.data.counts[classes],
            self.n_shot + self.n_query,
        )  # (T, N, shots + queries), within the class
        rows = rows + self.data.starts[classes].unsqueeze(-1)
        labels = torch.arange(self.n_way, device=device).expand_as(classes).unsqueeze(-1)
        shots, queries = rows.split([self.n_shot, self.n_query], -1)
        # In class order, the place of a query among the others would give away its label.
        order = keys.permutation(keys.fold(at, 3), self.n_way * self.n_query)
        halves = []
        for part, shuffle in ((shots, None), (queries, order)):
            chosen = part.flatten(1)
            y = labels.expand_as(part).flatten(1).contiguous()
            if shuffle is not None:
                chosen, y = chosen.gather(1, shuffle), y.gather(1, shuffle)
            x = _inputs(self.data, chosen)
            halves.append(Examples(x, y, torch.ones_like(y, dtype=torch.bool)))
        return Episode(*halves)


@dataclass(frozen=True)
class ClassBatches:
    """Batches of a classifier of all classes, in the form of episodes without queries.

    Labels are class numbers of the split. All examples are shuffled and dealt out,
    and shuffled again when they run out: batch i is a function of (seed, split, i).

    Args:
        data: where examples come from; batches live on its device.
        batch: examples per batch.
        seed: of the whole sequence of batches.
    """

    data: ClassDataset
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}", "at least 1", "Pass batch=64, say.")

    @property
    def split(self) -> str:
        return self.data.split

    def episodes(self, index: Tensor) -> Episode:
        examples = self.data.examples
        root = keys.key(self.seed, self.split, "batches", device=examples.device)
        within = torch.arange(self.batch, device=examples.device)
        dealt = index.to(examples.device)[:, None] * self.batch + within  # (T, batch)
        epochs, which = (dealt // len(examples)).unique(return_inverse=True)
        orders = keys.permutation(keys.fold(root, epochs), len(examples))
        rows = orders[which, dealt % len(examples)]
        y = torch.searchsorted(self.data.counts.cumsum(0), rows, right=True)
        support = Examples(_inputs(self.data, rows), y, torch.ones_like(y, dtype=torch.bool))
        return Episode(support, Examples(*(field[:, :0] for field in support)))


def _inputs(data: ClassDataset, rows: Tensor) -> Tensor:
    """Examples as a model takes them."""
    x = data.examples[rows]
    if x.dtype == torch.uint8 or data.scale != 1:
        x = x.to(torch.get_default_dtype()) * data.scale
    return x
