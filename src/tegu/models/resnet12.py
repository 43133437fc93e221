"""ResNet-12, the residual network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.convolution import Conv, Pointwise, max_pool
from tegu.models.linear import Linear
from tegu.models.norm import BatchNorm
from tegu.models.recompute import recomputed


class Block(nn.Module):
    """Three convolutions beside a 1x1 convolution, added, then max-pooled."""

    def __init__(self, in_width: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            Conv(a, b, generator=generator) for a, b in pairwise([in_width, width, width, width])
        )
        self.norms = nn.ModuleList(BatchNorm(width, eps=1e-5) for _ in range(3))
        self.shortcut = Pointwise(in_width, width, generator=generator)
        self.shortcut_norm = BatchNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, H, W, in) to (B, floor(H/2), floor(W/2), width)."""
        beside = self.shortcut_norm(self.shortcut(x))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            x = F.leaky_relu(x if i < 2 else x + beside, 0.1)
        return max_pool(x)


class Body(nn.Module):
    """Four blocks, then the mean over the image."""

    def __init__(
        self, channels: int, widths: Sequence[int], *, checkpoint: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.blocks = nn.ModuleList(
            Block(a, b, generator=generator) for a, b in pairwise([channels, *widths])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, D)."""
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = recomputed(block, x) if self.checkpoint else block(x)
        return x.mean((1, 2))


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions each, features averaged over the image.

    Args:
        n_way: number of outputs N; 0 for none, so that a pass returns features.
        channels: of the images, 1 or 3.
        size: height and width of the images, pixels, 16 or more: four poolings
            halve them.
        widths: filters of each block. (64, 160, 320, 640) has 12.4 million
            weights, (64, 128, 256, 512) has 8.0 million.
        checkpoint: run each block again for its gradient, which takes a third more time
            and a fraction of the memory.
        seed: of the initial weights.

    Attributes:
        body: the module from images to features.
        head: the dense layer behind it.
        feature_width: D, the filters of the last block.

    Reference:
        Oreshkin et al. (2018), TADAM, arXiv:1805.10123, with the widths of Lee et
        al. (2019), MetaOptNet, arXiv:1904.03758. Differs from both: no dropout and
        no DropBlock; Glorot's initial weights in place of He's. Differs from
        MetaOptNet: features are averaged over the image, where its ridge and SVM
        heads had all 5 x 5 places of it.

    Example:
        >>> ResNet12(0, size=16, widths=(2, 2, 2, 3))(torch.zeros(4, 3, 16, 16)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        n_way: int,
        *,
        channels: int = 3,
        size: int = 32,
        widths: Sequence[int] = (64, 160, 320, 640),
        checkpoint: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < 16:
            raise InputError(
                f"images of {size} pixels for a ResNet12",
                "16 or more, since it halves them four times",
                "Enlarge the images, or take a Conv4 without pooling.",
            )
        if len(widths) != 4:
            raise InputError(
                f"{len(widths)} widths for a ResNet12",
                "one for each of four blocks",
                "Pass widths=(64, 160, 320, 640), say.",
            )
        generator = torch.Generator().manual_seed(seed)
        self.feature_width = widths[-1]
        self.body = Body(channels, widths, checkpoint=checkpoint, generator=generator)
        self.head = (
            Linear(self.feature_width, n_way, generator=generator) if n_way else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating, to scores (B, N), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out
