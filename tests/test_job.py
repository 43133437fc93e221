"""From a recipe to training and evaluation: each setting reaches what it is for."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.commands.scoring import protocol_of
from tegu.datasets import ClassDataset, Sinusoids
from tegu.datasets.augment import standard
from tegu.engine.evaluate import evaluate
from tegu.engine.run import Run
from tegu.engine.train import Interrupted, Progress, meta_train
from tegu.episodes import Episode
from tegu.errors import InputError
from tegu.job import WORTH_COMPILING, WORTH_COMPILING_GRADIENT, Job
from tegu.learners import LEARNERS, FineTune
from tegu.losses import cross_entropy, squared_error
from tegu.models import Conv4, ConvNet, Mlp, ResNet12, WideResNet
from tegu.recipes import Cell, load, parse, starting
from tegu.sampling import ClassBatches, FewShotTasks
from tegu.sources import SOURCES

pytestmark = pytest.mark.usefixtures("few_glyphs")

TINY = {
    "name": "tiny",
    "model": {"name": "mlp", "hidden": [4]},
    "learner": {"inner_steps": 1, "inner_batch": 3, "eval_steps": 1},
    "train": {"meta_iterations": 3, "meta_batch": 2, "n_way": 3, "n_shot": 2},
    "evaluate": {"episodes": 4, "at_once": 3},
}


def job(**changes: Any) -> Job:
    """The tiny recipe, with some settings by dotted key, the dot written as two lines."""
    return Job(parse(TINY, {key.replace("__", "."): value for key, value in changes.items()}))


def test_the_learner_has_the_recipe_s_settings() -> None:
    found = job(model__name="conv4", model__width=4, learner__inner_lr=0.5, train__seed=3).learner
    assert isinstance(found.model, Conv4)
    assert found.loss is cross_entropy
    assert (found.name, found.inner_lr) == ("reptile", 0.5)  # type: ignore[attr-defined]
    expected = Conv4(3, width=4, seed=3).state_dict()
    torch.testing.assert_close(found.model.state_dict(), expected, rtol=0, atol=0)


def test_the_learner_s_own_weights_have_the_recipe_s_ways_and_seed() -> None:
    found: Any = job(learner__name="relationnet", train__seed=3).learner
    assert (found.n_way, found.seed) == (3, 3)


def test_some_learners_are_trained_on_batches_of_all_classes() -> None:
    """They know how many; tasks to score are episodes as ever."""
    settings = {"model__name": "conv4", "model__width": 4, "train__meta_batch": 1}
    one = job(learner__name="simpleshot", train__batch=7, train__seed=3, **settings)
    found: Any = one.learner
    assert (found.n_way, found.seed, found.n_classes) == (3, 3, 8)
    tasks = one.training_tasks()
    assert tasks == ClassBatches(one.data("meta_train"), 7, 3)
    assert isinstance(one.tasks("meta_test", n_shot=1, n_query=1, seed=0), FewShotTasks)
    assert isinstance(job().training_tasks(), FewShotTasks)


def test_a_learner_of_classes_on_sinusoids() -> None:
    with pytest.raises(
        InputError,
        match=r"protonet on sinusoids.*expected classes.* on sinus",
    ):
        job(learner__name="protonet", data__name="sinusoids").check()


def test_sinusoids_are_regression() -> None:
    waves = job(data__name="sinusoids", model__activation="tanh")
    assert waves.targets == "numbers"
    assert waves.learner.loss is squared_error
    assert waves.measure == (squared_error, squared_error, "mse")
    assert isinstance(waves.learner.model, Mlp)
    assert isinstance(waves.learner.model.body[2], torch.nn.Tanh)
    assert waves.learner.model(torch.zeros(2, 1)).shape == (2, 1)
    tasks = waves.tasks("meta_val", n_shot=3, n_query=0, seed=5)
    assert tasks == Sinusoids("meta_val", n_shot=3, n_query=1, seed=5)


def test_waves_are_those_of_the_recipe() -> None:
    """Up to the phase that it names; scored on a grid, whatever they are trained on."""
    drawn = {"data__phase": 3.0, "data__grid_query": False}
    waves = job(data__name="sinusoids", **drawn)
    for split, grid in (("meta_train", False), ("meta_test", True)):
        tasks = waves.tasks(split, n_shot=3, n_query=4, seed=5)
        expected = Sinusoids(split, n_shot=3, n_query=4, seed=5, grid_query=grid, phase=(0.0, 3.0))
        assert tasks == expected
    with pytest.raises(InputError, match=r"range of phase is \(0\.0, 0\.0\)"):
        job(data__name="sinusoids", data__phase=0.0).check()


def test_tasks_are_drawn_as_the_recipe_says() -> None:
    tasks = job().tasks("meta_val", n_shot=2, n_query=1, seed=7)
    assert isinstance(tasks, FewShotTasks)
    assert (tasks.split, tasks.n_way, tasks.n_shot, tasks.n_query, tasks.seed) == (
        *("meta_val", 3, 2, 1),
        7,
    )


def test_a_split_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = job()
    first = one.data("meta_test")
    monkeypatch.setattr("tegu.sources.images.load_glyphs", None)
    assert one.data("meta_test").examples is first.examples


def test_omniglot_is_loaded_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated classes are for training alone, but in the Vinyals split for all."""
    asked: list[tuple[str, dict[str, Any]]] = []
    glyphs = job().data("meta_train")

    def load(split: str, **settings: Any) -> Any:
        asked.append((split, settings))
        return glyphs

    monkeypatch.setattr("tegu.sources.images.load_omniglot", load)
    for partition in ("reptile", "vinyals"):
        one = job(data__name="omniglot", data__partition=partition)
        one.data("meta_train")
        one.data("meta_test")
    turned = {"data_dir": None, "rotations": True, "shrink": "nearest"}
    assert asked == [
        ("meta_train", {"partition": "reptile", **turned}),
        ("meta_test", {"partition": "reptile", **turned, "rotations": False}),
        ("meta_train", {"partition": "vinyals", **turned}),
        ("meta_test", {"partition": "vinyals", **turned}),
    ]


