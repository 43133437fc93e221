"""Interpretation grammars: the paper's own by hand, the published distribution, the splits."""

from __future__ import annotations

import io
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch

from tegu.datasets.grammars import (
    COMMANDS,
    OUTPUTS,
    SPLITS,
    Function,
    Grammar,
    Grammars,
    _form,
    draw_grammar,
    mini_scan,
)
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.errors import InputError

# Commands of the paper's figure 2 and their outputs, as printed there.
FIGURE = {
    "dax": "RED",
    "lug": "BLUE",
    "wif": "GREEN",
    "zup": "YELLOW",
    "lug fep": "BLUE BLUE BLUE",
    "dax fep": "RED RED RED",
    "lug blicket wif": "BLUE GREEN BLUE",
    "wif blicket dax": "GREEN RED GREEN",
    "lug kiki wif": "GREEN BLUE",
    "dax kiki lug": "BLUE RED",
    "lug fep kiki wif": "GREEN BLUE BLUE BLUE",
    "wif kiki dax blicket lug": "RED BLUE RED GREEN",
    "lug kiki wif fep": "GREEN GREEN GREEN BLUE",
    "wif blicket dax kiki lug": "BLUE GREEN RED GREEN",
    "zup fep": "YELLOW YELLOW YELLOW",
    "zup blicket lug": "YELLOW BLUE YELLOW",
    "zup kiki dax": "RED YELLOW",
    "zup fep kiki lug": "BLUE YELLOW YELLOW YELLOW",
    "wif kiki zup fep": "YELLOW YELLOW YELLOW GREEN",
    "lug kiki wif blicket zup": "GREEN YELLOW GREEN BLUE",
    "zup blicket wif kiki dax fep": "RED RED RED YELLOW GREEN YELLOW",
    "zup blicket zup kiki zup fep": "YELLOW YELLOW YELLOW YELLOW YELLOW YELLOW",
}


def numbers(words: str) -> tuple[int, ...]:
    return tuple(COMMANDS.index(w) for w in words.split())


def names(output: tuple[int, ...] | None) -> str:
    return " ".join(OUTPUTS[i] for i in output or ())


@pytest.mark.parametrize("command", FIGURE)
def test_the_grammar_that_people_were_taught(command: str) -> None:
    assert names(mini_scan()[0].interpret(numbers(command))) == FIGURE[command]


def test_simple_study_shows_primitives_alone_and_shorter_commands() -> None:
    source = Grammars(study="simple")
    shown, asked = [], []
    for index in range(40):
        grammar, pairs = source.pairs(index)
        lengths = [len(command) for command, _ in pairs]
        assert len({command for command, _ in pairs}) == 24
        assert {c for c, _ in pairs[:14] if len(c) == 1} == {(w,) for w in grammar.primitives}
        assert min(lengths[14:]) > 1
        assert all(grammar.interpret(command) == output for command, output in pairs)
        shown += [n for n in lengths[:14] if n > 1]
        asked += lengths[14:]
    assert sum(asked) / len(asked) > 1 + sum(shown) / len(shown)


def test_words_in_a_row_mean_their_symbols_in_a_row() -> None:
    assert names(mini_scan()[0].interpret(numbers("dax lug lug fep"))) == "RED BLUE BLUE BLUE BLUE"


@pytest.mark.parametrize("command", ["fep", "fep dax", "tufa", "dax fep fep", "kiki dax", ""])
def test_what_no_rule_interprets(command: str) -> None:
    assert mini_scan()[0].interpret(numbers(command)) is None


def test_the_left_variable_takes_as_much_as_it_can() -> None:
    """By hand: x1 kiki x2 -> [x2] [x1] on `a kiki b kiki c` is [c] [a kiki b] = c b a."""
    assert names(mini_scan()[0].interpret(numbers("dax kiki lug kiki wif"))) == "GREEN BLUE RED"


def test_the_first_rule_that_fits_is_the_one() -> None:
    """`a f b g`: with f before g it is f of a and `b g`; with g first it is g of `a f b`."""
    f, g = Function(1, "u", "x", (0, 1, 0)), Function(2, "x", "", (0, 0))
    command = (0, 1, 3, 2)
    assert Grammar({0: 0, 3: 1}, (f, g)).interpret(command) == (0, 1, 1, 0)
    assert Grammar({0: 0, 3: 1}, (g, f)).interpret(command) == (0, 1, 0, 0, 1, 0)


