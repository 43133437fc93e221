"""A convolutional network of any depth, whose strides shrink the image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.convolution import Conv, max_pool
from tegu.models.linear import Linear
from tegu.models.norm import BatchNorm


class Body(nn.Module):
    """Convolution, batch normalisation, ReLU, and pooling or none, as often as there are widths.

    Features are the outputs of the `last` so many layers.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        *,
        pool: bool = False,
        eps: float = 1e-5,
        last: int = 1,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.pool, self.last = pool, last
        pairs = zip(pairwise([channels, *widths]), strides, strict=True)
        self.convs = nn.ModuleList(
            Conv(a, b, stride=stride, generator=generator) for (a, b), stride in pairs
        )
        self.norms = nn.ModuleList(BatchNorm(width, eps=eps) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, D)."""
        x = x.permute(0, 2, 3, 1)
        outputs: list[Tensor] = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
            if self.pool:
                x = max_pool(x)
            outputs = [*outputs, x][-self.last :]
        features = [x.flatten(1) for x in outputs]
        return torch.cat(features, 1) if self.last > 1 else features[0]


class ConvNet(nn.Module):
    """3x3 convolutions one after another; some halve the image.

    Layers without a stride, where the image is small already, cost little and see far.

    Args:
        n_way: number of outputs N; 0 for none, so that a pass returns features.
        channels: of the images.
        size: height and width of the images, pixels.
        widths: filters of each layer.
        strides: of each layer, 1 or 2: 2 halves the image, rounded up.
        seed: of the initial weights (Glorot uniform).

    Attributes:
        body: the module from images to features.
        head: the dense layer behind it.
        feature_width: D, numbers in the features of one image.

    Reference:
        Strides in place of pooling: Springenberg et al. (2015), arXiv:1412.6806.

    Example:
        >>> ConvNet(0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 2048])
    """

    def __init__(
        self,
        n_way: int,
        *,
        channels: int = 1,
        size: int = 28,
        widths: Sequence[int] = (32, 64, 64, 128, 128),
        strides: Sequence[int] = (2, 2, 1, 2, 1),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != len(strides) or not widths:
            raise InputError(
                f"{len(widths)} widths and {len(strides)} strides for a ConvNet",
                "one of each for every layer",
                "Pass widths=(32, 64) and strides=(2, 2), say.",
            )
        if min(widths) < 1 or not set(strides) <= {1, 2}:
            raise InputError(
                f"widths {tuple(widths)} and strides {tuple(strides)} for a ConvNet",
                "1 filter or more in each layer, and strides of 1 or 2",
                "Pass widths=(32, 64) and strides=(2, 2), say.",
            )
        generator = torch.Generator().manual_seed(seed)
        for stride in strides:
            size = -(-size // stride)
        self.feature_width = size * size * widths[-1]
        self.body = Body(channels, widths, strides, generator=generator)
        self.head = (
            Linear(self.feature_width, n_way, generator=generator) if n_way else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating, to scores (B, N), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out
