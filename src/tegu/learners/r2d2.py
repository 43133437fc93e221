"""R2-D2: ridge regression on shared features, solved in closed form.

Bertinetto, Henriques, Torr, Vedaldi (2019), Meta-learning with differentiable
closed-form solvers, arXiv:1805.08136. For support features X (S, D) and one-hot
targets Y (S, N):

    W      = (X'X + lambda I)^-1 X'Y                      (section 3.2, D x D)
           = X' (XX' + lambda I)^-1 Y                     (Woodbury, S x S)
    scores = alpha X W + beta                             (alpha, beta, lambda meta-learned)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head, members
from tegu.learners.learner import State


def ridge(x: Tensor, y: Tensor, strength: Tensor | float) -> Tensor:
    """The W that minimises |xW - y|^2 + strength |W|^2, by the smaller of both systems.

    Args:
        x: shape (S, D), floating; rows of zeros weigh nothing.
        y: shape (S, N), zero where x is.
        strength: above 0.

    Returns:
        Shape (D, N).

    Example:
        >>> ridge(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]]), 5.0)
        tensor([[0.5000]])
    """
    rows, width = x.shape
    eye = strength * torch.eye(min(rows, width), dtype=x.dtype, device=x.device)
    found: Tensor = (
        x.T @ _solved(x @ x.T + eye, y) if rows < width else _solved(x.T @ x + eye, x.T @ y)
    )
    return found


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """By Cholesky, which a strength above 0 lets succeed: a GPU need not be asked how it went."""
    lower = torch.linalg.cholesky_ex(matrix).L
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    found: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return found


def with_bias(features: Tensor, mask: Tensor) -> Tensor:
    """Features with a column of ones, and rows of zeros for padding: (S, D) to (S, D + 1)."""
    ones = features.new_ones(len(features), 1)
    return torch.cat([features, ones], 1) * mask[:, None]


@dataclass(frozen=True, kw_only=True)
class R2D2(Head):
    """Ridge regression on one-hot targets.

    Three numbers are meta-learned with the features: the logarithm of lambda
    ("ridge/log_lambda"), so that lambda stays above 0, and "ridge/scale" and
    "ridge/offset" of the scores. An offset common to all classes cancels in a
    softmax, where rounding alone moves it; it matters to other losses.

    Args:
        regulariser: lambda at first.
        learn_regulariser: whether lambda is meta-learned, as in the paper; the
            published code leaves it at 50.
        scale: alpha at first; the published code takes 10 for Omniglot and
            CIFAR-FS and 0.0001 for mini-ImageNet.

    Reference:
        arXiv:1805.08136, section 3.2, and its published code, from which come:
        lambda counts for each support example (it multiplies lambda by S, in
        terms of the equation above), so that its strength does not depend on
        their number; a column of ones gives a bias, regularised as the rest.
        Differs from both: lambda is the exponential of what is learned.
    """

    name: ClassVar[str] = "r2d2"

    regulariser: float = 50.0
    learn_regulariser: bool = True
    scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regulariser", self.regulariser, above=0)
        check_range("scale", self.scale, above=0)

    def init(self) -> Params:
        params = super().init()
        like = next(iter(params.values()))
        own = {"ridge/scale": self.scale, "ridge/offset": 0.0}
        if self.learn_regulariser:
            own["ridge/log_lambda"] = math.log(self.regulariser)
        return {**params, **{name: like.new_tensor(value) for name, value in own.items()}}

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        x = with_bias(features, support.mask)
        rows = support.mask.sum().to(x.dtype)
        strength: Tensor | float = self.regulariser
        if self.learn_regulariser:
            strength = params["ridge/log_lambda"].exp()
        found = ridge(x, members(support, self.n_way, features), strength * rows)
        return {"weights": found[:-1], "bias": found[-1]}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = features @ state["weights"] + state["bias"]
        return params["ridge/scale"] * out + params["ridge/offset"]
