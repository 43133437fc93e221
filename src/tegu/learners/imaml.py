"""iMAML: the meta-gradient from where a task's weights end up, whatever led there.

Rajeswaran, Finn, Kakade, Levine (2019), Meta-learning with implicit gradients,
arXiv:1909.04630:

    w_i   = argmin over w of  L_support(w) + lambda / 2 |w - theta|^2      (equations 3, 4)
    g_i   = (I + H_i / lambda)^-1  gradient of L_query at w_i              (lemma 1)
    theta <- theta - outer step on the mean of g_i

with H_i the Hessian of L_support at w_i. A stationary point moves with theta by
(I + H_i / lambda)^-1, so the steps towards it need not be remembered: memory is
that of one step and of one product of H_i with a vector, however many steps there
are. H_i is never built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from tegu.episodes import Episode, Examples
from tegu.errors import check_range, unknown
from tegu.inner import Params
from tegu.learners.finetune import FineTune
from tegu.learners.learner import State
from tegu.learners.maml import Maml

Product = Callable[[Params], Params]


def conjugate_gradient(multiply: Product, b: Params, *, steps: int) -> Params:
    """x with multiply(x) = b, for a symmetric positive definite product, from x = 0.

    Args:
        multiply: a linear map of dicts of tensors.
        b: the right-hand side.
        steps: products to spend; as many as there are different eigenvalues suffice.

    Example:
        >>> b = {"w": torch.tensor([2.0, 3.0])}
        >>> scaled = lambda x: {"w": torch.tensor([1.0, 2.0]) * x["w"]}
        >>> conjugate_gradient(scaled, b, steps=2)["w"]
        tensor([2.0000, 1.5000])
    """
    x = {name: torch.zeros_like(v) for name, v in b.items()}
    residual, along, square = b, b, _dot(b, b)
    for _ in range(steps):
        product = multiply(along)
        step = _ratio(square, _dot(along, product))
        x = _plus(x, step, along)
        residual = _plus(residual, -step, product)
        before, square = square, _dot(residual, residual)
        along = _plus(residual, _ratio(square, before), along)
    return x


def neumann(multiply: Product, b: Params, *, steps: int) -> Params:
    """x with multiply(x) = b, where I - multiply shrinks every vector: b + (I - multiply) x.

    Example:
        >>> b = {"w": torch.tensor(1.0)}
        >>> neumann(lambda x: {"w": 1.5 * x["w"]}, b, steps=2)["w"]  # 1 - 1/2 + 1/4
        tensor(0.7500)
    """
    x = b
    for _ in range(steps):
        product = multiply(x)
        x = {name: b[name] + v - product[name] for name, v in x.items()}
    return x


SOLVERS = {"cg": conjugate_gradient, "neumann": neumann}


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(v * b[name]).sum() for name, v in a.items()]).sum()


def _plus(a: Params, scale: Tensor, b: Params) -> Params:
    return {name: v + scale * b[name] for name, v in a.items()}


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: a residual that has vanished asks for no step."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


@dataclass(frozen=True, kw_only=True)
class IMaml(FineTune):
    """iMAML with SGD or Adam in the inner loop.

    Args:
        strength: lambda, which draws a task's weights to the shared ones. It has to
            exceed the most negative eigenvalue of H for conjugate gradients, and the
            largest in size for the Neumann series.
        pull: "each": that term is in every inner step, as the paper has it. "last": steps
            are on the support loss alone, and while meta-training one step on the term
            follows them, as in the published code.
        solver: "cg", conjugate gradients, or "neumann", the Neumann series.
        solver_steps: products with H, for each meta-gradient.
        damping: added to lambda in (I + H / lambda)^-1. Where H has eigenvalues many
            times lambda, and negative ones, as with batch normalisation, a few steps of
            conjugate gradients make noise without it. The published code's matrix is, for
            a lambda of 2 and up to a factor, that of 22; of the factor Adam notices little (its
            epsilon is 1e-3 there).

    The other settings are those of `FineTune`, here with SGD on the whole support set.
    Without damping the gradient is exact where inner loop and solver have converged;
    each of their steps shrinks its distance from there by a factor.

    Reference:
        arXiv:1909.04630, algorithms 1 and 2. Differs from the paper: nowhere, with the
        defaults. pull="last" and damping are the published code's.
    """

    name: ClassVar[str] = "imaml"
    start: ClassVar[Mapping[str, Any]] = {
        **Maml.start,
        "learner.pull": "last",
        "learner.damping": 22.0,
    }
    start_numbers: ClassVar[Mapping[str, Any]] = Maml.start_numbers

    inner_optimiser: str = "sgd"
    inner_lr: float = 0.1
    inner_steps: int = 16
    inner_batch: int = 0
    eval_steps: int = 16
    eval_batch: int = 0
    strength: float = 2.0
    pull: str = "each"
    solver: str = "cg"
    solver_steps: int = 5
    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        if self.pull not in ("each", "last"):
            raise unknown("way to pull", self.pull, ["each", "last"])
        check_range("damping", self.damping, 0, todo="Try 0, or 20.")
        check_range("strength", self.strength, above=0, todo="Try 2.0.")
        check_range("solver_steps", self.solver_steps, 1)

    def move(
        self, params: Params, state: State, grads: Params, index: Tensor
    ) -> tuple[Params, Params]:
        """A step on the support loss plus lambda / 2 |w - theta|^2."""
        if self.pull == "last":
            return super().move(params, state, grads, index)
        start, weights = self.adaptable(params), state["weights"]
        pulled = {
            name: g + self.strength * (weights[name] - start[name]) for name, g in grads.items()
        }
        return super().move(params, state, pulled, index)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """The query loss after adapting, as a value; its gradient is the implicit one."""
        support, query = episode
        fixed = {name: p.detach() for name, p in params.items()}
        state = self.adapt(fixed, support, key, training=True)
        weights = {name: w.detach() for name, w in state["weights"].items()}
        if self.pull == "last":
            back = self.inner_lr * self.strength
            weights = {name: w - back * (w - fixed[name]) for name, w in weights.items()}

        def query_loss(weights: Params) -> Tensor:
            return self.query_loss(fixed, {**state, "weights": weights}, query)

        slope, loss = grad_and_value(query_loss)(weights)
        implicit = self._implicit(fixed, weights, slope, support)
        start = self.adaptable(params)
        moves = {name: p - p.detach() for name, p in start.items()}  # zero, of derivative one
        surrogate: Tensor = loss.detach()
        return surrogate + _dot({name: v.detach() for name, v in implicit.items()}, moves)

    def _implicit(
        self, params: Params, weights: Params, slope: Params, support: Examples
    ) -> Params:
        """(I + H / (lambda + damping))^-1 slope."""
        scale = self.strength + self.damping

        def support_loss(weights: Params) -> Tensor:
            merged = {**params, **weights}
            outputs = self.forward(merged, support.x, support.mask, targets=support.y)
            return self.loss(outputs, support)

        # H is symmetric: pulling v back through the gradient gives H v, from one graph for all.
        pull = vjp(grad(support_loss), weights)[1]

        def multiply(v: Params) -> Params:
            return {name: v[name] + h / scale for name, h in pull(v)[0].items()}

        return SOLVERS[self.solver](multiply, slope, steps=self.solver_steps)
