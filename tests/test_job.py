"""From a recipe to training and evaluation: each setting reaches what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tegu.datasets import Sinusoids
from tegu.engine.evaluate import evaluate
from tegu.engine.train import Progress
from tegu.errors import InputError
from tegu.job import WORTH_COMPILING, Job
from tegu.learners import LEARNERS, FineTune
from tegu.losses import cross_entropy, squared_error
from tegu.models import Conv4, Mlp
from tegu.recipes import parse
from tegu.sampling import FewShotTasks

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


def test_sinusoids_are_regression() -> None:
    waves = job(data__name="sinusoids", model__activation="tanh")
    assert waves.regression
    assert waves.learner.loss is squared_error
    assert waves.score == (squared_error, "mse")
    assert isinstance(waves.learner.model, Mlp)
    assert waves.learner.model.activation is torch.tanh
    assert waves.learner.model(torch.zeros(2, 1)).shape == (2, 1)
    tasks = waves.tasks("meta_val", n_shot=3, n_query=0, seed=5)
    assert tasks == Sinusoids("meta_val", n_shot=3, n_query=1, seed=5)


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
    monkeypatch.setattr("tegu.job.load_glyphs", None)
    assert one.data("meta_test").examples is first.examples


def test_omniglot_is_loaded_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated classes are for training alone."""
    asked: list[tuple[str, dict[str, Any]]] = []
    glyphs = job().data("meta_train")

    def load(split: str, **settings: Any) -> Any:
        asked.append((split, settings))
        return glyphs

    monkeypatch.setattr("tegu.job.load_omniglot", load)
    one = job(data__name="omniglot", data__partition="vinyals")
    one.data("meta_train")
    one.data("meta_test")
    common = {"partition": "vinyals", "data_dir": None}
    assert asked == [
        ("meta_train", {**common, "rotations": True}),
        ("meta_test", {**common, "rotations": False}),
    ]


def test_the_split_to_validate_on() -> None:
    """Partitions without a validation split use the training classes."""
    assert job().validation == "meta_val"
    assert job(data__validation="meta_train").validation == "meta_train"
    for partition, split in {
        "reptile": "meta_train",
        "alphabets": "meta_train",
        "vinyals": "meta_val",
    }.items():
        one = job(data__name="omniglot", data__partition=partition)
        assert one.validation == split


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
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


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
    with pytest.raises(InputError, match=r"n_way is 5 in a cell and 3 in training.*Leave the cell"):
        Job(parse(raw)).check()
    Job(parse({**raw, "evaluate": {"cells": [{"n_way": 3}]}})).check()


@pytest.mark.parametrize(
    ("setting", "can", "steps", "compiled"),
    [
        ("auto", True, 5 * WORTH_COMPILING, True),
        ("auto", True, 5 * WORTH_COMPILING - 1, False),
        ("auto", False, 5 * WORTH_COMPILING, False),
        ("on", False, 0, True),
        ("off", True, 5 * WORTH_COMPILING, False),
    ],
)
def test_compiled_where_it_pays(
    setting: str, can: bool, steps: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tegu.job.can_compile", lambda: can)
    monkeypatch.setattr("torch.compile", lambda step, **_: step)
    one = job(engine__compile=setting, engine__precision="bf16", engine__vectorise="loop")
    engine = one.engine(one.learner, steps=steps)
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
        ({"learner__eval_batch": 0}, "eval_batch is 0"),
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
