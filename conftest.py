"""Names that the examples in docstrings may use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tegu


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(tegu=tegu, torch=torch)