def test_ink_may_be_one_and_paper_zero() -> None:
    plain, turned = (job(data__invert=on).data("meta_test") for on in (False, True))
    assert torch.equal(turned.examples, 255 - plain.examples)
    with pytest.raises(InputError, match="unknown setting of the data set cifar-fs 'invert'"):
        job(**PHOTOS, data__invert=True)


def photos(split: str, **_: Any) -> ClassDataset:
    """Four classes of six colour images in two groups of two."""
    generator = torch.Generator().manual_seed(len(split))
    images = torch.randint(0, 256, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ClassDataset(
        *("cifar-fs", split, images, torch.tensor([6] * 4), tuple("abcd"), 1 / 255),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        groups=torch.tensor([0, 1, 0, 1]),
    )


PHOTOS = {"data__name": "cifar-fs", "train__n_way": 2, "train__n_shot": 1}


@pytest.mark.parametrize(("name", "loader"), [("cifar-fs", "cifar_fs"), ("fc100", "fc100")])
def test_photos_are_loaded_as_the_recipe_says(
    name: str, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(split: str, **settings: Any) -> ClassDataset:
        asked.append((split, settings))
        return photos(split)

    monkeypatch.setattr(f"tegu.sources.images.load_{loader}", load)
    recipe = parse(TINY, {"data.name": name, "train.n_way": 2})
    Job(recipe, tmp_path).data("meta_val")
    assert asked == [("meta_val", {"data_dir": tmp_path})]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__name": "conv4", "model__width": 4}, Conv4(2, channels=3, size=32, width=4)),
        (
            {"model__name": "conv4", "model__widths": [4, 3, 2, 5], "model__pool": True},
            Conv4(2, channels=3, size=32, width=(4, 3, 2, 5), pool=True),
        ),
        ({"model__name": "resnet12"}, ResNet12(2)),
        (
            {"model__name": "convnet", "model__widths": [2, 3], "model__strides": [2, 1]},
            ConvNet(2, channels=3, size=32, widths=(2, 3), strides=(2, 1)),
        ),
        (
            {"model__name": "resnet12", "model__widths": [2, 3, 4, 5]},
            ResNet12(2, widths=(2, 3, 4, 5)),
        ),
        (
            {"model__name": "wrn", "model__depth": 10, "model__widen": 2},
            WideResNet(2, depth=10, widen=2),
        ),
        ({}, Mlp(3 * 32 * 32, 2, hidden=(4,))),
    ],
)
def test_models_fit_the_images(changes: dict[str, Any], expected: torch.nn.Module) -> None:
    model = job(**PHOTOS, **changes).learner.model
    assert type(model) is type(expected)
    assert getattr(model.body, "pool", None) == getattr(expected.body, "pool", None)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_characters_have_one_channel_and_28_pixels() -> None:
    model = job(model__name="resnet12", model__widths=[2, 2, 2, 3]).learner.model
    assert model.body.blocks[0].convs[0].weight.shape == (9, 2)
    assert job().learner.model.body[1].in_features == 28 * 28
    pooled = job(model__name="conv4", model__width=4, model__pool=True).learner.model
    assert pooled.feature_width == 4


