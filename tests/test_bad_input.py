"""What people get wrong: each is told in three parts, ends with code 2, and touches no file."""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import tegu
from tegu import recipes
from tegu.cli import main
from tegu.console import complain
from tegu.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tegu.errors import InputError
from tegu.job import Job

TINY = {
    "model.hidden": [4],
    "learner.inner_steps": 1,
    "learner.eval_steps": 1,
    "train.meta_iterations": 2,
    "train.validate_every": 1,
    "train.validate_episodes": 2,
    "evaluate.episodes": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    Job(recipes.load("reptile-sinusoids", TINY)).train(folder)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_glyphs: None) -> Path:
    """The folder to work in: a run, somebody's papers, and nothing else."""
    monkeypatch.delenv("TEGU_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "place"
    shutil.copytree(trained, place / "run")
    (place / "papers").mkdir()
    (place / "papers" / "thesis.tex").write_text("mine")
    monkeypatch.chdir(place)
    return place


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


Action = Callable[[Path], object]


class Case(NamedTuple):
    """A command, or a call, with the three parts of what it says."""

    do: str | Action
    given: str
    expected: str
    todo: str
    prepare: Action = lambda place: None


def file(name: str, content: str | bytes) -> Action:
    """Writes a file into the place."""

    def prepare(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def folder(name: str) -> Action:
    return lambda place: (place / name).mkdir(parents=True)


def archives(*, background: bytes) -> Action:
    """A data folder with this in place of the background images."""

    def prepare(place: Path) -> None:
        for part, data in (("background", background), ("evaluation", zipped("a.txt"))):
            file(f"data/images_{part}.zip", data)(place)

    return prepare


def several(*actions: Action) -> Action:
    """One after another."""
    return lambda place: [action(place) for action in actions]


def zipped(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "some text" * 100)
    return data.getvalue()


def changed(name: str, change: Callable[[bytes], bytes]) -> Action:
    """Alters a file of the run."""

    def prepare(place: Path) -> None:
        path = place / "run" / name
        path.write_bytes(change(path.read_bytes()))

    return prepare


def other_checkpoint(place: Path) -> None:
    """The run's checkpoint becomes one of another learner, whole in itself."""
    path = place / "run" / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint({"w": torch.ones(3)}, {}, 2, 0, "another recipe", {}))


def other_network(place: Path) -> None:
    """The run's checkpoint claims its settings, but its weights are of another network."""
    path = place / "run" / "checkpoint.safetensors"
    recipe = load_checkpoint(path).recipe
    save_checkpoint(path, Checkpoint({"w": torch.ones(3)}, {}, 2, 0, recipe, {}))


TINIER = " ".join(f"--set {key}={value}" for key, value in TINY.items())
NEW = "train reptile-glyphs --run new --set model.width=4"
OTHER = "train reptile-glyphs --run new"
SETTING = f"{NEW} --set "
CIFAR = "train --data cifar-fs --data-dir data --run new"
OMNIGLOT = "train --data omniglot --data-dir data --run new"
DAMAGED = "a whole, undamaged zip archive, or the folder extracted from it"
OWN = "train --data folder --run new --set data.path="
CELLS = "[evaluate]\nepisodes = 2\n"


def classes(counts: list[int], x: torch.Tensor | None = None) -> tegu.ClassDataset:
    rows = torch.zeros(sum(counts), 3) if x is None else x
    return tegu.ClassDataset("toy", "meta_train", rows, torch.tensor(counts), tuple("abcd"))


def learned() -> tegu.MetaLearned:
    learner = tegu.Reptile(model=tegu.models.Mlp(3, 2, hidden=(4,)), eval_steps=1)
    return tegu.MetaLearned(learner, learner.init())


def regression() -> tegu.MetaLearned:
    model = tegu.models.Mlp(1, 1, hidden=(4,))
    learner = tegu.Reptile(model=model, loss=tegu.losses.squared_error, eval_steps=1)
    return tegu.MetaLearned(learner, learner.init())


NAN, INF = float("nan"), float("inf")
X = torch.ones(2, 3)

CASES = {
    # Names
    "command": Case(
        "trian reptile-glyphs",
        "unknown command 'trian'",
        "one of bench, causal, compare, evaluate, info, leaderboard, pack, predict",
        "Did you mean 'train'?",
    ),
    "option": Case(
        f"{NEW} --sed 3",
        "unrecognized arguments: --sed 3",
        "arguments as in the help",
        "See `tegu --help`",
    ),
    "no run": Case("evaluate", "required: RUN", "arguments as", "See `tegu evaluate --help`"),
    "recipe": Case(
        "train reptil-glyphs", "unknown recipe 'reptil-glyphs'", "one of ", "mean 'reptile-glyphs'?"
    ),
    "recipe shown": Case(
        "recipes reptile-sinus", "unknown recipe", "one of ", "mean 'reptile-sinusoids'?"
    ),
    "recipe reproduced": Case(
        "reproduce nothing-like-it", "unknown recipe 'nothing-like-it'", "one of ", ""
    ),
    "section": Case(
        f"{SETTING}trian.seed=1", "unknown section 'trian'", "one of data, ", "mean 'train'?"
    ),
    "key": Case(
        f"{SETTING}train.sead=1", "unknown key of [train] 'sead'", "checkpoint_s", "mean 'seed'?"
    ),
    "section without key": Case(
        f"{SETTING}train=1", "'train'", "SECTION.KEY", "Write train.KEY=VALUE"
    ),
    "setting without value": Case(
        f"{SETTING}train.seed", "--set train.seed", "SECTION.KEY=VALUE", "Write --set train.seed="
    ),
    "learner": Case(
        f"{NEW} --learner reptil", "unknown learner 'reptil'", "one of ", "mean 'reptile'?"
    ),
    "learner's setting": Case(
        f"{SETTING}learner.inner_lrs=1",
        "unknown setting of reptile 'inner_lrs'",
        "one of beta1, ",
        "mean 'inner_lr'?",
    ),
    "inner optimiser": Case(
        f"{SETTING}learner.inner_optimiser=adan", "optimiser 'adan'", "adam, sgd", "mean 'adam'?"
    ),
    "model": Case(
        f"{NEW} --model conv5", "unknown model 'conv5'", "one of conv4, ", "mean 'conv4'?"
    ),
    "activation": Case(
        f"{OTHER} --model mlp --set model.activation=rely", "'rely'", "relu, tanh", "mean 'relu'?"
    ),
    "task of scan": Case(
        "train seq2seq-scan-add-jump --run new --set data.task=add-hop",
        "unknown data.task 'add-hop'",
        "one of add-jump, ",
        "mean 'add-jump'?",
    ),
    "words of mutual exclusivity": Case(
        "train seq2seq-scan-mutual-exclusivity --run new --set train.n_shot=4",
        "n_shot is 4 on mutual-exclusivity",
        "3: all but one",
        "n_shot=3",
    ),
    "sequences wanted": Case(
        "train --learner seq2seq --data glyphs",
        "seq2seq on glyphs",
        "sequences, which it learns",
        "mutual-exclusivity or scan",
    ),
    "network of sequences": Case(
        "train seq2seq-scan-add-jump --run new --set model.name=mlp",
        "the model mlp on scan, whose inputs are tokens",
        "a model that takes tokens",
        "model.name=",
    ),
    "classes wanted": Case(
        "train --learner protonet --data sinusoids",
        "protonet on sinusoids",
        "classes, which it learns",
        "Take protonet on cifar-fs or fc100 or folder",
    ),
    "numbers wanted": Case(
        "train --learner joint --data glyphs",
        "joint on glyphs",
        "numbers, which it learns",
        "Take joint on gp or sinusoids",
    ),
    "model and data": Case(
        "train --data sinusoids --model conv4",
        "conv4 on sinusoids, whose inputs are vectors",
        "a model that takes vectors",
        "model.name=mlp",
    ),
    "data set": Case(
        f"{NEW} --data omniglott",
        "data set 'omniglott'",
        "causal-pairs, cifar-fs, fc100, folder, glyphs",
        "mean 'omniglot'?",
    ),
    "a model of images on waves": Case(
        "train --data sinusoids --model resnet12",
        "the model resnet12 on sinusoids",
        "a model that takes vectors",
        "Write model.name=mlp",
    ),
    "augmentation": Case(
        f"{SETTING}data.augment=standart", "augmentation 'standart'", "standard", "mean 'standard'?"
    ),
    "augmented waves": Case(
        "train reptile-sinusoids --set data.augment=standard",
        "unknown setting of the data set sinusoids 'augment'",
        "grid_query, phase, validation",
        "Choose a setting of the data set sinusoids",
    ),
    "waves within a group": Case(
        "train reptile-sinusoids --set data.within=true",
        "unknown setting of the data set sinusoids 'within'",
        "grid_query, phase, validation",
        "mean 'validation'?",
    ),
    "tasks within groups that there are none of": Case(
        f"{SETTING}data.within=true",
        "within=True, but glyphs meta_train has no groups of classes",
        "data with groups, such as Omniglot's alphabets",
        "Pass within=False",
    ),
    "pooling without convolutions": Case(
        f"{OTHER} --model mlp --set model.pool=true",
        "unknown setting of the model mlp 'pool'",
        "activation, hidden",
        "Choose a setting of the model mlp",
    ),
    "widths of a model with a factor": Case(
        f"{OTHER} --model wrn --set model.widths=[1,2,3,4]",
        "unknown setting of the model wrn 'widths'",
        "depth, widen",
        "mean 'widen'?",
    ),
    "a depth of a model with four layers": Case(
        f"{SETTING}model.depth=16", "unknown setting of the model conv4", "pool, width", "Did"
    ),
    "three widths": Case(
        f"{SETTING}model.widths=[4,4,4]", "3 widths for a Conv4", "or four", "Pass width=64"
    ),
    "an empty layer of four": Case(
        f"{SETTING}model.widths=[4,4,0,4]", "model.widths is [4,4,0,4]", "at least 1", "Change wi"
    ),
    "a device as result": Case(
        "reproduce reptile-glyphs --output /dev/null",
        "/dev/null cannot be written",
        "a file in a folder",
        "Choose another --output",
    ),
    "a number of many digits": Case(
        f"{SETTING}train.outer_lr=1" + 400 * "0", "train.outer_lr is 1000", "a finite number", "W"
    ),
    "ways beyond counting": Case(
        f"{SETTING}train.n_way=1000000000", "train.n_way is 1000000000", "at most 1048576", "Chan"
    ),
    "a list of numbers for words": Case(
        "train pfn-tables --run new --set data.families=[1]",
        "data.families is '[1]'",
        "a list of words",
        "Write it as such",
    ),
    "a name too long for a file": Case(
        f"causal {300 * 'x'}.csv", "File name too long", "files and folders", "Check the path"
    ),
    "a seed of many digits": Case(
        f"causal x.csv --seed {10**20}", "is beyond 62 bits", "arguments as in the help", "See"
    ),
    "attention without heads": Case(
        "train --learner cnp --data gp --set model.heads=0",
        "model.heads is 0",
        "at least 1",
        "Change heads",
    ),
    "a depth between two": Case(
        f"{OTHER} --model wrn --set model.depth=27",
        "depth is 27",
        "10, 16, 22, 28",
        "Pass depth=28",
    ),
    "too shallow": Case(
        f"{OTHER} --model wrn --set model.depth=4",
        "model.depth is 4",
        "at least 10",
        "Change depth",
    ),
    "partition": Case(
        f"{OMNIGLOT} --set data.partition=vinyal",
        "unknown partition 'vinyal'",
        "alphabets, reptile, vinyals",
        "mean 'vinyals'?",
        folder("data"),
    ),
    "split to validate on": Case(
        f"{SETTING}data.validation=meta_vall", "'meta_vall'", "meta_train", "mean 'meta_val'?"
    ),
    "split to evaluate on": Case(
        "train reptile-sinusoids --run new --set evaluate.split=test",
        "unknown split 'test'",
        "one of meta_test",
        "mean 'meta_test'?",
    ),
    "device": Case(
        f"{NEW} --device tpu",
        "engine.device is 'tpu'",
        "a device that",
        "cuda where there is a GPU",
    ),
    "device without numbers": Case(
        f"{NEW} --device meta", "engine.device is 'meta'", "a device that this", "Write cpu"
    ),
    "precision": Case(
        f"{NEW} --precision fp8", "precision 'fp8'", "auto, bf16, fp32", "mean 'fp32'?"
    ),
    "precision that there is none of": Case(
        f"{NEW} --precision fp64", "unknown precision 'fp64'", "auto, bf16, fp32", "Did you mean"
    ),
    "vectorisation": Case(
        f"{SETTING}engine.vectorise=vamp", "'vamp'", "auto, loop, vmap", "mean 'vmap'?"
    ),
    "compile": Case(f"{SETTING}engine.compile=yes", "'yes'", "one of auto, off, on", "Choose a"),
    # Kinds
    "int": Case(f"{SETTING}train.seed=one", "train.seed is 'one'", "a whole number", "Write it"),
    "int with a fraction": Case(
        f"{NEW} --meta-iterations 1.5", "meta_iterations is '1.5'", "a whole number", "Write it"
    ),
    "float": Case(
        f"{SETTING}learner.inner_lr=fast", "inner_lr is 'fast'", "a number", "Write it as such"
    ),
    "float NaN": Case(f"{SETTING}train.outer_lr=nan", "outer_lr is nan", "finite number", "Write"),
    "bool": Case(f"{SETTING}data.invert=yes", "is 'yes'", "true or false", "Write it as such"),
    "list": Case(f"{SETTING}model.widths=64", "is '64'", "a list of whole numbers", "Write it"),
    "list of words": Case(
        f"{SETTING}model.widths=['x']", "model.widths is", "a list of whole numbers", "Write it"
    ),
    "threads in words": Case(
        f"{NEW} --threads abc", "engine.threads is 'abc'", "a whole number", "Write it as such"
    ),
    # Counts
    "threads below none": Case(
        f"{NEW} --threads -3", "engine.threads is -3", "at least 0", "Change threads"
    ),
    "no iterations": Case(
        f"{NEW} --meta-iterations 0", "train.meta_iterations is 0", "at least 1", "Change meta_it"
    ),
    "negative batch": Case(
        f"{SETTING}train.meta_batch=-1", "meta_batch is -1", "at least 1", "Change meta_batch"
    ),
    "negative learning rate": Case(
        f"{SETTING}learner.inner_lr=-0.1", "inner_lr is -0.1", "above 0", "Try 0.001"
    ),
    "no filters": Case(f"{SETTING}model.width=0", "model.width is 0", "at least 1", "Change"),
    "an empty layer": Case(
        "train reptile-sinusoids --set model.hidden=[8,0]",
        "model.hidden is [8,0]",
        "at least 1",
        "Change hidden",
    ),
    "seed": Case(f"{NEW} --seed {1 << 70}", "train.seed is", "at most", "Change seed"),
    "one way": Case(f"{SETTING}train.n_way=1", "train.n_way is 1", "at least 2", "Change n_way"),
    "no shots": Case(f"{SETTING}train.n_shot=0", "train.n_shot is 0", "at least 1", "Change"),
    "one episode": Case(
        f"{SETTING}evaluate.episodes=1", "evaluate.episodes is 1", "at least 2", "Change episodes"
    ),
    "one episode of a run": Case(
        "evaluate run --episodes 1", "evaluate.episodes is 1", "at least 2", "Change episodes"
    ),
    "none at once": Case(
        "evaluate run --set evaluate.at_once=0", "evaluate.at_once is 0", "at least 1", "Change"
    ),
    "more ways than classes": Case(
        f"{SETTING}train.n_way=9",
        "n_way is 9, but glyphs meta_train has 8 classes",
        "no more ways than classes",
        "Lower n_way",
    ),
    "more shots than examples": Case(
        f"{SETTING}train.n_shot=21",
        "21 shots plus 0 queries make 21, but class 'a' of glyphs meta_train has 20 examples",
        "no more shots and queries than examples",
        "Lower n_shot or n_query",
    ),
    "more shots and queries to evaluate on": Case(
        "train mine.toml --run new",
        "15 shots plus 6 queries make 21, but class 'a' of glyphs meta_test",
        "no more shots",
        "Lower",
        file("mine.toml", f"{CELLS}[[evaluate.cells]]\nn_shot = 15\nn_query = 6\n"),
    ),
    # Recipes
    "no such file": Case("train mine.toml", "no file mine.toml", "a recipe", "Check the path"),
    "a folder for a recipe": Case(
        "train mine.toml", "no file mine.toml", "a recipe in TOML", "Check", folder("mine.toml")
    ),
    "a recipe that is no TOML": Case(
        "train mine.toml",
        "mine.toml is not TOML",
        "a recipe",
        "Mend that line",
        file("mine.toml", "[data\nname"),
    ),
    "a recipe of bytes": Case(
        "recipes mine.toml", "is not TOML", "a recipe", "Mend", file("mine.toml", bytes(range(256)))
    ),
    "a recipe nested too deep": Case(
        "train mine.toml", "is not TOML", "a recipe", "Mend", file("mine.toml", "a=" + "[" * 9000)
    ),
    "a recipe too large": Case(
        "train mine.toml", "over 1 MiB", "a recipe", "Check", file("mine.toml", " " * (1 << 21))
    ),
    "a section that is none": Case(
        "train mine.toml", "data is 3", "a table", "Write [data]", file("mine.toml", "data = 3")
    ),
    "a section that is none, set": Case(
        "train mine.toml --seed 1", "train is 3", "a table", "", file("mine.toml", "train = 3")
    ),
    "a learner that is none": Case(
        "train mine.toml", "learner is [1]", "a table", "", file("mine.toml", "learner = [1]")
    ),
    "a learner's name that is none": Case(
        "train mine.toml", "learner.name is []", "a word", "", file("mine.toml", "learner.name=[]")
    ),
    "cells that are a number": Case(
        "train mine.toml",
        "evaluate.cells is 3",
        "one or more tables",
        "Write [[evaluate.cells]] above each",
        file("mine.toml", "[evaluate]\ncells = 3"),
    ),
    "cells that are numbers": Case(
        "train mine.toml",
        "evaluate.cells is 1",
        "a table",
        "Write [evaluate.cells]",
        file("mine.toml", "[evaluate]\ncells = [1, 2]"),
    ),
    "no cells": Case(
        f"{SETTING}evaluate.cells=[]", "evaluate.cells is '[]'", "one or more tables", "Write [["
    ),
    "a cell's normalisation": Case(
        "reproduce mine.toml",
        "unknown normalisation 'transductif'",
        "one of running, support, transductive",
        "mean 'transductive'?",
        file("mine.toml", f"{CELLS}[[evaluate.cells]]\nnormalisation = 'transductif'\n"),
    ),
    "a name with a path": Case(
        "train mine.toml",
        "'../x'",
        "letters, digits",
        "Write name",
        file("mine.toml", "name='../x'"),
    ),
    # Data of one's own
    "a folder of images without a path": Case(
        "train --data folder",
        "the data set folder without a path",
        "where your data are",
        "Add --set data.path=FOLDER",
    ),
    "a folder of images that is not there": Case(
        f"{OWN}photos", "no folder ", "one sub-folder for each class", "Check the path"
    ),
    "a folder without images": Case(
        f"{OWN}papers", "papers holds no images", "files ending in .bmp, .gif", "Check the path"
    ),
    "images without classes": Case(
        f"{OWN}photos",
        "photos/cat.png with no sub-folder around it",
        "one sub-folder for each class",
        "Move it into its class's folder",
        file("photos/cat.png", "any"),
    ),
    "images divided for another purpose": Case(
        f"{OWN}photos",
        "photos is divided into train and val",
        "one sub-folder for each class",
        "put all classes side by side",
        several(file("photos/train/cat/1.png", ""), file("photos/val/cat/1.png", "")),
    ),
    "a broken image": Case(
        f"{OWN}photos --set data.shares=[1,0,0]",
        "photos/cat/1.png cannot be read as an image (cannot identify",
        "a whole file (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)",
        "Replace or remove it; `tegu pack --skip-broken` leaves such files out",
        several(file("photos/cat/1.png", "<html>"), file("photos/dog/1.png", "<html>")),
    ),
    "a broken image to pack": Case(
        "pack photos out",
        "photos/cat/1.png cannot be read as an image",
        "a whole file",
        "Replace or remove it",
        file("photos/cat/1.png", "<html>"),
    ),
    "nothing but broken images to pack": Case(
        "pack photos out --skip-broken",
        "no example for out",
        "at least one",
        "Look at",
        file("photos/cat/1.png", "<html>"),
    ),
    "a pack where something is": Case(
        "pack photos papers",
        "papers is there",
        "a folder that is not",
        "Choose another",
        file("photos/cat/1.png", "<html>"),
    ),
    "a pack in a file": Case(
        "pack photos papers/thesis.tex/out",
        "papers/thesis.tex/out cannot be written: ",
        "a folder that can be written",
        "choose another folder",
        file("photos/cat/1.png", "<html>"),
    ),
    "a size of images": Case(
        "pack photos out --size 0", "images of 0 pixels", "1 to 4,096", "Pass size=84"
    ),
    "a size in words": Case(
        "pack photos out --size big", "invalid int value: 'big'", "arguments as in the help", "See"
    ),
    "a fit": Case(
        "pack photos out --fit crap", "unknown fit 'crap'", "crop, pad, stretch", "mean 'crop'"
    ),
    "a pack that is none": Case(
        "train --data packed --set data.path=papers",
        "papers holds no classes.json",
        "a folder that `tegu pack`",
        "Check data.path",
    ),
    "a pack of something else": Case(
        "train --data packed --set data.path=other",
        "other/classes.json is no list of classes",
        "a folder that `tegu pack`",
        "Pack again",
        file("other/classes.json", '{"format": 7}'),
    ),
    "a patch that does not divide": Case(
        f"{OTHER} --model vit --set model.patch=5",
        "patch is 5, which does not divide 28",
        "a divisor of the images' size",
        "Pass patch=4",
    ),
    "tasks at once below none": Case(
        f"{SETTING}engine.at_once=-1", "engine.at_once is -1", "at least 0", "Change at_once"
    ),
    # Folders
    "no data folder": Case(
        "train reptile-glyphs --data-dir nowhere", "no folder nowhere", "data sets", "--data-dir"
    ),
    "no archives": Case(
        OMNIGLOT,
        "no images_background.zip and images_evaluation.zip in data",
        "Omniglot's archives there",
        "Put https://github.com/brendenlake/omniglot/",
        folder("data"),
    ),
    "an archive cut short": Case(
        OMNIGLOT,
        "data/images_background.zip cannot be read",
        DAMAGED,
        "Delete it, and download it again",
        archives(background=zipped(*map(str, range(50)))[:-40]),
    ),
    "an archive that is none": Case(
        OMNIGLOT,
        "data/images_background.zip cannot be read (File is not a zip file)",
        DAMAGED,
        "Delete it",
        archives(background=b"<html>not found</html>"),
    ),
    "an archive without images": Case(
        OMNIGLOT,
        "data/images_background.zip holds 0 characters and 0 images",
        "964 characters with 20 images each",
        "Replace it with https://",
        archives(background=zipped("cat.png", "images_background/readme.txt")),
    ),
    "no CIFAR-100": Case(
        CIFAR,
        "no cifar100.zip or cifar-100-binary.tar.gz in data",
        "one of CIFAR-100's archives there",
        "Put https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz into that folder",
        folder("data"),
    ),
    "a CIFAR archive cut short": Case(
        CIFAR,
        "data/cifar100.zip cannot be read",
        DAMAGED,
        "Delete it, and download it again",
        file("data/cifar100.zip", zipped(*map(str, range(50)))[:-40]),
    ),
    "a CIFAR archive without a class": Case(
        CIFAR.replace("cifar-fs", "fc100"),
        "data/cifar100.zip: 0 images of the class 'apple'",
        "600 or 300 of each of the 60 classes of fc100 meta_train",
        "Replace it with https://",
        file("data/cifar100.zip", zipped("cifar100/data/baby/a.png")),
    ),
    "a CIFAR image that is none": Case(
        CIFAR,
        "cifar100/data/apple/a.png is not a colour image of 32 x 32 pixels",
        "PNG or WebP files",
        "Replace the file",
        file("data/cifar100.zip", zipped("cifar100/data/apple/a.png")),
    ),
    "another binary archive": Case(
        CIFAR,
        "data/cifar-100-binary.tar.gz has MD5 ",
        "03b5dce01913d631647c71ecec9e9cb8, which its publisher states",
        "Delete it",
        file("data/cifar-100-binary.tar.gz", b"<html>not found</html>"),
    ),
    "a run that is a file": Case(
        f"{NEW} --run papers/thesis.tex",
        "papers/thesis.tex is a file",
        "a folder for the run",
        "Choose another name",
    ),
    "a run in a file": Case(
        f"{NEW} --run papers/thesis.tex/run",
        "cannot be written: Not a directory",
        "a folder that can be written",
        "Choose another folder",
    ),
    "a run among papers": Case(
        f"{NEW} --run papers --resume",
        "papers is not empty and holds no run",
        "a new or empty folder, or a run to resume",
        "Choose another folder; nothing in this one was touched",
    ),
    "a run that is there": Case(
        f"train reptile-sinusoids --run run {TINIER}",
        "run holds a run already",
        "a new or empty folder",
        "Add --resume",
    ),
    "a run with other settings": Case(
        f"{NEW} --run run --resume",
        "run belongs to a run with other settings",
        "the settings that the run was started with",
        "Use those settings",
    ),
    "a quick start gone on with, but where": Case(
        "quickstart --resume", "--resume without --run", "the run", "Add --run DIR"
    ),
    "a quick start on waves": Case(
        "quickstart --set data.name=sinusoids --set model.name=mlp",
        "a quick start with reptile on sinusoids",
        "reptile on glyphs or omniglot",
        "Use `tegu train`",
    ),
    "a quick start on photos": Case(
        "quickstart --set data.name=cifar-fs",
        "a quick start with reptile on cifar-fs",
        "reptile on glyphs or omniglot",
        "Use `tegu train`",
    ),
    "no run to evaluate": Case("evaluate papers", "papers holds no run", "`tegu train`", "Check"),
    "no run to show": Case(
        "info nowhere", "nowhere holds no run", "`tegu train`", "Check the path"
    ),
    "settings of another training": Case(
        "evaluate run --set train.seed=3", "train.seed in an evaluation", "[evaluate] or", "Train"
    ),
    "an output in a file": Case(
        "reproduce reptile-glyphs --output papers/thesis.tex/x.json",
        "papers/thesis.tex/x.json cannot be written",
        "a file in a folder that can be written",
        "Choose another --output",
    ),
    "an output that is a folder": Case(
        "reproduce reptile-glyphs --output papers", "papers cannot be", "a file in", "--output"
    ),
    "a quick start's output": Case(
        "quickstart --output papers", "papers cannot be written", "a file in", "another --output"
    ),
    # A run's files
    "no checkpoint": Case(
        "evaluate run",
        "no checkpoint at run/checkpoint.safetensors",
        "a file that a run or a `save` has written",
        "Check the path",
        lambda place: (place / "run/checkpoint.safetensors").unlink(),
    ),
    "a checkpoint cut short": Case(
        "evaluate run",
        "run/checkpoint.safetensors is cut short or not a checkpoint",
        "a whole file",
        "Take another copy",
        changed("checkpoint.safetensors", lambda data: data[:-9]),
    ),
    "an altered checkpoint": Case(
        "info run",
        "run/checkpoint.safetensors does not match its own digest",
        "a file that nobody has changed",
        "Take another copy",
        changed("checkpoint.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ),
    "another run's checkpoint": Case(
        "evaluate run",
        "run/checkpoint.safetensors belongs to other settings than run/recipe.json",
        "the two files that one run has written",
        "Put the right one back",
        other_checkpoint,
    ),
    "another run's checkpoint to show": Case(
        "info run", "belongs to other settings", "the two files", "Put the", other_checkpoint
    ),
    "another network's weights": Case(
        "evaluate run",
        "run/checkpoint.safetensors holds other parameters than this learner has",
        "tensors of the learner's own names and shapes",
        "Build the learner and its model with the settings",
        other_network,
    ),
    "garbled settings": Case(
        "evaluate run",
        "run/recipe.json is no recipe",
        "the settings that a run has written",
        "Train the run again",
        file("run/recipe.json", b"\xff\xfe{"),
    ),
    "settings nested too deep": Case(
        "info run", "is no recipe", "the settings", "", file("run/recipe.json", "[" * 99_999)
    ),
    "settings of something else": Case(
        "info run", "is no recipe", "the settings", "", file("run/recipe.json", '["learner"]')
    ),
    "settings without a name": Case(
        "info run",
        "the name ''",
        "letters",
        "Write name",
        file("run/recipe.json", '{"learner":{}}'),
    ),
    "garbled metrics": Case(
        "info run",
        "line 1 of run/metrics.jsonl holds no figures of a run",
        "lines that tegu has written",
        "Move the file away",
        file("run/metrics.jsonl", b"\x00\xff\n{}\n"),
    ),
    "metrics of something else": Case(
        "info run", "line 1 of run", "lines that", "Move", file("run/metrics.jsonl", "[1]\n[2]\n")
    ),
    # Calls
    "an empty class": Case(
        lambda place: classes([2, 0, 3, 1]), "class 'b' is empty", "at least one example", "Remove"
    ),
    "NaN in a data set": Case(
        lambda place: classes([1] * 4, torch.tensor([[1.0], [2.0], [NAN], [3.0]])),
        "toy meta_train: example 2 holds NaN or infinity",
        "finite numbers",
        "Clean the data",
    ),
    "counts that do not add up": Case(
        lambda place: classes([1] * 4, torch.zeros(5, 3)), "sum to 4, but", "sizes that", "Count"
    ),
    "more ways than the data have": Case(
        lambda place: tegu.FewShotTasks(classes([4] * 4), n_way=5, n_shot=1),
        "n_way is 5, but toy meta_train has 4 classes",
        "no more ways than classes",
        "Lower n_way",
    ),
    "shots and queries above a class": Case(
        lambda place: tegu.FewShotTasks(classes([4, 4, 3, 4]), n_way=2, n_shot=3),
        "3 shots plus 1 queries make 4, but class 'c' of toy meta_train has 3",
        "no more shots and queries than examples",
        "drop the small classes",
    ),
    "no queries to learn from": Case(
        lambda place: tegu.FewShotTasks(classes([4] * 4), 2, 1, -1), "n_query is -1", "at", "Pass"
    ),
    "NaN to adapt to": Case(
        lambda place: learned().adapt([[1, 2, 3], [1, NAN, 3]], "ab"),
        "x holds NaN or infinity in row 1",
        "finite numbers",
        "drop that row",
    ),
    "infinity to predict": Case(
        lambda place: learned().adapt(X, "ab").predict([[0, INF, 0]]), "x holds NaN or", "", "Clean"
    ),
    "labels that do not match": Case(
        lambda place: learned().adapt(X, "abc"), "2 inputs and 3 labels", "one label", "Check that"
    ),
    "labels that do not hash": Case(
        lambda place: learned().adapt(X, [["a"], ["b"]]), "a label is a list", "hashable", "Use num"
    ),
    "labels in a table": Case(
        lambda place: learned().adapt(X, torch.ones(2, 1)), "a label is a list", "hashable", "Use"
    ),
    "one label for all": Case(
        lambda place: learned().adapt(X, 3), "y is a int", "a label for each", "Pass them in a list"
    ),
    "a label that is NaN": Case(
        lambda place: learned().adapt(X, [0.0, NAN]), "y holds NaN in row 1", "a label", "Drop that"
    ),
    "no inputs": Case(lambda place: learned().adapt([], []), "x is empty", "at least one", "Pass"),
    "inputs that are words": Case(
        lambda place: learned().adapt(["a", "b"], "ab"), "x is a list that is no", "a tensor", ""
    ),
    "ragged inputs": Case(
        lambda place: learned().adapt([[1, 2, 3], [1]], "ab"), "x is a list", "equal length", "Conv"
    ),
    "inputs of another shape": Case(
        lambda place: learned().adapt(torch.ones(2, 5), "ab"),
        "x has shape (2, 5)",
        "inputs of the shape that the model was trained on",
        "the model said: ",
    ),
    "queries of another shape": Case(
        lambda place: learned().adapt(X, "ab").predict(torch.ones(1, 5)),
        "x has shape (1, 5)",
        "inputs of the shape",
        "Reshape",
    ),
    "features of another shape": Case(
        lambda place: learned().features(torch.ones(1, 5)),
        "x has shape (1, 5)",
        "inputs",
        "Reshape",
    ),
    "more classes than outputs": Case(
        lambda place: learned().adapt(torch.ones(3, 3), "abc"),
        "3 classes for a model with 2 outputs",
        "at most 2 classes",
        "Meta-train with a larger n_way",
    ),
    "targets in a row": Case(
        lambda place: regression().adapt([[0.0], [1.0]], [0.0, 1.0]),
        "y has shape (2,)",
        "a row of targets for each input",
        "Pass y[:, None]",
    ),
    "targets of another width": Case(
        lambda place: regression().adapt([[0.0], [1.0]], [[0.0, 1.0], [0.0, 1.0]]),
        "y has 2 columns for a model of 1 targets",
        "a column for each",
        "Reshape y",
    ),
    "targets that are infinite": Case(
        lambda place: regression().adapt([[0.0]], [[INF]]), "y holds NaN or inf", "finite", "Clean"
    ),
    "no iterations in a call": Case(
        lambda place: tegu.meta_train(
            regression().learner, tegu.Sinusoids(), meta_iterations=0, run=place / "new"
        ),
        "meta_iterations is 0",
        "at least 1",
        "Raise meta_iterations",
    ),
    "another learner's file": Case(
        lambda place: tegu.MetaLearned.load("run/checkpoint.safetensors", learned().learner),
        "run/checkpoint.safetensors holds other parameters than this learner has",
        "tensors of the learner's own names",
        "Build the learner",
    ),
    "a file that cannot be saved": Case(
        lambda place: learned().save("papers/thesis.tex/x"),
        "papers/thesis.tex/x cannot be written: Not a directory",
        "a folder that can be written",
        "Choose another folder; what was saved before is unharmed",
    ),
}


def ends(do: str | Action, place: Path) -> int:
    """The exit code; a call's error is told as the command line tells it."""
    if isinstance(do, str):
        return main(shlex.split(do))
    try:
        do(place)
    except InputError as error:
        complain(error)
        return 2
    return 0


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    case.prepare(place)
    before = everything(place.parent)
    assert ends(case.do, place) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    given, expected, todo = err.splitlines()[-3:]
    for line, start in ((given, "error: "), (expected, "  expected: "), (todo, "  what to do: ")):
        assert line.removeprefix(start).strip(), line
    assert given.startswith("error: ")
    assert case.given in given
    assert expected.startswith("  expected: ")
    assert case.expected in expected
    assert todo.startswith("  what to do: ")
    assert case.todo in todo
    assert everything(place.parent) == before


@pytest.mark.parametrize("failing", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("command", "file"),
    [
        (f"train reptile-sinusoids --run new {TINIER}", "new/recipe.json"),
        ("evaluate run", "run/evaluation.json"),
    ],
)
def test_a_disk_without_room(
    command: str,
    file: str,
    failing: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {p: data for p, data in everything(place.parent).items() if data is not None}
    monkeypatch.setattr(os, failing, full)
    assert main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {file} cannot be written: No space left on device\n" in err
    assert "bytes free\n  what to do: Free some room" in err
    assert "Traceback" not in err
    after = {p: data for p, data in everything(place.parent).items() if data is not None}
    assert after == before
