"""Random interpretation grammars: every episode is a small language of its own.

An interpretation grammar rewrites a command of made-up words into a sequence of
symbols. Rules are tried in their order; `u` stands for one primitive word, `x` for
any words, and what is in brackets is interpreted in turn:

    dax -> RED                        four primitives
    u1 fep -> [u1] [u1] [u1]          three functions of one or two variables
    u1 blicket u2 -> [u1] [u2] [u1]
    x1 kiki x2 -> [x2] [x1]
    u1 x1 -> [u1] [x1]                and words one after another

An episode shows some commands with their outputs, and asks for others of the same
grammar.

Reference:
    Lake, Baroni (2023), Human-like systematic generalization through a meta-learning
    neural network, Nature 623:115-121, Methods; settings from the authors' code,
    brendenlake/MLC. Differs from them: the grammars of the three splits differ in their
    functions and not in their words alone; `u` stands for primitives only, where the code
    lets it match any word; a new grammar in each episode, where the paper trained on
    100,000 files again and again; outputs as the grammar has them, without the errors
    that were mixed in to imitate people.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.lookups import lookups_first, narrowed
from tegu.datasets.splits import check_split
from tegu.datasets.tokens import END, WORDS
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown

SPLITS = ("meta_train", "meta_val", "meta_test", "gold", "human")
COMMANDS = ("dax", "lug", "wif", "zup", "fep", "blicket", "kiki", "tufa", "gazzer")
OUTPUTS = ("RED", "YELLOW", "GREEN", "BLUE", "PURPLE", "PINK")
PRIMITIVES, FUNCTIONS = 4, 3
STUDY = ("random", "simple", "taught", "mixed")
SPREAD = 2.0  # words by which a longer command may come before a shorter one

Sequence = tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """A rule `left word right -> [..] [..]`.

    Args:
        word: the function's own.
        left: kind of the variable before the word: "u", one primitive, or "x", any words.
        right: kind of the variable behind it; "" for none.
        output: order of variables in the output: 0 is the left one, 1 the right one.
    """

    word: int
    left: str
    right: str
    output: Sequence


@dataclass(frozen=True)
class Grammar:
    """Primitives and functions; words one after another mean the same of their symbols.

    Args:
        primitives: symbol of each primitive word.
        functions: tried in this order.
    """

    primitives: dict[int, int]
    functions: tuple[Function, ...]

    def interpret(self, command: Sequence) -> Sequence | None:
        """Output of a command; None where no rule applies.

        Where a function's word stands more than once, its left variable takes as much as
        it can.
        """
        if len(command) == 1:
            symbol = self.primitives.get(command[0])
            return None if symbol is None else (symbol,)
        for rule in self.functions:
            parts = self._match(rule, command)
            if parts is not None:
                found = [self.interpret(part) for part in parts]
                if any(part is None for part in found):
                    return None
                return tuple(s for i in rule.output for s in found[i] or ())
        if not command or command[0] not in self.primitives:
            return None
        rest = self.interpret(command[1:])
        return None if rest is None else (self.primitives[command[0]], *rest)

    def _match(self, rule: Function, command: Sequence) -> tuple[Sequence, ...] | None:
        size = len(command)
        if not rule.right:
            at = size - 1
        elif rule.right == "u":
            at = size - 2
        elif rule.left == "u":
            at = 1
        else:
            at = next((i for i in range(size - 2, 0, -1) if command[i] == rule.word), 0)
        if at < 1 or command[at] != rule.word:
            return None
        left, right = command[:at], command[at + 1 :]
        if rule.left == "u" and (at > 1 or left[0] not in self.primitives):
            return None
        if not rule.right:
            return (left,)
        single = len(right) == 1 and right[0] in self.primitives
        return (left, right) if right and (rule.right == "x" or single) else None


# Facts of the human study (Lake and Baroni, figure 2): words 0 to 2 are dax, lug and wif, shown
# in use; 3 is zup, shown once and alone; 4, 5 and 6 are fep, blicket and kiki. Symbols in the
# order of OUTPUTS. The same as "mini_scan" of the authors' data, in other names.
_MINI = Grammar(
    {0: 0, 1: 3, 2: 2, 3: 1},
    (
        Function(4, "u", "", (0, 0, 0)),
        Function(5, "u", "u", (0, 1, 0)),
        Function(6, "x", "x", (1, 0)),
    ),
)
_MINI_STUDY = (
    "dax|wif|lug|zup|lug kiki wif|dax kiki lug|lug fep|lug blicket wif|dax fep|wif blicket dax|"
    "lug fep kiki wif|wif kiki dax blicket lug|lug kiki wif fep|wif blicket dax kiki lug"
)
_MINI_ASKED = (
    "wif kiki zup|zup kiki dax|zup fep|dax blicket zup|zup blicket lug|lug kiki wif blicket zup|"
    "zup fep kiki lug|wif kiki zup fep|zup blicket zup kiki zup fep|zup blicket wif kiki dax fep"
)


def mini_scan() -> tuple[Grammar, tuple[Sequence, ...], tuple[Sequence, ...]]:
    """The grammar that people were taught, the 14 commands shown and the 10 asked."""
    shown, asked = (
        tuple(tuple(COMMANDS.index(w) for w in line.split()) for line in text.split("|"))
        for text in (_MINI_STUDY, _MINI_ASKED)
    )
    return _MINI, shown, asked


def _form(functions: tuple[Function, ...]) -> tuple[tuple[str, str, Sequence], ...]:
    """What functions do, whatever they are called and however ordered."""
    return tuple(sorted((f.left, f.right, f.output) for f in functions))


def _split(functions: tuple[Function, ...]) -> str:
    """The split that grammars with these functions belong to: a tenth each to val and test."""
    form = _form(functions)
    if form == _form(_MINI.functions):
        return "gold"
    at = zlib.crc32(repr(form).encode()) % 10
    return ("meta_val", "meta_test")[at] if at < 2 else "meta_train"


Draw = Callable[[], float]


def _shuffled(items: list[int], draw: Draw) -> list[int]:
    for i in range(len(items) - 1, 0, -1):
        j = int(draw() * (i + 1))
        items[i], items[j] = items[j], items[i]
    return items


def draw_grammar(draw: Draw, longest: int = 8) -> Grammar:
    """A grammar of the published distribution.

    Args:
        draw: gives numbers in [0, 1).
        longest: variables in a function's output at most.
    """
    words = _shuffled(list(range(len(COMMANDS))), draw)
    symbols = _shuffled(list(range(len(OUTPUTS))), draw)
    functions = []
    for word in words[PRIMITIVES : PRIMITIVES + FUNCTIONS]:
        left = "u" if draw() < 0.5 else "x"
        right = "" if draw() < 0.5 else ("u" if draw() < 0.5 else "x")
        arguments = 2 if right else 1
        output = list(range(arguments))
        while len(output) < longest and (len(output) < 2 or draw() >= 0.6):
            output.append(int(draw() * arguments))
        functions.append(Function(word, left, right, tuple(_shuffled(output, draw))))
    return Grammar(dict(zip(words, symbols[:PRIMITIVES], strict=False)), tuple(functions))


def _command(grammar: Grammar, draw: Draw, longest: int) -> Sequence:
    """A command that the grammar derives: a primitive, a function, or one word before others.

    Empty where it got longer than `longest`.
    """
    primitives, functions = list(grammar.primitives), grammar.functions
    out: list[int] = []
    waiting = ["x"]  # the next to expand is the last
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, int):
            out.append(kind)
        elif kind == "u":
            out.append(primitives[int(draw() * len(primitives))])
        else:
            pick = int(draw() * (len(functions) + 2))
            if pick == 0:
                waiting.append("u")
            elif pick == 1:
                waiting += ["x", "u"]
            else:
                rule: Function = functions[pick - 2]
                waiting += [rule.right] if rule.right else []
                waiting += [rule.word, rule.left]  # type: ignore[list-item]
        if len(out) + len(waiting) > longest:
            return ()
    return tuple(out)


@dataclass(frozen=True)
class Grammars:
    """Episodes of random interpretation grammars.

    Args:
        split: "meta_train", "meta_val" or "meta_test", whose grammars differ in what their
            functions do; "gold": the grammar that people were taught, which is in none of
            these, with its words and symbols drawn anew and its study examples in random
            order; "human": the one episode that people saw, every time.
        n_support: study examples; 14 where the grammar is the people's.
        n_query: commands asked; 10 where the grammar is the people's.
        seed: of the whole sequence of episodes.
        longest: words of a command and symbols of an output, at most.
        study: which commands are shown: "random", as in the paper; or "simple": each primitive
            alone and for the rest rather the shorter ones; or "taught", the plan of the human
            study: each primitive alone, each function twice on primitives, then functions put
            together, where one primitive is shown alone only, and every query has it; or "mixed",
            episode by episode "random" or "taught".
        lookups: first so many episodes of "meta_train" are lists of words and their symbols,
            `tegu.datasets.lookups`: a first lesson.
        functions: the so many after them a second one, on functions of two primitives: each
            primitive alone and two functions, whose outputs have two or three symbols, used on
            some; asked about their use on others.

    Commands and outputs are drawn until there are enough that differ and are short enough;
    so are grammars of the split.

    Raises:
        InputError: an unknown split, or a count out of range.

    Example:
        >>> episodes = Grammars().episodes(torch.arange(2))
        >>> episodes.support.x.shape, episodes.support.y.shape, episodes.query.x.shape
        (torch.Size([2, 14, 8]), torch.Size([2, 14, 9]), torch.Size([2, 10, 8]))
    """

    split: str = "meta_train"
    n_support: int = 14
    n_query: int = 10
    seed: int = 0
    _: KW_ONLY
    longest: int = 8
    study: str = "random"
    lookups: int = 0
    functions: int = 0

    def __post_init__(self) -> None:
        check_split(self.split, SPLITS)
        if self.study not in STUDY:
            raise unknown("choice of study examples", self.study, STUDY)
        for name, least, most in (
            ("n_support", 1, 100),
            ("n_query", 1, 100),
            ("longest", 6, 100),
        ):
            check_range(
                name,
                getattr(self, name),
                least,
                most,
                todo="Write 14, 10 and 8, as the paper has them.",
            )
        for name in ("lookups", "functions"):
            check_range(name, getattr(self, name), 0, todo="Write 0 for none, or 4000.")
        if self.split in ("gold", "human") and (self.n_support, self.n_query) != (14, 10):
            raise InputError(
                f"{self.n_support} study examples and {self.n_query} queries of {self.split}",
                "the 14 and 10 of the human study",
                "Leave n_support and n_query out.",
            )

    def pairs(self, index: int) -> tuple[Grammar, list[tuple[Sequence, Sequence]]]:
        """Grammar of episode `index`, and its commands and outputs, study examples first."""
        at = keys.fold(keys.key(self.seed, "grammars", self.split), index)
        draw = random.Random(int(at)).random
        if self.split in ("gold", "human"):
            grammar, shown, asked = mini_scan()
            if self.split == "gold":
                order = _shuffled(list(range(len(shown))), draw)
                shown = tuple(shown[i] for i in order)
                words = _shuffled(list(range(len(COMMANDS))), draw)
                symbols = _shuffled(list(range(len(OUTPUTS))), draw)
                grammar = _renamed(grammar, words, symbols)
                shown, asked = (
                    tuple(tuple(words[w] for w in c) for c in part) for part in (shown, asked)
                )
            return grammar, [(c, grammar.interpret(c) or ()) for c in (*shown, *asked)]
        wanted, study = self.n_support + self.n_query, self.study
        if self.split == "meta_train" and index < self.lookups + self.functions:
            study = "functions"
        if study == "mixed":
            study = ("random", "taught")[draw() < 0.5]
        while True:
            grammar = draw_grammar(draw, self.longest)
            if _split(grammar.functions) != self.split:
                continue
            if study == "functions":
                if pairs := self._of_two(grammar, draw):
                    return grammar, pairs
                continue
            if study == "taught":
                if taught := self._taught(grammar, draw):
                    return grammar, taught
                continue
            found: dict[Sequence, Sequence] = {}
            if study == "simple":
                found = {(w,): (s,) for w, s in list(grammar.primitives.items())[:wanted]}
            for _ in range(200 * wanted):
                if len(found) == wanted:
                    break
                command = _command(grammar, draw, self.longest)
                if command and command not in found:
                    output = grammar.interpret(command)
                    if output and len(output) <= self.longest:
                        found[command] = output
            if len(found) == wanted:  # else a grammar whose short outputs are few
                listed = list(found.items())
                mixed = [listed[i] for i in _shuffled(list(range(wanted)), draw)]
                return grammar, self._simple_first(mixed, draw) if study == "simple" else mixed

    def _of_two(self, grammar: Grammar, draw: Draw) -> list[tuple[Sequence, Sequence]]:
        """Study examples and queries of the second lesson; empty where no function serves it."""
        primitives = list(grammar.primitives)
        functions = [f for f in grammar.functions if f.right and len(f.output) <= 3][:2]
        if not functions:
            return []
        study: list[Sequence] = [(word,) for word in primitives]
        asked: list[Sequence] = []
        for function in functions:
            uses: list[Sequence] = [(a, function.word, b) for a in primitives for b in primitives]
            uses = [uses[i] for i in _shuffled(list(range(len(uses))), draw)]
            uses.sort(key=lambda use: use[0] == use[2])  # which tell nothing of the order
            shown = (self.n_support - len(primitives)) // len(functions)
            study, asked = study + uses[: max(shown, 0)], asked + uses[max(shown, 0) :]
        study = study[: self.n_support]
        while (short := self.n_support - len(study)) or len(asked) < self.n_query:
            one = tuple(
                primitives[int(draw() * len(primitives))] for _ in range(2 + int(draw() * 3))
            )
            (study if short else asked).append(one)
        asked = [asked[i] for i in _shuffled(list(range(len(asked))), draw)][: self.n_query]
        return [(command, grammar.interpret(command) or ()) for command in (*study, *asked)]

    def _taught(self, grammar: Grammar, draw: Draw) -> list[tuple[Sequence, Sequence]]:
        """Study examples on the plan of the human study, and queries; empty where few are short."""
        primitives = list(grammar.primitives)
        shown, new = primitives[:-1], primitives[-1]

        def some(draw_one: Callable[[], Sequence], count: int) -> list[Sequence]:
            found: list[Sequence] = []
            for _ in range(200 * count):
                if len(found) == count:
                    break
                command = draw_one()
                if not command or command in found + study:
                    continue
                if 0 < len(grammar.interpret(command) or ()) <= self.longest:
                    found.append(command)
            return found

        def one_of(function: Function) -> Sequence:
            words = _shuffled(list(shown), draw)
            return (words[0], function.word, *(words[1:2] if function.right else ()))

        def composed(with_new: bool) -> Sequence:
            command = _command(grammar, draw, self.longest)
            return command if (new in command) is with_new else ()

        study: list[Sequence] = [(word,) for word in primitives]
        for function in grammar.functions:
            study += some(partial(one_of, function), 2)
        del study[self.n_support :]
        study += some(partial(composed, False), self.n_support - len(study))
        study = [study[i] for i in _shuffled(list(range(len(study))), draw)]
        asked = some(partial(composed, True), self.n_query)
        if len(study) < self.n_support or len(asked) < self.n_query:
            return []
        return [(command, grammar.interpret(command) or ()) for command in (*study, *asked)]

    def _simple_first(
        self, pairs: list[tuple[Sequence, Sequence]], draw: Draw
    ) -> list[tuple[Sequence, Sequence]]:
        """Primitives and mostly shorter commands before the others, mixed within both parts."""
        ranks = [len(c) + SPREAD * draw() if len(c) > 1 else 0 for c, _ in pairs]
        chosen = sorted(sorted(range(len(pairs)), key=ranks.__getitem__)[: self.n_support])
        others = [i for i in range(len(pairs)) if i not in chosen]
        return [pairs[i] for i in (*chosen, *others)]

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on its device.

        Returns:
            Commands (T, S, longest) and outputs (T, S, longest + 1), int64: words and symbols
            numbered in the order of COMMANDS and OUTPUTS, an output's end, then padding.
        """
        if self.split != "meta_train":
            return self._whole(index)
        found = lookups_first(
            index,
            self.lookups,
            keys.key(self.seed, "lookups"),
            self._whole,
            words=len(COMMANDS),
            symbols=len(OUTPUTS),
        )
        return Episode(*(Examples(*(t.to(index.device) for t in half)) for half in found))

    def trimmed(self, episodes: Episode) -> Episode:
        """The same with less padding, where all are of the first lesson."""
        return narrowed(episodes) if self.lookups else episodes

    def _whole(self, index: Tensor) -> Episode:
        count, total = len(index), self.n_support + self.n_query
        commands = np.zeros((count, total, self.longest), np.int64)
        outputs = np.zeros((count, total, self.longest + 1), np.int64)
        for t, number in enumerate(index.tolist()):
            for i, (command, output) in enumerate(self.pairs(number)[1]):
                commands[t, i, : len(command)] = np.array(command) + WORDS
                outputs[t, i, : len(output)] = np.array(output) + WORDS
                outputs[t, i, len(output)] = END
        x, y = (torch.from_numpy(a).to(index.device) for a in (commands, outputs))
        mask = torch.ones(count, total, dtype=torch.bool, device=index.device)
        both, cut = Examples(x, y, mask), self.n_support
        return Episode(
            Examples(*(part[:, :cut] for part in both)), Examples(*(part[:, cut:] for part in both))
        )


def _renamed(grammar: Grammar, words: list[int], symbols: list[int]) -> Grammar:
    primitives = {words[w]: symbols[s] for w, s in grammar.primitives.items()}
    functions = tuple(Function(words[f.word], f.left, f.right, f.output) for f in grammar.functions)
    return Grammar(primitives, functions)
