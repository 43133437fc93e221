"""One image file as a tensor of a given form, whatever its size, mode and format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from tegu.errors import InputError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LARGEST = 64_000_000  # pixels of an image, which Pillow holds in memory while it shrinks it
LARGEST_FILE = 256 << 20  # bytes
FITS = ("crop", "pad", "stretch")


@dataclass(frozen=True)
class Form:
    """What every image becomes.

    Args:
        size: height and width, pixels.
        channels: 3 for colour, 1 for grey.
        fit: how other proportions become square: "crop" cuts the middle out, "pad" adds
            white, "stretch" distorts.
    """

    kind: ClassVar[str] = "image"
    suffixes: ClassVar[frozenset[str]] = SUFFIXES

    size: int = 84
    channels: int = 3
    fit: str = "crop"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise unknown("fit", self.fit, FITS)
        if self.channels not in (1, 3):
            raise InputError(
                f"{self.channels} channels", "3 for colour or 1 for grey", "Pass channels=3."
            )
        if not 1 <= self.size <= 4096:
            raise InputError(f"images of {self.size} pixels", "1 to 4,096", "Pass size=84, say.")

    @property
    def bytes(self) -> int:
        """Of one image."""
        return self.channels * self.size**2

    def decode(self, file: str) -> Tensor:
        """An image file as bytes (C, size, size).

        Turned as its EXIF data say; transparent parts are white; 16 bits become 8; of an
        animation, the first picture.

        Raises:
            InputError: the file is no image, damaged, or too large.
        """
        from PIL import Image, ImageOps

        try:
            if not os.path.isfile(file):
                raise ValueError("a broken link" if os.path.islink(file) else "no such file")
            if (size := os.stat(file).st_size) > LARGEST_FILE:
                raise ValueError(f"{size:,} bytes, more than {LARGEST_FILE:,}")
            with Image.open(file, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > LARGEST:
                    raise ValueError(f"{width} x {height} pixels, more than {LARGEST:,}")
                if opened.format == "JPEG":
                    # Decoded at an eighth of the size, say, where that will do.
                    mode, twice = "RGB" if self.channels == 3 else "L", 2 * self.size
                    opened.draft(mode, (twice, twice))
                image = _eight_bits(ImageOps.exif_transpose(opened), self.channels)
            return _fitted(image, self)
        # Whatever a decoder raises, it is the file that is wrong: decoders of seven formats raise
        # a dozen types, from struct.error to Pillow's own.
        except Exception as failure:
            reason = str(failure) or type(failure).__name__
            raise InputError(
                f"{file} cannot be read as an image ({reason})",
                f"a whole file ({', '.join(FORMATS)}) of {LARGEST:,} pixels at most",
                "Replace or remove it; `tegu pack --skip-broken` leaves such files out.",
            ) from failure


def _eight_bits(image: Image, channels: int) -> Image:
    """In colour or grey, on white."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("pixels that are floating-point numbers")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of more than 16 bits")
        # A grey image of 16 bits; Pillow would cut off all above 255.
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def _fitted(image: Image, form: Form) -> Tensor:
    from PIL import ImageOps
    from PIL.Image import Resampling

    square, how = (form.size, form.size), Resampling.BILINEAR
    if form.fit == "crop":
        image = ImageOps.fit(image, square, how)
    elif form.fit == "pad":
        image = ImageOps.pad(image, square, how, color="white")
    elif image.size != square:
        image = image.resize(square, how)
    pixels = torch.from_numpy(np.array(image)).reshape(form.size, form.size, form.channels)
    return pixels.permute(2, 0, 1).contiguous()
