"""Keeps freed memory for the next step, which asks for the same again.

The C library of Linux hands large blocks back to the system as they are freed, and the system
clears each page anew when it is next touched. A training step frees and asks for the same
blocks over and over, and on a CPU much of its time goes into those pages (benchmarks/LOG.md).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# What the library comes to by itself in a process that frees large blocks.
_USUAL_MMAP = 32 << 20
_LARGEST = 1 << 30  # block that is kept; data sets are larger

# By which a user says what is kept.
_OWN = {f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")}

_lock = threading.Lock()
_inside = 0  # how many are


@cache
def _library() -> ctypes.CDLL | None:
    """glibc, unless the user has told it what to keep, or limits the address space."""
    if _OWN & os.environ.keys() or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        import resource

        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return None
        library = ctypes.CDLL(None)
    except (ImportError, OSError):  # Windows
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextmanager
def kept() -> Iterator[None]:
    """Freed memory stays with this process until the last block of this kind is left.

    Nothing changes where the C library is not glibc, where the environment tells it what to
    keep (`MALLOC_TRIM_THRESHOLD_` and its like, `GLIBC_TUNABLES`), and where the address space
    is limited (`ulimit -v`). In threads other than the first, glibc keeps no blocks of 64 MB
    or more; nor does it in the first once a request for memory has failed there.
    """
    library = _library()
    if library is None:
        yield
        return
    _enter(library, 1)
    try:
        yield
    finally:
        _enter(library, -1)


def _enter(library: ctypes.CDLL, by: int) -> None:
    global _inside
    with _lock:
        before, _inside = _inside, _inside + by
        if before == 0:
            # Earlier versions of the library take no more than its usual most.
            if not library.mallopt(_MMAP_THRESHOLD, _LARGEST):
                library.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
            library.mallopt(_TRIM_THRESHOLD, -1)
        elif _inside == 0:
            library.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
            library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_MMAP)
            library.malloc_trim(0)


def _anew() -> None:
    """A forked process has the lock that another thread may have held, and not that thread."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
