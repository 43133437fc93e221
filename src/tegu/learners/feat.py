"""FEAT: prototypes that see one another before queries are compared with them.

Ye, Hu, Zhan, Sha (2020), Few-shot learning via embedding adaptation with
set-to-set functions, arXiv:1812.03664. With c the class means:

    c_k  <- norm(c_k + W_o sum over l of softmax_l(q_k . k_l / sqrt(D)) v_l)
    p(y=k) = softmax over k of -|f(x) - c_k|^2 / temperature
    loss   = loss on the queries + balance * loss of a second task

In the second task each class is a set of its own, support and queries together;
its examples are transformed among themselves, and every example is compared with
the means of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.episodes import Episode, Examples, pooled
from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.head import Head, class_means, exact, members, squared_distances
from tegu.learners.learner import State

LAYERS = ("query", "key", "value", "out")


@dataclass(frozen=True, kw_only=True)
class Feat(Head):
    """Prototypes adapted to a task by one head of self-attention.

    Args:
        temperature: what squared distances are divided by.
        balance: weight of the contrastive regulariser; 0 for none.
        balance_temperature: what its squared distances are divided by.
        seed: of the attention's initial weights.

    Defaults are those published for 1-shot tasks and a Conv-4.

    Reference:
        arXiv:1812.03664 and its published code. Differs from them: no dropout in
        the attention; one step size for all weights; features are learned from
        scratch unless the model comes with some, where the paper starts from ones
        trained for classification; initial weights are uniform.
    """

    name: ClassVar[str] = "feat"

    temperature: float = 64.0
    balance: float = 1.0
    balance_temperature: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "balance_temperature"):
            check_range(name, getattr(self, name), above=0, todo="Write 64, or 1.")
        check_range("balance", self.balance, 0, todo="Write 1, or 0.")

    def init(self) -> Params:
        """The model's weights, and those of the attention under "attention/"."""
        width = self.feature_width()
        drawn = {f"{n}.weight": self.drawn(n, (width, width), seed=self.seed) for n in LAYERS}
        zeros = drawn["out.weight"].new_zeros(width)
        more = {"out.bias": zeros, "norm.weight": zeros + 1, "norm.bias": zeros.clone()}
        own = {f"attention/{name}": value for name, value in (drawn | more).items()}
        return {**super().init(), **own}

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        member = members(support, self.n_way, features)
        present = member.sum(0) > 0
        among = present.expand(self.n_way, -1) | torch.eye(
            self.n_way, dtype=torch.bool, device=present.device
        )
        return {"prototypes": attended(params, class_means(features, member), among)}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        return -squared_distances(features, state["prototypes"]) / self.temperature

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        known, asked = self.passed(params, episode)
        loss = self.loss(self.answered(params, episode, known, asked), episode.query)
        if not self.balance:
            return loss
        both = pooled(episode)
        with exact(torch.cat([known, asked])) as features:
            member = members(both, self.n_way, features)
            # Padding has itself to attend to.
            alone = torch.eye(len(member), dtype=torch.bool, device=member.device)
            transformed = attended(params, features, (member @ member.T > 0) | alone)
            centres = class_means(transformed, member)
            scores = -squared_distances(features, centres) / self.balance_temperature
            scores = scores.masked_fill(member.sum(0) == 0, torch.finfo(scores.dtype).min)
        return loss + self.balance * self.loss(scores, both)


def attended(params: Params, items: Tensor, among: Tensor) -> Tensor:
    """Items (M, D) after one head of self-attention, a residual and layer normalisation.

    Args:
        params: weights under "attention/".
        items: a set, or several.
        among: shape (M, M) bool, which items each item attends to; at least one.
    """
    width = items.shape[-1]
    query, key, value, out = (params[f"attention/{name}.weight"] for name in LAYERS)
    alike = (items @ query.T) @ (items @ key.T).T * width**-0.5
    weights = alike.masked_fill(~among, torch.finfo(alike.dtype).min).softmax(-1)
    mixed = F.linear(weights @ (items @ value.T), out, params["attention/out.bias"])
    gain, shift = params["attention/norm.weight"], params["attention/norm.bias"]
    return F.layer_norm(items + mixed, (width,), gain, shift)
