"""Nested dicts and tuples of tensors: episodes, parameters, states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Applies a function to the tensors of nested dicts and tuples of one shape."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, dict):
        return {k: map_tensors(function, *(tree[k] for tree in trees)) for k in first}
    parts = [map_tensors(function, *parts) for parts in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of nested dicts and tuples, in the order of `map_tensors`."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(keep, tree)
    return found


def names_of(tree: Any) -> Any:
    """The names in nested dicts and tuples, nested alike."""
    if isinstance(tree, Tensor):
        return None
    if isinstance(tree, dict):
        return tuple((name, names_of(part)) for name, part in tree.items())
    return tuple(names_of(part) for part in tree)


def like(tree: Any, tensors: Iterable[Tensor]) -> Any:
    """A tree of the same shape with these tensors in it."""
    left = iter(tensors)
    return map_tensors(lambda _: next(left), tree)


def floats(tree: Any) -> list[Tensor]:
    """The floating tensors of nested dicts and tuples, in the order of `map_tensors`."""
    return [x for x in tensors_of(tree) if x.is_floating_point()]


def with_floats(tree: Any, floats: Iterable[Tensor]) -> Any:
    """The tree with other floating tensors; whole numbers and masks stay."""
    left = iter(floats)
    return map_tensors(lambda x: next(left) if x.is_floating_point() else x, tree)
