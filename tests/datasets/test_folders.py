"""Folders of images: layouts, splits, forms, what is refused, and the same episodes once packed."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tegu
from tegu import FewShotTasks
from tegu.datasets import image_files, load_folder, load_packed, pack_folder
from tegu.datasets.class_folders import Division, classes_of
from tegu.datasets.folders import FileRows
from tegu.datasets.image_files import Form
from tegu.errors import InputError
from tegu.sampling import ClassBatches

Photos = Callable[..., Path]
MANY = {f"class{i:02d}": 4 for i in range(25)}
ALL = {"size": 8, "shares": (1, 0, 0)}


def picture(seed: int, width: int = 9, height: int = 9) -> Image.Image:
    """Noise in colour."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def decode(file: Path | str, form: Form) -> Tensor:
    return form.decode(str(file))


def named(folder: Path, **division: Any) -> dict[str, list[str]]:
    found = classes_of(folder, Division(**division), Form())
    return {split: [one.name for one in part] for split, part in found.items()}


# Layouts


def test_classes_side_by_side_are_divided_by_shares(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", MANY)
    parts = named(folder)
    assert [len(part) for part in parts.values()] == [16, 4, 5]
    assert sorted(name for part in parts.values() for name in part) == sorted(MANY)
    assert all(part == sorted(part) for part in parts.values())
    assert named(folder) == parts
    assert named(folder, seed=1) != parts
    assert [len(p) for p in named(folder, shares=(1, 0, 1)).values()] == [12, 0, 13]


def test_a_class_more_moves_few_others(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", MANY)
    before = named(folder)
    photos(folder, {"another": 4})
    after = named(folder)
    moved = [name for split in before for name in set(before[split]) - set(after[split])]
    assert len(moved) <= 2


def test_folders_that_are_divided_already(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"meta_train/b": 2, "meta_train/a": 3, "meta_test/c": 2})
    assert named(folder) == {"meta_train": ["a", "b"], "meta_val": [], "meta_test": ["c"]}
    data = load_folder(folder, "meta_train", size=8)
    assert data.class_names == ("a", "b")
    assert data.counts.tolist() == [3, 2]
    assert data.name == "p"
    assert data.groups is None


def test_groups_are_the_folders_around_classes(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"birds/owl": 2, "fish/cod": 2, "birds/tit": 2, "fish/eel": 2})
    data = load_folder(folder, "meta_train", **ALL)
    assert data.class_names == ("birds/owl", "birds/tit", "fish/cod", "fish/eel")
    assert data.groups is not None
    assert data.groups.tolist() == [0, 0, 1, 1]
    batch = FewShotTasks(data, 2, 1, within=True).episodes(torch.arange(20))
    rows = data.tensor.reshape(8, -1).float() / 255
    at = torch.cdist(batch.support.x.flatten(2), rows).argmin(-1)  # (20, 2): whose image it is
    assert bool((at[:, 0] // 4 == at[:, 1] // 4).all())


def test_what_is_no_image_is_passed_over(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 2, "b": 2, ".thumbs": 2})
    (folder / "a" / "notes.txt").write_text("mine")
    (folder / "a" / ".hidden.png").write_text("no image")
    (folder / "readme.md").write_text("mine")
    (folder / "empty").mkdir()
    assert load_folder(folder, "meta_train", **ALL).counts.tolist() == [2, 2]


def test_small_classes_are_left_out_before_the_division(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {**MANY, "one": 1, "two": 2})
    assert named(folder, least=3) == named(photos(tmp_path / "q", MANY))


def test_links_are_followed(tmp_path: Path, photos: Photos) -> None:
    photos(tmp_path / "far", {"x": 3})
    folder = photos(tmp_path / "p", {"a": 2})
    (folder / "b").symlink_to(tmp_path / "far" / "x")
    assert load_folder(folder, "meta_train", **ALL).counts.tolist() == [2, 3]


def test_a_folder_that_may_not_be_read(
    tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system says it, also to a user who may read everything."""
    folder, scandir = photos(tmp_path / "p", {"a": 2, "b": 2}), os.scandir

    def locked(path: Path) -> Any:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=r"/b cannot be read: Permission denied; .*permissions"):
        load_folder(folder, "meta_train", **ALL)


def nothing(folder: Path) -> None:
    pass


def loop(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "b" / "again").symlink_to(folder)


def deep(folder: Path) -> None:
    (folder / "/".join("abcdefghijklmnopqrstuvwxyz")).mkdir(parents=True)


def beside(folder: Path) -> None:
    (folder / "a" / "more").mkdir()


@pytest.mark.parametrize(
    ("counts", "change", "text"),
    [
        (None, nothing, r"no folder .*/p; expected a folder with one sub-folder for each class"),
        ({}, lambda f: f.mkdir(), r"/p holds no images; expected one sub-folder.*\.png"),
        ({"a": 0, "b": 0}, nothing, r"/p holds no images"),
        ({".": 2}, nothing, r"the image .*/00.png with no sub-folder around it.*Move it into"),
        ({"a": 2}, beside, r"the image .*/a/00.png with folders such as more"),
        ({"a": 2, "meta_train/b": 2}, nothing, r"holds meta_train beside a; .*Move one"),
        ({"meta_train": 2}, nothing, r"meta_train/00.png with no sub-folder around it"),
        (
            {"train/a": 2, "test/a": 2},
            nothing,
            r"is divided into test and train; .*different classes.*put all classes side by side",
        ),
        (
            {"train/a": 2, "test/a": 2, "notes/b": 2},
            nothing,
            r"the class 'a' of .*p is in test and in train; .*put all images of a class into one",
        ),
        ({"Training/a": 2, "Testing/a": 2}, nothing, r"is divided into Testing and Training"),
        (
            {"Train/a": 2, "Test/a": 2, "notes/b": 2},
            nothing,
            r"the class 'a' of .*p is in Test and in Train",
        ),
        (
            {"Meta-Train/a": 2, "meta_test/b": 2},
            nothing,
            r"holds Meta-Train; expected meta_train.*written so.*mv Meta-Train meta_train",
        ),
        (
            {"meta_train/a": 2, "meta_test/a": 2},
            nothing,
            r"the class 'a' of .*p is in meta_train and in meta_test; expected different classes",
        ),
        ({"a": 2}, loop, r"/b/again leads back into a folder around it.*Remove that link"),
        ({}, deep, r"folders deep; .*16 levels at most\. Move the images up"),
    ],
)
def test_layouts_that_are_refused(
    counts: dict[str, int] | None, change: Any, text: str, tmp_path: Path, photos: Photos
) -> None:
    if counts:
        photos(tmp_path / "p", {k: v for k, v in counts.items() if k != "."})
    if counts and "." in counts:
        (tmp_path / "p").mkdir(exist_ok=True)
        picture(0).save(tmp_path / "p" / "00.png")
    change(tmp_path / "p")
    with pytest.raises(InputError, match=text):
        load_folder(tmp_path / "p", "meta_train")


def test_splits_and_sizes_that_there_are_not(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 2, "b": 3})
    with pytest.raises(InputError, match=r"no class of .* is in meta_val.*Add classes, or change"):
        load_folder(folder, "meta_val", shares=(1, 0, 1))
    with pytest.raises(InputError, match=r"no class of .* has 9 images, the largest has 3"):
        load_folder(folder, "meta_train", least=9)
    for shares in ((1, 2), (0, 0, 0), (-1, 1, 1)):
        with pytest.raises(InputError, match=r"shares \[.*three numbers"):
            load_folder(folder, "meta_train", shares=shares)


# Images


def saved(image: Image.Image, file: Path, **settings: Any) -> str:
    image.save(file, **settings)
    return str(file)


@pytest.mark.parametrize("kind", ["bmp", "gif", "png", "ppm", "tif", "webp"])
def test_formats_without_loss_keep_each_pixel(kind: str, tmp_path: Path) -> None:
    image = picture(3, 6, 6)
    if kind == "gif":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    more = {"lossless": True} if kind == "webp" else {}
    found = decode(saved(image, tmp_path / f"a.{kind}", **more), Form(6, 3))
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), expected)


def test_modes_become_one(tmp_path: Path) -> None:
    """Colour from grey, grey from colour, white behind what is transparent, 8 bits from 16."""
    grey = Image.fromarray(np.full((4, 4), 77, np.uint8))
    assert decode(saved(grey, tmp_path / "l.png"), Form(4, 3)).unique().tolist() == [77]
    red = Image.new("RGB", (4, 4), (200, 0, 0))
    assert decode(saved(red, tmp_path / "r.png"), Form(4, 1)).unique().tolist() == [60]  # 299/1000
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    assert decode(saved(clear, tmp_path / "a.png"), Form(4, 3)).unique().tolist() == [255]
    deep = Image.fromarray(np.full((4, 4), 0x8123, np.uint16))
    assert decode(saved(deep, tmp_path / "d.png"), Form(4, 1)).unique().tolist() == [0x81]
    single = Image.new("1", (4, 4), 1)
    assert decode(saved(single, tmp_path / "1.png"), Form(4, 3)).unique().tolist() == [255]
    table = Image.new("P", (4, 4), 0)
    table.putpalette([5, 6, 7])
    table.info["transparency"] = b"\xff"
    found = decode(saved(table, tmp_path / "p.png", transparency=b"\xff"), Form(4, 3))
    assert found[:, 0, 0].tolist() == [5, 6, 7]
    ink = Image.new("CMYK", (4, 4), (0, 0, 0, 0))
    assert decode(saved(ink, tmp_path / "c.jpg"), Form(4, 3)).unique().tolist() == [255]


def test_proportions(tmp_path: Path) -> None:
    """White, red, white in columns: the middle is cut out, all is kept on white, or squeezed."""
    image = Image.new("RGB", (12, 4), "white")
    image.paste((255, 0, 0), (4, 0, 8, 4))
    image.paste((0, 0, 255), (0, 0, 1, 4))
    file = saved(image, tmp_path / "wide.png")
    cut = decode(file, Form(4, 3, "crop"))
    assert cut[0].unique().tolist() == [255]
    assert cut[1].unique().tolist() == [0]
    padded = decode(file, Form(12, 3, "pad"))
    assert padded[:, 0].unique().tolist() == [255]  # added above
    np.testing.assert_array_equal(padded[:, 4:8].numpy(), np.asarray(image).transpose(2, 0, 1))
    assert decode(file, Form(12, 3, "stretch"))[1, :, 6].unique().tolist() == [0]


@pytest.mark.parametrize("size", [(300, 3), (3, 300)])
def test_a_line_is_kept_on_white(size: tuple[int, int], tmp_path: Path) -> None:
    file = saved(Image.new("RGB", size, "black"), tmp_path / "line.png")
    found = decode(file, Form(16, 1, "pad"))
    assert int((found == 0).sum()) == 16  # one row or column of it
    assert int((found == 255).sum()) == 16 * 15


def test_a_transparent_picture_is_shrunk_before_white_comes_under_it(tmp_path: Path) -> None:
    """Half red, half of nothing that is black underneath: no grey comes between the two."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    found = decode(saved(image, tmp_path / "a.png"), Form(8, 3, "stretch"))
    assert found[0].min() >= 250  # red and white alike
    assert found[1, :, :3].max() <= 5
    assert found[1, :, 5:].min() >= 250


def test_a_link_to_itself_is_passed_over(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", MANY)
    (folder / "round").symlink_to("round")
    assert "round" not in [name for part in named(folder).values() for name in part]


def test_pictures_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 6), "white")
    image.paste((0, 0, 0), (0, 0, 6, 3))  # black above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    file = saved(image, tmp_path / "a.png", exif=exif)
    found = decode(file, Form(6, 1))[0]
    assert found[:, 3:].unique().tolist() == [0]
    assert found[:, :3].unique().tolist() == [255]


def test_large_photographs_are_close_to_their_reduction(tmp_path: Path) -> None:
    """JPEG files are decoded at a lower resolution; the mean of smooth colours stays."""
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    image = Image.fromarray(np.stack([np.broadcast_to(ramp, (480, 640))] * 3, -1))
    file = saved(image, tmp_path / "a.jpg", quality=95)
    found = decode(file, Form(16, 3, "stretch")).float()
    exact = torch.from_numpy(ramp).float().reshape(16, 40).mean(1)
    assert float((found - exact).abs().max()) < 4


def truncated(folder: Path) -> Path:
    data = (folder / "a" / "00.png").read_bytes()
    (folder / "a" / "00.png").write_bytes(data[: len(data) // 2])
    return folder / "a" / "00.png"


def text(folder: Path) -> Path:
    (folder / "a" / "00.png").write_text("<html>not found</html>")
    return folder / "a" / "00.png"


def empty(folder: Path) -> Path:
    (folder / "a" / "00.png").write_bytes(b"")
    return folder / "a" / "00.png"


def other_format(folder: Path) -> Path:
    """PostScript, which would be given to another program."""
    (folder / "a" / "00.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    return folder / "a" / "00.png"


def dangling(folder: Path) -> Path:
    (folder / "a" / "00.png").unlink()
    (folder / "a" / "00.png").symlink_to(folder / "nowhere.png")
    return folder / "a" / "00.png"


def pipe(folder: Path) -> Path:
    """A reader would wait for ever."""
    (folder / "a" / "00.png").unlink()
    os.mkfifo(folder / "a" / "00.png")
    return folder / "a" / "00.png"


def floating(folder: Path) -> Path:
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "a" / "00.tif")
    (folder / "a" / "00.png").unlink()
    return folder / "a" / "00.tif"


def vast(folder: Path) -> Path:
    """A small file that claims 30,000 x 30,000 pixels."""
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head
    data += zlib.crc32(head).to_bytes(4, "big")
    (folder / "a" / "00.png").write_bytes(data + (folder / "a" / "01.png").read_bytes()[33:])
    return folder / "a" / "00.png"


BROKEN = {
    truncated: "truncated",
    text: "cannot identify",
    empty: "cannot identify",
    other_format: "cannot identify",
    dangling: "a broken link",
    pipe: "no such file",
    floating: "floating-point",
    vast: "pixels",
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("hold", [0, 1 << 20])
def test_a_broken_image_is_named(how: Any, hold: int, tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 3, "b": 3})
    file = how(folder)

    def used() -> None:
        data = load_folder(folder, "meta_train", hold=hold, **ALL)
        FewShotTasks(data, 2, 2, 1).episodes(torch.arange(9))

    with pytest.raises(InputError, match=r"cannot be read as an image \(.+\); .*--skip-br") as e:
        used()
    assert e.value.given.startswith(f"{file} cannot be read")
    assert BROKEN[how] in e.value.given


def test_limits_on_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(picture(0, 9, 9), tmp_path / "a.png")
    monkeypatch.setattr(image_files, "LARGEST", 80)
    with pytest.raises(InputError, match=r"9 x 9 pixels, more than 80"):
        decode(file, Form(4))
    monkeypatch.setattr(image_files, "LARGEST_FILE", 100)
    with pytest.raises(InputError, match=r"bytes, more than 100"):
        decode(file, Form(4))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fit": "cropp"}, r"unknown fit 'cropp'.*mean 'crop'"),
        ({"channels": 4}, r"4 channels; expected 3 for colour or 1 for grey"),
        ({"size": 0}, r"images of 0 pixels; expected 1 to 4,096"),
    ],
)
def test_forms_that_there_are_not(
    settings: dict[str, Any], text: str, tmp_path: Path, photos: Photos
) -> None:
    with pytest.raises(InputError, match=text):
        load_folder(photos(tmp_path / "p", {"a": 1}), "meta_train", **settings)


# Episodes


def test_rows_are_the_images_wherever_they_are_asked_for(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 3, "b": 4}, kinds=("png", "jpg", "webp"))
    files = sorted(map(str, folder.glob("*/*.*")))
    rows = FileRows(files, Form(8, 3), workers=3)
    expected = torch.stack([decode(file, Form(8, 3)) for file in files])
    assert rows.shape == expected.shape
    at = torch.tensor([[6, 0, 0], [3, 6, 1]])
    torch.testing.assert_close(rows[at], expected[at], rtol=0, atol=0)
    assert rows[at[:, :0]].shape == (2, 0, 3, 8, 8)
    assert rows.to("meta")[at].device.type == "meta"


