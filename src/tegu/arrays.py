"""Arrays and labels as people bring them: read, and grouped by class."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tegu.datasets import ClassDataset
from tegu.errors import InputError, InputTypeError


def grouped(x: Any, y: Any, *, name: str = "arrays", split: str = "meta_train") -> ClassDataset:
    """Examples and their labels as data of classes, class after class.

    Args:
        x: M examples: a tensor, array or nested list, shape (M, ...).
        y: M labels of any hashable kind; classes come in the order of their first example.
        name: what reports call it.
        split: "meta_train", "meta_val" or "meta_test".

    Raises:
        InputError: numbers of examples and labels differ, or a number is NaN or infinite.

    Example:
        >>> data = grouped([[1.0], [2.0], [3.0]], ["b", "a", "b"])
        >>> data.class_names, data.counts.tolist(), data.examples.flatten().tolist()
        (('b', 'a'), [2, 1], [1.0, 3.0, 2.0])
    """
    examples, labels = read_inputs(x, "x", torch.get_default_dtype()), read_labels(y)
    if len(examples) != len(labels):
        raise InputError(
            f"{len(examples)} examples and {len(labels)} labels",
            "one label for each example",
            "Check that x and y come from the same examples.",
        )
    classes, number = numbered(labels)
    number = number.to(examples.device)
    return ClassDataset(
        name,
        split,
        examples[number.argsort(stable=True)],
        number.bincount(),
        tuple(str(label) for label in classes),
    )


def numbered(labels: list[Hashable]) -> tuple[tuple[Hashable, ...], Tensor]:
    """Classes in the order of their first example, and each example's number among them (B,)."""
    at = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return tuple(at), torch.tensor([at[label] for label in labels], dtype=torch.int64)


def read_inputs(x: Any, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor (B, ...), floating, of a tensor, an array or nested lists.

    Args:
        x: what the user gave.
        name: what errors call it.
        dtype: of the tensor; None for that of x, where it is floating.

    Raises:
        InputError: it is empty, no table of numbers, or holds NaN or infinity.
    """
    try:
        if isinstance(x, (list, tuple)) and x and all(isinstance(row, Tensor) for row in x):
            x = torch.stack([row.detach() for row in x])
        tensor = x.detach() if isinstance(x, Tensor) else torch.as_tensor(_packed(np.asarray(x)))
        if tensor.is_complex():
            raise TypeError("complex numbers")
    except (TypeError, ValueError, RuntimeError) as failure:
        raise InputTypeError(
            f"{name} is a {type(x).__name__} that is no table of numbers",
            "a tensor, an array or nested lists of equal length",
            "Convert it first.",
        ) from failure
    if tensor.ndim < 1 or not len(tensor):
        raise InputError(f"{name} is empty", "at least one example", "Pass some examples.")
    if dtype or not tensor.is_floating_point():
        tensor = tensor.to(dtype or torch.get_default_dtype())  # may be too large for it
    if not bool(tensor.isfinite().all()):
        bad = int((~tensor.reshape(len(tensor), -1).isfinite().all(1)).nonzero()[0])
        raise InputError(
            f"{name} holds NaN or infinity in row {bad}",
            "finite numbers",
            "Clean the data, or drop that row.",
        )
    return tensor


class Signature(NamedTuple):
    """What other examples of the same task have to be like; empty fields where anything goes.

    Attributes:
        shape: (C, H, W), of images.
        numbers: "bytes", from 0 to more than 1, or "floats", where arrays or tensors say so.
    """

    shape: tuple[int, ...] = ()
    numbers: str = ""

    @classmethod
    def of(cls, x: Any, inputs: Tensor) -> Signature:
        """That of what a user gave, and of the tensor (B, ...) that was read from it."""
        some = x[0] if isinstance(x, (list, tuple)) else x
        kind = str(getattr(some, "dtype", "")).removeprefix("torch.")
        numbers = "floats" if "float" in kind else ""
        if kind == "uint8" and bool((inputs > 1).any()):
            numbers = "bytes"
        return cls(tuple(inputs.shape[1:]) if inputs.ndim == 4 else (), numbers)

    def check(self, other: Signature) -> None:
        """Refuses examples of another kind, to which answers would be no better than chance."""
        if {self.numbers, other.numbers} == {"bytes", "floats"}:
            raise InputError(
                f"x in {other.numbers} for what was learned from {self.numbers}",
                "inputs on one scale: bytes reach from 0 to 255",
                "Bring all to that of meta-training: x / 255 for images, say.",
            )
        if self.shape and other.shape and self.shape != other.shape:
            raise InputError(
                f"images of shape {other.shape} for what was learned from {self.shape}",
                "images of one shape (C, H, W)",
                "Bring all to that of meta-training, as tegu.read_images does.",
            )


ANYTHING = Signature()


def _packed(array: Any) -> Any:
    """The array as torch takes it, which knows no negative strides and no foreign byte order."""
    if array.dtype == object and not any(isinstance(v, (str, bytes)) for v in array.flat):
        array = array.astype(np.float64)  # numbers of several kinds, as a frame's columns
    if not array.ndim:
        return array
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()


def read_labels(y: Any) -> list[Hashable]:
    """Labels of any hashable kind, as a list.

    Raises:
        InputError: it is no list of labels, or one of them is missing.
    """
    listed = y.tolist() if isinstance(y, (Tensor, np.ndarray)) else y
    if not isinstance(listed, Iterable):
        raise InputTypeError(
            f"y is a {type(y).__name__}", "a label for each input", "Pass them in a list."
        )
    # Tensors hash by identity: two zeros would be two classes.
    # numpy's numbers would be no labels of a file.
    values = [
        v.item() if isinstance(v, np.generic) or (isinstance(v, Tensor) and not v.ndim) else v
        for v in listed
    ]
    for row, value in enumerate(values):
        if not isinstance(value, Hashable) or isinstance(value, Tensor):
            raise InputTypeError(
                f"a label is a {type(value).__name__}", "hashable labels", "Use numbers or names."
            )
        try:
            missing = bool(value != value)
        except TypeError:  # pandas' NA is neither equal nor unequal
            missing = True
        if missing:
            raise InputError(
                f"y holds NaN in row {row}", "a label for each input", "Drop that row."
            )
    return values


def rows_of_floats(y: Any) -> bool:
    """Whether targets are numbers, (S, D), and no labels, each of which is hashable."""
    rows = (list, np.ndarray, Tensor)
    if isinstance(y, (list, tuple)) and not (y and all(isinstance(row, rows) for row in y)):
        return False
    try:
        array = y if isinstance(y, Tensor) else torch.as_tensor(np.asarray(y))
    except (TypeError, ValueError, RuntimeError):
        return False
    return array.ndim == 2 and array.is_floating_point()


@contextmanager
def taken(inputs: Tensor) -> Iterator[None]:
    """Refuses inputs that the model inside cannot take, in words of a user's.

    Raises:
        InputError: the model raised an error of its own.
    """
    try:
        yield
    except InputError:
        raise  # the learner knows better what is wrong
    except (RuntimeError, ValueError, IndexError) as failure:
        raise InputError(
            f"x has shape {tuple(inputs.shape)}",
            "inputs of the shape that the model was trained on",
            f"Reshape them; the model said: {str(failure).splitlines()[0]}",
        ) from failure
