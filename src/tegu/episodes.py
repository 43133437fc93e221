"""What a task is to a learner: an episode of support and query examples.

The same types hold one episode or a batch of them with a leading axis T.
Sizes are fixed by padding: `mask` says which rows are real, so that classes,
and episodes, may differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tegu.errors import InputError


class Examples(NamedTuple):
    """Inputs with their targets.

    Attributes:
        x: shape (S, ...), floating, or (S, L) int64 sequences of tokens; (T, S, ...)
            for a batch of episodes.
        y: shape (S,) int64 class labels, (S, D) floating targets, or (S, M) int64
            sequences of tokens.
        mask: shape (S,) bool, False where a row only pads.
    """

    x: Tensor
    y: Tensor
    mask: Tensor

    @classmethod
    def dense(cls, x: Tensor, y: Tensor) -> Examples:
        """Examples without padding, one set or a batch of sets.

        Raises:
            InputError: numbers as targets without an axis of their own.
        """
        if y.is_floating_point() and y.ndim < 2:
            raise InputError(
                f"targets of shape {tuple(y.shape)} that are numbers",
                "shape (S, D), D numbers for each example",
                "Pass y[:, None].",
            )
        tokens = x.dtype == y.dtype == torch.int64 and x.ndim == y.ndim
        rows = y.shape[:-1] if tokens or y.is_floating_point() else y.shape
        return cls(x, y, torch.ones(rows, dtype=torch.bool, device=x.device))


class Episode(NamedTuple):
    """One draw from one task: learn from `support`, be judged on `query`."""

    support: Examples
    query: Examples


def _pad(items: Sequence[Tensor]) -> Tensor:
    longest = max(len(item) for item in items)
    out = items[0].new_zeros((len(items), longest, *items[0].shape[1:]))
    for row, item in zip(out, items, strict=True):
        row[: len(item)] = item
    return out


def stack(episodes: Sequence[Episode]) -> Episode:
    """A batch of episodes, padded to the largest: leading axis T.

    Args:
        episodes: T episodes of one kind; their sizes may differ.

    Example:
        >>> x = torch.zeros(3, 2)
        >>> one = Episode(*[Examples.dense(x[:n], torch.zeros(n).long()) for n in (1, 2)])
        >>> two = Episode(*[Examples.dense(x[:n], torch.zeros(n).long()) for n in (3, 2)])
        >>> stack([one, two]).support.mask.tolist()
        [[True, False, False], [True, True, True]]
    """
    halves = [
        Examples(*(_pad([episode[half][field] for episode in episodes]) for field in range(3)))
        for half in range(2)
    ]
    return Episode(*halves)


def select(episodes: Episode, index: int | slice | Tensor) -> Episode:
    """Some episodes of a batch, or one of them: indexes the leading axis."""
    return Episode(*(Examples(*(field[index] for field in half)) for half in episodes))


def moved(
    episodes: Episode, device: torch.device | str, dtype: torch.dtype | None = None
) -> Episode:
    """The same on a device, and their numbers in a dtype, where it is given."""

    def there(field: Tensor) -> Tensor:
        return field.to(device, dtype if field.is_floating_point() else None)

    return Episode(*(Examples(*(there(field) for field in half)) for half in episodes))


def pooled(episode: Episode) -> Examples:
    """Support and queries of one episode as one set."""
    both = zip(episode.support, episode.query, strict=True)
    return Examples(*(torch.cat(pair) for pair in both))


def size(episodes: Episode) -> int:
    """Number of episodes T in a batch."""
    return len(episodes.support.mask)
