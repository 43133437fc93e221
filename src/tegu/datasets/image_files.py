"""One image file as a tensor of a given form, whatever its size, mode and format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from tegu.errors import InputError, unknown
from tegu.files import check_file

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LARGEST = 64_000_000  # pixels of an image, which Pillow holds in memory while it shrinks it
BITS = 258  # the tag of a TIFF file for the bits of a pixel
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
            check_file(file, LARGEST_FILE)
            with Image.open(file, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > LARGEST:
                    raise ValueError(f"{width} x {height} pixels, more than {LARGEST:,}")
                if opened.format in ("JPEG", "MPO"):  # the latter holds several pictures
                    # Decoded at an eighth of the size, say, where that will do.
                    mode, twice = "RGB" if self.channels == 3 else "L", 2 * self.size
                    opened.draft(mode, (twice, twice))
                bits = max(getattr(opened, "tag_v2", {}).get(BITS, (16,)))  # TIFF's own word
                image = _eight_bits(ImageOps.exif_transpose(opened), self.channels, bits)
            return _pixels(_on_white(_square(image, self)), self)
        # Whatever a decoder raises, it is the file that is wrong: decoders of seven formats raise
        # a dozen types, from struct.error to Pillow's own.
        except Exception as failure:
            reason = str(failure) or type(failure).__name__
            raise InputError(
                f"{file} cannot be read as an image ({reason})",
                f"a whole file ({', '.join(FORMATS)}) of {LARGEST:,} pixels at most",
                "Replace or remove it; `tegu pack --skip-broken` leaves such files out.",
            ) from failure


def _eight_bits(image: Image, channels: int, bits: int) -> Image:
    """In colour or grey, or in colour with transparency; of grey pixels of so many bits."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("pixels that are floating-point numbers")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if bits > 16 or values.max() >= 1 << bits:
            raise ValueError("pixels of more than 16 bits")
        if values.min() < 0:
            raise ValueError("pixels below 0")
        # Pillow would cut off all above 255.
        image = Image.fromarray((values >> max(0, bits - 8)).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def _square(image: Image, form: Form) -> Image:
    from PIL import Image, ImageOps
    from PIL.Image import Resampling

    square, how = (form.size, form.size), Resampling.BILINEAR
    if form.fit == "crop":
        return ImageOps.fit(image, square, how)
    if form.fit == "stretch":
        return image if image.size == square else image.resize(square, how)
    # Pillow's own `pad` leaves nothing of an image that is longer than 2 * size times its height.
    width, height = (max(1, round(side / max(image.size) * form.size)) for side in image.size)
    canvas = Image.new(image.mode, square, "white")
    middle = round((form.size - width) / 2), round((form.size - height) / 2)
    canvas.paste(image.resize((width, height), how), middle)
    return canvas


def _on_white(image: Image) -> Image:
    """Small by now: a large picture is not held three times over."""
    from PIL import Image

    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _pixels(image: Image, form: Form) -> Tensor:
    image = image.convert("RGB" if form.channels == 3 else "L")
    pixels = torch.from_numpy(np.array(image)).reshape(form.size, form.size, form.channels)
    return pixels.permute(2, 0, 1).contiguous()
