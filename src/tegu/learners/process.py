"""What neural processes share: a network that encodes a set and decodes queries given the set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from tegu.episodes import Examples
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.learner import Learner, State
from tegu.losses import Loss, gaussian, squared_error


@dataclass(frozen=True, kw_only=True)
class Process(Learner):
    """A task is learnt in one pass: its state is what the network makes of the support set.

    Args:
        model: a network with `in_width`, `out_width`, `encode` and `decode`, such as
            `tegu.models.NeuralProcess` or `tegu.models.TransformerProcess`.
        loss: `tegu.losses.gaussian`; outputs are means beside log standard deviations.

    A prediction is of each query by itself: means and standard deviations, and no
    correlation between queries. The order of the support set does not matter.
    """

    targets: ClassVar[tuple[str, ...]] = ("numbers",)
    measure: ClassVar[str] = "likelihood"
    start_numbers: ClassVar[Mapping[str, Any]] = {
        "train.outer_lr": 0.001,
        "train.n_shot": 10,
        "train.n_query": 32,
        "train.meta_batch": 16,
        "train.outer_schedule": "cosine",
    }

    loss: Loss = field(default=gaussian, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is squared_error:
            raise InputError(
                f"squared_error with {type(self).__name__}",
                "a loss of means and log standard deviations",
                "Leave out loss, or pass tegu.losses.gaussian.",
            )
        for name in ("in_width", "out_width", "encode", "decode"):
            if not hasattr(self.model, name):
                raise InputError(
                    f"{type(self.model).__name__}, which has no `{name}`",
                    "a network that encodes a support set and decodes queries given it",
                    "Take tegu.models.NeuralProcess or tegu.models.TransformerProcess.",
                )

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        found: State = self.call("encode", params, support.x, support.y, support.mask)
        return found

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.call("decode", params, state, query)
        return out

    def n_targets(self, params: Params, x: Tensor) -> int:
        some = Examples.dense(x, x.new_zeros(len(x), int(self.model.out_width)))  # type: ignore[arg-type]
        self.predict(params, self.adapt(params, some, _KEY.to(x.device)), x, some.mask)
        return int(self.model.out_width)  # type: ignore[arg-type]

    def features(
        self, params: Params, x: Tensor, mask: Tensor | None = None, *, training: bool = False
    ) -> Tensor:
        raise InputError(
            f"features of single inputs from {type(self).__name__}, which reads sets of examples",
            "a learner with features",
            "Adapt to a support set: what was made of it is the state.",
        )


_KEY = torch.zeros((), dtype=torch.int64)
