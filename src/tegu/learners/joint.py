"""Joint training: one network for all tasks pooled, fine-tuned on each.

The baseline that meta-learning has to beat: the mean of many sine waves is the
zero function, and a network that learned it starts no nearer to any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tegu.episodes import Episode, pooled
from tegu.inner import Params
from tegu.learners.finetune import FineTune


@dataclass(frozen=True, kw_only=True)
class Joint(FineTune):
    """Gradient descent on all examples of all tasks, then `FineTune` on each.

    Meta-training takes no inner steps: the settings of those count on new tasks alone.

    Reference:
        The comparison in Finn et al. (2017), arXiv:1703.03400, section 5.1
        ("pretrained on all of the tasks"), and in Nichol et al. (2018).
    """

    name: ClassVar[str] = "joint"
    targets: ClassVar[tuple[str, ...]] = ("numbers",)
    later: ClassVar[tuple[str, ...]] = (
        *FineTune.later,
        "inner_optimiser",
        "inner_lr",
        "momentum",
        "beta1",
    )
    start_numbers: ClassVar[Mapping[str, Any]] = {
        "learner.inner_optimiser": "sgd",
        "learner.inner_lr": 0.02,
        "learner.eval_steps": 32,
        "learner.eval_batch": 10,
        "train.outer_lr": 0.001,
        "train.n_shot": 100,
    }

    def uses_queries(self) -> bool:
        return False  # it pools what there is

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss of the shared weights themselves, unadapted, on the whole episode."""
        both = pooled(episode)
        return self.loss(self.forward(params, both.x, both.mask), both)