def test_only_training_images_are_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the split: validation may be on training classes."""
    monkeypatch.setattr("tegu.sources.images.load_cifar_fs", photos)
    one = job(**PHOTOS, data__augment="standard", data__validation="meta_train")
    plain = job(**PHOTOS)
    index = torch.arange(5)
    settings = {"n_shot": 1, "n_query": 0}
    for split in ("meta_train", "meta_test"):
        found, expected = (
            j.tasks(split, **settings, seed=0).episodes(index).support.x for j in (one, plain)
        )
        assert torch.equal(found, expected)
    found, expected = (j.training_tasks().episodes(index).support for j in (one, plain))
    assert torch.equal(found.y, expected.y)
    assert not torch.equal(found.x, expected.x)
    each = keys.fold(keys.key(0, "meta_train"), index)
    each = keys.fold(keys.fold(each, 5)[:, None], torch.arange(2))
    varied = standard(3)((expected.x * 0.2 + 0.5).flatten(0, 1), each.flatten())
    torch.testing.assert_close(found.x.flatten(0, 1), (varied - 0.5) / 0.2, rtol=0, atol=1e-5)


def test_augmentation_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "tegu.sources.images.standard", lambda channels, paper: asked.append((channels, paper))
    )
    job(data__augment="standard").training_tasks()
    assert asked == [(1, 1.0)]


def test_tasks_within_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.sources.images.load_cifar_fs", photos)
    one = job(**PHOTOS, data__within=True)
    assert one.training_tasks().within
    assert one.tasks("meta_test", n_shot=1, n_query=1, seed=0).within
    assert protocol_of(one, Cell())["within"] == "group"
    plain = job(**PHOTOS)
    assert not plain.tasks("meta_test", n_shot=1, n_query=1, seed=0).within
    assert protocol_of(plain, Cell())["within"] is None
    with pytest.raises(InputError, match=r"largest group of cifar-fs meta_train has 2 classes"):
        job(**{**PHOTOS, "train__n_way": 3}, data__within=True).check()


def test_photos_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.sources.images.load_cifar_fs", photos)
    settings = {
        **PHOTOS,
        "data__within": True,
        "model__name": "conv4",
        "model__width": 4,
        "model__pool": True,
        "engine__vectorise": "vmap",
        "evaluate__episodes": 2,
    }
    one = job(**settings, data__augment="standard")
    one.check()
    params, _ = one.train(tmp_path / "run")
    plain, _ = job(**settings).train(None)
    assert not torch.equal(params["head.weight"], plain["head.weight"])
    assert params["body.convs.0.weight"].shape == (27, 4)
    ((_, result),) = one.evaluate(params)
    assert 0 <= result.value <= 1


def test_the_split_to_validate_on() -> None:
    """Partitions without a validation split use the training classes."""
    assert job().validation == "meta_val"
    assert job(data__validation="meta_train").validation == "meta_train"
    for partition, split in {
        "reptile": "meta_train",
        "alphabets": "meta_train",
        "vinyals": "meta_val",
        "vinyals-trainval": "meta_train",
    }.items():
        one = job(data__name="omniglot", data__partition=partition)
        assert one.validation == split


@dataclass
class Stopping:
    """Tasks in whose third draw the run is asked to stop."""

    tasks: Any
    draws: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tasks, name)

    def episodes(self, index: Tensor) -> Episode:
        self.draws += 1
        if self.draws == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        found: Episode = self.tasks.episodes(index)
        return found


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its recipe lacks what has come since, and says what decides nothing."""
    whole, _ = job(train__meta_iterations=4).train(None)
    one = job(train__meta_iterations=4)
    run = Run(tmp_path / "run", one.recipe.plain())
    del run.recipe["engine"]["workers"], run.recipe["train"]["outer_schedule"]
    run.recipe["engine"]["cuda_graphs"] = False
    with pytest.raises(Interrupted):
        meta_train(one.training_engine, Stopping(one.training_tasks()), one.settings, run=run)
    written = (tmp_path / "run" / "recipe.json").read_bytes()
    params, last = job(train__meta_iterations=4, engine__workers=1).train(
        tmp_path / "run", resume=True
    )
    assert last.iteration == 4
    torch.testing.assert_close(params, whole, rtol=0, atol=0)
    assert (tmp_path / "run" / "recipe.json").read_bytes() == written
    with pytest.raises(InputError, match=r"train\.meta_iterations 4 there, 3 here"):
        job(train__meta_iterations=3).train(tmp_path / "run", resume=True)


