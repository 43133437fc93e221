"""Parts of a network that are run again on the way back, so that memory holds their inputs only.

`torch.utils.checkpoint` does this by hooks that torch.func does not support, and learners live
under `vmap` and nested `grad`. Here it is a function with a derivative of its own: the derivative
runs the part again, and is itself such a function. So every order of derivative keeps inputs
only, through inner loops of second order too.

Reference:
    Chen et al. (2016), Training deep nets with sublinear memory cost, arXiv:1604.06174, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import vjp

from tegu.models import norm
from tegu.models.passes import passed, survey

Tensors = tuple[Tensor, ...]


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, whose inner values are computed again for each gradient.

    Batch normalisation in the module obeys `tegu.models.norm.statistics` as elsewhere. The
    module must be a function of its input and parameters: no dropout, nothing counted.

    Args:
        module: one block of a network, with the parameters that it has now, such as
            `torch.func.functional_call` puts there.
        x: any shape.
    """
    parameters, buffers, tied, foreign = survey(module)
    own = {**parameters, **buffers}
    names, watched = list(own), norm.layers(module)
    source, mask, seen = norm.current()
    masked = mask is not None

    def run(*given: Tensor) -> Tensors:
        """The answer, then mean and variance of each layer of batch normalisation."""
        # Whole numbers are copies, since torch.nn.BatchNorm counts its batches in place.
        copied = (t if t.is_floating_point() else t.clone() for t in given[1 : 1 + len(names)])
        inside = dict(zip(names, copied, strict=True))
        marked = given[1 + len(names)] if masked else None
        found: norm.Seen = {}
        with norm.statistics(source, marked, foreign=foreign, seen=found):
            out = passed(module, inside, (given[0],), tied)
        told = [found.get(id(inside.get(f"{name}.running_mean"))) for name in watched]
        return (out, *(value for pair in told if pair is not None for value in pair))

    given = (x, *own.values(), *([] if mask is None else [mask]))
    out, *told = _recomputed(run, x.device.type, *given)
    if told and seen is not None:
        means = [id(own[m]) for name in watched if (m := f"{name}.running_mean") in own]
        seen.update(zip(means, zip(told[::2], told[1::2], strict=True), strict=True))
    return out


def _recomputed(function: Callable[..., Tensors], kind: str, *given: Tensor) -> Tensors:
    """Answers of a function that keeps its arguments alone for each of its derivatives.

    It is run as now, in half precision say, also where a derivative is taken after the end
    of that. `kind` is the device's.
    """
    rounded = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def run(*given: Tensor) -> Tensors:
        with torch.autocast(kind, dtype=rounded, enabled=rounded is not None):
            return function(*given)

    apply: Any = _Recomputed.apply
    out: Tensors = apply(run, kind, *given)
    return out


class _Recomputed(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[..., Tensors], kind: str, *given: Tensor) -> Tensors:
        return run(*given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.run, ctx.kind, *given = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx: Any, *back: Tensor) -> tuple[Tensor | None, ...]:
        given, run = ctx.saved_tensors, ctx.run
        count = len(given)
        moving = [i for i, tensor in enumerate(given) if tensor.is_floating_point()]

        def pull(*both: Tensor) -> Tensors:
            return _pull(run, both, count, moving)

        pulled = dict(zip(moving, _recomputed(pull, ctx.kind, *given, *back), strict=True))
        return None, None, *(pulled.get(i) for i in range(count))


def _pull(
    function: Callable[..., Tensors], both: Tensors, count: int, moving: Sequence[int]
) -> Tensors:
    """Gradients by the floating ones of `count` arguments; behind these, those by the answers."""
    given, back = both[:count], both[count:]

    def of(*floats: Tensor) -> Tensors:
        full = list(given)
        for i, tensor in zip(moving, floats, strict=True):
            full[i] = tensor
        return function(*full)

    pull: Any = vjp(of, *(given[i] for i in moving))[1]
    pulled: Tensors = pull(back)
    return pulled
