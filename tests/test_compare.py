"""Learners side by side: what is common to them, what a user writes, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tegu import compare, recipes, report
from tegu.cli import main
from tegu.compare import Budget, common, run, written
from tegu.errors import InputError
from tegu.learners import LEARNERS
from tegu.pictures import side_by_side
from tegu.recipes.shelf import tomllib
from tegu.report import check
from tegu.sources import SOURCES

SHORT = Budget(seconds=0.05, episodes=2)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, few_glyphs: None) -> list[str]:
    """Entries run in this process on a narrow network; names those that ran."""
    ran: list[str] = []

    def apart(name: str, function: Any, *arguments: Any) -> Any:
        ran.append(name)
        return function(*arguments)

    monkeypatch.setattr(compare, "apart", apart)
    monkeypatch.setattr(compare, "REPEATS", 1)
    monkeypatch.setattr(compare, "SIZES", (1, 3))
    monkeypatch.setattr(SOURCES["glyphs"], "network", {"name": "mlp", "hidden": [4]})
    heads = dict(LEARNERS["protonet"].start) | {"train.n_way": 6}
    monkeypatch.setattr(LEARNERS["protonet"], "start", heads)
    return ran


def test_what_learners_have_in_common_begins_with_what_needs_no_download() -> None:
    assert common(["reptile", "protonet"])[0] == "glyphs"
    assert {"omniglot", "cifar-fs"} <= set(common(["reptile", "protonet"]))
    assert "sinusoids" not in common(["reptile", "protonet"])
    assert "sinusoids" in common(["reptile", "joint"])
    assert common(["protonet", "joint"]) == []


@pytest.mark.parametrize("name", [n for n in LEARNERS if common([n])])
def test_what_a_user_writes_is_the_whole_recipe(name: str) -> None:
    recipe = recipes.starting(name, common([name])[0])
    text = written(recipe)
    again = recipes.parse({**tomllib.loads(text), "name": recipe.name})
    for section in ("data", "model", "learner", "train", "engine"):
        assert getattr(again, section) == getattr(recipe, section)
    for line in text.splitlines():  # and nothing that could be left out
        if " = " in line and not line.startswith("name"):
            less = tomllib.loads(text.replace(line + "\n", "", 1))
            assert recipes.parse({**less, "name": "x"}) != recipes.parse(
                {**tomllib.loads(text), "name": "x"}
            )


def test_the_document_of_two_learners(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "LEAST", 60.0)  # on a busy machine too all sizes are timed
    document, entries = run(["reptile", "protonet"], "glyphs", SHORT, tmp_path)
    check(document)
    assert here == ["reptile on glyphs", "protonet on glyphs"]
    assert document["name"] == "compare-reptile-protonet"
    figures = [c for c in document["cells"] if "metric" in c]
    timings = [c for c in document["cells"] if "work" in c]
    for name, one in entries.items():
        curve = [c for c in figures if c["protocol"]["learner"] == name and "cost" in c]
        assert [c["value"] for c in curve] == [r["value"] for _, _, r in one["curve"]]
        assert all(c["metric"] == "accuracy" and c["episodes"] == 2 for c in curve)
        seconds = [c["cost"]["training_seconds"] for c in curve]
        assert seconds == sorted(seconds)
        assert seconds[-1] >= SHORT.seconds
        told = {c["metric"]: c["value"] for c in figures if c["protocol"]["learner"] == name}
        assert told["settings written"] == one["recipe"].count(" = ")
    assert [g["support"] for g in entries["reptile"]["growth"]] == [50, 150]
    # Five ways, as the figures have them, though it trains with six.
    assert [g["support"] for g in entries["protonet"]["growth"]] == [5, 15]
    assert len(timings) == 4
    ours, rivals = (entries[n]["growth"][1]["adapt_ms"] for n in ("reptile", "protonet"))
    assert timings[2]["ratio"] == rivals / ours
    assert document["table"] == compare.rows(entries, SHORT)
    assert document["table"][0] == ["", "reptile", "protonet"]
    assert "| lines a user writes |" in report.markdown_table(document)
    run(["reptile", "protonet"], "glyphs", SHORT, tmp_path)
    assert len(here) == 2, "finished entries are not run again"
    file = tmp_path / "glyphs-protonet.json"
    earlier = json.loads(file.read_text())
    del earlier["settings"]["learner"]["turns"]  # as before there was such a setting
    file.write_text(json.dumps(earlier))
    run(["reptile", "protonet"], "glyphs", SHORT, tmp_path)
    assert len(here) == 2, "nor are those of an earlier version"
    run(["reptile", "protonet"], "glyphs", Budget(seconds=0.06, episodes=2), tmp_path)
    assert len(here) == 4, "entries of another budget are"


def test_learners_that_are_scored_differently_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scored differently on gp: reptile by mse, cnp by log"):
        run(["reptile", "cnp"], "gp", SHORT, tmp_path)


def test_what_would_take_too_long_is_left_out(here: list[str], tmp_path: Path) -> None:
    one = compare.job("reptile", "glyphs", SHORT)
    engine, params = compare.Vectorised(one.learner), one.learner.init()
    grown = compare.growth(engine, params, compare._episode(one), "classes", seconds=1e-6)
    assert [g["support"] for g in grown] == [50, 150]
    assert grown[0]["adapt_ms"] > 0
    assert grown[1]["adapt_ms"] is None
    _, entries = run(["reptile", "protonet"], "glyphs", SHORT, tmp_path)
    entries["reptile"]["growth"][1] |= {"adapt_ms": None, "answer_ms": None}
    assert len(compare._timings(entries)) == 2
    assert any("too slow to time" in row for row in compare.rows(entries, SHORT))
    side_by_side(entries, tmp_path / "picture.png", title="one left out")


def test_sequences_grow_in_length_too() -> None:
    x = torch.tensor([[[3, 4, 0], [5, 0, 0]]])
    longer = compare._longer(compare.Examples(x, x, torch.ones(1, 2, dtype=torch.bool)), 2)
    assert longer.x.tolist() == [[[3, 4, 3, 4, 3, 4], [5, 5, 5, 5, 5, 5]]]


def test_the_command(
    here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "compare reptile protonet --seconds 0.05 --episodes 2 --run out --json"
    assert main(words.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == "tegu compare reptile protonet --seconds 0.05 --episodes 2"
    assert (tmp_path / "out/glyphs-reptile-protonet.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out/compare-reptile-protonet.json").read_text()) == told


def test_settings_of_all_learners(
    here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Images of one's own, say."""
    monkeypatch.chdir(tmp_path)
    for split in ("meta_train", "meta_test"):
        for name in "abcdef":
            (folder := tmp_path / "photos" / split / f"{split} {name}").mkdir(parents=True)
            for i in range(11):
                Image.new("RGB", (8, 8), (ord(name), i, 0)).save(folder / f"{i}.png")
    words = "compare reptile protonet --data folder --seconds 0.05 --episodes 2 --run out --json"
    own = ["data.path=photos", "data.size=8", "model.name=conv4", "model.width=4"]
    named = [word for one in own for word in ("--set", one)]
    assert main([*words.split(), *named]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == (
        "tegu compare reptile protonet --data folder --seconds 0.05 --episodes 2 "
        "--set data.size=8 --set model.name=conv4 --set model.width=4"
    )
    kept = json.loads((tmp_path / "out/folder-reptile.json").read_text())
    assert (kept["settings"]["data"]["size"], kept["settings"]["model"]["width"]) == (8, 4)
    assert "size = 8" in kept["recipe"]
    assert main([*words.split(), *named]) == 0
    assert len(here) == 2  # nothing is measured twice
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/meta_test/meta_test a/0.png")
    assert main([*words.split(), *named]) == 0
    assert len(here) == 4  # but on other images
    assert main([*words.split(), *named, "--set", "train.seconds=9"]) == 2
    assert "train.seconds among the settings of a comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("learners", "text"),
    [
        (["reptile"], "a comparison of reptile; expected two different learners"),
        (["reptile", "reptile"], "a comparison of reptile and reptile"),
        (["reptile", "mamll"], "unknown learner 'mamll'"),
    ],
)
def test_what_is_refused(learners: list[str], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        run(learners, "glyphs", SHORT, tmp_path)
    assert not list(tmp_path.iterdir())


def test_learners_of_different_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "protonet", "joint"]) == 2
    told = capsys.readouterr().err
    assert "protonet and joint, which learn no common kind of task" in told
    assert "protonet learns classes, joint learns numbers" in told
