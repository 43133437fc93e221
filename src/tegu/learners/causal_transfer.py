"""Causal transfer: which variable is the cause shows in how fast models adapt.

Bengio et al. (2019), A meta-transfer objective for learning to disentangle causal mechanisms,
arXiv:1901.10912. Where an intervention changed the cause alone, p(A) p(B|A) has one part to
learn anew and p(B) p(A|B) has two. With L the log-likelihood of the transfer samples while a
model adapts to them (online: each mini-batch is judged before it is learnt from), the belief
sigma(gamma) in A -> B falls along the gradient of the regret, equation 3:

    R = -log(sigma(gamma) exp L_AB + (1 - sigma(gamma)) exp L_BA)
    dR / dgamma = sigma(gamma) - sigma(gamma + L_AB - L_BA), proposition 2

Section 4: what is observed may be a rotation of cause and effect; then the angle of an encoder
that turns it back moves along the gradient of the same regret.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown
from tegu.inner import Params, out_of_inference
from tegu.learners.finetune import FineTune
from tegu.learners.learner import State
from tegu.learners.maml import constant
from tegu.losses import Loss, surprise
from tegu.models.experts import ExpertPair
from tegu.models.mixtures import Mixture, em_step
from tegu.models.pair import turned

EVIDENCE = ("sum", "mean")
GAMMA, ANGLE = "belief/gamma", "encoder/angle"


def regret(gamma: Tensor, online: Tensor) -> Tensor:
    """Equation 3: gamma 0-d, online log-likelihoods of A -> B and B -> A (2,), to 0-d."""
    prior = torch.stack([F.logsigmoid(gamma), F.logsigmoid(-gamma)])
    return -(prior + online).logsumexp(-1)


@dataclass(frozen=True, kw_only=True)
class CausalTransfer(FineTune):
    """A belief about the direction of cause and effect, learnt over interventions.

    The model gives log-likelihoods of pairs under both factorisations, (S, 2) to (S, 2), as
    `tegu.models.Pair` does. An episode's support set holds pairs of a transfer distribution,
    its query set, while meta-training, pairs of the training distribution: targets are not
    looked at. Meta-training first fits both factorisations to the queries, then moves the
    belief by the regret on the support set. Answers to queries are log-likelihoods under the
    mixture of both adapted directions by the belief, (Q, 1).

    Args:
        fit: share of meta-training in which only the models learn; 0 where the model given is
            fitted already.
        refit: go on fitting the models beside the belief, as an encoder that moves needs it.
        encoder: pairs are turned by an angle that is meta-learned, `encoder/angle`, 0 at first.
            An `ExpertPair` turns with them: each task starts from the joint mixture that its
            a -> b holds, turned by the angle, so that it need not be fitted again.
        first_order: the angle's gradient takes the gradients of adaptation for constants, as the
            published code does; else it goes through all steps of adaptation. The belief's
            gradient is the same.
        evidence: how log-likelihoods of a mini-batch count in L: their "sum" (the paper), or
            their "mean" (the published code for continuous variables), which hears large
            episodes no louder than small ones.
        em: steps of expectation and maximisation by which marginals that are mixtures adapt,
            for each inner step, in place of the gradient's; 0 for the gradient. The published code
            fits them anew by EM, to convergence.

    The other settings are those of `FineTune` but `carry` and `summed`; the defaults are the
    paper's for tables: two steps of gradient descent, ten pairs in each.

    Reference:
        arXiv:1901.10912. Differs from the paper: belief, angle and models are moved by one
        Adam, where the published code has RMSprop or Adam with a rate for each; evidence of an
        episode is summed before the regret is taken, as in the paper, where the code for tables
        sums regrets of its two steps. Each batch is judged before it is learnt from; the code
        for continuous variables judges marginals on the very batch that they were fitted to,
        and takes all steps of adaptation on one batch.
    """

    name: ClassVar[str] = "causal-transfer"
    targets: ClassVar[tuple[str, ...]] = ("pairs",)
    start: ClassVar[Mapping[str, Any]] = {
        "learner.inner_steps": 10,
        "learner.eval_steps": 10,
        "train.outer_lr": 0.02,
        "train.meta_batch": 4,
        "train.meta_iterations": 600,
    }
    start_numbers: ClassVar[Mapping[str, Any]] = start

    loss: Loss = field(default=surprise, repr=False)
    inner_optimiser: str = "sgd"
    inner_lr: float = 0.1
    inner_steps: int = 2
    inner_batch: int = 10
    eval_steps: int = 2
    eval_batch: int = 10
    fit: float = 0.5
    refit: bool = False
    encoder: bool = False
    first_order: bool = True
    evidence: str = "sum"
    em: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evidence not in EVIDENCE:
            raise unknown("evidence", self.evidence, EVIDENCE)
        check_range("fit", self.fit, 0, below=1, todo="Try 0.5.")
        check_range("em", self.em, 0)
        if self.summed:
            raise InputError("summed with causal-transfer", "the mean", "Leave out summed.")
        if self.refit and self.encoder and isinstance(self.model, ExpertPair):
            raise InputError(
                "refit with an encoder and an ExpertPair",
                "a mixture that turns with the encoder, fitted before",
                "Leave out refit.",
            )

    def init(self) -> Params:
        weights = super().init()
        some = next(iter(weights.values()))
        own = [GAMMA, ANGLE] if self.encoder else [GAMMA]
        return {**weights, **{name: some.new_zeros(()) for name in own}}

    def adaptable(self, params: Params) -> Params:
        weights = super().adaptable(params)
        return {name: value for name, value in weights.items() if "/" not in name}

    def schedule(self, done: float) -> Params:
        return {"fit": torch.ones(())} if done < self.fit else {}

    def chained(self) -> bool:
        return False

    def encoded(self, params: Params, x: Tensor) -> Tensor:
        """Pairs (S, 2) as the models see them."""
        return turned(x, params[ANGLE]) if self.encoder else x

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        state = super().begin(params, support, key, training=training)
        if self.encoder and isinstance(self.model, ExpertPair):
            state["weights"] = self.model.turned(state["weights"], params[ANGLE])
        return {**state, "online": support.x.new_zeros(2)}

    def step(self, params: Params, state: State, support: Examples, index: Tensor) -> State:
        batch, mask, _ = self.batch(state, support, index)
        real = batch.mask if mask is None else mask
        x = self.encoded(params, batch.x)

        def loss(weights: Params) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            total, mean = self.evidences(params, weights, x, real)
            return -mean.sum(), (total, mean)

        with out_of_inference():
            found: Any = grad_and_value(loss, has_aux=True)(state["weights"])
        grads, (value, (total, mean)) = found
        if self.first_order:
            grads = constant(grads)
        weights, inner = self.move(params, state, grads, index)
        fitted = self._marginals(state["weights"], constant(x) if self.first_order else x, real)
        return {
            **state,
            "weights": {**weights, **fitted},
            "inner": inner,
            "loss": value,
            "online": state["online"] + (total if self.evidence == "sum" else mean),
        }

    def evidences(
        self, params: Params, weights: Params, x: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of encoded pairs both ways: sum and mean over real rows, (2,) each."""
        each = self.forward({**params, **weights}, x, real)  # (S, 2)
        if each.shape[-1] != 2:
            raise InputError(
                f"a model with {each.shape[-1]} outputs for causal-transfer",
                "two, the log-likelihoods of both directions",
                "Take tegu.models.category_pair, mixture_pair or ExpertPair.",
            )
        total = torch.where(real.unsqueeze(-1), each, 0).sum(0)
        return total, total / real.sum().clamp(min=1).to(each)

    def _marginals(self, weights: Params, x: Tensor, real: Tensor) -> Params:
        """Mixtures of one variable after steps of EM, by the names of their parameters."""
        fitted: Params = {}
        if not self.em:
            return fitted
        for column, module in enumerate("ab"):
            names = [f"{module}.{part}" for part in ("logits", "mean", "log_scale")]
            mixture = isinstance(getattr(self.model, module, None), Mixture)
            if not mixture or not weights.keys() >= {*names}:  # or frozen
                continue
            parts = tuple(weights[name] for name in names)
            values = torch.where(real, x[:, column], 0)
            for _ in range(self.em):
                parts = em_step(values, real.to(values), parts[0], parts[1], parts[2])
            fitted.update(zip(names, parts, strict=True))
        return fitted

    def finish(self, state: State, *, training: bool) -> State:
        state = super().finish(state, training=training)
        return state if training else {k: v for k, v in state.items() if k != "online"}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        x = self.encoded(params, query)
        each = self.forward({**params, **state["weights"]}, x, mask)  # (Q, 2)
        gamma = params[GAMMA]
        prior = torch.stack([F.logsigmoid(gamma), F.logsigmoid(-gamma)])
        return (prior + each).logsumexp(-1, keepdim=True)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Surprise of the models at training pairs while they are fitted, then the regret."""
        fitting = "schedule/fit" in params
        fitted = episode.query.x.new_zeros(())
        if fitting or self.refit:
            seen = constant(self.encoded(params, episode.query.x))
            _, mean = self.evidences(params, self.adaptable(params), seen, episode.query.mask)
            fitted = -mean.sum()
        if fitting:
            return fitted
        fixed = {**params, **constant(self.adaptable(params))}
        # Without an encoder the belief's gradient asks nothing of how the models adapted.
        with nullcontext() if self.encoder else torch.no_grad():
            state = self.adapt(fixed, episode.support, key, training=True)
        return fitted + regret(params[GAMMA], state["online"])
