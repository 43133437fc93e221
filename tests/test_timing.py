"""Timings: of what they say they are, and in turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tegu import timing

CPU = torch.device("cpu")


class Products(TorchDispatchMode):
    """Notes the types of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is torch.ops.aten.mm.default:
            self.seen.append(args[0].dtype)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_of_the_precision_named(name: str, dtype: torch.dtype) -> None:
    with Products() as products:
        assert timing.product(name, CPU, 8, times=3) > 0
    assert products.seen == [dtype] * 3


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second later whenever it is read."""
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))


@pytest.mark.usefixtures("ticking")
def test_a_limit_counts_two_operations_for_each_product() -> None:
    assert timing.limit("fp32", size=8) == 2 * 8**3


@pytest.mark.usefixtures("ticking")
def test_in_turn() -> None:
    """A round is some calls of one, then of the next; those before the first do not count."""
    calls: list[tuple[str, int]] = []

    def act(name: str) -> Any:
        return lambda i: calls.append((name, i))

    found = timing.in_turn([act("a"), act("b")], rounds=2, each=2, warm=1)
    assert found == [[0.5, 0.5], [0.5, 0.5]]
    assert calls == [(n, i) for pair in ((0, 1), (2, 3), (4, 5)) for n in "ab" for i in pair]


@pytest.mark.usefixtures("ticking")
def test_in_turn_within_something() -> None:
    """What calls run in is entered for each round, and its first call there does not count."""
    calls: list[str] = []

    @contextmanager
    def inside() -> Iterator[None]:
        calls.append("in")
        yield
        calls.append("out")

    acts = [lambda i: calls.append(f"a{i}"), lambda i: calls.append(f"b{i}")]
    found = timing.in_turn(acts, rounds=1, each=2, warm=0, within=[inside, nullcontext])
    assert found == [[0.5], [0.5]]
    assert calls == ["in", "a0", "a0", "a1", "out", "b0", "b0", "b1"]


@pytest.mark.usefixtures("ticking")
def test_in_turn_ends_where_it_is_enough() -> None:
    found = timing.in_turn([lambda i: None], rounds=9, warm=0, enough=lambda: True)
    assert found == [[1.0]]
