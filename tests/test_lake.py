"""Lake's challenge: alphabets made of others, who is asked about, and what makes a run another."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tegu import report
from tegu.datasets.classes import ClassDataset

FOLDER = str(Path(__file__).resolve().parents[1] / "benchmarks")
DRAWERS = 8


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, as it is when it is started."""
    monkeypatch.syspath_prepend(FOLDER)
    import lake

    yield lake
    for name in ("lake", "recorded"):
        del sys.modules[name]


def alphabets(*names: str, size: int = 20) -> ClassDataset:
    """A random pattern for each character, drawn with specks of noise; ink is 0."""
    generator = torch.Generator().manual_seed(0)
    n = len(names) * size
    patterns = torch.rand(n, 1, 1, 7, 7, generator=generator) < 0.3
    ink = patterns.repeat_interleave(4, -1).repeat_interleave(4, -2)
    ink = ink ^ (torch.rand(n, DRAWERS, 1, 28, 28, generator=generator) < 0.02)
    return ClassDataset(
        "omniglot",
        "meta_train",
        255 * (~ink).flatten(0, 1).to(torch.uint8),
        torch.full((n,), DRAWERS),
        tuple(f"{name}/character{i:02d}" for name in names for i in range(size)),
        scale=1 / 255,
        groups=torch.arange(len(names)).repeat_interleave(size),
    )


def test_random_alphabets_join_those_of_people(lake: Any) -> None:
    data = alphabets("Greek", "Latin", size=3)
    found = lake.with_scribbles(data, 3)
    assert found.n_classes == data.n_classes + 3 * 30
    assert torch.equal(found.tensor[: len(data.tensor)], data.tensor)
    assert found.groups.unique().tolist() == [0, 1, 2, 3, 4]
    assert found.groups[data.n_classes :].tolist() == [2] * 30 + [3] * 30 + [4] * 30
    ink = found.tensor[len(data.tensor) :].float().mean() / 255
    assert 0.05 < ink < 0.25, "ink is 255, as in the data"
    assert lake.with_scribbles(data, 0) is data


def test_mirrored_alphabets_are_others(lake: Any) -> None:
    data = alphabets("Greek", "Latin", size=3)
    found = lake.mirrored(data)
    assert found.groups.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert found.class_names[:6] == data.class_names
    assert found.class_names[6] == "Greek/character00/mirrored"
    assert torch.equal(found.examples[: len(data.examples)], data.examples)
    assert torch.equal(found.examples[len(data.examples) :], data.examples.flip(-1))


