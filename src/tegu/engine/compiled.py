"""Functions of nested tensors, compiled once for each signature and kept between runs."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tegu.engine.trees import like, map_tensors, names_of, tensors_of
from tegu.files import cache_folder


def can_compile() -> bool:
    """Whether torch.compile finds what it needs on this machine: a C++ compiler on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return any(name and shutil.which(name) for name in names)


def _keep_compiled_code() -> None:
    """Has compiled code kept in the user's own cache folder, for the next run to start faster.

    By default it lies in the machine's folder for temporary files, gone after a restart.
    """
    folder = cache_folder() / "compiled"
    with suppress(OSError):  # then it stays where it lies by default
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def lacks_memory(failure: RuntimeError) -> bool:
    """Whether an operation failed for want of memory; on a CPU only the error's text tells."""
    return isinstance(failure, torch.OutOfMemoryError) or any(
        text in str(failure) for text in ("allocate memory", "not enough memory")
    )


def signature_of(trees: Any, leaves: list[Tensor]) -> Any:
    """Names of the tensors in some trees, with their shapes, strides, types and devices."""
    return names_of(trees), tuple((x.shape, x.stride(), x.dtype, x.device) for x in leaves)


class Compiled:
    """A function of nested tensors, compiled for each signature that it is called with.

    It is traced to a graph of tensor operations first. The graph holds no module and no
    setting, so that a call checks its tensors' shapes and nothing else. What cannot be
    compiled is called as it is, after one warning.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._programs: dict[Any, tuple[Callable[..., Any], Any]] = {}
        self._refused = False

    def __call__(self, *trees: Any) -> Any:
        if self._refused:
            return self.function(*trees)
        leaves = tensors_of(trees)
        signature = signature_of(trees, leaves)
        if signature in self._programs:
            program, shape = self._programs[signature]
            return like(shape, program(*leaves))
        try:
            program, shape = self._compiled(trees, leaves)
            found = like(shape, program(*leaves))
        except RuntimeError as failure:
            if lacks_memory(failure):
                raise
            found = self.function(*trees)  # where this fails too, its error is the caller's to see
            self._refused = True
            reason = str(failure).strip().splitlines()[0]
            warnings.warn(
                f"not compiled, since the compiler fails: {reason}", RuntimeWarning, stacklevel=2
            )
            return found
        self._programs[signature] = program, shape
        return found

    def _compiled(self, trees: Any, leaves: list[Tensor]) -> tuple[Callable[..., Any], Any]:
        shape: Any = None

        def flat(*leaves: Tensor) -> list[Tensor]:
            nonlocal shape
            found = self.function(*like(trees, leaves))
            shape = map_tensors(lambda _: torch.empty(0), found)  # keeps no result alive
            return tensors_of(found)

        _keep_compiled_code()
        graph = make_fx(flat)(*leaves)
        return torch.compile(graph, dynamic=False), shape
