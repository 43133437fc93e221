"""Batch normalisation whose statistics are named by the caller, never guessed.

A network cannot know which examples its statistics may come from; the learner
can. It says so around a forward pass:

    with statistics("batch", mask):      # the batch's own, padding left out
        outputs = functional_call(model, params, (x,))

`BatchNorm` here and every `torch.nn.BatchNorm*d` of a user's model obey; the
user's module is neither changed nor copied, its running buffers included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_mask: list[Tensor | None] = [None]


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, by the batch's own statistics.

    Args:
        width: number of channels C.
        eps: added to the variance; 1e-3 is TensorFlow's, which Reptile used.
    """

    def __init__(self, width: int, *, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, ..., C) to the same shape."""
        x = x.to(self.weight.dtype)
        mean, var = _moments(x, _mask[-1], channel=-1)
        return (x - mean) * (torch.rsqrt(var + self.eps) * self.weight) + self.bias


def _moments(x: Tensor, mask: Tensor | None, *, channel: int) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.ndim) if axis != channel % x.ndim]
    if mask is None:
        mean = x.mean(axes, keepdim=True)
        return mean, (x - mean).square().mean(axes, keepdim=True)
    weight = mask.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    weight = weight / weight.expand_as(x).sum(axes, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(axes, keepdim=True)
    return mean, ((x - mean).square() * weight).sum(axes, keepdim=True)


class _Foreign(TorchFunctionMode):
    """Answers `F.batch_norm`, which every torch.nn.BatchNorm layer calls."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        names = ("x", "mean", "var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | {
            {"input": "x", "running_mean": "mean", "running_var": "var"}.get(k, k): v
            for k, v in kwargs.items()
        }
        x, shape = given["x"], (1, -1, *[1] * (given["x"].ndim - 2))
        if self.source == "running" and given.get("mean") is not None:
            mean, var = given["mean"].reshape(shape), given["var"].reshape(shape)
        else:
            mean, var = _moments(x, _mask[-1], channel=1)
        out = (x - mean) * torch.rsqrt(var + given.get("eps", 1e-5))
        if given.get("weight") is not None:
            out = out * given["weight"].reshape(shape)
        return out if given.get("bias") is None else out + given["bias"].reshape(shape)


def converted(model: nn.Module) -> list[str]:
    """Names of the torch.nn.BatchNorm layers that `statistics` speaks for."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


@contextmanager
def statistics(source: str, mask: Tensor | None = None, *, foreign: bool) -> Iterator[None]:
    """Where batch normalisation takes its mean and variance from, inside the block.

    Args:
        source: "batch" (the rows of the forward pass) or "running" (the buffers
            of the user's layers; layers without buffers use the batch).
        mask: shape (B,) bool, the rows that count; None for all.
        foreign: whether the model holds torch.nn.BatchNorm layers.
    """
    _mask.append(mask)
    try:
        if foreign:
            with _Foreign(source):
                yield
        else:
            yield
    finally:
        _mask.pop()
