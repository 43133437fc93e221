"""First lessons for readers of study examples: each word stands for one symbol.

A transformer on whole episodes answers by what is frequent for tens of thousands of them, before
it looks anything up among the study examples. Here nothing else helps, commands are short, and
it is found out within 3,000 episodes or so (figures in benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.episodes import Episode, Examples

MEANINGS = 6  # words with a meaning in an episode, at most; 2 at least
LENGTH = 4  # words of a command, at most


def lookups(at: Tensor, *, words: int, symbols: int, n_support: int, n_query: int) -> Episode:
    """Episodes whose study examples are a list of words and what they mean.

    Args:
        at: a key for each of T episodes, shape (T,) int64.
        words, symbols: how many there are, 2 at least.
        n_support: study examples; those beyond the words with a meaning are padding.
        n_query: commands: one to four of these words, which may repeat.

    Returns:
        Commands (T, S, 4) and symbols (T, S, 5), int64; the same for queries.

    Example:
        >>> at = torch.arange(3)
        >>> some = lookups(at, words=9, symbols=6, n_support=14, n_query=5)
        >>> some.support.x.shape, some.query.y.shape, some.support.mask.sum(-1) >= 2
        (torch.Size([3, 14, 4]), torch.Size([3, 5, 5]), tensor([True, True, True]))
    """
    most = min(MEANINGS, words, symbols, n_support)
    count = min(2, most) + keys.bits(keys.fold(at, 0), 1) % max(1, most - 1)
    shown = torch.arange(most) < count  # (T, most)
    word = keys.permutation(keys.fold(at, 1), words)[:, :most] + WORDS
    symbol = keys.permutation(keys.fold(at, 2), symbols)[:, :most] + WORDS
    x = F.pad((word * shown)[..., None], (0, LENGTH - 1, 0, n_support - most), value=PAD)
    ends = torch.full_like(symbol, END)
    y = torch.stack([symbol, ends], -1) * shown[..., None]
    y = F.pad(y, (0, LENGTH - 1, 0, n_support - most), value=PAD)

    size = (len(at), n_query, LENGTH)
    which = (keys.bits(keys.fold(at, 3), n_query * LENGTH) % count).view(size)
    length = 1 + keys.bits(keys.fold(at, 4), n_query)[..., None] % LENGTH
    said = torch.arange(LENGTH) < length
    asked, answer = (
        names[:, None].expand(-1, n_query, -1).gather(2, which) * said for names in (word, symbol)
    )
    answer = F.pad(answer, (0, 1), value=PAD).scatter(2, length, END)
    real = torch.ones(size[:2], dtype=torch.bool)
    return Episode(
        Examples(x, y, F.pad(shown, (0, n_support - most))), Examples(asked, answer, real)
    )


def lookups_first(
    index: Tensor,
    count: int,
    key: Tensor,
    later: Callable[[Tensor], Episode],
    *,
    words: int,
    symbols: int,
) -> Episode:
    """Training episodes in the order of `index` (T,): those below `count` are lookups.

    Args:
        index: numbers of episodes, int64.
        count: of lookups.
        key: of all lookups, 0-d.
        later: draws the other episodes, by their numbers.
        words, symbols: as in `lookups`.

    Returns:
        Where some are lookups: on the processor, and the narrower kind is padded.
    """
    first = index < count
    if not first.any():
        return later(index)
    index, first = index.cpu(), first.cpu()
    whole = later(index[~first])
    sizes = {"n_support": whole.support.x.shape[1], "n_query": whole.query.x.shape[1]}
    early = lookups(keys.fold(key, index[first]), words=words, symbols=symbols, **sizes)
    place = torch.cat([first.nonzero()[:, 0], (~first).nonzero()[:, 0]]).argsort()

    def joined(one: Tensor, other: Tensor) -> Tensor:
        if one.ndim == 3:
            width = max(one.shape[-1], other.shape[-1])
            one, other = (F.pad(t, (0, width - t.shape[-1]), value=PAD) for t in (one, other))
        return torch.cat([one, other])[place]

    halves = zip(early, whole, strict=True)
    return Episode(*(Examples(*map(joined, a, b)) for a, b in halves))


def narrowed(episodes: Episode) -> Episode:
    """The same without the padding that `lookups` needs beside longer episodes, if all are such."""
    support = episodes.support
    n_support = min(MEANINGS, support.mask.shape[1])
    beyond = (
        support.mask[:, n_support:],
        *(half.x[..., LENGTH:] != PAD for half in episodes),
        *(half.y[..., LENGTH + 1 :] != PAD for half in episodes),
    )
    if any(bool(part.any()) for part in beyond):
        return episodes
    shown, asked = (
        Examples(half.x[..., :LENGTH], half.y[..., : LENGTH + 1], half.mask) for half in episodes
    )
    return Episode(Examples(*(part[:, :n_support] for part in shown)), asked)
