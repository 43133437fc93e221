"""Shared by the image sources: decoded tensors kept on disk, and rotated classes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tegu.datasets.classes import ClassDataset
from tegu.files import cache_folder, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image


def cached_tensors(key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that are slow to build, kept in the cache folder as safetensors.

    A damaged file is built again. A cache folder that cannot be read or
    written costs time and nothing else.

    Args:
        key: file name without suffix; it names everything the tensors depend on.
        build: makes the tensors.

    Returns:
        The tensors of `build`, on the CPU.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    path = cache_folder() / f"{key}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError):
        kept = load(path.read_bytes())
        if kept.pop("digest").tolist() == list(_digest(kept)):
            return kept
    built = build()
    digest = torch.tensor(list(_digest(built)), dtype=torch.uint8)
    with contextlib.suppress(OSError):
        write_atomic(path, save({**built, "digest": digest}))
    return built


def _digest(tensors: dict[str, Tensor]) -> bytes:
    """SHA-256 of names, dtypes, shapes and contents."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.digest()


def opened(data: bytes, side: int) -> Image | None:
    """An image file's image, read to its end; None if it is no PNG or WebP of that side."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))
            if image.size != (side, side):
                return None
            image.load()
        # Damaged files raise any of these; one that claims to be vast, the last two.
        except (
            *(OSError, SyntaxError, ValueError, EOFError),
            *(Image.DecompressionBombWarning, Image.DecompressionBombError),
        ):
            return None
    return image


def with_rotations(data: ClassDataset) -> ClassDataset:
    """Each class four times, turned by 0, 90, 180 and 270 degrees anticlockwise.

    Args:
        data: images (M, C, H, H) of K classes.

    Returns:
        Images (4 M, C, H, H) of 4 K classes: the four of the first class,
        then the four of the second, and so on. Names end in /rot000 to /rot270.
        A group becomes four too: its classes upright, turned by 90 degrees, and so on.
    """
    turned = [
        torch.rot90(images, k, (-2, -1))
        for images in torch.split(data.tensor, data.counts.tolist())
        for k in range(4)
    ]
    names = (f"{name}/rot{90 * k:03d}" for name in data.class_names for k in range(4))
    groups = data.groups
    if groups is not None:
        groups = 4 * groups.repeat_interleave(4) + torch.arange(4).repeat(len(groups))
    return replace(
        data,
        examples=torch.cat(turned),
        counts=data.counts.repeat_interleave(4),
        class_names=tuple(names),
        groups=groups,
    )
