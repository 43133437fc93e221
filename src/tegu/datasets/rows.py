"""Examples that stay in files until an episode asks for them."""

from __future__ import annotations

import math
import os
import threading
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tegu.errors import InputError

KINDS = ("|u1", "<f2", "<f4", "<f8")  # what a row's numbers may be: bytes and floats
_lock = threading.Lock()


class Rows(Protocol):
    """What a `ClassDataset` asks of its examples; a tensor has all of it.

    Attributes:
        shape: (M, ...), of all examples.
        dtype: of the stored numbers.
        device: where rows are put that were asked for.
    """

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, at: Tensor) -> Tensor:
        """Rows by their numbers: int64 of any shape (...) to (..., *shape[1:])."""
        ...

    def to(self, device: torch.device | str) -> Rows:
        """The same rows, put on another device."""
        ...


class Chosen:
    """Some of the rows, in an order of one's own.

    Args:
        rows: all of them.
        chosen: shape (M,), int64: row i of these is row chosen[i] of all.
    """

    def __init__(self, rows: Rows, chosen: Tensor) -> None:
        self.rows, self.chosen = rows, chosen
        self.shape = torch.Size([len(chosen), *rows.shape[1:]])
        self.dtype, self.device = rows.dtype, rows.device

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, at: Tensor) -> Tensor:
        return self.rows[self.chosen[at.to(self.chosen.device)]]

    def to(self, device: torch.device | str) -> Chosen:
        return Chosen(self.rows.to(device), self.chosen)


class NpyRows:
    """Rows of an array in a `.npy` file of any size.

    Rows are read by their place in the file, not mapped: a map of the whole file takes as
    much address space, and what a run has touched of it counts as the run's memory. What the
    operating system keeps of the file makes a row that was read before as fast as one in memory.

    Args:
        path: an array of bytes or floats in C order, (M, ...), as `numpy.save` writes it.
        device: where rows are put that were asked for.

    Raises:
        InputError: the file is not there, holds something else, or is cut short.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path, self.device = path, torch.device(device)
        shape, self._kind, self._start = _header(path)
        self.shape = torch.Size(shape)
        self.dtype = torch.from_numpy(np.empty(0, self._kind)).dtype
        self._width = math.prod(shape[1:]) * self._kind.itemsize
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        if hasattr(os, "posix_fadvise"):  # neighbours of a row are of no use
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, at: Tensor) -> Tensor:
        rows = at.reshape(-1).cpu()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of {len(self)}")
        out, width = np.empty((len(rows), *self.shape[1:]), self._kind), self._width
        room = out.reshape(-1).view(np.uint8).data
        order = rows.argsort()
        places = list(zip(order.tolist(), rows[order].tolist(), strict=True))
        if hasattr(os, "posix_fadvise"):  # the disk fetches all of them side by side
            for _, row in places:
                offset = self._start + row * width
                os.posix_fadvise(self._file, offset, width, os.POSIX_FADV_WILLNEED)
        for place, row in places:
            view = room[place * width : (place + 1) * width]
            if _read(self._file, view, self._start + row * width) != width:
                raise InputError(
                    f"{self.path} ends in row {row} of {len(self)}",
                    "a file that nobody changes while it is read",
                    "Pack the data again.",
                )
        return torch.from_numpy(out).reshape(*at.shape, *self.shape[1:]).to(self.device)

    def to(self, device: torch.device | str) -> NpyRows:
        return NpyRows(self.path, device)

    def __reduce__(self) -> tuple[Any, ...]:
        return NpyRows, (self.path, self.device)  # another process opens the file for itself


def _read(file: int, view: memoryview, offset: int) -> int:
    """Fills the view from the file's bytes at an offset; how many there were."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [view], offset)
    with _lock:  # Windows knows one place in a file
        os.lseek(file, offset, os.SEEK_SET)
        data = os.read(file, len(view))
    view[: len(data)] = data
    return len(data)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and kind of an array, and where in the file it begins; nothing is unpickled."""
    wanted, todo = "an array of bytes or floats, as numpy.save writes it", "Pack the data again."
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            size = os.fstat(file.fileno()).st_size
        if fortran or kind.str not in KINDS or not shape:
            raise ValueError(f"{kind}, shape {shape}{', Fortran order' if fortran else ''}")
    except FileNotFoundError:
        raise InputError(f"no file {path}", wanted, todo) from None
    except (OSError, ValueError, TypeError, EOFError, SyntaxError) as failure:
        raise InputError(f"{path} cannot be read ({failure})", wanted, todo) from failure
    needed = start + math.prod(shape) * kind.itemsize
    if size != needed:
        raise InputError(f"{path} has {size:,} bytes", f"{needed:,} for shape {shape}", todo)
    return shape, kind, start
