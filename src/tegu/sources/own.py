"""Data of one's own: folders of images or recordings, labelled texts, or what was packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tegu.datasets import ClassDataset, load_packed, load_sentences, read_sentences
from tegu.datasets.augment import Augment, spectral
from tegu.datasets.class_folders import SHARES, Division, FileForm, class_files
from tegu.datasets.folders import load_files, read_files
from tegu.datasets.image_files import Form
from tegu.datasets.packed import read_index
from tegu.datasets.sentences import ColumnError, check_size, read_lines, read_texts
from tegu.datasets.sound_files import Spectrum
from tegu.datasets.splits import SPLITS
from tegu.errors import InputError
from tegu.sampling import Tasks
from tegu.sources.images import Images
from tegu.sources.source import Inputs, Wanted

LOOKED_AT = 64  # rows of a pack, to tell which range they have


@dataclass(frozen=True, kw_only=True)
class Own(Images):
    """Classes that a user brings.

    Args:
        path: where they are.
    """

    downloads: ClassVar[bool] = True
    changes: ClassVar[bool] = True
    # Learners by metric train on more ways; the classes of one's own are few.
    start: ClassVar[Mapping[str, Any]] = {"train.n_way": 5}

    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path:  # a run is gone on with, and evaluated, from any folder
            try:
                path = Path(self.path).expanduser()
            except RuntimeError as failure:  # ~NAME of nobody here
                raise InputError(
                    f"data.path is {self.path}", "the path of your data", f"Check it: {failure}"
                ) from failure
            object.__setattr__(self, "path", str(path.absolute()))

    def place(self) -> Path:
        """The path, which was given.

        Raises:
            InputError: it was not.
        """
        if not self.path:
            raise InputError(
                f"the data set {self.name} without a path",
                "where your data are",
                "Add --set data.path=FOLDER.",
            )
        return Path(self.path)

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        assert data is not None
        self._check(wanted, data)
        return super().tasks(wanted, data)

    def _check(self, wanted: Wanted, data: ClassDataset) -> None:
        """That there are enough classes, of enough examples, for such episodes."""
        where, need = f"{wanted.split} of {data.name}", wanted.n_shot + wanted.n_query
        if wanted.n_way > data.n_classes:
            raise InputError(
                f"{data.n_classes} classes in {where} for tasks of {wanted.n_way}",
                f"{wanted.n_way} classes in each split that is used",
                f"Lower train.n_way, or {self.more_classes()}.",
            )
        small = (data.counts < need).nonzero().flatten().tolist()
        if small:
            names = ", ".join(f"'{data.class_names[i]}' ({int(data.counts[i])})" for i in small[:3])
            more = f" and {len(small) - 3} more" if len(small) > 3 else ""
            raise InputError(
                f"classes of {where} with too few examples: {names}{more}",
                f"{need}, for n_shot {wanted.n_shot} and n_query {wanted.n_query}",
                f"Add examples, lower n_shot or n_query, or leave such classes out: "
                f"{self.least_of(need)}.",
            )

    def more_classes(self) -> str:
        """How a split gets more classes."""
        return "pack more classes"

    def least_of(self, need: int) -> str:
        """How classes with fewer examples are left out."""
        return f"tegu pack --least {need}"

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        return {**super().protocol(split), "data": Path(self.path).name}


@dataclass(frozen=True, kw_only=True)
class Divided(Own):
    """Classes that tegu divides into splits.

    Args:
        shares: of meta_train, meta_val and meta_test among the classes.
        seed: of that division.
        least: classes with fewer examples are left out.
    """

    shares: tuple[int, ...] = SHARES
    seed: int = 0
    least: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.division()

    def division(self) -> Division:
        """Which class is in which split."""
        return Division(shares=self.shares, seed=self.seed, least=self.least)

    def validated(self) -> str:
        """Without classes for validation, those of training."""
        return self.validation or ("meta_val" if self.shares[1] > 0 else "meta_train")

    def more_classes(self) -> str:
        return f"add classes, or change data.shares, now {list(self.shares)}"

    def least_of(self, need: int) -> str:
        return f"data.least={need}"


@dataclass(frozen=True, kw_only=True)
class Files(Divided):
    """Files in a folder with one sub-folder for each class, divided where it is not itself.

    Args:
        workers: threads that read files; 0 for one a processor.
        hold: MiB of examples up to which a split is read at once and kept in memory.
    """

    workers: int = 0
    hold: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.form()

    def form(self) -> FileForm:
        """What every file becomes."""
        raise TypeError(f"{type(self).__name__} has no form()")

    def inputs(self) -> Inputs:
        form = self.form()
        return Inputs("images", (form.channels, form.size, form.size))

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        return load_files(
            self.place(),
            split,
            self.form(),
            self.division(),
            workers=self.workers,
            hold=self.hold << 20,
        )

    def examples(self, place: Path) -> tuple[list[str], list[str]]:
        found = class_files(place, self.form())
        files = [file for one in found for file in one.files]
        return files, [one.name for one in found for _ in one.files]

    def read(self, some: Sequence[str]) -> Tensor:
        return read_files(some, self.form())

    def validated(self) -> str:
        """Without classes for validation, those of training."""
        folder = Path(self.path)
        if not self.path or not any((folder / split).is_dir() for split in SPLITS):
            return super().validated()
        some = (folder / "meta_val").is_dir()
        return self.validation or ("meta_val" if some else "meta_train")


@dataclass(frozen=True, kw_only=True)
class Folder(Files):
    """Image files of your own.

    Args:
        size: height and width that images are brought to, pixels.
        channels: 3 for colour, 1 for grey.
        fit: "crop" cuts the middle square out, "pad" adds white, "stretch" distorts.
    """

    name: ClassVar[str] = "folder"

    size: int = 84
    channels: int = 3
    fit: str = "crop"

    def form(self) -> FileForm:
        return Form(self.size, self.channels, self.fit)


@dataclass(frozen=True, kw_only=True)
class Sounds(Files):
    """Recordings of your own, as WAV files.

    Args:
        size: bands of pitch, and moments in time, of the picture that a recording becomes.
        seconds: of a recording; the loudest stretch of a longer one, silence around a shorter one.
        highest: upper end of the highest band, hertz.
        augment: of training recordings: "standard" (`spectral`), or none.
    """

    name: ClassVar[str] = "sounds"
    network: ClassVar[Mapping[str, Any]] = {"name": "conv4", "pool": True}

    size: int = 32
    seconds: float = 1.0
    highest: float = 4000.0

    def form(self) -> FileForm:
        return Spectrum(self.size, self.seconds, self.highest)

    def varied(self) -> Augment | None:
        return spectral if self.augment else None


@dataclass(frozen=True, kw_only=True)
class Sentences(Divided):
    """Labelled texts of your own, as vectors of hashed words and letters.

    Args:
        text: column of the texts; "": the one called text, sentence, utterance or query.
        label: column of the classes; "": the one called label, category, intent or class.
        size: numbers in a vector.
    """

    name: ClassVar[str] = "sentences"
    network: ClassVar[Mapping[str, Any]] = {"name": "weighted"}

    text: str = ""
    label: str = ""
    size: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment:
            raise InputError(
                f"data.augment={self.augment} for texts", "none", "Leave data.augment out."
            )
        check_size(self.size)

    def inputs(self) -> Inputs:
        return Inputs("vectors", (self.size,))

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        return load_sentences(
            self.place(),
            split,
            text=self.text,
            label=self.label,
            size=self.size,
            shares=self.shares,
            seed=self.seed,
            least=self.least,
        )

    def examples(self, place: Path) -> tuple[list[str], list[str]]:
        try:
            pairs = list(read_texts(place, text=self.text, label=self.label))
        except ColumnError:  # which may be called otherwise than where it was trained
            if not (self.text or self.label):
                raise
            pairs = list(read_texts(place))
        return [text for text, _ in pairs], [label for _, label in pairs]

    def listed(self, files: Sequence[Path]) -> list[str]:
        for file in files:
            if file.suffix.lower() in (".csv", ".tsv", ".jsonl"):
                raise InputError(
                    f"the table {file} as texts to name",
                    "a file with a text in each line, and nothing else",
                    "Copy its column of texts into a .txt file.",
                )
        return [text for file in files for text in read_lines(file)]

    def read(self, some: Sequence[str]) -> Tensor:
        return read_sentences(some, size=self.size)


@dataclass(frozen=True, kw_only=True)
class Packed(Own):
    """What `tegu pack` or `tegu.datasets.write_packed` has made."""

    name: ClassVar[str] = "packed"

    def inputs(self) -> Inputs:
        if not self.path:
            return Inputs("images", (3, 84, 84))
        shape = tuple(read_index(self.place())["shape"])
        return Inputs("images" if len(shape) == 3 else "vectors", shape)

    def varied(self) -> Augment | None:
        """The augmentation of images, which are to lie between 0 and 1."""
        if self.augment:
            index = read_index(self.place())
            data = load_packed(self.place(), next(iter(index["splits"])))
            some = data.scale * data.examples[torch.arange(min(LOOKED_AT, len(data.examples)))]
            low, high = float(some.min()), float(some.max())
            if len(index["shape"]) != 3 or low < 0 or high > 1:
                raise InputError(
                    f"data.augment={self.augment} for a pack of shape {tuple(index['shape'])} with "
                    f"numbers from {low:g} to {high:g}",
                    "a pack of images, in bytes or from 0 to 1",
                    "Leave data.augment out, or bring the images to that range.",
                )
        return super().varied()

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        return load_packed(self.place(), split)

    def validated(self) -> str:
        """Without classes for validation, those of training."""
        some = not self.path or "meta_val" in read_index(self.place())["splits"]
        return self.validation or ("meta_val" if some else "meta_train")
