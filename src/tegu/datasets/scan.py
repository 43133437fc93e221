"""SCAN: commands in a small language, and the actions that they ask for.

Lake, Baroni (2018), Generalization without systematicity, arXiv:1711.00350. The
grammar and its meaning are here, so that nothing need be downloaded:

    C -> S and S | S after S | S          x1 x2 | x2 x1 | x
    S -> V twice | V thrice | V           x x | x x x | x
    V -> D opposite-turned | D around-turned | D | U
    D -> U left | U right | turn left | turn right
    U -> walk | look | run | jump

"opposite" turns twice, then acts; "around" turns and acts, four times.

Tasks for meta-learning: Lake (2019), Compositional generalization through meta
sequence-to-sequence learning, arXiv:1906.05381, section 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.archives import read_members
from tegu.datasets.tokens import END, PAD
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, unknown

SPLITS = ("meta_train", "meta_val", "meta_test")
PRIMITIVES = ("walk", "look", "run", "jump")
DIRECTIONS = ("left", "right")
EXTRAS = 20  # further primitives, known to episodes alone
COMMAND_WORDS = (
    *PRIMITIVES,
    *DIRECTIONS,
    *("turn", "opposite", "around", "twice", "thrice", "and", "after"),
)
ACTION_WORDS = (
    *(f"I_{word.upper()}" for word in PRIMITIVES),
    *(f"I_TURN_{word.upper()}" for word in DIRECTIONS),
)
FIRST = 3  # tokens of words come after PAD, END and START
URL = "https://github.com/brendenlake/SCAN"
SPLIT_FILES = {
    "simple": "simple_split/tasks_{}_simple.txt",
    "length": "length_split/tasks_{}_length.txt",
    "add-jump": "add_prim_split/tasks_{}_addprim_jump.txt",
    "add-turn-left": "add_prim_split/tasks_{}_addprim_turn_left.txt",
    "around-right": "template_split/tasks_{}_template_around_right.txt",
    "opposite-right": "template_split/tasks_{}_template_opposite_right.txt",
    "right": "template_split/tasks_{}_template_right.txt",
    "jump-around-right": "template_split/tasks_{}_template_jump_around_right.txt",
}
Pair = tuple[str, str]


class Pairs(NamedTuple):
    """Commands with their actions as tokens: x (N, L), y (N, M), int64; y ends with END."""

    x: Tensor
    y: Tensor


def interpret(command: str) -> str:
    """The actions that a command asks for.

    Raises:
        InputError: not a command of the language.

    Example:
        >>> interpret("jump after turn left twice")
        'I_TURN_LEFT I_TURN_LEFT I_JUMP'
    """
    words = command.split()
    for joint, order in (("and", (0, 1)), ("after", (1, 0))):
        if joint in words:
            at = words.index(joint)
            halves = (words[:at], words[at + 1 :])
            return " ".join(word for k in order for word in _repeated(halves[k], command))
    return " ".join(_repeated(words, command))


def _repeated(words: list[str], command: str) -> list[str]:
    times = {"twice": 2, "thrice": 3}.get(words[-1] if words else "", 1)
    return _acted(words[: len(words) - (times > 1)], command) * times


def _acted(words: list[str], command: str) -> list[str]:
    known = 1 <= len(words) <= 3 and words[0] in (*PRIMITIVES, "turn")
    act = [f"I_{words[0].upper()}"] if known and words[0] != "turn" else []
    if known and len(words) == 1 and act:
        return act
    if known and len(words) > 1 and words[-1] in DIRECTIONS:
        turn = [f"I_TURN_{words[-1].upper()}"]
        if len(words) == 2:
            return turn + act
        if words[1] == "opposite":
            return turn + turn + act
        if words[1] == "around":
            return (turn + act) * 4
    raise InputError(
        f"the command '{command}'",
        "a command of SCAN, as 'jump around left twice and walk'",
        "See the grammar in tegu.datasets.scan.",
    )


@lru_cache(maxsize=1)
def grammar() -> tuple[Pair, ...]:
    """All 20,910 commands of the language with their actions, in the grammar's order.

    Example:
        >>> len(grammar())
        20910
    """
    verbs = [*PRIMITIVES]
    for word in (*PRIMITIVES, "turn"):
        for manner in ("", " opposite", " around"):
            verbs += [f"{word}{manner} {side}" for side in DIRECTIONS]
    some = [f"{verb}{times}" for verb in verbs for times in ("", " twice", " thrice")]
    done = {one: interpret(one) for one in some}
    joined = [(f"{a} and {b}", f"{done[a]} {done[b]}") for a in some for b in some]
    turned = [(f"{a} after {b}", f"{done[b]} {done[a]}") for a in some for b in some]
    return (*done.items(), *joined, *turned)


def _in_add_jump(command: str) -> bool:
    return command == "jump" or "jump" not in command.split()


# Which commands the train file and the test file of a split hold; the rest is in neither.
RULES: dict[str, tuple[Callable[[str, str], bool], Callable[[str, str], bool]]] = {
    "add-jump": (lambda c, a: _in_add_jump(c), lambda c, a: not _in_add_jump(c)),
    "around-right": (
        lambda c, a: "around right" not in c,
        lambda c, a: "around right" in c and "turn around right" not in c,
    ),
    "length": (lambda c, a: a.count("I_") <= 22, lambda c, a: a.count("I_") > 22),
}
AGAIN = 1467  # times that the train file of add-jump holds its one command with jump


def split_pairs(name: str, part: str, *, data_dir: Path | None = None) -> tuple[Pair, ...]:
    """The pairs of a split's train or test file.

    Made from the grammar, or read from `scan/scan_splits.zip` in a folder. Only the
    splits "add-jump", "around-right" and "length" follow from the grammar; their
    order here is the grammar's, sorted, and a file's is its own.

    Args:
        name: of the split; "all" for every command.
        part: "train" or "test".
        data_dir: a folder of data sets; None for the grammar.

    Raises:
        InputError: an unknown split, a missing or damaged file.
    """
    if part not in ("train", "test"):
        raise unknown("part of a split", part, ("train", "test"))
    if data_dir is not None:
        if name != "all" and name not in SPLIT_FILES:
            raise unknown("split of SCAN", name, ("all", *SPLIT_FILES))
        member = "tasks.txt" if name == "all" else SPLIT_FILES[name].format(part)
        return _read(data_dir, "scan_splits.zip", member)
    if name == "all":
        return grammar()
    if name not in RULES:
        raise unknown("split of SCAN without a file", name, ("all", *RULES))
    belongs = RULES[name][part == "test"]
    found = [pair for pair in grammar() if belongs(*pair)]
    if name == "add-jump" and part == "train":
        found += [("jump", "I_JUMP")] * (AGAIN - 1)
    return tuple(found)


def few_shot_pairs(shots: int, sample: int, part: str, *, data_dir: Path) -> tuple[Pair, ...]:
    """A split of `scan_few_shot_and_size_splits.tar.xz`: `shots` commands with jump to learn from.

    Args:
        shots: 1, 2, 4, ... 1024.
        sample: 1 to 5, which draw.
        part: "train" or "test".
        data_dir: a folder of data sets.
    """
    if part not in ("train", "test"):
        raise unknown("part of a split", part, ("train", "test"))
    name = f"few_shot_split/tasks_{part}_fewshot_num{shots}_rep{sample}.txt"
    return _read(data_dir, "scan_few_shot_and_size_splits.tar.xz", name)


def _read(data_dir: Path, archive: str, member: str) -> tuple[Pair, ...]:
    folder = data_dir.expanduser()
    place = next((p for p in (folder / "scan", folder) if (p / archive).exists()), folder / "scan")
    source = place / archive
    found = read_members(source, re.compile(re.escape(member)), URL, largest=LARGEST, total=ALL)
    if member not in found:
        raise InputError(
            f"{source} without {member}", "SCAN's own file names", f"Get it again from {URL}."
        )
    return tuple(parse(found[member], member))


LARGEST = 8 << 20  # bytes of one file of pairs
ALL = 1 << 30  # bytes of all of an archive's files, those passed over included
LINE = re.compile(r"IN: ([a-z ]{1,100}) OUT: ([A-Z_ ]{1,2000})")


def parse(text: bytes, name: str) -> Iterable[Pair]:
    """Pairs of a file with lines "IN: command OUT: actions"."""
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), 1):
        match = LINE.fullmatch(line.strip())
        if (
            match is None
            or set(match[1].split()) - {*COMMAND_WORDS}
            or set(match[2].split()) - {*ACTION_WORDS}
        ):
            raise InputError(
                f"line {number} of {name} is {line[:60]!r}",
                "'IN: command OUT: actions' in SCAN's words",
                f"Get the file again from {URL}.",
            )
        yield match[1], match[2]


def tokens(pairs: Iterable[Pair]) -> Pairs:
    """Pairs as tokens, padded to the longest.

    Example:
        >>> tokens([("jump", "I_JUMP")])
        Pairs(x=tensor([[6]]), y=tensor([[6, 1]]))
    """
    pairs = tuple(pairs)
    known = {word: FIRST + i for i, word in enumerate(COMMAND_WORDS)}
    acts = {word: FIRST + i for i, word in enumerate(ACTION_WORDS)}
    x = [[known[word] for word in command.split()] for command, _ in pairs]
    y = [[*(acts[word] for word in actions.split()), END] for _, actions in pairs]
    return Pairs(_padded(x), _padded(y))


def _padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


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
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.meanings not in MEANINGS:
            raise unknown("meanings", self.meanings, MEANINGS)
        if self.strict and self.task != "add-jump":
            raise InputError(
                f"strict with the task {self.task}", "the task add-jump", "Leave strict out."
            )
        support, query = (len(source.x) // 2 for source in self._sources)
        fixed = self.split == "meta_test" and KINDS[self.task].support
        for name, most in (("n_support", 10_000 if fixed else support), ("n_query", query)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(
                    f"{name} is {getattr(self, name)}", f"1 to {most:,}", f"Change {name}."
                )

    @property
    def n_inputs(self) -> int:
        """Tokens of commands, PAD, END and START among them."""
        return FIRST + len(COMMAND_WORDS) + KINDS[self.task].extras

    @property
    def n_outputs(self) -> int:
        """Tokens of action sequences, likewise."""
        return FIRST + len(ACTION_WORDS) + KINDS[self.task].extras

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
        """Episodes number `index`, shape (T,) int64, as one batch on its device.

        Returns:
            Commands (T, S, L) and actions (T, S, M), int64; every row real.
        """
        at = keys.fold(
            keys.key(self.seed, "scan", self.task, self.split, device=index.device), index
        )
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
            halves = [_renamed(half, *self._tables(keys.fold(at, 3))) for half in halves]
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
    end = FIRST + len(vocabulary)
    own = torch.tensor([FIRST + vocabulary.index(word) for word in some])
    names = torch.cat([own, torch.arange(end, end + extras)])
    table = torch.arange(end + extras).repeat(len(drawn), 1)
    return table.index_copy(1, own, names[drawn])


def _renamed(pairs: Pairs, words: Tensor, acts: Tensor) -> Pairs:
    """Pairs (T, S, ...) under each episode's renaming (T, V)."""
    both = zip(pairs, (words, acts), strict=True)
    return Pairs(*(t.gather(1, f.flatten(1)).view_as(f) for f, t in both))


