"""What the documents say is run: examples as they stand, tables against the result files."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tegu
from tegu import cli
from tegu.learners import LEARNERS

ROOT = Path(__file__).resolve().parents[1]


def block(document: str, opening: str) -> str:
    """The first fenced block that comes straight after a line."""
    found = re.search(rf"^{opening}\n(.*?)^```$", (ROOT / document).read_text(), re.S | re.M)
    assert found, f"no block after {opening!r} in {document}"
    return found[1]


def test_the_two_phases_of_the_readme() -> None:
    code = block("README.md", "```python")
    assert "meta_iterations=600" in code
    images = torch.rand(5, 1, 28, 28)
    names: dict[str, Any] = {"images": images, "new_images": images[:2].tolist()}
    exec(code.replace("meta_iterations=600", "meta_iterations=2"), names)
    assert set(names["task"].predict(names["new_images"])) <= {"ka", "ki", "ku"}
    assert names["task"].predict_proba(names["new_images"]).shape == (2, 3)


def test_the_estimator_of_the_readme() -> None:
    opening = "Where examples and labels lie in two arrays, an estimator does both:\n\n```python"
    code = block("README.md", opening)
    assert "n_way=5" in code
    few = code.replace("n_way=5", "n_way=3, meta_iterations=2")
    x, labels = torch.rand(12, 4), [f"class {i % 4}" for i in range(12)]
    names: dict[str, Any] = {"tegu": tegu, "x": x, "labels": labels, "new_x": x[:3], "more_x": x}
    names |= {"unseen_x": x, "unseen_labels": [f"new {name}" for name in labels]}
    exec(few, names)
    one = names["one"]
    assert 0 <= one.evaluate(x, names["unseen_labels"]).value <= 1
    answers = one.adapt(names["new_x"], ["cat", "dog", "dog"]).predict(x)
    assert len(answers) == 12
    assert set(answers) <= {"cat", "dog"}


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if ">>> " in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert not failed
    assert tried == page.read_text().count(">>> ")


@pytest.fixture
def nearest_mean(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that CONTRIBUTING adds, registered as its step 2 says."""
    code = block("CONTRIBUTING.md", "<!-- example -->\n```python")
    assert len(code.splitlines()) <= 30
    namespace: dict[str, Any] = {"__name__": "nearest_mean"}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), namespace)
    learner = namespace["NearestMean"]
    monkeypatch.setitem(LEARNERS, learner.name, learner)
    return learner


@pytest.mark.usefixtures("nearest_mean")
def test_the_algorithm_of_contributing_trains_from_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "nearest-mean-glyphs.toml"
    recipe.write_text(block("CONTRIBUTING.md", "<!-- recipe -->\n```toml"))
    short = ["--set", "train.meta_iterations=100", "--set", "model.width=16"]
    run = str(tmp_path / "run")
    assert cli.main(["train", str(recipe), "--run", run, "--json", *short]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", run, "--episodes", "200", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert cell["protocol"]["normalisation"] == "support"
    assert cell["value"] > 0.45  # chance is 0.2


def test_tables_are_those_of_the_result_files() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    filled = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        assert tables.filled(text) == text, f"run python benchmarks/tables.py: {path.name}"
        filled += len(tables.TABLE.findall(text))
    assert filled >= 8


def anchors(document: Path) -> set[str]:
    """What its headings are linked by, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links_lead_somewhere() -> None:
    followed = 0
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            place = path.parent / name if name else path
            assert place.exists(), f"{path.name}: {target}"
            if anchor:
                followed += 1
                assert anchor in anchors(place), f"{path.name}: {target}"
    assert followed >= 15


def test_every_learner_is_in_the_list_of_learners_once() -> None:
    text = (ROOT / "docs/learners.md").read_text()
    listed = re.findall(r"^\| `([\w+-]+)` \|", text, re.M)
    assert sorted(listed) == sorted(LEARNERS)
