"""Losses over real rows only: padding counts for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.datasets.tokens import PAD
from tegu.episodes import Examples
from tegu.errors import InputError

Loss = Callable[[Tensor, Examples], Tensor]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values that count, of any shape; 0 where none does."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def cross_entropy(outputs: Tensor, target: Examples) -> Tensor:
    """Mean cross-entropy: outputs (S, N) floating, target.y (S,) int64.

    Raises:
        InputError: targets are numbers.
    """
    check_classes(target)
    return masked_mean(F.cross_entropy(outputs, target.y, reduction="none"), target.mask)


def check_classes(target: Examples) -> None:
    """Refuses targets that are numbers."""
    if target.y.is_floating_point():
        raise InputError(
            f"targets of {target.y.dtype} for a loss or a score of classes",
            "class numbers, int64",
            "For numbers pass loss=tegu.losses.squared_error, and score= and metric= where "
            "the loss is your own.",
        )


def squared_error(outputs: Tensor, target: Examples) -> Tensor:
    """Mean squared error: outputs and target.y (S, D) floating.

    Raises:
        InputError: they have different shapes.
    """
    if outputs.shape != target.y.shape:
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)} for targets of {tuple(target.y.shape)}",
            "a number of output for each of a target",
            "Give the model's last layer as many outputs.",
        )
    return masked_mean((outputs - target.y).square().mean(-1), target.mask)


def surprise(outputs: Tensor, target: Examples) -> Tensor:
    """Mean negative log-likelihood of a row, nats: outputs (S, k) log-likelihoods of its parts."""
    return masked_mean(-outputs.flatten(1).sum(-1), target.mask)


def density(outputs: Tensor, target: Examples) -> Tensor:
    """Mean log-likelihood of what models give the likelihood of: `surprise`'s other sign."""
    return -surprise(outputs, target)


def token_cross_entropy(outputs: Tensor, target: Examples) -> Tensor:
    """Mean cross-entropy of tokens: outputs (S, M, V) floating, target.y (S, M) int64.

    Every token of every real row counts alike, its END too; `PAD` counts nothing.
    """
    each = F.cross_entropy(outputs.flatten(0, 1), target.y.flatten(), reduction="none")
    return masked_mean(each, ((target.y != PAD) & target.mask[:, None]).flatten())


def exact_match(outputs: Tensor, target: Examples) -> Tensor:
    """Share of sequences with every token right, 0 to 1: outputs (S, M, V), target.y (S, M).

    What is written after the target's END is not looked at.
    """
    right = (outputs.argmax(-1) == target.y) | (target.y == PAD)
    return masked_mean(right.all(-1).to(torch.get_default_dtype()), target.mask)


def accuracy(outputs: Tensor, target: Examples) -> Tensor:
    """Share of right answers, 0 to 1: outputs (S, N), target.y (S,) int64.

    Raises:
        InputError: targets are numbers.
    """
    check_classes(target)
    return masked_mean((outputs.argmax(-1) == target.y).to(torch.get_default_dtype()), target.mask)


def gaussian(outputs: Tensor, target: Examples) -> Tensor:
    """Mean negative log-likelihood of targets (S, D) under normal distributions, in nats.

    Args:
        outputs: shape (S, K 2 D): K equally likely components, each its D means beside its D
            log standard deviations. Numbers of a target are independent within a
            component.
        target: y floating.

    Example:
        >>> standard = torch.zeros(1, 2)  # mean 0, standard deviation 1
        >>> gaussian(standard, Examples.dense(torch.zeros(1, 1), torch.zeros(1, 1)))
        tensor(0.9189)
    """
    mean, log_sd = components(outputs, target.y.shape[-1])
    off = (target.y[..., None, :] - mean) * (-log_sd).exp()
    logs = (-0.5 * off.square() - log_sd - 0.5 * math.log(2 * math.pi)).sum(-1)  # (S, K)
    return -masked_mean(logs.logsumexp(-1) - math.log(logs.shape[-1]), target.mask)


