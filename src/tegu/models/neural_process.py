"""Networks of neural processes: a set of examples to a function of inputs.

Garnelo et al. (2018a), Conditional neural processes, arXiv:1807.01613; Garnelo et al.
(2018b), Neural processes, arXiv:1807.01622; Kim et al. (2019), Attentive neural
processes, arXiv:1901.05761. They differ in two places only: how the representations of
single examples are brought together for a query, and whether there is a latent variable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tegu.errors import InputError, unknown
from tegu.models.attention import Dense, SelfAttention, attend, log_scale, waves
from tegu.models.linear import dense

PATHS = ("mean", "attention", "")
SET = dict[str, Tensor]  # what encoding a set gives


class NeuralProcess(nn.Module):
    """Encoder of a set, and decoder of inputs given the set.

    Args:
        in_width: numbers in an input.
        out_width: D, numbers in a target.
        width: of all hidden layers and representations.
        path: how a query sees the set other than by the latent variable: "mean" of
            its representations (CNP), "attention" of the query's input to theirs (ANP), or
            "", not at all (NP).
        latent: width of the latent variable, 0 for none.
        heads: of each attention.
        self_attention: whether examples look at each other before that (ANP, optional).
        encoder_layers: dense layers from an example to its representation.
        decoder_layers: dense layers from input and representation to outputs.
        frequencies: octaves of sines and cosines of the inputs, for inputs from about -2 to
            2; 0 for none, as published.
        least_sd: that a predicted standard deviation stays above.
        seed: of the initial weights.

    Reference:
        The papers above. Widths are those of the code of Lee et al. (2020), arXiv:2008.02956,
        which the comparison in Nguyen and Grover (2022) used. Differs from that: decoders have
        4 layers, not 3, and the mean none behind it, not 2; all 4 layers of an encoder come
        before examples look at each other, not 2; cross-attention is plain, without a residual
        or a feed-forward; the NP has no deterministic path; standard deviations stay above 0.01
        rather than 0.1, so that noise of 0.02 can be told; examples look at each other on the
        way to the path only, not to the latent variable, with a residual and no layer
        normalisation; the mean, where it is taken, has one encoder and not two; and each head's
        scores are divided by the root of its own width, not of all heads' together.

    Example:
        >>> net = NeuralProcess(1, 1, width=8, path="mean")
        >>> x = torch.zeros(3, 1)
        >>> net(x, x, torch.ones(3, dtype=torch.bool), torch.zeros(5, 1)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_width: int = 1,
        out_width: int = 1,
        *,
        width: int = 128,
        path: str = "mean",
        latent: int = 0,
        heads: int = 8,
        self_attention: bool = False,
        encoder_layers: int = 4,
        decoder_layers: int = 4,
        frequencies: int = 0,
        least_sd: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if path not in PATHS:
            raise unknown("path", path, PATHS)
        if not path and not latent:
            raise InputError(
                "a neural process with neither path nor latent variable",
                "one of the two, for a query to see the set by",
                'Write path="mean", or latent=128.',
            )
        if self_attention and not path:
            raise InputError(
                "examples that look at each other, and no path from them to a query",
                "a path",
                'Write path="attention", or leave self_attention out.',
            )
        if (self_attention or path == "attention") and (heads < 1 or width % heads):
            raise InputError(
                f"width is {width} with {heads} heads", "a multiple of heads", "Change one."
            )
        if not 0 < least_sd < 1:
            raise InputError(
                f"least_sd is {least_sd}", "above 0 and below 1", "Write least_sd=0.01."
            )
        make = torch.Generator().manual_seed(seed)
        self.in_width, self.out_width = in_width, out_width
        self.path, self.latent, self.heads, self.least_sd = path, latent, heads, least_sd
        self.self_attention = self_attention
        self.frequencies, wide = frequencies, in_width * (1 + 2 * frequencies)
        read = [wide + out_width, *[width] * encoder_layers]
        if path:
            self.read = Dense(read, make)
            if self.self_attention:
                self.look = SelfAttention(width, heads, make)
        if path == "attention":
            self.place = Dense([wide, width, width], make)
            self.query, self.key, self.value = (
                dense(width, width, make, bias=False) for _ in range(3)
            )
            self.out = dense(width, width, make)
        if latent:
            self.read_latent = Dense(read, make)
            self.to_latent = Dense([width, width, 2 * latent], make)
        inside = wide + (width if path else 0) + latent
        self.decoder = Dense([inside, *[width] * (decoder_layers - 1), 2 * out_width], make)

    def encode(self, x: Tensor, y: Tensor, mask: Tensor) -> SET:
        """A set to what it is to queries.

        Args:
            x: shape (S, in_width).
            y: shape (S, D).
            mask: shape (S,) bool, at least one True.

        Returns:
            "mean" (width,), or "key" and "value" (S, width) with "mask", by the path; and what
            `posterior` gives.
        """
        found: SET = self.posterior(x, y, mask) if self.latent else {}
        if self.path:
            x = waves(x, self.frequencies)
            items = self.read(torch.cat([x, y], -1))
            if self.self_attention:
                items = self.look(items, mask)
            if self.path == "mean":
                return {**found, "mean": _mean(items, mask)}
            key, value = self.key(self.place(x)), self.value(items)
            found |= {"key": key, "value": value, "mask": mask}
        return found

    def posterior(self, x: Tensor, y: Tensor, mask: Tensor) -> SET:
        """Normal distribution of the latent variable given a set: two of shape (latent,).

        "latent_mean" and "latent_sd"; the latter is 0.1 + 0.9 sigmoid, as in the code of Kim
        et al.
        """
        items = self.read_latent(torch.cat([waves(x, self.frequencies), y], -1))
        mean, raw = self.to_latent(_mean(items, mask)).chunk(2, -1)
        return {"latent_mean": mean, "latent_sd": 0.1 + 0.9 * raw.sigmoid()}

    def decode(self, found: SET, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Queries given a set: mean beside log standard deviation.

        Args:
            found: of `encode`.
            x: shape (Q, in_width).
            z: shape (latent,), a value of the latent variable; None for its mean.

        Returns:
            Shape (Q, 2 D).
        """
        x = waves(x, self.frequencies)
        parts = [x]
        if self.path == "mean":
            parts.append(found["mean"].expand(len(x), -1))
        if self.path == "attention":
            key, value, mask = (found[name] for name in ("key", "value", "mask"))
            query = self.query(self.place(x))
            parts.append(self.out(attend(query, key, value, mask, self.heads)))
        if self.latent:
            z = found["latent_mean"] if z is None else z
            parts.append(z.expand(len(x), -1))
        dtypes = [part.dtype for part in parts]
        hidden = torch.cat([p.to(dtypes[0]) for p in parts], -1)
        layers: list[Any] = list(self.decoder)
        last = layers.pop()
        for layer in layers:
            hidden = layer(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # outputs are not rounded
            mean, raw = last(hidden.to(last.weight.dtype)).chunk(2, -1)
        return torch.cat([mean, log_scale(raw, self.least_sd)], -1)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        """A set and queries to mean beside log standard deviation: shape (Q, 2 D)."""
        return self.decode(self.encode(x, y, mask), query)


def _mean(items: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(items.dtype)[:, None]
    return (items * weight).sum(0) / weight.sum().clamp(min=1)
