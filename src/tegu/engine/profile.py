"""Where the time of meta-training goes: by part of the work, and as a trace.

The engine names its parts with `part`, which costs nothing unless a `Watch` looks on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

PARTS = ("sampling", "inner loop", "outer step", "validation", "checkpoint")
TRACED = range(2, 5)  # meta-iterations; the first two compile and warm up
OPERATIONS = 10  # that a summary lists

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


def part(name: str) -> AbstractContextManager[Any]:
    """Marks a part of the work, one of `PARTS`; parts do not lie within one another."""
    watch = _watch.get()
    return nullcontext() if watch is None else watch.part(name)


def iterated() -> None:
    """Tells whoever looks on that a meta-iteration has ended."""
    if watch := _watch.get():
        watch.iterated()


class Watch:
    """Looks on while meta-training runs within `with Watch(...) as watch`.

    Args:
        trace: file for the trace of a few meta-iterations, NAME.json.gz in a folder that
            the run makes, to be opened in a trace viewer such as Perfetto; none is
            written by a run that ends before.

    Attributes:
        seconds: of each part so far.
        iterations: meta-iterations seen.
        first: seconds of the first meta-iteration, in which the engine compiles.
        total: seconds from start to end, once it has ended.
        operations: of the traced meta-iterations: name, calls, milliseconds of the
            processor (of the GPU where there is one), costliest first.
    """

    def __init__(self, trace: Path) -> None:
        self.trace, self.seconds, self.iterations = trace, dict.fromkeys(PARTS, 0.0), 0
        self.first = self.total = 0.0
        self.operations: list[tuple[str, int, float]] = []

    def __enter__(self) -> Watch:
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it prints at every start and end
        self._token = _watch.set(self)
        # A build for GPUs names one where there is none.
        there = torch.accelerator.is_available()
        self._device = torch.accelerator.current_accelerator() if there else None
        activities = [ProfilerActivity.CPU]
        if self._device is not None and self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(
                skip_first=TRACED.start - 1, wait=0, warmup=1, active=len(TRACED), repeat=1
            ),
            on_trace_ready=self._keep,
            acc_events=True,  # there is one cycle; torch 2.11 warns without
        )
        self._profiler.__enter__()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *failure: Any) -> None:
        self.total = time.perf_counter() - self._began
        self._profiler.__exit__(*failure)
        _watch.reset(self._token)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs within as this part; waits for the GPU to finish it."""
        self._finish()
        start = time.perf_counter()
        with record_function(name):
            yield
            self._finish()
        self.seconds[name] += time.perf_counter() - start

    def iterated(self) -> None:
        """Ends a meta-iteration."""
        if not self.iterations:
            self.first = self.seconds["inner loop"] + self.seconds["outer step"]
        self.iterations += 1
        self._profiler.step()

    def shares(self) -> list[tuple[str, float, float]]:
        """Each part with its seconds and its share of the whole; "other" is the rest."""
        rest = max(0.0, self.total - sum(self.seconds.values()))
        rows = [*self.seconds.items(), ("other", rest)]
        return [(name, seconds, seconds / max(self.total, 1e-9)) for name, seconds in rows]

    def _finish(self) -> None:
        if self._device is not None:
            torch.accelerator.synchronize()

    def _keep(self, found: Any) -> None:
        if self.iterations < TRACED.stop:
            return  # the run ended before
        partial = self.trace.with_name(f".{self.trace.name}")
        found.export_chrome_trace(str(partial))
        os.replace(partial, self.trace)
        on_gpu = self._device is not None and self._device.type == "cuda"
        spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        rows = [
            (one.key, one.count, getattr(one, spent) / 1e3)
            for one in found.key_averages()
            if one.key not in PARTS and not one.key.startswith("ProfilerStep")
        ]
        self.operations = sorted(rows, key=lambda row: -row[2])[:OPERATIONS]