def test_training_keeps_a_run_and_reports(tmp_path: Path) -> None:
    told: list[Progress] = []
    one = job(train__validate_every=2, train__validate_episodes=3)
    params, last = one.train(tmp_path / "run", progress=told.append)
    names = ["checkpoint.safetensors", "metrics.jsonl", "recipe.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert last.iteration == 3
    assert told
    tasks = one.tasks("meta_val", n_shot=1, n_query=1, seed=1)
    (expected,) = evaluate(one.engine(one.learner, steps=0), params, tasks, episodes=3)
    assert last.validation == expected.value


def test_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = (job(train__seed=seed).train(None)[0] for seed in (3, 3, 4))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["body.1.weight"], other["body.1.weight"])


def test_evaluation_answers_every_cell_in_order() -> None:
    """Cells that differ in normalisation alone adapt to the same tasks once."""
    cells = [
        {"n_shot": 1, "normalisation": "support"},
        {"n_shot": 2, "n_query": 3},
        {"n_shot": 1, "normalisation": "transductive"},
        {"n_shot": 1, "eval_batch": 2},
    ]
    raw: dict[str, Any] = {**TINY, "evaluate": {"episodes": 4, "at_once": 3, "cells": cells}}
    raw["model"] = {"name": "conv4", "width": 4}
    one, told = Job(parse(raw)), []
    params = one.learner.init()
    found = one.evaluate(params, progress=lambda done, total, mean: told.append((done, total)))
    assert [cell for cell, _ in found] == list(one.recipe.evaluate.cells)
    results = [result for _, result in found]
    assert [r.normalisation for r in results] == ["support", "support", "transductive", "support"]
    assert all(r.episodes == 4 and r.split == "meta_test" for r in results)
    assert told == [(3, 12), (4, 12), (7, 12), (8, 12), (11, 12), (12, 12)]
    tasks = one.tasks("meta_test", n_shot=2, n_query=3, seed=1)
    engine = one.engine(one.learner, steps=0)
    (expected,) = evaluate(engine, params, tasks, episodes=4, at_once=3, seed=1)
    assert results[1].value == pytest.approx(expected.value)


def test_evaluation_may_have_other_ways_than_training() -> None:
    cells = [{"n_way": 5, "n_shot": 1}, {"n_shot": 1}]
    raw: dict[str, Any] = {**TINY, "evaluate": {"episodes": 4, "at_once": 3, "cells": cells}}
    raw["learner"] = {"name": "protonet"}
    raw["train"] = {**TINY["train"], "n_query": 2, "validate_every": 3, "validate_episodes": 3}
    one = Job(parse(raw))
    one.check()
    params, last = one.train(None)
    for n_way, (_, result) in zip((5, 3), one.evaluate(params), strict=True):
        tasks = FewShotTasks(one.data("meta_test"), n_way, 1, 1, seed=1)
        engine = one.engine(one.learner.for_ways(n_way), steps=0)
        (expected,) = evaluate(engine, params, tasks, episodes=4, at_once=3, seed=1)
        assert result.value == expected.value
    engine = one.engine(one.learner.for_ways(5), steps=0)
    tasks = FewShotTasks(one.data("meta_val"), 5, 1, 1, seed=1)
    (expected,) = evaluate(engine, params, tasks, episodes=3)
    assert last.validation == expected.value


def test_a_model_with_outputs_keeps_its_ways() -> None:
    raw: dict[str, Any] = {**TINY, "evaluate": {"cells": [{"n_way": 5}]}}
    with pytest.raises(InputError, match=r"a figure for 5 ways from reptile trained for 3"):
        Job(parse(raw)).check()
    Job(parse({**raw, "evaluate": {"cells": [{"n_way": 3}]}})).check()


