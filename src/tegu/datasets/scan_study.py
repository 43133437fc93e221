"""SCAN as MLC learns it: words of a split's train file mean something else in each episode.

Lake and Baroni (2023), Nature 623:115-121, Methods; protocol from the authors' code,
brendenlake/MLC-ML. Unlike the episodes of `tegu.datasets.Scan`, these hold pairs of the train
file alone; words for actions and directions trade places in commands, and actions in outputs.
So every word stands in each place somewhere, and no episode says what it means in the test.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.lookups import lookups_first, narrowed
from tegu.datasets.scan import (
    ACTION_WORDS,
    COMMAND_WORDS,
    DIRECTIONS,
    PRIMITIVES,
    Pairs,
    split_pairs,
    tokens,
)
from tegu.datasets.splits import check_split
from tegu.datasets.tokens import PAD, WORDS, padded, renamed, renaming
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown

TASKS = ("add-jump", "around-right", "length")
TRADED = (*PRIMITIVES, *DIRECTIONS)
ALWAYS = {"add-jump": "jump"}  # the verb alone that a test always shows
NAMED = (*PRIMITIVES, *(f"turn {way}" for way in DIRECTIONS))  # between them, all that is traded
# Training asks commands of one kind together, by the length of their answers, in so many successive
# episodes: little of a batch is padding then.
LENGTHS = (8, 16, 24, 48)
TOGETHER = 16


@dataclass(frozen=True)
class ScanStudy:
    """Study examples and queries from a split of SCAN.

    In "meta_train" and "meta_val", both are drawn from the train file, and in most episodes
    six words and six actions each change places. In "meta_test" nothing does: the queries are
    the test file, one after another and after the last the first again; study examples are
    drawn from the train file, "jump" among them for add-jump.

    Args:
        task: "add-jump", "around-right" or "length".
        split: "meta_train", "meta_val" (further draws of the same tasks) or "meta_test".
        n_support: study examples.
        n_query: commands asked.
        seed: of the whole sequence of episodes.
        shown: actions in a study example, at most; 48 for any.
        permuted: share of episodes in which meanings change.
        named: study examples, the first six, are what each traded word does: the four verbs alone
            and "turn left" and "turn right".
        lookups: first so many episodes of "meta_train" are lists of words and their actions,
            `tegu.datasets.lookups`: a first lesson.
        short: the so many after them a second one: queries of at most `LENGTHS[0]` actions.

    Reference:
        As above. Differs from it: study examples are short, by `shown`, where any pair may be
        one; each pair of the file counts once, where "jump" by itself fills a tenth of it; as
        a test of add-jump shows "jump" alone, training shows one of the four verbs alone; an
        episode asks several queries of the same study examples, which the code draws anew for
        each; queries of `TOGETHER` training episodes have answers of similar length, each kind
        as often as in the file; a query may be a study example by chance.

    Example:
        >>> episodes = ScanStudy(n_query=4, shown=12).episodes(torch.arange(2))
        >>> episodes.support.y.shape, episodes.query.y.shape
        (torch.Size([2, 10, 13]), torch.Size([2, 4, 49]))
    """

    task: str = "add-jump"
    split: str = "meta_train"
    n_support: int = 10
    n_query: int = 10
    seed: int = 0
    _: KW_ONLY
    shown: int = 48
    permuted: float = 0.95
    named: bool = False
    lookups: int = 0
    short: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise unknown("task of SCAN", self.task, TASKS)
        check_split(self.split)
        for name, least, most in (
            ("n_support", 1, 1000),
            ("n_query", 1, 1000),
            ("shown", 1, 48),
            ("permuted", 0, 1),
            ("lookups", 0, math.inf),
            ("short", 0, math.inf),
        ):
            check_range(name, getattr(self, name), least, most)
        if self.named and self.n_support < len(NAMED):
            raise InputError(
                f"{self.n_support} study examples, the traded words named",
                f"at least {len(NAMED)}: {', '.join(NAMED)}",
                "Raise n_support, or leave named out.",
            )

    @property
    def n_test(self) -> int:
        """Commands of the test file."""
        return len(_pairs(self.task, "test").x)

    @property
    def _short(self) -> Tensor:
        """Rows of the train file that may be study examples."""
        actions = (_pairs(self.task, "train").y != PAD).sum(-1) - 1
        return (actions <= self.shown).nonzero()[:, 0]

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on the processor.

        Returns:
            Commands (T, S, 9) and actions (T, S, M), int64; every row real.
        """
        index = index.cpu()
        if self.split != "meta_train":
            return self._whole(index)
        return lookups_first(
            index,
            self.lookups,
            keys.key(self.seed, "lookups"),
            self._whole,
            words=len(COMMAND_WORDS),
            symbols=len(ACTION_WORDS),
        )

    def _whole(self, index: Tensor) -> Episode:
        root = keys.key(self.seed, "scan study", self.task, self.split)
        at = keys.fold(root, index)
        train = _pairs(self.task, "train")
        short = self._short
        if self.n_support > len(short):
            raise InputError(
                f"{self.n_support} study examples of at most {self.shown} actions",
                f"at most {len(short)}, as many as the file has",
                "Lower n_support, or raise shown.",
            )
        shown = short[keys.distinct(keys.fold(at, 1), len(short), self.n_support)]
        source, alone = train, _alone(self.task)
        if self.split == "meta_test":
            source = _pairs(self.task, "test")
            asked = index[:, None] * self.n_query + torch.arange(self.n_query)
            asked = asked % len(source.x)
            alone = alone[:1]
        elif self.split == "meta_train":
            asked = self._alike(source, root, index)
        else:
            asked = keys.distinct(keys.fold(at, 2), len(source.x), self.n_query)
        if self.named:
            shown[:, : len(NAMED)] = _rows(self.task, NAMED)
        elif len(alone):  # study examples are a set: any place will do
            shown[:, 0] = alone[keys.bits(keys.fold(at, 6), 1)[:, 0] % len(alone)]
        support = Pairs(train.x[shown], train.y[shown][..., : self.shown + 1])
        query = Pairs(source.x[asked], source.y[asked])
        if self.split != "meta_test":
            trade = keys.uniform(keys.fold(at, 3), 1) < self.permuted
            words = _table(COMMAND_WORDS, TRADED, keys.fold(at, 4), trade)
            acts = _table(ACTION_WORDS, ACTION_WORDS, keys.fold(at, 5), trade)
            support, query = (
                Pairs(*map(renamed, half, (words, acts))) for half in (support, query)
            )
        return Episode(
            *(
                Examples(*half, torch.ones(half.x.shape[:2], dtype=torch.bool))
                for half in (support, query)
            )
        )

    def _alike(self, source: Pairs, root: Tensor, index: Tensor) -> Tensor:
        """Rows of queries (T, Q) whose answers are of similar length."""
        kind = torch.bucketize((source.y != PAD).sum(-1) - 1, torch.tensor(LENGTHS))
        order, counts = kind.argsort(stable=True), kind.bincount(minlength=len(LENGTHS))
        some = keys.bits(keys.fold(keys.fold(root, 7), index // TOGETHER), 1)[:, 0]
        chosen = torch.where(index < self.lookups + self.short, 0, kind[some % len(kind)])
        first = counts.cumsum(0) - counts
        drawn = keys.distinct(keys.fold(keys.fold(root, index), 2), counts[chosen], self.n_query)
        rows: Tensor = order[first[chosen][:, None] + drawn]
        return rows

    def trimmed(self, episodes: Episode) -> Episode:
        """The same with less padding: as wide as study examples and this kind of query need."""
        if self.lookups:
            episodes = narrowed(episodes)
        words = int((_pairs(self.task, "train").x[self._short] != PAD).sum(-1).max())
        support = episodes.support._replace(x=episodes.support.x[..., :words])
        longest = int((episodes.query.y != PAD).sum(-1).max())
        width = next(length + 1 for length in LENGTHS if length + 1 >= longest)
        query = episodes.query._replace(y=episodes.query.y[..., :width])
        return Episode(support, query)


def _alone(task: str) -> Tensor:
    """Pairs of the train file that are a verb and nothing else: the test's own first; or none."""
    if task not in ALWAYS:
        return torch.empty(0, dtype=torch.int64)
    train, first = _pairs(task, "train"), ALWAYS[task]
    verbs = sorted(PRIMITIVES, key=lambda verb: verb != first)
    single = train.x[:, 1] == PAD
    return torch.cat(
        [
            ((train.x[:, 0] == WORDS + COMMAND_WORDS.index(verb)) & single).nonzero()[:, 0]
            for verb in verbs
        ]
    )


def _rows(task: str, commands: tuple[str, ...]) -> Tensor:
    """Where these commands stand in the train file."""
    train, place = _pairs(task, "train"), {word: WORDS + i for i, word in enumerate(COMMAND_WORDS)}
    asked = padded([[place[word] for word in command.split()] for command in commands])
    asked = F.pad(asked, (0, train.x.shape[1] - asked.shape[1]))
    return (train.x[None] == asked[:, None]).all(-1).int().argmax(-1)


def _table(vocabulary: tuple[str, ...], some: tuple[str, ...], at: Tensor, trade: Tensor) -> Tensor:
    """What each token becomes (T, V): some words in another order where `trade` (T, 1)."""
    own = torch.tensor([WORDS + vocabulary.index(word) for word in some])
    order = keys.permutation(at, len(some))
    names = torch.where(trade, own[order], own)
    return renaming(WORDS + len(vocabulary), own, names)


@lru_cache(maxsize=8)
def _pairs(task: str, part: str) -> Pairs:
    """A split's file as tokens, padded to the widest of all files."""
    x, y = tokens(sorted(set(split_pairs(task, part))))
    return Pairs(F.pad(x, (0, 9 - x.shape[1])), F.pad(y, (0, 49 - y.shape[1])))
