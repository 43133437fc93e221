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

from tegu.episodes import Episode
from tegu.inner import Params
from tegu.learners.finetune import FineTune


@dataclass(frozen=True, kw_only=True)
class Maml(FineTune):
    """MAML with any number of steps, of first or second order.

    Args:
        first_order: take the derivative of the adapted weights by the initial ones
            for the identity (FOMAML); otherwise the gradient is exact.

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

    inner_optimiser: str = "sgd"
    inner_lr: float = 0.4
    inner_steps: int = 1
    inner_batch: int = 0
    eval_steps: int = 3
    eval_batch: int = 0
    first_order: bool = False

    def chained(self) -> bool:
        return not self.first_order

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss on the queries after adapting to the support set."""
        if not self.first_order:
            return super().outer_loss(params, episode, key)
        frozen = {name: p.detach() for name, p in params.items()}
        state = self.adapt(frozen, episode.support, key, training=True)
        # The adapted values, with a derivative of one by the initial ones.
        start = self.adaptable(params)
        state["weights"] = {
            k: w + (start[k] - start[k].detach()) for k, w in state["weights"].items()
        }
        outputs = self.predict(params, state, episode.query.x, episode.query.mask)
        return self.loss(outputs, episode.query)
