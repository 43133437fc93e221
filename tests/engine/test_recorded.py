"""CUDA graphs of functions of nested tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from tegu.engine.recorded import MOST, Recorded

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_on_a_cpu_it_is_the_function() -> None:
    calls = []

    def double(tree: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(tree)
        return {"y": 2 * tree["x"]}

    recorded = Recorded(double)
    for number in range(3):
        assert recorded({"x": torch.tensor(float(number))})["y"] == 2 * number
    assert len(calls) == 3


@pytest.mark.gpu
@on_gpu
def test_a_replay_reads_what_it_is_given_and_keeps_what_it_gave() -> None:
    calls = []

    def both(tree: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        calls.append(tree)
        return {
            "y": tree["x"].index_select(0, index[None])[0],
            "same": tree["x"],
            "index": index + 1,
        }

    recorded, found = Recorded(both), []
    for number in range(6):
        x = torch.arange(4.0, device="cuda") + number
        found.append(recorded({"x": x}, torch.full((), number % 4, device="cuda")))
    assert len(calls) == 2  # called, then recorded
    for number, one in enumerate(found):
        assert one["y"] == number + number % 4
        assert one["same"].tolist() == [number, number + 1, number + 2, number + 3]
        assert one["index"] == number % 4 + 1


@pytest.mark.gpu
@on_gpu
def test_what_asks_for_values_is_called_with_one_warning() -> None:
    def asking(x: Tensor) -> Tensor:
        return x * float(x.sum())

    recorded, x = Recorded(asking), torch.ones(3, device="cuda")
    recorded(x)
    with pytest.warns(RuntimeWarning, match="no CUDA graph"):
        assert recorded(x).tolist() == [3, 3, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recorded(2 * x).tolist() == [12, 12, 12]


@pytest.mark.gpu
@on_gpu
def test_so_many_shapes_are_recorded_and_no_more() -> None:
    recorded = Recorded(lambda x: x + 1)
    for _ in range(3):
        for n in range(1, MOST + 3):
            assert recorded(torch.zeros(n, device="cuda")).tolist() == [1] * n
    assert len(recorded._recordings) == MOST
