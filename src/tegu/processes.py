"""Work in a process of its own, so that its peak memory is its own too."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tegu.engine.stops import Interrupted
from tegu.errors import InputError


def _child(send: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        send.send(("done", function(*arguments)))
    except InputError as error:
        send.send(("refused", (error.given, error.expected, error.todo)))
    except (Interrupted, KeyboardInterrupt):
        pass  # the parent was stopped too, and says so


@contextmanager
def _exits_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves by way of `finally`, as Ctrl-C does, so that no child is left at work."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is None:  # None: one in C, not to be put back
        yield
        return

    def leave(signum: int, _frame: Any) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def apart(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns, called in a fresh process.

    Args:
        name: of the work, for errors.
        function: at the top of its module, so that the process finds it.
        arguments: for it.

    Raises:
        InputError: the function's own, or the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, function, arguments))
    process.start()
    send.close()
    try:
        with _exits_on_sigterm():
            kind, outcome = receive.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"{name} ended without a result (exit code {process.exitcode})",
            "a process that runs to its end",
            "Look at what it printed. Exit code -9 is often a lack of memory: lower the budget, "
            "or leave it out.",
        ) from None
    except BaseException:
        process.terminate()  # stopped before its end
        raise
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
    if kind == "refused":
        raise InputError(*outcome)
    return outcome
