"""Data of one's own through recipes and the command line."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tegu import recipes
from tegu.cli import main
from tegu.datasets import Packable, write_packed
from tegu.engine.checkpoint import load_checkpoint
from tegu.errors import InputError
from tegu.job import Job
from tegu.sources import Folder, Packed, Sentences

Photos = Callable[..., Path]
SHORT = {"train.meta_iterations": 2, "train.n_way": 2, "train.meta_batch": 2, "model.width": 4}
SCORED = {"train.validate_every": 1, "train.validate_episodes": 2, "evaluate.episodes": 2}
CELL = {"evaluate.cells": [{"n_way": 2}]}
CLASSES = {f"class{i:02d}": 4 for i in range(12)}


def job(data: str, path: Path, **more: Any) -> Job:
    own = {k.replace("__", "."): v for k, v in more.items()}
    start = {**SHORT, **SCORED, **CELL, "train.n_query": 2, "data.path": str(path)}
    return Job(recipes.starting("protonet", data, {**start, **own}))


def test_folder_and_pack_train_alike(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", CLASSES)
    assert main(["pack", str(folder), str(tmp_path / "out"), "--size", "8", "--json"]) == 0
    found = [
        one.train(None)
        for one in (
            job("folder", folder, data__size=8),
            job("folder", folder, data__size=8, data__hold=0, data__workers=2),
            job("packed", tmp_path / "out"),
        )
    ]
    for params, last in found[1:]:
        torch.testing.assert_close(params, found[0][0], rtol=0, atol=0)
        assert last.validation == found[0][1].validation


def test_the_command_line_from_folder_to_figure(
    tmp_path: Path, photos: Photos, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """The path is told from one folder, and the run evaluated from another; data may move."""
    photos(tmp_path / "p", dict.fromkeys(CLASSES, 6))
    monkeypatch.chdir(tmp_path)
    sets = {**SHORT, "data.path": "p", "data.size": 8, "data.channels": 1, **SCORED}
    words = [w for k, v in sets.items() for w in ("--set", f"{k}={v}")]
    words += ["--run", "run"]
    assert main(["train", "--learner", "protonet", "--data", "folder", *words]) == 0
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["data"]["path"] == str(tmp_path / "p")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../run", "--json"]) == 0
    shutil.move(tmp_path / "p", tmp_path / "q")
    capsys.readouterr()
    assert main(["evaluate", "../run", "--json", "--set", "data.path=../q"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [c["protocol"]["data"] for c in cells] == ["q", "q"]
    assert [c["protocol"]["n_way"] for c in cells] == [2, 2]  # as in training: fewer than five
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").iteration == 2


def test_the_start_asks_for_no_more_ways_than_few_classes_have() -> None:
    assert recipes.starting("protonet", "folder").train.n_way == 5
    few = recipes.starting("protonet", "folder", {"train.n_way": 3})
    assert all(cell.n_way <= 3 for cell in few.evaluate.cells)


def test_settings_become_the_shape_of_the_network(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", CLASSES)
    one = job("folder", folder, data__size=16, data__channels=1, data__augment="standard")
    one.check()
    batch = one.training_tasks().episodes(torch.arange(1))
    assert batch.support.x.shape == (1, 2, 1, 16, 16)
    assert one.data("meta_train").name == "p"


def test_vectors_are_packed_too(tmp_path: Path) -> None:
    x = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(0))
    classes = [Packable(("meta_train", "meta_test")[i % 2], str(i), [x[i]]) for i in range(8)]
    write_packed(tmp_path / "pack", classes)
    more = {"model__name": "mlp", "model__hidden": [4]}
    settings = {k: v for k, v in SHORT.items() if k != "model.width"}
    start = {**settings, **SCORED, **CELL, "train.n_query": 2, "data.path": str(tmp_path / "pack")}
    one = Job(
        recipes.starting(
            "protonet", "packed", {**start, **{k.replace("__", "."): v for k, v in more.items()}}
        )
    )
    one.check()
    assert one.validation == "meta_train"  # the pack has no meta_val
    _, last = one.train(None)
    assert last.iteration == 2


def test_without_classes_for_validation_those_of_training_serve(
    tmp_path: Path, photos: Photos
) -> None:
    folder = photos(tmp_path / "p", {"meta_train/a": 1, "meta_test/b": 1})
    assert Folder(path=str(folder)).validated() == "meta_train"
    assert Folder(path=str(folder), validation="meta_test").validated() == "meta_test"
    photos(folder, {"meta_val/c": 1})
    assert Folder(path=str(folder)).validated() == "meta_val"
    plain = photos(tmp_path / "q", {"a": 1})
    assert Folder(path=str(plain)).validated() == "meta_val"
    assert Folder(path=str(plain), shares=(1, 0, 1)).validated() == "meta_train"
    assert Packed().validated() == "meta_val"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train__n_way": 9}, r"8 classes in meta_train of p for tasks of 9; .* change data.share"),
        (
            {"evaluate__cells": [{"n_way": 4}]},
            r"2 classes in meta_test of p for tasks of 4; expected 4 classes in each split",
        ),
        (
            {"train__n_shot": 4},
            r"classes of meta_train of p with too few examples: 'class.*' \(4\), .* and 5 more; "
            r"expected 6, for n_shot 4 and n_query 2\. .*: data.least=6",
        ),
        ({"data__fit": "croop"}, r"unknown fit 'croop'"),
        ({"data__shares": [1, 2]}, r"shares \[1, 2\]"),
        ({"data__channels": 2}, r"2 channels"),
    ],
)
def test_what_does_not_fit(
    settings: dict[str, Any], text: str, tmp_path: Path, photos: Photos
) -> None:
    folder = photos(tmp_path / "p", CLASSES)

    def check() -> None:
        job("folder", folder, data__size=8, **settings).check()

    with pytest.raises(InputError, match=text):
        check()


def test_a_class_with_one_image(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {**CLASSES, "lonely": 1})
    shares = {"data__size": 8, "data__shares": [1, 0, 0], "data__validation": "meta_train"}
    one = job("folder", folder, **shares, evaluate__split="meta_train")
    with pytest.raises(InputError, match=r"too few examples: 'lonely' \(1\); .*data.least=3"):
        one.check()
    job("folder", folder, **shares, evaluate__split="meta_train", data__least=3).check()


def test_a_broken_image_in_the_middle_of_training(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", CLASSES)
    for file in folder.glob("*/03.png"):
        file.write_text("none")
    one = job("folder", folder, data__size=8, data__hold=0)
    with pytest.raises(InputError, match=r"03.png cannot be read as an image"):
        one.train(None)


def test_packing_says_what_comes_next(
    tmp_path: Path, photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "p", CLASSES)
    (folder / "class00" / "00.png").write_text("none")
    words = ["pack", str(folder), str(tmp_path / "out"), "--size", "8", "--shares", "1", "0", "1"]
    assert main([*words, "--skip-broken", "--channels", "1"]) == 0
    told = capsys.readouterr()
    assert "meta_train: 6 classes, " in told.out
    assert "left out: " in told.out
    assert f"data.path={tmp_path / 'out'}" in told.out
    assert "48/48 images" in told.err
    array = np.load(tmp_path / "out" / "meta_test.npy", allow_pickle=False)
    assert array.shape[1:] == (1, 8, 8)
    with Image.open(folder / "class00" / "01.png") as image:
        assert image.mode == "RGB"


# Recordings and texts


def recordings(folder: Path, each: int = 4) -> Path:
    """Ten classes of tones."""
    for i in range(10):
        (folder / f"word{i}").mkdir(parents=True)
        for j in range(each):
            wave_of = np.sin(np.arange(800) * 0.05 * 1.3**i + j)
            with wave.open(str(folder / f"word{i}" / f"{j}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((16_000 * wave_of).astype("<i2").tobytes())
    return folder


def texts(file: Path, each: int = 4) -> Path:
    rows = [f"order a dish of kind{i} number {j},kind{i}" for i in range(10) for j in range(each)]
    file.write_text("\n".join(["text,intent", *rows]))
    return file


@pytest.mark.parametrize("data", ["sounds", "sentences"])
def test_sounds_and_sentences_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    path = recordings(tmp_path / "w", 6) if data == "sounds" else texts(tmp_path / "t.csv", 6)
    size = {"data.size": 16, "data.seconds": 0.2} if data == "sounds" else {"data.size": 64}
    own = {"model.width": 4} if data == "sounds" else {"model.view": 4}
    short = {k: v for k, v in SHORT.items() if k != "model.width"} | own
    sets = {**short, **SCORED, **size, "train.n_query": 2, "data.path": path}
    words = [w for k, v in sets.items() for w in ("--set", f"{k}={v}")]
    words += ["--run", str(tmp_path / "run")]
    assert main(["train", "--learner", "protonet", "--data", data, *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cells"][0]["protocol"]["data"] == path.name


def test_recordings_are_varied_when_trained_on(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "w")
    size = {"data__size": 16, "data__seconds": 0.2}
    plain = job("sounds", folder, **size)
    varied = job("sounds", folder, **size, data__augment="standard")
    wanted = {"n_way": 2, "n_shot": 1, "n_query": 1, "seed": 0}
    index = torch.arange(3)
    for split, training, same in (
        ("meta_train", True, False),
        ("meta_train", False, True),
        ("meta_test", False, True),
    ):
        one, other = (
            each.tasks(split, **wanted, training=training).episodes(index).support.x
            for each in (plain, varied)
        )
        assert torch.equal(one, other) is same, split


def test_texts_are_not_varied(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.augment=standard for texts"):
        job("sentences", texts(tmp_path / "t.csv"), data__augment="standard")


@pytest.mark.parametrize("data", ["sounds", "sentences"])
def test_too_few_recordings_or_texts(tmp_path: Path, data: str) -> None:
    path = recordings(tmp_path / "w", 2) if data == "sounds" else texts(tmp_path / "t.csv", 2)
    own = {"model.width": 4} if data == "sounds" else {"model.view": 4}
    short = {k: v for k, v in SHORT.items() if k != "model.width"} | own
    settings = {**short, **SCORED, **CELL, "train.n_query": 2, "data.path": str(path)}
    with pytest.raises(InputError, match=r"too few examples: .* data\.least=3"):
        Job(recipes.starting("protonet", data, settings)).check()


@pytest.mark.parametrize(
    ("images", "fit"),
    [
        (torch.full((3, 3, 16, 16), 255).byte(), True),
        (torch.ones(3, 3, 16, 16), True),
        (torch.full((3, 3, 16, 16), -1.5), False),
        (torch.full((3, 3, 16, 16), 255.0), False),
        (torch.ones(3, 16), False),
    ],
)
def test_only_images_between_0_and_1_are_varied(images: Tensor, fit: bool, tmp_path: Path) -> None:
    write_packed(tmp_path / "pack", [Packable("meta_train", n, [images]) for n in "abcde"])
    source = Packed(path=str(tmp_path / "pack"), augment="standard")
    if fit:
        assert source.varied() is not None
        return
    with pytest.raises(InputError, match=r"augment=standard for a pack of .*bytes or from 0 to 1"):
        source.varied()


def test_vectors_of_no_size() -> None:
    with pytest.raises(InputError, match="vectors of 0 numbers; expected an even number"):
        recipes.starting("protonet", "sentences", {"data.size": 0})


def test_the_columns_of_training_come_first(tmp_path: Path) -> None:
    """Another error than a missing column is told, and no other column read in its place."""
    table = tmp_path / "t.csv"
    table.write_text("Question,Topic,text,label\nwhat?,a,x,y\nwho?,,x,y\n")
    source = Sentences(text="Question", label="Topic")
    with pytest.raises(InputError, match=r"line 3 of .* holds '' as its Topic"):
        source.examples(table)
    table.write_text("text,label\nx,y\n")
    assert source.examples(table) == (["x"], ["y"])
