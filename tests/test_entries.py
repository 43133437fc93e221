"""Kept measurements: taken as they are where nothing that decides them differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tegu import recipes
from tegu.entries import entry


def test_an_entry_of_an_earlier_version_is_kept(tmp_path: Path) -> None:
    settings, file, made = recipes.starting("protonet", "glyphs").plain(), tmp_path / "one.json", []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"number": len(made)}

    assert entry(file, settings, make, recipes.alike)["number"] == 1
    earlier = json.loads(file.read_text())
    del earlier["settings"]["engine"]["workers"], earlier["settings"]["learner"]["turns"]
    earlier["settings"]["engine"]["cuda_graphs"] = False
    file.write_text(json.dumps(earlier))
    assert entry(file, settings, make, recipes.alike)["number"] == 1
    assert entry(file, settings, make)["number"] == 2  # without recipes to tell


def test_an_entry_too_large_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.json"
    assert entry(file, {}, lambda: {"number": 1})["number"] == 1
    monkeypatch.setattr("tegu.entries.LARGEST", 10)
    assert entry(file, {}, lambda: {"number": 2})["number"] == 2


def test_what_decides_how_fast_a_result_comes_does_not_count() -> None:
    for data, setting in (
        ("folder", {"data.hold": 0}),
        ("folder", {"data.workers": 3}),
        ("glyphs", {"train.checkpoint_seconds": 5.0}),
        ("glyphs", {"engine.workers": 2}),
    ):
        own = {"data.path": "photos"} if data == "folder" else {}
        one, other = (recipes.starting("protonet", data, {**own, **s}) for s in ({}, setting))
        assert recipes.alike(one.plain(), other.plain()), setting


def test_what_decides_a_result_is_measured_anew(tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        return {"number": len(list(tmp_path.iterdir()))}

    settings = recipes.starting("protonet", "glyphs")
    for name, other in {
        "learner.turns": 2,
        "train.seed": 3,
        "engine.precision": "bf16",
    }.items():
        changed = recipes.starting("protonet", "glyphs", {name: other})
        assert not recipes.alike(settings.plain(), changed.plain())
    assert not recipes.alike(settings.plain(), {**settings.plain(), "unheard": 1})
    assert not recipes.alike({}, settings.plain())
    assert entry(tmp_path / "a.json", settings.plain(), make, recipes.alike) == entry(
        tmp_path / "a.json", settings.plain(), make, recipes.alike
    )
