"""Variations of images: against Pillow and plain loops, and that the key alone decides them."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from tegu import keys
from tegu.datasets.augment import affine, compose, crop, flip, jitter, standard
from tegu.errors import InputError


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def keys_of(n: int) -> Tensor:
    return keys.fold(keys.key(3, "augment"), torch.arange(n))


ALL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flip": flip,
    "crop": crop,
    "crop, reflect": partial(crop, pad=3, mode="reflect"),
    "jitter": jitter,
    "affine": partial(affine, fill=1.0),
    "elastic": partial(affine, fill=1.0, elastic=2.0),
    "colour": standard(3),
    "all": compose(flip, affine, jitter, crop),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_s_key_alone_decides(name: str, dtype: torch.dtype) -> None:
    images, each, vary = draw(9, 3, 11, 12, dtype=dtype), keys_of(9), ALL[name]
    before = images.clone()
    found = vary(images, each)
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert torch.equal(images, before)
    assert not torch.equal(found, images)
    for i in (0, 4, 8):
        assert torch.equal(vary(images[i : i + 1], each[i : i + 1])[0], found[i])
    back = vary(images.flip(0), each.flip(0)).flip(0)
    assert torch.equal(back, found)
    same = vary(images[:1].expand(9, -1, -1, -1), each)
    assert len(torch.unique(same.flatten(1), dim=0)) > (1 if name == "flip" else 7)


def test_half_of_the_images_are_mirrored() -> None:
    images = draw(2000, 1, 2, 3)
    found = flip(images, keys_of(2000))
    turned = (found == images.flip(-1)).flatten(1).all(1)
    assert bool((turned | (found == images).flatten(1).all(1)).all())
    assert abs(int(turned.sum()) - 1000) < 5 * 500**0.5


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crops_are_windows_of_the_padded_image(mode: str) -> None:
    """Each of the 5 x 5 windows, and no other, about equally often."""
    image = draw(1, 2, 4, 6)
    how: dict[str, Any] = {"mode": "constant"} if mode == "zeros" else {"mode": "reflect"}
    wide = np.pad(image[0].numpy(), ((0, 0), (2, 2), (2, 2)), **how)
    windows = {wide[:, i : i + 4, j : j + 6].tobytes(): (i, j) for i in range(5) for j in range(5)}
    found = crop(image.expand(5000, -1, -1, -1), keys_of(5000), pad=2, mode=mode)
    seen = [windows[one.numpy().tobytes()] for one in found.contiguous()]
    counts = [seen.count(where) for where in windows.values()]
    assert all(abs(n - 200) < 5 * 200**0.5 for n in counts)


def test_no_padding_is_no_change() -> None:
    images = draw(3, 2, 4, 6)
    assert torch.equal(crop(images, keys_of(3), pad=0), images)


@pytest.mark.parametrize("only", ["brightness", "contrast", "saturation", "all"])
def test_jitter_is_pillows(only: str) -> None:
    """Pillow's enhancers one after another; it rounds to 8 bits after each."""
    ranges = {
        name: 0.4 * (only in (name, "all")) for name in ("brightness", "contrast", "saturation")
    }
    tint = torch.tensor([0.1, 1.0, 0.5])[:, None, None]
    pixels = (draw(6, 3, 9, 7) * tint * 255).round()
    found = jitter(pixels / 255, keys_of(6), **ranges)
    factors = 1 + 0.4 * keys.uniform(keys_of(6), 3, -1.0, 1.0)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in range(6):
        image = Image.fromarray(pixels[i].permute(1, 2, 0).numpy().astype(np.uint8))
        for j, (name, enhance) in enumerate(zip(ranges, enhancers, strict=True)):
            if only in (name, "all"):
                image = enhance(image).enhance(float(factors[i, j]))
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        torch.testing.assert_close(found[i], expected.double(), rtol=0, atol=3.5 / 255)
    assert float((factors - 1).abs().max()) > 0.2


def test_grey_images_have_no_saturation() -> None:
    images = draw(4, 1, 5, 5)
    assert torch.equal(jitter(images, keys_of(4), brightness=0, contrast=0), images)
    assert not torch.equal(jitter(images, keys_of(4), brightness=0, saturation=0), images)


