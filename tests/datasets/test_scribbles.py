"""Scribbles: strokes as they are meant, the same bits each time, characters that can be told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets import ClassDataset, load_scribbles, scribbles
from tegu.errors import InputError

SMALL = {"alphabets": 2, "characters": 5, "drawers": 3}


def stroke(**pieces: list[float]) -> tuple[Tensor, Tensor]:
    """Points of one stroke of two pieces, along its way, and which are there."""
    given = {"length": [1.0, 0.0], "bend": [0.0, 0.0], "corner": [0.0, 0.0], **pieces}
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}
    heading = torch.zeros((), dtype=torch.float64)
    return scribbles._traced(scribbles._Strokes(heading, **parts))


def test_a_straight_piece_is_a_line() -> None:
    points, there = stroke(length=[2.0, 0.0])
    points = points[there]
    assert len(points) == 1 + scribbles._POINTS
    torch.testing.assert_close(points[-1], torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert points[:, 1].abs().max() == 0


def test_a_piece_that_turns_round_once_is_a_circle() -> None:
    """Its circumference is the piece's length, so it is length / pi wide; and it is closed."""
    points, there = stroke(length=[3.0, 0.0], bend=[2 * math.pi, 0.0])
    points = points[there]
    torch.testing.assert_close(points[0], points[-1], atol=1e-9, rtol=0)
    assert float(points[:, 1].max()) == pytest.approx(3 / math.pi, rel=0.03)


def test_a_corner_lies_between_two_pieces() -> None:
    points, there = stroke(length=[1.0, 1.0], corner=[9.0, math.pi / 2])
    assert there.all()
    torch.testing.assert_close(points[-1], torch.tensor([1.0, 1.0], dtype=torch.float64))


def test_strokes_start_on_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without slips of the pen, 0.7 of the later strokes touch an earlier one."""
    monkeypatch.setattr(scribbles, "_HAND", 0.0)
    points, there = scribbles._lines(keys.key(0), 60, 1)
    touching = total = 0
    for one, seen in zip(points[:, 0], there[:, 0], strict=True):
        for number in range(1, len(one)):
            if seen[number].any():
                earlier = one[:number][seen[:number]]
                gap = torch.cdist(one[number][seen[number]], earlier).min()
                touching, total = touching + int(gap < 1e-6), total + 1
    assert total > 80
    assert touching / total == pytest.approx(0.7, abs=0.15)


def test_the_same_arguments_give_the_same_bits() -> None:
    one = load_scribbles("meta_train", **SMALL)
    assert torch.equal(one.tensor, load_scribbles("meta_train", **SMALL).tensor)
    others: list[dict[str, Any]] = [{"seed": 1}, {"alphabets": 3}]
    other, more = (load_scribbles("meta_train", **{**SMALL, **change}) for change in others)
    assert not torch.equal(one.tensor, other.tensor)
    assert torch.equal(one.tensor, more.tensor[: len(one.tensor)])
    apart = [load_scribbles(split, **SMALL).tensor for split in ("meta_val", "meta_test")]
    assert not torch.equal(*apart)
    assert not torch.equal(one.tensor, apart[0])


def nearest(data: ClassDataset) -> float:
    """Share of drawings whose nearest other one, blurred, is of the same character."""
    images = torch.nn.functional.avg_pool2d(255.0 - data.tensor, 5, 2).flatten(1)
    apart = torch.cdist(images, images).fill_diagonal_(math.inf)
    labels = torch.arange(data.n_classes).repeat_interleave(int(data.counts[0]))
    return float((labels[apart.argmin(1)] == labels).float().mean())


def test_drawings_of_a_character_are_alike() -> None:
    data = load_scribbles("meta_train", alphabets=1, characters=20, drawers=10)
    assert nearest(data) > 0.5  # chance is 0.045


def test_images_are_cropped_to_their_ink() -> None:
    data = load_scribbles("meta_val", **SMALL, size=32)
    assert data.tensor.shape == (2 * 5 * 3, 1, 32, 32)
    assert data.tensor.dtype == torch.uint8
    assert data.groups is not None
    assert data.groups.tolist() == [0] * 5 + [1] * 5
    assert data.class_names[5] == "alphabet 1/0"
    ink = data.tensor[:, 0] < 128
    sides = torch.stack([ink.any(1).sum(1), ink.any(2).sum(1)]).amax(0)
    assert sides.min() >= 20
    assert sides.max() <= 30


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"split": "train"}, "unknown split 'train'"),
        ({"alphabets": 0}, "alphabets is 0; expected 1 to 1,000,000"),
        ({"characters": 0}, "characters is 0"),
        ({"drawers": 201}, "drawers is 201; expected 1 to 200"),
        ({"size": 7}, "size is 7; expected 8 to 105"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_scribbles(**{"split": "meta_train", **SMALL, **settings})
