"""Glyphs: characters of many scripts in the fonts that matplotlib ships, drawn on the spot.

It needs no download. Nothing here is handwriting: a class is a character, and its
examples differ in typeface, slant, weight, size, place and a slight bend.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.datasets.classes import ClassDataset
from tegu.datasets.images import cached_tensors
from tegu.errors import InputError, check_range, unknown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Drawings = dict[int, dict[str, NDArray[np.uint8]]]  # code point -> face -> image

_VERSION = 1  # raise it when a change here changes the images

# Share of the characters up to which each split reaches.
_SPLIT_ENDS = {"meta_train": 0.64, "meta_val": 0.76, "meta_test": 1.0}

_DEJAVU = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
_FACES = (
    *_DEJAVU,
    *(f"{family}-Bold" for family in _DEJAVU),
    *("DejaVuSans-Oblique", "DejaVuSansMono-Oblique", "DejaVuSerif-Italic"),
    *("DejaVuSans-BoldOblique", "DejaVuSansMono-BoldOblique", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
_MIN_FACES = 4
_LETTERS = ("Lu", "Ll", "Lo", "Nd")  # Unicode categories
_MATHEMATICS = range(0x2200, 0x2300)

_DRAWN = 64  # side of the drawings that the examples are made from, pixels
_ALIKE = 0.86  # correlation of two drawings from which they count as one character

# What varies between the examples of a class: each uniform within plus or minus this,
# but for the bend, which is normal.
_TURN = 15.0  # degrees
_SHEAR = 0.15
_SIZE, _SIZE_SPREAD = 0.74, 0.14  # share of the image's side
_ASPECT = 0.15  # half the logarithm of width by height
_REACH = 0.9  # share of the image's side within which the shift keeps an upright character
_BEND = 0.06  # of half the image's side, at 3 x 3 points with a smooth surface between
_INK, _INK_SPREAD = 0.45, 0.1  # the grey level at which ink begins: less is bolder


def load_glyphs(split: str, *, seed: int = 0, size: int = 28, per_class: int = 20) -> ClassDataset:
    """One split of the characters, black (0) on white (255) as in Omniglot.

    Characters that look alike in any face (Latin A, Greek Alpha, Cyrillic A; but
    O and o too) are one class, named after the first of them. The split of a
    character depends on the seed and its code point alone.

    Args:
        split: "meta_train" (about 64 % of some 670 characters), "meta_val"
            (12 %) or "meta_test" (24 %).
        seed: of the split and of the drawings.
        size: side of the images in pixels, 8 to 64.
        per_class: examples of each character, 1 to 200.

    Returns:
        Images (M, 1, size, size), uint8, `per_class` for each class. The same
        arguments give the same bits on one machine; other versions of
        matplotlib, Pillow or torch may round a grey level differently.

    Raises:
        InputError: an unknown split, a value outside its range, or a matplotlib
            without its fonts.
    """
    if split not in _SPLIT_ENDS:
        raise unknown("split", split, _SPLIT_ENDS)
    check_range("size", size, 8, _DRAWN, todo="Pass size=28, say.")
    check_range("per_class", per_class, 1, 200, todo="Pass per_class=20, say.")
    made_by = [importlib.metadata.version(name) for name in ("matplotlib", "pillow", "numpy")]
    settings = repr((_VERSION, seed, size, per_class, *made_by, torch.__version__))
    tensors = cached_tensors(
        f"glyphs-{hashlib.sha256(settings.encode()).hexdigest()[:16]}",
        lambda: _draw_classes(seed, size, per_class),
    )
    points = [int(point) for point in tensors["points"]]
    rows = [i for i, point in enumerate(points) if _split(seed, point) == split]
    examples = tensors["images"][torch.tensor(rows)]
    return ClassDataset(
        name="glyphs",
        split=split,
        examples=examples.flatten(0, 1),
        counts=torch.full((len(rows),), per_class),
        class_names=tuple(f"U+{points[i]:04X} {unicodedata.name(chr(points[i]))}" for i in rows),
        scale=1 / 255,
    )


def _hash(purpose: str, seed: int, point: int) -> int:
    """64 bits that depend on nothing but these three."""
    text = f"{purpose} {seed} {point}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _split(seed: int, point: int) -> str:
    share = _hash("split", seed, point) / 2**64
    return next(name for name, end in _SPLIT_ENDS.items() if share < end)


def _draw_classes(seed: int, size: int, per_class: int) -> dict[str, Tensor]:
    """Code points (K,), int64, and images (K, per_class, 1, size, size), uint8."""
    import numpy as np

    drawings = _drawings()
    points = _distinct(drawings)
    sources, moves, bends = [], [], []
    for point in points:
        # A generator for each character: one more or less leaves the others as they are.
        rng = np.random.default_rng(_hash("draw", seed, point))
        faces = list(drawings[point].values())
        rounds = -(-per_class // len(faces))  # each face once before any comes again
        order = np.concatenate([rng.permutation(len(faces)) for _ in range(rounds)])
        sources += [faces[face] for face in order[:per_class]]
        moves.append(rng.uniform(-1, 1, (per_class, 7)))
        bends.append(rng.standard_normal((per_class, 2, 3, 3)))
    move = np.concatenate(moves)
    each = (
        torch.from_numpy(np.stack(sources)[:, None]),
        torch.from_numpy(_placements(move).astype(np.float32)),
        torch.from_numpy((_BEND * np.concatenate(bends)).astype(np.float32)),
        torch.from_numpy((_INK + _INK_SPREAD * move[:, 6]).astype(np.float32)),
    )
    batches = zip(*(torch.split(part, 512) for part in each), strict=True)
    images = torch.cat([_warp(*batch, size=size) for batch in batches])
    return {
        "points": torch.tensor(points),
        "images": images.reshape(len(points), per_class, 1, size, size),
    }


def _drawings() -> Drawings:
    """Each candidate character in each face that has it, ink 255, filling the square."""
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts: dict[str, tuple[Any, set[int]]] = {}
    for face in _FACES:
        path = folder / f"{face}.ttf"
        if not path.is_file():
            raise InputError(
                f"matplotlib's font {path} is missing",
                f"the fonts that matplotlib {matplotlib.__version__} ships",
                "Install matplotlib from PyPI: pip install --force-reinstall matplotlib",
            )
        # The basic layout draws the same with and without Pillow's optional Raqm.
        font = ImageFont.truetype(str(path), 48, layout_engine=ImageFont.Layout.BASIC)
        fonts[face] = (font, set(FT2Font(str(path)).get_charmap()))
    drawings: Drawings = {}
    for point in sorted(set[int]().union(*(covered for _, covered in fonts.values()))):
        if _is_candidate(point):
            tried = {
                face: _draw(font, chr(point))
                for face, (font, covered) in fonts.items()
                if point in covered
            }
            inked = {face: image for face, image in tried.items() if image is not None}
            if len(inked) >= _MIN_FACES:
                drawings[point] = inked
    return drawings


def _is_candidate(point: int) -> bool:
    """Whether a character stands by itself: no accent added, no variant of another."""
    kind = unicodedata.category(chr(point)) in _LETTERS or point in _MATHEMATICS
    return kind and point < 0x1D400 and not unicodedata.decomposition(chr(point))


def _draw(font: Any, character: str) -> NDArray[np.uint8] | None:
    """A character scaled to fill the square, (64, 64), ink 255; None if there is no ink."""
    import numpy as np
    from PIL import Image

    mask = font.getmask(character, mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask)) if all(mask.size) else None
    box = image.point([255 * (grey > 64) for grey in range(256)]).getbbox() if image else None
    if image is None or box is None:
        return None
    image = image.crop(box)
    scale = _DRAWN / max(image.size)
    width, height = (min(_DRAWN, max(1, round(side * scale))) for side in image.size)
    square = Image.new("L", (_DRAWN, _DRAWN))
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(scaled, ((_DRAWN - width) // 2, (_DRAWN - height) // 2))
    return np.asarray(square)


def _distinct(drawings: Drawings) -> list[int]:
    """The characters that look like no earlier one in any face, by code point."""
    import numpy as np

    points = sorted(drawings)
    likeness = np.zeros((len(points), len(points)))
    for face in _FACES:
        rows = [i for i, point in enumerate(points) if face in drawings[point]]
        stack = torch.from_numpy(np.stack([drawings[points[i]][face] for i in rows])[:, None])
        # Blurred, so that a stroke a little beside another still counts as the same.
        seen = F.avg_pool2d(F.avg_pool2d(stack.to(torch.float64), 4), 3, 1, 1).flatten(1)
        seen = F.normalize(seen - seen.mean(1, keepdim=True))
        alike = (seen @ seen.T).numpy()
        block = np.ix_(rows, rows)
        likeness[block] = np.maximum(likeness[block], alike)
    kept: list[int] = []
    for i in range(len(points)):
        if not (likeness[i, kept] >= _ALIKE).any():
            kept.append(i)
    return [points[i] for i in kept]


def _placements(move: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine maps from image to drawing, (M, 2, 3), from numbers (M, 7) in -1 to 1."""
    import numpy as np

    turn, shear = np.radians(_TURN) * move[:, 0], _SHEAR * move[:, 1]
    size, aspect = _SIZE + _SIZE_SPREAD * move[:, 2], np.exp(_ASPECT * move[:, 3])
    shift = move[:, 4:6] * np.maximum(_REACH - size, 0.05)[:, None]
    cos, sin, one, nil = np.cos(turn), np.sin(turn), np.ones_like(turn), np.zeros_like(turn)
    rotated = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    sheared = np.stack([one, shear, nil, one], -1).reshape(-1, 2, 2)
    scaled = np.stack([1 / (size * aspect), nil, nil, aspect / size], -1).reshape(-1, 2, 2)
    linear = scaled @ sheared @ rotated
    return np.concatenate([linear, -linear @ shift[:, :, None]], -1)


