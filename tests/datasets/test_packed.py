"""Packs: written in a stream, whole or not at all; read row by row; damaged ones refused."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tegu.datasets import ClassDataset, Packable, load_packed, write_packed
from tegu.datasets import rows as stored
from tegu.datasets.rows import Chosen, NpyRows
from tegu.errors import InputError
from tegu.sampling import ClassBatches, FewShotTasks


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Two splits of vectors, whose classes come in turns."""
    x = draw(12, 3)
    classes = [
        Packable("meta_train", "a", [x[:2], x[2:5]]),
        Packable("meta_test", "c", [x[9:]]),
        Packable("meta_train", "none", []),
        Packable("meta_train", "b", iter([x[5:9]])),
    ]
    write_packed(tmp_path / "pack", classes, about={"from": "numbers"})
    return tmp_path / "pack"


def test_what_was_written_is_read(pack: Path) -> None:
    x = draw(12, 3)
    train, test = load_packed(pack, "meta_train"), load_packed(pack, "meta_test")
    assert train.class_names == ("a", "b")
    assert train.counts.tolist() == [5, 4]
    assert (train.name, train.scale, train.groups) == ("pack", 1.0, None)
    assert train.examples.shape == (9, 3)
    assert len(train.examples) == 9
    at = torch.tensor([[8, 0], [3, 3]])
    torch.testing.assert_close(train.examples[at], x[at], rtol=0, atol=0)
    torch.testing.assert_close(train.read().tensor, x[:9], rtol=0, atol=0)
    torch.testing.assert_close(test.read().tensor, x[9:], rtol=0, atol=0)
    assert json.loads((pack / "classes.json").read_text())["about"] == {"from": "numbers"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (4,), (3, 2, 2)])
