"""SCAN's grammar, its files, and tasks in which words change their meaning."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tegu.datasets import MutualExclusivity, Scan
from tegu.datasets.scan import (
    ACTION_WORDS,
    COMMAND_WORDS,
    few_shot_pairs,
    grammar,
    interpret,
    split_pairs,
)
from tegu.datasets.scan_tasks import KINDS
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.episodes import Episode
from tegu.errors import InputError

NAMES = ["_", "END", "START"]


def words(row: Tensor, vocabulary: tuple[str, ...]) -> list[str]:
    """A row's words; those beside SCAN's own by their number."""
    extra = [str(i) for i in range(30)]
    return [[*NAMES, *vocabulary, *extra][i] for i in row.tolist() if i not in (PAD, END)]


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("jump", "I_JUMP"),
        ("jump left", "I_TURN_LEFT I_JUMP"),
        ("turn right twice", "I_TURN_RIGHT I_TURN_RIGHT"),
        ("turn opposite left", "I_TURN_LEFT I_TURN_LEFT"),
        ("walk opposite right", "I_TURN_RIGHT I_TURN_RIGHT I_WALK"),
        ("look around left", "I_TURN_LEFT I_LOOK " * 4),
        ("turn around left", "I_TURN_LEFT " * 4),
        ("run thrice and look", "I_RUN I_RUN I_RUN I_LOOK"),
        ("run after look left twice", "I_TURN_LEFT I_LOOK I_TURN_LEFT I_LOOK I_RUN"),
    ],
)
def test_the_meaning_of_a_command(command: str, actions: str) -> None:
    assert interpret(command) == actions.strip()


@pytest.mark.parametrize(
    "command", ["", "fly", "turn", "jump twice twice", "left", "jump and", "walk around", "and"]
)
def test_what_is_no_command_is_said(command: str) -> None:
    with pytest.raises(InputError, match="a command of SCAN"):
        interpret(command)


def test_the_grammar_is_the_whole_data_set(shared_data: Path) -> None:
    pairs = split_pairs("all", "train", data_dir=shared_data)
    assert len(pairs) == len(set(grammar())) == 20_910
    assert set(pairs) == set(grammar())
    assert all(interpret(command) == actions for command, actions in grammar())


@pytest.mark.parametrize("name", ["add-jump", "around-right", "length"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_splits_out_of_the_grammar_are_the_files(shared_data: Path, name: str, part: str) -> None:
    of_files = split_pairs(name, part, data_dir=shared_data)
    assert Counter(of_files) == Counter(split_pairs(name, part))


def test_episodes_are_the_same_from_files(shared_data: Path) -> None:
    for task in ("add-jump", "around-right"):
        for split in ("meta_train", "meta_test"):
            index = torch.arange(3)
            made = Scan(task, split).episodes(index)
            read = Scan(task, split, data_dir=shared_data).episodes(index)
            for one, two in zip(made, read, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_few_shot_splits(shared_data: Path) -> None:
    train = few_shot_pairs(4, 2, "train", data_dir=shared_data)
    test = few_shot_pairs(4, 2, "test", data_dir=shared_data)
    assert set(train) | set(test) <= set(grammar())
    assert not any("jump around right" in command for command, _ in train)
    shown = {
        (shots, sample): {
            command
            for command, _ in few_shot_pairs(shots, sample, "train", data_dir=shared_data)
            if "around right" in command
        }
        for shots, sample in ((1, 1), (4, 1), (4, 2))
    }
    assert [len(commands) for commands in shown.values()] == [1, 4, 4]
    assert shown[4, 1] != shown[4, 2]
    assert all("jump around right" in command for command, _ in test)
    with pytest.raises(InputError, match="part of a split 'val'"):
        few_shot_pairs(4, 2, "val", data_dir=shared_data)
    with pytest.raises(InputError, match=r"without few_shot_split/.*num3_rep1"):
        few_shot_pairs(3, 1, "train", data_dir=shared_data)


def test_a_file_of_pairs_too_large(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.datasets.scan.LARGEST", 100)
    with pytest.raises(InputError, match=r"line 1 of .*num4_rep2"):  # cut off after 100 bytes
        few_shot_pairs(4, 2, "test", data_dir=shared_data)


def true_words(task: str, episode: Episode, t: int) -> list[tuple[str, str]]:
    """The pairs of an episode with every word back to what it means in SCAN, by trying.

    A bijection of words is looked for under which each pair is right.
    """
    pairs = []
    for half in episode:
        for x, y in zip(half.x[t], half.y[t], strict=True):
            pairs.append((words(x, COMMAND_WORDS), words(y, ACTION_WORDS)))
    own = KINDS[task].words
    fixed = set(COMMAND_WORDS) - set(own)
    used = list(dict.fromkeys(w for c, _ in pairs for w in c if w not in fixed))
    acts = list(
        dict.fromkeys(
            a
            for _, actions in pairs
            for a in actions
            if a not in set(ACTION_WORDS) - set(KINDS[task].actions)
        )
    )
    assert len(used) <= len(own)
    assert len(acts) <= len(own)
    back = dict(zip(used, own, strict=False))  # which of SCAN's words it was does not matter
    said = []
    for command, actions in pairs:
        right = interpret(" ".join(back.get(w, w) for w in command)).split()
        assert len(right) == len(actions)
        said += [
            (word, act)
            for word, act in zip(right, actions, strict=True)
            if word in KINDS[task].actions
        ]
    meaning = dict(said)
    assert all(meaning[word] == act for word, act in said)  # one meaning throughout
    assert len(set(meaning.values())) == len(meaning)
    names = dict(zip(own, KINDS[task].actions, strict=True))
    return [(word, meaning[names[back[word]]]) for word in used if names[back[word]] in meaning]


@pytest.mark.parametrize("task", ["add-jump", "add-jump-augmented", "around-right"])
@pytest.mark.parametrize("split", ["meta_train", "meta_val"])
def test_a_task_is_scan_with_other_meanings(task: str, split: str) -> None:
    """Each episode's pairs are right under one assignment, which is never the true one."""
    episodes = Scan(task, split).episodes(torch.arange(60))
    kind = KINDS[task]
    true = dict(zip(kind.words, kind.actions, strict=True))
    several = set()
    for t in range(60):
        found = dict(true_words(task, episodes, t))
        several.add(tuple(sorted(found.items())))
        if kind.special is None:
            assert len(found) < 4 or found != true
        else:
            special = kind.words[kind.special]
            assert found.get(special) != true[special]
    assert len(several) > 15


