"""Networks: sizes, seeded starts, and weights of their own for each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tegu.errors import InputError
from tegu.models import Conv4, ConvNet, Mlp
from tegu.models.convolution import max_pool


@pytest.mark.parametrize(
    ("size", "channels", "features"), [(28, 1, 2 * 2 * 64), (84, 3, 6 * 6 * 64), (16, 1, 64)]
)
def test_sizes(size: int, channels: int, features: int) -> None:
    model = Conv4(5, channels=channels, size=size)
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    assert model.body(x).shape == (2, features)
    assert model.feature_width == features
    assert model(x).shape == (2, 5)
    assert bool(model(x).isfinite().all())


@pytest.mark.parametrize("pool", [False, True])
def test_features_of_the_last_layers(pool: bool) -> None:
    """Each layer's own outputs, as a network that ends there has them; the last come last."""
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model = Conv4(5, width=(3, 4, 5, 6), pool=pool, last=3)
    found, whole = model.body(x), Conv4(5, width=(3, 4, 5, 6), pool=pool).body
    parts = []
    for depth in (2, 3, 4):
        cut = Conv4(5, width=(3, 4, 5, 6), pool=pool).body
        cut.load_state_dict(whole.state_dict())
        cut.convs, cut.norms = cut.convs[:depth], cut.norms[:depth]
        parts.append(cut(x))
    assert torch.equal(found, torch.cat(parts, 1))
    assert found.shape == (2, model.feature_width)
    assert model(x).shape == (2, 5)
    with pytest.raises(InputError, match="last is 5; expected 1 to 4"):
        Conv4(5, last=5)


def test_weights_of_the_omniglot_network() -> None:
    """Four convolutions without bias, four scales and shifts, and the head."""
    n = sum(p.numel() for p in Conv4(5).parameters())
    assert n == 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64 + 2 * 2 * 64 * 5 + 5
    assert sum(p.numel() for p in Conv4(20).parameters()) == n + 15 * (2 * 2 * 64 + 1)


@pytest.mark.parametrize(
    ("size", "channels", "side"), [(28, 1, 1), (32, 3, 2), (84, 3, 5), (47, 1, 2)]
)
def test_sizes_with_pooling(size: int, channels: int, side: int) -> None:
    model = Conv4(5, channels=channels, size=size, width=4, pool=True)
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    assert model.body(x).shape == (2, side * side * 4)
    assert model.feature_width == side * side * 4
    assert model(x).shape == (2, 5)


