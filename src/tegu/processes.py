"""Work in a process of its own, so that its peak memory is its own too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from tegu.errors import InputError


def _child(send: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        send.send(("done", function(*arguments)))
    except InputError as error:
        send.send(("refused", (error.given, error.expected, error.todo)))


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
        kind, outcome = receive.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"{name} ended without a result (exit code {process.exitcode})",
            "a process that runs to its end",
            "Look at what it printed. Exit code -9 is often a lack of memory: lower the budget, "
            "or leave it out.",
        ) from None
    finally:
        if process.is_alive():
            process.join(10)
        if process.is_alive():
            process.terminate()
    if kind == "refused":
        raise InputError(*outcome)
    return outcome
