"""The multi-class support vector machine of Crammer and Singer, solved and differentiated.

Crammer, Singer (2001), On the algorithmic implementation of multiclass
kernel-based vector machines, JMLR 2. With one weight alpha (S, N) for each
example and class, K = XX' and one-hot targets Y, its dual is

    minimise  1/2 tr(alpha' K alpha) - sum(Y * alpha)
    where     alpha <= C Y  and each row of alpha sums to 0.

It is solved without a graph by an interior-point method. Then one Newton step on
the optimality conditions, whose residual has a graph and whose Jacobian has
none, gives the derivative that the implicit function theorem gives.

Slacks and multipliers differ by twelve orders of magnitude near the solution:
everything is in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PROXIMAL = 1e-8  # added to K in Newton systems, in units of its mean diagonal
REACH = 0.995  # share of the way to the nearest bound that a step may go


class Point(NamedTuple):
    """Where the solver is. Dead entries have slack 1 and multiplier 0.

    Attributes:
        slack: C Y - alpha, shape (S, N), above 0; alpha itself would lose the last digits.
        multiplier: of alpha <= C Y, shape (S, N), above 0.
        free: multiplier of the row sums, shape (S, 1).
    """

    slack: Tensor
    multiplier: Tensor
    free: Tensor


class Problem(NamedTuple):
    """The dual.

    Attributes:
        kernel: K, shape (S, S), float64.
        y: shape (S, N), 0 or 1, float64.
        live: shape (S, N), 1 where the example is real and the class has examples.
        cost: C.
    """

    kernel: Tensor
    y: Tensor
    live: Tensor
    cost: float

    def alpha(self, at: Point) -> Tensor:
        return (self.cost * self.y - at.slack) * self.live

    def residuals(self, at: Point) -> tuple[Tensor, Tensor]:
        """Gradient of the Lagrangian (S, N), row sums (S, 1): 0 at a solution where live."""
        alpha = self.alpha(at)
        slope = self.kernel @ alpha - self.y + at.multiplier + at.free
        return slope, alpha.sum(-1, keepdim=True)


class Newton(NamedTuple):
    """Solves the linearised optimality conditions around a point, class by class.

    With d = multiplier / slack, classes k, and rows s of alpha that must go on
    summing to 0: (K + diag(d_k)) step_k + free = r_k. So step_k is known but
    for `free`, which the row sums give: N + 1 systems of S x S, not one of NS x NS.

    Attributes:
        inverses: of K + diag(d_k) on the live rows, shape (N, S, S).
        schur: inverse of their sum, shape (S, S).
    """

    inverses: Tensor
    schur: Tensor

    @classmethod
    def around(cls, problem: Problem, at: Point) -> Newton:
        live = problem.live.T
        eye = torch.eye(live.shape[1], dtype=live.dtype, device=live.device)
        little = PROXIMAL * problem.kernel.diagonal().mean()
        d = torch.where(live > 0, (at.multiplier / at.slack).T + little, 1.0)
        both = live[:, :, None] * live[:, None, :]
        matrices = problem.kernel * both + d[:, :, None] * eye
        inverses = torch.linalg.inv_ex(matrices).inverse * both
        dead = (problem.live.sum(-1) == 0).to(d.dtype)
        return cls(inverses, torch.linalg.inv_ex(inverses.sum(0) + dead[:, None] * eye).inverse)

    def step(
        self, problem: Problem, at: Point, residuals: tuple[Tensor, Tensor], excess: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of alpha, multiplier and free.

        Args:
            problem: the dual.
            at: the point.
            residuals: slope and row sums, see `Problem.residuals`.
            excess: multiplier times slack less what it should be, shape (S, N).
        """
        slope, sums = residuals
        right = (excess / at.slack - slope) * problem.live
        alone = torch.einsum("kst,tk->sk", self.inverses, right)
        free = self.schur @ (alone.sum(-1, keepdim=True) + sums)
        alpha = alone - torch.einsum("kst,t->sk", self.inverses, free.squeeze(-1))
        multiplier = (at.multiplier * alpha - excess) / at.slack * problem.live
        return alpha, multiplier, free


def start(problem: Problem) -> Point:
    """A point inside all bounds where the gradient of the Lagrangian is 0.

    So are the row sums, unless there is but one class.
    """
    live, y = problem.live, problem.y
    others = (live.sum(-1, keepdim=True) - 1).clamp(min=1)
    half = problem.cost / 2
    slack = torch.where(live > 0, problem.cost * y - half * (y - (1 - y) / others), 1.0)
    slope = problem.kernel @ ((problem.cost * y - slack) * live) - y
    top = slope.masked_fill(live == 0, -torch.inf).amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0) + 1
    return Point(slack, (top - slope) * live, -top)


