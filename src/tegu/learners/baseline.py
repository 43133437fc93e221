"""Baseline and Baseline++: pre-trained features, and a head fitted by gradient steps.

Chen, Liu, Kira, Wang, Huang (2019), A closer look at few-shot classification,
arXiv:1904.04232, section 3. With features f that no task changes:

    Baseline:   scores = W f + b
    Baseline++: scores = scale * cosine(w_k, f)

Both heads are trained by SGD on mini-batches of the support set, as the same kind of
head was on all training classes before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.episodes import Examples
from tegu.errors import check_range
from tegu.inner import Params, gradient
from tegu.learners.finetune import cycle, row
from tegu.learners.head import exact, members
from tegu.learners.learner import State
from tegu.learners.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class Baseline(Pretrained):
    """A linear head for each task on features that are kept.

    Args:
        eval_steps: gradient steps on a task.
        eval_batch: rows of a mini-batch; 0 for the whole support set in each step.
        head_lr: step size.
        momentum: of SGD.
        dampening: 1 minus the share of a gradient that enters the momentum.
        weight_decay: of SGD.

    Reference:
        arXiv:1904.04232. 100 steps on batches of 4 are what the paper writes; its
        published code makes 100 passes over the support set instead, batches of 4
        that begin anew in each pass. Differs from the paper: nowhere in the head.
    """

    name: ClassVar[str] = "baseline"
    later: ClassVar[tuple[str, ...]] = (
        "eval_steps",
        "eval_batch",
        "head_lr",
        "momentum",
        "dampening",
        "weight_decay",
    )

    eval_steps: int = 100
    eval_batch: int = 4
    head_lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eval_steps", "eval_batch", "weight_decay"):
            check_range(name, getattr(self, name), 0)
        check_range("head_lr", self.head_lr, above=0, todo="Try 0.01.")
        for name in ("momentum", "dampening"):
            check_range(name, getattr(self, name), 0, below=1, todo="Try 0.9, or 0.")

    def fresh(self, key: Tensor, like: Tensor) -> Params:
        """Weights of a task's head before the first step, for features `like` (S, D)."""
        width = like.shape[-1]
        bound, size = width**-0.5, self.n_way * width
        weight = keys.uniform(keys.fold(key, 1), size, -bound, bound).reshape(-1, width)
        bias = keys.uniform(keys.fold(key, 2), self.n_way, -bound, bound)
        return {"weight": weight.to(like), "bias": bias.to(like)}

    def logits(self, weights: Params, features: Tensor) -> Tensor:
        """Scores (B, N) of a task's head."""
        return F.linear(features, weights["weight"], weights["bias"])

    def steps(self, *, training: bool) -> int:
        return 0 if training else self.eval_steps

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        features = self.features(params, support.x, support.mask, training=training)
        with exact(features) as features:
            weights = self.fresh(key, features)
        state = {
            "weights": weights,
            "velocity": {name: torch.zeros_like(w) for name, w in weights.items()},
            "features": features,
            "present": members(support, self.n_way, features).sum(0) > 0,
            "support": self.kept(support),
        }
        if self.eval_batch:
            mask, steps = support.mask, self.eval_steps
            state["order"] = cycle(keys.fold(key, 3), mask, batch=self.eval_batch, steps=steps)
        return state

    def step(self, params: Params, state: State, support: Examples, index: Tensor) -> State:
        """SGD with momentum, dampening and weight decay, as torch.optim has them."""
        batch = support._replace(x=state["features"])
        if "order" in state:
            rows = row(state["order"], index)
            batch = Examples(*(field[rows] for field in batch))

        def loss(weights: Params) -> Tensor:
            changed = {**state, "weights": weights}
            return self.loss(self._scored(params, changed, batch.x, batch.mask), batch)

        weights, velocity = state["weights"], {}
        for name, g in gradient(loss, weights)[0].items():
            g = g + self.weight_decay * weights[name]
            moving = self.momentum * state["velocity"][name] + (1 - self.dampening) * g
            # The first gradient whole, and every one where there is no momentum.
            velocity[name] = torch.where(index == 0, g, moving) if self.momentum else g
        weights = {name: w - self.head_lr * velocity[name] for name, w in weights.items()}
        return {**state, "weights": weights, "velocity": velocity}

    def finish(self, state: State, *, training: bool) -> State:
        return {name: state[name] for name in ("weights", "present", "support")}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        return self.logits(state["weights"], features)


@dataclass(frozen=True, kw_only=True)
class BaselinePlusPlus(Baseline):
    """A head of cosines, in pre-training and on each task.

    Args:
        scale: factor on the cosines of a task.
        base_scale: factor on the cosines of the training classes; 0 for the published
            one, 2 up to 200 classes and 10 above.

    Reference:
        arXiv:1904.04232. Differs from its published code: cosines have no learned
        norm for each class.
    """

    name: ClassVar[str] = "baseline++"
    later: ClassVar[tuple[str, ...]] = (*Baseline.later, "scale")

    scale: float = 2.0
    base_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scale", self.scale, above=0, todo="Write 2, or 10.")
        check_range("base_scale", self.base_scale, 0, todo="Write 0, or 10.")

    def init(self) -> Params:
        return {k: v for k, v in super().init().items() if k != "classifier/bias"}

    def classify(self, params: Params, features: Tensor) -> Tensor:
        scale = self.base_scale or (2.0 if self.n_classes <= 200 else 10.0)
        return scale * cosines(features, params["classifier/weight"])

    def fresh(self, key: Tensor, like: Tensor) -> Params:
        return {"weight": super().fresh(key, like)["weight"]}

    def logits(self, weights: Params, features: Tensor) -> Tensor:
        return self.scale * cosines(features, weights["weight"])


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines between (Q, D) and (N, D): (Q, N)."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
