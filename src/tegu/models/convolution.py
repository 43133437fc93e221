"""3x3 convolution over channels-last images, whoever owns the weights.

Under `vmap` with a set of weights per task, a product with patches becomes one
batched matrix product, where torch would make a grouped convolution, which is
slow. Weights that all tasks share need no patches: one convolution over the
images of all tasks takes a half to a fifth of the time, and holds no ninefold
copy. `Conv` asks which of the two it is and computes the same either way,
rounding aside.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

# Input channels up to which patches are faster with shared weights too, for images of several
# tasks or where a compiler joins them with what stands around.
NARROW = 8


def patches(x: Tensor, stride: int = 2) -> Tensor:
    """3x3 neighbourhoods, zeros around the image: what a convolution multiplies.

    Args:
        x: shape (B, H, W, C).
        stride: 1, or 2; with 2, an even side has its row of zeros at the top
            left only.

    Returns:
        Shape (B, ceil(H / stride), ceil(W / stride), 9C), taps in row-major order.
    """
    batch, height, width, channels = x.shape
    if stride == 1:
        x = F.pad(x, (0, 0, 1, 1, 1, 1))
        return torch.cat(
            [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1
        )
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    # Rows and columns by parity: a stride of 2 turns into slices without one.
    x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    top, bottom = x[:, :, 0], x[:, :, 1]
    above = F.pad(bottom[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    taps = []
    for row in (above, top, bottom):
        left, right = row[:, :, :, 0], row[:, :, :, 1]
        taps += [F.pad(right[:, :, :-1], (0, 0, 1, 0)), left, right]
    return torch.cat(taps, -1)


def per_task(x: Tensor) -> bool:
    """Whether a tensor has an axis of tasks that some `vmap` hides.

    True too where nobody can ask, in code that torch.compile reads or a torch
    without that private interface: what is right for a tensor per task is
    right for a shared one.

    Example:
        >>> found = []
        >>> def ask(x):
        ...     found.append(per_task(x))
        ...     return x
        >>> _ = torch.func.vmap(ask)(torch.ones(2)), torch.func.grad(ask)(torch.ones(()))
        >>> found
        [True, False]
    """
    if torch.compiler.is_compiling():
        return True
    try:
        wrappers = torch._C._functorch
        while wrappers.is_functorch_wrapped_tensor(x):
            if wrappers.is_batchedtensor(x):
                return True
            x = wrappers.get_unwrapped(x)  # a gradient's wrapper, and what is in it
    except AttributeError:
        return True
    return False


def _compiling() -> bool:
    return torch.compiler.is_compiling() or get_proxy_mode() is not None  # which it cannot read


def max_pool(x: Tensor) -> Tensor:
    """The largest of each 2 x 2 square: (B, H, W, C) to (B, floor(H/2), floor(W/2), C).

    Where several are the largest, each takes an equal share of the gradient, and of every
    derivative after it; for one task alone, and not compiled, the first takes all of it, as
    in torch, whose gradient takes a half of the time. (Under `vmap` its second derivative
    does not run, in torch 2.13.)
    """
    batch, height, width, channels = x.shape
    alone = not torch.is_grad_enabled() or not per_task(x)
    by_torch = alone and (torch.is_grad_enabled() or x.is_cuda)
    if by_torch and not _compiling() and min(height, width) > 1:
        return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    if torch.compiler.is_compiling():  # a reader that warns of functions of one's own
        return x.amax((2, 4))
    largest: Any = _Largest
    out: Tensor = largest.apply(x)
    return out


class _Largest(torch.autograd.Function):
    """The largest over axes 2 and 4, both of length 2, with the derivatives of `amax`.

    On a processor `amax` over axes so short takes 15 to 40 times as long, torch's max-pooling 10
    times with channels first. `amax` counts equals in int64, for each element anew where it is
    compiled; without AVX-512 a processor is slow to make floats of those.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, 0], x[:, :, 1])
        return torch.maximum(rows[:, :, :, 0], rows[:, :, :, 1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, largest = ctx.saved_tensors
        (grad,) = grads
        equal = (x == largest[:, :, None, :, None]).to(grad.dtype)
        shares: Tensor = equal * (grad / equal.sum((2, 4)))[:, :, None, :, None]
        return shares


class Conv(nn.Module):
    """3x3 convolution without bias, which the normalisation behind it would cancel.

    Weight shape (9 * in, out), rows in the order of `patches`.

    Args:
        in_width: channels of the input.
        out_width: channels of the output.
        stride: 1 or 2.
        generator: of the initial weights, Glorot uniform.
    """

    def __init__(
        self, in_width: int, out_width: int, *, stride: int = 1, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.stride = stride
        bound = (6 / (9 * (in_width + out_width))) ** 0.5  # Glorot's uniform bound
        weight = torch.empty(9 * in_width, out_width)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, H, W, in) to (B, ceil(H / stride), ceil(W / stride), out)."""
        kind, weight = x.device.type, cast(Tensor, self.weight)
        if torch.is_autocast_enabled(kind):
            # Rounded once, not in each of nine copies; vmap's convolution does not round at all.
            x, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (x, weight))
        narrow = x.shape[-1] <= NARROW and (per_task(x) or _compiling())
        if narrow or per_task(weight):
            columns = patches(x, self.stride)
            return _product(columns, weight)
        kernel = weight.reshape(3, 3, -1, weight.shape[-1]).permute(3, 2, 0, 1).contiguous()
        out = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=self.stride, padding=1)
        return out.permute(0, 2, 3, 1)


class Pointwise(nn.Module):
    """1x1 convolution without bias: a matrix product over the channels.

    Args:
        in_width: channels of the input.
        out_width: channels of the output.
        stride: 1, or 2 to keep every second row and column, from the first on.
        generator: of the initial weights, Glorot uniform.
    """

    def __init__(
        self, in_width: int, out_width: int, *, stride: int = 1, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.stride = stride
        bound = (6 / (in_width + out_width)) ** 0.5
        weight = torch.empty(in_width, out_width)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, H, W, in) to (B, ceil(H / stride), ceil(W / stride), out)."""
        x = x[:, :: self.stride, :: self.stride]
        return _product(x, self.weight)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(B, H, W, in) times (in, out), as one product of matrices."""
    out: Tensor = (x.flatten(0, 2) @ weight).unflatten(0, x.shape[:3])
    return out
