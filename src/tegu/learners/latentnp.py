"""Neural process: a distribution over functions by a latent variable, learned by a bound.

Garnelo et al. (2018b), Neural processes, arXiv:1807.01622, equation 8, with C the support set
and T the queries:

    log p(y_T | x_T, C) >= E_q(z | C, T) [ log p(y_T | x_T, z) ] - KL( q(z | C, T) || q(z | C) )
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.episodes import Episode, Examples, pooled
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import State
from tegu.learners.process import Process


@dataclass(frozen=True, kw_only=True)
class Np(Process):
    """Draws latent values from what the support set says; `model` has `latent` above 0.

    The outputs for a query are one component for each draw, equally likely: probabilities, not
    their logarithms, are averaged.

    Args:
        samples: latent values drawn when a task is learnt. Meta-training draws one.

    Reference:
        arXiv:1807.01622. Differs from it: the bound is divided by the number of queries, as
        the loss of other learners is a mean.
    """

    name: ClassVar[str] = "np"
    network: ClassVar[Mapping[str, Any]] = {"name": "neural-process", "path": "", "latent": 128}

    later: ClassVar[tuple[str, ...]] = ("samples",)

    samples: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not getattr(self.model, "latent", 0):
            raise InputError(
                f"{type(self).__name__} with a network that has no latent variable",
                "a NeuralProcess with latent above 0",
                "Write latent=128, or take the learner cnp.",
            )
        check_range("samples", self.samples, 1, todo="Write 32.")

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        found = super().begin(params, support, key, training=training)
        mean, sd = found.pop("latent_mean"), found.pop("latent_sd")
        each = keys.fold(key, torch.arange(self.samples, device=key.device))
        return {**found, "z": drawn(mean, sd, each)}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        """Shape (Q, K 2 D): K components, as `tegu.losses.gaussian` takes them."""
        found = {name: value for name, value in state.items() if name != "z"}

        def one(z: Tensor) -> Tensor:
            out: Tensor = self.call("decode", params, found, query, z)
            return out

        return vmap(one)(state["z"]).transpose(0, 1).flatten(1)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """The bound with the other sign, for each query."""
        surprise, divergence = self.parts(params, episode, key)
        return surprise + divergence / episode.query.mask.sum().clamp(min=1)

    def parts(self, params: Params, episode: Episode, key: Tensor) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood of a query, and the divergence of the whole episode."""
        found = super().begin(params, episode.support, key, training=True)
        every: Examples = pooled(episode)
        told: State = self.call("posterior", params, every.x, every.y, every.mask)
        z = drawn(told["latent_mean"], told["latent_sd"], key[None])[0]
        outputs = self.call("decode", params, found, episode.query.x, z)
        apart = divergence(
            told["latent_mean"], told["latent_sd"], found["latent_mean"], found["latent_sd"]
        )
        return self.loss(outputs, episode.query), apart


def drawn(mean: Tensor, sd: Tensor, at: Tensor) -> Tensor:
    """A value (L,) of normal variables for each key: shape (K, L)."""
    return mean + sd * keys.normal(at, mean.shape[-1]).to(mean)


def divergence(mean: Tensor, sd: Tensor, prior_mean: Tensor, prior_sd: Tensor) -> Tensor:
    """KL of independent normal variables from others, all of shape (L,): 0-d, nats."""
    mean, sd, prior_mean, prior_sd = (
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in (mean, sd, prior_mean, prior_sd)
    )
    ratio = sd / prior_sd
    off = (mean - prior_mean) / prior_sd
    return (0.5 * (ratio.square() + off.square() - 1) - ratio.log()).sum()
