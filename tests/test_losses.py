"""Losses and accuracy count real rows only."""

from __future__ import annotations

import math

import pytest
import torch

from tegu.episodes import Examples
from tegu.errors import InputError
from tegu.losses import accuracy, cross_entropy, gaussian, log_likelihood, moments, squared_error

MASK = torch.tensor([True, True, False])


def test_cross_entropy_by_hand() -> None:
    """Row 0: softmax (3/4, 1/4), right; row 1: the same, wrong; row 2 only pads."""
    outputs = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [50.0, -50.0]])
    target = Examples(torch.zeros(3, 1), torch.tensor([0, 1, 1]), MASK)
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert float(cross_entropy(outputs, target)) == pytest.approx(expected, rel=1e-6)


def test_squared_error_by_hand() -> None:
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]])
    target = Examples(torch.zeros(3, 1), torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), MASK)
    assert float(squared_error(outputs, target)) == pytest.approx((2.5 + 4.5) / 2)


def test_squared_error_never_broadcasts() -> None:
    target = Examples.dense(torch.zeros(3, 1), torch.zeros(3, 1))
    for outputs in (torch.zeros(3), torch.zeros(3, 2)):
        with pytest.raises(InputError, match=r"outputs of shape .* for targets of \(3, 1\)"):
            squared_error(outputs, target)


def test_accuracy_by_hand() -> None:
    outputs = torch.tensor([[1.0, 2.0], [0.0, -1.0], [9.0, 0.0]])
    y = torch.tensor([1, 1, 0])
    assert float(accuracy(outputs, Examples(outputs, y, MASK))) == 0.5
    everything = torch.ones(3, dtype=torch.bool)
    assert float(accuracy(outputs, Examples(outputs, y, everything))) == pytest.approx(2 / 3)


@pytest.mark.parametrize("loss", [cross_entropy, accuracy])
def test_losses_of_classes_take_no_numbers(loss) -> None:
    with pytest.raises(InputError, match=r"targets of torch.float32.*squared_error"):
        loss(torch.zeros(3, 1), Examples.dense(torch.zeros(3, 1), torch.zeros(3, 1)))


def mixtures() -> tuple[torch.Tensor, torch.Tensor, torch.distributions.Distribution]:
    """Outputs of 3 components for 4 rows of 2 numbers, targets, and torch's own distribution."""
    generator = torch.Generator().manual_seed(1)
    means, log_sds = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    outputs = torch.cat([torch.cat([means[:, k], log_sds[:, k]], -1) for k in range(3)], -1)
    each = torch.distributions.Independent(torch.distributions.Normal(means, log_sds.exp()), 1)
    alike = torch.distributions.Categorical(torch.ones(4, 3, dtype=torch.float64))
    return outputs, y, torch.distributions.MixtureSameFamily(alike, each)


def test_gaussian_is_the_density_of_a_mixture() -> None:
    outputs, y, expected = mixtures()
    target = Examples(y, y, torch.tensor([True, False, True, True]))
    logs = expected.log_prob(y)[[0, 2, 3]]
    assert float(gaussian(outputs, target)) == pytest.approx(-float(logs.mean()), rel=1e-12)
    assert float(log_likelihood(outputs, target)) == -float(gaussian(outputs, target))


def test_moments_are_those_of_the_mixture() -> None:
    outputs, _, expected = mixtures()
    mean, sd = moments(outputs, 2)
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(sd, expected.variance.sqrt())


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_padding_gets_no_gradient(loss) -> None:
    outputs = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([0, 1, 1]) if loss is cross_entropy else torch.zeros(3, 2)
    (gradient,) = torch.autograd.grad(loss(outputs, Examples(outputs, y, MASK)), outputs)
    assert gradient[2].tolist() == [0, 0]
    assert bool((gradient[:2] != 0).all())


@pytest.mark.parametrize("loss", [cross_entropy, squared_error, accuracy])
def test_nothing_but_padding_is_zero(loss) -> None:
    outputs = torch.ones(2, 2)
    y = torch.zeros(2, 2) if loss is squared_error else torch.zeros(2, dtype=torch.int64)
    assert float(loss(outputs, Examples(outputs, y, torch.zeros(2, dtype=torch.bool)))) == 0
