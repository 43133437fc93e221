"""Checkpoints: what is written is read back, and every altered file is told."""

from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tegu.engine import checkpoint as module
from tegu.engine.checkpoint import (
    FORMAT,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tegu.errors import InputError
from tegu.files import write_atomically


@pytest.fixture
def some() -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    params = {
        "w": torch.randn(4, 3, generator=generator),
        "inner/v/w": torch.rand(4, 3, generator=generator, dtype=torch.float64),
        "inner/step": torch.tensor(7.0),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "none": torch.zeros(0, 3),
    }
    outer = {"count": torch.tensor([3, 4])}
    return Checkpoint(params, outer, 12, -5, "a recipe", {"seconds": 1.5})


def test_round_trip(some: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "c.safetensors"
    assert save_checkpoint(path, some) == some.digest()
    found = load_checkpoint(path)
    torch.testing.assert_close(found.params, some.params, rtol=0, atol=0)
    torch.testing.assert_close(found.outer, some.outer, rtol=0, atol=0)
    assert replace(found, params={}, outer={}) == replace(some, params={}, outer={})
    assert found.digest() == some.digest()
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_tensors_that_are_no_plain_block_of_memory(tmp_path: Path) -> None:
    """Transposed, expanded, sharing memory, wanting gradients."""
    base = torch.arange(6.0).reshape(2, 3)
    params = {
        "t": base.T,
        "e": torch.ones(1).expand(3),
        "whole": base,
        "part": base[0],
        "leaf": torch.ones(2, requires_grad=True),
    }
    path = tmp_path / "c"
    save_checkpoint(path, Checkpoint(params, {}, 0, 0, "", {}))
    found = load_checkpoint(path).params
    torch.testing.assert_close(found, {k: v.detach() for k, v in params.items()})


def test_the_digest_covers_what_decides_how_a_run_goes_on(some: Checkpoint) -> None:
    w = some.params["w"]
    changed: list[dict[str, Any]] = [
        {"params": {**some.params, "w": w + 1}},
        {"params": {**some.params, "w": w.reshape(3, 4)}},
        {"params": {**some.params, "w": w.view(torch.int32)}},
        {"params": {**{k: v for k, v in some.params.items() if k != "w"}, "u": w}},
        {"params": {**some.params, "count": some.outer["count"]}, "outer": {}},
        {"iteration": 13},
        {"seed": 5},
        {"recipe": "another"},
    ]
    digests = {some.digest(), *(replace(some, **change).digest() for change in changed)}
    assert len(digests) == 1 + len(changed)
    same = dict(reversed(some.params.items()))
    assert replace(some, params=same, notes={"seconds": 99}).digest() == some.digest()


def refused(path: Path, text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_checkpoint(path)


def test_a_missing_file(tmp_path: Path) -> None:
    refused(
        tmp_path / "c",
        r"no checkpoint at .*c; expected a file that a run or a `save` has written\. Check",
    )
    refused(tmp_path, r"no checkpoint at ")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_file_cut_short(some: Checkpoint, tmp_path: Path, share: float) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, some)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, r"cut short or not a checkpoint \(\w+\); expected a whole file.*another copy")


def test_any_one_byte_changed(some: Checkpoint, tmp_path: Path) -> None:
    """In the length, the header or the tensors; `notes` and padding decide nothing."""
    path = tmp_path / "c"
    save_checkpoint(path, some)
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    told = unnoticed = 0
    for at in [*range(8 + header, len(data)), *range(0, 8 + header, 7)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            found = load_checkpoint(path)
        except InputError as error:
            told += any(text in str(error) for text in ("cut short or not", "its own digest"))
        else:
            assert at < 8 + header, f"byte {at} of the tensors went unnoticed"
            assert found.digest() == some.digest()
            unnoticed += 1
    assert told > len(data) - 8 - header
    assert told + unnoticed == len(data) - 8 - header + len(range(0, 8 + header, 7))
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 16]) + data[-2:])
    refused(path, r"does not match its own digest; expected a file that nobody has changed\. Take")


def test_a_header_that_says_another_iteration(some: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, some)
    data = path.read_bytes()
    old = rb"\"iteration\": 12"
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, rb"\"iteration\": 13"))
    refused(path, r"does not match its own digest")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "{}"},
        {"tegu": "no json"},
        {"tegu": "[1]"},
        {"tegu": json.dumps({"format": module.FORMAT})},
    ],
)
def test_a_safetensors_file_of_someone_else(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "c"
    path.write_bytes(save({"w": torch.zeros(2)}, metadata))
    refused(path, r"cut short or not a checkpoint")


def test_a_later_format(some: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", "tegu-checkpoint-99")
        save_checkpoint(tmp_path / "c", some)
    refused(tmp_path / "c", r"cut short or not a checkpoint")


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path, ran = tmp_path / "c", tmp_path / "ran"
    torch.save({"w": torch.zeros(2), "x": Runs(ran)}, path)
    refused(path, r"cut short or not a checkpoint")
    path.write_bytes(pickle.dumps(Runs(ran)))
    refused(path, r"cut short or not a checkpoint")
    assert not ran.exists()


def test_a_file_too_large(
    some: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, some)
    monkeypatch.setattr(module, "LARGEST", 100)
    refused(path, r"has [\d,]+ bytes; expected at most 100 bytes")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_without_room_leaves_the_old_file(
    some: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, some)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        text = r"cannot be written: No space left on device; expected .* bytes free\. .* unharmed"
        with pytest.raises(InputError, match=text):
            save_checkpoint(path, replace(some, iteration=13))
    assert load_checkpoint(path).iteration == 12
    assert [p.name for p in tmp_path.iterdir()] == ["c"], "a temporary file stayed"


def test_a_folder_that_is_a_file(some: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(InputError, match=r"cannot be written: (File exists|Not a directory)"):
        write_atomically(tmp_path / "f" / "c", b"x")
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.parametrize("head", ['{"iteration": Infinity}', "[" * 99_999])
def test_a_head_that_was_made_up(head: str, tmp_path: Path) -> None:
    file = tmp_path / "made-up"
    told = head.replace("{", f'{{"format": "{FORMAT}", ')
    file.write_bytes(save({"params/w": torch.zeros(1)}, metadata={"tegu": told}))
    with pytest.raises(InputError, match="is cut short or not a checkpoint"):
        load_checkpoint(file)
