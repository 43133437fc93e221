"""Files from elsewhere: limits and damage."""

from __future__ import annotations

import gzip
import http.client
import io
import lzma
import re
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from tegu.datasets import archives
from tegu.datasets.archives import content_digest, download, read_members
from tegu.errors import InputError

WANTED = re.compile(r"part/[a-z]+\.txt")
FILES = {"part/a.txt": b"one", "part/b.txt": b"two", "part/c.png": b"three", "other/a.txt": b"4"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """FILES as part.zip, and beside it as the folder part."""
    with zipfile.ZipFile(tmp_path / "part.zip", "w") as packed:
        for name, data in FILES.items():
            packed.writestr(name, data)
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
    return tmp_path / "part.zip"


def test_the_wanted_files_of_an_archive_or_a_folder(archive: Path) -> None:
    expected = {name: FILES[name] for name in ("part/a.txt", "part/b.txt")}
    assert read_members(archive, WANTED, "") == expected
    assert read_members(archive.with_suffix(""), WANTED, "") == expected


def test_large_members_are_cut(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_MEMBER", 2)
    for source in (archive, archive.with_suffix("")):
        assert read_members(source, WANTED, "") == {"part/a.txt": b"on", "part/b.txt": b"tw"}


def test_a_folder_that_holds_too_much(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_TOTAL", 5)
    with pytest.raises(InputError, match=r"part cannot be read \(it unpacks to more than 5 bytes"):
        read_members(archive.with_suffix(""), WANTED, "")


def test_an_encrypted_archive(archive: Path) -> None:
    """The flag alone is enough; nobody is asked for a password."""
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(signature), bytes(data)):
            data[found.start() + flags] |= 1
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"encrypted.*download it again from https://here"):
        read_members(archive, WANTED, "https://here")


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.zip cannot be read .*No such file"):
        read_members(tmp_path / "none.zip", WANTED, "")


def test_the_digest_is_of_names_and_contents() -> None:
    digest = content_digest(FILES)
    assert content_digest(dict(reversed(FILES.items()))) == digest
    assert content_digest({**FILES, "part/a.txt": b"One"}) != digest
    assert content_digest({**FILES, "part/d.txt": b""}) != digest


def test_an_answer_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(url: str, timeout: float) -> NoReturn:
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr("urllib.request.urlopen", broken)
    with pytest.raises(ConnectionError, match="IncompleteRead"):
        download("https://here/file.zip", tmp_path / "file.zip")
    assert not any(tmp_path.iterdir())


def test_an_answer_that_ends_early_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {"Content-Length": "10"}

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(b"half"))
    with pytest.raises(ConnectionError, match="4 bytes of 10"):
        download("https://example.org/x", tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_tar_whose_headers_unpack_to_too_much(kind: str, tmp_path: Path) -> None:
    """A name of a gigabyte would be read whole before its member is looked at."""
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    opened: Any = gzip.open if kind == "gz" else lzma.open
    with opened(tmp_path / f"x.tar.{kind}", "wb") as file:
        file.write(head.tobuf())
        for _ in range(48):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"it unpacks to more than 4,194,304 bytes"):
        read_members(tmp_path / f"x.tar.{kind}", WANTED, "", total=1 << 22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_the_wanted_files_of_a_tar(kind: str, archive: Path) -> None:
    with tarfile.open(archive.parent / f"part.tar.{kind}", f"w:{kind}") as packed:
        packed.add(archive.with_suffix(""), "part")
    found = read_members(archive.parent / f"part.tar.{kind}", WANTED, "")
    assert found == {name: FILES[name] for name in ("part/a.txt", "part/b.txt")}
