"""Meta-Curvature: MAML whose gradients pass through learned matrices first.

Park, Oliva (2019), Meta-curvature, arXiv:1902.03356. The gradient G of a weight
tensor, with axes for filter taps, inputs and outputs, becomes

    MC(G) = G x M_filter x M_input x M_output,    theta_i <- theta - inner_lr * MC(G)

a product with one matrix along each axis. The matrices are meta-learned with the
weights. Together they are a Kronecker product: a matrix over all weights of the
layer that never has to be written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.finetune import split
from tegu.learners.learner import State
from tegu.learners.maml import Maml
from tegu.models.convolution import Conv

CURVATURE = "curvature/"


@dataclass(frozen=True, kw_only=True)
class MetaCurvature(Maml):
    """Meta-Curvature with any number of steps; before meta-training it is MAML.

    Args:
        largest: longest axis that gets a full matrix; a longer one gets a diagonal.
        first_order: take the gradients of the support loss for constants in the outer
            gradient; the matrices are learned all the same.

    The other settings are those of `Maml`.

    Reference:
        arXiv:1902.03356. Differs from the paper: vectors, as biases and the scales of
        normalisation, get a matrix of their own; long axes get a diagonal; the outer
        loss is the mean over tasks.
    """

    name: ClassVar[str] = "meta-curvature"

    largest: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("largest", self.largest, 0, todo="Try largest=512.")

    def init(self) -> Params:
        """Initial weights, and under "curvature/NAME/AXIS" an identity (n, n), or ones (n,)."""
        weights = super().init()
        start = dict(weights)
        for name, weight in split(weights)[0].items():
            for axis, n in enumerate(self.axes(name, weight)):
                one = weight.new_ones(n)
                start[f"{CURVATURE}{name}/{axis}"] = one if n > self.largest else one.diag()
        return start

    def axes(self, name: str, weight: Tensor) -> tuple[int, ...]:
        """Lengths of the axes of a weight.

        Kernels of tegu: taps, inputs, outputs. Kernels of torch: outputs, inputs, taps.
        Dense layers: outputs, inputs. Anything else: its own.
        """
        owner = self.model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Conv):
            return 9, len(weight) // 9, weight.shape[1]
        if weight.ndim > 2:
            return weight.shape[0], weight.shape[1], prod(weight.shape[2:])
        return tuple(weight.shape) or (1,)

    def adaptable(self, params: Params) -> Params:
        own = super().adaptable(params)
        return {name: p for name, p in own.items() if not name.startswith(CURVATURE)}

    def move(
        self, params: Params, state: State, grads: Params, index: Tensor
    ) -> tuple[Params, Params]:
        changed = {name: self._changed(params, name, g) for name, g in grads.items()}
        return super().move(params, state, changed, index)

    def _changed(self, params: Params, name: str, grad: Tensor) -> Tensor:
        """MC(G): the same shape."""
        out = grad.reshape(self.axes(name, grad))
        with torch.autocast(grad.device.type, enabled=False):  # weights move in full precision
            for axis in range(out.ndim):
                m = params[f"{CURVATURE}{name}/{axis}"]
                last = out.movedim(axis, -1)
                last = last * m if m.ndim == 1 else last @ m.T
                out = last.movedim(-1, axis)
        return out.reshape(grad.shape)