def rewritten(grammar: Grammar, command: tuple[int, ...]) -> list[str]:
    """An interpreter of its own: regular expressions over letters, one rewrite at a time."""
    letter = "abcdefghi"
    one = "([" + "".join(letter[w] for w in grammar.primitives) + "])"
    kinds = {"u": one, "x": "([a-i]+)", "": ""}
    rules = [(kinds[f.left] + letter[f.word] + kinds[f.right], f.output) for f in grammar.functions]
    rules.append((one + "([a-i]+)", (0, 1)))
    pieces = ["".join(letter[w] for w in command)]
    while any(len(p) > 1 for p in pieces):
        at = next(i for i, p in enumerate(pieces) if len(p) > 1)
        for pattern, output in rules:
            match = re.fullmatch(pattern, pieces[at])
            if match:
                pieces[at : at + 1] = [match.groups()[i] for i in output]
                break
        else:
            raise AssertionError(f"no rule for {pieces[at]}")
    return [OUTPUTS[grammar.primitives[letter.index(p)]] for p in pieces]


def test_outputs_are_those_of_rewriting_by_regular_expressions() -> None:
    for split in ("meta_train", "meta_test", "gold"):
        for index in range(40):
            grammar, pairs = Grammars(split).pairs(index)
            for command, output in pairs:
                assert [OUTPUTS[i] for i in output] == rewritten(grammar, command)


def test_episode_i_is_a_function_of_seed_split_and_i() -> None:
    source = Grammars()
    batch = source.episodes(torch.tensor([5, 2]))
    for field, alone in zip(batch.support, source.episodes(torch.tensor([2])).support, strict=True):
        assert torch.equal(field[1], alone[0])
    for other in (Grammars(seed=1), Grammars("meta_val")):
        assert not torch.equal(other.episodes(torch.tensor([2])).query.x, batch.query.x[1:])


def test_episodes_are_what_the_paper_says() -> None:
    """14 and 10 commands that all differ, of at most 8 words and 8 symbols."""
    source, index = Grammars(), torch.arange(20)
    support, query = source.episodes(index)
    x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1)
    assert x.shape == (20, 24, 8)
    assert y.shape == (20, 24, 9)
    for t in range(20):
        grammar, pairs = source.pairs(t)
        assert len({tuple(row) for row in x[t].tolist()}) == 24
        assert len(grammar.primitives) == 4
        assert len(set(grammar.primitives.values())) == 4
        assert len(grammar.functions) == 3
        for i, (command, output) in enumerate(pairs):
            assert x[t, i].tolist() == [w + WORDS for w in command] + [PAD] * (8 - len(command))
            tail = [END] + [PAD] * (8 - len(output))
            assert y[t, i].tolist() == [s + WORDS for s in output] + tail


def test_the_distribution_of_rules() -> None:
    """Half of the functions take one argument; outputs stop with 0.6 after each variable from 2."""
    functions = [f for i in range(1500) for f in draw_grammar(random.Random(i).random).functions]
    n = len(functions)
    assert sum(not f.right for f in functions) / n == pytest.approx(0.5, abs=0.03)
    assert sum(f.left == "u" for f in functions) / n == pytest.approx(0.5, abs=0.03)
    assert sum(len(f.output) == 2 for f in functions) / n == pytest.approx(0.6, abs=0.03)
    assert sum(len(f.output) == 3 for f in functions) / n == pytest.approx(0.24, abs=0.03)
    assert max(len(f.output) for f in functions) <= 8
    assert all({0, 1} <= set(f.output) for f in functions if f.right)


def test_no_two_splits_share_what_functions_do() -> None:
    forms = {
        split: {_form(Grammars(split).pairs(i)[0].functions) for i in range(150)}
        for split in SPLITS
    }
    for one in ("meta_train", "meta_val", "meta_test"):
        for other in set(SPLITS) - {one}:
            assert not forms[one] & forms[other]