def test_mixed_characters_are_two_of_one_alphabet(
    lake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image has, where nothing moves, the ink of a drawing of each."""
    monkeypatch.setattr(lake, "affine", lambda images, key, **settings: images)
    data = alphabets("Greek", "Latin", size=4)
    found = lake.mixed(data, 2)
    assert found.n_classes == 3 * data.n_classes
    assert torch.equal(found.examples[: len(data.examples)], data.examples)
    assert torch.unique(found.groups, return_counts=True)[1].tolist() == [4] * 6
    drawings = found.tensor.unflatten(0, (-1, DRAWERS))
    row = {name: i for i, name in enumerate(data.class_names)}
    pairings = set()
    for new in range(data.n_classes, found.n_classes):
        a, b = (row[name] for name in found.class_names[new].split(" under "))
        assert a != b
        assert int(data.groups[a]) == int(data.groups[b]) == int(found.groups[new]) % 2
        overlays = torch.maximum(drawings[a, :, None], drawings[b])  # (drawers, drawers, 1, H, W)
        same = (overlays[None] == drawings[new][:, None, None]).flatten(3).all(-1)
        assert same.flatten(1).sum(1).tolist() == [1] * DRAWERS
        both = same.nonzero()[:, 1:]  # each drawing once
        assert sorted(both[:, 0].tolist()) == sorted(both[:, 1].tolist()) == list(range(DRAWERS))
        pairings.add(tuple((both[:, 0] - both[:, 1]).tolist()))
    assert len(pairings) > 12
    under = [name.split(" under ")[0] for name in found.class_names[8:]]
    over = [name.split(" under ")[1] for name in found.class_names[8:]]
    assert sorted(under) == sorted(over) == sorted(2 * data.class_names)


def test_parts_of_a_mixed_character_stay_where_they_are(lake: Any) -> None:
    """Drawings alike before are alike after, each class somewhere else."""
    dot = torch.zeros(5, DRAWERS, 1, 28, 28)
    dot[..., 10:14, 8:12] = 255
    found = lake.placed(dot, torch.tensor(7))
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert len(torch.unique(found[:, 0].flatten(1), dim=0)) == 5
    assert 0.5 < float(found.max()) <= 1


@pytest.fixture
def small(lake: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Seven alphabets, two of them outside of `small1`; the challenge is out of reach."""
    data = alphabets(*lake.SETS["small1"], "Futurama", "Tagalog")

    def background(split: str, **settings: Any) -> ClassDataset:
        assert split == "meta_train"
        return data

    def challenge(**settings: Any) -> None:
        raise AssertionError("nothing is chosen by the challenge")

    monkeypatch.setattr(lake, "load_omniglot", background)
    monkeypatch.setattr(lake, "load_lake_runs", challenge)
    return lake


def started(lake: Any, folder: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a short run writes: its result, and the settings of its first training."""
    output = folder / "lake.json"
    usual = ["--run", str(folder / "run"), "--output", str(output), "--set", "small1"]
    usual += ["--seeds", "1", "--judge", "others", "--views", "1", "--width-factor", "0.125"]
    lake.main([*usual, *words])
    (recipe,) = (folder / "run").glob("*/recipe.json")
    return json.loads(output.read_text()), json.loads(recipe.read_text())


def test_other_alphabets_are_asked_about(small: Any) -> None:
    episodes = small.other_episodes("small1", None, "crop")
    assert episodes.query.y.shape == (200, 20)
    data = small.load_omniglot("meta_train")
    others = data.where(lambda name: name.split("/")[0] in ("Futurama", "Tagalog")).tensor
    known = {image.numpy().tobytes() for image in (255 - others).float() / 255}
    for half in episodes:
        assert all(x.numpy().tobytes() in known for x in half.x[:9].flatten(0, 1))


@pytest.mark.parametrize("learner", ["matchingnet", "baseline"])
def test_a_run_with_all_of_it(small: Any, tmp_path: Path, learner: str) -> None:
    words = "--iterations 2 --first-seed 3 --elastic 1.5 --degrees 20 --shear 0.2 --scale 0.1"
    words += f" --shift 0.1 --mirror --mix 1 --scribbles 1 --learner {learner}"
    made, recipe = started(small, tmp_path, *words.split())
    report.check(made)
    assert made["training"]["meta_iterations"] == 2
    assert {cell["protocol"]["split"] for cell in made["cells"]} == {"other background alphabets"}
    assert [cell["episodes"] for cell in made["cells"]] == [200, 200]
    settings = {
        "iterations": 2,
        "mirror": True,
        "mix": 1,
        "scribbles": 1,
        "width_factor": 0.125,
        "seed": 3,
    }
    settings |= {"elastic": 1.5, "degrees": 20, "shear": 0.2, "scale": [0.9, 1.1], "shift": 0.1}
    assert recipe == recipe | settings


@pytest.mark.parametrize(
    "words", [["--set", "held-out", "--mirror"], ["--scribbles", "2", "--shrink", "mean"]]
)
def test_settings_that_would_be_passed_over(lake: Any, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        lake.main(words)


def test_usual_settings_are_those_of_older_runs(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(small.USUAL, "width_factor", 0.125)  # as if networks were as small
    _, recipe = started(small, tmp_path, "--small-seconds", "0.1")
    assert recipe == {
        "learner": "matchingnet",
        "set": "small1",
        "seed": 0,
        "seconds": 0.1,
        "network": "convnet",
        "shrink": "crop",
        "meta_batch": 1,
        "outer_lr": 0.002,
        "precision": "auto",
        "compile": False,
        "learner.scale": 25.0,
        "learner.turns": 6,
    }


def test_widths_are_those_of_the_networks(small: Any) -> None:
    """Factor 1 is the networks' own widths, which older runs did not name."""
    for name in small.NETWORKS:
        plain = small.learner_of("matchingnet", 0, 40, small.network_of(name, 1.0)).model
        usual = {k: v for k, v in small.NETWORKS[name].items() if "width" not in k}
        own = small.learner_of("matchingnet", 0, 40, usual).model
        torch.testing.assert_close(plain.state_dict(), own.state_dict(), rtol=0, atol=0)
        wide = small.learner_of("matchingnet", 0, 40, small.network_of(name, 1.5)).model
        assert wide.feature_width == 1.5 * own.feature_width
