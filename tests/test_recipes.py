"""Recipes: what a file leaves out, what replaces it, and the recipes that come with tegu."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tegu import recipes
from tegu.datasets.classes import ClassDataset
from tegu.datasets.omniglot import _check_settings
from tegu.errors import InputError
from tegu.job import Job
from tegu.networks import MlpNetwork
from tegu.recipes import Cell, load, parse


@pytest.mark.parametrize("name", recipes.names())
def test_each_recipe_survives_json(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.title
    assert parse(json.loads(json.dumps(recipe.plain()))) == recipe


@pytest.mark.parametrize("name", recipes.names())
def test_each_recipe_builds(name: str, few_glyphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name, split and size in it is one that there is."""

    def characters(split: str, *, partition: str, **_: object) -> ClassDataset:
        _check_settings(split, partition, 28, 0)
        counts, names = torch.tensor([20] * 60), tuple(map(str, range(60)))
        return ClassDataset("omniglot", split, torch.zeros(1200, 1, 28, 28), counts, names)

    def photos(split: str, **_: object) -> ClassDataset:
        counts, names = torch.tensor([30] * 20), tuple(map(str, range(20)))
        return ClassDataset("cifar-fs", split, torch.zeros(600, 3, 32, 32), counts, names)

    monkeypatch.setattr("tegu.sources.images.load_omniglot", characters)
    monkeypatch.setattr("tegu.sources.images.load_cifar_fs", photos)
    Job(load(name)).check()


def test_omniglot_is_the_published_protocol() -> None:
    recipe = load("reptile-omniglot-5way")
    assert recipe.data.partition == "reptile"
    assert recipe.data.rotations
    assert (recipe.train.meta_iterations, recipe.train.meta_batch) == (100_000, 5)
    assert recipe.learner["inner_lr"] == 0.001
    published = {(c.n_shot, c.normalisation): c.published for c in recipe.evaluate.cells}
    assert published == {
        (1, "support"): 0.9539,
        (1, "transductive"): 0.9768,
        (5, "support"): 0.9890,
        (5, "transductive"): 0.9948,
    }


def test_defaults_fill_what_is_left_out() -> None:
    recipe = parse({"name": "one"})
    assert recipe == recipes.Recipe("one", learner=recipe.learner)
    assert recipe.learner["name"] == "reptile"
    assert recipe.learner["inner_lr"] == 1e-3
    assert recipe.evaluate.cells == (Cell(),)


def test_overrides_are_read_as_the_key_s_type() -> None:
    recipe = load(
        "reptile-glyphs",
        {
            "train.meta_iterations": "1_000",
            "train.outer_lr": "1",
            "train.seed": 3,
            "data.name": "omniglot",
            "data.rotations": "false",
            "model.widths": "[1, 2, 3, 4]",
            "model.pool": "true",
            "learner.inner_lr": "2e-3",
        },
    )
    assert recipe.train.meta_iterations == 1000
    assert (recipe.train.outer_lr, type(recipe.train.outer_lr)) == (1.0, float)
    assert recipe.train.seed == 3
    assert recipe.data.rotations is False
    assert recipe.model.widths == (1, 2, 3, 4)
    assert recipe.model.pool is True
    assert recipe.learner["inner_lr"] == 0.002


def test_another_name_drops_the_settings_of_the_first() -> None:
    """The same name, or none, keeps them."""
    assert load("reptile-glyphs").model.width == 32
    assert load("reptile-glyphs", {"model.name": "conv4"}).model.width == 32
    assert load("reptile-glyphs", {"model.name": "mlp"}).model == MlpNetwork()
    changed = load("reptile-glyphs", {"learner.name": "joint", "learner.eval_steps": "3"})
    assert (changed.learner["name"], changed.learner["eval_steps"]) == ("joint", 3)
    assert load("reptile-glyphs").learner["eval_steps"] == 20


