"""Recurrence over rows of unequal length: two ways, one answer, that of torch.nn.LSTM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tegu.errors import InputError
from tegu.models.lstm import Lstm, flipped, packed, scan

B, M, H = 5, 7, 4
LENGTHS = torch.tensor([3, 7, 1, 7, 5])
WAYS = [scan, packed]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def network(ways: int, packed: bool) -> Lstm:
    return Lstm(H, 2, ways, torch.Generator().manual_seed(1), packed=packed).double()


def of_torch(ours: Lstm, ways: int) -> nn.LSTM:
    """torch's network with the same weights."""
    theirs = nn.LSTM(H, H, 2, bidirectional=ways == 2).double()
    for layer in range(2):
        w, u, b = ours.weights(layer)
        for way in range(ways):
            tail = f"l{layer}" + ("_reverse" if way else "")
            values = {"weight_ih_": w, "weight_hh_": u, "bias_ih_": b, "bias_hh_": 0 * b}
            for name, value in values.items():
                getattr(theirs, name + tail).data.copy_(value[way])
    return theirs


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("fast", [False, True])
def test_two_layers_are_those_of_torch(ways: int, fast: bool) -> None:
    ours, x = network(ways, fast), drawn(B, M, H)
    theirs = of_torch(ours, ways)
    start = drawn(B, H, seed=2)
    out, last = ours(x, LENGTHS, start, [None])

    steps = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    begun = start.expand(2 * ways, B, H).contiguous()
    done, (hidden, _) = theirs(steps, (begun, begun))
    padded, _ = pad_packed_sequence(done, batch_first=True)
    torch.testing.assert_close(out, padded.unflatten(-1, (ways, H)).sum(2))
    torch.testing.assert_close(last, hidden[-ways:].sum(0))

    weight = drawn(B, M, H, seed=3)
    (weight * out).sum().backward()
    (weight * padded.unflatten(-1, (ways, H)).sum(2)).sum().backward()
    for layer in range(2):
        w, u, b = ours.weights(layer)
        for way in range(ways):
            tail = f"l{layer}" + ("_reverse" if way else "")
            torch.testing.assert_close(w.grad[way], getattr(theirs, "weight_ih_" + tail).grad)
            torch.testing.assert_close(u.grad[way], getattr(theirs, "weight_hh_" + tail).grad)
            torch.testing.assert_close(b.grad[way], getattr(theirs, "bias_ih_" + tail).grad)


def layer(ways: int) -> list[Tensor]:
    """x, w, u, b and start of one layer, inputs narrower than states."""
    shapes = [(B, M, 3), (ways, 4 * H, 3), (ways, 4 * H, H), (ways, 4 * H), (B, H)]
    return [drawn(*shape, seed=i) for i, shape in enumerate(shapes)]


def total(run: Callable[..., Any], lengths: Tensor, tensors: list[Tensor]) -> Tensor:
    """A number that all outputs of a layer go into."""
    x, *rest = tensors
    both = run(x, lengths, *rest)
    return sum((part * drawn(*part.shape, seed=8).to(part)).sum() for part in both)  # type: ignore[return-value]


@pytest.mark.parametrize("ways", [1, 2])
def test_the_gradient_written_by_hand(ways: int) -> None:
    tensors = [t.requires_grad_() for t in layer(ways)]
    values = [total(run, LENGTHS, tensors) for run in WAYS]
    torch.testing.assert_close(*values)
    for one, two in zip(*(torch.autograd.grad(v, tensors) for v in values), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("ways", [1, 2])
def test_episodes_side_by_side(ways: int) -> None:
    """Three episodes whose rows have lengths of their own, under vmap, as one by one."""
    x, w, u, b, start = layer(ways)
    xs = torch.stack([x, x.flip(0), 2 * x])
    starts = torch.stack([start, 2 * start, -start])
    lengths = torch.stack([LENGTHS, LENGTHS.flip(0), torch.full_like(LENGTHS, 2)])

    def together(weights: list[Tensor]) -> Tensor:
        def one(x: Tensor, lengths: Tensor, start: Tensor) -> Tensor:
            return total(packed, lengths, [x, *weights, start])

        return vmap(one)(xs, lengths, starts).sum()

    def apart(weights: list[Tensor]) -> Tensor:
        each = [total(scan, lengths[t], [xs[t], *weights, starts[t]]) for t in range(3)]
        return torch.stack(each).sum()

    weights = [w, u, b]
    torch.testing.assert_close(together(weights), apart(weights))
    for one, two in zip(grad(together)(weights), grad(apart)(weights), strict=True):
        torch.testing.assert_close(one, two)


def test_what_packed_rows_cannot_do_is_said() -> None:
    x, w, u, b, start = layer(1)

    def slope(w: Tensor) -> Tensor:
        return grad(lambda w: total(packed, LENGTHS, [x, w, u, b, start]))(w).square().sum()

    with pytest.raises(InputError, match="a second derivative through a packed recurrence"):
        grad(slope)(w)
    with pytest.raises(InputError, match=r"weights that differ from task to task.*packed=False"):
        vmap(lambda w: total(packed, LENGTHS, [x, w, u, b, start]))(torch.stack([w, w]))


def test_plain_steps_can_do_that() -> None:
    """Weights of each task's own, and gradients of gradients, against differences."""
    x, w, u, b, start = layer(2)

    def slope(w: Tensor) -> Tensor:
        return grad(lambda w: total(scan, LENGTHS, [x, w, u, b, start]))(w).square().sum()

    way, step = drawn(*w.shape, seed=7), 1e-6
    measured = (slope(w + step * way) - slope(w - step * way)) / (2 * step)
    torch.testing.assert_close((grad(slope)(w) * way).sum(), measured, rtol=1e-6, atol=1e-6)
    both = vmap(slope)(torch.stack([w, 2 * w]))
    torch.testing.assert_close(both, torch.stack([slope(w), slope(2 * w)]))


@pytest.mark.parametrize("run", WAYS)
def test_padding_is_not_read(run: Callable[..., Any]) -> None:
    x, *rest = layer(2)
    out, last = run(x, LENGTHS, *rest)
    behind = torch.arange(M) >= LENGTHS[:, None]
    changed = torch.where(behind[..., None], 1e3, x)
    again = run(changed, LENGTHS, *rest)
    torch.testing.assert_close((out, last), again, rtol=0, atol=0)
    assert not bool(out[behind].any())


def test_bf16_is_near() -> None:
    tensors = [t.float() for t in layer(2)]
    exact = total(scan, LENGTHS, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        rough = total(packed, LENGTHS, tensors)
    assert rough.dtype == torch.float32
    assert 0 < abs(float(rough - exact)) < 0.05 * abs(float(exact))


def test_rows_are_turned_within_their_length() -> None:
    x = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]])
    assert flipped(x, torch.tensor([3, 1])).tolist() == [[3, 2, 1, 0], [4, 0, 0, 0]]
