"""Files of one's own, images say: a folder with one sub-folder for each class.

    PHOTOS/owl/1.jpg                  classes side by side: tegu divides them into splits
    PHOTOS/meta_train/owl/1.jpg       or divided already
    PHOTOS/birds/owl/1.jpg            in groups, birds here: a class is a folder with images

What is no image by its name's ending, and what begins with a dot, is passed over. What a file
becomes is up to a `FileForm`: `image_files.Form`, or `sound_files.Spectrum` for recordings.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu.datasets.class_folders import SHARES, Division, FileForm, classes_of
from tegu.datasets.classes import ClassDataset
from tegu.datasets.image_files import Form
from tegu.datasets.packed import Packable, write_packed
from tegu.datasets.splits import check_split
from tegu.errors import InputError, InputTypeError, check_range
from tegu.files import expanded

HELD = 256 << 20  # bytes of images that are read at once and kept, rather than read as needed
CHUNK = 64  # files decoded side by side


def load_folder(
    path: str | Path,
    split: str,
    *,
    size: int = 84,
    channels: int = 3,
    fit: str = "crop",
    shares: tuple[int, ...] = SHARES,
    seed: int = 0,
    least: int = 1,
    workers: int = 0,
    hold: int = HELD,
) -> ClassDataset:
    """One split of a folder of images.

    Args:
        path: the folder.
        split: "meta_train", "meta_val" or "meta_test".
        size: height and width of all images, pixels.
        channels: 3 for colour, 1 for grey.
        fit: "crop" cuts the middle square out, "pad" adds white, "stretch" distorts.
        shares: of the three splits among the classes, if the folder is not divided itself.
        seed: of that division.
        least: classes with fewer images are left out.
        workers: threads that read images; 0 for one a processor.
        hold: up to so many bytes, all images are read now and kept in memory. Above, they
            are read from their files whenever an episode uses them.

    Raises:
        InputError: the folder holds no classes in a layout that tegu knows, or a file is no
            image.
    """
    return load_files(
        path,
        split,
        Form(size, channels, fit),
        Division(shares=shares, seed=seed, least=least),
        workers=workers,
        hold=hold,
    )


def load_files(
    path: str | Path,
    split: str,
    form: FileForm,
    division: Division,
    *,
    workers: int = 0,
    hold: int = HELD,
) -> ClassDataset:
    """One split of a folder of files, whatever their kind; see `load_folder`."""
    check_split(split)
    folder = expanded(path)
    found = classes_of(folder, division, form)[split]
    if not found:
        raise InputError(
            f"no class of {folder} is in {split}",
            "at least one",
            f"Add classes, or change the shares, now {list(division.shares)}.",
        )
    rows = FileRows([file for one in found for file in one.files], form, workers)
    groups = {one.group: 0 for one in found}
    numbers = {group: i for i, group in enumerate(groups)}
    data = ClassDataset(
        folder.absolute().name,
        split,
        rows,
        torch.tensor([len(one.files) for one in found]),
        tuple(one.name for one in found),
        1 / 255,
        groups=torch.tensor([numbers[one.group] for one in found]) if any(groups) else None,
    )
    return data.read() if rows.shape.numel() <= hold else data


def read_images(
    files: Iterable[str | Path], *, size: int = 84, channels: int = 3, fit: str = "crop"
) -> Tensor:
    """Image files as a model takes them that was trained on a folder: (B, C, size, size), 0 to 1.

    Args:
        files: B paths.
        size, channels, fit: as the training had them; see `load_folder`.

    Raises:
        InputError: a file is no image, or there are none.
    """
    return read_files(files, Form(size, channels, fit))


def read_files(files: Iterable[str | Path], form: FileForm) -> Tensor:
    """Files in a form, from 0 to 1: (B, channels, size, size)."""
    if isinstance(files, (str, os.PathLike)):
        raise InputTypeError(f"{files} in place of a list", "paths in a list", "Write [path].")
    paths = [str(expanded(file)) for file in files]
    if not paths:
        raise InputError("no files", f"at least one {form.kind}", "Check what was listed.")
    return FileRows(paths, form)[torch.arange(len(paths))].to(torch.get_default_dtype()) / 255


def pack_folder(
    path: str | Path,
    out: str | Path,
    *,
    size: int = 84,
    channels: int = 3,
    fit: str = "crop",
    shares: tuple[int, ...] = SHARES,
    seed: int = 0,
    least: int = 1,
    workers: int = 0,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[InputError]]:
    """Writes a folder of images as a pack, with the same episodes as `load_folder` gives.

    Args:
        path: the folder of images.
        out: the pack, a folder that is not there yet; it is written whole or not at all.
        size, channels, fit, shares, seed, least, workers: as for `load_folder`.
        skip_broken: leave files out that cannot be read, and classes with fewer than `least`
            that can.
        progress: told how many images are done, and of how many.

    Returns:
        What the pack's `classes.json` holds, and what is wrong with each file or class left out.
    """
    form, division = Form(size, channels, fit), Division(shares=shares, seed=seed, least=least)
    folder, target = expanded(path), expanded(out)
    found = classes_of(folder, division, form)
    total = sum(len(one.files) for part in found.values() for one in part)
    _check_room(target, total * form.bytes)
    broken: list[InputError] = []
    done = 0

    def chunks(files: Sequence[str]) -> Iterator[Tensor]:
        nonlocal done
        for start in range(0, len(files), CHUNK):
            images: list[Tensor] = []
            some = files[start : start + CHUNK]
            for image in _pool(workers).map(partial(_tried, form=form), some):
                if isinstance(image, Tensor):
                    images.append(image)
                elif skip_broken:
                    broken.append(image)
                else:
                    raise image
            done += len(some)
            if progress:
                progress(done, total)
            if images:
                yield torch.stack(images)

    classes = (
        Packable(split, one.name, chunks(one.files), one.group)
        for split, part in found.items()
        for one in part
    )
    about = {"size": size, "channels": channels, "fit": fit}
    index = write_packed(target, classes, about=about, least=least)
    for split, part in found.items():
        packed = index["splits"].get(split, {"names": ()})["names"]
        broken += [
            InputError(
                f"{split}/{one.name} has fewer than {least} images that can be read",
                f"at least {least}",
                "Mend its files, or lower least.",
            )
            for one in part
            if least > 1 and one.name not in packed
        ]
    return index, broken


def _tried(file: str, form: Form) -> Tensor | InputError:
    try:
        return form.decode(file)
    except InputError as error:
        return error


def _check_room(out: Path, needed: int) -> None:
    near = next((p for p in out.absolute().parents if p.is_dir()), out.absolute())
    if (free := shutil.disk_usage(near).free) < needed:
        raise InputError(
            f"{out} needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} left",
            "room for all images",
            "Make room, choose another disk, or a smaller size.",
        )


# Files as rows


class FileRows:
    """Files as examples, decoded when an episode asks for them.

    Args:
        files: M paths.
        form: what a file becomes.
        workers: threads; 0 for one a processor.
        device: where examples are put.
    """

    dtype = torch.uint8

    def __init__(
        self,
        files: Sequence[str],
        form: FileForm,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.files, self.form, self.workers = files, form, workers
        self.device = torch.device(device)
        self.shape = torch.Size([len(files), form.channels, form.size, form.size])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: Tensor) -> Tensor:
        each, back = at.reshape(-1).cpu().unique(return_inverse=True)
        out = torch.empty((len(each), *self.shape[1:]), dtype=self.dtype)
        files = [self.files[i] for i in each.tolist()]
        decoded = _pool(self.workers).map(self.form.decode, files)
        for row, example in zip(out, decoded, strict=True):
            row.copy_(example)
        return out[back].reshape(*at.shape, *self.shape[1:]).to(self.device)

    def to(self, device: torch.device | str) -> FileRows:
        return FileRows(self.files, self.form, self.workers, device)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads: Pillow decodes without holding the interpreter's lock."""
    check_range("workers", workers, 0, todo="Leave out workers.")
    return ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="tegu-files")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
