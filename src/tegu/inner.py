"""The inner loop's parts, as pure functions: a gradient, and optimisers by which it moves weights.

All are differentiable, run under `vmap`, and change none of their arguments.
Their state is a dict of tensors with names of its own, so that a learner can
carry it, average it or save it beside its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tegu.errors import unknown

Params = dict[str, Tensor]


def gradient(loss: Callable[[Params], Tensor], weights: Params) -> tuple[Params, Tensor]:
    """Gradient of a loss by the weights, and the loss.

    It can be differentiated again and runs under `vmap`. Where neither is asked for, with a
    task alone after meta-training, torch.autograd finds the same sooner: torch.func keeps what a
    second derivative would need.

    Args:
        loss: of weights like these, a scalar.
        weights: floating tensors by name.
    """
    again = torch.is_grad_enabled() or not untransformed()
    if again or any(w.is_inference() for w in weights.values()):
        with out_of_inference():
            found: tuple[Params, Tensor] = grad_and_value(loss)(weights)
        return found
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        value = loss(leaves)
    if not value.requires_grad:  # it depends on none of them
        return {name: torch.zeros_like(w) for name, w in weights.items()}, value
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), value.detach()


@contextmanager
def out_of_inference() -> Iterator[None]:
    """Leaves inference mode, in which torch.func of torch 2.11 finds gradients of zero."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        yield


def untransformed() -> bool:
    """Whether no transform, mode or compiler sees what is computed; False where none can say."""
    if torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
        return False
    if _get_current_dispatch_mode() is not None:
        return False
    try:
        return torch._C._functorch.peek_interpreter_stack() is None
    except AttributeError:
        return False


class InnerOptimiser(Protocol):
    """Settings of an update rule."""

    def init(self, params: Params) -> Params:
        """State before the first update; empty where the rule has none."""
        ...

    def update(self, params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        """New parameters and new state."""
        ...

    def decay(self) -> dict[str, float]:
        """Factor by which one update shrinks each kind of state it carries."""
        ...


@dataclass(frozen=True)
class Sgd:
    """Gradient descent, with heavy-ball momentum where `momentum` is above 0.

    Args:
        lr: step size.
        momentum: 0 for none; the buffer is m = momentum * m + gradient.
    """

    lr: float
    momentum: float = 0.0

    def init(self, params: Params) -> Params:
        if not self.momentum:
            return {}
        return {f"m/{name}": torch.zeros_like(p) for name, p in params.items()}

    def update(self, params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        if self.momentum:
            grads = {name: self.momentum * state[f"m/{name}"] + g for name, g in grads.items()}
            state = {f"m/{name}": g for name, g in grads.items()}
        return {name: p - self.lr * grads[name] for name, p in params.items()}, state

    def decay(self) -> dict[str, float]:
        return {"m": self.momentum}


@dataclass(frozen=True)
class Adam:
    """Adam as TensorFlow writes it: epsilon outside the bias correction.

    Args:
        lr: step size.
        beta1: decay of the mean; 0 (Reptile's setting) keeps no mean at all.
        beta2: decay of the mean square.
        eps: added to the root of the uncorrected mean square.

    Reference:
        Kingma, Ba (2015), arXiv:1412.6980, the form before section 2.1.
    """

    lr: float | Tensor
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def init(self, params: Params) -> Params:
        some = next(iter(params.values()))
        kinds = ("m", "v") if self.beta1 else ("v",)
        state = {f"{k}/{name}": torch.zeros_like(p) for k in kinds for name, p in params.items()}
        return {**state, "step": torch.zeros((), dtype=some.dtype, device=some.device)}

    def update(self, params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        step = state["step"] + 1
        lr = self.lr * _one_minus_power(self.beta2, step).sqrt()
        new: Params = {"step": step}
        means = grads
        if self.beta1:
            lr = lr / _one_minus_power(self.beta1, step)
            means = {
                name: self.beta1 * state[f"m/{name}"] + (1 - self.beta1) * g
                for name, g in grads.items()
            }
            new.update({f"m/{name}": m for name, m in means.items()})
        out = {}
        for name, p in params.items():
            v = self.beta2 * state[f"v/{name}"] + (1 - self.beta2) * grads[name].square()
            new[f"v/{name}"] = v
            # The root's slope is infinite at 0, where a gradient that is exactly 0 leads.
            root = v.clamp(min=torch.finfo(v.dtype).tiny).sqrt()
            out[name] = p - lr * means[name] / (root + self.eps)
        return out, new

    def decay(self) -> dict[str, float]:
        return {"m": self.beta1, "v": self.beta2}


def _one_minus_power(beta: float, step: Tensor) -> Tensor:
    return -torch.expm1(step * math.log(beta))  # exact to rounding, also for beta near 1


def optimiser(name: str, *, lr: float, momentum: float, beta1: float) -> InnerOptimiser:
    """The inner optimiser of a recipe: "sgd" or "adam".

    Args:
        name: which rule.
        lr: its step size.
        momentum: for sgd.
        beta1: for adam.
    """
    if name == "sgd":
        return Sgd(lr, momentum)
    if name == "adam":
        return Adam(lr, beta1)
    raise unknown("inner optimiser", name, ["sgd", "adam"])
