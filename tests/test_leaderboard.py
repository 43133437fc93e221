"""All learners at one budget: what each entry is, and that nothing is measured twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tegu import leaderboard, origin
from tegu.cli import main
from tegu.errors import InputError
from tegu.leaderboard import BOARDS, Board, Budget, contenders, entry, job, run
from tegu.learners import LEARNERS
from tegu.report import check

pytestmark = pytest.mark.usefixtures("few_glyphs", "small")

SHORT = Budget(seconds=0.01, episodes=2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board of four ways on a narrow network, and two timings of a task."""
    monkeypatch.setitem(
        BOARDS, "glyphs", Board(4, (1, 2), {"model.name": "conv4", "model.width": 4})
    )
    monkeypatch.setattr(leaderboard, "REPEATS", 2)
    heads = dict(LEARNERS["protonet"].start) | {"train.n_way": 6}
    monkeypatch.setattr(LEARNERS["protonet"], "start", heads)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Entries run in this process; names those that ran."""
    ran: list[str] = []

    def apart(learner: str, *rest: Any) -> dict[str, Any]:
        ran.append(learner)
        return entry(learner, *rest)

    monkeypatch.setattr(leaderboard, "_apart", apart)
    return ran


def test_learners_of_numbers_do_not_compete() -> None:
    assert "joint" not in contenders()
    assert {"maml", "protonet", "reptile"} <= set(contenders())


def test_every_contender_has_settings_that_fit_each_board() -> None:
    """Built and checked, but for the data that this test has not."""
    for name in contenders():
        one = job(name, "glyphs", SHORT)
        assert one.recipe.train.seconds == 0.01
        assert {cell.n_way for cell in one.recipe.evaluate.cells} == {4}
        for cell in one.recipe.evaluate.cells:
            one.judge(cell)


def test_ways_of_training_are_no_fewer_than_those_of_the_board() -> None:
    """More where a learner asks for them, as protonet does; a network has as many outputs."""
    ways = {n: job(n, "glyphs", SHORT).recipe.train.n_way for n in ("protonet", "maml")}
    assert ways == {"protonet": 6, "maml": 4}
    leaderboard.BOARDS["glyphs"] = Board(8, (1,), {"model.name": "conv4", "model.width": 4})
    for name in ("protonet", "proto-maml", "maml"):
        assert job(name, "glyphs", SHORT).recipe.train.n_way == 8


def test_figures_with_and_without_transduction_unless_statistics_are_learned() -> None:
    modes = {
        name: [c.normalisation for c in job(name, "glyphs", SHORT).recipe.evaluate.cells]
        for name in ("maml", "protonet")
    }
    assert modes["maml"] == ["support", "transductive"] * 2
    assert modes["protonet"] == ["running"] * 2


def test_an_entry_says_what_it_cost(here: list[str]) -> None:
    found = entry("protonet", "glyphs", SHORT)
    first = found["cells"][0]
    assert first["protocol"]["learner"] == "protonet"
    assert (first["protocol"]["n_way"], first["protocol"]["n_shot"]) == (4, 1)
    cost = first["cost"]
    assert cost["meta_iterations"] == found["training"]["meta_iterations"] >= 1
    assert cost["adapt_ms"] > 0
    # Four prototypes of 2 x 2 x 4 numbers in four bytes each, and which classes there are.
    assert cost["state_bytes"] == 4 * 16 * 4 + 4


def test_scoring_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks at least, and each figure says how many."""
    monkeypatch.setattr(leaderboard, "SCORING", 0.0)
    monkeypatch.setitem(BOARDS, "glyphs", replace(BOARDS["glyphs"], apart=True))
    found = entry("maml", "glyphs", replace(SHORT, episodes=5))
    assert [one["episodes"] for one in found["cells"]] == [2] * 4


def test_tasks_with_weights_of_their_own_can_follow_one_another() -> None:
    for name, at_once in (("maml", 1), ("protonet", 0)):
        assert job(name, "cifar-fs", SHORT).recipe.engine.at_once == at_once
    assert job("maml", "glyphs", SHORT).recipe.engine.at_once == 0


def test_finished_entries_are_not_run_again(here: list[str], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, _note: str) -> None:
        told.append((done, total))

    document = run(["protonet", "maml"], ["glyphs"], SHORT, tmp_path, progress=progress)
    check(json.loads(json.dumps(document)))
    assert here == ["protonet", "maml"]
    assert told == [(1, 2), (2, 2)]
    again = run(["protonet", "maml"], ["glyphs"], SHORT, tmp_path)
    assert here == ["protonet", "maml"]
    assert again["cells"] == document["cells"]
    run(["protonet"], ["glyphs"], replace(SHORT, episodes=3), tmp_path)
    assert here[2:] == ["protonet"]


