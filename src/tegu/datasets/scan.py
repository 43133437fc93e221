"""SCAN: commands in a small language, and the actions that they ask for.

Lake, Baroni (2018), Generalization without systematicity, arXiv:1711.00350. The
grammar and its meaning are here, so that nothing need be downloaded:

    C -> S and S | S after S | S          x1 x2 | x2 x1 | x
    S -> V twice | V thrice | V           x x | x x x | x
    V -> D opposite-turned | D around-turned | D | U
    D -> U left | U right | turn left | turn right
    U -> walk | look | run | jump

"opposite" turns twice, then acts; "around" turns and acts, four times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tegu.datasets.archives import read_members
from tegu.datasets.tokens import END, WORDS, padded
from tegu.errors import InputError, unknown
from tegu.files import expanded

PRIMITIVES = ("walk", "look", "run", "jump")
DIRECTIONS = ("left", "right")
COMMAND_WORDS = (
    *PRIMITIVES,
    *DIRECTIONS,
    *("turn", "opposite", "around", "twice", "thrice", "and", "after"),
)
ACTION_WORDS = (
    *(f"I_{word.upper()}" for word in PRIMITIVES),
    *(f"I_TURN_{word.upper()}" for word in DIRECTIONS),
)
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
    """A split of `scan_few_shot_and_size_splits.tar.xz`: "jump around right" is left to tests.

    Of all commands with "around right", training has `shots`.

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
    folder = expanded(data_dir)
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
    known = {word: WORDS + i for i, word in enumerate(COMMAND_WORDS)}
    acts = {word: WORDS + i for i, word in enumerate(ACTION_WORDS)}
    x = [[known[word] for word in command.split()] for command, _ in pairs]
    y = [[*(acts[word] for word in actions.split()), END] for _, actions in pairs]
    return Pairs(padded(x), padded(y))