def test_the_four_primitives_are_permuted_evenly() -> None:
    """All assignments but the true one, each about as often."""
    episodes = Scan("add-jump", n_support=40, n_query=1).episodes(torch.arange(1000))
    counts: Counter[tuple[str, ...]] = Counter()
    for t in range(1000):
        found = dict(true_words("add-jump", episodes, t))
        if len(found) == 4:
            counts[tuple(found[w] for w in KINDS["add-jump"].words)] += 1
    assert len(counts) == 23
    assert KINDS["add-jump"].actions not in counts
    expected = sum(counts.values()) / 23
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())


def test_strict_tasks_never_show_what_jump_means() -> None:
    episodes = Scan("add-jump", strict=True).episodes(torch.arange(300))
    assert all(
        dict(true_words("add-jump", episodes, t)).get("jump") != "I_JUMP" for t in range(300)
    )
    other = Scan("add-jump").episodes(torch.arange(300))
    assert any(dict(true_words("add-jump", other, t)).get("jump") == "I_JUMP" for t in range(300))


@pytest.mark.parametrize(
    ("task", "n_query", "count", "support"),
    [
        ("add-jump", 2, 3853, ["walk", "look", "run", "jump"]),
        ("around-right", 4, 1119, ["turn left", "turn right"]),
    ],
)
def test_a_test_asks_each_command_once(
    task: str, n_query: int, count: int, support: list[str]
) -> None:
    episodes = Scan(task, "meta_test", n_query=n_query).episodes(torch.arange(count))
    asked = Counter(" ".join(words(x, COMMAND_WORDS)) for x in episodes.query.x.flatten(0, 1))
    assert asked == Counter(command for command, _ in split_pairs(task, "test"))
    shown = [" ".join(words(x, COMMAND_WORDS)) for x in episodes.support.x[5]]
    assert shown == support
    for x, y in zip(episodes.query.x[7], episodes.query.y[7], strict=True):
        assert interpret(" ".join(words(x, COMMAND_WORDS))).split() == words(y, ACTION_WORDS)
    assert episodes.query.y.shape[-1] == 49


