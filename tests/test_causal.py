"""`tegu causal`: the direction of two columns that somebody brings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tegu import keys
from tegu.causal import Draws, _ranks, _repetition, find_direction, swapped
from tegu.cli import main
from tegu.columns import Columns
from tegu.errors import InputError

SMALL = {"repetitions": 3, "updates": 12}


def waves(*means: float, n: int = 150) -> Columns:
    """A cause with a mean of its own in each environment, and an effect that it bends into."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, 1, n) for mean in means]
    a = np.concatenate(parts)
    b = 2 * np.sin(1.5 * a) + a + 0.4 * rng.normal(size=len(a))
    labels = tuple(f"e{i}" for i in range(len(means)) for _ in range(n))
    return Columns(("dose", "effect"), np.stack([a, b], 1), labels if len(means) > 1 else None)


def named(n: int = 300) -> Columns:
    """Two columns of whole numbers that only name, from 10 on."""
    rng = np.random.default_rng(1)
    mechanism = rng.dirichlet(np.ones(6), size=6)
    rows, labels = [], []
    for label in "xyz":
        a = rng.choice(6, size=n, p=rng.dirichlet(np.ones(6)))
        rows += [(10 + i, 10 + rng.choice(6, p=mechanism[i])) for i in a]
        labels += [label] * n
    return Columns(("cause", "effect"), np.array(rows, dtype=np.float64), tuple(labels))


