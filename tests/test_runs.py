"""From a run to answers about files: what a run needs, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tegu
from tegu import recipes
from tegu.cli import main
from tegu.errors import InputError
from tegu.job import Job

SHORT = {"train.meta_iterations": 2, "train.n_way": 3, "train.n_shot": 1, "train.n_query": 1}
SCORED = {"train.validate_every": 0, "evaluate.cells": [{"n_way": 2}]}
COLOURS = {f"colour {i:02d}": tuple(255 * (i >> b & 1) for b in range(3)) for i in range(1, 7)}


def colours(folder: Path, each: int = 3, seed: int = 0) -> Path:
    """Classes of images that are a colour with noise."""
    rng = np.random.default_rng(seed)
    for split, names in (("meta_train", [*COLOURS][:3]), ("meta_test", [*COLOURS][3:])):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                noise = rng.integers(-40, 40, (8, 8, 3))
                pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def trained(learner: str, data: str, path: Path, run: Path, **more: Any) -> Job:
    own = {"data.path": str(path), **SHORT, **SCORED, **more}
    one = Job(recipes.starting(learner, data, own))
    one.train(run)
    return one


SMALL = {"data.size": 8, "model.width": 4}
LONGER = {"train.meta_iterations": 40}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on images, whose training data are gone."""
    folder = colours(tmp_path / "photos")
    trained("protonet", "folder", folder, tmp_path / "run", **SMALL, **LONGER)
    shutil.move(folder / "meta_test", tmp_path / "new")
    shutil.rmtree(folder)
    return tmp_path / "run"


