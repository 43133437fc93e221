"""The four-layer convolutional network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tegu.errors import InputError, check_range
from tegu.models.convnet import Body
from tegu.models.linear import Linear


class Conv4(nn.Module):
    """Conv-4, with strides as Reptile used it on Omniglot, or with max-pooling, the classic.

    Args:
        n_way: number of outputs N; 0 for none, so that a pass returns features.
        channels: of the images, 1 or 3.
        size: height and width of the images, pixels.
        width: filters per layer, one number or four; R2D2 had (96, 192, 384, 512).
        pool: False: convolutions of stride 2 (28 pixels become 2 x 2). True:
            stride 1, and a 2 x 2 max-pooling after each ReLU (28 pixels become
            1 x 1, 32 become 2 x 2, 84 become 5 x 5).
        last: how many layers, from the last back, have their outputs among the features.
        seed: of the initial weights (Glorot uniform, as TensorFlow's layers).

    Attributes:
        body: the module from images to features.
        head: the dense layer behind it.
        feature_width: D, numbers in the features of one image.

    Reference:
        pool=False: Nichol et al. (2018), arXiv:1803.02999, and its published code.
        Differs from it: the convolutions have no bias, which batch
        normalisation would cancel; where a size is even, the row and column
        of padding are at the top left, not at the bottom right.
        pool=True: Vinyals et al. (2016), arXiv:1606.04080, section 4.1; Snell et
        al. (2017), arXiv:1703.05175, section 3. Differs from their code: no bias,
        and Glorot's initial weights. The variance's epsilon is 1e-5, torch's; it
        is 1e-3, TensorFlow's, with strides. R2D2's network (Bertinetto et al.
        2019, arXiv:1805.08136) has last=2, and leaky ReLUs, dropout and a stride
        of 1 in its last pools, which are not here.

    Example:
        >>> Conv4(5, channels=3, size=32, pool=True).feature_width
        256
        >>> Conv4(0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        n_way: int,
        *,
        channels: int = 1,
        size: int = 28,
        width: int | Sequence[int] = 64,
        pool: bool = False,
        last: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        widths = [width] * 4 if isinstance(width, int) else list(width)
        if len(widths) != 4:
            raise InputError(
                f"{len(widths)} widths for a Conv4",
                "one for all layers, or four",
                "Pass width=64, or width=(96, 192, 384, 512).",
            )
        if pool and size < 16:
            raise InputError(
                f"images of {size} pixels for a Conv4 with pooling",
                "16 or more, since it halves them four times",
                "Pass pool=False, or larger images.",
            )
        generator = torch.Generator().manual_seed(seed)
        check_range("last", last, 1, 4, todo="Pass last=1, or 2.")
        areas: list[int] = []
        for _ in widths:
            size = size // 2 if pool else -(-size // 2)
            areas.append(size * size * widths[len(areas)])
        self.feature_width = sum(areas[-last:])
        strides, eps = ([1] * 4, 1e-5) if pool else ([2] * 4, 1e-3)
        self.body = Body(
            channels, widths, strides, pool=pool, eps=eps, last=last, generator=generator
        )
        self.head = (
            Linear(self.feature_width, n_way, generator=generator) if n_way else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating, to scores (B, N), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out