def test_length_learns_from_short_to_long() -> None:
    train = Scan("length", n_support=100).episodes(torch.arange(4))
    size = [(half.y > END).sum(-1) for half in train]
    assert int(size[0].max()) < 12 <= int(size[1].min())
    assert int(size[1].max()) <= 22
    test = Scan("length", "meta_test", n_support=100).episodes(torch.arange(2))
    assert int((test.query.y > END).sum(-1).min()) >= 24
    assert int((test.support.y > END).sum(-1).max()) <= 22
    assert not torch.equal(test.support.x[0], test.support.x[1])


def test_ordinary_training_has_the_true_meanings() -> None:
    source = Scan("add-jump", meanings="true", n_query=50)
    episodes = source.episodes(torch.arange(5))
    alone = 0
    for x, y in zip(episodes.query.x.flatten(0, 1), episodes.query.y.flatten(0, 1), strict=True):
        command = words(x, COMMAND_WORDS)
        assert interpret(" ".join(command)).split() == words(y, ACTION_WORDS)
        assert "jump" not in command or command == ["jump"]
        alone += command == ["jump"]
    assert alone  # a tenth of the train file


@pytest.mark.parametrize("source", [Scan(), MutualExclusivity()])
def test_an_episode_is_a_function_of_its_number(source: Scan | MutualExclusivity) -> None:
    some, more = source.episodes(torch.arange(4)), source.episodes(torch.tensor([2, 9]))
    for one, two in zip(some, more, strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a[2], b[0])
            assert not torch.equal(a[1], b[1]) or a.dtype == torch.bool


def test_mutual_exclusivity() -> None:
    """Three words are shown, and with the fourth symbol every query can be answered."""
    orders = {}
    for split in ("meta_train", "meta_test"):
        episodes = MutualExclusivity(split).episodes(torch.arange(200))
        seen = set()
        for t in range(200):
            shown = dict(
                zip(
                    episodes.support.x[t].flatten().tolist(),
                    episodes.support.y[t, :, 0].tolist(),
                    strict=True,
                )
            )
            assert len(shown) == len(set(shown.values())) == 3
            (word,) = set(range(WORDS, WORDS + 4)) - set(shown)
            (symbol,) = set(range(WORDS, WORDS + 4)) - set(shown.values())
            means = {**shown, word: symbol}
            for x, y in zip(
                episodes.query.x[t].tolist(), episodes.query.y[t].tolist(), strict=True
            ):
                said = [w for w in x if w != PAD]
                assert 2 <= len(said) <= 6
                assert [a for a in y if a != PAD] == [*(means[w] for w in said), END]
            seen.add(tuple(means[w] for w in sorted(means)))
        orders[split] = seen
    assert len(orders["meta_train"]) == 19
    assert len(orders["meta_test"]) == 5
    assert not orders["meta_train"] & orders["meta_test"]
    every = [MutualExclusivity("meta_test", seed=seed).orders() for seed in (0, 1)]
    assert torch.equal(*every)  # tests have a seed of their own, and ask what training has not


def test_bad_settings_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task of SCAN"):
        Scan("add-hop")
    with pytest.raises(InputError, match=r"n_support is 0.*1 to 10,455"):
        Scan(n_support=0)
    with pytest.raises(InputError, match="strict with the task length"):
        Scan("length", strict=True, n_support=5)
    with pytest.raises(InputError, match="n_held_out is 24"):
        MutualExclusivity(n_held_out=24)
    with pytest.raises(InputError, match="split of SCAN without a file"):
        split_pairs("simple", "train")
    with pytest.raises(InputError, match="cannot be read"):
        split_pairs("simple", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    "line", ["jump", "IN: hop OUT: I_JUMP", "IN: jump OUT: I_HOP", "IN:  OUT: "]
)
def test_a_bad_line_is_said(tmp_path: Path, line: str) -> None:
    (tmp_path / "scan").mkdir()
    with zipfile.ZipFile(tmp_path / "scan" / "scan_splits.zip", "w") as archive:
        archive.writestr("tasks.txt", f"IN: jump OUT: I_JUMP\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of tasks.txt is"):
        split_pairs("all", "train", data_dir=tmp_path)


def test_a_damaged_tar_is_said(tmp_path: Path) -> None:
    path = tmp_path / "scan_few_shot_and_size_splits.tar.xz"
    path.write_bytes(b"\xfd7zXZ\x00" + bytes(range(200)))
    with pytest.raises(InputError, match=r"undamaged tar\.xz archive"):
        few_shot_pairs(1, 1, "train", data_dir=tmp_path)