def document(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("learner", ["protonet", "reptile", "maml", "simpleshot", "tim"])
def test_a_run_goes_on_without_its_data(learner: str, tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos")
    one = trained(learner, "folder", folder, tmp_path / "run", **SMALL)
    params, _ = one.train(tmp_path / "run", resume=True)
    files = sorted((folder / "meta_test").rglob("*.png"))
    x, y = tegu.read_images(files, size=8), [file.parent.name for file in files]
    expected = tegu.MetaLearned(one.learner, params).adapt(x, y).predict_proba(x)
    shutil.rmtree(folder)
    found = tegu.load_run(tmp_path / "run").adapt(x, y).predict_proba(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_new_files_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    asked = sorted(new.rglob("2.png"))
    found = document(capsys, "predict", run, new, *asked, "--save", tmp_path / "t.safetensors")
    assert found["labels"] == [*COLOURS][3:]
    assert [one["query"] for one in found["answers"]] == [str(file) for file in asked]
    assert [one["label"] for one in found["answers"]] == found["labels"]
    for one in found["answers"]:
        assert list(one["probabilities"]) == found["labels"]
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].__getitem__)
    kept = document(capsys, "predict", run, tmp_path / "t.safetensors", *asked)
    assert kept["answers"] == found["answers"]
    assert main(["predict", str(run), str(new), *map(str, asked)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{asked[0]}  colour 04  ")
    assert len(lines) == 3


@pytest.mark.parametrize("learner", ["tim", "pt-map"])
def test_learners_that_look_at_all_queries_are_refused(
    learner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = colours(tmp_path / "photos"), tmp_path / "run"
    trained(learner, "folder", folder, run, **SMALL)
    assert main(["predict", str(run), str(folder / "meta_test"), "a.png"]) == 2
    assert f"{learner}, which looks at all queries of a task together" in capsys.readouterr().err


def test_a_broken_file_costs_no_other_answer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    asked = sorted(new.rglob("2.png"))
    (tmp_path / "broken.png").write_bytes(asked[0].read_bytes()[:40])
    words = ["predict", str(run), str(new), str(asked[0]), str(tmp_path / "broken.png")]
    found = document(capsys, *words, asked[1])["answers"]
    assert [one.get("label") for one in found] == ["colour 04", None, "colour 05"]
    assert "broken.png cannot be read" in found[1]["error"]
    assert main(words) == 0
    assert "broken.png cannot be read" in capsys.readouterr().out.splitlines()[1]


def test_a_task_of_another_learner(run: Path, tmp_path: Path) -> None:
    learned = tegu.load_run(run)
    x = torch.rand(2, 3, 8, 8)
    learned.adapt(x, ["a", "b"]).save(tmp_path / "t.safetensors")
    other = tegu.learners.MatchingNet(model=learned.learner.model, normalisation="running")
    with pytest.raises(InputError, match="holds a task of protonet, for matchingnet"):
        tegu.Adapted.load(tmp_path / "t.safetensors", other)
    kept = tegu.Adapted.load(tmp_path / "t.safetensors", learned.learner)
    assert kept.labels == ("a", "b")


def test_what_served_the_training_does_not_serve_answers(tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos")
    before = torch.get_num_threads()
    more = {"engine.threads": 1, "engine.workers": 1}
    try:
        trained("protonet", "folder", folder, tmp_path / "run", **SMALL, **more)
        torch.set_num_threads(before)
        tegu.load_run(tmp_path / "run")
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_a_run_of_python_s_own_is_told(run: Path, toy_data: tegu.ClassDataset) -> None:
    own = tegu.Reptile(model=tegu.models.Mlp(6, 3, hidden=(8,)))
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 0)
    tegu.meta_train(own, tasks, meta_iterations=1, run=run.parent / "python")
    with pytest.raises(InputError, match=r"a run of tegu.meta_train.*MetaLearned\.load"):
        tegu.load_run(run.parent / "python")


@pytest.mark.parametrize("learner", ["maml", "protonet"])
def test_a_file_is_answered_by_itself(
    learner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = colours(tmp_path / "photos"), tmp_path / "run"
    more = {"learner.normalisation": "transductive"}
    trained(learner, "folder", folder, run, **SMALL, **more)
    new = folder / "meta_test"
    files = sorted(new.rglob("*.png"))
    together = document(capsys, "predict", run, new, *files)["answers"]
    for file, one in zip(files, together, strict=True):
        (alone,) = document(capsys, "predict", run, new, file)["answers"]
        assert alone["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def test_more_files_than_are_read_at_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    files = sorted(new.rglob("*.png"))
    whole = document(capsys, "predict", run, new, *files)
    monkeypatch.setattr("tegu.commands.predictions.AT_ONCE", 2)
    parts = document(capsys, "predict", run, new, *files)
    for one, other in zip(whole["answers"], parts["answers"], strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_recordings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        (tmp_path / f"words/word{i}").mkdir(parents=True)
        for j in range(3):
            samples = np.sin(np.arange(1600) * 0.05 * 1.3**i + j)
            with wave.open(str(tmp_path / f"words/word{i}/{j}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((16_000 * samples).astype("<i2").tobytes())
    own = {"data.size": 16, "data.seconds": 0.2, "model.width": 4}
    trained("protonet", "sounds", tmp_path / "words", tmp_path / "run", **own)
    asked = sorted((tmp_path / "words").rglob("0.wav"))
    found = document(capsys, "predict", tmp_path / "run", tmp_path / "words", *asked)
    assert sum(one["label"] in one["query"] for one in found["answers"]) >= 5  # chance is 1


def test_texts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"order a dish of kind{i} number {j},kind{i}" for i in range(10) for j in range(3)]
    table = tmp_path / "texts.csv"
    table.write_text("\n".join(["text,intent", *rows]))
    own = {"data.size": 64, "model.view": 4, "data.text": "text", "data.label": "intent"}
    trained("protonet", "sentences", table, tmp_path / "run", **own)
    (tmp_path / "asked.txt").write_text("a dish of kind3, please\n\n number 7 of kind8 \n")
    found = document(capsys, "predict", tmp_path / "run", table, tmp_path / "asked.txt")
    assert [one["query"] for one in found["answers"]] == [
        "a dish of kind3, please",
        "number 7 of kind8",
    ]
    assert len(found["labels"]) == 10
    other = tmp_path / "columns.csv"
    other.write_text("query,label\na dish of kind1,x\nnumber 7 of kind2,y\n")
    found = document(capsys, "predict", tmp_path / "run", other, tmp_path / "asked.txt")
    assert found["labels"] == ["x", "y"]
    assert main(["predict", str(tmp_path / "run"), str(table), str(table)]) == 2
    assert "texts.csv as texts to name" in capsys.readouterr().err
    (tmp_path / "none.txt").write_text(" \n")
    assert main(["predict", str(tmp_path / "run"), str(table), str(tmp_path / "none.txt")]) == 2
    assert "none.txt holds no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent", "new", "new/a.png"], "absent holds no run"),
        (["run", "absent", "new/a.png"], "no folder absent; expected a folder with one sub-folder"),
        (["run", "absent.safetensors", "new/a.png"], "no checkpoint at absent.safetensors"),
        (["run", "run/checkpoint.safetensors", "new/a.png"], "holds no learned task"),
        (["run", "empty", "new/a.png"], "empty holds no images"),
        (["run", "one", "new/a.png"], "labels of one class only"),
        (["run", "new", "absent.png"], "absent.png"),
        (["run", "new", "run/recipe.json"], "recipe.json"),
        (
            ["run", "new", "new/a.png", "--save", "task"],
            "--save task; expected a name that ends in",
        ),
        (["run", "new", "new/a.png", "--device", "tpu"], "engine.device is 'tpu'"),
        (["run", "new"], "the following arguments are required: FILE"),
    ],
)
def test_what_is_refused(
    words: list[str],
    said: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    shutil.copytree("new/colour 04", "one/colour 04")
    assert main(["predict", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.replace("\n  expected: ", "; expected ").removeprefix("error: ")
    assert "Traceback" not in err


def test_a_run_on_data_that_are_no_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], few_glyphs: None
) -> None:
    small = {**SHORT, **SCORED, "model.width": 4}
    Job(recipes.starting("protonet", "glyphs", small)).train(tmp_path / "run")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path), "a.png"]) == 2
    assert "files for a run on glyphs" in capsys.readouterr().err
    learned = tegu.load_run(tmp_path / "run")
    assert learned.features(torch.rand(2, 1, 28, 28)).shape == (2, 16)
    task = tmp_path / "t.safetensors"
    learned.adapt(torch.rand(2, 1, 28, 28), ["a", "b"]).save(task)
    assert main(["predict", str(tmp_path / "run"), str(task), "a.png"]) == 2
    assert "files for a run on glyphs" in capsys.readouterr().err


def test_images_of_another_size(run: Path, tmp_path: Path) -> None:
    """Features of any size have distances: answers would be wrong in silence."""
    learned = tegu.load_run(run)
    task = learned.adapt(torch.rand(2, 3, 8, 8), ["a", "b"])
    task.save(tmp_path / "t.safetensors")
    kept = tegu.Adapted.load(tmp_path / "t.safetensors", learned.learner)
    large, said = (
        torch.rand(2, 3, 84, 84),
        r"images of shape \(3, 84, 84\) for .* \(3, 8, 8\)",
    )
    for act in (
        lambda x: learned.adapt(x, ["a", "b"]),
        learned.features,
        task.predict,
        kept.predict,
    ):
        with pytest.raises(InputError, match=said):
            act(large)


def test_files_that_do_not_belong_together(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["train"]["seed"] = 5
    (run / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="belongs to other settings"):
        tegu.load_run(run)


def test_what_a_run_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on with the same data, and is not scored on classes that it has seen."""
    folder, run = colours(tmp_path / "photos"), str(tmp_path / "run")
    job = trained("simpleshot", "folder", folder, tmp_path / "run", **SMALL)
    kept = json.loads((tmp_path / "run" / "classes.json").read_text())
    assert kept == dict.fromkeys([*COLOURS][:3], 3)
    again = Job(recipes.parse(job.recipe.plain(), {}))
    again.train(tmp_path / "run", resume=True)  # the same data
    # A class more of training changes neither what the run is nor how it is scored.
    shutil.copytree(folder / "meta_train" / "colour 01", folder / "meta_train" / "new")
    few = ["--set", "evaluate.episodes=4"]
    assert main(["evaluate", run, "--json", *few]) == 0
    before = json.loads(capsys.readouterr().out)["cells"]
    with pytest.raises(InputError, match=r"training data of 4 classes and 12 examples, other than"):
        Job(recipes.parse(job.recipe.plain(), {})).train(tmp_path / "run", resume=True)
    shutil.rmtree(folder / "meta_train" / "new")
    (folder / "meta_train" / "colour 01").rename(folder / "meta_test" / "colour 01")
    assert main(["evaluate", run, *few]) == 2
    assert "1 of the classes of meta_test that the run was trained on: colour 01" in (
        capsys.readouterr().err
    )
    same, elsewhere = (["--set", f"data.path={p}"] for p in (folder, tmp_path / "elsewhere"))
    assert main(["evaluate", run, *few, *same]) == 2
    shutil.copytree(folder, tmp_path / "elsewhere")  # other data, for all that is known
    assert main(["evaluate", run, *few, *elsewhere]) == 0
    capsys.readouterr()
    (folder / "meta_test" / "colour 01").rename(folder / "meta_train" / "colour 01")
    assert main(["evaluate", run, "--json", *few]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == before
    (tmp_path / "run" / "classes.json").write_text("[3]")
    assert main(["evaluate", run, *few]) == 2
    assert "classes.json is no list of classes" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["data.path=../q", " data.path=../q"])
def test_paths_stay_out_of_results(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained("protonet", "folder", colours(tmp_path / "p"), tmp_path / "run", **SMALL)
    (tmp_path / "p").rename(tmp_path / "q")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    few = ["--set", "evaluate.episodes=4", "--set", given]
    assert main(["evaluate", "../run", "--json", *few]) == 0
    told = capsys.readouterr().out
    assert "data.path" not in told
    assert str(tmp_path) not in told


def test_a_folder_is_no_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    assert main(["predict", str(run), str(new), str(new)]) == 2
    assert "cannot be read as an image (a folder)" in capsys.readouterr().err
