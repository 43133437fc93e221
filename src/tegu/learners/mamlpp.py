"""MAML++: MAML with what makes it train well.

Antoniou, Edwards, Storkey (2019), How to train your MAML, arXiv:1810.09502, section 4.
With weights theta_0 of the network and for steps i = 0, ..., k - 1

    theta_i+1 = theta_i - rate_i * gradient of the support loss      (a rate per tensor)
    loss      = sum over i of v_i * query loss at theta_i+1

where batch normalisation in pass i, on support and queries alike, has a scale and
shift of its own, v_i moves from 1/k each to 1 for the last, and the gradients count
as constants in the first part of meta-training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.finetune import row
from tegu.learners.learner import SCHEDULED, State
from tegu.learners.maml import Maml, constant
from tegu.models.norm import layers

RATES, NORMS = "rates/", "norms/"
FIRST_ORDER, STEP_LOSSES = "first_order", "step_losses"  # what is scheduled


@dataclass(frozen=True, kw_only=True)
class MamlPlusPlus(Maml):
    """MAML with a loss after each step, learned rates, norms per step, and late second order.

    A task that takes more steps than meta-training had goes on with the last rates and
    norms. Train with `outer_schedule="cosine"`, which is the paper's sixth proposal.

    Args:
        inner_lr: what the learned rates start from.
        multi_step_until: share of meta-training in which the query losses after all steps
            count, from equally at first to the last alone in the end; 0 for none.
        first_order_until: share of meta-training with gradients as constants; 0 for none.
        per_step_norm: a scale and shift of batch normalisation for each step, which no task
            changes; otherwise one for all steps, which each task adapts.

    The other settings are those of `Maml`, with plain SGD as the only inner optimiser.

    Reference:
        arXiv:1810.09502 and the code published with it. Differs from the paper: the outer loss is
        a mean over tasks, as in the code; statistics
        of batch normalisation are not collected for each step, since every pass uses those
        of its own batch, as in the published code, where the collected ones are never read.
        Differs from the code: v_i falls to 0 in a straight line, without a floor of 0.03/k
        until that phase ends; v_i and the outer rate change with each iteration, not each
        epoch; a tensor has k rates, where the code keeps one more that no step uses. The
        code's configurations have second order throughout, the paper's text first order
        for the first 50 epochs.
    """

    name: ClassVar[str] = "maml++"
    start: ClassVar[Mapping[str, Any]] = {**Maml.start, "train.outer_schedule": "cosine"}
    start_numbers: ClassVar[Mapping[str, Any]] = {
        **Maml.start_numbers,
        "train.outer_schedule": "cosine",
    }

    carries: ClassVar[tuple[str, ...]] = ()

    inner_lr: float = 0.1
    inner_steps: int = 5
    eval_steps: int = 5
    multi_step_until: float = 0.1
    first_order_until: float = 0.5
    per_step_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("multi_step_until", "first_order_until"):
            check_range(
                name, getattr(self, name), 0, 1, todo=f"Write {name}=0.1 for its first tenth."
            )
        if self.inner_optimiser != "sgd" or self.momentum:
            raise InputError(
                f"{self.name} with {self.inner_optimiser} and momentum {self.momentum}",
                "plain SGD, whose rates it learns",
                "Leave these settings out.",
            )

    def init(self) -> Params:
        """The weights; "rates/NAME", (k,) each; "norms/NAME", (k - 1, C), of all steps but one.

        The scale and shift of the first step are the model's own, and give `features`.
        """
        weights, k = super().init(), self.inner_steps
        names = [f"{n}.{kind}" for n in layers(self.model) for kind in ("weight", "bias")]
        apart = [n for n in names if n in weights] if self.per_step_norm else []
        rates = {
            RATES + n: w.new_full((k,), self.inner_lr) for n, w in weights.items() if n not in apart
        }
        norms = {NORMS + n: weights[n].expand(k - 1, -1).clone() for n in apart if k > 1}
        return {**weights, **rates, **norms}

    def schedule(self, done: float) -> Params:
        values = {}
        if done < self.first_order_until:
            values[FIRST_ORDER] = torch.ones(())  # that it is there is all it says
        if done < self.multi_step_until:
            shared = 1 - done / self.multi_step_until
            k = self.inner_steps
            v = torch.full((k,), shared / k, dtype=torch.float64)
            v[-1] += 1 - shared
            values[STEP_LOSSES] = v
        return values

    # Learn a task.

    def adaptable(self, params: Params) -> Params:
        """The weights that have rates."""
        return {name: p for name, p in params.items() if RATES + name in params}

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        state = super().begin(params, support, key, training=training)
        return {**state, "norms": self.norms(params, torch.full((), 0, device=key.device))}

    def step(self, params: Params, state: State, support: Examples, index: Tensor) -> State:
        norms = self.norms(params, index)
        state = super().step({**params, **norms}, state, support, index)
        return {**state, "norms": norms}  # the queries after a step see those of the step

    def gradient(
        self, params: Params, state: State, support: Examples, index: Tensor
    ) -> tuple[Params, Tensor]:
        if SCHEDULED + FIRST_ORDER in params:
            params, state = constant(params), constant(state)
        return super().gradient(params, state, support, index)

    def move(
        self, params: Params, state: State, grads: Params, index: Tensor
    ) -> tuple[Params, Params]:
        """Weights after step `index`, each by its own rate."""
        at = index.clamp(max=self.inner_steps - 1)
        moved = {
            name: w - row(params[RATES + name], at) * grads[name]
            for name, w in state["weights"].items()
        }
        return moved, state["inner"]

    def norms(self, params: Params, index: Tensor) -> Params:
        """Scales and shifts of batch normalisation in step `index`, (C,) each."""
        at = index.clamp(max=self.inner_steps - 1)
        later = {n.removeprefix(NORMS): p for n, p in params.items() if n.startswith(NORMS)}
        return {n: row(torch.cat([params[n][None], p]), at) for n, p in later.items()}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        return super().predict({**params, **state["norms"]}, state, query, mask)

    def query_loss(self, params: Params, state: State, query: Examples) -> Tensor:
        return super().query_loss({**params, **state["norms"]}, state, query)

    # Learn to learn.

    def chained(self) -> bool:
        return not self.multi_step_until

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Query losses after the steps, weighted; without weights, that after the last."""
        v = params.get(SCHEDULED + STEP_LOSSES)
        if v is None:
            return super().outer_loss(params, episode, key)
        support, query = episode
        state, losses = self.begin(params, support, key, training=True), []
        for number in range(self.inner_steps):
            state = self.step(params, state, support, torch.full((), number, device=key.device))
            losses.append(self.query_loss(params, state, query))
        return (v * torch.stack(losses)).sum()
