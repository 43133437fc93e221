"""Omniglot: splits, pixels, sources and every way in which a source can be bad.

Most tests use archives of three small characters in Omniglot's layout; those
that ask for `shared_data` read the real ones.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tegu.datasets import archives, load_lake_runs, load_omniglot, omniglot
from tegu.errors import InputError

SMALL = {
    "images_background": [("Greek", "character01"), ("Zulu", "character01")],
    "images_evaluation": [("Latin", "character07")],
}


def png(seed: int) -> bytes:
    """A one-bit image: a bar of ink in the top left corner and some specks."""
    pixels = np.random.default_rng(seed).random((105, 105)) > 0.02
    pixels[:8, :60] = False
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Names and bytes of the three characters' images."""
    characters = [(part, *character) for part, some in SMALL.items() for character in some]
    return {
        f"{part}/{alphabet}/{name}/{1 + i:04d}_{drawer:02d}.png": png(20 * i + drawer)
        for i, (part, alphabet, name) in enumerate(characters)
        for drawer in range(1, 21)
    }


def write_zips(folder: Path, files: dict[str, bytes]) -> Path:
    """Pack each part's files into its archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in SMALL:
        with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                if name.startswith(part):
                    archive.writestr(name, data)
    return folder


def write_folders(folder: Path, files: dict[str, bytes]) -> Path:
    """The same files as folders."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def small(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two small archives, which the loader now takes for the real ones."""
    monkeypatch.setattr(omniglot, "_CHARACTERS", {p: len(cs) for p, cs in SMALL.items()})
    monkeypatch.setattr(omniglot, "_IMAGES_DIGEST", archives.content_digest(files))
    return write_zips(tmp_path / "data", files)


# Sources


@pytest.mark.parametrize("layout", ["zips", "folders", "inside omniglot"])
@pytest.mark.parametrize("named_by", ["data_dir", "TEGU_DATA", "cache folder"])
def test_the_same_images_from_each_source(
    small: Path,
    files: dict[str, bytes],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    named_by: str,
) -> None:
    expected = load_omniglot("meta_train", data_dir=small)
    folder = tmp_path / "elsewhere"
    if named_by == "cache folder":
        layout, folder = "inside omniglot", cache
    inner = folder / "omniglot" if layout == "inside omniglot" else folder
    (write_folders if layout == "folders" else write_zips)(inner, files)
    if named_by == "TEGU_DATA":
        monkeypatch.setenv("TEGU_DATA", str(folder))
    found = load_omniglot("meta_train", data_dir=folder if named_by == "data_dir" else None)
    assert found.class_names == expected.class_names
    torch.testing.assert_close(found.examples, expected.examples, rtol=0, atol=0)


def test_paper_is_white_and_ink_is_black(small: Path, files: dict[str, bytes]) -> None:
    data = load_omniglot("meta_train", partition="alphabets", data_dir=small)
    assert data.class_names == ("Greek/character01", "Zulu/character01")
    assert data.examples.dtype == torch.uint8
    assert data.examples.shape == (40, 1, 28, 28)
    assert torch.unique(data.examples).tolist() == [0, 255]
    assert data.scale == 1 / 255
    assert data.examples[:, 0, :2, :15].sum() == 0  # the bar
    # The nearest pixel to the middle of each of the 28 x 28 cells.
    name = next(name for name in sorted(files) if "Zulu" in name)
    middle = ((np.arange(28) + 0.5) * 105 / 28).astype(int)
    pixels = np.asarray(Image.open(io.BytesIO(files[name])))[np.ix_(middle, middle)]
    torch.testing.assert_close(data.examples[20, 0], torch.from_numpy(pixels * np.uint8(255)))


def test_shrunk_by_the_mean(small: Path) -> None:
    whole = load_omniglot("meta_train", data_dir=small, size=105).examples
    found = load_omniglot("meta_train", data_dir=small, size=35, shrink="mean").examples
    expected = whole.double().unflatten(2, (35, 3)).unflatten(4, (35, 3)).mean((3, 5))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.51)
    assert len(found.unique()) > 2


