"""The examples run, and show what they claim."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> Any:
    """The module of one script."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test() -> None:
    tested = re.findall(r'example\("(\w+)"\)', Path(__file__).read_text())
    assert {path.stem for path in FOLDER.glob("*.py")} == set(tested)


@pytest.mark.slow
def test_a_new_task() -> None:
    assert example("new_task").main() > 0.6  # chance is 0.2


def test_own_data_and_model() -> None:
    before, after = example("own_data").main()
    assert after > before + 0.08


def test_shared_features_in_an_ordinary_job() -> None:
    found = example("shared_features").main(meta_iterations=200)
    assert found["shared"] > max(found["numbers"], found["untrained"]) + 0.1
