"""The 3x3 convolution: one result for shared weights and for weights per task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from tegu.models import Conv4, convolution
from tegu.models.convolution import NARROW, Conv, patches, per_task

WIDE = NARROW + 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(in_width: int, out_width: int, stride: int) -> Conv:
    return Conv(
        in_width, out_width, stride=stride, generator=torch.Generator().manual_seed(1)
    ).double()


def reference(weight: Tensor, x: Tensor, stride: int) -> Tensor:
    """torch's convolution of one task, channels first."""
    kernel = weight.reshape(3, 3, x.shape[-1], -1).permute(3, 2, 0, 1)
    out = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=stride, padding=1)
    return out.permute(0, 2, 3, 1)


@pytest.mark.parametrize("in_width", [2, WIDE])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 7), (6, 5), (1, 4), (1, 1), (2, 3)])
def test_both_ways_are_torchs_convolution(
    height: int, width: int, stride: int, in_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = make(in_width, 5, stride), draw(3, height, width, in_width)
    expected = reference(conv.weight, x, stride)
    torch.testing.assert_close(conv(x), expected)
    monkeypatch.setattr(convolution, "per_task", lambda weight: True)
    torch.testing.assert_close(conv(x), expected)


def test_strided_patches_by_hand() -> None:
    """The four 3x3 windows of 1 to 9 at stride 2, zero outside."""
    x = torch.arange(1.0, 10).reshape(1, 3, 3, 1)
    assert patches(x, 2).reshape(4, 9).tolist() == [
        [0, 0, 0, 0, 1, 2, 0, 4, 5],
        [0, 0, 0, 2, 3, 0, 5, 6, 0],
        [0, 4, 5, 0, 7, 8, 0, 0, 0],
        [5, 6, 0, 8, 9, 0, 0, 0, 0],
    ]


def test_patches_by_hand() -> None:
    """Two of the windows of 1 to 6 in two rows, with two channels."""
    x = torch.stack([torch.arange(1, 7), -torch.arange(1, 7)], -1).reshape(1, 2, 3, 2)
    found = patches(x, 1).reshape(2, 3, 9, 2)
    assert found[0, 0, :, 0].tolist() == [0, 0, 0, 0, 1, 2, 0, 4, 5]
    assert found[1, 2, :, 0].tolist() == [2, 3, 0, 5, 6, 0, 0, 0, 0]
    assert torch.equal(found[..., 1], -found[..., 0])


@pytest.mark.parametrize("stride", [1, 2])
def test_no_images(stride: int) -> None:
    for in_width in (2, WIDE):
        assert make(in_width, 5, stride)(draw(0, 4, 6, in_width)).shape == (
            *(0, 4 // stride, 6 // stride),
            5,
        )


def loss(weight: Tensor, x: Tensor, conv: Conv | None, stride: int) -> Tensor:
    """Something whose second derivatives depend on weights and images."""
    if conv is None:
        return reference(weight, x, stride).pow(3).mean()
    out: Tensor = functional_call(conv, {"weight": weight}, (x,))
    return out.pow(3).mean()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per task"])
@pytest.mark.parametrize("in_width", [2, WIDE])
@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_both_orders_under_vmap(stride: int, in_width: int, shared: bool) -> None:
    """A gradient step per task, and the gradient behind it; torch.autograd in a loop beside it."""
    conv, x = make(in_width, 4, stride), draw(3, 2, 5, 6, in_width)
    weight = draw(9 * in_width, 4) if shared else draw(3, 9 * in_width, 4)

    def stepped(weight: Tensor, x: Tensor) -> Tensor:
        new = weight - 0.1 * grad(loss)(weight, x, conv, stride)
        return loss(new, x.flip(1), conv, stride) + loss(weight, x, conv, stride)

    axes = (None if shared else 0, 0)
    found = vmap(stepped, in_dims=axes)(weight, x)
    of_weight, of_x = grad(lambda w, x: vmap(stepped, in_dims=axes)(w, x).sum(), (0, 1))(weight, x)
    inside = vmap(grad(stepped), in_dims=axes)(weight, x)

    w, images = weight.clone().requires_grad_(), x.clone().requires_grad_()
    values = []
    for t in range(3):
        own = w if shared else w[t]
        first = loss(own, images[t], None, stride)
        (slope,) = torch.autograd.grad(first, own, create_graph=True)
        values.append(loss(own - 0.1 * slope, images[t].flip(1), None, stride) + first)
    expected = torch.stack(values)
    gradients = [torch.autograd.grad(v, (w, images), retain_graph=True) for v in values]
    kwargs = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found, expected.detach(), **kwargs)
    torch.testing.assert_close(of_weight, sum(g[0] for g in gradients), **kwargs)
    torch.testing.assert_close(of_x, sum(g[1] for g in gradients), **kwargs)
    each = torch.stack([g[0] if shared else g[0][t] for t, g in enumerate(gradients)])
    torch.testing.assert_close(inside, each, **kwargs)


def test_patches_are_taken_where_weights_are_a_tasks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def counted(x: Tensor, stride: int) -> Tensor:
        taken.append(stride)
        return patches(x, stride)

    monkeypatch.setattr(convolution, "patches", counted)
    conv, x = make(WIDE, 4, 1), draw(3, 2, 5, 6, WIDE)
    weights = draw(3, 9 * WIDE, 4)

    def value(weight: Tensor, x: Tensor) -> Tensor:
        return loss(weight, x, conv, 1)

    conv(x[0])
    vmap(value, in_dims=(None, 0))(weights[0], x)
    grad(lambda w: vmap(value, in_dims=(None, 0))(w, x).sum())(weights[0])
    vmap(grad(value), in_dims=(None, 0))(weights[0], x)
    assert taken == []
    vmap(value)(weights, x)
    grad(lambda w: vmap(value)(w, x).sum())(weights)
    vmap(grad(value))(weights, x)
    vmap(lambda w: vmap(value, in_dims=(None, 0))(w, x))(weights)  # of the outer vmap's tasks
    assert taken == [1, 1, 1, 1]
    narrow, x = make(NARROW, 4, 2), draw(2, 1, 4, 4, NARROW)
    narrow(x[0])
    assert taken == [1, 1, 1, 1]
    vmap(narrow)(x)  # images of several tasks
    assert taken == [1, 1, 1, 1, 2]


def test_a_torch_that_cannot_be_asked_takes_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not per_task(torch.ones(1))
    monkeypatch.delattr(torch._C._functorch, "is_batchedtensor")
    monkeypatch.delattr(torch._C._functorch, "is_functorch_wrapped_tensor")
    assert per_task(torch.ones(1))


def test_a_network_can_be_compiled_in_one_piece() -> None:
    """Code that torch reads, rather than runs, cannot ask about vmap."""
    conv, x = make(WIDE, 4, 1), draw(2, 5, 6, WIDE)
    compiled = torch.compile(conv, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), conv(x))
    pooled, images = Conv4(3, size=16, width=4, pool=True), torch.rand(6, 1, 16, 16)
    compiled = torch.compile(pooled, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), pooled(images))
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), pooled(images))


@pytest.mark.parametrize("in_width", [2, WIDE])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per task"])
@pytest.mark.parametrize("autocast", ["around", "inside"])
def test_bf16_rounds_images_and_weights(in_width: int, shared: bool, autocast: str) -> None:
    """Autocast may be entered around vmap or inside it; either way products are of bf16."""
    conv, x = make(in_width, 4, 1).float(), draw(3, 2, 5, 6, in_width).float()
    weights = draw(3, 9 * in_width, 4).float()
    given = weights[0] if shared else weights

    def inner(weight: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "inside"):
            out: Tensor = functional_call(conv, {"weight": weight}, (x,))
        return out

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "around"):
        if autocast == "around":
            found = vmap(
                lambda w, x: functional_call(conv, {"weight": w}, (x,)),
                in_dims=(None if shared else 0, 0),
            )(given, x)
        else:
            found = vmap(inner, in_dims=(None if shared else 0, 0))(given, x)
    assert found.dtype == torch.bfloat16
    rounded = [
        reference(weights[0 if shared else t].bfloat16().float(), x[t].bfloat16().float(), 1)
        for t in range(3)
    ]
    torch.testing.assert_close(found.float(), torch.stack(rounded), rtol=2**-8, atol=1e-3)
