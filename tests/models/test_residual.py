"""ResNet-12 and wide residual networks, against the same built of torch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tegu.errors import InputError
from tegu.models import ResNet12, WideResNet
from tegu.models.resnet12 import Block


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv(ours: nn.Module, stride: int = 1) -> nn.Conv2d:
    """torch's layer with the weights of one of ours."""
    out, side = ours.weight.shape[1], 3 if type(ours).__name__ == "Conv" else 1
    kernel = ours.weight.detach().reshape(side, side, -1, out).permute(3, 2, 0, 1)
    layer = nn.Conv2d(kernel.shape[1], out, side, stride, padding=side // 2, bias=False).double()
    layer.weight.data.copy_(kernel)
    return layer


def norm(ours: nn.Module) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(ours.weight)).double().train()
    layer.weight.data.copy_(ours.weight.detach())
    layer.bias.data.copy_(ours.bias.detach())
    return layer


def stirred(model: nn.Module) -> nn.Module:
    """In float64, with scales and shifts that are neither 1 nor 0."""
    generator = torch.Generator().manual_seed(5)
    for name, p in model.double().named_parameters():
        if p.ndim == 1:
            p.data.uniform_(-0.5, 0.5, generator=generator).add_(name.endswith("weight"))
    return model


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (19, 1)])
def test_resnet12_is_what_torchs_layers_make(size: int, channels: int) -> None:
    model = stirred(ResNet12(3, channels=channels, size=size, widths=(4, 5, 6, 7)))
    x = draw(6, channels, size, size)
    h = x
    for block in model.body.blocks:
        branch = h
        for i in range(3):
            branch = norm(block.norms[i])(conv(block.convs[i])(branch))
            branch = nn.LeakyReLU(0.1)(branch) if i < 2 else branch
        h = branch + norm(block.shortcut_norm)(conv(block.shortcut)(h))
        h = nn.MaxPool2d(2)(nn.LeakyReLU(0.1)(h))
    features = nn.AdaptiveAvgPool2d(1)(h).flatten(1)
    torch.testing.assert_close(model.body(x), features)
    torch.testing.assert_close(model(x), F.linear(features, model.head.weight, model.head.bias))


@pytest.mark.parametrize("size", [12, 9])
def test_wrn_is_what_torchs_layers_make(size: int) -> None:
    model = stirred(WideResNet(3, channels=2, depth=16, widen=1))
    x = draw(5, 2, size, size)
    body = model.body
    h, last = conv(body.conv)(x), 16
    assert len(body.blocks) == 6
    for i, block in enumerate(body.blocks):
        width = (16, 16, 32, 32, 64, 64)[i]
        stride = 2 if i in (2, 4) else 1
        active = F.relu(norm(block.norm1)(h))
        out = conv(block.conv1, stride)(active)
        out = conv(block.conv2)(F.relu(norm(block.norm2)(out)))
        assert out.shape[1] == width
        h = out + (h if width == last else conv(block.shortcut, stride)(active))
        last = width
    features = F.relu(norm(body.norm)(h)).mean((2, 3))
    torch.testing.assert_close(body(x), features)
    torch.testing.assert_close(model(x), F.linear(features, model.head.weight, model.head.bias))


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_published_numbers_of_weights() -> None:
    """MetaOptNet's 12.4 and 8.0 million."""
    assert weights(ResNet12(0)) == 12_424_320
    assert weights(ResNet12(0, widths=(64, 128, 256, 512))) == 7_996_800
    assert weights(ResNet12(5)) == 12_424_320 + 5 * 641


def test_published_number_of_weights_of_wrn() -> None:
    """Of WRN-28-10 with the ten classes of CIFAR-10: 36.5 million."""
    assert weights(WideResNet(10)) == 36_479_194


@pytest.mark.parametrize("size", [32, 84])
def test_sizes(size: int) -> None:
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    for model in (
        ResNet12(5, size=size, widths=(2, 2, 2, 6)),
        WideResNet(5, depth=10, widen=1),
    ):
        with torch.no_grad():
            assert model.body(x).shape == (1, model.feature_width)
            assert model(x).shape == (1, 5)


def test_a_block_halves_the_image() -> None:
    block = Block(3, 4, generator=torch.Generator().manual_seed(0))
    assert block(torch.zeros(2, 21, 16, 3)).shape == (2, 10, 8, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: ResNet12(0, size=16, widths=(10, 2, 2, 3), seed=s),
        lambda s: WideResNet(0, depth=10, widen=1, seed=s),
    ],
)
def test_weights_of_their_own_per_task_and_no_head(make) -> None:
    """Values and gradients together and alone; without a head, a pass gives features."""
    models = [make(s).double() for s in range(2)]
    x = draw(2, 3, 3, 16, 16)
    own = [dict(model.named_parameters()) for model in models]
    stacked = {name: torch.stack([w[name] for w in own]).detach() for name in own[0]}

    def loss(w, x):
        return functional_call(models[0], w, (x,)).pow(2).mean()

    together = vmap(lambda w, x: functional_call(models[0], w, (x,)))(stacked, x)
    gradients = vmap(grad(loss))(stacked, x)
    for t, model in enumerate(models):
        torch.testing.assert_close(together[t], model(x[t]))
        torch.testing.assert_close(model(x[t]), model.body(x[t]))
        model(x[t]).pow(2).mean().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(gradients[name][t], p.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ResNet12(5, size=8), r"images of 8 pixels for a ResNet12; expected 16 or more"),
        (lambda: ResNet12(5, widths=(64,)), r"1 widths for a ResNet12; .* four blocks"),
        (lambda: WideResNet(5, depth=27), r"depth is 27; expected 10, 16, 22, 28"),
        (lambda: WideResNet(5, widen=0), r"widen is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_built(make, text: str) -> None:
    with pytest.raises(InputError, match=text):
        make()