@pytest.mark.parametrize("kind", ["tasks", "within", "batches"])
def test_held_read_and_packed_give_the_same_episodes(
    kind: str, tmp_path: Path, photos: Photos
) -> None:
    names = {f"{g}/{i}": 3 + i for g in ("x", "y") for i in range(4)}
    folder = photos(tmp_path / "p", names, kinds=("png", "jpg"))
    chosen: dict[str, Any] = {"size": 8, "fit": "pad", "shares": (1, 0, 1), "seed": 3}
    pack_folder(folder, tmp_path / "packed", **chosen)
    for split in ("meta_train", "meta_test"):
        ways = [
            load_folder(folder, split, **chosen),
            load_folder(folder, split, hold=0, **chosen),
            load_packed(tmp_path / "packed", split),
        ]
        assert [isinstance(data.examples, Tensor) for data in ways] == [True, False, False]
        assert len({data.class_names for data in ways}) == 1
        found = []
        for data in ways:
            make = {
                "tasks": lambda data: FewShotTasks(data, 2, 1, 2),
                "within": lambda data: FewShotTasks(data, 2, 1, 2, within=True),
                "batches": lambda data: ClassBatches(data, 5),
            }[kind]
            tasks = make(data)
            assert tasks.waits == (not isinstance(data.examples, Tensor))
            found.append(tasks.episodes(torch.arange(6)))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=0, atol=0)
        assert 0 <= float(found[0].support.x.min()) < float(found[0].support.x.max()) <= 1


