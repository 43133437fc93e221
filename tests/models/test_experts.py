"""A joint mixture and its two factorisations: one distribution, however it is written."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from tegu import keys
from tegu.models import ExpertPair
from tegu.models.experts import Joint, fit_joint
from tegu.models.pair import turned


def some_joint(k: int = 3) -> Joint:
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(k, 2, 2, generator=generator).double()
    weight = torch.rand(k, generator=generator).double() + 0.2
    mean = 2 * torch.randn(k, 2, generator=generator).double()
    return Joint((weight / weight.sum()).log(), mean, root @ root.mT + 0.3 * torch.eye(2).double())


def torchs(joint: Joint) -> MixtureSameFamily:
    parts = MultivariateNormal(joint.mean, joint.covariance)
    return MixtureSameFamily(Categorical(logits=joint.log_weight), parts)


@pytest.fixture
def points() -> Tensor:
    return 2 * torch.randn(9, 2, generator=torch.Generator().manual_seed(6)).double()


def pair(joint: Joint) -> ExpertPair:
    model = ExpertPair(len(joint.mean)).double()
    model.load_state_dict(model.of(joint))
    return model


def test_density_is_that_of_torch(points: Tensor) -> None:
    joint = some_joint()
    expected = torchs(joint).log_prob(points)
    torch.testing.assert_close(joint.log_density(points).logsumexp(-1), expected)


def test_both_factorisations_are_the_joint(points: Tensor) -> None:
    joint = some_joint()
    expected = torchs(joint).log_prob(points)
    torch.testing.assert_close(pair(joint)(points), expected[:, None].expand(-1, 2))


def test_the_joint_is_read_back() -> None:
    joint = some_joint()
    for found, expected in zip(ExpertPair.joint(ExpertPair.of(joint)), joint, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, -2.0])
def test_turned_models_see_turned_pairs_as_before(points: Tensor, angle: float) -> None:
    joint = some_joint()
    model, at = pair(joint), torch.tensor(angle, dtype=torch.float64)
    before = model(points)
    model.load_state_dict(model.turned(dict(model.state_dict()), at))
    torch.testing.assert_close(model(turned(points, at)), before)
    assert not torch.allclose(model(points), before)


def test_fit_is_maximum_likelihood_of_one_component(points: Tensor) -> None:
    """With one component: the mean, and the covariance and its floor."""
    found = fit_joint(points, 1, keys.key(0), steps=300, floor=0.1)
    torch.testing.assert_close(found.mean[0], points.mean(0), rtol=0, atol=1e-3)
    ridge = torch.diag(points.var(0)) * 0.01
    expected = torch.cov(points.T, correction=0) + ridge
    torch.testing.assert_close(found.covariance[0], expected, rtol=0.01, atol=1e-3)


def test_fit_comes_near_the_truth() -> None:
    torch.manual_seed(0)
    truth = some_joint()
    x = torchs(truth).sample((2000,))
    found = fit_joint(x, 6, keys.key(1), floor=0.02)
    entropy = torchs(truth).log_prob(x).mean()
    assert float(found.log_density(x).logsumexp(-1).mean()) > float(entropy) - 0.02
    many = torch.vmap(lambda x, key: fit_joint(x, 6, key, floor=0.02))(
        torch.stack([x, x.flip(-1)]), keys.key(1).expand(2)
    )
    torch.testing.assert_close(many.mean[0], found.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(many.mean[1], found.mean.flip(-1), rtol=1e-6, atol=1e-6)


def test_rows_that_lie_on_a_line_or_a_point_are_no_trouble() -> None:
    line = torch.linspace(-1, 1, 40)[:, None].expand(40, 2).contiguous()
    ties = torch.cat([line[:5].repeat(8, 1), torch.full((10, 2), 0.5)])
    for x in (line, ties):
        found = fit_joint(x, 8, keys.key(2))
        model = ExpertPair(8)
        model.load_state_dict(model.of(found))
        assert bool(model(x).isfinite().all())


def test_a_variable_that_stood_still_surprises_both_factorisations_alike() -> None:
    """No conditional is narrower than a marginal may be."""
    cause = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    still = torch.stack([cause, torch.full_like(cause, 0.5)], -1)
    told = pair(fit_joint(still, 1, keys.key(2)))(still + torch.tensor([0.0, 1.0])).detach()
    assert float(told.max()) < -1000
    torch.testing.assert_close(told[:, 0], told[:, 1], rtol=1e-3, atol=0)
