"""A small vision transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.attention import attend
from tegu.models.linear import Linear
from tegu.models.norm import LayerNorm
from tegu.models.recompute import recomputed


class Block(nn.Module):
    """Attention between all patches, then a dense network, each added to what it is given."""

    def __init__(self, width: int, heads: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.dense_norm = LayerNorm(width), LayerNorm(width)
        self.mixer = Linear(width, 3 * width, generator=generator)
        self.out = Linear(width, width, generator=generator)
        self.first = Linear(width, 4 * width, generator=generator)
        self.second = Linear(4 * width, width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, L, D) to the same shape."""
        query, key, value = self.mixer(self.attention_norm(x)).chunk(3, -1)
        all_of_them = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        x = x + self.out(attend(query, key, value, all_of_them, self.heads))
        out: Tensor = x + self.second(F.gelu(self.first(self.dense_norm(x))))
        return out


class Body(nn.Module):
    """Patches with their places, blocks, then the mean over the patches."""

    def __init__(
        self,
        channels: int,
        size: int,
        patch: int,
        width: int,
        blocks: int,
        heads: int,
        *,
        checkpoint: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.patch, self.checkpoint = patch, checkpoint
        self.embedding = Linear(channels * patch**2, width, generator=generator)
        places = torch.empty((size // patch) ** 2, width)
        self.places = nn.Parameter(places.normal_(0, 0.02, generator=generator))
        self.blocks = nn.ModuleList(Block(width, heads, generator=generator) for _ in range(blocks))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, D)."""
        side = self.patch
        x = x.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # (B, C, rows, P, columns, P)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, L, P * P * C)
        x = self.embedding(x) + self.places
        for block in self.blocks:
            x = recomputed(block, x) if self.checkpoint else block(x)
        out: Tensor = self.norm(x).mean(1)
        return out


class ViT(nn.Module):
    """Patches of an image as a sequence, and a transformer's encoder over it.

    Args:
        n_way: number of outputs N; 0 for none, so that a pass returns features.
        channels: of the images, 1 or 3.
        size: height and width of the images, pixels.
        patch: height and width of a patch, a divisor of `size`.
        width: D of a patch's vector.
        blocks: of attention and a dense network each.
        heads: of attention, a divisor of `width`. Width 192, 12 blocks and 3 heads make
            the smallest that is usual, of 5.5 million weights.
        checkpoint: run each block again for its gradient, which takes a third more time
            and a fraction of the memory.
        seed: of the initial weights.

    Attributes:
        body: the module from images to features.
        head: the dense layer behind it.
        feature_width: D.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, arXiv:2010.11929, equations 1
        to 4. Differs from it: features are the mean over the patches, as in Beyer et al. (2022),
        arXiv:2205.01580, not a class token; no dropout; Glorot's initial weights. The usual
        smallest is that of Touvron et al. (2021), DeiT-Ti, arXiv:2012.12877.

    Example:
        >>> ViT(0, size=16, patch=4, width=12, blocks=2)(torch.zeros(4, 3, 16, 16)).shape
        torch.Size([4, 12])
    """

    def __init__(
        self,
        n_way: int,
        *,
        channels: int = 3,
        size: int = 32,
        patch: int = 4,
        width: int = 192,
        blocks: int = 6,
        heads: int = 3,
        checkpoint: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, part in (("patch", patch, size), ("heads", heads, width)):
            if value < 1 or part % value:
                raise InputError(
                    f"{name} is {value}, which does not divide {part}",
                    "a divisor of the images' size" if name == "patch" else "a divisor of width",
                    f"Pass {name}={_divisor(part, value)}, say.",
                )
        generator = torch.Generator().manual_seed(seed)
        self.feature_width = width
        self.body = Body(
            channels,
            size,
            patch,
            width,
            blocks,
            heads,
            checkpoint=checkpoint,
            generator=generator,
        )
        self.head = Linear(width, n_way, generator=generator) if n_way else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating, to scores (B, N), or to features (B, D)."""
        out: Tensor = self.head(self.body(x))
        return out


def _divisor(whole: int, wanted: int) -> int:
    """The divisor that is nearest to what was wanted."""
    return min((n for n in range(1, whole + 1) if not whole % n), key=lambda n: abs(n - wanted))
