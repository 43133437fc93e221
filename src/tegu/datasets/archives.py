"""Files from elsewhere: found in a folder or downloaded, checked, read with limits."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tegu.errors import InputError
from tegu.files import write_atomic

_MAX_MEMBERS = 100_000
_MAX_MEMBER = 2**16  # bytes
_MAX_TOTAL = 64 * 2**20  # bytes, packed or unpacked
_TIMEOUT = 30.0  # seconds without an answer
_PATIENCE = 600.0  # seconds for a whole download
_CHUNK = 2**18  # bytes


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: `$XDG_CACHE_HOME/tegu`, else `~/.cache/tegu`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tegu"


def read_members(source: Path, wanted: re.Pattern[str], url: str) -> dict[str, bytes]:
    """The wanted files of a zip archive, or of the folder extracted from it.

    Nothing is written. A member over 64 KiB is cut there, so check the content.

    Args:
        source: the archive, or the folder.
        wanted: matches the members' whole names, with / between their parts; in
            a folder, names begin with the folder's own.
        url: where to get the archive again.

    Raises:
        InputError: the source is missing, damaged or too large.
    """
    found: dict[str, bytes] = {}
    left = _MAX_TOTAL
    try:
        for name, data in _folder_files(source) if source.is_dir() else _zip_files(source, wanted):
            if wanted.fullmatch(name):
                found[name] = data
                left -= len(data)
            if left < 0:
                raise zipfile.BadZipFile(f"it unpacks to more than {_MAX_TOTAL:,} bytes")
    # A damaged archive raises any of these, an encrypted one RuntimeError.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{source} cannot be read ({error})",
            "a whole, undamaged zip archive, or the folder extracted from it",
            f"Delete it, and download it again from {url}.",
        ) from error
    return found


def _folder_files(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            yield path.relative_to(source.parent).as_posix(), file.read(_MAX_MEMBER)


def _zip_files(source: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise zipfile.BadZipFile(f"it lists {len(members):,} members")
        for member in members:
            if wanted.fullmatch(member.filename):
                with archive.open(member) as file:
                    yield member.filename, file.read(_MAX_MEMBER)


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


def download(url: str, path: Path, *, md5: str | None = None) -> None:
    """Fetch a file, whole or not at all.

    Args:
        url: of at most 64 MiB.
        path: where to keep it.
        md5: its digest in hexadecimal, where one is published.

    Raises:
        OSError: no answer, or no whole one in ten minutes.
        InputError: the file is not the one expected, or cannot be kept.
    """
    data = b"".join(_chunks(url))
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if len(data) > _MAX_TOTAL or (md5 is not None and found != md5):
        raise InputError(
            f"{url} gave {len(data):,} bytes with MD5 {found}",
            f"at most {_MAX_TOTAL:,} bytes" + (f" with MD5 {md5}" if md5 else ""),
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


def _chunks(url: str) -> Iterator[bytes]:
    """The answer piece by piece, until just over the size limit."""
    deadline, size = time.monotonic() + _PATIENCE, 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            while size <= _MAX_TOTAL and (chunk := answer.read(_CHUNK)):
                size += len(chunk)
                yield chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {_PATIENCE:.0f} s")
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
