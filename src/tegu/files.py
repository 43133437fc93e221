"""Files: where they lie, what is read of them, and writing whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any

from tegu.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what systems say of a disk without room


def expanded(path: str | Path) -> Path:
    """A path with ~ as the user's folder; as it is where that names nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: `$XDG_CACHE_HOME/tegu`, else `~/.cache/tegu`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else expanded("~/.cache")) / "tegu"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file that is either the old one or the new one, whenever the machine stops.

    Its folder is made if need be. A kill in the middle leaves a file beside it
    whose name begins with a dot and the file's own; an error leaves nothing.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    if path.parent.is_file():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not (path.is_file() or path.is_dir()):  # a device, which none replaces
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = hidden(path)
    try:
        with beside.open("xb") as file:  # who may read it is the umask's to say
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file of a run or a result, whole or not at all, as `write_atomic` does.

    Raises:
        InputError: the disk has no room, or the folder cannot be written.
    """
    try:
        write_atomic(path, data)
    except OSError as failure:
        full = failure.errno in FULL
        raise InputError(
            f"{path} cannot be written: {failure.strerror or failure}",
            "a folder that can be written" + f", with {len(data):,} bytes free" * full,
            f"{'Free some room or c' if full else 'C'}hoose another folder; what was saved before "
            "is unharmed.",
        ) from failure


def hidden(path: Path) -> Path:
    """A new name beside a path, which begins with a dot and the path's own."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def check_file(file: str, largest: int) -> int:
    """Bytes of a file that is about to be read.

    Raises:
        ValueError: there is no such file, or it is too large.
    """
    if os.path.isdir(file):
        raise ValueError("a folder")
    if not os.path.isfile(file):
        raise ValueError("a broken link" if os.path.islink(file) else "no such file")
    if (size := os.stat(file).st_size) > largest:
        raise ValueError(f"{size:,} bytes, more than {largest:,}")
    return size


def read_object(file: Path, largest: int) -> dict[str, Any]:
    """A JSON object out of a file.

    Raises:
        ValueError: there is no such file, it is too large, or holds something else.
    """
    check_file(str(file), largest)
    try:
        found = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    return found
