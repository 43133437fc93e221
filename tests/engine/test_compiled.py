"""What happens where the compiler fails; that its programs are right is tested with the engine."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tegu.engine import compiled as module
from tegu.engine.compiled import Compiled


def failing(error: BaseException) -> Any:
    def compiler(*_: Any, **__: Any) -> Any:
        raise error

    return compiler


def test_what_cannot_be_compiled_is_called_after_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.torch, "compile", failing(RuntimeError("no such instruction\nat")))
    double, x = Compiled(lambda tree: {"y": 2 * tree["x"]}), torch.ones(2)
    with pytest.warns(RuntimeWarning, match="^not compiled, since .*: no such instruction$"):
        assert double({"x": x})["y"].tolist() == [2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double({"x": torch.ones(3)})["y"].tolist() == [2, 2, 2]


def test_want_of_memory_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch, "compile", failing(torch.OutOfMemoryError("so much")))
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(lambda x: x + 1)(torch.ones(2))


def test_a_function_that_fails_itself_fails_with_its_own_error() -> None:
    def bad(x: Tensor) -> Tensor:
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        Compiled(bad)(torch.ones(2))
