"""MAML: meta-learn weights from which a few gradient steps solve a task.

Finn, Abbeel, Levine (2017), Model-agnostic meta-learning for fast adaptation
of deep networks, arXiv:1703.03400, algorithm 2:

    theta_i <- theta - inner_lr * gradient of the support loss, `inner_steps` times
    theta   <- theta - outer step on the sum of query losses at theta_i
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tegu.episodes import Examples
from tegu.inner import Params
from tegu.learners.finetune import FineTune
from tegu.learners.learner import State


@dataclass(frozen=True, kw_only=True)
class Maml(FineTune):
    """MAML with any number of steps, of first or second order.

    Args:
        first_order: the gradients of the inner steps count as constants, so that the
            derivative of the adapted weights by the initial ones is the identity
            (FOMAML), and only what scales a gradient, a learned rate say, has another;
            otherwise the meta-gradient is exact.

    The other settings are those of `FineTune`, here with SGD on the whole support set.

    Reference:
        arXiv:1703.03400. Differs from the paper: the outer loss is the mean over
        tasks, where the paper writes the sum.
    """

    name: ClassVar[str] = "maml"
    start: ClassVar[Mapping[str, Any]] = {
        "learner.normalisation": "transductive",
        "train.outer_lr": 0.001,
        "train.meta_batch": 8,
        "train.n_query": 5,
    }
    start_numbers: ClassVar[Mapping[str, Any]] = {
        "learner.inner_lr": 0.01,
        "train.outer_lr": 0.001,
        "train.meta_batch": 25,
        "train.n_shot": 10,
        "train.n_query": 10,
    }

    # Momentum is learned by gradient as weights are; Adam's mean squares would turn negative.
    carries: ClassVar[tuple[str, ...]] = ("sgd",)

    inner_optimiser: str = "sgd"
    inner_lr: float = 0.4
    inner_steps: int = 1
    inner_batch: int = 0
    eval_steps: int = 3
    eval_batch: int = 0
    first_order: bool = False

    def gradient(
        self, params: Params, state: State, support: Examples, index: Tensor
    ) -> tuple[Params, Tensor]:
        if self.first_order:  # before the pass: then nothing of it is kept for a way back
            params, state = constant(params), constant(state)
        return super().gradient(params, state, support, index)


def constant(tree: Any) -> Any:
    """The tensors of nested dicts and tuples, with no derivative."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {name: constant(value) for name, value in tree.items()}
    return tuple(constant(value) for value in tree)
