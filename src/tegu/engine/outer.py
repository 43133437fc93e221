"""Outer optimisers: what turns the gradient of a meta-batch into new parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tegu.errors import InputError, check_range, unknown
from tegu.inner import Adam, Params
from tegu.learners.learner import Learner

OUTER_OPTIMISERS = ("adam", "muon")
FASTER = 20.0  # Muon's usual step size, 0.02, in units of Adam's, 0.001
MOMENTUM = 0.95
ROUNDS, POLYNOMIAL = 5, (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Muon:
    """Matrices inside a network move along their momentum made orthogonal; Adam has the rest.

    With momentum m = 0.95 m + g, u = g + 0.95 m (Nesterov) and O(u) the nearest orthogonal
    matrix, nearly, a matrix W of r rows and c columns becomes
    (1 - s weight_decay) W - s sqrt(max(1, r / c)) O(u), where s = 20 lr.

    Args:
        matrices: name of each such parameter, and how many matrices it holds, stacked.
        weight_decay: of matrices alone.
        lr: step size of Adam.

    Reference:
        Jordan et al. (2024), Muon, kellerjordan.github.io/posts/muon, steps and coefficients;
        Liu et al. (2025), arXiv:2502.16982, the decay. Differs from theirs: in the parameters'
        own precision, where both orthogonalise in bfloat16.
    """

    matrices: Mapping[str, int]
    weight_decay: float = 0.0
    lr: float | Tensor = 0.0

    def init(self, params: Params) -> Params:
        momentum = {f"u/{name}": torch.zeros_like(params[name]) for name in self.matrices}
        return {**Adam(self.lr).init(self._rest(params)), **momentum}

    def update(self, params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        new, after = Adam(self.lr).update(self._rest(params), self._rest(grads), state)
        blocks: dict[torch.Size, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, count in self.matrices.items():
            after[f"u/{name}"] = momentum = MOMENTUM * state[f"u/{name}"] + grads[name]
            for block in (grads[name] + MOMENTUM * momentum).chunk(count):
                blocks[block.shape].append((name, block))
        moves: dict[str, list[Tensor]] = defaultdict(list)
        for (rows, columns), some in blocks.items():
            straight = orthogonal(torch.stack([block for _, block in some]))
            for (name, _), move in zip(some, straight, strict=True):
                moves[name].append(max(1.0, rows / columns) ** 0.5 * move)
        speed = FASTER * self.lr
        for name, parts in moves.items():
            kept = (1 - speed * self.weight_decay) * params[name]
            new[name] = kept - speed * torch.cat(parts)
        return {name: new[name] for name in params}, after

    def _rest(self, params: Params) -> Params:
        return {name: p for name, p in params.items() if name not in self.matrices}


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (..., R, C) with singular values near 1, 0.7 to 1.2, and the same singular vectors.

    Five rounds of a Newton-Schulz iteration whose polynomial is steep at 0.
    """
    a, b, c = POLYNOMIAL
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    wide = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    straight: Tensor = wide if x.shape[-2] <= x.shape[-1] else wide.mT
    return straight


OuterOptimiser = Adam | Muon


def outer_optimiser(name: str, learner: Learner, weight_decay: float) -> OuterOptimiser:
    """An outer optimiser for a learner, of step size 0.

    Raises:
        InputError: no such optimiser; Muon with a learner that has an update of its own, or
            whose network does not name its matrices; decay without Muon.
    """
    if name not in OUTER_OPTIMISERS:
        raise unknown("outer optimiser", name, OUTER_OPTIMISERS)
    check_range("weight_decay", weight_decay, 0, todo="Write 0.")
    if name == "adam":
        if weight_decay:
            raise InputError(
                f"a weight_decay of {weight_decay} with Adam",
                "0: only Muon decays weights",
                "Write outer_optimiser=muon, or leave weight_decay out.",
            )
        return Adam(0.0)
    network: Any = learner.model
    if learner.outer_update is not None or not hasattr(network, "matrices"):
        own = learner.outer_update is not None
        raise InputError(
            f"Muon with {type(learner if own else network).__name__}",
            "a learner that is trained by gradients, around a network with `matrices`, as "
            "study-transformer",
            "Leave outer_optimiser out, or give your network a method `matrices`.",
        )
    return Muon(network.matrices(), weight_decay)


def at_rate(optimiser: OuterOptimiser, rate: Tensor) -> OuterOptimiser:
    """The same with a step size."""
    return replace(optimiser, lr=rate)