def test_a_learner_trains_on_files_as_on_memory(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {str(i): 4 for i in range(6)})
    learned = []
    for hold in (0, 1 << 20):
        data = load_folder(folder, "meta_train", hold=hold, **ALL)
        model = tegu.models.Conv4(0, channels=3, size=8, width=4)
        learner = tegu.learners.ProtoNet(model=model, normalisation="transductive")
        tasks = FewShotTasks(data, 3, 1, 2)
        learned.append(tegu.meta_train(learner, tasks, meta_iterations=4, meta_batch=2).params)
    torch.testing.assert_close(learned[1], learned[0], rtol=0, atol=0)


def test_images_to_adapt_with_are_read_alike(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 3})
    files = sorted(folder.glob("a/*"))
    data = load_folder(folder, "meta_train", channels=1, fit="pad", **ALL)
    found = tegu.read_images(files, size=8, channels=1, fit="pad")
    torch.testing.assert_close(found, data.tensor.float() / 255)
    with pytest.raises(InputError, match="no files; expected at least one image"):
        tegu.read_images([])


# Packing


def test_packing_tells_how_far_it_is_and_what_it_holds(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 70, "b": 2})
    told: list[tuple[int, int]] = []
    index, broken = pack_folder(
        folder, tmp_path / "out", progress=lambda done, of: told.append((done, of)), **ALL
    )
    assert told == [(64, 72), (70, 72), (72, 72)]
    assert broken == []
    assert index["shape"] == [3, 8, 8]
    assert index["about"] == {"size": 8, "channels": 3, "fit": "crop"}
    assert index["splits"] == {"meta_train": {"names": ["a", "b"], "counts": [70, 2]}}
    array = np.load(tmp_path / "out" / "meta_train.npy", allow_pickle=False, mmap_mode="r")
    assert array.shape == (72, 3, 8, 8)