@pytest.mark.parametrize(
    ("ink", "inside"),
    [
        # Left, top, right, bottom of a block of ink; the same within the 36 pixels that are left.
        ((0, 0, 60, 60), (3, 3, 33, 33)),
        ((45, 45, 105, 105), (3, 3, 33, 33)),
        ((20, 10, 80, 40), (3, 10.5, 33, 25.5)),
        ((50, 50, 55, 60), (15.5, 13, 20.5, 23)),  # small: enlarged as if it had 30 pixels
    ],
)
def test_cropped_to_the_square_around_the_ink(
    ink: tuple[int, int, int, int], inside: tuple[float, float, float, float]
) -> None:
    paper = np.ones((105, 105), dtype=bool)
    paper[ink[1] : ink[3], ink[0] : ink[2]] = False
    file = io.BytesIO()
    Image.fromarray(paper).save(file, "PNG")
    found = omniglot._decode(file.getvalue(), 36, "crop")[0]
    middle = np.arange(36) + 0.5
    left, top, right, bottom = inside
    rows, columns = (middle > top) & (middle < bottom), (middle > left) & (middle < right)
    black = torch.from_numpy(np.outer(rows, columns))
    edge = F.max_pool2d(black[None].float(), 3, 1, 1)[0].bool() & ~black
    assert found[black].max() < 128
    assert found[~black & ~edge].min() == 255


def test_paper_without_ink_stays_white() -> None:
    file = io.BytesIO()
    Image.fromarray(np.ones((105, 105), dtype=bool)).save(file, "PNG")
    assert omniglot._decode(file.getvalue(), 28, "crop").min() == 255


def test_size_is_the_side_of_the_images(small: Path) -> None:
    whole = load_omniglot("meta_train", data_dir=small, size=105)
    assert whole.examples.shape[1:] == (1, 105, 105)
    assert load_omniglot("meta_train", data_dir=small, size=32).examples.shape[1:] == (1, 32, 32)


def test_rotations_are_classes_turned_anticlockwise(small: Path) -> None:
    plain = load_omniglot("meta_train", data_dir=small)
    turned = load_omniglot("meta_train", data_dir=small, rotations=True)
    assert turned.n_classes == 4 * plain.n_classes
    assert torch.unique(turned.counts).tolist() == [20]
    assert turned.class_names[:4] == tuple(
        f"{plain.class_names[0]}/rot{degrees}" for degrees in ("000", "090", "180", "270")
    )
    upright = plain.examples.reshape(-1, 20, 28, 28)
    classes = turned.examples.reshape(-1, 4, 20, 28, 28)
    for k in range(4):
        expected = torch.rot90(upright, k, (2, 3))
        torch.testing.assert_close(classes[:, k], expected, rtol=0, atol=0)
    by_pillow = Image.fromarray(plain.examples[0, 0].numpy()).rotate(90)
    torch.testing.assert_close(classes[0, 1, 0], torch.from_numpy(np.array(by_pillow)))


def test_alphabets_are_groups_and_turned_ones_their_own(small: Path) -> None:
    plain = load_omniglot("meta_train", data_dir=small)
    alphabets = [name.split("/")[0] for name in plain.class_names]
    group = dict(zip(alphabets, plain.groups.tolist(), strict=True))
    assert sorted(group.values()) == [0, 1, 2]
    assert [name for name, _ in sorted(group.items(), key=lambda item: item[1])] == sorted(group)
    turned = load_omniglot("meta_train", data_dir=small, rotations=True)
    parts = [name.split("/") for name in turned.class_names]
    expected = [4 * group[a] + int(rotation[3:]) // 90 for a, _, rotation in parts]
    assert turned.groups.tolist() == expected


def test_a_damaged_cache_is_built_again(small: Path, cache: Path) -> None:
    expected = load_omniglot("meta_train", data_dir=small).examples
    (kept,) = cache.glob("omniglot-*.safetensors")
    whole = kept.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 255]) + whole[-99:]
    for damage in (flipped, whole[:1000], b"", b"\xff" * 64):
        kept.write_bytes(damage)
        omniglot._kept_images.cache_clear()  # as in another process
        found = load_omniglot("meta_train", data_dir=small).examples
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert kept.read_bytes() == whole
    assert [path.name for path in cache.iterdir()] == [kept.name]  # no temporary file stays


