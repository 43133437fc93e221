"""In which arithmetic the passes through a model run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from tegu.errors import unknown
from tegu.timing import product

PRECISIONS = ("auto", "fp32", "bf16")
SIDE = 512  # of the matrices that are multiplied to see


def chosen(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16": "auto" takes bf16 where the device is faster in it.

    Raises:
        InputError: an unknown precision.
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "bf16" if half_pays(device) else "fp32"


@cache
def half_pays(device: torch.device) -> bool:
    """Whether products of matrices are faster in bf16 than in fp32.

    A processor without instructions for it runs them in software, some hundred times slower,
    which torch does not say; so it is measured, once, in less than half a second.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    full, half = product("fp32", device, SIDE, times=6), product("bf16", device, SIDE, times=2)
    if half < 4 * full:  # near enough for a closer look, in turn
        for _ in range(5):
            full = min(full, product("fp32", device, SIDE, times=2))
            half = min(half, product("bf16", device, SIDE, times=2))
    return half < full


@contextmanager
def in_precision(name: str, device: torch.device) -> Iterator[None]:
    """Passes through a model in "fp32" or "bf16"."""
    context: Any = torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()
    with context:
        yield
