"""Networks: patches against torch's convolution, sizes, and seeded starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from tegu.models import Conv4, Mlp
from tegu.models.conv4 import StridedConv, patches


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 7), (6, 5), (1, 4), (1, 1), (2, 3)])
def test_patches_times_weights_are_a_convolution(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, height, width, 2, generator=generator, dtype=torch.float64)
    conv = StridedConv(2, 5, generator=generator).double()
    kernel = conv.weight.reshape(3, 3, 2, 5).permute(3, 2, 0, 1)
    expected = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected.permute(0, 2, 3, 1))


def test_patches_by_hand() -> None:
    """The four 3x3 windows of 1 to 9 at stride 2, zero outside."""
    x = torch.arange(1.0, 10).reshape(1, 3, 3, 1)
    assert patches(x).reshape(4, 9).tolist() == [
        [0, 0, 0, 0, 1, 2, 0, 4, 5],
        [0, 0, 0, 2, 3, 0, 5, 6, 0],
        [0, 4, 5, 0, 7, 8, 0, 0, 0],
        [5, 6, 0, 8, 9, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("size", "channels", "features"), [(28, 1, 2 * 2 * 64), (84, 3, 6 * 6 * 64), (16, 1, 64)]
)
def test_sizes(size: int, channels: int, features: int) -> None:
    model = Conv4(5, channels=channels, size=size)
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    assert model.body(x).shape == (2, features)
    assert model(x).shape == (2, 5)
    assert bool(model(x).isfinite().all())


def test_weights_of_the_omniglot_network() -> None:
    """Four convolutions without bias, four scales and shifts, and the head."""
    n = sum(p.numel() for p in Conv4(5).parameters())
    assert n == 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64 + 2 * 2 * 64 * 5 + 5
    assert sum(p.numel() for p in Conv4(20).parameters()) == n + 15 * (2 * 2 * 64 + 1)


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


def test_a_network_under_vmap_with_weights_of_its_own_per_task() -> None:
    models = [Conv4(3, size=8, width=4, seed=s).double() for s in range(3)]
    stacked = {k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()}
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 5, 1, 8, 8, generator=generator, dtype=torch.float64)
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
