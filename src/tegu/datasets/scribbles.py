"""Scribbles: alphabets of characters made of random strokes, drawn on the spot.

It needs no download, and as many classes as wanted come out of it. An alphabet has a few
parts; a character is some of them, turned a little and joined; an example is what one drawer
makes of it. What is drawn has the width of Omniglot's pen and is cropped as Omniglot's images
are, so that both may stand in one training set.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from typing import NamedTuple

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.datasets.images import cached_tensors
from tegu.datasets.omniglot import cropped
from tegu.datasets.splits import check_split
from tegu.errors import check_range

_VERSION = 1  # raise it when a change here changes the images

_PARTS = 16  # of an alphabet
_STROKES = 4  # of a character, at most
_STROKE_ENDS = (0.1, 0.4, 0.75)  # share of the characters of at most 1, 2, 3 strokes
_PIECES = 3  # of a stroke, at most: lines or arcs
_PIECE_ENDS = (0.4, 0.75)
_POINTS = 12  # of a piece
_DRAWN_OUT = 2.0  # at most, of the shorter side of a character
_HAND = 0.1  # how much two drawings of a stroke differ: of lengths, angles in radians
_PAPER = 105  # pixels of a side


class _Strokes(NamedTuple):
    """Numbers behind strokes of any batch shape; angles in radians, a long line has length 1."""

    heading: Tensor  # (...), where the first piece starts off
    length: Tensor  # (..., pieces), 0 for pieces that are not there
    bend: Tensor  # (..., pieces), the angle by which a piece turns on its way
    corner: Tensor  # (..., pieces), the angle between a piece and the one before


def load_scribbles(
    split: str,
    *,
    seed: int = 0,
    alphabets: int = 50,
    characters: int = 30,
    drawers: int = 20,
    size: int = 28,
) -> ClassDataset:
    """Alphabets of random characters, black (0) on white (255) as in Omniglot.

    Args:
        split: "meta_train", "meta_val" or "meta_test"; no alphabet is in two of them.
        seed: of everything drawn.
        alphabets: groups of classes, 1 or more.
        characters: classes of each alphabet, 1 or more.
        drawers: examples of each character, 1 to 200; example d of all characters
            of an alphabet is by one hand.
        size: side of the images in pixels, 8 to 105.

    Returns:
        Images (M, 1, size, size), uint8, `drawers` for each class, cropped to the ink as
        `load_omniglot(..., shrink="crop")` does. Alphabet a is the same however many there are.

    Raises:
        InputError: an unknown split or a value outside its range.
    """
    check_split(split)
    for name, value, most in (
        ("alphabets", alphabets, 10**6),
        ("characters", characters, 10**4),
        ("drawers", drawers, 200),
    ):
        check_range(name, value, 1, most, todo=f"Pass {name}=20, say.")
    check_range("size", size, 8, _PAPER, todo="Pass size=28, say.")
    made_by = importlib.metadata.version("pillow"), torch.__version__
    settings = repr((_VERSION, split, seed, alphabets, characters, drawers, size, *made_by))
    name = f"scribbles-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    images = cached_tensors(
        name,
        lambda: {
            "images": torch.cat(
                [
                    _alphabet(keys.key(seed, "scribbles", split, a), characters, drawers, size)
                    for a in range(alphabets)
                ]
            )
        },
    )["images"]
    classes = alphabets * characters
    return ClassDataset(
        name="scribbles",
        split=split,
        examples=images,
        counts=torch.full((classes,), drawers),
        class_names=tuple(f"alphabet {c // characters}/{c % characters}" for c in range(classes)),
        scale=1 / 255,
        groups=torch.arange(alphabets).repeat_interleave(characters),
    )


def _alphabet(at: Tensor, characters: int, drawers: int, size: int) -> Tensor:
    """Images (characters * drawers, 1, size, size), uint8, paper 255."""
    lines, there = _lines(at, characters, drawers)
    pens = (3 + (keys.uniform(keys.fold(at, 9), drawers) < 0.4)).tolist()
    found = [
        _drawn(strokes, shown, int(pens[i % drawers]), size)
        for i, (strokes, shown) in enumerate(
            zip(lines.flatten(0, 1), there.flatten(0, 1), strict=True)
        )
    ]
    return torch.stack(found)


def _lines(at: Tensor, characters: int, drawers: int) -> tuple[Tensor, Tensor]:
    """What is drawn of one alphabet.

    Returns:
        Points (C, D, strokes, P, 2) in pixels of the paper, and which of them
        the pen passes (C, D, strokes, P).
    """
    parts = _parts(keys.fold(keys.fold(at, 1), torch.arange(_PARTS)))
    character = keys.fold(keys.fold(at, 2), torch.arange(characters))
    stroke = keys.fold(character[:, None], torch.arange(_STROKES))  # (C, strokes)
    which = (keys.uniform(stroke, 1)[..., 0] * _PARTS).long()
    chosen = _Strokes(*(part[which] for part in parts))
    hand = keys.fold(keys.fold(at, 3), torch.arange(drawers))  # (D,)
    drawing = keys.fold(stroke[:, None], hand[:, None])  # (C, D, strokes)
    points, passed = _traced(_varied(chosen, drawing))
    large = 0.6 + 0.6 * keys.uniform(keys.fold(stroke, 1), 1)[:, None, :, :, None]
    large = large * (0.8 * _HAND * keys.normal(keys.fold(drawing, 2), 1)[..., None]).exp()
    points = _joined(points * large, passed, stroke, drawing)
    many = _at_most(keys.uniform(keys.fold(character, 7), 1)[:, 0], _STROKE_ENDS)  # (C,)
    there = passed & (torch.arange(_STROKES) < many[:, None])[:, None, :, None]
    return _on_paper(points, there, hand), there


def _parts(at: Tensor) -> _Strokes:
    """Strokes with keys (K,): lines and arcs with corners between them."""
    pieces = torch.arange(_PIECES)
    many = _at_most(keys.uniform(keys.fold(at, 1), 1)[:, 0], _PIECE_ENDS)
    length = keys.uniform(keys.fold(at, 2), _PIECES, 0.4, 1.0)
    # A circle is as long as it is bent, so that it is about as large as a line.
    bend = keys.uniform(keys.fold(at, 3), _PIECES, -1.7, 1.7) * math.pi
    bend = bend * (keys.uniform(keys.fold(at, 4), _PIECES) < 0.5)  # the others are straight
    length = length * (1 + 0.35 * bend.abs()) * (pieces < many[:, None])
    corner = 0.5 * math.pi + 0.35 * keys.normal(keys.fold(at, 5), _PIECES)
    side = torch.where(keys.bits(keys.fold(at, 6), _PIECES) < 0, -1.0, 1.0)
    corner = corner * side * (keys.uniform(keys.fold(at, 7), _PIECES) < 0.65)
    # Along the paper's sides more often than not, as in handwriting.
    eighths = (8 * keys.uniform(keys.fold(at, 8), 1)[:, 0]).floor()
    upright = keys.uniform(keys.fold(at, 10), 1)[:, 0] < 0.4
    heading = torch.where(upright, eighths - eighths % 2, eighths) * math.pi / 4
    heading = heading + 0.12 * keys.normal(keys.fold(at, 9), 1)[:, 0]
    return _Strokes(heading, length, bend, corner)


def _varied(strokes: _Strokes, drawing: Tensor) -> _Strokes:
    """Strokes of (C, S) as drawn with keys (C, D, S)."""
    heading, length, bend, corner = (part[:, None] for part in strokes)

    def noise(number: int) -> Tensor:
        return keys.normal(keys.fold(drawing, number), _PIECES)

    length = length * (_HAND * noise(3)).exp()
    bend = bend * (1 + _HAND * noise(4)) + _HAND * noise(5)
    heading = heading + 0.7 * _HAND * noise(6)[..., 0]
    return _Strokes(heading, length, bend, corner + _HAND * noise(7))


def _traced(strokes: _Strokes) -> tuple[Tensor, Tensor]:
    """Points (..., P, 2) along strokes that start at 0, and which of them are there (..., P)."""
    step = torch.full((_POINTS,), 1 / _POINTS, dtype=torch.float64)
    turn = strokes.bend[..., None] * step  # (..., pieces, points), at each step
    turn[..., 1:, 0] += strokes.corner[..., 1:]
    angle = strokes.heading[..., None] + turn.flatten(-2).cumsum(-1)
    far = (strokes.length[..., None] * step).flatten(-2)
    steps = torch.stack([angle.cos() * far, angle.sin() * far], -1)
    points = torch.cat([torch.zeros_like(steps[..., :1, :]), steps.cumsum(-2)], -2)
    passed = torch.cat([torch.ones_like(far[..., :1], dtype=torch.bool), far > 0], -1)
    return points, passed


def _joined(points: Tensor, passed: Tensor, stroke: Tensor, drawing: Tensor) -> Tensor:
    """Strokes (C, D, S, P, 2) put together: each starts on an earlier one, or apart from it."""
    last = passed.long().cumsum(-1).argmax(-1)  # (C, D, S), place of the last point

    def point(number: int, share: Tensor) -> Tensor:
        """Points (C, D, 2), at shares (C,) of the way along the strokes of a number."""
        place = (share[:, None] * last[:, :, number]).round().long()
        return points[:, :, number].gather(2, place[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]

    points = points.clone()
    slip = 0.4 * _HAND * keys.normal(keys.fold(drawing, 8), 2)
    for number in range(_STROKES):
        each = keys.fold(stroke[:, number], 3)
        draw = keys.uniform(each, 6)  # (C, 6)
        own = torch.where(draw[:, 0] < 0.6, 0.0, draw[:, 1])  # its start, or anywhere on it
        apart = (draw[:, 4:] - 0.5) * 1.6
        goal = apart[:, None].expand(-1, points.shape[1], -1)
        if number:
            shares = torch.where(draw[:, 2] < 0.4, draw[:, 3].round(), draw[:, 3])
            earlier = (keys.uniform(keys.fold(each, 1), 1)[:, 0] * number).long()
            there = torch.stack([point(other, shares) for other in range(number)])
            on = there[earlier, torch.arange(len(earlier))]
            joins = keys.uniform(keys.fold(each, 2), 1)[:, :, None] < 0.7
            middle = points[:, :, 0].mean(-2)
            goal = torch.where(joins, on, goal + middle)
        move = goal + slip[:, :, number] - point(number, own)
        points[:, :, number] += move[:, :, None]
    return points


def _on_paper(points: Tensor, there: Tensor, hand: Tensor) -> Tensor:
    """Characters (C, D, S, P, 2) in each drawer's slant and size, in the middle of the paper."""
    turn, slant, aspect = (keys.normal(keys.fold(hand, 1), 3) * torch.tensor([0.05, 0.1, 0.1])).T
    x, y = points.unbind(-1)
    turn, slant, aspect = (part[:, None, None] for part in (turn, slant, aspect))
    x, y = x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()
    points = torch.stack([(x + slant * y) * aspect.exp(), y], -1)
    low, high = _ends(points, there)
    # Most letters fill a square: the shorter side is drawn out, by as much for every drawer.
    sides = (high - low).mean(1, keepdim=True).clamp(min=1e-3)
    points = points * (sides.amax(-1, keepdim=True) / sides).sqrt().clamp(max=_DRAWN_OUT)
    low, high = _ends(points, there)
    side = 55 * (0.15 * keys.normal(keys.fold(hand, 2), 1)[:, 0]).exp()
    side = side.clamp(38, 85)[:, None, None, None]
    longest = (high - low).amax(-1, keepdim=True).clamp(min=0.1)
    return (points - (low + high) / 2) / longest * side + _PAPER / 2


def _ends(points: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of each character's box, (C, D, 1, 1, 2)."""
    away = ~there[..., None].expand_as(points)
    low = points.masked_fill(away, math.inf).amin((2, 3), keepdim=True)
    return low, points.masked_fill(away, -math.inf).amax((2, 3), keepdim=True)


def _drawn(points: Tensor, there: Tensor, pen: int, size: int) -> Tensor:
    """One image (1, size, size) of strokes (S, P, 2)."""
    import numpy as np
    from PIL import Image, ImageDraw

    paper = Image.new("L", (_PAPER, _PAPER), 255)
    draw = ImageDraw.Draw(paper)
    for line, passed in zip(points.tolist(), there.tolist(), strict=True):
        if passed[0]:
            path = [tuple(point) for point, shown in zip(line, passed, strict=True) if shown]
            draw.line(path, fill=0, width=pen, joint="curve")
    return torch.from_numpy(np.array(cropped(paper, size)))[None]


def _at_most(draw: Tensor, ends: tuple[float, ...]) -> Tensor:
    """1, 2, ... by which of the ends a draw lies below."""
    return 1 + (draw[..., None] >= torch.tensor(ends, dtype=draw.dtype)).sum(-1)