def test_an_entry_of_other_settings_is_run_again(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["protonet"], ["glyphs"], SHORT, tmp_path)
    other = dict(LEARNERS["protonet"].start) | {"train.outer_lr": 0.01}
    monkeypatch.setattr(LEARNERS["protonet"], "start", other)
    run(["protonet"], ["glyphs"], SHORT, tmp_path)
    assert here == ["protonet", "protonet"]


def test_an_entry_of_another_machine_is_run_again(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(["protonet"], ["glyphs"], SHORT, tmp_path)
    assert first["training"]["commits"] == [first["commit"]]
    machine = origin.hardware()
    monkeypatch.setattr(origin, "hardware", lambda: {**machine, "cpu": "another"})
    run(["protonet"], ["glyphs"], SHORT, tmp_path)
    assert here == ["protonet", "protonet"]
    monkeypatch.setattr(origin, "commit", lambda: "0123")
    assert run(["protonet"], ["glyphs"], SHORT, tmp_path)["training"]["commits"] != ["0123"]
    for text in ("{", "[]", ""):
        (tmp_path / "glyphs-protonet.json").write_text(text)
        run(["protonet"], ["glyphs"], SHORT, tmp_path)
    assert len(here) == 5


def test_the_best_comes_first_and_pictures_show_honest_figures(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = run(["maml", "protonet"], ["glyphs"], SHORT, tmp_path)
    order = [(c["protocol"]["n_shot"], -c["value"]) for c in document["cells"]]
    assert order == sorted(order)
    for cell in document["cells"]:
        cell["value"] = 0.9 if cell["protocol"]["normalisation"] == "transductive" else 0.5
    drawn: dict[str, list[Any]] = {}
    monkeypatch.setattr(
        leaderboard.pictures, "tradeoff", lambda rows, path, title: drawn.update({path.name: rows})
    )
    paths = leaderboard.draw(document, tmp_path)
    assert (
        [path.name for path in paths] == list(drawn) == ["glyphs-1-shot.png", "glyphs-2-shot.png"]
    )
    for rows in drawn.values():
        assert sorted((name, value) for name, value, *_ in rows) == [
            ("maml", 0.5),
            ("protonet", 0.5),
        ]


def test_a_meta_iteration_has_few_tasks() -> None:
    assert LEARNERS["maml"].start["train.meta_batch"] == 8
    assert job("maml", "glyphs", SHORT).recipe.train.meta_batch == 4
    assert job("protonet", "glyphs", SHORT).recipe.train.meta_batch == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_ends(seconds: float) -> None:
    with pytest.raises(InputError, match=r"a budget of .* seconds; expected a number"):
        Budget(seconds=seconds)


def test_the_command(
    here: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--data glyphs --learner protonet --learner maml --seconds 0.01 --episodes 2 --run r"
    assert main(["leaderboard", *words.split(), "--json"]) == 0
    assert here == ["protonet", "maml"]
    document = json.loads(capsys.readouterr().out)
    assert json.loads(Path("r/leaderboard.json").read_text()) == document
    told = "tegu leaderboard --learner protonet --learner maml --data glyphs --seconds 0.01"
    assert document["command"].startswith(told)
    pictures = ["glyphs-1-shot.png", "glyphs-2-shot.png"]
    assert sorted(path.name for path in Path("r").glob("*.png")) == pictures
    assert main(["leaderboard", "--data", "glyphs", "--seconds", "0"]) == 2
    assert "a budget of 0 seconds" in capsys.readouterr().err


def test_nothing_runs_where_something_cannot(here: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown learner 'protonett'"):
        run(["protonet", "protonett"], ["glyphs"], SHORT, tmp_path)
    with pytest.raises(InputError, match="unknown leaderboard 'glyph'"):
        run(["protonet"], ["glyph"], SHORT, tmp_path)
    assert not here
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_entries_in_processes_of_their_own(tmp_path: Path) -> None:
    """What goes wrong there is told here: an unknown board is refused in the child."""
    with pytest.raises(InputError, match="unknown leaderboard 'nothing'"):
        leaderboard._apart("protonet", "nothing", SHORT, None)
    found = leaderboard._apart("protonet", "glyphs", SHORT, None)
    assert found["training"]["meta_iterations"] >= 1
