"""Losses over real rows only: padding counts for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.datasets.tokens import PAD
from tegu.episodes import Examples

Loss = Callable[[Tensor, Examples], Tensor]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def cross_entropy(outputs: Tensor, target: Examples) -> Tensor:
    """Mean cross-entropy: outputs (S, N) floating, target.y (S,) int64."""
    return _mean(F.cross_entropy(outputs, target.y, reduction="none"), target.mask)


def squared_error(outputs: Tensor, target: Examples) -> Tensor:
    """Mean squared error: outputs and target.y (S, D) floating."""
    return _mean((outputs - target.y).square().mean(-1), target.mask)


def surprise(outputs: Tensor, target: Examples) -> Tensor:
    """Mean negative log-likelihood of a row, nats: outputs (S, k) log-likelihoods of its parts."""
    return _mean(-outputs.flatten(1).sum(-1), target.mask)


def token_cross_entropy(outputs: Tensor, target: Examples) -> Tensor:
    """Mean cross-entropy of tokens: outputs (S, M, V) floating, target.y (S, M) int64.

    Every token of every real row counts alike, its END too; `PAD` counts nothing.
    """
    each = F.cross_entropy(outputs.flatten(0, 1), target.y.flatten(), reduction="none")
    return _mean(each, ((target.y != PAD) & target.mask[:, None]).flatten())


def exact_match(outputs: Tensor, target: Examples) -> Tensor:
    """Share of sequences with every token right, 0 to 1: outputs (S, M, V), target.y (S, M).

    What is written after the target's END is not looked at.
    """
    right = (outputs.argmax(-1) == target.y) | (target.y == PAD)
    return _mean(right.all(-1).to(torch.get_default_dtype()), target.mask)


def accuracy(outputs: Tensor, target: Examples) -> Tensor:
    """Share of right answers, 0 to 1: outputs (S, N), target.y (S,)."""
    return _mean((outputs.argmax(-1) == target.y).to(torch.get_default_dtype()), target.mask)


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
    "sequences": Measure(token_cross_entropy, exact_match, "exact match"),
    "samples": Measure(surprise, surprise, "surprise"),
}
SHARES = ("accuracy", "exact match")  # metrics from 0 to 1 that people read in per cent