def log_likelihood(outputs: Tensor, target: Examples) -> Tensor:
    """Mean log-likelihood in nats for each row: `gaussian` with the other sign, a score."""
    return -gaussian(outputs, target)


def components(outputs: Tensor, n_targets: int) -> tuple[Tensor, Tensor]:
    """Means and log standard deviations (S, K, D) in outputs (S, K 2 D) of `gaussian`."""
    if not n_targets or outputs.shape[-1] % (2 * n_targets):
        raise InputError(
            f"{outputs.shape[-1]} outputs for targets of {n_targets} numbers",
            "a mean and a log standard deviation of each, as often as there are components",
            f"Build the model with {2 * max(1, n_targets)} outputs.",
        )
    parts = outputs.unflatten(-1, (-1, 2, n_targets))
    return parts[..., 0, :], parts[..., 1, :]


def moments(outputs: Tensor, n_targets: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (S, D) of what outputs (S, K 2 D) of `gaussian` say.

    Example:
        >>> two = torch.tensor([[-1.0, -50.0, 1.0, -50.0]])  # at -1 or at 1, narrow
        >>> moments(two, 1)
        (tensor([[0.]]), tensor([[1.]]))
    """
    means, log_sds = components(outputs, n_targets)
    mean = means.mean(-2)
    inside = (2 * log_sds).exp().mean(-2)
    return mean, (inside + (means - mean[..., None, :]).square().mean(-2)).sqrt()


class Measure(NamedTuple):
    """How answers are judged.

    Attributes:
        loss: what learners minimise.
        score: what is reported, one number for a task's outputs and queries.
        metric: what the score is called.
    """

    loss: Loss
    score: Loss
    metric: str


MEASURES = {
    "classes": Measure(cross_entropy, accuracy, "accuracy"),
    "numbers": Measure(squared_error, squared_error, "mse"),
    "likelihood": Measure(gaussian, log_likelihood, "log-likelihood"),  # of numbers
    "pairs": Measure(surprise, density, "log-likelihood"),  # of cause and effect
    "table classes": Measure(cross_entropy, accuracy, "accuracy"),
    "sequences": Measure(token_cross_entropy, exact_match, "exact match"),
    "samples": Measure(surprise, surprise, "surprise"),
}
SHARES = ("accuracy", "exact match")  # metrics from 0 to 1 that people read in per cent


def regresses(loss: Loss) -> bool:
    """Whether targets are numbers under a loss."""
    return any(loss is MEASURES[name].loss for name in ("numbers", "likelihood"))


def of_ones_own(loss: Loss) -> bool:
    """Whether it is none of tegu's, so that targets may be anything."""
    return all(loss is not one.loss for one in MEASURES.values())


def measure_of(loss: Loss) -> Measure:
    """The measure with that loss; that of classes for a loss of your own."""
    found = (one for one in MEASURES.values() if one.loss is loss)
    return next(found, MEASURES["classes"])


def check_targets(loss: Loss, target: Examples) -> None:
    """Refuses a batch of examples whose targets are not those of a loss; any for one of your own.

    Raises:
        InputError: they are of another kind.
    """
    numbers, axes = target.y.is_floating_point(), target.y.ndim - 1  # of each episode
    if loss is cross_entropy:
        check_classes(target)
    elif regresses(loss) and not (numbers and axes == 2):
        raise _misfit(loss, target, "numbers, (S, D)")
    elif loss is token_cross_entropy and (numbers or target.x.is_floating_point() or axes != 2):
        raise _misfit(loss, target, "sequences of tokens, (S, M)")


def _misfit(loss: Loss, target: Examples, wanted: str) -> InputError:
    return InputError(
        f"targets of {target.y.dtype}, shape {tuple(target.y.shape[1:])}, for the loss "
        f"`{loss.__name__}`",
        f"targets that are {wanted}",
        "Pass other tasks, or a learner whose loss is that of these.",
    )