def test_pooled_network_is_what_torchs_layers_make() -> None:
    model = Conv4(5, channels=3, size=33, width=(4, 5, 12, 7), pool=True).double()
    generator = torch.Generator().manual_seed(0)
    for norm in model.body.norms:
        norm.weight.data.uniform_(0.5, 2, generator=generator)
        norm.bias.data.uniform_(-1, 1, generator=generator)
    x = torch.rand(6, 3, 33, 33, generator=generator, dtype=torch.float64)
    h = x
    for conv, norm in zip(model.body.convs, model.body.norms, strict=True):
        kernel = conv.weight.reshape(3, 3, h.shape[1], -1).permute(3, 2, 0, 1)
        h = F.conv2d(h, kernel, padding=1)
        h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True, eps=1e-5)
        h = nn.MaxPool2d(2)(F.relu(h))
    features = h.permute(0, 2, 3, 1).flatten(1)
    assert features.shape == (6, 2 * 2 * 7)
    torch.testing.assert_close(model.body(x), features)
    torch.testing.assert_close(model(x), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize(
    ("size", "strides", "side"), [(28, (2, 2, 1, 2, 1), 4), (33, (1, 2, 1, 1, 2), 9)]
)
def test_any_number_of_convolutions(size: int, strides: tuple[int, ...], side: int) -> None:
    """Sizes, and what torch's layers make of the same weights."""
    widths = (3, 4, 12, 5, 6)
    model = ConvNet(7, channels=2, size=size, widths=widths, strides=strides).double()
    generator = torch.Generator().manual_seed(0)
    for norm in model.body.norms:
        norm.weight.data.uniform_(0.5, 2, generator=generator)
        norm.bias.data.uniform_(-1, 1, generator=generator)
    x = torch.rand(6, 2, size, size, generator=generator, dtype=torch.float64)
    h = x
    for conv, norm, stride in zip(model.body.convs, model.body.norms, strides, strict=True):
        kernel = conv.weight.reshape(3, 3, h.shape[1], -1).permute(3, 2, 0, 1)
        h = F.conv2d(h, kernel, stride=stride, padding=1)
        h = F.relu(F.batch_norm(h, None, None, norm.weight, norm.bias, training=True, eps=1e-5))
    features = h.permute(0, 2, 3, 1).flatten(1)
    assert features.shape == (6, model.feature_width) == (6, side * side * 6)
    torch.testing.assert_close(model.body(x), features)
    torch.testing.assert_close(model(x), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"widths": (4, 4)}, "2 widths and 5 strides .* one of each"),
        ({"widths": (), "strides": ()}, "0 widths and 0 strides"),
        ({"widths": (4, 0), "strides": (1, 2)}, "1 filter or more"),
        ({"widths": (4, 4), "strides": (1, 3)}, "strides of 1 or 2"),
    ],
)
def test_convolutions_that_are_none(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        ConvNet(5, **settings)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 4)])
def test_max_pool_is_torchs(height: int, width: int) -> None:
    x = torch.randn(2, height, width, 3, generator=torch.Generator().manual_seed(0))
    if height == 1:
        assert max_pool(x).shape == (2, 0, 2, 3)
        return
    x[0, 0, 1, 2], x[1, 1, 0, 0] = torch.nan, -torch.inf
    channels_first = x.permute(0, 3, 1, 2).contiguous()
    expected = F.max_pool2d(channels_first, 2).permute(0, 2, 3, 1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for same in (x, channels_first.permute(0, 2, 3, 1)):
                found = max_pool(same), torch.func.vmap(max_pool)(same[None])[0]
                for one in found:
                    torch.testing.assert_close(one, expected, rtol=0, atol=0, equal_nan=True)


def test_max_pool_has_right_derivatives_of_both_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def cubed(x: Tensor) -> Tensor:
        return max_pool(x).pow(3)

    assert torch.autograd.gradcheck(cubed, x)
    assert torch.autograd.gradgradcheck(cubed, x)


def test_which_of_equals_takes_the_gradient_of_max_pool() -> None:
    x = torch.tensor([[1.0, 3.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)
    gradient = torch.func.grad(lambda x: max_pool(x).sum())
    assert gradient(x).flatten().tolist() == [0, 1, 0, 0]
    shares = torch.func.vmap(gradient)(x[None]), make_fx(gradient)(x)(x)
    assert [found.flatten().tolist() for found in shares] == [[0, 0.5, 0.5, 0]] * 2


def test_max_pool_of_several_tasks_has_the_derivatives_of_amax() -> None:
    """With several largest values too, of whole numbers, and to the second order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (3, 2, 5, 4, 2), generator=generator).double()
    weight = torch.randn(3, 2, 2, 2, 2, generator=generator, dtype=torch.float64)

    def by_amax(x: Tensor) -> Tensor:
        return x[:, :4].reshape(2, 2, 2, 2, 2, 2).amax((2, 4))

    def slopes(pool: Callable[[Tensor], Tensor]) -> list[Tensor]:
        def loss(x: Tensor, weight: Tensor) -> Tensor:
            return (pool(x).pow(3) * weight).sum()

        def slope(x: Tensor, weight: Tensor) -> Tensor:
            return torch.func.grad(loss)(x, weight).pow(2).sum()

        return [torch.func.vmap(torch.func.grad(f))(x, weight) for f in (loss, slope)]

    assert len(by_amax(x[0]).unique()) < by_amax(x[0]).numel()
    torch.testing.assert_close(slopes(max_pool), slopes(by_amax))


def test_no_head() -> None:
    for model, x in (
        (Conv4(0, size=16, width=4), torch.rand(2, 1, 16, 16)),
        (Mlp(4, 0, hidden=(3,)), torch.rand(2, 4)),
    ):
        assert not any(name.startswith("head") for name in model.state_dict())
        assert torch.equal(model(x), model.body(x))
        assert model(x).shape == (2, model.feature_width)
    assert Mlp(4, 2, hidden=()).feature_width == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": (4, 4, 4)}, r"3 widths for a Conv4; expected one for all layers, or four"),
        ({"size": 15, "pool": True}, r"images of 15 pixels for a Conv4 with pooling"),
    ],
)
def test_what_cannot_be_built(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Conv4(5, **settings)


@pytest.mark.parametrize(
    "make", [lambda s: Conv4(3, size=8, width=4, seed=s), lambda s: Mlp(4, 2, seed=s)]
)
def test_starts_are_functions_of_the_seed_alone(make) -> None:
    state = torch.get_rng_state()
    first, again, other = (dict(make(s).named_parameters()) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not all(torch.equal(a, b) for a, b in zip(first.values(), other.values(), strict=True))


def test_glorots_bound() -> None:
    for weight, fan in ((Conv4(5).body.convs[1].weight, 9 * 128), (Conv4(5).head.weight, 256 + 5)):
        p, bound = weight.detach(), (6 / fan) ** 0.5
        assert 0.99 * bound < float(p.abs().max()) <= bound
        assert float(p.var()) == pytest.approx(bound**2 / 3, rel=0.1)


@pytest.mark.parametrize("pool", [False, True])
def test_a_network_under_vmap_with_weights_of_its_own_per_task(pool: bool) -> None:
    models = [Conv4(3, size=16, width=9, pool=pool, seed=s).double() for s in range(3)]
    stacked = {k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()}
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 5, 1, 16, 16, generator=generator, dtype=torch.float64)
    together = vmap(lambda w, x: torch.func.functional_call(models[0], w, (x,)))(stacked, x)
    alone = torch.stack([model(images) for model, images in zip(models, x, strict=True)])
    torch.testing.assert_close(together, alone)


def test_mlp_by_hand() -> None:
    model = Mlp(4, 1, hidden=(1,), activation="relu")
    with torch.no_grad():
        for p, value in zip(model.parameters(), (1.0, -2.0, 3.0, 0.5), strict=True):
            p.fill_(value)
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert model(x).tolist() == [[24.5], [0.5]]  # 3 relu(sum - 2) + 0.5
    assert model.body(x).tolist() == [[8.0], [0.0]]
    squashed = Mlp(4, 1, hidden=(1,), activation="tanh")
    squashed.load_state_dict(model.state_dict())
    torch.testing.assert_close(squashed.body(x), torch.tensor([[8.0], [-1.0]]).tanh())
