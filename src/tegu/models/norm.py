"""Batch normalisation whose statistics are named by the caller, never guessed.

A network cannot know which examples its statistics may come from; the learner
can. It says so around a forward pass:

    with statistics("batch", mask):      # the batch's own, padding left out
        outputs = functional_call(model, params, (x,))

`BatchNorm` here and every `torch.nn.BatchNorm*d` of a user's model obey; the
user's module is neither changed nor copied, its running buffers included.

Layer and instance normalisation of torch with a scale and a shift have wrong second derivatives
under `vmap` (github.com/pytorch/functorch/issues/534; torch 2.13 still). Without these two they
are right: `LayerNorm` here, and a user's layers under `statistics`, apply them afterwards.

Running statistics are values that are meta-learned beside the weights: a pass
under `recording` tells the statistics that it used, and the engine keeps their
running mean.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tegu.errors import InputError
from tegu.models.convolution import per_task

Seen = dict[int, tuple[Tensor, Tensor]]  # mean and variance, by the id of a buffer of means


class _Named(threading.local):
    """What `statistics` says, innermost last; each thread its own."""

    def __init__(self) -> None:
        self.mask: list[Tensor | None] = [None]
        self.source: list[str] = ["batch"]
        self.seen: list[Seen | None] = [None]


_named = _Named()


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last; channels are the last.

    Args:
        width: number of channels C.
        eps: added to the variance; 1e-3 is TensorFlow's, which Reptile used.
    """

    def __init__(self, width: int, *, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, ..., C) to the same shape."""
        x = x.to(self.weight.dtype)
        if _named.source[-1] == "running":
            mean, var = self.running_mean, self.running_var
            return _affine(x, mean, var, self.weight, self.bias, self.eps)
        return _by_batch(x, self.running_mean, self.weight, self.bias, self.eps, channel=-1)


class LayerNorm(nn.LayerNorm):
    """torch's layer normalisation, with right derivatives of all orders under `vmap`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the layer's to the same shape."""
        return _scaled(
            F.layer_norm(x, self.normalized_shape, None, None, self.eps), self.weight, self.bias
        )


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    out = x if weight is None else x * weight
    out = out if bias is None else out + bias
    return out.to(x.dtype)  # of half precision, as torch's


def _by_batch(
    x: Tensor,
    buffer: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    channel: int,
) -> Tensor:
    """Normalised by the statistics of the rows that count, which are told."""
    mask, given = _named.mask[-1], [t for t in (x, weight, bias) if t is not None]
    if mask is None and not any(per_task(t) for t in given):
        # One task alone: torch's own kernel takes a third of the time. With channels first, it
        # adds up in double precision; with channels last, it is a hundred times less exact.
        first = x.movedim(channel, 1).contiguous()
        out, mean, root = torch.native_batch_norm(first, weight, bias, None, None, True, 0.0, eps)
        if _named.seen[-1] is not None:
            _tell(buffer, mean, root.pow(-2) - eps)
        return out.movedim(1, channel)
    mean, var = _moments(x, mask, channel=channel)
    _tell(buffer, mean, var)
    shape = [1] * x.ndim
    shape[channel] = -1
    weight, bias = (None if t is None else t.reshape(shape) for t in (weight, bias))
    return _affine(x, mean, var, weight, bias, eps)


def _moments(x: Tensor, mask: Tensor | None, *, channel: int) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.ndim) if axis != channel % x.ndim]
    if mask is None:
        weight = torch.full((), x.shape[channel] / x.numel(), dtype=x.dtype, device=x.device)
    else:
        folded, rest = divmod(len(x), len(mask))  # a model may fold other axes into that of rows
        if rest:
            raise InputError(
                f"a layer of batch normalisation that sees {len(x)} rows of {len(mask)} examples",
                "rows that belong to one example each",
                "Let the model keep examples apart, or pass tasks without padding.",
            )
        rows = mask if folded == 1 else mask.repeat_interleave(folded)
        weight = rows.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        weight = weight / weight.expand_as(x).sum(axes, keepdim=True).clamp(min=1)
    mean = _summed(x * weight, axes)
    # E (x - c)^2 - (mean - c)^2 is the variance for any constant c, and so are all its
    # derivatives; with c the mean itself, no digits cancel and a gradient needs no third pass.
    centre = mean.detach()
    var = _summed((x - centre).square() * weight, axes) - (mean - centre).square()
    return _per_channel(mean, var)


def _summed(x: Tensor, axes: list[int]) -> Tensor:
    """Sum within rows, then over rows: a compiled loop over both at once loses two digits."""
    rows = x.sum(axes[1:], keepdim=True) if len(axes) > 1 else x
    return rows.sum(axes[0], keepdim=True)


def _tell(buffer: Tensor | None, mean: Tensor, var: Tensor) -> None:
    seen = _named.seen[-1]
    if seen is not None and buffer is not None:
        seen[id(buffer)] = mean.detach().reshape(-1), var.detach().reshape(-1)


def _affine(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, as one product and one sum."""
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    scale, shift = _per_channel(scale, shift)
    return x * scale + shift