def test_kinds_of_rows(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = (100 * draw(7, *shape).abs()).to(dtype).numpy()
    np.save(tmp_path / "x.npy", array)
    rows = NpyRows(tmp_path / "x.npy")
    assert rows.dtype == dtype
    at = torch.tensor([6, 0, 6, 2])
    torch.testing.assert_close(rows[at], torch.from_numpy(array)[at], rtol=0, atol=0)
    assert rows[at[:0]].shape == (0, *shape)


def test_rows_without_the_calls_of_unix(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_packed(pack, "meta_train")
    for name in ("preadv", "posix_fadvise"):
        monkeypatch.delattr(stored.os, name, raising=False)
    at = torch.tensor([7, 1])
    torch.testing.assert_close(data.examples[at], draw(12, 3)[at], rtol=0, atol=0)


def test_rows_outside_and_files_that_shrink(pack: Path) -> None:
    rows = load_packed(pack, "meta_train").examples
    for bad in (-1, 9):
        with pytest.raises(IndexError, match="of 9"):
            rows[torch.tensor([0, bad])]
    os.truncate(pack / "meta_train.npy", 190)
    with pytest.raises(InputError, match=r"meta_train.npy ends in row \d of 9; expected a file th"):
        rows[torch.arange(9)]


def test_files_are_closed(pack: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("a system that does not list what is open")

    def opened() -> int:
        return sum(str(pack) in os.readlink(one) for one in folder.iterdir() if one.is_symlink())

    data = load_packed(pack, "meta_train")
    assert opened() == 1
    del data
    assert opened() == 0


def test_reading_maps_nothing(pack: Path) -> None:
    """A map of a file larger than the limit of address space could not be had."""
    rows = load_packed(pack, "meta_train").examples
    rows[torch.arange(9)]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("a system that does not list maps")
    assert str(pack) not in maps.read_text()


def test_some_classes_of_a_pack(pack: Path) -> None:
    data = load_packed(pack, "meta_train").where(lambda name: name == "b")
    assert isinstance(data.examples, Chosen)
    torch.testing.assert_close(data.read().tensor, draw(12, 3)[5:9], rtol=0, atol=0)
    moved = data.examples.to("meta")
    assert moved[torch.tensor([0])].device.type == "meta"
    with pytest.raises(InputError, match=r"pack meta_train, which lies in files; .*read\(\) first"):
        _ = data.tensor


def test_groups_are_kept(tmp_path: Path) -> None:
    x = draw(6, 2)
    names = [("a", "one"), ("b", "two"), ("c", "one")]
    write_packed(
        tmp_path / "p",
        [Packable("meta_train", n, [x[2 * i : 2 * i + 2]], g) for i, (n, g) in enumerate(names)],
    )
    groups = load_packed(tmp_path / "p", "meta_train").groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]


def test_episodes_are_those_of_memory(pack: Path, toy_data: ClassDataset, tmp_path: Path) -> None:
    parts = toy_data.tensor.split(toy_data.counts.tolist())
    write_packed(
        tmp_path / "toy",
        [
            Packable("meta_train", n, [part])
            for n, part in zip(toy_data.class_names, parts, strict=True)
        ],
    )
    packed = replace(load_packed(tmp_path / "toy", "meta_train"), name="toy")
    for make in (lambda d: FewShotTasks(d, 5, 2, 3), lambda d: ClassBatches(d, 20)):
        index = torch.tensor([5, 0, 10**9])
        torch.testing.assert_close(
            make(packed).episodes(index), make(toy_data).episodes(index), rtol=0, atol=0
        )


def test_a_write_holds_one_chunk(tmp_path: Path) -> None:
    """No chunk is asked for before the one ahead of it is let go."""
    alive = 0
    most = 0

    class Chunk(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def chunks() -> Iterator[Any]:
        nonlocal alive, most
        for _ in range(5):
            alive += 1
            most = max(most, alive)
            yield np.zeros((2, 3), np.float32).view(Chunk)

    write_packed(tmp_path / "p", [Packable("meta_train", "a", chunks())])
    assert most <= 2


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], r"no example for .*/p; expected at least one"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"rows of shape \(4,\); expected <f4 and \(3,\)"),
        ([torch.zeros(2, 3), torch.zeros(2, 3).byte()], r"uint8, rows of shape"),
        ([torch.zeros(2, 3).long()], r"examples of 'a' with int64 .*; expected bytes or floats"),
        ([torch.zeros(2)], r"of shape \(2,\); expected bytes or floats"),
        ([torch.tensor([[1.0], [float("nan")]])], r"example 1 of a chunk of 'a' holds NaN"),
    ],
)
def test_what_cannot_be_packed_leaves_nothing(
    rows: list[Tensor], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        write_packed(tmp_path / "p", [Packable("meta_train", "a", rows)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["meta_train", "meta_test"])
def test_a_class_is_packed_once(split: str, tmp_path: Path) -> None:
    classes = [Packable(s, "cat", [torch.zeros(2, 3)]) for s in ("meta_train", split)]
    with pytest.raises(InputError, match=r"the class 'cat' twice, in meta_train.*on unseen"):
        write_packed(tmp_path / "p", classes)
    assert list(tmp_path.iterdir()) == []
    grouped = [one._replace(group=str(i)) for i, one in enumerate(classes)]
    write_packed(tmp_path / "p", grouped)  # of two groups, they are two


def test_splits_of_different_shapes(tmp_path: Path) -> None:
    classes = [
        Packable("meta_train", "a", [torch.zeros(2, 3)]),
        Packable("meta_test", "b", [torch.zeros(2, 4)]),
    ]
    with pytest.raises(InputError, match=r"splits of .*/p differ"):
        write_packed(tmp_path / "p", classes)
    with pytest.raises(InputError, match=r"unknown split 'meta_tset'"):
        write_packed(tmp_path / "p", [Packable("meta_tset", "a", [torch.zeros(2, 3)])])
    assert list(tmp_path.iterdir()) == []


def test_a_pack_that_is_there_stays(pack: Path) -> None:
    before = {p.name: p.read_bytes() for p in pack.iterdir()}
    with pytest.raises(InputError, match=r"/pack is there; expected a folder that is not"):
        write_packed(pack, [Packable("meta_train", "z", [torch.zeros(1, 3)])])
    assert {p.name: p.read_bytes() for p in pack.iterdir()} == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tegu.datasets.packed.os.fsync", full)
    with pytest.raises(InputError, match=r"/p cannot be written: No space left on device.*Make ro"):
        write_packed(tmp_path / "p", [Packable("meta_train", "a", [torch.zeros(1, 3)])])
    assert list(tmp_path.iterdir()) == []


def index_with(**changed: Any) -> Callable[[Path], None]:
    def change(pack: Path) -> None:
        file = pack / "classes.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return change


def array_of(array: Any, **settings: Any) -> Callable[[Path], None]:
    return lambda pack: np.save(pack / "meta_train.npy", array, **settings)


def part(**changed: Any) -> Callable[[Path], None]:
    whole = {"names": ["a", "b"], "counts": [5, 4], **changed}
    return index_with(splits={"meta_train": whole})


class Runs:
    """Makes a folder `ran` in the pack when it is unpickled."""

    def __init__(self, pack: Path) -> None:
        self.pack = pack

    def __reduce__(self) -> Any:
        return os.mkdir, (self.pack / "ran",)


def pickled(pack: Path) -> None:
    (pack / "meta_train.npy").write_bytes(pickle.dumps(Runs(pack)))


def of_objects(pack: Path) -> None:
    np.save(pack / "meta_train.npy", np.array([None, Runs(pack)]), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: (p / "classes.json").unlink(), r"holds no classes.json; .*`tegu pack`"),
        (lambda p: (p / "classes.json").write_text("{"), r"classes.json is no list of classes"),
        (lambda p: (p / "classes.json").write_text("[" * 99_999), r"is no list of classes"),
        (lambda p: (p / "classes.json").write_text("[3]"), r"is no list of classes"),
        (index_with(format=2), r"no list of classes \(format 2\)"),
        (index_with(shape=[0]), r"\(shape \[0\]\)"),
        (index_with(shape=[3, 3]), r"rows of shape \(3,\); expected \(3, 3\), which classes"),
        (index_with(scale=float("inf")), r"no scale"),
        (index_with(splits={}), r"no split"),
        (index_with(splits={"test": {}}), r"no list of classes"),
        (part(counts=[5, 3]), r"sizes sum to 8, but there are 9"),
        (part(counts=[5]), r"classes of meta_train"),
        (part(counts=[9, 0]), r"no whole number above 0"),
        (part(counts=[5.0, 4]), r"no whole number above 0"),
        (part(names=["a", 3]), r"a name that is no word"),
        (part(groups=["x"]), r"classes of meta_train"),
        (lambda p: (p / "meta_train.npy").unlink(), r"no file .*meta_train.npy"),
        (lambda p: (p / "meta_train.npy").write_bytes(b""), r"meta_train.npy cannot be read"),
        (lambda p: os.truncate(p / "meta_train.npy", 150), r"has 150 bytes; expected 236 for"),
        (pickled, r"cannot be read \(the magic string is not correct"),
        (of_objects, r"cannot be read \(object"),
        (array_of(np.asfortranarray(np.zeros((9, 3), np.float32))), r"Fortran order"),
        (array_of(np.zeros((9, 3), ">f4")), r"cannot be read \(>f4"),
        (array_of(np.float32(3)), r"cannot be read \(float32, shape \(\)"),
    ],
)
def test_damaged_packs(damage: Callable[[Path], None], text: str, pack: Path) -> None:
    damage(pack)
    with pytest.raises(InputError, match=text):
        load_packed(pack, "meta_train")
    assert not (pack / "ran").exists()