def test_broken_images_are_left_out_when_asked(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 3, "b": 3, "c": 1})
    truncated(folder)
    (folder / "c" / "00.png").write_text("none")
    with pytest.raises(InputError, match=r"a/00.png cannot be read"):
        pack_folder(folder, tmp_path / "out", **ALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]  # nothing half-made is left
    index, broken = pack_folder(folder, tmp_path / "out", skip_broken=True, **ALL)
    assert index["splits"]["meta_train"] == {"names": ["a", "b"], "counts": [2, 3]}
    assert [Path(e.given.split(" cannot")[0]).parent.name for e in broken] == ["a", "c"]


def test_a_class_left_with_too_few_images_is_left_out(tmp_path: Path, photos: Photos) -> None:
    folder = photos(tmp_path / "p", {"a": 3, "b": 3, "c": 4, "d": 3})
    for name in ("b", "c", "d"):
        (folder / name / "00.png").write_text("none")
    index, broken = pack_folder(folder, tmp_path / "out", skip_broken=True, least=3, **ALL)
    assert index["splits"]["meta_train"] == {"names": ["a", "c"], "counts": [3, 3]}
    assert [e.given for e in broken[3:]] == [
        f"meta_train/{name} has fewer than 3 images that can be read" for name in "bd"
    ]
    packed = load_packed(tmp_path / "out", "meta_train")
    whole = pack_folder(photos(tmp_path / "q", {"a": 3}), tmp_path / "other", **ALL)[0]
    assert whole["splits"]["meta_train"]["counts"] == [3]
    first = load_packed(tmp_path / "other", "meta_train").examples[torch.arange(3)]
    assert torch.equal(packed.examples[torch.arange(3)], first)
    assert len(packed.examples) == 6


