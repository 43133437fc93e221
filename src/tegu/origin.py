"""Where a result comes from: commit, versions, machine, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def commit() -> str | None:
    """Commit of the checkout that this package is run from, or None outside one.

    "-dirty" is added where files differ from it that may decide a result:
    documents, and results themselves, do not count.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed, perhaps into a folder of somebody else's repository
    aside = [f":(top,exclude){folder}" for folder in ("benchmarks/results", "docs")]
    changed = _git("status", "--porcelain", "--", ":(top)", *aside)
    head = _git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and changed != "" else head  # also where git does not say


def _git(*arguments: str) -> str | None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).resolve().parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of what computes a result."""
    from tegu import __version__

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "tegu": __version__,
    }


def hardware() -> dict[str, Any]:
    """The machine: `cpu` and the `instructions` that torch uses of it, `cores`, `threads` of
    torch, `memory_bytes`, `gpu` or None."""
    cpu, memory = platform.processor() or platform.machine(), None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        pass  # not Linux: what is known is told
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "gpu": torch.cuda.get_device_name(gpu) if (gpu := used_gpu()) is not None else None,
    }


def used_gpu() -> int | None:
    """The number of the GPU that this process has used most of, None where it has used none."""
    if not torch.cuda.is_available():
        return None
    held = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    return max(range(len(held)), key=held.__getitem__) if any(held) else None


def peak_bytes() -> int | None:
    """Most memory that this process has held: of the GPU if it used one, else resident."""
    if (gpu := used_gpu()) is not None:
        return int(torch.cuda.max_memory_allocated(gpu))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # A process that another one started inherits that one's peak in `ru_maxrss`.
        lines = Path("/proc/self/status").read_text().splitlines()
        told = next(line for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(told.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
