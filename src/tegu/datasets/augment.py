"""Variations of training images, each a function of the image and its key alone.

Every function takes images (B, C, H, W), floating, from 0 to 1 where colours
matter, and keys (B,), int64, and returns images of the same shape, dtype and
device. An image comes out the same alone or in a batch, on one process or eight.

>>> from tegu import keys
>>> vary = compose(crop, flip)
>>> images, each = torch.rand(8, 3, 32, 32), keys.fold(keys.key(0), torch.arange(8))
>>> torch.equal(vary(images, each)[5:6], vary(images[5:6], each[5:6]))
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.errors import InputError, unknown

Augment = Callable[[Tensor, Tensor], Tensor]
NODES = 5  # rows and columns of an elastic grid


def flip(images: Tensor, key: Tensor) -> Tensor:
    """Half of the images mirrored, left to right."""
    mirrored = (keys.bits(key, 1) < 0).reshape(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(-1), images)


def crop(images: Tensor, key: Tensor, *, pad: int = 4, mode: str = "zeros") -> Tensor:
    """A window of the image's own size, anywhere in the padded image.

    Args:
        images: shape (B, C, H, W).
        key: shape (B,).
        pad: pixels on each side, 0 or more; less than a side where mirrored.
        mode: "zeros", or "reflect" for the image mirrored at its edge.
    """
    if mode not in ("zeros", "reflect"):
        raise unknown("padding", mode, ["zeros", "reflect"])
    height, width = images.shape[-2:]
    if pad < 0 or (mode == "reflect" and pad >= min(height, width)):
        raise InputError(
            f"a padding of {pad} pixels around {height} x {width}",
            "0 or more, and less than a side with mode='reflect'",
            "Pass pad=4, say.",
        )
    padded = F.pad(images, [pad] * 4, mode="constant" if mode == "zeros" else mode)
    corner = (keys.uniform(key, 2) * (2 * pad + 1)).long()  # (B, 2)
    rows = corner[:, :1] + torch.arange(height, device=images.device)
    columns = corner[:, 1:] + torch.arange(width, device=images.device)
    channels = images.shape[1]
    out = padded.gather(2, rows[:, None, :, None].expand(-1, channels, -1, padded.shape[-1]))
    return out.gather(3, columns[:, None, None].expand(-1, channels, height, -1))


def jitter(
    images: Tensor,
    key: Tensor,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
) -> Tensor:
    """Brightness, then contrast, then saturation, each by a factor around 1.

    Args:
        images: shape (B, C, H, W), C 1 or 3, values from 0 to 1; they stay there.
        key: shape (B,).
        brightness: the factor is uniform within 1 plus or minus this, 0 to 1.
        contrast: likewise, of the distance to the image's mean grey.
        saturation: likewise, of the distance to the pixel's own grey.

    Reference:
        Chen et al. (2019), arXiv:1904.04232, and its published code: 0.4, in this
        order, as Pillow's enhancers. Differs from it: nothing is rounded to 8 bits.
    """
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"images of {images.shape[1]} channels",
            "1 channel, or 3 for colour",
            "Leave jitter out.",
        )
    ranges = (brightness, contrast, saturation)
    if not all(0 <= each <= 1 for each in ranges):
        raise InputError(
            f"jitter by {brightness}, {contrast}, {saturation}", "numbers from 0 to 1", "Pass 0.4."
        )
    draw = keys.uniform(key, 3, -1.0, 1.0)
    factors = torch.stack([1 + each * draw[:, i] for i, each in enumerate(ranges)], 1)
    factors = factors.to(images.dtype)[:, :, None, None, None]
    x = (images * factors[:, 0]).clamp(0, 1)
    x = _mixed(_grey(x).mean((-2, -1), keepdim=True), x, factors[:, 1])
    return _mixed(_grey(x), x, factors[:, 2])


def _grey(x: Tensor) -> Tensor:
    """Brightness as Rec. 601 weighs colours: (B, C, H, W) to (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def _mixed(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (base + factor * (x - base)).clamp(0, 1)


def affine(
    images: Tensor,
    key: Tensor,
    *,
    degrees: float = 10.0,
    shear: float = 0.3,
    scale: tuple[float, float] = (0.8, 1.2),
    shift: float = 0.02,
    elastic: float = 0.0,
    fill: float = 0.0,
) -> Tensor:
    """Images turned, sheared, scaled, shifted and bent, bilinear between pixels.

    A point at (x, y) pixels from the middle goes to scale * turn * (x + a y, b x + y)
    plus a shift; each number is uniform in its range. Before all of that the image is bent:
    `NODES` x `NODES` nodes move by random distances, and what lies between them follows smoothly.

    Args:
        images: shape (B, C, H, W).
        key: shape (B,).
        degrees: of the turn, within plus or minus this.
        shear: a and b, within plus or minus this, below 1.
        scale: the least and the largest factor, above 0.
        shift: as a share of the side, within plus or minus this.
        elastic: pixels that a node moves along each axis, within plus or minus this.
        fill: what comes in from beyond the edge; paper is 1 in Omniglot.

    Reference:
        Koch et al. (2015), Siamese neural networks for one-shot image recognition,
        section 3.2, whose ranges are the defaults (2 of 105 pixels). Differs from
        it: every component is always there, theirs each half of the time. Bent images:
        Simard, Steinkraus, Platt (2003), Best practices for convolutional neural networks;
        there, a random field is made smooth by a Gaussian.
    """
    low, high = scale
    if not 0 <= shear < 1 or not 0 < low <= high:
        raise InputError(
            f"shear {shear} and scale {scale}",
            "a shear from 0 and below 1, and two factors above 0, the lower first",
            "Pass shear=0.3 and scale=(0.8, 1.2), say.",
        )
    height, width = images.shape[-2:]
    draw = keys.uniform(key, 6, -1.0, 1.0)
    turn, a, b = math.radians(degrees) * draw[:, 0], shear * draw[:, 1], shear * draw[:, 2]
    size = (low + high) / 2 + (high - low) / 2 * draw[:, 3]
    cos, sin = turn.cos(), turn.sin()
    # Where a pixel of the new image comes from: the way back, so the inverses in reverse.
    y, x = (
        torch.arange(n, device=images.device, dtype=torch.float64) - (n - 1) / 2
        for n in (height, width)
    )
    x = (x - shift * width * draw[:, 4, None])[:, None]  # (B, 1, W)
    y = (y - shift * height * draw[:, 5, None])[:, :, None]  # (B, H, 1)
    cos, sin, size, a, b = (v[:, None, None] for v in (cos, sin, size, a, b))
    x, y = (cos * x + sin * y) / size, (cos * y - sin * x) / size
    x, y = (x - a * y) / (1 - a * b), (y - b * x) / (1 - a * b)
    x, y = (2 * x / width).to(images.dtype), (2 * y / height).to(images.dtype)
    if elastic:
        nodes = keys.uniform(keys.fold(key, 1), 2 * NODES**2, -elastic, elastic)
        bent = _smooth(nodes.reshape(-1, NODES, NODES).to(images.dtype), height, width)
        x, y = x + bent[::2] * (2 / width), y + bent[1::2] * (2 / height)
    grid = torch.stack([x, y], -1)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def _smooth(nodes: Tensor, height: int, width: int) -> Tensor:
    """Bicubic between nodes, the outer ones in the corners: (B, n, n) to (B, height, width).

    A product along each axis takes a seventh of the time of torch's own on a processor.
    """
    n = nodes.shape[-1]
    ones = torch.eye(n, dtype=nodes.dtype, device=nodes.device)[None, None]
    down, across = (
        F.interpolate(ones, (size, n), mode="bicubic", align_corners=True)[0].expand(
            len(nodes), -1, -1
        )
        for size in (height, width)
    )  # (B, size, n)
    # One small product each: those of a batch as a whole round as its size has it.
    return torch.bmm(down, torch.bmm(nodes, across.mT))


def spectral(
    images: Tensor, key: Tensor, *, shift: float = 0.1, bands: float = 0.15, moments: float = 0.15
) -> Tensor:
    """Pictures of sounds moved in time, with a stripe of pitches and one of time silent.

    Args:
        images: shape (B, C, pitches, moments); silence is 0.
        key: shape (B,).
        shift: as a share of the time, within plus or minus this, 0 to 1; silence follows.
        bands: the widest stripe of pitches, as a share of all, 0 to 1; widths are uniform.
        moments: likewise, of time.

    Reference:
        Park et al. (2019), SpecAugment, arXiv:1904.08779, frequency and time masking, one of
        each; a shift in place of its time warping.
    """
    if not all(0 <= share <= 1 for share in (shift, bands, moments)):
        raise InputError(
            f"a shift of {shift} and stripes of {bands} and {moments}",
            "shares from 0 to 1",
            "Pass 0.1, say.",
        )
    height, width = images.shape[-2:]
    draw = keys.uniform(key, 5)
    by = ((2 * draw[:, :1] - 1) * shift * width).round().long()  # (B, 1)
    source = torch.arange(width, device=images.device) - by  # (B, W)
    there = (source >= 0) & (source < width)
    at = source.clamp(0, width - 1)[:, None, None].expand_as(images)
    moved = images.gather(3, at) * there[:, None, None]
    silent = _stripe(draw[:, 1:3], bands, height)[:, None, :, None]
    silent = silent | _stripe(draw[:, 3:], moments, width)[:, None, None]
    return moved.masked_fill(silent, 0)


def _stripe(draw: Tensor, widest: float, size: int) -> Tensor:
    """Positions within a stripe of random width and place: (B, 2) to (B, size), bool."""
    wide = (draw[:, :1] * widest * size).round()
    first = (draw[:, 1:] * (size - wide + 1)).floor()
    at = torch.arange(size, device=draw.device)
    return (at >= first) & (at < first + wide)


def compose(*steps: Augment) -> Augment:
    """One after another, each with a key of its own."""
    return partial(_in_turn, steps)


def _in_turn(steps: Sequence[Augment], images: Tensor, key: Tensor) -> Tensor:
    for i, step in enumerate(steps):
        images = step(images, keys.fold(key, i))
    return images


def standard(channels: int, *, paper: float = 1.0) -> Augment:
    """What recipes call "standard" for images of 32 or 28 pixels.

    Three channels: `crop`, `flip` and `jitter`, as Lee et al. (2019),
    arXiv:1904.03758, trained on CIFAR-FS and FC100. One channel, ink on paper of
    brightness `paper`: `affine`, since a mirrored character is another one.
    """
    return compose(crop, flip, jitter) if channels == 3 else partial(affine, fill=paper)
