"""A causal transformer that learns from the examples before it.

Kirsch, Harrison, Sohl-Dickstein, Metz (2022), General-purpose in-context learning by
meta-learning transformers, arXiv:2212.04458: a plain transformer is meta-trained to predict
each label of a sequence from the examples and labels before it. With x the tokens:

    x <- x + attention(norm(x))     over earlier tokens and itself
    x <- x + mlp(norm(x))           so often as there are layers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import State
from tegu.learners.reader import Reader, Sequence, attend, before, linear

Cache = tuple[Tensor, Tensor]  # keys and values (S, heads, K)


@dataclass(frozen=True, kw_only=True)
class InContext(Reader):
    """A causal transformer over pairs of example and label.

    The state is the keys and values of each layer. They are all that a query sees: it attends
    to the support set and to itself.

    Args:
        layers: how many.
        heads: of attention, in each; `width` is a multiple of it.
        factor: how many times wider than a token the hidden layer of each mlp is.

    The other settings are those of `Reader`.

    Reference:
        arXiv:2212.04458. Differs from the paper: a token holds an example and its own
        label, and what is asked is a token without one, where the paper's tokens hold the label
        before; images pass a model first, where they are flattened and projected at random; no
        encoding of positions, so that order enters by the causal mask alone; normalisation
        before each part, as in GPT-2.
    """

    name: ClassVar[str] = "in-context"

    layers: int = 3
    heads: int = 4
    factor: int = 2
    every: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads", "factor"):
            check_range(name, getattr(self, name), 1)
        if self.width % self.heads:
            raise InputError(
                f"a width of {self.width} for {self.heads} heads",
                "a width that the heads share evenly",
                f"Write width={-(-self.width // self.heads) * self.heads}.",
            )

    def out_width(self) -> int:
        return self.width

    def weights(self) -> Params:
        wide, found = self.width, self._norm("norm")
        for i in range(self.layers):
            found |= self._norm(f"{i}.norm1") | self._norm(f"{i}.norm2")
            found |= self.dense(f"{i}.query", wide, wide) | self.dense(f"{i}.past", wide, 2 * wide)
            found |= self.dense(f"{i}.mix", wide, wide)
            found |= self.dense(f"{i}.up", wide, self.factor * wide)
            found |= self.dense(f"{i}.down", self.factor * wide, wide)
        return found

    def read(self, own: Params, given: Sequence, *, positions: bool) -> tuple[State, Tensor]:
        x, lower = given.examples + given.labels, before(given.mask)
        caches: list[Cache] = []
        for i in range(self.layers):
            caches.append(self._cache(own, i, x))
            if i + 1 < self.layers:  # beyond the last keys and values nobody looks at a pair
                x = self._layer(own, i, x, caches[i], caches[i], lower)
        state = {"caches": tuple(caches), "mask": given.mask}
        if not positions:
            return state, x[:0]
        return state, self._asked(own, caches, given.examples + given.unknown, lower)

    def ask(self, own: Params, state: State, examples: Tensor, unknown: Tensor) -> Tensor:
        seen = state["mask"].expand(len(examples), -1)
        return self._asked(own, state["caches"], examples + unknown, seen)

    def _asked(
        self, own: Params, caches: tuple[Cache, ...] | list[Cache], x: Tensor, seen: Tensor
    ) -> Tensor:
        """Tokens (M, W) that see some of what was read, (M, S), and each itself: (M, W)."""
        for i, cache in enumerate(caches):
            x = self._layer(own, i, x, self._cache(own, i, x), cache, seen)
        return norm(own, "norm", x)

    def _cache(self, own: Params, i: int, x: Tensor) -> Cache:
        """Keys and values of layer i for tokens (M, W): twice (M, heads, K)."""
        keys, values = linear(own, f"{i}.past", norm(own, f"{i}.norm1", x)).chunk(2, -1)
        return keys.unflatten(-1, (self.heads, -1)), values.unflatten(-1, (self.heads, -1))

    def _layer(
        self, own: Params, i: int, x: Tensor, itself: Cache, past: Cache, seen: Tensor
    ) -> Tensor:
        query = linear(own, f"{i}.query", norm(own, f"{i}.norm1", x)).unflatten(
            -1, (self.heads, -1)
        )
        x = x + linear(own, f"{i}.mix", attend(query, itself, past, seen))
        hidden = F.gelu(linear(own, f"{i}.up", norm(own, f"{i}.norm2", x)))
        return x + linear(own, f"{i}.down", hidden)

    def _norm(self, name: str) -> Params:
        zeros = self.drawn(name, (self.width,), seed=self.seed) * 0
        return {f"{name}.gain": zeros + 1, f"{name}.shift": zeros}


def norm(own: Params, name: str, x: Tensor) -> Tensor:
    """Layer normalisation of (..., W)."""
    return F.layer_norm(x, x.shape[-1:], own[f"{name}.gain"], own[f"{name}.shift"])
