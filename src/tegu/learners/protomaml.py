"""Proto-MAML: MAML whose last layer starts from the task's own prototypes.

Triantafillou et al. (2020), Meta-Dataset: a dataset of datasets for learning to
learn from few examples, arXiv:1903.03096, section 3 (Proto-MAML). With c_k the mean
feature of class k in the support set,

    W_k = 2 c_k,    b_k = -|c_k|^2

make the scores W f + b those of a prototypical network, -|f - c_k|^2, up to a term
that all classes share. Then body and head take MAML's steps together. There is no
head to meta-learn, and a task may have any number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import class_means, exact, members
from tegu.learners.learner import State
from tegu.learners.maml import Maml

WEIGHT, BIAS = "prototypes/weight", "prototypes/bias"


@dataclass(frozen=True, kw_only=True)
class ProtoMaml(Maml):
    """Proto-MAML with any number of steps, of first or second order.

    Of the model only `body` is used, as in `features`; a head that it has stays as it is.

    Args:
        n_way: classes of a task.
        first_order: take the gradients of the support loss for constants in the outer
            gradient. What the prototypes owe to the shared body is counted all the same,
            as in the published code.

    The other settings are those of `Maml`.

    Reference:
        arXiv:1903.03096. Differs from the paper: the outer loss is the mean over tasks. Differs
        from the code published with it: scales and shifts of batch normalisation are adapted
        like all other weights, and derivatives are of second order unless `first_order`.
    """

    name: ClassVar[str] = "proto-maml"
    headless: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ("classes",)

    carries: ClassVar[tuple[str, ...]] = ()

    n_way: int = 5
    inner_lr: float = 0.01
    inner_steps: int = 5
    eval_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("n_way", self.n_way, 2)

    def adaptable(self, params: Params) -> Params:
        """The head, and the body: without the rest of the model where it is a module."""
        own = super().adaptable(params)
        if not isinstance(getattr(self.model, self.body or "-", None), nn.Module):
            return own
        return {k: p for k, p in own.items() if k.startswith((f"{self.body}.", WEIGHT, BIAS))}

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        features = self.features(params, support.x, support.mask)
        with exact(features) as features:
            member = members(support, self.n_way, features)
            means = class_means(features, member)
        # A class without examples has no share in any loss, and in the end the least score.
        absent = member.sum(0) == 0
        bias = (-means.square().sum(-1)).masked_fill(absent, torch.finfo(means.dtype).min)
        head = {WEIGHT: 2 * means, BIAS: bias}
        return super().begin({**params, **head}, support, key, training=training)

    def forward(
        self,
        params: Params,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        training: bool = False,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Scores (B, N) by the task's head, or the model's own output before a task."""
        if WEIGHT not in params:
            return super().forward(params, x, mask, training=training, targets=targets)
        rest = {name: p for name, p in params.items() if name not in (WEIGHT, BIAS)}
        with exact(self.features(rest, x, mask, training=training)) as features:
            return features @ params[WEIGHT].T + params[BIAS]
