"""Wide residual networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError, check_range
from tegu.models.convolution import Conv, Pointwise
from tegu.models.linear import Linear
from tegu.models.norm import BatchNorm


class Block(nn.Module):
    """Normalisation and ReLU before each of two convolutions, added to what came in."""

    def __init__(
        self, in_width: int, width: int, *, stride: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.norm1 = BatchNorm(in_width, eps=1e-5)
        self.conv1 = Conv(in_width, width, stride=stride, generator=generator)
        self.norm2 = BatchNorm(width, eps=1e-5)
        self.conv2 = Conv(width, width, generator=generator)
        # Where the shape stays, what came in is added as it is.
        self.shortcut = (
            Pointwise(in_width, width, stride=stride, generator=generator)
            if stride > 1 or in_width != width
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, H, W, in) to (B, ceil(H / stride), ceil(W / stride), width)."""
        active = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + beside


class Body(nn.Module):
    """A convolution, three groups of blocks, and the mean over the image."""

    def __init__(
        self, channels: int, *, depth: int, widen: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.conv = Conv(channels, 16, generator=generator)
        blocks: list[nn.Module] = []
        last = 16
        for group, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for i in range((depth - 4) // 6):
                stride = 2 if group and not i else 1
                blocks.append(Block(last, width, stride=stride, generator=generator))
                last = width
        self.blocks = nn.ModuleList(blocks)
        self.norm = BatchNorm(last, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, D)."""
        x = self.conv(x.permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x)).mean((1, 2))


class WideResNet(nn.Module):
    """WRN-depth-widen, with pre-activation; 32 pixels and 84 go through alike.

    Args:
        n_way: number of outputs N; 0 for none, so that a pass returns features.
        channels: of the images, 1 or 3.
        depth: 6 n + 4 for n blocks in each of three groups: 10, 16, 22, 28, 40 ...
        widen: factor of the widths 16, 32 and 64.
        seed: of the initial weights.

    Attributes:
        body: the module from images to features.
        head: the dense layer behind it.
        feature_width: D, 64 times `widen`.

    Reference:
        Zagoruyko, Komodakis (2016), arXiv:1605.07146, table 1. WRN-28-10 has 36.5
        million weights. Differs from it: no dropout, and Glorot's initial weights
        in place of He's.

    Example:
        >>> WideResNet(5, depth=10, widen=1)(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self, n_way: int, *, channels: int = 3, depth: int = 28, widen: int = 10, seed: int = 0
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise InputError(
                f"depth is {depth}", "10, 16, 22, 28 or another 6 n + 4", "Pass depth=28, say."
            )
        check_range("widen", widen, 1, todo="Pass widen=10, say.")
        generator = torch.Generator().manual_seed(seed)
        self.feature_width = 64 * widen
        self.body = Body(channels, depth=depth, widen=widen, generator=generator)
        self.head = (
            Linear(self.feature_width, n_way, generator=generator) if n_way else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating, to scores (B, N), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out
