"""Study episodes of SCAN: what trades places, what a test shows and asks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tegu.datasets import ScanStudy
from tegu.datasets.scan import ACTION_WORDS, COMMAND_WORDS, PRIMITIVES, interpret, split_pairs
from tegu.datasets.scan_study import LENGTHS, NAMED, TRADED
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.errors import InputError


def words(row: Tensor) -> list[str]:
    return [COMMAND_WORDS[i - WORDS] for i in row.tolist() if i != PAD]


def actions(row: Tensor) -> list[str]:
    found = [i for i in row.tolist() if i != PAD]
    assert found[-1] == END
    return [ACTION_WORDS[i - WORDS] for i in found[:-1]]


def rows(episodes: tuple[Tensor, ...], t: int) -> list[tuple[list[str], list[str]]]:
    """All pairs of an episode, study examples and queries."""
    return [
        (words(x), actions(y))
        for half in episodes
        for x, y in zip(half[0][t], half[1][t], strict=True)
    ]


def test_the_test_asks_the_whole_file_once_and_shows_jump() -> None:
    source = ScanStudy("add-jump", "meta_test", n_query=2)
    assert source.n_test == 7706
    support, query = source.episodes(torch.arange(source.n_test // 2))
    asked = {" ".join(words(row)) for row in query.x.flatten(0, 1)}
    assert asked == {command for command, _ in split_pairs("add-jump", "test")}
    for t in range(0, 3853, 401):
        assert (["jump"], ["I_JUMP"]) in rows((support,), t)
        for command, acts in rows((support, query), t):
            assert interpret(" ".join(command)).split() == acts


def test_words_and_actions_trade_places_throughout_an_episode() -> None:
    """The same draws with and without trades: one renaming of each turns one into the other."""
    index, renamings = torch.arange(20), set()
    plain = ScanStudy(permuted=0.0, n_query=30).episodes(index)
    traded = ScanStudy(permuted=1.0, n_query=30).episodes(index)
    for t in range(20):
        word: dict[str, str] = {}
        act: dict[str, str] = {}
        for (w, a), (other_w, other_a) in zip(rows(plain, t), rows(traded, t), strict=True):
            for one, other in zip(w, other_w, strict=True):
                assert word.setdefault(one, other) == other
            for one, other in zip(a, other_a, strict=True):
                assert act.setdefault(one, other) == other
        assert all(word[w] == w for w in word if w not in TRADED)
        assert len(set(word.values())) == len(word)
        assert len(set(act.values())) == len(act)
        assert set(act.values()) <= set(ACTION_WORDS)
        renamings.add(tuple(sorted(word.items())) + tuple(sorted(act.items())))
    assert len(renamings) == 20


def test_most_episodes_trade() -> None:
    index = torch.arange(400)
    plain = ScanStudy(permuted=0.0).episodes(index).query
    found = ScanStudy().episodes(index).query
    same = (plain.x == found.x).flatten(1).all(1) & (plain.y == found.y).flatten(1).all(1)
    assert float(same.double().mean()) == pytest.approx(0.05, abs=0.03)


def test_without_trades_pairs_are_those_of_the_file() -> None:
    episodes = ScanStudy("around-right", permuted=0.0).episodes(torch.arange(5))
    file = dict(split_pairs("around-right", "train"))
    for t in range(5):
        for command, acts in rows(episodes, t):
            assert file[" ".join(command)] == " ".join(acts)


def test_study_examples_are_short() -> None:
    support, query = ScanStudy(shown=6, n_support=50, n_query=50).episodes(torch.arange(4))
    assert support.y.shape[-1] == 7
    assert int((support.y > END).sum(-1).max()) == 6
    assert ((support.y == END).sum(-1) == 1).all()
    assert int((query.y > END).sum(-1).max()) > 6


def test_training_shows_a_verb_alone_as_the_test_does() -> None:
    support, _ = ScanStudy(permuted=0.0).episodes(torch.arange(200))
    alone = [" ".join(words(row)) for row in support.x[:, 0]]
    assert {verb: alone.count(verb) // 30 for verb in set(alone)} == dict.fromkeys(PRIMITIVES, 1)
    support, _ = ScanStudy("length", permuted=0.0).episodes(torch.arange(20))
    assert not set(PRIMITIVES).issuperset(" ".join(words(row)) for row in support.x[:, 0])


def test_named_study_examples_say_what_each_traded_word_does() -> None:
    for split in ("meta_train", "meta_test"):
        source = ScanStudy("add-jump", split, n_query=2, shown=3, named=True, permuted=0.0)
        support, _ = source.episodes(torch.arange(20))
        for t in range(20):
            shown = [" ".join(command) for command, _ in rows((support,), t)[:6]]
            assert shown == list(NAMED)
            assert all(interpret(" ".join(c)).split() == acts for c, acts in rows((support,), t))


def test_the_second_lesson_asks_for_short_answers() -> None:
    source = ScanStudy("add-jump", lookups=16, short=64, n_query=4)
    _, query = source.episodes(torch.arange(16, 80))
    assert int((query.y != PAD).sum(-1).max()) - 1 <= LENGTHS[0]
    _, query = source.episodes(torch.arange(80, 200))
    assert int((query.y != PAD).sum(-1).max()) - 1 > LENGTHS[1]


def test_each_pair_of_the_file_counts_once() -> None:
    """A tenth of the file is "jump" by itself, over and over."""
    _, query = ScanStudy(permuted=0.0, n_query=200).episodes(torch.arange(10))
    asked = [" ".join(words(row)) for row in query.x.flatten(0, 1)]
    assert asked.count("jump") < 20


def test_training_asks_answers_of_one_kind_together_each_as_often_as_the_file_has_them() -> None:
    source = ScanStudy(n_query=4)
    _, query = source.episodes(torch.arange(6400))
    length = (query.y > END).sum(-1)
    kind = torch.bucketize(length, torch.tensor(LENGTHS)).reshape(400, -1)
    assert (kind == kind[:, :1]).all()
    share = kind[:, 0].bincount(minlength=4) / 400
    file = [len(answer.split()) for _, answer in set(split_pairs("add-jump", "train"))]
    wanted = torch.bucketize(torch.tensor(file), torch.tensor(LENGTHS)).bincount() / len(file)
    assert torch.allclose(share, wanted.to(share), atol=0.08)
    assert len({tuple(row) for row in query.x[:16].flatten(0, 1).tolist()}) > 50


def test_trimmed_episodes_lack_nothing_but_padding() -> None:
    source, widths = ScanStudy(n_query=4), set()
    for start in range(0, 160, 16):
        whole = source.episodes(torch.arange(start, start + 16))
        trimmed = source.trimmed(whole)
        width = trimmed.query.y.shape[-1]
        widths.add(width)
        assert torch.equal(trimmed.query.y, whole.query.y[..., :width])
        assert (whole.query.y[..., width:] == PAD).all()
        assert torch.equal(trimmed.query.x, whole.query.x)
        words = trimmed.support.x.shape[-1]
        assert torch.equal(trimmed.support.x, whole.support.x[..., :words])
        assert (whole.support.x[..., words:] == PAD).all()
        assert trimmed.support.y is whole.support.y
    assert {9, 17} < widths <= {9, 17, 25, 49}


def test_episode_i_is_a_function_of_seed_split_and_i() -> None:
    source, index = ScanStudy(), torch.tensor([7, 3])
    both, one = source.episodes(index), source.episodes(index[1:])
    for half, alone in zip(both, one, strict=True):
        for field, other in zip(half, alone, strict=True):
            assert torch.equal(field[1:], other)
    for other in (ScanStudy(seed=1), ScanStudy(split="meta_val")):
        assert not torch.equal(other.episodes(index).query.x, both.query.x)


def test_errors() -> None:
    with pytest.raises(InputError, match="task of SCAN"):
        ScanStudy("jump")
    with pytest.raises(InputError, match="split"):
        ScanStudy(split="test")
    with pytest.raises(InputError, match="shown is 0"):
        ScanStudy(shown=0)
    with pytest.raises(InputError, match="10 study examples of at most 1 actions"):
        ScanStudy(shown=1).episodes(torch.arange(1))
    with pytest.raises(InputError, match="5 study examples, the traded words named"):
        ScanStudy(n_support=5, named=True)
    with pytest.raises(InputError, match="lookups is -1"):
        ScanStudy(lookups=-1)
