"""CIFAR-FS and FC100: splits, pixels, sources and every way in which a source can be bad.

Most tests use three made-up images for each of the hundred classes; those that
ask for `shared_data` read the real ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tegu.datasets import ClassDataset, archives, cifar, load_cifar_fs, load_fc100
from tegu.errors import InputError

CLASSES = cifar._CLASSES
LOADERS = {"cifar_fs": load_cifar_fs, "fc100": load_fc100}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Images (100, 3, 3, 32, 32): class, number, channel, row, column."""
    coarse = np.random.default_rng(0).integers(0, 256, (100, 3, 3, 2, 2), np.uint8)
    return coarse.repeat(16, -1).repeat(16, -2)


def encoded(image: np.ndarray, kind: str = "png") -> bytes:
    data = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(image.transpose(1, 2, 0)).save(data, kind, **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def members(pixels: np.ndarray) -> dict[str, bytes]:
    """Names and bytes of all images, as PNG."""
    return {
        f"cifar100/data/{name}/{name}_s_{i:06d}.png": encoded(pixels[k, i])
        for k, name in enumerate(CLASSES)
        for i in range(3)
    }


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def binary_files(pixels: np.ndarray) -> dict[str, bytes]:
    """CIFAR-100's binary version: two images a class in train.bin, one in test.bin."""
    rows = [
        [(i, bytes([99 - k, k]) + pixels[k, i].tobytes()) for i in range(3)] for k in range(100)
    ]
    shuffled = [row for k in np.random.default_rng(1).permutation(100) for row in rows[k]]
    return {
        f"cifar-100-binary/{name}.bin": b"".join(row for i, row in shuffled if (i == 2) == last)
        for name, last in (("train", False), ("test", True))
    }


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            archive.addfile(facts, io.BytesIO(data))


@pytest.fixture
def small(tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small cifar100.zip, which the loader now takes for a whole one."""
    monkeypatch.setattr(cifar, "_COUNTS", (3, 2))
    write_zip(tmp_path / "data" / "cifar100.zip", members)
    return tmp_path / "data"


def same(found: ClassDataset, expected: ClassDataset) -> None:
    assert found.class_names == expected.class_names
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.examples, expected.examples, rtol=0, atol=0)


def test_images_and_what_goes_with_them(small: Path, pixels: np.ndarray) -> None:
    data = load_cifar_fs("meta_val", data_dir=small)
    assert data.examples.dtype == torch.uint8
    assert data.examples.shape == (16 * 3, 3, 32, 32)
    assert data.counts.tolist() == [3] * 16
    assert (data.name, data.split, data.scale) == ("cifar-fs", "meta_val", 1 / 255)
    assert data.mean == (0.5071, 0.4865, 0.4409)
    assert data.std == (0.2673, 0.2564, 0.2762)
    beaver = pixels[CLASSES.index("beaver")]
    order = sorted(range(3), key=lambda i: hashlib.sha256(beaver[i].tobytes()).hexdigest())
    assert data.class_names[0] == "beaver"
    for row, i in enumerate(order):
        assert torch.equal(data.examples[row], torch.from_numpy(beaver[i]))


def zip_of_png(folder: Path, members: dict[str, bytes], pixels: np.ndarray) -> None:
    write_zip(folder / "cifar100.zip", members)


def zips_of_webp(folder: Path, members: dict[str, bytes], pixels: np.ndarray) -> None:
    """In two archives, some of one in both."""
    webp = {
        f"cifar100/data/{name}/x{i}.webp": encoded(pixels[k, i], "webp")
        for k, name in enumerate(CLASSES)
        for i in range(3)
    }
    write_zip(folder / "cifar100.zip", {k: v for k, v in webp.items() if "x2" not in k})
    write_zip(
        folder / "cifar100_train_val_rest.zip", {k: v for k, v in webp.items() if "x0" not in k}
    )


def folders(folder: Path, members: dict[str, bytes], pixels: np.ndarray) -> None:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def data_alone(folder: Path, members: dict[str, bytes], pixels: np.ndarray) -> None:
    folders(folder, {k.removeprefix("cifar100/"): v for k, v in members.items()}, pixels)


def binary_archive(folder: Path, members: dict[str, bytes], pixels: np.ndarray) -> None:
    write_tar(folder / "cifar-100-binary.tar.gz", binary_files(pixels))


def binary_folder(folder: Path, members: dict[str, bytes], pixels: np.ndarray) -> None:
    folders(folder, binary_files(pixels), pixels)


SOURCES = {
    write.__name__: write
    for write in (zip_of_png, zips_of_webp, folders, data_alone, binary_archive, binary_folder)
}


@pytest.mark.parametrize("layout", SOURCES)
@pytest.mark.parametrize("place", ["", "cifar100_fewshot", "cifar100", "cache"])
def test_every_source_gives_the_same_bits(
    small: Path,
    tmp_path: Path,
    cache: Path,
    members: dict[str, bytes],
    pixels: np.ndarray,
    layout: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = load_fc100("meta_test", data_dir=small)
    root = cache if place == "cache" else tmp_path / "elsewhere"
    folder = root / "cifar100" if place == "cache" else root / place
    SOURCES[layout](folder, members, pixels)
    if layout == "binary_archive":
        md5 = hashlib.md5((folder / "cifar-100-binary.tar.gz").read_bytes()).hexdigest()
        monkeypatch.setattr(cifar, "_MD5", md5)
    if place == "cifar100":
        monkeypatch.setenv("TEGU_DATA", str(root))
    same(
        load_fc100("meta_test", data_dir=None if place in ("cache", "cifar100") else root), expected
    )


def test_classes_may_have_all_images_or_half(small: Path, members: dict[str, bytes]) -> None:
    fewer = {k: v for k, v in members.items() if "worm_s_000001" not in k}
    write_zip(small / "cifar100.zip", fewer)
    counts = load_cifar_fs("meta_test", data_dir=small).counts
    assert counts.tolist() == [3] * 19 + [2]


def test_the_cache_spares_decoding_until_the_source_changes(
    small: Path, cache: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_fc100("meta_val", data_dir=small)
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "opened", None)
        same(load_fc100("meta_val", data_dir=small), expected)
    name, other = (next(k for k in members if f"/{c}/" in k) for c in ("worm", "apple"))
    write_zip(small / "cifar100.zip", {**members, name: members[other]})
    found = load_fc100("meta_val", data_dir=small)
    assert not torch.equal(found.examples, expected.examples)
    assert len(list(cache.glob("cifar100-*.safetensors"))) == 2


# Bad sources


def refused(match: str, folder: Path, split: str = "meta_test") -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        load_cifar_fs(split, data_dir=folder)
    return caught.value


def test_nothing_there(tmp_path: Path) -> None:
    error = refused(
        "no cifar100.zip or cifar-100-binary.tar.gz in .*nowhere;", tmp_path / "nowhere"
    )
    assert "Put https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz" in error.todo
    assert "TEGU_DATA" in error.todo


def test_an_unknown_split(small: Path) -> None:
    with pytest.raises(InputError, match=r"unknown split 'test'.*Did you mean 'meta_test'"):
        load_fc100("test", data_dir=small)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_archive(small: Path, keep: float) -> None:
    archive = small / "cifar100.zip"
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    error = refused(r"cifar100.zip cannot be read .*expected a whole, undamaged zip", small)
    assert "cifar-100-binary.tar.gz" in error.todo


def test_a_class_that_is_missing(small: Path, members: dict[str, bytes]) -> None:
    write_zip(small / "cifar100.zip", {k: v for k, v in members.items() if "/bed/" not in k})
    refused(
        r"cifar100.zip: 0 images of the class 'bed'; expected 3 or 2 of each of the 20 classes of "
        r"cifar-fs meta_test\. Replace it",
        small,
    )
    assert load_cifar_fs("meta_val", data_dir=small).n_classes == 16


def test_images_that_are_missing(small: Path, members: dict[str, bytes]) -> None:
    some = {k: v for k, v in members.items() if "bed_s_000001" not in k and "bed_s_000002" not in k}
    write_zip(small / "cifar100.zip", some)
    refused(r"1 images of the class 'bed'", small)


def claiming(png: bytes, side: int) -> bytes:
    """A PNG whose head speaks of another size: Pillow warns of the large, refuses the vast."""
    head = b"IHDR" + 2 * side.to_bytes(4, "big") + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]


@pytest.mark.parametrize("what", ["cut", "size", "grey", "text", "large", "vast"])
def test_an_image_that_is_none(small: Path, members: dict[str, bytes], what: str) -> None:
    name = "cifar100/data/fox/fox_s_000001.png"
    image = {"size": (31, 32), "grey": (32, 32)}.get(what, (32, 32))
    data = io.BytesIO()
    Image.new("L" if what == "grey" else "RGB", image).save(data, "png")
    bad = {
        "cut": members[name][:60],
        "text": b"not an image",
        "large": claiming(members[name], 10_000),
        "vast": claiming(members[name], 100_000),
    }.get(what, data.getvalue())
    write_zip(small / "cifar100.zip", {**members, name: bad})
    error = refused(f"{name} is not a colour image of 32 x 32 pixels", small)
    assert error.todo.startswith("Replace the file")


def test_a_binary_archive_that_is_another(tmp_path: Path, pixels: np.ndarray) -> None:
    write_tar(tmp_path / "cifar-100-binary.tar.gz", binary_files(pixels))
    refused("binary.tar.gz has MD5 .*; expected 03b5dce01913d631647c71ecec9e9cb8", tmp_path)


def test_a_binary_file_that_is_cut_short(tmp_path: Path, pixels: np.ndarray) -> None:
    files = binary_files(pixels)
    folders(
        tmp_path,
        {k: v[:-7] for k, v in files.items() if "test" in k}
        | {k: v for k, v in files.items() if "train" in k},
        pixels,
    )
    refused(
        r"cifar-100-binary holds 922,193 bytes of images; expected 3,074 bytes for each", tmp_path
    )
    (tmp_path / "cifar-100-binary" / "test.bin").unlink()
    refused(r"cifar-100-binary: 2 images of the class 'baby'; expected 600 or 300", tmp_path)


def test_a_tar_archive_that_is_damaged_or_vast(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, {"a/1": bytes(1000), "a/2": bytes(50_000)})
    wanted = cifar.re.compile("a/1")
    assert archives.read_members(path, wanted, "u", total=100_000) == {"a/1": bytes(1000)}
    assert archives.read_members(path, wanted, "u", largest=7) == {"a/1": bytes(7)}
    with pytest.raises(
        InputError, match=r"a.tar.gz cannot be read \(it unpacks to more than 40,000"
    ):
        archives.read_members(path, wanted, "u", total=40_000)
    whole = path.read_bytes()
    for bad in (whole[:40], b"", b"<html>", whole[:20] + b"\xff" * 9 + whole[29:]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"expected a whole, undamaged tar.gz archive, or"):
            archives.read_members(path, wanted, "u")


def test_links_in_a_tar_archive_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("a/1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert archives.read_members(path, cifar.re.compile("a/1"), "u") == {}


# Downloads


def test_a_download_is_kept(
    small: Path, cache: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "x.tar.gz", binary_files(pixels))
    data, asked = (tmp_path / "x.tar.gz").read_bytes(), []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(data)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(
        InputError, match=r"with MD5 .* at most 201,326,592 bytes with MD5 03b5dce0"
    ):
        load_cifar_fs("meta_test")
    assert not (cache / "cifar100").exists()
    monkeypatch.setattr(cifar, "_MD5", hashlib.md5(data).hexdigest())
    expected = load_cifar_fs("meta_test", data_dir=small)
    for _ in range(2):
        same(load_cifar_fs("meta_test"), expected)
    assert asked == [cifar._URL] * 2
    monkeypatch.setattr(cifar, "_LARGEST", 1000)
    (cache / "cifar100" / "cifar-100-binary.tar.gz").unlink()
    with pytest.raises(InputError, match=r"at most 1,000 bytes"):
        load_cifar_fs("meta_test")


def test_offline_says_what_to_put_where(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"gave no answer \(no network in tests\)") as caught:
        load_fc100("meta_train")
    assert f"no cifar100.zip or cifar-100-binary.tar.gz in {cache}/cifar100" in caught.value.given
    monkeypatch.setattr("urllib.request.urlopen", None)
    with pytest.raises(InputError, match=r"cifar100;"):
        load_fc100("meta_train", download=False)


# The real data


def test_class_lists_are_the_published_ones(shared_data: Path) -> None:
    folder = shared_data / "cifar100_fewshot" / "splits"
    for name in LOADERS:
        for part in ("train", "val", "test"):
            text = (folder / name / f"{part}.txt").read_text()
            assert cifar._classes(name.replace("_", "-"), f"meta_{part}") == tuple(text.split())
    superclasses = json.loads((folder / "superclasses.json").read_text())
    assert {k: tuple(v) for k, v in superclasses.items()} == cifar._SUPERCLASSES


HALVED = set(cifar._classes("cifar-fs", "meta_test"))  # of these, half the images are there


def test_real_images_of_a_split(shared_data: Path) -> None:
    data = load_cifar_fs("meta_val", data_dir=shared_data)
    assert data.counts.tolist() == [600] * 16
    assert data.examples.shape == (9600, 3, 32, 32)
    assert len(torch.unique(data.groups)) == 11
    means = (data.examples.double().mean((0, 2, 3)) / 255).tolist()
    assert means == pytest.approx(data.mean, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("cifar_fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_real_splits_are_disjoint_and_whole(
    shared_data: Path, name: str, sizes: tuple[int, ...]
) -> None:
    splits = {s: LOADERS[name](f"meta_{s}", data_dir=shared_data) for s in ("train", "val", "test")}
    assert tuple(data.n_classes for data in splits.values()) == sizes
    assert sorted(one for d in splits.values() for one in d.class_names) == list(CLASSES)
    for data in splits.values():
        assert data.counts.tolist() == [300 if c in HALVED else 600 for c in data.class_names]
        assert data.examples.shape == (int(data.counts.sum()), 3, 32, 32)
    groups = [set(data.groups.tolist()) for data in splits.values()]
    assert len(set().union(*groups)) == 20
    assert (sum(map(len, groups)) == 20) == (name == "fc100"), "FC100 splits superclasses"
    images = splits["train"].examples.flatten(1)
    assert len(torch.unique(images[:3000], dim=0)) > 2990