def _warp(drawing: Tensor, placement: Tensor, bend: Tensor, ink: Tensor, *, size: int) -> Tensor:
    """Examples from drawings.

    Args:
        drawing: shape (M, 1, 64, 64), uint8, ink 255.
        placement: shape (M, 2, 3), float32, affine maps from image to drawing,
            both with sides from -1 to 1.
        bend: shape (M, 2, 3, 3), float32, displacements at a grid of points.
        ink: shape (M,), float32, the grey level (0 to 1) at which ink begins.
        size: side of the images in pixels.

    Returns:
        Shape (M, 1, size, size), uint8, ink 0.
    """
    fine = 2 * size  # drawn at twice the size, then averaged: smooth edges
    bent = F.interpolate(bend, (fine, fine), mode="bicubic", align_corners=True)
    grid = F.affine_grid(placement, [len(drawing), 1, fine, fine], align_corners=False)
    grid = grid + bent.permute(0, 2, 3, 1)
    grey = F.grid_sample(drawing.to(torch.float32) / 255, grid, align_corners=False)
    grey = F.avg_pool2d(grey, 3, 1, 1)
    grey = ((grey - ink[:, None, None, None]) * 3 + 0.5).clamp(0, 1)
    return 255 - (255 * F.avg_pool2d(grey, 2)).round().to(torch.uint8)
