"""The four-layer convolutional network of the few-shot literature.

Convolutions are matrix products over patches in channels-last order: under
`vmap` with a set of weights per task they become one batched product, where
grouped convolutions are slow.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.models.norm import BatchNorm


def patches(x: Tensor) -> Tensor:
    """3x3 neighbourhoods at stride 2, padded by one: what a convolution multiplies.

    Args:
        x: shape (B, H, W, C).

    Returns:
        Shape (B, ceil(H/2), ceil(W/2), 9C), taps in row-major order.
    """
    batch, height, width, channels = x.shape
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


class StridedConv(nn.Module):
    """3x3 convolution with stride 2, as a product with patches.

    No bias: the normalisation that follows would cancel it exactly. Weight
    shape (9 * in, out), rows in the order of `patches`.
    """

    def __init__(self, in_width: int, out_width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        bound = (6 / (9 * (in_width + out_width))) ** 0.5  # Glorot's uniform bound
        weight = torch.empty(9 * in_width, out_width)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, H, W, in) to (B, ceil(H/2), ceil(W/2), out)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # rounded once, not in each of nine copies
        columns = patches(x)
        return (columns.flatten(0, 2) @ self.weight).reshape(*columns.shape[:3], -1)


class Linear(nn.Linear):
    """Dense layer with Glorot's uniform start and a zero bias, from a generator."""

    def __init__(self, in_width: int, out_width: int, *, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_width, out_width
        weight = torch.empty(out_width, in_width)
        nn.init.xavier_uniform_(weight, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_width))


class Body(nn.Module):
    """Four times convolution, batch normalisation, ReLU: image to features."""

    def __init__(self, channels: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        widths = [channels, width, width, width, width]
        self.convs = nn.ModuleList(
            StridedConv(a, b, generator=generator) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(BatchNorm(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, D)."""
        x = x.permute(0, 2, 3, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.flatten(1)


class Conv4(nn.Module):
    """Conv-4 with strides instead of pooling, as Reptile used on Omniglot.

    Args:
        n_way: number of outputs N.
        channels: of the images, 1 or 3.
        size: height and width of the images, pixels.
        width: filters per layer.
        seed: of the initial weights (Glorot uniform, as TensorFlow's layers).

    Reference:
        Nichol et al. (2018), arXiv:1803.02999, and its published code.
        Differs from it: the convolutions have no bias, which batch
        normalisation would cancel; where a size is even, the row and column
        of padding are at the top left, not at the bottom right.
    """

    def __init__(
        self, n_way: int, *, channels: int = 1, size: int = 28, width: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        side = size
        for _ in range(4):
            side = (side + 1) // 2
        self.body = Body(channels, width, generator=generator)
        self.head = Linear(side * side * width, n_way, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating, to scores (B, N)."""
        out: Tensor = self.head(self.body(x))
        return out