@pytest.mark.parametrize(
    ("setting", "can", "steps", "gradients", "compiled"),
    [
        ("auto", True, 5 * WORTH_COMPILING, 0, True),
        ("auto", True, 5 * WORTH_COMPILING - 1, WORTH_COMPILING_GRADIENT - 1, False),
        ("auto", True, 0, WORTH_COMPILING_GRADIENT, True),
        ("auto", False, 5 * WORTH_COMPILING, WORTH_COMPILING_GRADIENT, False),
        ("on", False, 0, 0, True),
        ("off", True, 5 * WORTH_COMPILING, WORTH_COMPILING_GRADIENT, False),
    ],
)
def test_compiled_where_it_pays(
    setting: str,
    can: bool,
    steps: int,
    gradients: int,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tegu.job.can_compile", lambda: can)
    monkeypatch.setattr("torch.compile", lambda step, **_: step)
    one = job(engine__compile=setting, engine__precision="bf16", engine__vectorise="loop")
    engine = one.engine(one.learner, steps=steps, gradients=gradients)
    assert (engine.compile, engine.precision, engine.loop) == (compiled, "bf16", True)


def test_threads_are_torch_s() -> None:
    before = torch.get_num_threads()
    try:
        job(engine__threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"train__n_shot": 21}, "21 shots plus 0 queries"),
        ({"evaluate__split": "meta_tset"}, "unknown split 'meta_tset'"),
        ({"train__validate_every": 1, "data__validation": "val"}, "unknown split 'val'"),
        ({"engine__precision": "fp16"}, "unknown precision 'fp16'"),
        ({"learner__eval_batch": -1}, "eval_batch is -1"),
        ({"train__outer_schedule": "cosin"}, "unknown outer schedule 'cosin'"),
        (
            {
                "model__name": "conv4",
                "learner__name": "protonet",
                "train__n_query": 1,
                "evaluate__cells": [{"normalisation": "running"}],
            },
            "running statistics from a run with support",
        ),
    ],
)
def test_check_finds_what_would_fail_later(changes: dict[str, Any], text: str) -> None:
    if not text:
        job().check()
        return
    with pytest.raises(InputError, match=text):
        job(**changes).check()


@dataclass(frozen=True, kw_only=True)
class Queried(FineTune):
    """Meta-learns from the loss on its queries, as the default has it."""

    name: ClassVar[str] = "queried"


def test_a_learner_from_queries_gets_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEARNERS, "queried", Queried)
    with pytest.raises(InputError, match=r"n_query is 0 with the learner queried.*n_query=5"):
        job(learner__name="queried").check()
    job(learner__name="queried", train__n_query=1).check()
    job(learner__name="queried", data__name="sinusoids").check()


def test_a_figure_may_have_ways_of_its_own_where_the_learner_has() -> None:
    """Prototypes of 3 ways in training answer for 4; a network of 3 outputs cannot."""
    settings = {"train__n_query": 1, "learner__normalisation": "running", "model__name": "conv4"}
    cells = ({"n_way": 4, "normalisation": "running"}, {"normalisation": "transductive"})
    proto = job(learner__name="protonet", **settings, model__width=4, evaluate__cells=cells)
    proto.check()
    params, _ = proto.train(None)
    (wide, first), (narrow, second) = proto.evaluate(params)
    assert (wide.n_way, narrow.n_way) == (4, 0)
    assert proto.judge(wide).n_way == 4  # type: ignore[attr-defined]
    assert (first.normalisation, second.normalisation) == ("running", "transductive")
    with pytest.raises(InputError, match="a figure for 4 ways from reptile trained for 3"):
        job(evaluate__cells=({"n_way": 4},)).check()
    with pytest.raises(InputError, match="running statistics from a run with support"):
        job(
            learner__name="protonet",
            train__n_query=1,
            evaluate__cells=({"normalisation": "running"},),
        ).check()


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_what_meta_learns_from_queries_says_so(name: str) -> None:
    with pytest.raises(InputError, match=f"n_query is 0 with the learner {name}"):
        job(learner__name=name).check()


def test_a_figure_by_mini_batches_from_a_learner_without_any() -> None:
    cells = ({"eval_batch": 3},)
    job(evaluate__cells=cells).check()
    with pytest.raises(InputError, match="a figure with eval_batch 3 from protonet"):
        job(learner__name="protonet", train__n_query=1, evaluate__cells=cells).check()


PAIRS = [
    (name, data)
    for name, cls in LEARNERS.items()
    for data, fits in (
        ("glyphs", "classes" in cls.targets),
        ("sinusoids", "numbers" in cls.targets),
    )
    if fits
]


