"""What the documents say is run: examples as they stand, tables against the result files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tegu
from tegu import cli
from tegu.learners import LEARNERS

ROOT = Path(__file__).resolve().parents[1]


def block(document: str, marker: str) -> str:
    """The fenced block behind an HTML comment."""
    text = (ROOT / document).read_text()
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)^```$", text, re.S | re.M)
    assert found, f"no block <!-- {marker} --> in {document}"
    return found[1]


@pytest.fixture
def nearest_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The class that CONTRIBUTING adds, registered as its step 2 says."""
    code = block("CONTRIBUTING.md", "example")
    assert len(code.splitlines()) <= 30
    namespace: dict[str, Any] = {"__name__": "tegu.learners.nearest_mean"}
    monkeypatch.setitem(sys.modules, "tegu.learners.nearest_mean", sys)
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    learner = namespace["NearestMean"]
    monkeypatch.setitem(LEARNERS, learner.name, learner)
    return learner


def test_the_algorithm_of_contributing_trains_from_its_recipe(
    nearest_mean: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "nearest-mean-glyphs.toml"
    recipe.write_text(block("CONTRIBUTING.md", "recipe"))
    short = ["--set", "train.meta_iterations=60", "--set", "model.width=16"]
    run = tmp_path / "run"
    assert cli.main(["train", str(recipe), "--run", str(run), *short]) == 0
    assert cli.main(["evaluate", str(run), "--episodes", "200", "--json"]) == 0
    out = capsys.readouterr().out
    document = tegu_json(out)
    (cell,) = document["cells"]
    assert cell["protocol"]["normalisation"] == "support"
    assert cell["value"] > 0.5  # chance is 0.2


def tegu_json(text: str) -> Any:
    import json

    return json.loads(text[text.index("{") :])
