"""The vision transformer, against torch's own layers, and its second order under `vmap`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tegu.errors import InputError
from tegu.learners import Maml
from tegu.models import ViT


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def stirred(model: nn.Module) -> nn.Module:
    """In float64, with scales and shifts that are neither 1 nor 0."""
    for i, p in enumerate(model.double().parameters()):
        if p.ndim == 1:
            p.data.add_(0.3 * draw(len(p), seed=i))
    return model


@pytest.mark.parametrize(("channels", "size", "patch"), [(3, 8, 4), (1, 6, 2)])
def test_it_is_what_torchs_layers_make(channels: int, size: int, patch: int) -> None:
    model = stirred(ViT(5, channels=channels, size=size, patch=patch, width=6, blocks=2, heads=2))
    x = draw(3, channels, size, size)
    body = model.body
    # A convolution with one patch a stride; ours has its patch in rows, columns, channels.
    kernel = body.embedding.weight.reshape(6, patch, patch, channels).permute(0, 3, 1, 2)
    h = F.conv2d(x, kernel, body.embedding.bias, stride=patch).flatten(2).transpose(1, 2)
    h = h + body.places
    for block in body.blocks:
        layer = nn.TransformerEncoderLayer(
            6, 2, 24, dropout=0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        theirs = {
            "self_attn.in_proj_weight": block.mixer.weight,
            "self_attn.in_proj_bias": block.mixer.bias,
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.first.weight,
            "linear1.bias": block.first.bias,
            "linear2.weight": block.second.weight,
            "linear2.bias": block.second.bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.dense_norm.weight,
            "norm2.bias": block.dense_norm.bias,
        }
        layer.load_state_dict({k: v.detach() for k, v in theirs.items()})
        h = layer(h)
    features = F.layer_norm(h, (6,), body.norm.weight, body.norm.bias).mean(1)
    torch.testing.assert_close(body(x), features)
    torch.testing.assert_close(model(x), F.linear(features, model.head.weight, model.head.bias))
    assert model.feature_width == 6


def test_the_usual_smallest_has_its_weights() -> None:
    """DeiT-Ti: 5.5 million in the body without the class token."""
    body = ViT(0, size=224, patch=16, width=192, blocks=12, heads=3).body
    block = 4 * 192**2 + 4 * 192 + 8 * 192**2 + 5 * 192 + 4 * 192
    places = 196 * 192 + 192 * (3 * 16**2 + 1) + 2 * 192
    assert sum(p.numel() for p in body.parameters()) == 12 * block + places


@pytest.mark.parametrize("norm", ["ours", "torch's"])
def test_meta_gradient_of_second_order_is_that_of_differences(norm: str) -> None:
    """Through vmap, against central differences of plain passes in a few directions.

    With torch's own layer normalisation too, whose second derivatives under vmap are wrong
    where nobody sees to it.
    """
    if norm == "ours":
        model = stirred(ViT(3, channels=1, size=4, patch=2, width=4, blocks=1, heads=2))
    else:
        model = stirred(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5), nn.Linear(5, 3))
        )
    learner = Maml(model=model, inner_lr=0.5, inner_steps=1)
    x, y = draw(2, 6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    params = {k: v.detach() for k, v in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(learner.forward(params, x), y)

    def adapted(params: dict[str, Tensor], x: Tensor) -> Tensor:
        step = grad(loss)(params, x)
        return loss({k: p - 0.5 * step[k] for k, p in params.items()}, x.flip(0))

    found = grad(lambda params: vmap(lambda x: adapted(params, x))(x).mean())(params)

    def plainly(params: dict[str, Tensor]) -> float:
        total = 0.0
        for task in x:
            leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
            value = F.cross_entropy(functional_call(model, leaves, (task,)), y)
            steps = torch.autograd.grad(value, list(leaves.values()))
            new = {k: p - 0.5 * g for (k, p), g in zip(params.items(), steps, strict=True)}
            total += float(F.cross_entropy(functional_call(model, new, (task.flip(0),)), y)) / 2
        return total

    for seed in range(3):
        way = {k: draw(*p.shape, seed=10 * seed + i) for i, (k, p) in enumerate(params.items())}
        ahead, behind = (
            plainly({k: p + sign * 1e-5 * way[k] for k, p in params.items()}) for sign in (1, -1)
        )
        slope = sum(float((found[k] * way[k]).sum()) for k in params)
        assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-8)


def test_starts_are_functions_of_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (ViT(3, size=8, width=6, heads=2, blocks=1, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one.state_dict(), same.state_dict(), rtol=0, atol=0)
    assert not torch.equal(one.body.places, other.body.places)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"patch": 5}, r"patch is 5, which does not divide 32; .* Pass patch=4"),
        ({"patch": 0}, r"patch is 0, .* Pass patch=1"),
        ({"width": 64}, r"heads is 3, which does not divide 64; .* Pass heads=2"),
    ],
)
def test_what_cannot_be_built(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        ViT(5, **settings)