def test_gold_renames_and_reorders_and_human_does_not() -> None:
    human = Grammars("human").episodes(torch.arange(2))
    assert torch.equal(human.support.x[0], human.support.x[1])
    words = [COMMANDS[w - WORDS] for w in human.support.x[0, 4].tolist() if w != PAD]
    assert words == ["lug", "kiki", "wif"]
    gold = Grammars("gold").episodes(torch.arange(50))
    assert len(gold.support.x[:, :, 0].unique()) == len(COMMANDS)
    assert len({tuple(len(r[r > 0]) for r in e) for e in gold.support.x}) > 40  # orders
    # The 10 queries have the same lengths whatever the names.
    assert len({tuple((e > 0).sum(-1).tolist()) for e in gold.query.y}) == 1


def test_mini_scan_is_that_of_the_authors_file(shared_data: Path) -> None:
    """Their names are 1, 2, 3, DAX, thrice, surround and after, for words and symbols alike."""
    archive = zipfile.ZipFile(shared_data / "mlc_human" / "mlc_few_shot.zip")
    text = io.TextIOWrapper(archive.open("few_shot/val_gold/mini_scan.txt"), "utf-8").read()
    word = {"1": "dax", "2": "lug", "3": "wif", "DAX": "zup"} | {
        "thrice": "fep",
        "surround": "blicket",
        "after": "kiki",
    }
    symbol = {"1": "RED", "2": "BLUE", "3": "GREEN", "DAX": "YELLOW"}
    theirs = [
        (" ".join(word[w] for w in c.split()), " ".join(symbol[s] for s in o.split()))
        for c, o in re.findall(r"IN: (.+) OUT: (.+)", text)
    ]
    ours = [
        (" ".join(COMMANDS[w] for w in command), names(output))
        for command, output in Grammars("human").pairs(0)[1]
    ]
    assert sorted(theirs[:14]) == sorted(ours[:14])
    assert sorted(theirs[14:]) == sorted(ours[14:])


def test_errors() -> None:
    with pytest.raises(InputError, match="split"):
        Grammars("train")
    with pytest.raises(InputError, match="unknown choice of study examples 'simpel'"):
        Grammars(study="simpel")
    with pytest.raises(InputError, match="longest is 2"):
        Grammars(longest=2)
    with pytest.raises(InputError, match="3 study examples and 10 queries of gold"):
        Grammars("gold", n_support=3)


def test_taught_study_is_on_the_plan_of_the_human_study() -> None:
    for index in range(40):
        grammar, pairs = Grammars(study="taught").pairs(index)
        shown, asked = ({c for c, _ in part} for part in (pairs[:14], pairs[14:]))
        assert len(shown | asked) == 24
        assert all(grammar.interpret(command) == output for command, output in pairs)
        assert {c for c in shown if len(c) == 1} == {(w,) for w in grammar.primitives}
        for function in grammar.functions:
            assert sum(c[1:2] == (function.word,) and len(c) < 4 for c in shown) >= 2
        (new,) = (w for w in grammar.primitives if not any(w in c for c in shown - {(w,)}))
        assert all(new in command for command in asked)


def test_the_plan_of_the_human_study_is_that_of_its_episode() -> None:
    shown, asked = mini_scan()[1:]
    zup = COMMANDS.index("zup")
    assert [c for c in shown if zup in c] == [(zup,)]
    assert all(zup in command for command in asked)


def test_few_study_examples_on_that_plan() -> None:
    _, pairs = Grammars(study="taught", n_support=5, n_query=2).pairs(0)
    assert sorted(len(c) for c, _ in pairs[:5])[:4] == [1, 1, 1, 1]


def test_mixed_study_has_both_kinds() -> None:
    mixed = Grammars(study="mixed")
    kinds = set()
    for index in range(20):
        grammar, pairs = mixed.pairs(index)
        shown, asked = [c for c, _ in pairs[:14]], [c for c, _ in pairs[14:]]
        alone = [w for w in grammar.primitives if not any(w in c for c in shown if len(c) > 1)]
        kinds.add(any(all(w in c for c in asked) for w in alone))
    assert kinds == {True, False}
