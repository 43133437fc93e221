"""Words that exclude one another: the smallest tasks of sequences."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import check_split
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.episodes import Episode, Examples
from tegu.errors import check_range


@dataclass(frozen=True)
class MutualExclusivity:
    """Words that each mean one symbol; one word's meaning is shown by no support pair.

    Four words mean the four symbols in an order of each task's own. The support set
    shows three; queries are strings of all four, so that the fourth must be inferred.
    Tests have orders of their own.

    Args:
        split: "meta_train", "meta_val" (further draws of the same tasks) or "meta_test".
        n_query: query strings, of 2 to `longest` words.
        seed: of the whole sequence of episodes, and not of which orders are left to tests.
        longest: words of the longest query.
        n_held_out: orders, of the 24, that only tests have.

    Reference:
        arXiv:1906.05381, section 4.1 and its published code. Differs from them: queries
        may repeat.

    Example:
        >>> MutualExclusivity(n_query=2).episodes(torch.arange(3)).support.x.shape
        torch.Size([3, 3, 1])
    """

    split: str = "meta_train"
    n_query: int = 20
    seed: int = 0
    _: KW_ONLY
    longest: int = 6
    n_held_out: int = 5

    n_words = 4

    def __post_init__(self) -> None:
        check_split(self.split)
        for name, least, most in (
            ("n_query", 1, 10_000),
            ("longest", 2, 100),
            ("n_held_out", 1, 23),
        ):
            check_range(name, getattr(self, name), least, most)

    @property
    def n_inputs(self) -> int:
        """Tokens of commands, PAD, END and START among them."""
        return WORDS + self.n_words

    @property
    def n_outputs(self) -> int:
        """Tokens of symbols, likewise."""
        return WORDS + self.n_words

    @property
    def steps(self) -> int:
        """Tokens of the longest answer, END among them."""
        return self.longest + 1

    def orders(self) -> Tensor:
        """The orders of this split, whatever the seed: (K, 4), the symbol of each word."""
        every = torch.cartesian_prod(*[torch.arange(self.n_words)] * self.n_words)
        every = every[every.sort(-1).values.eq(torch.arange(self.n_words)).all(-1)]
        every = every[keys.permutation(keys.key(0, "mutual-exclusivity"), len(every))]
        held = self.n_held_out
        return every[:held] if self.split == "meta_test" else every[held:]

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on the processor."""
        at = keys.fold(keys.key(self.seed, "mutual-exclusivity", self.split), index.cpu())
        orders, n, q = self.orders(), self.n_words, self.n_query
        means = orders[(keys.uniform(keys.fold(at, 1), 1)[:, 0] * len(orders)).long()]  # (T, 4)
        shown = keys.permutation(keys.fold(at, 2), n)[:, :-1, None]  # (T, 3, 1)
        lengths = (keys.uniform(keys.fold(at, 3), q) * (self.longest - 1)).long() + 2
        words = (keys.uniform(keys.fold(at, 4), q * self.longest) * n).long()
        words = words.view(-1, q, self.longest)
        return Episode(
            _spelt(shown, torch.ones_like(shown[..., 0]), means), _spelt(words, lengths, means)
        )


def _spelt(words: Tensor, lengths: Tensor, means: Tensor) -> Examples:
    """Examples of words (T, S, L), of which each row's first `lengths` count."""
    place = torch.arange(words.shape[-1] + 1)
    x = torch.where(place[:-1] < lengths[..., None], words + WORDS, PAD)
    y = means.gather(1, words.flatten(1)).view_as(words) + WORDS
    y = F.pad(y, (0, 1))
    y = torch.where(
        place < lengths[..., None], y, torch.where(place == lengths[..., None], END, PAD)
    )
    return Examples(x, y, torch.ones(x.shape[:2], dtype=torch.bool))