def test_a_disk_without_room_is_seen_before(
    tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "p", {"a": 3})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(InputError, match=r"out needs 0.0 GB, and its disk has 0.0 left"):
        pack_folder(folder, tmp_path / "out", **ALL)


def test_one_path_is_no_list_of_paths(tmp_path: Path) -> None:
    for one in ("photo.jpg", Path("photo.jpg")):
        with pytest.raises(InputError, match=r"photo\.jpg in place of a list"):
            tegu.read_images(one)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names",
    [
        ("birds/train/owl", "birds/test/owl"),
        ("birds/train/owl", "birds/test/jay"),
        ("x/meta_train/owl", "x/meta_test/jay"),
        ("train/owl", "val/jay", "test/kea"),
    ],
)
def test_splits_further_down_are_not_dealt_anew(
    names: tuple[str, ...], tmp_path: Path, photos: Photos
) -> None:
    folder = photos(tmp_path / "p", dict.fromkeys(names, 2))
    (folder / "notes").mkdir()
    with pytest.raises(InputError, match=r"is divided into|holds meta_"):
        load_folder(folder, "meta_train", size=8)


def test_accents_do_not_decide_on_the_split() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    others = [str(i) for i in range(12)]
    sizes = [1] * 13
    for shares in ((1, 1, 1), (5, 1, 7)):
        division = Division(shares=shares)
        assert division.parts([composed, *others], sizes) == division.parts([apart, *others], sizes)


def test_grey_of_twelve_bits_is_not_black(tmp_path: Path) -> None:
    """A TIFF whose pixels reach 4095, written with 16 bits and marked with 12."""
    pixels = np.full((9, 9), 4095, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    at = data.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    assert int.from_bytes(data[at + 8 : at + 10], "little") == 16
    form = Form(size=8, channels=1)
    assert int(decode(tmp_path / "x.tif", form).max()) == 15
    with Image.open(tmp_path / "x.tif") as opened:
        opened.tag_v2[258] = (12,)
        twelve = image_files._eight_bits(opened, 1, max(opened.tag_v2[258]))
    assert np.asarray(twelve).min() == 255
    Image.fromarray(np.full((9, 9), 70_000, np.int32)).save(tmp_path / "y.tif")
    with pytest.raises(InputError, match="pixels of more than 16 bits"):
        decode(tmp_path / "y.tif", form)