def test_a_list_of_classes_too_large(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.datasets.packed.LARGEST", 10)
    with pytest.raises(InputError, match=r"classes.json has \d+ bytes; expected at most 10\. Pack"):
        load_packed(pack, "meta_train")


def test_splits_that_a_pack_has_not(pack: Path) -> None:
    with pytest.raises(InputError, match=r"has no meta_val, only meta_train and meta_test"):
        load_packed(pack, "meta_val")
    with pytest.raises(InputError, match=r"unknown split 'train'"):
        load_packed(pack, "train")


def test_rows_go_to_another_process(pack: Path) -> None:
    """Which has no file open: a process that draws tasks opens its own."""
    rows = NpyRows(pack / "meta_train.npy")
    assert pickle.dumps(rows)  # what goes there
    wanted = rows[torch.tensor([3, 0])]
    again = copy.deepcopy(rows)  # made as it is made there
    del rows
    assert torch.equal(again[torch.tensor([3, 0])], wanted)


def test_one_tensor_is_one_chunk_wherever_it_is_and_of_what(tmp_path: Path) -> None:
    x = draw(5, 3).bfloat16().requires_grad_()
    write_packed(tmp_path / "p", [Packable("meta_train", "a", x)])  # type: ignore[arg-type]
    found = load_packed(tmp_path / "p", "meta_train").read().tensor
    torch.testing.assert_close(found, x.detach().float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("one", "about", "text"),
    [
        (Packable("meta_train", 7, [torch.zeros(2, 3)]), None, "a class called 7"),  # type: ignore[arg-type]
        (Packable("meta_train", "a", [["x"]]), None, "examples of 'a' with <U1"),  # type: ignore[list-item]
        (
            Packable("meta_train", "a", [torch.zeros(2, 3)]),
            {"from": Path("x")},
            "`about` that JSON",
        ),
    ],
)
def test_what_no_pack_could_hold(one: Packable, about: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        write_packed(tmp_path / "p", [one], about=about)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_rows_is_told_as_it_is(tmp_path: Path) -> None:
    def rows() -> Iterator[Tensor]:
        yield draw(2, 3)
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/x.npy")

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        write_packed(tmp_path / "p", [Packable("meta_train", "a", rows())])
    assert not list(tmp_path.iterdir())
