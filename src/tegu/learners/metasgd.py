"""Meta-SGD: MAML whose step has a learned rate for every single weight.

Li, Zhou, Chen, Li (2017), Meta-SGD: learning to learn quickly for few-shot
learning, arXiv:1707.09835, algorithm 1:

    theta_i      <- theta - alpha * gradient of the support loss    (equation 2, elementwise)
    theta, alpha <- outer step on the query losses at theta_i

A rate that turns negative or zero turns or stops its weight: alpha sets the
direction of a step as well as its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tegu import keys
from tegu.errors import InputError, unknown
from tegu.inner import Params
from tegu.learners.learner import State
from tegu.learners.maml import Maml

RATES = "rates/"


@dataclass(frozen=True, kw_only=True)
class MetaSgd(Maml):
    """Meta-SGD with any number of steps, all at the same learned rates.

    Args:
        initial: "one": all rates start at one number, drawn between `lowest_rate` and
            `highest_rate`; "uniform": each weight's is a draw of its own; "same": all start
            at `inner_lr`.
        lowest_rate: least initial rate.
        highest_rate: largest initial rate.
        rate_seed: of the initial rates.
        first_order: take the gradients of the support loss for constants in the outer
            gradient; rates are learned all the same.

    The other settings are those of `Maml` but `carry`; `inner_lr` counts where `initial` is
    "same".

    Reference:
        arXiv:1707.09835. Differs from the paper: the outer loss is the mean over tasks,
        where the paper writes the sum; steps may be more than one.
    """

    name: ClassVar[str] = "meta-sgd"
    carries: ClassVar[tuple[str, ...]] = ()  # a step without momentum has no state
    start_numbers: ClassVar[Mapping[str, Any]] = {
        key: value for key, value in Maml.start_numbers.items() if key != "learner.inner_lr"
    }

    initial: str = "one"
    lowest_rate: float = 0.005
    highest_rate: float = 0.1
    rate_seed: int = 0
    eval_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial not in ("one", "uniform", "same"):
            raise unknown("way to start the rates", self.initial, ["one", "uniform", "same"])
        if not 0 <= self.lowest_rate <= self.highest_rate < float("inf"):
            raise InputError(
                f"rates from {self.lowest_rate} to {self.highest_rate}",
                "0 or more, the lower first",
                "Try lowest_rate=0.005 and highest_rate=0.1.",
            )
        if self.inner_optimiser != "sgd" or self.momentum:
            raise InputError(
                f"Meta-SGD with {self.inner_optimiser}, momentum {self.momentum}",
                "plain sgd, whose step the learned rates are",
                "Leave out inner_optimiser and momentum.",
            )

    def init(self) -> Params:
        """Initial weights, and under "rates/NAME" a rate for each of them."""
        weights = super().init()
        return {**weights, **{RATES + name: self._rates(name, w) for name, w in weights.items()}}

    @property
    def _range(self) -> tuple[float, float]:
        return self.lowest_rate, self.highest_rate

    def _rates(self, name: str, weight: Tensor) -> Tensor:
        if self.initial == "same":
            return weight.new_full(weight.shape, self.inner_lr)
        if self.initial == "one":
            rate = keys.uniform(keys.key(self.rate_seed, "rate"), 1, *self._range)
            return weight.new_full(weight.shape, float(rate))
        key = keys.key(self.rate_seed, "rates", name, device=weight.device)
        rates = keys.uniform(key, weight.numel(), *self._range)
        return rates.reshape(weight.shape).to(weight.dtype)

    def adaptable(self, params: Params) -> Params:
        own = super().adaptable(params)
        return {name: p for name, p in own.items() if not name.startswith(RATES)}

    def move(
        self, params: Params, state: State, grads: Params, index: Tensor
    ) -> tuple[Params, Params]:
        weights = state["weights"]
        new = {name: w - params[RATES + name] * grads[name] for name, w in weights.items()}
        return new, state["inner"]
