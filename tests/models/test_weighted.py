"""Weighted inputs: what they compare by before anything is learned, and as a network of recipes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from tegu.models import Weighted
from tegu.networks import NETWORKS
from tegu.sources import Inputs


def inputs(n: int = 5, width: int = 12) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def test_without_a_view_features_are_the_inputs_direction() -> None:
    model, x = Weighted(12, view=0), inputs()
    torch.testing.assert_close(model(x), 3 * F.normalize(x, dim=-1))
    assert model.feature_width == 12


def test_the_formula_in_float64() -> None:
    model, x = Weighted(12, view=4, seed=1).double(), inputs().double()
    with torch.no_grad():
        model.body.weight.copy_(torch.linspace(-1, 1, 12, dtype=torch.float64))
    first = x * torch.linspace(-1, 1, 12, dtype=torch.float64).exp()
    first = first / first.pow(2).sum(1, keepdim=True).sqrt()
    assert model.body.view is not None
    second = first @ model.body.view.T
    second = second / second.pow(2).sum(1, keepdim=True).sqrt() / 2
    both = torch.cat([first, second], 1) / (1 + 0.25) ** 0.5
    torch.testing.assert_close(model(x), 3 * both, rtol=1e-12, atol=1e-12)


def test_an_empty_input_has_finite_derivatives_under_vmap() -> None:
    model = Weighted(12, 3, view=4)
    params = dict(model.named_parameters())
    x = torch.stack([inputs(2), torch.zeros(2, 12)])

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, params, (x,)).square().sum()

    for value in vmap(grad(loss), in_dims=(None, 0))(params, x).values():
        assert bool(value.isfinite().all())


@pytest.mark.parametrize(("outputs", "width"), [(0, 16), (7, 7)])
def test_as_a_network_of_recipes(outputs: int, width: int) -> None:
    model = NETWORKS["weighted"](view=4).build(Inputs("vectors", (12,)), outputs, seed=0)
    assert model(inputs()).shape == (5, width)


def test_an_empty_input_has_finite_derivatives_of_second_order() -> None:
    model = Weighted(8, 3, view=4).double()
    params = dict(model.named_parameters())
    x = torch.rand(3, 8, dtype=torch.float64)
    x[1] = 0

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, values, (x,)).square().sum()

    def of_the_gradient(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(g.square().sum() for g in grad(loss)(values).values())

    found = grad(of_the_gradient)(params)
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert any(bool(g.any()) for g in found.values())
