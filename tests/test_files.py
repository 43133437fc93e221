"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from tegu.files import expanded, write_atomic


def test_a_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for data in (b"old", b"new"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_is_the_umask_s_to_say(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError("no space"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    call: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"old")

    def fails(*_: object) -> NoReturn:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(type(failure)):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_device_is_not_replaced_and_a_link_is_followed(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_atomic(Path(os.devnull), b"x")
    assert not Path(os.devnull).is_file()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomic(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    for path in (tmp_path / "f" / "c", tmp_path / "f" / "c" / "d"):
        with pytest.raises(NotADirectoryError):
            write_atomic(path, b"x")
    assert (tmp_path / "f").read_text() == "mine"


def test_a_home_of_nobody_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a"
    assert expanded("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
