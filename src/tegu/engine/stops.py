"""How a run is asked to stop: Ctrl-C and SIGTERM, between two iterations."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, has saved a checkpoint, and can be resumed."""

    def __init__(self, signum: int, iteration: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after iteration {iteration}")
        self.signum, self.iteration = signum, iteration


@contextmanager
def stop_signals(seen: list[int], *, alone: bool) -> Iterator[None]:
    """Collects SIGINT and SIGTERM, so that an iteration is never torn apart; a second ends it.

    An iteration can be minutes long, where it compiles. Whoever cannot wait goes on from the last
    checkpoint. Not so among ranks: torchrun passes on what a terminal has sent them already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def told(signum: int, _frame: object) -> None:
        if seen and alone:
            raise KeyboardInterrupt
        seen.append(signum)
        if sys.stderr is not None and sys.stderr.isatty():  # print is not for use in here
            os.write(2, b"\nstops after this meta-iteration; once more stops at once\n")

    handlers = {}
    for signum in STOPS:
        # A handler in C could not be put back afterwards.
        if signal.getsignal(signum) is not None:
            handlers[signum] = signal.signal(signum, told)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