@pytest.mark.parametrize(("name", "data"), PAIRS)
def test_every_learner_has_settings_to_start_from(name: str, data: str) -> None:
    """For each kind of data that it takes, with other ways and statistics too."""
    small: dict[str, Any] = {"train.n_way": 6}
    if not LEARNERS[name].network:
        small |= {"model.name": "mlp", "model.hidden": [4]}
    for settings in (small, {**small, "learner.normalisation": "support"}):
        one = Job(starting(name, data, settings))
        one.check()
        assert one.recipe.train.n_shot + one.recipe.train.n_query > 2 or one.learner.pretrains
        wide = [one.judge(cell) for cell in one.recipe.evaluate.cells]
        modes = {found.normalisation for found in wide}
        assert modes == {"support"} or modes >= {one.learner.normalisation}
    if LEARNERS[name].transductive:
        assert {cell.n_query for cell in one.recipe.evaluate.cells} == {15}


MADE = [name for name, source in SOURCES.items() if not source.downloads]
SMALL = {
    "width": 8,
    "heads": 2,
    "layers": 1,
    "hidden": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "embedding_layers": 1,
    "feedforward": 8,
    "decoder": 1,
}


@pytest.mark.parametrize(
    ("name", "data"),
    [(n, d) for n, cls in LEARNERS.items() for d in MADE if SOURCES[d].targets in cls.targets],
)
def test_every_learner_trains_on_every_data_set_whose_tasks_it_learns(name: str, data: str) -> None:
    """One meta-iteration from the usual settings, of a small network."""
    settings: dict[str, Any] = {"train.meta_iterations": 1, "train.validate_every": 0}
    if SOURCES[data].targets == "classes" and not LEARNERS[name].network:
        settings |= {"model.name": "mlp", "model.hidden": [8], "train.n_way": 6}
    model = starting(name, data, settings).model
    for key, value in SMALL.items():
        if isinstance(getattr(model, key, None), int):
            settings[f"model.{key}"] = value
    if getattr(model, "latent", 0):
        settings["model.latent"] = 8
    if not LEARNERS[name].pretrains:
        settings["train.meta_batch"] = 2
    one = Job(starting(name, data, settings))
    one.check()
    _, last = one.train(None)
    assert last.iteration == 1
    assert math.isfinite(last.loss)


def test_a_figure_without_transduction_beside_one_with() -> None:
    cells = starting("maml", "glyphs").evaluate.cells
    assert [(c.n_shot, c.normalisation) for c in cells] == [
        (1, "transductive"),
        (5, "transductive"),
        (1, "support"),
        (5, "support"),
    ]
    assert {c.normalisation for c in starting("protonet", "glyphs").evaluate.cells} == {"running"}


@pytest.mark.parametrize(
    ("learner", "model", "told"),
    [
        ("maml", "neural-process", r"neural-process with the learner maml.*Write model.name=mlp"),
        ("cnp", "mlp", r"mlp with the learner cnp.*Write model.name=neural-process"),
        ("tnp", "neural-process", r"the learner tnp.*Write model.name=transformer-process"),
    ],
)
def test_networks_that_read_sets_are_for_learners_of_sets(
    learner: str, model: str, told: str
) -> None:
    with pytest.raises(InputError, match=f"(?s){told}"):
        Job(starting(learner, "sinusoids", {"model.name": model}))


def test_draws_from_gaussian_processes_as_a_recipe_names_them() -> None:
    settings = {"data.kernel": "matern52", "data.fewest": 2, "data.noise": 0.1}
    one = Job(starting("cnp", "gp", {**settings, "train.n_shot": 7, "train.n_query": 4}))
    one.check()
    tasks: Any = one.training_tasks()
    assert (tasks.kernel, tasks.noise, tasks.n_support, tasks.n_query) == (
        "matern52",
        0.1,
        (2, 7),
        4,
    )
    assert tasks.split == "meta_train"
    assert one.recipe.data.protocol() == {"data": "gp-matern52, noise 0.1, from 2 points"}
    told = load("mlc-grammars").data.protocol
    assert told("meta_test") == {"data": "grammars, gold"}
    assert told("meta_val") == {"data": "grammars, meta_val"}
    told = load("seq2seq-scan-add-jump").data.protocol
    assert (told("meta_test").get("n_shot"), told("meta_val").get("n_shot")) == (4, None)
    assert one.measure.metric == "log-likelihood"
    with pytest.raises(InputError, match="at most 1 support points and at least 2"):
        Job(starting("cnp", "gp", {**settings, "train.n_shot": 1})).check()
    with pytest.raises(InputError, match="unknown kernel"):
        starting("cnp", "gp", {"data.kernel": "linear"})
