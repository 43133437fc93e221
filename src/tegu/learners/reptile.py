"""Reptile: move the initial weights towards those that tasks end up with.

Nichol, Achiam, Schulman (2018), On first-order meta-learning algorithms,
arXiv:1803.02999, algorithm 2 (batched), and the code published with it:

    phi <- phi + epsilon * mean over tasks of (weights after k inner steps - phi)

where epsilon falls linearly from `outer_lr` to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tegu.inner import Params
from tegu.learners.finetune import FineTune, split
from tegu.learners.learner import State


@dataclass(frozen=True, kw_only=True)
class Reptile(FineTune):
    """Reptile with an SGD or Adam inner loop.

    The published code keeps one Adam state for the whole of meta-training:
    task after task goes on with the mean squares that the last one left, and
    evaluation starts every task from the state that training ended with. tegu
    carries that state as part of what is meta-learned. With `serial=True` the
    tasks of a meta-batch run one after another exactly as in that code. By
    default they run side by side: each starts from the state at the start of
    the meta-batch, and the new state is what the same squared gradients would
    have left one after another. Only the few steps since the meta-batch began
    are seen late; `benchmarks/results/reptile-serial-or-parallel.json` holds
    what that costs.

    Args:
        carry: keep the optimiser's state from task to task, as the published
            code does; otherwise every task starts afresh.
        serial: run the tasks of a meta-batch one after another.
        summed: the published code sums the loss over a mini-batch, which Adam does
            not notice as long as its state comes from batches of the same size.
            Evaluation has smaller ones, and so takes smaller steps.

    The other settings are those of `FineTune`.

    Reference:
        arXiv:1803.02999. Differs from the published code with `serial=True`: a
        summed loss is in units of `inner_batch`, which leaves Adam's steps as they
        were but for its epsilon of 1e-8.
    """

    name: ClassVar[str] = "reptile"
    start: ClassVar[Mapping[str, Any]] = {"train.outer_lr": 1.0, "train.n_shot": 10}
    start_numbers: ClassVar[Mapping[str, Any]] = {
        "learner.inner_optimiser": "sgd",
        "learner.inner_lr": 0.02,
        "learner.inner_steps": 10,
        "learner.eval_steps": 32,
        "learner.eval_batch": 10,
        "train.outer_lr": 0.3,
        "train.n_shot": 100,
    }

    carries: ClassVar[tuple[str, ...]] = ("sgd", "adam")

    carry: bool = True
    summed: bool = True
    serial: bool = False

    def goes_on(self) -> bool:
        return self.serial

    def handover(self, params: Params, state: State) -> Params:
        """What the next task of a serial meta-batch starts from: old weights, new optimiser."""
        return {**params, **{f"inner/{name}": value for name, value in state["inner"].items()}}

    def outer_update(self, params: Params, states: State, *, outer_lr: float) -> Params:
        """Move towards the mean of the adapted weights.

        Args:
            params: before the meta-batch.
            states: of its T tasks, each tensor with a leading axis T.
            outer_lr: epsilon, 0 to 1.
        """
        total = len(states["loss"])
        terms = self.outer_terms(params, states, first=0, total=total)
        new = self.outer_move(params, terms, total=total, outer_lr=outer_lr)
        if self.carry and self.serial:
            last = {name: values[-1].clone() for name, values in states["inner"].items()}
            new.update({f"inner/{name}": value for name, value in last.items()})
        return new

    def outer_terms(self, params: Params, states: State, *, first: int, total: int) -> State:
        """What some tasks add to the mean of the weights and to the optimiser's new state.

        Args:
            params: before the meta-batch.
            states: of tasks `first` and on of a meta-batch of `total`.
        """
        weights, inner = split(params)
        mean = {name: states["weights"][name].sum(0) / total for name in weights}
        own = inner if self.carry and not self.serial else {}
        return {"weights": mean, "inner": self._in_turn(own, states, first, total)}

    def outer_move(self, params: Params, terms: State, *, total: int, outer_lr: float) -> Params:
        """The update, from the sum of all `outer_terms`."""
        new = {
            name: torch.lerp(params[name], mean, outer_lr)
            for name, mean in terms["weights"].items()
        }
        powers = self._powers()
        for name, term in terms["inner"].items():
            a = 1.0 if name == "step" else powers[name.split("/")[0]]
            new[f"inner/{name}"] = a**total * params[f"inner/{name}"] + term
        return new

    def _powers(self) -> dict[str, float]:
        """Factor by which a task's steps shrink each kind of state."""
        return {k: decay**self.inner_steps for k, decay in self.optimiser.decay().items()}

    def _in_turn(self, inner: Params, states: State, first: int, total: int) -> Params:
        """What tasks `first` and on add to the state that all `total` leave one after another.

        k updates take a mean square v to a v + c with a = decay^k. Each task
        tells its c; T tasks in turn give a^T v + sum of a^(T-1-t) c_t.
        """
        out, some = {}, states["loss"]
        last = total - 1 - first
        later = torch.arange(last, last - len(some), -1, device=some.device)
        powers = {
            kind: (a, torch.pow(a, later.double()).to(some)) for kind, a in self._powers().items()
        }
        for name, before in inner.items():
            after: Tensor = states["inner"][name]
            if name == "step":
                out[name] = (after - before).sum()
                continue
            a, weights = powers[name.split("/")[0]]
            out[name] = torch.tensordot(weights, after - a * before, 1)
        return out
