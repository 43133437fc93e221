"""Tasks of SCAN in which words change their meaning.

Lake (2019), Compositional generalization through meta sequence-to-sequence learning,
arXiv:1906.05381, section 4; the language itself is `tegu.datasets.scan`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.scan import (
    ACTION_WORDS,
    COMMAND_WORDS,
    DIRECTIONS,
    PRIMITIVES,
    Pairs,
    interpret,
    split_pairs,
    tokens,
)
from tegu.datasets.splits import check_split
from tegu.datasets.tokens import END, WORDS, renamed, renaming
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown

EXTRAS = 20  # further primitives, known to episodes alone


class Kind(NamedTuple):
    """How episodes of one experiment are made.

    Attributes:
        words: of commands whose meaning is drawn anew in each episode.
        actions: their true meanings, in order.
        extras: further words, and further meanings, that may be drawn in their place.
        special: which word never means in training what it means in the end; None where it
            is only the whole of the true meanings that is never drawn.
        support: isolated commands that test episodes show; empty where they show
            commands drawn from the train file.
    """

    words: tuple[str, ...]
    actions: tuple[str, ...]
    extras: int
    special: int | None
    support: tuple[str, ...]


KINDS = {
    "add-jump": Kind(PRIMITIVES, ACTION_WORDS[:4], 0, None, PRIMITIVES),
    "add-jump-augmented": Kind(PRIMITIVES, ACTION_WORDS[:4], EXTRAS, 3, PRIMITIVES),
    "around-right": Kind(DIRECTIONS, ACTION_WORDS[4:], 2, 1, ("turn left", "turn right")),
    "length": Kind(PRIMITIVES, ACTION_WORDS[:4], EXTRAS, None, ()),
}
MEANINGS = ("permuted", "true")
SHORT = 12  # actions; in training for "length", shorter pairs support and the others are asked
CANDIDATES = 8  # draws of meanings, of which the first that is allowed counts


@dataclass(frozen=True)
class Scan:
    """Episodes of SCAN in which words change their meaning from task to task.

    In "meta_train" and "meta_val" the meanings of some words are drawn anew for each
    episode, never the true ones: those are left to "meta_test", whose queries are the
    split's test file one after another, and after the last the first again. `n_query`
    and the number of episodes can therefore be chosen to ask each test command once.

    Args:
        task: "add-jump" (primitives permuted: experiment 2), "add-jump-augmented" (with
            20 more primitives: experiment 3), "around-right" (directions, with two more:
            experiment 4) or "length" (experiment 5: support pairs are short and queries
            long, in training as in the test).
        split: "meta_train", "meta_val" (further draws of the same tasks) or "meta_test".
        n_support: support pairs in training; in tests, where those are not isolated
            commands. The paper has 20, and 100 for "length".
        n_query: query pairs.
        seed: of the whole sequence of episodes.
        meanings: "permuted" as above; "true" for ordinary training without meta-learning,
            where pairs of all splits but the test are drawn from the train file as they are.
        strict: for "add-jump": "jump" never means I_JUMP in training. The paper only
            leaves out the one assignment in which all four mean what they do in the end.
        data_dir: a folder of data sets; None for the grammar.

    Reference:
        arXiv:1906.05381, section 4 and its published code. Differs from them:
        "meta_val" is of permuted tasks, so that nothing is chosen by the true ones.

    Example:
        >>> episode = Scan("add-jump", n_query=5).episodes(torch.arange(2))
        >>> episode.support.x.shape, episode.query.y.shape
        (torch.Size([2, 20, 9]), torch.Size([2, 5, 49]))
    """

    task: str = "add-jump"
    split: str = "meta_train"
    n_support: int = 20
    n_query: int = 20
    seed: int = 0
    _: KW_ONLY
    meanings: str = "permuted"
    strict: bool = False
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.task not in KINDS:
            raise unknown("task of SCAN", self.task, KINDS)
        check_split(self.split)
        if self.meanings not in MEANINGS:
            raise unknown("meanings", self.meanings, MEANINGS)
        if self.strict and self.task != "add-jump":
            raise InputError(
                f"strict with the task {self.task}", "the task add-jump", "Leave strict out."
            )
        support, query = (len(source.x) // 2 for source in self._sources)
        fixed = self.split == "meta_test" and KINDS[self.task].support
        for name, most in (("n_support", 10_000 if fixed else support), ("n_query", query)):
            check_range(name, getattr(self, name), 1, most)

    @property
    def n_inputs(self) -> int:
        """Tokens of commands, PAD, END and START among them."""
        return WORDS + len(COMMAND_WORDS) + KINDS[self.task].extras

    @property
    def n_outputs(self) -> int:
        """Tokens of action sequences, likewise."""
        return WORDS + len(ACTION_WORDS) + KINDS[self.task].extras

    @property
    def longest(self) -> int:
        """Words of the longest command."""
        return self._everything.x.shape[1]

    @property
    def steps(self) -> int:
        """Tokens of the longest answer in any split, END among them."""
        return self._everything.y.shape[1]

    @property
    def n_test(self) -> int:
        """Commands of the test file."""
        return len(self._file("test").x)

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on the processor.

        Returns:
            Commands (T, S, L) and actions (T, S, M), int64; every row real.
        """
        index = index.cpu()
        at = keys.fold(keys.key(self.seed, "scan", self.task, self.split), index)
        support, query = self._sources
        if self.split == "meta_test":
            asked = (index[:, None] * self.n_query + torch.arange(self.n_query)) % len(query.x)
            if KINDS[self.task].support:
                shown = torch.arange(len(support.x)).expand(len(index), -1)
            else:
                shown = keys.distinct(keys.fold(at, 1), len(support.x), self.n_support)
        elif support is query:
            drawn = keys.distinct(keys.fold(at, 1), len(support.x), self.n_support + self.n_query)
            shown, asked = drawn.split([self.n_support, self.n_query], -1)
        else:
            shown = keys.distinct(keys.fold(at, 1), len(support.x), self.n_support)
            asked = keys.distinct(keys.fold(at, 2), len(query.x), self.n_query)
        halves = [
            Pairs(*(f[rows] for f in source)) for source, rows in ((support, shown), (query, asked))
        ]
        if self.split != "meta_test" and self.meanings == "permuted":
            tables = self._tables(keys.fold(at, 3))
            halves = [Pairs(*map(renamed, half, tables)) for half in halves]
        if self.split != "meta_train":  # what a network writes freely has this many tokens
            (sx, sy), (qx, qy) = halves
            halves = [Pairs(sx, sy), Pairs(qx, F.pad(qy, (0, self.steps - qy.shape[-1])))]
        return Episode(
            *(Examples(*half, torch.ones(half.x.shape[:2], dtype=torch.bool)) for half in halves)
        )

    @cached_property
    def _sources(self) -> tuple[Pairs, Pairs]:
        """Where support pairs and query pairs come from."""
        if self.split == "meta_test":
            shown = KINDS[self.task].support
            train = tokens((c, interpret(c)) for c in shown) if shown else self._file("train")
            return train, self._file("test")
        if self.meanings == "true":
            return (self._file("train"),) * 2
        if self.task == "length":
            pairs = self._file("train")
            short = (pairs.y > END).sum(-1) < SHORT
            return Pairs(*(f[short] for f in pairs)), Pairs(*(f[~short] for f in pairs))
        return (self._everything,) * 2

    def _file(self, part: str) -> Pairs:
        name = "add-jump" if self.task.startswith("add-jump") else self.task
        return _cached(name, part, self.data_dir)

    @property
    def _everything(self) -> Pairs:
        return _cached("all", "train", self.data_dir)

    def _tables(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """What each token of commands, and of actions, becomes: (T, V) for keys (T,)."""
        kind = KINDS[self.task]
        n, pool = len(kind.words), len(kind.words) + kind.extras
        draws = keys.fold(at[:, None], torch.arange(CANDIDATES))  # (T, R)
        words = keys.permutation(keys.fold(draws, 1), pool)[..., :n]
        acts = keys.permutation(keys.fold(draws, 2), pool)[..., :n]
        special = 3 if self.strict else kind.special
        # Numbers of words and actions agree where the meaning is the true one.
        true = (words == acts) & (words < n)
        true = true.all(-1) if special is None else (true & (words == special)).any(-1)
        first = (~true).int().argmax(-1)[:, None, None].expand(-1, 1, n)  # 0 where none will do
        words, acts = words.gather(1, first)[:, 0], acts.gather(1, first)[:, 0]
        acts = torch.where(true.all(-1, keepdim=True), acts.roll(1, -1), acts)
        return (
            _table(kind.words, COMMAND_WORDS, words, kind.extras),
            _table(kind.actions, ACTION_WORDS, acts, kind.extras),
        )


def _table(
    some: tuple[str, ...], vocabulary: tuple[str, ...], drawn: Tensor, extras: int
) -> Tensor:
    """A renaming of tokens: some words become drawn ones (T, n), numbered with extras last."""
    end = WORDS + len(vocabulary)
    own = torch.tensor([WORDS + vocabulary.index(word) for word in some])
    names = torch.cat([own, torch.arange(end, end + extras)])
    return renaming(end + extras, own, names[drawn])


@lru_cache(maxsize=16)
def _cached(name: str, part: str, data_dir: Path | None) -> Pairs:
    pairs = split_pairs(name, part, data_dir=data_dir)
    # One order, the file's or the grammar's: episodes are the same from either.
    return tokens(sorted(pairs))