def test_another_learner_takes_its_own_outer_step() -> None:
    """1 is Reptile's, of a mean of weights; Adam would be thrown far away by it."""
    for base, changed, expected in (
        ("reptile-sinusoids", {"learner.name": "maml"}, 0.001),
        ("reptile-glyphs", {"learner.name": "maml", "train.n_query": 5}, 0.001),
        ("reptile-glyphs", {"learner.name": "maml", "train.outer_lr": 0.5}, 0.5),
        ("reptile-sinusoids", {"learner.inner_lr": 0.1}, 1.0),
        ("maml-omniglot-5way", {"learner.name": "reptile"}, 1.0),
        ("r2d2-cifar-fs", {"learner.name": "lrd2"}, 0.005),
    ):
        assert load(base, changed).train.outer_lr == expected, (base, changed)
    plain = load("reptile-sinusoids", {"train.outer_lr_final": 0.5}).plain()
    found = parse(plain, {"learner.name": "fomaml"}).train
    assert (found.outer_lr, found.outer_lr_final) == (0.001, 0.0)


def test_the_order_of_overrides_does_not_matter() -> None:
    """A setting given before the name that it belongs to is kept."""
    settings = {"learner.eval_steps": "3", "learner.name": "maml", "model.hidden": [9]}
    found = load("reptile-glyphs", {**settings, "model.name": "mlp"})
    assert (found.learner["name"], found.learner["eval_steps"]) == ("maml", 3)
    assert (found.model.name, found.model.hidden) == ("mlp", (9,))


def test_overrides_change_no_argument() -> None:
    raw = {"name": "one", "train": {"seed": 1}, "learner": {"name": "reptile"}}
    before = json.dumps(raw)
    assert parse(raw, {"train.seed": 2, "learner.inner_lr": 0.5}).train.seed == 2
    assert json.dumps(raw) == before


def test_a_file_is_called_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[[evaluate.cells]]\nn_shot = 5\n[[evaluate.cells]]\npublished = 1\n")
    recipe = load(str(path))
    assert recipe.name == "mine"
    assert recipe.evaluate.cells == (Cell(n_shot=5), Cell(published=1.0))
    path.write_text('name = "another"\ntitle = "Grüße"\n')
    assert (load(str(path)).name, load(str(path)).title) == ("another", "Grüße")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({}, r"a recipe with the name ''; expected letters"),
        ({"name": "."}, r"a recipe with the name '\.'; expected letters"),
        ({"name": 3}, r"name is 3; expected a word"),
        ({"name": "x", "trian": {}}, r"unknown key 'trian'.*Did you mean 'train'"),
        ({"name": "x", "train": []}, r"train is \[\]; expected a table. Write \[train\]"),
        ({"name": "x", "train": {"seed": True}}, r"train.seed is True; expected a whole number"),
        (
            {"name": "x", "model": {"name": "mlp", "hidden": [True]}},
            r"hidden is \[True\]; expected a list of",
        ),
        ({"name": "x", "train": {"outer_lr": float("inf")}}, r"outer_lr is inf; expected a finite"),
        ({"name": "x", "evaluate": {"cells": {}}}, r"cells is {}; expected one or more tables"),
        ({"name": "x", "model": {"name": "mlp", "widht": 1}}, r"unknown setting of the model mlp"),
        ({"name": "x", "data": {"name": "glyps"}}, r"unknown data set.*Did you mean 'glyphs'"),
        ({"name": "x", "beside": ["glyph"]}, r"unknown recipe 'glyph'"),
        (
            {"name": "x", "learner": {"name": "relationnet", "seed": 3}},
            r"unknown setting of relationnet 'seed'",
        ),
    ],
)
def test_what_is_refused(raw: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        parse(raw)


@pytest.mark.parametrize(
    ("text", "override", "setting"),
    [
        ("[learner]\ninner_lr = 0.01", {"learner.name": "reptile"}, ("learner", "inner_lr", 0.01)),
        ("[data]\ninvert = true", {"data.name": "glyphs"}, ("data", "invert", True)),
        ("[model]\nwidth = 16", {"model.name": "conv4"}, ("model", "width", 16)),
        (
            "[learner]\nname = 'joint'\n[data]\nname = 'sinusoids'\n[model]\nhidden = [7]",
            {"model.name": "mlp"},
            ("model", "hidden", [7]),
        ),
    ],
)
def test_the_usual_name_keeps_the_settings_of_a_section_without_one(
    text: str, override: dict[str, str], setting: tuple[str, str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"name = 'mine'\n{text}\n")
    section, key, value = setting
    assert recipes.load(str(file), override).plain()[section][key] == value
