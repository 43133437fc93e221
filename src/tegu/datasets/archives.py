"""Files from elsewhere: found in a folder or downloaded, checked, read with limits."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import lzma
import re
import tarfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tegu.errors import InputError
from tegu.files import write_atomic

_MAX_MEMBERS = 100_000
_MAX_MEMBER = 2**16  # bytes
_MAX_TOTAL = 64 * 2**20  # bytes, packed or unpacked
_TIMEOUT = 30.0  # seconds without an answer
_PATIENCE = 600.0  # seconds for a whole download of _MAX_TOTAL
_CHUNK = 2**18  # bytes
TARS = (".tar.gz", ".tar.xz")


def read_members(
    source: Path,
    wanted: re.Pattern[str],
    url: str,
    *,
    largest: int | None = None,
    total: int | None = None,
) -> dict[str, bytes]:
    """The wanted files of a zip, tar.gz or tar.xz archive, or of the folder extracted from it.

    Nothing is written. A longer member is cut at `largest`, so check the content.

    Args:
        source: the archive, or the folder.
        wanted: matches the members' whole names, with / between their parts; in
            a folder, names begin with the folder's own.
        url: where to get the archive again.
        largest: bytes of a member; 64 KiB if left out.
        total: bytes of all that is wanted, unpacked; 64 MiB if left out.

    Raises:
        InputError: the source is missing, damaged or too large.
    """
    largest, total = largest or _MAX_MEMBER, total or _MAX_TOTAL
    found: dict[str, bytes] = {}
    left = total
    with _readable(source, url):
        if source.is_dir():
            members = _folder_files(source, wanted, largest)
        elif source.name.endswith(TARS):
            members = _tar_files(source, wanted, largest, total)
        else:
            members = _zip_files(source, wanted, largest)
        for name, data in members:
            found[name] = data
            left -= len(data)
            if left < 0:
                raise _too_much(total)
    return found


def stamp(source: Path, url: str) -> str:
    """MD5 of an archive, or of the names, sizes and times of a folder's files, in hexadecimal.

    Raises:
        InputError: the source is missing or cannot be read.
    """
    total = hashlib.md5(usedforsecurity=False)
    with _readable(source, url):
        if source.is_dir():
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                facts = path.stat()
                name = path.relative_to(source).as_posix()
                total.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        else:
            with source.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    total.update(chunk)
    return total.hexdigest()


@contextmanager
def _readable(source: Path, url: str) -> Iterator[None]:
    """Turns all that reading a bad source may raise into the error for it."""
    try:
        yield
    # A damaged archive raises any of these, an encrypted one RuntimeError.
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
        *(OSError, EOFError, RuntimeError, ValueError),
    ) as error:
        kind = source.name[-6:] if source.name.endswith(TARS) else "zip"
        raise InputError(
            f"{source} cannot be read ({error})",
            f"a whole, undamaged {kind} archive, or the folder extracted from it",
            f"Delete it, and download it again from {url}.",
        ) from error


def _too_much(total: int) -> ValueError:
    return ValueError(f"it unpacks to more than {total:,} bytes")


def _folder_files(
    source: Path, wanted: re.Pattern[str], largest: int
) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source.parent).as_posix()
        if wanted.fullmatch(name):
            with path.open("rb") as file:
                yield name, file.read(largest)


def _zip_files(source: Path, wanted: re.Pattern[str], largest: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise zipfile.BadZipFile(f"it lists {len(members):,} members")
        for member in members:
            if wanted.fullmatch(member.filename):
                with archive.open(member) as file:
                    yield member.filename, file.read(largest)


class _Bounded:
    """A file that ends with an error beyond its limit: tarfile reads long names and such whole."""

    def __init__(self, file: gzip.GzipFile | lzma.LZMAFile, total: int) -> None:
        self._file, self._total, self._left = file, total, total + _MAX_MEMBER

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_much(self._total)
        return data


def _tar_files(
    source: Path, wanted: re.Pattern[str], largest: int, total: int
) -> Iterator[tuple[str, bytes]]:
    unpacked = gzip.open if source.name.endswith(".gz") else lzma.open
    with (
        unpacked(source) as packed,
        tarfile.open(fileobj=_Bounded(packed, total), mode="r|") as archive,  # type: ignore[call-overload]
    ):
        for number, member in enumerate(archive):
            # What is skipped is unpacked too, so it counts.
            if member.offset_data + member.size > total:
                raise _too_much(total)
            if number >= _MAX_MEMBERS:
                raise tarfile.ReadError(f"it lists over {_MAX_MEMBERS:,} members")
            if wanted.fullmatch(member.name) and member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                yield member.name, file.read(largest)


def content_digest(files: dict[str, bytes]) -> str:
    """SHA-256 over the lines "name SHA-1-of-the-bytes", sorted by name.

    It is the same for an archive, the same files packed anew, and a folder.

    Example:
        >>> content_digest({"a.txt": b"a"})[:8]
        'b7fa3817'
    """
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name} {hashlib.sha1(files[name]).hexdigest()}\n".encode())
    return total.hexdigest()


def download(url: str, path: Path, *, md5: str | None = None, limit: int | None = None) -> None:
    """Fetch a file, whole or not at all.

    Args:
        url: of the file.
        path: where to keep it.
        md5: its digest in hexadecimal, where one is published.
        limit: bytes that it may have; 64 MiB if left out.

    Raises:
        OSError: no answer, or no whole one in ten minutes for each 64 MiB of the limit.
        InputError: the file is not the one expected, or cannot be kept.
    """
    limit = limit or _MAX_TOTAL
    data = b"".join(_chunks(url, limit))
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if len(data) > limit or (md5 is not None and found != md5):
        raise InputError(
            f"{url} gave {len(data):,} bytes with MD5 {found}",
            f"at most {limit:,} bytes" + (f" with MD5 {md5}" if md5 else ""),
            "Nothing was kept. Try again, or get the file another way.",
        )
    try:
        write_atomic(path, data)
    except OSError as error:
        raise InputError(
            f"{path.parent} cannot be written ({error})",
            f"a folder with room for {len(data):,} bytes",
            "Free some room, or set XDG_CACHE_HOME to another folder.",
        ) from error


def _chunks(url: str, limit: int) -> Iterator[bytes]:
    """The answer piece by piece, until just over the size limit."""
    patience = _PATIENCE * max(1, limit / _MAX_TOTAL)
    deadline, size = time.monotonic() + patience, 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            while size <= limit and (chunk := answer.read(_CHUNK)):
                size += len(chunk)
                yield chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {patience:.0f} s")
            told = getattr(answer, "headers", {}).get("Content-Length")
            if told and size < min(int(told), limit):  # a connection that was closed early
                raise ConnectionError(f"{size:,} bytes of {int(told):,}")
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