def test_the_cache_spares_decoding(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_omniglot("meta_train", data_dir=small).examples
    omniglot._kept_images.cache_clear()  # as in another process
    monkeypatch.setattr(omniglot, "_decode", None)
    found = load_omniglot("meta_train", data_dir=small).examples
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_splits_of_one_process_read_the_archives_once(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_omniglot("meta_train", data_dir=small).examples
    monkeypatch.setattr(omniglot, "read_members", None)
    found = load_omniglot("meta_train", data_dir=small).examples
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_cache_folder_that_cannot_be_written_is_no_obstacle(small: Path, cache: Path) -> None:
    cache.parent.write_bytes(b"a file where the folder should be")
    assert load_omniglot("meta_train", data_dir=small).n_classes == 3


# Bad sources


def refused(match: str, folder: Path, **settings: object) -> InputError:
    """The error that loading a folder ends in."""
    with pytest.raises(InputError, match=match) as caught:
        load_omniglot("meta_train", data_dir=folder, **settings)  # type: ignore[arg-type]
    return caught.value


def test_missing_archives(tmp_path: Path) -> None:
    error = refused("no images_background.zip and images_evaluation.zip in", tmp_path / "nowhere")
    assert "python/images_background.zip and https" in error.todo
    assert "TEGU_DATA" in error.todo


def test_one_missing_archive(small: Path) -> None:
    (small / "images_evaluation.zip").unlink()
    error = refused("no images_evaluation.zip in .*data; expected Omniglot's archives", small)
    assert "images_background.zip" not in str(error)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_archive(small: Path, keep: float) -> None:
    archive = small / "images_background.zip"
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    refused(r"images_background.zip cannot be read .*expected a whole, undamaged zip", small)


def test_a_corrupt_member(small: Path, files: dict[str, bytes]) -> None:
    """A bit flipped inside an image: the archive's own check sum names the member."""
    with zipfile.ZipFile(small / "images_evaluation.zip", "w") as archive:
        for name, data in files.items():
            if name.startswith("images_evaluation"):
                archive.writestr(name, data)
    packed = bytearray((small / "images_evaluation.zip").read_bytes())
    packed[packed.index(b"IDAT") + 30] ^= 1
    (small / "images_evaluation.zip").write_bytes(bytes(packed))
    refused(r"cannot be read \(Bad CRC-32 for file '.*_01.png'\)", small)


def test_an_encrypted_archive(small: Path) -> None:
    data = bytearray((small / "images_evaluation.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    data[6] |= 1
    (small / "images_evaluation.zip").write_bytes(bytes(data))
    refused(r"cannot be read \(.*encrypted", small)


def test_a_folder_in_the_place_of_the_archive(small: Path) -> None:
    (small / "images_evaluation.zip").unlink()
    (small / "images_evaluation.zip").mkdir()
    refused(r"images_evaluation.zip holds 0 characters and 0 images; expected 1 char", small)


def test_too_few_images(small: Path, files: dict[str, bytes]) -> None:
    write_zips(small, dict(list(files.items())[1:]))
    error = refused("images_background.zip holds 2 characters and 39 images; expected 2", small)
    assert error.todo.startswith("Replace it with https://github.com/brendenlake")


def test_the_archives_exchanged(small: Path, files: dict[str, bytes]) -> None:
    (small / "images_evaluation.zip").write_bytes((small / "images_background.zip").read_bytes())
    refused("images_evaluation.zip holds 0 characters and 0 images", small)


def test_an_image_that_is_none(small: Path, files: dict[str, bytes]) -> None:
    name = sorted(files)[5]
    write_zips(small, {**files, name: files[name][:100]})
    refused(f"{name} is not a 105 x 105 image; expected the files of", small)


def test_an_image_of_another_size(small: Path, files: dict[str, bytes]) -> None:
    name, data = sorted(files)[5], io.BytesIO()
    Image.new("1", (28, 28)).save(data, "png")
    write_zips(small, {**files, name: data.getvalue()})
    refused(f"{name} is not a 105 x 105 image", small)


def test_another_image(small: Path, files: dict[str, bytes]) -> None:
    write_zips(small, {**files, sorted(files)[5]: png(999)})
    refused("the files differ from upstream's", small)


def test_an_archive_that_unpacks_to_too_much(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_TOTAL", 5_000)
    refused(r"cannot be read \(it unpacks to more than 5,000 bytes\)", small)


def test_an_archive_of_too_many_members(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 30)
    refused(r"cannot be read \(it lists 40 members\)", small)


def test_a_tar_of_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "many.tar.gz", "w:gz") as archive:
        for number in range(5):
            archive.addfile(tarfile.TarInfo(f"{number}.txt"), io.BytesIO())
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 4)
    with pytest.raises(InputError, match=r"it lists over 4 members"):
        archives.read_members(tmp_path / "many.tar.gz", re.compile("none"), "https://example.org")


def test_members_that_point_elsewhere_are_ignored(small: Path, files: dict[str, bytes]) -> None:
    outside = {f"images_background/../../{i}.png": b"x" for i in range(3)}
    write_zips(small, {**files, **outside, "images_background/.DS_Store": b"x"})
    before = sorted(small.parent.rglob("*.png"))
    assert load_omniglot("meta_train", data_dir=small).n_classes == 3
    assert sorted(small.parent.rglob("*.png")) == before


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_ends_in_another_error(small: Path, seed: int) -> None:
    whole = load_omniglot("meta_train", data_dir=small)
    rng, archive = random.Random(seed), small / "images_evaluation.zip"
    data = bytearray(archive.read_bytes())
    for _ in range(3):
        data[rng.randrange(len(data))] = rng.randrange(256)
    archive.write_bytes(bytes(data))
    try:
        found = load_omniglot("meta_train", data_dir=small)
    except InputError as error:
        said = str(error)
        assert "images_evaluation.zip" in said or "differ from upstream's" in said
    else:  # what was damaged is nothing that is read
        assert torch.equal(found.examples, whole.examples)


# Downloads


def answer(monkeypatch: pytest.MonkeyPatch, data: dict[str, bytes]) -> list[str]:
    """Let urlopen answer with these bytes by file name; the list fills with the URLs."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(data[url.rsplit("/", 1)[1]])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def test_a_download_is_kept(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = {path.name: path.read_bytes() for path in small.iterdir()}
    monkeypatch.setattr(omniglot, "_MD5", {})
    asked = answer(monkeypatch, upstream)
    first, second = load_omniglot("meta_train"), load_omniglot("meta_train")
    assert [url.rsplit("/", 1)[1] for url in asked] == sorted(upstream)
    assert {p.name: p.read_bytes() for p in (cache / "omniglot").iterdir()} == upstream
    torch.testing.assert_close(first.examples, second.examples, rtol=0, atol=0)


def test_a_download_with_another_digest(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, {"images_background.zip": b"<html>no longer here</html>"})
    with pytest.raises(InputError, match=r"gave 27 bytes with MD5 .* with MD5 68d2efa1") as caught:
        load_omniglot("meta_train")
    assert caught.value.todo.startswith("Nothing was kept")
    assert not cache.exists()


def test_a_download_without_end(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_TOTAL", 1000)
    answer(monkeypatch, {"images_background.zip": b"x" * 2**20})
    with pytest.raises(InputError, match=r"gave 262,144 bytes .* at most 1,000 bytes"):
        load_omniglot("meta_train")
    assert not cache.exists()


def test_a_download_that_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_PATIENCE", -1.0)
    answer(monkeypatch, {"images_background.zip": b"x" * 2**20})
    with pytest.raises(InputError, match=r"gave no answer .not finished after"):
        load_omniglot("meta_train")


def test_offline_says_what_to_put_where(cache: Path) -> None:
    with pytest.raises(InputError, match=r"gave no answer \(no network in tests\)") as caught:
        load_omniglot("meta_train")
    assert f"no images_background.zip and images_evaluation.zip in {cache}" in caught.value.given
    assert "Put https://github.com/brendenlake/omniglot/raw/master" in caught.value.todo
    assert "TEGU_DATA" in caught.value.todo
    assert "--data-dir" in caught.value.todo


def test_no_download_unless_allowed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, {})
    with pytest.raises(InputError, match=rf"no images_background.zip .* in {cache}/omniglot;"):
        load_omniglot("meta_train", download=False)
    assert asked == []


def test_a_download_that_cannot_be_kept(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_bytes(b"a file where the folder should be")
    monkeypatch.setattr(omniglot, "_MD5", {})
    answer(monkeypatch, {path.name: path.read_bytes() for path in small.iterdir()})
    with pytest.raises(InputError, match=r"cannot be written .* XDG_CACHE_HOME"):
        load_omniglot("meta_train")


# Bad settings


@pytest.mark.parametrize(
    ("split", "settings", "match"),
    [
        ("train", {}, "unknown split 'train'; expected one of meta_test, meta_train, meta_val"),
        ("meta_trian", {}, "Did you mean 'meta_train'"),
        ("meta_train", {"partition": "vinyal"}, "unknown partition .* Did you mean 'vinyals'"),
        ("meta_val", {}, "partition 'reptile' has no meta_val .* pass partition='vinyals'"),
        ("meta_val", {"partition": "alphabets"}, "held_out=0 has no meta_val .* held_out=5"),
        ("meta_train", {"held_out": 5}, "held_out is 5 with partition 'reptile'"),
        ("meta_train", {"partition": "alphabets", "held_out": 30}, "1 to 29 of the 30"),
        ("meta_train", {"size": 4}, "size is 4; expected 8 to 105"),
        ("meta_train", {"shrink": "mena"}, "unknown way to shrink .* Did you mean 'mean'"),
    ],
)
def test_bad_settings(split: str, settings: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_omniglot(split, **settings)  # type: ignore[arg-type]


# The real data


@pytest.mark.usefixtures("kept_cache")
@pytest.mark.parametrize(
    ("partition", "held_out", "sizes"),
    [
        ("reptile", 0, {"meta_train": 1200, "meta_test": 423}),
        ("vinyals", 0, {"meta_train": 1028, "meta_val": 172, "meta_test": 423}),
        ("vinyals-trainval", 0, {"meta_train": 1200, "meta_test": 423}),
        ("alphabets", 0, {"meta_train": 964, "meta_test": 659}),
        ("alphabets", 5, {"meta_train": 822, "meta_val": 142, "meta_test": 659}),
    ],
)
def test_splits_are_disjoint_and_whole(
    shared_data: Path, partition: str, held_out: int, sizes: dict[str, int]
) -> None:
    splits = {
        name: load_omniglot(name, partition=partition, held_out=held_out, data_dir=shared_data)
        for name in sizes
    }
    assert {name: data.n_classes for name, data in splits.items()} == sizes
    assert all(torch.unique(data.counts).tolist() == [20] for data in splits.values())
    names = [name for data in splits.values() for name in data.class_names]
    assert len(names) == len(set(names)) == 1623
    if partition == "alphabets":
        alphabets = [{n.split("/")[0] for n in d.class_names} for d in splits.values()]
        assert sum(map(len, alphabets)) == len(set().union(*alphabets)) == 50
        for data in splits.values():
            alphabets = [name.split("/")[0] for name in data.class_names]
            pairs = set(zip(data.groups.tolist(), alphabets, strict=True))
            assert len(pairs) == len(dict(pairs)) == len({a for _, a in pairs})


@pytest.mark.usefixtures("kept_cache")
def test_the_shuffle_of_the_reptile_code(shared_data: Path) -> None:
    """Its default: seed 0, then one shuffle of the sorted, merged folders."""
    members = []
    for part in SMALL:
        with zipfile.ZipFile(shared_data / "omniglot" / f"{part}.zip") as archive:
            members += [name.split("/")[1:3] for name in archive.namelist() if name[-1] != "/"]
    characters = sorted({tuple(member) for member in members})
    random.seed(0)
    random.shuffle(characters)
    for split, expected in (("meta_train", characters[:1200]), ("meta_test", characters[1200:])):
        names = load_omniglot(split, data_dir=shared_data).class_names
        assert names == tuple("/".join(character) for character in expected)
    another = load_omniglot("meta_test", data_dir=shared_data, seed=1).class_names
    assert set(another) != set(names)


@pytest.mark.usefixtures("kept_cache")
def test_the_published_lists_of_vinyals(shared_data: Path) -> None:
    for split, name in (("meta_train", "train"), ("meta_val", "val"), ("meta_test", "test")):
        text = (shared_data / "omniglot" / "splits" / "vinyals" / f"{name}.txt").read_text()
        data = load_omniglot(split, partition="vinyals", rotations=True, data_dir=shared_data)
        assert set(data.class_names) == set(text.split())


@pytest.mark.usefixtures("kept_cache")
def test_rotations_of_the_real_characters(shared_data: Path) -> None:
    data = load_omniglot("meta_train", rotations=True, data_dir=shared_data)
    assert data.n_classes == 4800
    assert data.examples.shape == (96_000, 1, 28, 28)
    assert torch.unique(data.examples).tolist() == [0, 255]
    assert 0.9 < (data.examples == 255).float().mean() < 0.94  # paper


@pytest.mark.usefixtures("kept_cache")
def test_lake_runs_pair_images_of_one_character(shared_data: Path) -> None:
    """Each of their images is one of the evaluation alphabets', of the class it should be."""
    runs = load_lake_runs(data_dir=shared_data, size=105)
    assert runs.support.shape == runs.query.shape == (20, 20, 1, 105, 105)
    assert runs.support.dtype == torch.uint8
    assert runs.labels.dtype == torch.int64
    assert (runs.labels.sort(1).values == torch.arange(20)).all()
    evaluation = load_omniglot("meta_test", partition="alphabets", size=105, data_dir=shared_data)
    names = {
        image.numpy().tobytes(): evaluation.class_names[i // 20]
        for i, image in enumerate(evaluation.examples)
    }
    for support, query, labels in zip(*runs, strict=True):
        shown = [names[image.numpy().tobytes()] for image in support]
        asked = [names[image.numpy().tobytes()] for image in query]
        assert asked == [shown[label] for label in labels.tolist()]
        assert len({name.split("/")[0] for name in shown}) == 1  # within one alphabet
        assert len(set(shown)) == 20


def test_lake_runs_missing_or_altered(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no all_runs.zip in"):
        load_lake_runs(data_dir=tmp_path)
    with (
        zipfile.ZipFile(shared_data / "omniglot" / "all_runs.zip") as real,
        zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as altered,
    ):
        for name in real.namelist():
            altered.writestr(name, b"" if name == "run07/class_labels.txt" else real.read(name))
    with pytest.raises(InputError, match=r"all_runs.zip: the files differ from upstream's"):
        load_lake_runs(data_dir=tmp_path)
