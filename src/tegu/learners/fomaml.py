"""FOMAML: MAML whose outer step is the gradient of the last mini-batch where it was met.

Finn, Abbeel, Levine (2017), arXiv:1703.03400, section 5.2 ("first-order
approximation"); Nichol, Achiam, Schulman (2018), On first-order meta-learning
algorithms, arXiv:1803.02999, section 4, and the code published with it:

    theta_i <- theta - inner_lr * gradient of a mini-batch, `inner_steps` times
    theta   <- theta - outer step on the mean of the last mini-batch's gradients at theta_i
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tegu.episodes import Episode, Examples
from tegu.errors import InputError, unknown
from tegu.inner import Params
from tegu.learners.finetune import cycle
from tegu.learners.learner import State
from tegu.learners.maml import Maml

TAILS = ("separate", "shared")


@dataclass(frozen=True, kw_only=True)
class Fomaml(Maml):
    """MAML without second derivatives.

    In Nichol et al.'s count of mini-batches, k is `inner_steps` + 1: the first k - 1
    move the weights, and the gradient of number k is what the outer step follows.

    Args:
        tail: where mini-batch k comes from. "separate": it is the query set, which the
            steps have not seen. "shared": it is dealt from the support set like the
            others, and shares examples with them where these run out (all of them with
            `inner_batch=0`, the whole support set in each step); queries have no part.

    The other settings are those of `Maml`; `first_order` cannot be switched off.

    Reference:
        "separate" is Finn et al.'s algorithm, and `--foml --foml-tail` of the code of
        Nichol et al.; "shared" is their `--foml` alone. Differs from that code: the
        outer optimiser is Adam on the gradient of mini-batch k, where the code adds
        what one more step of the inner optimiser, on mini-batch k, would change (for
        SGD, -inner_lr times the same gradient); the inner optimiser is SGD, with no
        state that goes from task to task, where the code has Adam and carries its state.
    """

    name: ClassVar[str] = "fomaml"

    first_order: bool = True
    tail: str = "separate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tail not in TAILS:
            raise unknown("tail", self.tail, TAILS)
        if not self.first_order:
            raise InputError(
                "first_order is false with fomaml", "true, which is its name", "Take maml."
            )

    def uses_queries(self) -> bool:
        return self.tail == "separate"

    def chained(self) -> bool:
        return self.tail == "separate"

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        state = super().begin(params, support, key, training=training)
        if training and self.tail == "shared" and self.inner_batch:
            batches = self.inner_steps + 1
            state["order"] = cycle(key, support.mask, batch=self.inner_batch, steps=batches)
        return state

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss of the adapted weights on the last mini-batch."""
        if self.tail == "separate":
            return super().outer_loss(params, episode, key)
        support = episode.support
        state = self.begin(params, support, key, training=True)
        for number in range(self.inner_steps):
            state = self.step(params, state, support, torch.full((), number, device=key.device))
        last = torch.full((), self.inner_steps, device=key.device)
        return self.batch_loss(params, state, support, last)