@lru_cache(maxsize=16)
def _cached(name: str, part: str, data_dir: Path | None) -> Pairs:
    pairs = split_pairs(name, part, data_dir=data_dir)
    # One order, the file's or the grammar's: episodes are the same from either.
    return tokens(sorted(pairs))


@dataclass(frozen=True)
class MutualExclusivity:
    """Words that each mean one symbol; one word's meaning is shown by no support pair.

    Four words mean the four symbols in an order of each task's own. The support set
    shows three; queries are strings of all four, so that the fourth must be inferred.
    Tests have orders of their own.

    Args:
        split: "meta_train", "meta_val" (further draws of the same tasks) or "meta_test".
        n_query: query strings, of 2 to `longest` words.
        seed: of the whole sequence of episodes, and of which orders are left to tests.
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
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        for name, least, most in (
            ("n_query", 1, 10_000),
            ("longest", 2, 100),
            ("n_held_out", 1, 23),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(
                    f"{name} is {getattr(self, name)}", f"{least} to {most}", f"Change {name}."
                )

    @property
    def n_inputs(self) -> int:
        """Tokens of commands, PAD, END and START among them."""
        return FIRST + self.n_words

    @property
    def n_outputs(self) -> int:
        """Tokens of symbols, likewise."""
        return FIRST + self.n_words

    @property
    def steps(self) -> int:
        """Tokens of the longest answer, END among them."""
        return self.longest + 1

    def orders(self) -> Tensor:
        """The orders of this split: (K, 4), the symbol of each word."""
        every = torch.cartesian_prod(*[torch.arange(self.n_words)] * self.n_words)
        every = every[every.sort(-1).values.eq(torch.arange(self.n_words)).all(-1)]
        every = every[keys.permutation(keys.key(self.seed, "mutual-exclusivity"), len(every))]
        held = self.n_held_out
        return every[:held] if self.split == "meta_test" else every[held:]

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on its device."""
        at = keys.fold(keys.key(self.seed, "mutual-exclusivity", self.split), index)
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
    x = torch.where(place[:-1] < lengths[..., None], words + FIRST, PAD)
    y = means.gather(1, words.flatten(1)).view_as(words) + FIRST
    y = F.pad(y, (0, 1))
    y = torch.where(
        place < lengths[..., None], y, torch.where(place == lengths[..., None], END, PAD)
    )
    return Examples(x, y, torch.ones(x.shape[:2], dtype=torch.bool))