def by_loops(
    image: np.ndarray, draws: list[float], bent: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    """The map point by point: each new pixel from the four around its origin."""
    height, width = image.shape
    degrees, shear = settings["degrees"] * draws[0], settings["shear"]
    angle = math.radians(degrees)
    low, high = settings["scale"]
    size = low + (high - low) * (draws[3] + 1) / 2
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    there = size * turn @ np.array([[1, shear * draws[1]], [shear * draws[2], 1]])
    shift = settings["shift"] * np.array([width * draws[4], height * draws[5]])
    out = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            new = np.array([column - (width - 1) / 2, row - (height - 1) / 2])
            old = np.linalg.inv(there) @ (new - shift) + bent[:, row, column]
            x, y = old[0] + (width - 1) / 2, old[1] + (height - 1) / 2
            total = 0.0
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    inside = 0 <= i < height and 0 <= j < width
                    value = image[i, j] if inside else settings["fill"]
                    total += value * (1 - abs(y - i)) * (1 - abs(x - j))
            out[row, column] = total
    return out


BENT = {"elastic": 1.5}


@pytest.mark.parametrize(
    "settings",
    [
        {"degrees": 0.0, "shear": 0.0, "scale": (1.0, 1.0), "shift": 0.2, "fill": 0.0},
        {"degrees": 90.0, "shear": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "fill": 0.5},
        {"degrees": 0.0, "shear": 0.4, "scale": (0.5, 1.5), "shift": 0.0, "fill": 1.0},
        {"degrees": 25.0, "shear": 0.3, "scale": (0.7, 1.2), "shift": 0.1, "fill": 1.0},
        {"degrees": 9.0, "shear": 0.2, "scale": (0.7, 1.2), "shift": 0.1, "fill": 1.0} | BENT,
    ],
)
def test_affine_is_what_loops_make(settings: dict[str, Any]) -> None:
    images, each = draw(3, 2, 6, 9), keys_of(3)
    found = affine(images, each, **settings)
    draws = keys.uniform(each, 6, -1.0, 1.0).tolist()
    size = settings.get("elastic", 0.0)
    nodes = keys.uniform(keys.fold(each, 1), 50, -size, size).reshape(3, 2, 5, 5)
    bent = F.interpolate(nodes, (6, 9), mode="bicubic", align_corners=True)
    torch.testing.assert_close(bent[..., 0, 0], nodes[..., 0, 0])  # the corners are nodes
    expected = [
        [by_loops(channel.numpy(), draws[i], bent[i].numpy(), settings) for channel in image]
        for i, image in enumerate(images)
    ]
    torch.testing.assert_close(found, torch.tensor(np.array(expected)))


def test_nothing_to_do_is_no_change() -> None:
    images = draw(3, 2, 6, 9)
    found = affine(images, keys_of(3), degrees=0, shear=0, scale=(1, 1), shift=0, fill=0.3)
    torch.testing.assert_close(found, images)


@pytest.mark.parametrize(("height", "width"), [(4, 31), (28, 28), (40, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bent_images(height: int, width: int, dtype: torch.dtype) -> None:
    """Nodes moved by random distances, torch's bicubic between them; one image or many."""
    images, each = draw(7, 1, height, width, dtype=dtype), keys_of(7)
    still: dict[str, Any] = {"degrees": 0, "shear": 0, "scale": (1, 1), "shift": 0}
    found = affine(images, each, **still, elastic=1.5)
    nodes = keys.uniform(keys.fold(each, 1), 50, -1.5, 1.5).reshape(7, 2, 5, 5)
    bent = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)
    y, x = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    grid = [(x + bent[:, 0]) * 2 / width, (y[:, None] + bent[:, 1]) * 2 / height]
    expected = F.grid_sample(images.double(), torch.stack(grid, -1), align_corners=False)
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=1e-5)
    assert torch.equal(affine(images[3:4], each[3:4], **still, elastic=1.5), found[3:4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_bends_images_alike_and_waits_for_nothing() -> None:
    images, each = draw(20, 1, 28, 28), keys_of(20)
    expected = affine(images, each, elastic=1.5)
    there = images.cuda(), each.cuda()
    affine(*there, elastic=1.5)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        found = affine(*there, elastic=1.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected)


def test_each_step_has_a_key_of_its_own() -> None:
    """Two crops with one key would move every image twice by the same."""
    images = F.pad(torch.ones(500, 1, 1, 1), [8] * 4)
    each = keys_of(500)
    found = compose(crop, crop)(images, each)
    twice = crop(crop(images, each), each)
    assert not torch.equal(found, twice)
    step = crop(images, keys.fold(each, 0))
    assert torch.equal(found, crop(step, keys.fold(each, 1)))
    assert torch.equal(compose()(images, each), images)


def test_variations_go_to_another_process() -> None:
    """The tasks that a process draws have theirs with them."""
    for channels in (1, 3):
        assert pickle.dumps(standard(channels))  # a function made within one would be refused


def test_standard_leaves_characters_unmirrored_and_paper_white() -> None:
    paper = torch.ones(4, 1, 28, 28)
    torch.testing.assert_close(standard(1)(paper, keys_of(4)), paper)
    letter = torch.ones(1, 1, 28, 28)
    letter[..., 4:24, 6:9] = letter[..., 21:24, 6:20] = 0.0  # an L
    found = standard(1)(letter.expand(50, -1, -1, -1), keys_of(50))
    left, right = found[..., :14].mean((1, 2, 3)), found[..., 14:].mean((1, 2, 3))
    assert bool((left < right).all()), "ink is on the left of an L"


@pytest.mark.parametrize(
    ("vary", "text"),
    [
        (partial(crop, mode="wrap"), r"unknown padding 'wrap'; expected one of reflect, zeros"),
        (partial(crop, pad=-1), r"a padding of -1 pixels around 4 x 6; expected 0 or more"),
        (partial(crop, pad=4, mode="reflect"), r"a padding of 4 pixels around 4 x 6"),
        (jitter, r"images of 2 channels; expected 1 channel, or 3"),
        (partial(affine, shear=1.0), r"shear 1.0 and scale .*; expected a shear from 0"),
        (partial(affine, scale=(0.0, 1.0)), r"shear 0.3 and scale \(0.0, 1.0\)"),
        (partial(affine, scale=(1.2, 0.8)), r"the lower first"),
    ],
)
def test_what_is_refused(vary: Callable[[Tensor, Tensor], Tensor], text: str) -> None:
    with pytest.raises(InputError, match=text):
        vary(draw(2, 2, 4, 6), keys_of(2))


def test_jitter_beyond_all_colours_is_refused() -> None:
    with pytest.raises(InputError, match=r"jitter by 0.4, 1.5, 0.4; expected numbers from 0 to 1"):
        jitter(draw(2, 3, 4, 6), keys_of(2), contrast=1.5)
