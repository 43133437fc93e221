"""LR-D2: logistic regression on shared features, solved by Newton's method.

Bertinetto, Henriques, Torr, Vedaldi (2019), Meta-learning with differentiable
closed-form solvers, arXiv:1805.08136, section 3.3. For each class a binary
problem against the rest, with targets y of 0 and 1 and p = sigmoid(X w):

    minimise  sum_s log-loss(y_s, x_s'w) + lambda / 2 |w|^2
    gradient  X'(p - y) + lambda w,   Hessian  X' diag(p (1 - p)) X + lambda I

The minimiser is w = X'a with lambda a + p - y = 0, S numbers for each class
however wide the features are. A Newton step for a solves

    (lambda I + diag(p (1 - p)) K) step = -(lambda a + p - y),   K = XX',

and is the Newton step for w, as the Woodbury identity says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head, members
from tegu.learners.learner import State
from tegu.learners.r2d2 import with_bias

HALVINGS = 8  # lengths of a Newton step that are tried: 1, 1/2, 1/4 and on


def newton_step(kernel: Tensor, y: Tensor, strength: Tensor, a: Tensor, at: Tensor) -> Tensor:
    """Step of `a` (N, S) by the optimality condition, linearised where `kernel` is `at`.

    Args:
        kernel: K, shape (S, S).
        y: shape (N, S), 0 or 1.
        strength: lambda, 0-d.
        a: shape (N, S).
        at: the kernel that the Jacobian is taken of.
    """
    p = torch.sigmoid(a @ kernel)
    slope = (p * (1 - p)).detach()
    eye = torch.eye(len(kernel), dtype=a.dtype, device=a.device)
    jacobian = strength.detach() * eye + slope[:, :, None] * at  # (N, S, S)
    residual = strength * a + p - y
    step: Tensor = torch.linalg.solve_ex(jacobian, -residual[:, :, None]).result
    return step.squeeze(-1)


def logistic(x: Tensor, y: Tensor, strength: Tensor, *, iterations: int) -> Tensor:
    """Weights of logistic regression, one binary problem for each class; differentiable.

    Newton's method runs without a graph, each step cut to the length among
    `HALVINGS` that lowers the objective most. One whole step follows whose
    residual has a graph and whose Jacobian has none: at the solution it changes
    nothing, and its derivative is that of the implicit function theorem.

    Args:
        x: shape (S, D); rows of zeros weigh nothing.
        y: shape (S, N), 0 or 1.
        strength: lambda, 0-d, above 0.
        iterations: Newton steps without a graph.

    Returns:
        Shape (D, N).
    """
    kernel, targets = x @ x.T, y.T
    fixed, weight = kernel.detach(), strength.detach()
    strides = 0.5 ** torch.arange(HALVINGS, dtype=x.dtype, device=x.device)[:, None, None]

    def objective(a: Tensor) -> Tensor:
        """Shape (..., N, S) to (..., N)."""
        logits = a @ fixed
        loss = F.softplus(logits) - targets * logits
        return loss.sum(-1) + weight / 2 * (a * logits).sum(-1)

    a = torch.zeros_like(targets)
    for _ in range(iterations):
        tried = a + strides * newton_step(fixed, targets, weight, a, fixed)
        best = objective(tried).argmin(0)  # (N,)
        a = torch.take_along_dim(tried, best[None, :, None], 0).squeeze(0)
    return x.T @ (a + newton_step(kernel, targets, strength, a, fixed)).T


@dataclass(frozen=True, kw_only=True)
class LRD2(Head):
    """Logistic regression, one class against the rest.

    The logarithm of lambda is meta-learned with the features ("logistic/log_lambda"),
    so that lambda stays above 0.

    Args:
        regulariser: lambda at first; the published code takes 50 for more than
            two classes and 1 for two.
        learn_regulariser: whether lambda is meta-learned; the published code
            leaves it as it is.
        iterations: Newton steps. The published code takes 1 to 10; 20 reach the
            solution wherever lambda is above a millionth of a feature's squared norm.

    Reference:
        arXiv:1805.08136, section 3.3, and its published code: binary problems,
        whose linear outputs are the scores of a softmax; a column of ones gives
        a bias, regularised as the rest. Differs from both: with two classes
        there are two problems, each other's mirror image, not one; Newton runs
        until it has converged, and the derivative is that of the solution (implicit
        function theorem), not that of a few steps; steps that lead astray are
        cut; lambda is the exponential of what is learned.
    """

    name: ClassVar[str] = "lrd2"

    regulariser: float = 50.0
    learn_regulariser: bool = True
    iterations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regulariser", self.regulariser, above=0)
        check_range("iterations", self.iterations, 1)

    def init(self) -> Params:
        params = super().init()
        if not self.learn_regulariser:
            return params
        like = next(iter(params.values()))
        return {**params, "logistic/log_lambda": like.new_tensor(math.log(self.regulariser))}

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        x = with_bias(features, support.mask)
        strength = x.new_full((), self.regulariser)
        if self.learn_regulariser:
            strength = params["logistic/log_lambda"].exp()
        found = logistic(
            x,
            members(support, self.n_way, features),
            strength,
            iterations=self.iterations,
        )
        return {"weights": found[:-1], "bias": found[-1]}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = features @ state["weights"] + state["bias"]
        return out
