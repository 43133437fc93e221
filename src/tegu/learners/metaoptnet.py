"""MetaOptNet: a support vector machine, or ridge regression, on shared features.

Lee, Maji, Ravichandran, Soatto (2019), Meta-learning with differentiable convex
optimization, arXiv:1904.03758. The scores of x are scale * W'x, where W are the
weights of a convex learner on the support features, which has one solution and
through which the outer gradient passes by its optimality conditions (section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head, members
from tegu.learners.learner import State
from tegu.learners.r2d2 import ridge
from tegu.learners.svm import machine


@dataclass(frozen=True, kw_only=True)
class MetaOptNetSVM(Head):
    """A multi-class support vector machine, that of Crammer and Singer.

    The scale of the scores is meta-learned ("head/scale"). The machine is solved in
    float64 whatever the features are; a device without float64 cannot run it.

    Args:
        cost: C, what an example costs for each unit that it lacks of its margin.
        scale: of the scores at first.
        iterations: of the interior-point method; 25 arrive for squared feature
            norms up to 100,000 / C.
        gap: how near to its bounds the solver goes, see `tegu.learners.svm.machine`.

    Reference:
        arXiv:1904.03758 and its published code, whose C and first scale these
        are. Differs from both: another interior-point method, with a derivative
        taken by one Newton step; classes that the support set does not show are
        no part of the problem; the kernel is taken as it is, where the code adds 1 to
        its diagonal for its solver's sake; support and queries are normalised together while
        meta-training, where the code normalises each half over eight episodes. The paper
        trains by SGD and with smoothed labels, which here would be another `loss`.
    """

    name: ClassVar[str] = "metaoptnet-svm"

    cost: float = 0.1
    scale: float = 1.0
    iterations: int = 25
    gap: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("cost", self.cost, above=0)
        check_range("scale", self.scale, above=0)
        check_range("gap", self.gap, above=0)
        check_range("iterations", self.iterations, 1)

    def init(self) -> Params:
        return _with_scale(super().init(), self.scale)

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        x = features.double() * support.mask[:, None]
        y = members(support, self.n_way, x)
        present = (y.sum(0) > 0).to(x.dtype)
        weights, _ = machine(
            x, y, present, cost=self.cost, iterations=self.iterations, gap=self.gap
        )
        return {"weights": weights.to(features.dtype)}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = params["head/scale"] * (features @ state["weights"])
        return out


@dataclass(frozen=True, kw_only=True)
class MetaOptNetRidge(Head):
    """Ridge regression as MetaOptNet has it: no bias, a fixed lambda, a learned scale.

    Args:
        regulariser: lambda, for the sum of squares over the support set.
        scale: of the scores at first.

    Reference:
        arXiv:1904.03758 and its published code, whose lambda this is; its
        weights are twice those of ridge regression, as is the first scale here.
        Differs from both: solved in closed form rather than as a quadratic program.
    """

    name: ClassVar[str] = "metaoptnet-ridge"

    regulariser: float = 50.0
    scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regulariser", self.regulariser, above=0)
        check_range("scale", self.scale, above=0)

    def init(self) -> Params:
        return _with_scale(super().init(), self.scale)

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        x = features * support.mask[:, None]
        return {"weights": ridge(x, members(support, self.n_way, x), self.regulariser)}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = params["head/scale"] * (features @ state["weights"])
        return out


def _with_scale(params: Params, scale: float) -> Params:
    return {**params, "head/scale": next(iter(params.values())).new_tensor(scale)}
