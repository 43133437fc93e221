"""CAVIA: a task changes a few inputs of the network, and no weight of it.

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson (2019), Fast context adaptation via
meta-learning, arXiv:1810.03642:

    phi_i <- 0 - inner_lr * gradient by phi of the support loss of f(x, phi; theta)
    theta <- theta - outer step on the query losses of f(x, phi_i; theta)

The context phi enters with the input; theta is shared by all tasks and moves in
meta-training alone. phi is a task's whole memory: a handful of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.maml import Maml

CONTEXT = "context/task"


@dataclass(frozen=True, kw_only=True)
class Cavia(Maml):
    """CAVIA with any number of steps, of first or second order.

    The model takes `context` more inputs than an example has: numbers after those of a
    vector, channels after those of an image (each constant over the image). Features
    that tasks share are those of a context of zeros.

    Normalisation straight after a first convolution takes the mean of each channel off, and
    with it all that a constant channel adds but at the borders: Conv4 hears next to nothing
    of its context. Take a network without, Mlp say.

    Args:
        context: how many numbers adapt.

    The other settings are those of `Maml`. A state is the context alone, and the support
    set where batch normalisation needs it.

    Reference:
        arXiv:1810.03642. Differs from the paper: images get the context as extra
        channels of the input, where the paper scales and shifts the channels of a hidden
        layer by it (FiLM); the outer loss is the mean over tasks; meta-gradients are not
        clipped, as they are in its code.
    """

    name: ClassVar[str] = "cavia"
    targets: ClassVar[tuple[str, ...]] = ("classes", "numbers")
    start: ClassVar[Mapping[str, Any]] = {**Maml.start, "model.name": "mlp"}
    start_numbers: ClassVar[Mapping[str, Any]] = {
        key: value for key, value in Maml.start_numbers.items() if key != "learner.inner_lr"
    }

    carries: ClassVar[tuple[str, ...]] = ()

    context: int = 5
    inner_lr: float = 1.0
    eval_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("context", self.context, 1)

    @classmethod
    def extra_inputs(cls, settings: Mapping[str, Any]) -> int:
        return max(0, int(settings.get("context", cls.context)))  # __post_init__ refuses less

    def adaptable(self, params: Params) -> Params:
        """A context of zeros: no part of what is meta-learned."""
        some = next(iter(params.values()))
        return {CONTEXT: some.new_zeros(self.context)}

    def _call(
        self,
        module: nn.Module,
        params: Params,
        x: Tensor,
        mask: Tensor | None,
        training: bool,
        *more: Tensor,
        prefix: str = "",
    ) -> Tensor:
        context = params.get(prefix + CONTEXT, x.new_zeros(self.context))
        joined = join(x, context)
        try:
            return super()._call(module, params, joined, mask, training, *more, prefix=prefix)
        except RuntimeError as failure:
            if self._fits(module, joined):
                raise
            raise InputError(
                f"{type(self.model).__name__} as a model, which cannot take {self.context} numbers "
                f"of context beside inputs of shape {tuple(x.shape[1:])}",
                "a model with that many more inputs: numbers of a vector, channels of an image",
                f"Build it as Mlp(width + {self.context}, ...) or "
                f"Conv4(..., channels=channels + {self.context}); it said: "
                f"{str(failure).splitlines()[0]}",
            ) from failure

    def _fits(self, module: nn.Module, x: Tensor) -> bool:
        """Whether the module takes inputs of this shape, with its own weights and no `vmap`."""
        try:
            alone = torch.zeros(1, *x.shape[1:], dtype=x.dtype, device=x.device)
            super()._call(module, {}, alone, None, False)
        except RuntimeError:
            return False
        return True


def join(x: Tensor, context: Tensor) -> Tensor:
    """Inputs with a context: (B, D) and (C,) to (B, D + C), (B, K, ...) to (B, K + C, ...).

    Example:
        >>> join(torch.zeros(1, 2), torch.tensor([7.0]))
        tensor([[0., 0., 7.]])
    """
    rest = x.shape[2:]
    context = context.to(x.dtype).reshape(1, -1, *[1] * len(rest))
    return torch.cat([x, context.expand(len(x), -1, *rest)], 1)
