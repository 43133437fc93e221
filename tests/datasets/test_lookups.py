"""The first lesson: what is asked is said by the study examples, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets import Grammars, ScanStudy
from tegu.datasets.lookups import LENGTH, MEANINGS, lookups, narrowed
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.episodes import Episode, select

AT = keys.fold(keys.key(0, "test"), torch.arange(300))


def spoken(row: Tensor) -> list[int]:
    return [token for token in row.tolist() if token != PAD]


@pytest.mark.parametrize(("words", "symbols", "n_support"), [(9, 6, 14), (13, 6, 10), (3, 2, 5)])
def test_queries_are_answered_word_by_word(words: int, symbols: int, n_support: int) -> None:
    episodes = lookups(AT, words=words, symbols=symbols, n_support=n_support, n_query=7)
    sizes, lengths = set(), set()
    for t in range(len(AT)):
        support, query = select(episodes, slice(t, t + 1))
        meaning: dict[int, int] = {}
        for x, y, real in zip(support.x[0], support.y[0], support.mask[0], strict=True):
            assert bool(real) == bool(x.any()) == bool(y.any())
            if real:
                (word,), (symbol, end) = spoken(x), spoken(y)
                assert end == END
                assert WORDS <= word < WORDS + words
                assert WORDS <= symbol < WORDS + symbols
                assert word not in meaning
                meaning[word] = symbol
        assert len(set(meaning.values())) == len(meaning)
        sizes.add(len(meaning))
        assert query.mask.all()
        for x, y in zip(query.x[0], query.y[0], strict=True):
            lengths.add(len(spoken(x)))
            assert spoken(y) == [*(meaning[word] for word in spoken(x)), END]
    assert sizes == set(range(2, min(words, symbols, n_support, MEANINGS) + 1))
    assert lengths == set(range(1, LENGTH + 1))


def sources() -> list[Grammars | ScanStudy]:
    return [
        Grammars("meta_train", 14, 5, lookups=10, longest=6),
        ScanStudy("add-jump", "meta_train", 10, 5, shown=3, lookups=10),
    ]


@pytest.mark.parametrize("source", sources(), ids=["grammars", "scan"])
def test_a_batch_may_hold_the_end_of_a_lesson(source: Grammars | ScanStudy) -> None:
    plain = type(source)(*_positional(source), **_named(source))
    together = source.episodes(torch.tensor([12, 3, 40, 9]))
    alone = [source.episodes(torch.tensor([i])) for i in (12, 3, 40, 9)]
    for t, one in enumerate(alone):
        for part, other in zip(flat(select(together, slice(t, t + 1))), flat(one), strict=True):
            size = min(part.shape[-1], other.shape[-1])
            assert torch.equal(part[..., :size], other[..., :size])
            assert not part[..., size:].any()
            assert not other[..., size:].any()
    for t, index in ((0, 12), (2, 40)):
        for part, other in zip(
            flat(alone[t]), flat(plain.episodes(torch.tensor([index]))), strict=False
        ):
            assert torch.equal(part, other)


def flat(episodes: Episode) -> list[Tensor]:
    return [part for half in episodes for part in half]


def _positional(source: Grammars | ScanStudy) -> tuple[object, ...]:
    first = (source.task,) if isinstance(source, ScanStudy) else ()
    return (*first, source.split, source.n_support, source.n_query)


def _named(source: Grammars | ScanStudy) -> dict[str, int]:
    return {"shown": source.shown} if isinstance(source, ScanStudy) else {"longest": 6}


@pytest.mark.parametrize("split", ["meta_val", "meta_test"])
def test_only_training_has_lessons(split: str) -> None:
    without, found = (
        Grammars(split, 14, 5, lookups=lesson, functions=lesson).episodes(torch.arange(3))
        for lesson in (0, 1000)
    )
    assert found.support.mask.all()
    assert all(map(torch.equal, flat(found), flat(without)))


def test_padding_goes_where_all_are_of_the_lesson() -> None:
    source = Grammars("meta_train", 14, 5, lookups=10)
    first = source.trimmed(source.episodes(torch.arange(6)))
    assert first.support.x.shape[1:] == (MEANINGS, LENGTH)
    assert first.query.y.shape[1:] == (5, LENGTH + 1)
    mixed = source.episodes(torch.arange(6, 12))
    assert all(map(torch.equal, flat(source.trimmed(mixed)), flat(mixed)))
    some = lookups(AT, words=9, symbols=6, n_support=14, n_query=5)
    assert int(narrowed(some).support.mask.sum()) == int(some.support.mask.sum())


def test_functions_of_two_primitives_are_the_second_lesson() -> None:
    source = Grammars("meta_train", 14, 12, lookups=10, functions=30, longest=6)
    for index in range(10, 40):
        grammar, pairs = source.pairs(index)
        studied, asked = pairs[:14], pairs[14:]
        assert len(asked) == 12
        primitives = set(grammar.primitives)
        assert {command for command, _ in studied[:4]} == {(word,) for word in primitives}
        functions = {f.word: f for f in grammar.functions}
        used = {command[1] for command, _ in pairs if len(command) == 3 and command[1] in functions}
        assert 1 <= len(used) <= 2
        for command, output in pairs:
            assert grammar.interpret(command) == output
            for word in set(command) - primitives:
                assert len(command) == 3
                assert functions[word].right
                assert len(functions[word].output) in (2, 3)
        again = {command for command, _ in studied if set(command) & used}
        assert not again & {command for command, _ in asked}
    later = [len(command) for index in range(40, 60) for command, _ in source.pairs(index)[1]]
    assert max(later) > 4
