"""Distributions of pairs against torch's own, and against sums to one."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from tegu.errors import InputError
from tegu.models import category_pair, mixture_pair, tables_of
from tegu.models.categories import counts
from tegu.models.mixtures import em_step, log_mixture


def test_tables_hold_a_joint_distribution_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    joint = torch.rand(4, 4, generator=generator, dtype=torch.float64) + 0.1
    model = category_pair(4).double()
    model.load_state_dict(tables_of(joint))
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    expected = (joint / joint.sum()).flatten().log()
    torch.testing.assert_close(model(grid), expected[:, None].expand(-1, 2))
    worlds = tables_of(torch.stack([joint, joint.T]))
    torch.testing.assert_close(worlds["a.logits"][1], worlds["b.logits"][0])


def test_counts() -> None:
    x = torch.tensor([[0, 1], [2, 1], [0, 1], [1, 0]])
    expected = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(counts(x, 3), expected)
    assert torch.equal(counts(x.double(), 3), expected.double())


def test_networks_of_categories_are_distributions() -> None:
    model = category_pair(5, hidden=4, seed=3)
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    joint = model(grid).exp()
    torch.testing.assert_close(joint.sum(0), torch.ones(2))
    rows = model.b_given_a(grid[:, 0], grid[:, 1]).exp().reshape(5, 5)
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    assert not torch.allclose(rows[0], rows[1])


def test_mixtures_are_those_of_torch() -> None:
    model = mixture_pair(components=4, hidden=6, spread=3.0, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    part, net = model.a, model.b_given_a
    marginal = MixtureSameFamily(
        Categorical(logits=part.logits), Normal(part.mean, part.log_scale.exp())
    )
    out = torch.tanh(x[:, :1] * net.weight + net.bias) @ net.out + net.out_bias
    given = MixtureSameFamily(Categorical(logits=out[:, :4]), Normal(out[:, 4:8], out[:, 8:].exp()))
    expected = marginal.log_prob(x[:, 0]) + given.log_prob(x[:, 1])
    torch.testing.assert_close(model(x)[:, 0], expected)


def test_em_never_lowers_the_likelihood_and_finds_two_clusters() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(400, generator=generator).double() * 0.5
    values[:100] += 4
    parts = (torch.zeros(2).double(), torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double())
    weight = torch.ones(400).double()
    before = log_mixture(values, *parts).sum()
    for _ in range(40):
        parts = em_step(values, weight, *parts)
        after = log_mixture(values, *parts).sum()
        assert float(after) > float(before) - 0.05  # a component's old self counts a little
        before = after
    torch.testing.assert_close(
        parts[0].exp(), torch.tensor([0.75, 0.25]).double(), rtol=0.02, atol=0
    )
    expected = torch.tensor([0.0, 4.0]).double()
    torch.testing.assert_close(parts[1], expected, rtol=0, atol=0.1)
    torch.testing.assert_close(parts[2].exp(), torch.full((2,), 0.5).double(), rtol=0.1, atol=0)


def test_em_leaves_an_empty_component_where_it_is_and_never_narrows_to_nothing() -> None:
    parts = (torch.zeros(2), torch.tensor([0.0, 1000.0]), torch.zeros(2))
    for _ in range(5):
        parts = em_step(torch.full((50,), 0.5), torch.ones(50), *parts)
    assert float(parts[1][1]) == pytest.approx(1000)
    assert float(parts[2][0].exp()) >= 0.01 - 1e-6
    assert all(bool(part.isfinite().all()) for part in parts)


def test_one_category_is_none() -> None:
    with pytest.raises(InputError, match=r"1 categories; expected at least 2\. Count the"):
        category_pair(1)
