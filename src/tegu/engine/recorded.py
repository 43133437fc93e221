"""Functions of nested tensors, recorded as CUDA graphs and replayed.

A small network's pass is hundreds of small operations, each of which takes the processor
longer to ask for than the GPU to do. A replay asks for all of them at once.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tegu.engine.compiled import lacks_memory, signature_of
from tegu.engine.trees import like, map_tensors, tensors_of

MOST = 8  # recordings that one function may have; each keeps the memory it ran in


class Recorded:
    """A function of nested tensors that a GPU replays, from its third call of a signature on.

    The first call compiles what wants compiling, the second is recorded. On a CPU, within
    another recording, and where the function cannot be recorded since it asks the GPU for a
    value, it is just called; the last of these is told by one warning.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._recordings: dict[Any, _Recording | None] = {}  # None: called once so far
        self._refused = False

    def __call__(self, *trees: Any) -> Any:
        leaves = tensors_of(trees)
        if self._refused or not leaves[0].is_cuda or torch.cuda.is_current_stream_capturing():
            return self.function(*trees)
        signature = signature_of(trees, leaves)
        if signature not in self._recordings:
            if len(self._recordings) < MOST:
                self._recordings[signature] = None
            return self.function(*trees)
        recording = self._recordings[signature]
        if recording is None:
            try:
                recording = _record(self.function, trees)
            except RuntimeError as failure:
                if lacks_memory(failure):
                    raise
                self._refused = True
                torch.cuda.synchronize()
                reason = str(failure).strip().splitlines()[0]
                warnings.warn(
                    f"no CUDA graph, since it cannot be recorded: {reason}",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return self.function(*trees)
            self._recordings[signature] = recording
        return recording(leaves)


@dataclass(frozen=True)
class _Recording:
    """A CUDA graph, the tensors it reads and those it writes."""

    graph: torch.cuda.CUDAGraph
    reads: list[Tensor]
    writes: Any

    def __call__(self, leaves: list[Tensor]) -> Any:
        with torch.no_grad():
            for group in _by_type(range(len(leaves)), leaves):
                torch._foreach_copy_([self.reads[i] for i in group], [leaves[i] for i in group])
            self.graph.replay()
            # The next replay writes where this one did: what comes out is copied first.
            made = tensors_of(self.writes)
            kept: dict[int, Tensor] = {}
            for group in _by_type(range(len(made)), made):
                copies = [torch.empty_like(made[i]) for i in group]
                torch._foreach_copy_(copies, [made[i] for i in group])
                kept.update(zip(group, copies, strict=True))
        return like(self.writes, [kept[i] for i in range(len(made))])


def _by_type(places: range, tensors: list[Tensor]) -> list[list[int]]:
    """Places of tensors of one type each, which are copied by one operation."""
    groups: dict[torch.dtype, list[int]] = {}
    for i in places:
        groups.setdefault(tensors[i].dtype, []).append(i)
    return list(groups.values())


def _record(function: Callable[..., Any], trees: Any) -> _Recording:
    reads = map_tensors(lambda x: x.detach().clone(memory_format=torch.preserve_format), trees)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on with the GPU meanwhile.
    with _undisturbed(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        writes = function(*reads)
    return _Recording(graph, tensors_of(reads), writes)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without Python's collector, which might free what lies on the GPU and so end a recording."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # What a task keeps of its support set takes no operation.
            warnings.filterwarnings("ignore", "The CUDA Graph is empty", UserWarning)
            yield
    finally:
        if collects:
            gc.enable()
