"""One thread at a time in a model: weights of a task stand in it while it is called."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()  # of the table above


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Waits until no other thread is in the model, and keeps others out."""
    with _guard:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield


def _anew() -> None:
    """A forked process has the locks that other threads held, and not those threads."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