def solve(problem: Problem, *, iterations: int, gap: float) -> Point:
    """The point where multiplier times slack is gap C, by Mehrotra's predictor and corrector."""
    at, live = start(problem), problem.live
    count = live.sum().clamp(min=1)
    least = gap * problem.cost

    def reach(at: Point, alpha: Tensor, multiplier: Tensor) -> Tensor:
        """How far a step may go until a slack or a multiplier is 0; at most 1."""
        worst = torch.maximum(alpha / at.slack, -multiplier / at.multiplier.clamp(min=1e-300))
        return 1 / (worst * live).amax().clamp(min=1)

    for _ in range(iterations):
        newton, residuals = Newton.around(problem, at), problem.residuals(at)
        product = at.slack * at.multiplier * live
        mean = product.sum() / count
        alpha, multiplier, _ = newton.step(problem, at, residuals, product)
        far = reach(at, alpha, multiplier)
        ahead = (at.slack - far * alpha) * (at.multiplier + far * multiplier) * live
        aim = (mean * (ahead.sum() / count / mean) ** 3).clamp(min=least)
        # The second order of the step ahead, or of the share of it that is still to go.
        excess = (product - (1 - aim / mean) ** 2 * alpha * multiplier - aim) * live
        alpha, multiplier, free = newton.step(problem, at, residuals, excess)
        far = REACH * reach(at, alpha, multiplier)
        at = Point(
            at.slack - far * alpha * live,
            at.multiplier + far * multiplier,
            at.free + far * free,
        )
    return at


def whole_step(problem: Problem, at: Point, slope: Tensor) -> Tensor:
    """The Newton step of alpha where `slope` alone is not 0, by one system for all classes.

    Slower than `Newton` but exact: one class's K + diag(d_k) may be all but
    singular where the whole system is not. Rows and columns are scaled by the
    roots of their diagonal.
    """
    live = problem.live
    rows, classes = live.shape
    on, eye = live.flatten(), torch.eye(classes, dtype=live.dtype, device=live.device)
    kernel = (problem.kernel[:, None, :, None] * eye[:, None, :]).reshape(len(on), len(on))
    diagonal = torch.where(on > 0, (at.multiplier / at.slack).flatten(), 1.0)
    scale = (diagonal + kernel.diagonal()).rsqrt()
    dead = (live.sum(-1) == 0).to(live.dtype)
    sum_of = torch.eye(rows, dtype=live.dtype, device=live.device).repeat_interleave(classes, 1)
    sum_of = sum_of * on * scale
    size = (sum_of.square().sum(-1) + dead).rsqrt()
    sum_of = sum_of * size[:, None]
    above = torch.cat([(kernel + diagonal.diag()) * scale[:, None] * scale, sum_of.T], 1)
    jacobian = torch.cat([above, torch.cat([sum_of, dead.diag()], 1)])
    right = torch.cat([-scale * slope.flatten(), torch.zeros_like(size)])
    found: Tensor = torch.linalg.solve_ex(jacobian, right).result
    return (scale * found[: len(on)]).reshape(rows, classes) * live


def machine(
    x: Tensor, y: Tensor, present: Tensor, *, cost: float, iterations: int, gap: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """The support vector machine of a support set; differentiable in x.

    Args:
        x: shape (S, D), float64, zero for padding.
        y: shape (S, N), 0 or 1, zero for padding.
        present: shape (N,), 1 where a class has examples; others do not compete.
        cost: C.
        iterations: of the solver.
        gap: multiplier times slack at the end, in units of C. With 1e-12 and C = 0.1
            the weights are right to five digits for squared norms of x from 0.01
            to 10,000, to four up to a million. Where alpha is not unique, because
            there are more examples than dimensions, say, less brings more noise.

    Returns:
        Weights (D, N) and alpha (S, N).
    """
    live = y.sum(-1, keepdim=True) * present
    problem = Problem(x @ x.T, y, live, cost)
    fixed = problem._replace(kernel=problem.kernel.detach())
    at = solve(fixed, iterations=iterations, gap=gap)
    # 0 but for its derivative by x, which no other optimality condition has.
    alpha = fixed.alpha(at) + whole_step(fixed, at, problem.residuals(at)[0])
    return x.T @ alpha, alpha