def _per_channel(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same two tensors: stacked, a compiler computes them once a channel, not an element."""
    flat = torch.cat([a.reshape(-1), b.reshape(-1)])
    first, second = flat.chunk(2)
    return first.view(a.shape), second.view(b.shape)


class _Foreign(TorchFunctionMode):
    """Answers `F.batch_norm`, which every torch.nn.BatchNorm layer calls, and its like."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is F.instance_norm:
            return _instance_norm(*args, **kwargs)
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func in _RECURRENT:  # dropout comes second after bias, the first bool of all
            at = next(i for i, given in enumerate(args) if isinstance(given, bool)) + 2
            return func(*args[:at], 0.0, *args[at + 1 :], **kwargs)
        if func is F.rrelu:
            return _rrelu(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return func(*args, **{**kwargs, "training": False})
        if func is F.scaled_dot_product_attention:
            given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
            return func(**{**given, "dropout_p": 0.0})
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        names = ("x", "mean", "var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | {
            {"input": "x", "running_mean": "mean", "running_var": "var"}.get(k, k): v
            for k, v in kwargs.items()
        }
        x, eps = given["x"], given.get("eps", 1e-5)
        if self.source == "running" and given.get("mean") is not None:
            shape = (1, -1, *[1] * (x.ndim - 2))
            mean, var = given["mean"].reshape(shape), given["var"].reshape(shape)
            weight, bias = (
                None if given.get(name) is None else given[name].reshape(shape)
                for name in ("weight", "bias")
            )
            return _affine(x, mean, var, weight, bias, eps)
        return _by_batch(
            x, given.get("mean"), given.get("weight"), given.get("bias"), eps, channel=1
        )


_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any, **__: Any) -> Tensor:
    return F.leaky_relu(input, (lower + upper) / 2)  # which `vmap` can run


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _scaled(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **settings: Any,
) -> Tensor:
    shape = (-1, *[1] * (input.ndim - 2))
    weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
    plain = F.instance_norm(input, running_mean, running_var, None, None, *more, **settings)
    return _scaled(plain, weight, bias)


def _all(mask: Tensor) -> bool:
    """Whether all rows are known to count; False where asking would stop a GPU or a trace."""
    if mask.device.type != "cpu" or per_task(mask) or _get_current_dispatch_mode() is not None:
        return False
    return bool(mask.all())


def spoken_for(layer: nn.Module) -> bool:
    """Whether `statistics` has to speak for this layer of torch's, whatever is inside it."""
    return isinstance(layer, _BatchNorm) or _misled(layer) or _drops(layer)


def _drops(layer: nn.Module) -> bool:
    """Whether it drops or scales activations at random."""
    return (
        (isinstance(layer, _DropoutNd) and layer.p > 0)
        or (isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)) and layer.dropout > 0)
        or isinstance(layer, nn.RReLU)
    )


def _misled(layer: nn.Module) -> bool:
    """Whether it is torch's layer or instance normalisation with scales and shifts."""
    return (
        isinstance(layer, (nn.LayerNorm, _InstanceNorm))
        and not isinstance(layer, LayerNorm)
        and (layer.weight is not None or layer.bias is not None)
    )


def converted(model: nn.Module) -> list[str]:
    """Names of the torch.nn.BatchNorm layers that `statistics` speaks for."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def unbuffered(model: nn.Module) -> list[str]:
    """Names of torch's layers of batch normalisation that keep no running statistics."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]


def layers(model: nn.Module) -> list[str]:
    """Names of all layers of batch normalisation, tegu's and torch's."""
    return [n for n, m in model.named_modules() if isinstance(m, (BatchNorm, _BatchNorm))]


def current() -> tuple[str, Tensor | None, Seen | None]:
    """What `statistics` says now: source, mask, and where means and variances are told."""
    return _named.source[-1], _named.mask[-1], _named.seen[-1]


@contextmanager
def statistics(
    source: str,
    mask: Tensor | None = None,
    *,
    foreign: bool,
    seen: Seen | None = None,
) -> Iterator[None]:
    """Where batch normalisation takes its mean and variance from, inside the block.

    Args:
        source: "batch" (the rows of the forward pass) or "running" (the buffers
            of the layers; torch's layers without buffers use the batch).
        mask: shape (B,) bool, the rows that count; None for all.
        foreign: whether a layer of the model is `spoken_for`. Then nothing is dropped at
            random either: random numbers are functions of keys.
        seen: takes the mean and variance, (C,) each, of every layer that used the
            batch's, under the id of the layer's buffer of running means.
    """
    _named.mask.append(None if mask is not None and _all(mask) else mask)
    _named.source.append(source)
    _named.seen.append(seen)
    try:
        if foreign:
            with _Foreign(source):
                yield
        else:
            yield
    finally:
        _named.mask.pop()
        _named.source.pop()
        _named.seen.pop()
