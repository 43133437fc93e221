"""Images of classes: glyphs, scribbles, Omniglot, CIFAR-FS and FC100."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tegu.datasets import (
    ClassDataset,
    load_cifar_fs,
    load_fc100,
    load_glyphs,
    load_omniglot,
    load_scribbles,
)
from tegu.datasets.augment import Augment, standard
from tegu.errors import unknown
from tegu.sampling import FewShotTasks, Tasks
from tegu.sources.source import Inputs, Source, Wanted


@dataclass(frozen=True, kw_only=True)
class Images(Source):
    """Tasks of `n_way` classes.

    Args:
        augment: of training images: "standard" (crop, flip and colour, or affine), or none.
        within: every task from one group of classes: Omniglot's alphabets, say.
    """

    shape: ClassVar[tuple[int, int, int]]

    augment: str = ""
    within: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment not in ("", "standard"):
            raise unknown("augmentation", self.augment, ["standard"])

    def inputs(self) -> Inputs:
        return Inputs("images", self.shape)

    def varied(self) -> Augment | None:
        """The augmentation of training images, by name."""
        return standard(self.inputs().shape[0], paper=1.0) if self.augment else None

    def tasks(self, wanted: Wanted, data: ClassDataset | None = None) -> Tasks:
        assert data is not None
        varied = self.varied() if wanted.training else None
        return FewShotTasks(
            data,
            wanted.n_way,
            wanted.n_shot,
            wanted.n_query,
            wanted.seed,
            varied,
            within=self.within,
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        return {"within": "group" if self.within else None}


@dataclass(frozen=True, kw_only=True)
class Ink(Images):
    """Drawings in one channel.

    Args:
        invert: ink is 1 and paper 0, rather than the other way round.
    """

    shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)

    invert: bool = False

    def varied(self) -> Augment | None:
        return standard(1, paper=0.0 if self.invert else 1.0) if self.augment else None

    def inked(self, data: ClassDataset) -> ClassDataset:
        """The images as `invert` wants them."""
        return replace(data, examples=255 - data.tensor) if self.invert else data


@dataclass(frozen=True, kw_only=True)
class Glyphs(Ink):
    """Characters drawn in the fonts that come with matplotlib."""

    name: ClassVar[str] = "glyphs"

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        return self.inked(load_glyphs(split))


@dataclass(frozen=True, kw_only=True)
class Scribbles(Ink):
    """Alphabets of characters made of random strokes.

    Args:
        alphabets: of training; validation and tests have a fifth of it each.
        characters: of an alphabet.
        drawers: examples of a character.
        seed: of everything drawn.
    """

    name: ClassVar[str] = "scribbles"
    start: ClassVar[Mapping[str, Any]] = {"data.invert": True}

    alphabets: int = 30
    characters: int = 30
    drawers: int = 20
    seed: int = 0

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        training = split == "meta_train"
        alphabets = self.alphabets if training else max(1, self.alphabets // 5)
        return self.inked(
            load_scribbles(
                split,
                seed=self.seed,
                alphabets=alphabets,
                characters=self.characters,
                drawers=self.drawers,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Omniglot(Ink):
    """Handwritten characters.

    Args:
        partition: reptile, vinyals, vinyals-trainval or alphabets.
        rotations: rotated characters are training classes too.
        shrink: nearest, mean or crop, as for `load_omniglot`.
    """

    name: ClassVar[str] = "omniglot"
    downloads: ClassVar[bool] = True
    # The partition that has a validation split; and no ink beyond an image's edge, where a
    # convolution finds zeros.
    start: ClassVar[Mapping[str, Any]] = {"data.partition": "vinyals", "data.invert": True}

    partition: str = "reptile"
    rotations: bool = True
    shrink: str = "nearest"

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        # The Vinyals split has rotated classes in every part, the others to train on.
        rotations = self.rotations and (
            split == "meta_train" or self.partition.startswith("vinyals")
        )
        return self.inked(
            load_omniglot(
                split,
                partition=self.partition,
                data_dir=data_dir,
                rotations=rotations,
                shrink=self.shrink,
            )
        )

    def protocol(self, split: str = "meta_test") -> dict[str, Any]:
        rotated = self.rotations and self.partition.startswith("vinyals")
        told = f"omniglot, {self.partition}{', rotated' if rotated else ''}"
        return {**super().protocol(split), "data": told}

    def validated(self) -> str:
        has_none = self.partition != "vinyals"
        return self.validation or ("meta_train" if has_none else "meta_val")


@dataclass(frozen=True, kw_only=True)
class CifarFs(Images):
    """CIFAR-100 photographs in the split of Bertinetto et al."""

    name: ClassVar[str] = "cifar-fs"
    downloads: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        return load_cifar_fs(split, data_dir=data_dir)


@dataclass(frozen=True, kw_only=True)
class Fc100(Images):
    """CIFAR-100 photographs split by superclass."""

    name: ClassVar[str] = "fc100"
    downloads: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    def load(self, split: str, data_dir: Path | None) -> ClassDataset:
        return load_fc100(split, data_dir=data_dir)
