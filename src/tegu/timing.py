"""How fast two ways of doing one work are, taken in turn, beside what the machine could do.

A single time says little on a shared machine; the ratio of two that were taken in turn
says more. The share of the limit needs no rival at all: the floating-point operations
that the work takes, over the machine's own rate in large matrix products.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tegu.errors import InputError

SLOW = 0.05  # seconds of a product of 512 rows, beyond which larger ones tell nothing more
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def finished(device: torch.device) -> None:
    """Waits for the work that a GPU has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit(precision: str, device: torch.device | str = "cpu", *, size: int = 0) -> float:
    """The machine's own floating-point operations per second, in large matrix products.

    Args:
        precision: "fp32" or "bf16".
        device: where.
        size: rows and columns of the matrices; 0: 2,048 on a CPU, 8,192 on a GPU, and 512
            where the precision is emulated.
    """
    device = torch.device(device)
    n = size or (2048 if device.type == "cpu" else 8192)
    if not size and product(precision, device, 512, times=2) > SLOW:
        n = 512
    return 2 * n**3 / product(precision, device, n, times=8)


def product(precision: str, device: torch.device, n: int, *, times: int) -> float:
    """Seconds of the fastest of some products of matrices of n rows and columns."""
    a = torch.rand(n, n, device=device).to(DTYPES[precision])
    found = []
    for _ in range(times):
        finished(device)
        start = time.perf_counter()
        a @ a
        finished(device)
        found.append(time.perf_counter() - start)
    return min(found)


def operations(act: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in one call.

    Example:
        >>> a = torch.ones(2, 3)
        >>> operations(lambda: a @ a.T)  # twice 2 x 3 x 2
        24
    """
    with FlopCounterMode(display=False) as counter:
        act()
    return int(counter.get_total_flops())


def in_turn(
    acts: Sequence[Callable[[int], Any]],
    *,
    rounds: int,
    each: int = 1,
    warm: int = 2,
    device: torch.device | str = "cpu",
    enough: Callable[[], bool] = lambda: False,
    within: Sequence[Callable[[], AbstractContextManager[object]]] = (),
) -> list[list[float]]:
    """Seconds of one call of each, in turn: a round is `each` calls of one, then of the next.

    Args:
        acts: what to time; each is given 0, 1, 2 and on, the same numbers as the others.
        rounds: how many times all are timed.
        each: calls in a row.
        warm: rounds before the first that counts.
        device: is waited for before a time is read.
        enough: asked after each round that counts; ends early.
        within: for each act what its calls run in, if anything; it is called once more in it,
            and not timed, before a round's calls.

    Returns:
        For each act its seconds of one call, a number a round.
    """
    device = torch.device(device)
    found: list[list[float]] = [[] for _ in acts]
    for number in range(-warm, rounds):
        for which, (act, times) in enumerate(zip(acts, found, strict=True)):
            with within[which]() if within else nullcontext():
                if within:
                    act(each * (number + warm))
                finished(device)
                start = time.perf_counter()
                for i in range(each):
                    act(each * (number + warm) + i)
                finished(device)
                if number >= 0:
                    times.append((time.perf_counter() - start) / each)
        if number >= 0 and enough():
            break
    return found


def apart(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Distance of two lists of tensors, as a share of the length of the second; NaN is infinity.

    Example:
        >>> apart([torch.tensor([3.0, 4.5])], [torch.tensor([3.0, 4.0])])
        0.1
    """
    a, b = (torch.cat([x.detach().double().cpu().flatten() for x in xs]) for xs in (found, right))
    if a.shape != b.shape:
        return float("inf")
    share = float((a - b).norm() / b.norm())
    return share if share == share else float("inf")


def refuse(work: str, who: str, distance: float, most: float) -> None:
    """Ends a comparison that would time a wrong answer.

    Raises:
        InputError: the distance is above `most`.
    """
    if not distance <= most:
        raise InputError(
            f"{work}: {who} is {distance:.1e} of its length away from the loop in float64",
            f"at most {most:.0e}",
            "Nothing was timed: a fast wrong answer says nothing. Look for what differs.",
        )


def cell(
    work: str,
    rival: str,
    precision: str,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
    *,
    share: float | None = None,
) -> dict[str, Any]:
    """A timing of a result document.

    Args:
        work: what was done.
        rival: who else did it.
        precision: "fp32" or "bf16", of ours.
        ours: seconds of each round.
        theirs: of the same rounds; None where the rival is not there.
        share: of the machine's limit that ours reaches.

    Example:
        >>> cell("w", "r", "fp32", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0])["ratio_max"]
        2.0
    """
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)] if theirs else None
    return {
        "work": work,
        "rival": rival,
        "precision": precision,
        "ours_ms": 1e3 * statistics.median(ours),
        "rival_ms": 1e3 * statistics.median(theirs) if theirs else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratio_min": min(ratios) if ratios else None,
        "ratio_max": max(ratios) if ratios else None,
        "share_of_limit": share,
    }