def save(table: Columns, path: Path) -> Path:
    rows = [",".join(map(str, row)) for row in table.values.tolist()]
    names = ",".join(table.names)
    if table.labels:
        rows = [f"{row},{label}" for row, label in zip(rows, table.labels, strict=True)]
        names += ",site"
    path.write_text("\n".join([names, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("make", "kind"), [(lambda: waves(0, -1.5, 1.5), "numbers"), (named, "categories")]
)
def test_interventions_show_the_cause(make: Any, kind: str) -> None:
    table = make()
    found = find_direction(table, **SMALL)
    assert found.kind == kind
    assert found.belief > 0.6
    assert found.direction == f"{table.names[0]} -> {table.names[1]}"
    assert found.environments == 3
    assert found.rows == len(table.values)
    assert found.episodes == 24
    assert found.path.shape == (3, 13)
    assert (found.path[:, 0] == 0.5).all()
    assert not found.warning


@pytest.mark.parametrize("make", [lambda: waves(0, -1.5, 1.5), lambda: waves(0), named])
def test_exchanged_columns_exchange_the_belief(make: Any) -> None:
    """No side has a head start, under environments and under pseudo-interventions."""
    table = make()
    settings = {**SMALL, "updates": 4}
    forth, back = (find_direction(one, **settings) for one in (table, swapped(table)))
    np.testing.assert_allclose(forth.path, 1 - back.path, atol=1e-5)
    assert forth.names == back.names[::-1]
    assert not np.allclose(forth.path[:, -1], 0.5)


def test_without_environments_there_is_a_warning() -> None:
    found = find_direction(waves(0), **SMALL)
    assert found.environments == 1
    assert "nothing in these data shows an intervention" in found.warning
    again = find_direction(waves(0), **SMALL)
    assert (again.path == found.path).all()
    other = find_direction(waves(0), seed=1, **SMALL)
    assert (other.path != found.path).any()


def test_episodes_come_from_the_other_environments() -> None:
    first, second, third = torch.zeros(5, 2), torch.ones(4, 2), torch.full((9, 2), 2.0)
    drawn = Draws(first, (second, third), 6, keys.key(0)).episodes(torch.arange(40)).support.x
    seen = drawn.flatten(1).unique(dim=1)
    assert sorted(drawn.unique().tolist()) == [1, 2]
    assert all(len(one.unique()) == 1 for one in seen)


def test_each_repetition_starts_from_another_environment() -> None:
    sets = [torch.full((12, 2), float(i)) for i in range(3)]
    for number in range(4):
        one = _repetition(sets, number, keys.key(number))
        assert one.training.unique().tolist() == [number % 3]
        assert len(one.training) == 12
        assert sorted(float(part[0, 0]) for part in one.transfers) == [
            i for i in range(3) if i != number % 3
        ]


def test_pseudo_interventions_are_twins_and_shift_the_column_they_select_by() -> None:
    rows = torch.stack([torch.linspace(-1, 1, 50), torch.linspace(-1, 1, 50).roll(17)], -1).double()
    drawn = Draws(rows, (), 400, keys.key(2)).episodes(torch.arange(20)).support.x
    means = drawn.mean(1)  # (T, 2)
    by_first, by_second = means[0::2], means[1::2]
    assert bool((by_first[:, 0].abs() > 0.4).all())
    assert bool((by_second[:, 1].abs() > 0.4).all())
    # The same numbers choose ranks of either column.
    torch.testing.assert_close(drawn[0::2][..., 0], drawn[1::2][..., 1])
    assert bool((by_first[:, 0] > 0).any())
    assert bool((by_first[:, 0] < 0).any())


def test_ties_count_by_the_middle_of_their_ranks() -> None:
    """A column of two values: each value's rows are drawn alike, whatever the other holds."""
    ranks = _ranks(torch.tensor([3.0, 1.0, 1.0, 2.0]))
    assert ranks.tolist() == [0.75, -0.5, -0.5, 0.25]
    rows = torch.stack([torch.tensor([0.0, 1.0]).repeat(30), torch.arange(60.0)], -1)
    drawn = Draws(rows, (), 20_000, keys.key(3)).episodes(torch.arange(1)).support.x[0]
    share = drawn[:, 0].mean()
    assert float(share) == pytest.approx(1 / (1 + np.exp(3.0)), abs=0.01) or float(
        share
    ) == pytest.approx(1 / (1 + np.exp(-3.0)), abs=0.01)
    ones = drawn[drawn[:, 0] == 1][:, 1]
    assert float(ones.mean()) == pytest.approx(30, abs=1.5)


def table_of(values: NDArray[np.float64], labels: tuple[str, ...] | None = None) -> Columns:
    names = tuple(f"v{i}" for i in range(values.shape[1]))
    return Columns(names, values, labels)


RANDOM = np.random.default_rng(4).normal(size=(40, 3))


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (table_of(RANDOM[:, :1]), {}, "1 column of numbers; expected two, a cause and an effect."),
        (table_of(RANDOM), {}, "3 columns of numbers; expected two, a cause and an effect. Keep"),
        (table_of(RANDOM[:29, :2]), {}, "29 rows; expected at least 30. Collect more"),
        (
            table_of(RANDOM[:, :2] * [1, 0] + 4),
            {},
            "v1 is 4 in every row; expected a column that varies. Choose another column",
        ),
        (
            table_of(RANDOM[:, :2], ("x",) * 40),
            {},
            "all rows are of the environment 'x'; expected two environments or more. Leave",
        ),
        (
            table_of(RANDOM[:, :2], ("x",) * 31 + ("y",) * 9),
            {},
            "9 rows of the environment 'y'; expected at least 10 of each. Collect",
        ),
        (table_of(RANDOM[:, :2]), {"kind": "words"}, "unknown kind 'words'; expected one of auto"),
        (table_of(RANDOM[:, :2]), {"updates": 0}, "updates is 0; expected at least 1. Raise"),
        (table_of(RANDOM[:, :2]), {"repetitions": 0}, "repetitions is 0; expected at least 1."),
    ],
)
def test_tables_that_do_not_bear_the_method(
    table: Columns, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as told:
        find_direction(table, **settings)
    assert str(told.value).startswith(message)


ARGUMENTS = ["--repetitions", "3", "--updates", "12"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    save(waves(0, -1.5, 1.5), tmp_path / "mine.csv")
    assert main(["causal", "mine.csv", "--environment", "site", *ARGUMENTS]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "direction: dose -> effect"
    assert lines[1].startswith("belief in dose -> effect: 0.")
    assert lines[2] == (
        "rests on: 450 rows of numbers, 3 environments, 24 episodes in each repetition"
    )
    assert lines[3:] == ["picture: mine-belief.png"]
    assert (tmp_path / "mine-belief.png").read_bytes().startswith(b"\x89PNG")
    assert "12" in said.err


def test_command_as_json_without_environments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(waves(0), tmp_path / "mine.csv")
    picture = tmp_path / "new" / "path.png"
    assert main(["causal", str(path), "--json", "--output", str(picture), *ARGUMENTS]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["columns"] == ["dose", "effect"]
    assert document["environments"] == 1
    assert document["warning"].startswith("no environments were given")
    assert document["band"][0] <= document["belief"] <= document["band"][1]
    assert document["picture"] == str(picture)
    assert picture.is_file()


def chain(path: Path) -> Path:
    """Three columns, a -> b -> c, each intervened on by a treatment that does not say so."""
    rng = np.random.default_rng(0)

    def rows(n: int, changed: str = "") -> NDArray[np.int64]:
        a = rng.random(n) < (0.9 if changed == "a" else 0.25)
        b = np.where(rng.random(n) < 0.85, a, rng.random(n) < 0.2)
        b = rng.random(n) < 0.9 if changed == "b" else b
        c = np.where(rng.random(n) < 0.85, b, rng.random(n) < 0.2)
        c = rng.random(n) < 0.9 if changed == "c" else c
        return np.stack([a, b, c], 1).astype(np.int64)

    lines = ["a,b,c,treatment"]
    for label, changed, n in (("x", "a", 150), ("none", "", 900), ("y", "b", 150), ("z", "c", 150)):
        lines += [f"{a},{b},{c},{label}" for a, b, c in rows(n, changed)]
    path.write_text("\n".join(lines))
    return path


def test_more_columns_give_a_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chain(tmp_path / "mine.csv")
    words = ["causal", "mine.csv", "--environment", "treatment", "--baseline", "none"]
    assert main([*words, "--updates", "250", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {(e["cause"], e["effect"]) for e in document["edges"]} == {("a", "b"), ("b", "c")}
    assert all(0.5 < e["belief"] <= 1 for e in document["edges"])
    assert (document["rows"], document["interventions"]) == (1350, 3)
    assert document["baseline"] == "none"
    assert np.array(document["beliefs"]).shape == (3, 3)
    assert (tmp_path / "mine-belief.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--updates", "1"]) == 0
    assert "rests on: 1,350 rows, 3 interventions beside 'none', 1 updates" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "line 2 of mine.csv holds 'x' in treatment"),
        (["--environment", "treatment", "--baseline", "nothing"], "unknown label 'nothing'"),
        (["--environment", "treatment", "--kind", "numbers"], "--kind for 3 columns"),
        (["--environment", "treatment", "--repetitions", "3"], "--repetitions for 3 columns"),
        (["--environment", "treatment", "--updates", "0"], "0 updates"),
        (["--environment", "a", "--baseline", "0"], "line 2 of mine.csv holds 'x' in treatment"),
    ],
)
def test_bad_input_for_a_graph(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    chain(tmp_path / "mine.csv")
    assert main(["causal", "mine.csv", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line, "12 rows labelled 'few'"),
        (lambda line: line.replace("0,", "1,", 1), "a is 1 in every row"),
    ],
)
def test_messages_about_a_graph_name_labels_and_columns(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[str], str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    head, *lines = chain(tmp_path / "mine.csv").read_text().splitlines()
    few = [] if "every row" in message else [line.replace(",x", ",few") for line in lines[:12]]
    changed = [change(line) if line.startswith("0,") else line for line in lines]
    Path("mine.csv").write_text("\n".join([head, *changed, *few]))
    assert main(["causal", "mine.csv", "--environment", "treatment", "--baseline", "none"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["causal", "mine.csv", "--environment", "site", "--baseline", "x"], "--baseline for 2"),
        (["causal", "no.csv"], "there is no file no.csv"),
        (["causal"], "the following arguments are required: FILE"),
        (["causal", "mine.csv", "--output", "path.txt"], "a picture named path.txt"),
        (["causal", "mine.csv", "--environment", "sight"], "unknown column 'sight'"),
        (["causal", "mine.csv"], "line 2 of mine.csv holds 'e0' in site"),
        (["causal", "mine.csv", "--environment", "site", "--updates", "x"], "--updates"),
    ],
)
def test_bad_input_ends_with_code_2_and_no_picture(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(waves(0, 1), tmp_path / "mine.csv")
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "expected:" in said.err
    assert "what to do:" in said.err
    assert not said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv"]


def test_a_column_of_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.causal.LARGEST", 5)
    with pytest.raises(InputError, match=r"a column of 6 different values as categories;.*most 5"):
        find_direction(named(), **SMALL, kind="categories")
