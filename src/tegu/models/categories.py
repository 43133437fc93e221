"""Distributions over N categories, as tables or as small networks.

Categories are whole numbers from 0 to N - 1, held as floating numbers so that one tensor can
carry any pair. A number that is none of them has log-likelihood 0 everywhere, and gradient 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.pair import Pair


def one_hot(values: Tensor, n: int, like: Tensor) -> Tensor:
    """Categories (S,) to (S, n), in the type of `like`."""
    return (values.unsqueeze(-1) == torch.arange(n, device=values.device)).to(like)


class Table(nn.Module):
    """log p(v), or log p(v | cause) with a row for each cause, as unnormalised logarithms."""

    def __init__(self, n: int, *, given: bool) -> None:
        super().__init__()
        self.n = n
        self.logits = nn.Parameter(torch.zeros((n, n) if given else (n,)))

    def forward(self, first: Tensor, effect: Tensor | None = None) -> Tensor:
        logs = self.logits.log_softmax(-1)
        with torch.autocast(logs.device.type, enabled=False):  # it picks numbers, and rounds none
            rows = one_hot(first, self.n, logs) @ logs  # (S, n), or (S,)
        return rows if effect is None else (rows * one_hot(effect, self.n, logs)).sum(-1)


class CategoryNet(nn.Module):
    """log p(v), or log p(v | cause), by one hidden layer.

    A marginal has the same two layers, the first a bias alone, as in the code published
    with arXiv:1901.10912.
    """

    def __init__(self, n: int, hidden: int, *, given: bool, seed: int) -> None:
        super().__init__()
        self.n = n
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * (2 / shape[-1]) ** 0.5)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.rand(shape, generator=generator) * 2 - 1)

        self.into = normal(n, hidden) if given else None
        self.hidden_bias = uniform(hidden)
        self.out, self.bias = normal(hidden, n), uniform(n)

    def forward(self, first: Tensor, effect: Tensor | None = None) -> Tensor:
        value = first
        hidden: Tensor = self.hidden_bias
        if effect is not None and self.into is not None:
            value, hidden = effect, one_hot(first, self.n, self.out) @ self.into + self.hidden_bias
        logs = (F.leaky_relu(hidden) @ self.out + self.bias).log_softmax(-1)
        return (one_hot(value, self.n, logs) * logs).sum(-1)


def category_pair(n: int, *, hidden: int = 0, seed: int = 0) -> Pair:
    """Both factorisations of two variables of n categories.

    Args:
        n: number of categories N.
        hidden: width of the networks' hidden layer; 0 for tables.
        seed: of the networks' initial weights; tables begin uniform.

    Example:
        >>> category_pair(2)(torch.tensor([[0.0, 1.0]])).exp()
        tensor([[0.2500, 0.2500]], grad_fn=<ExpBackward0>)
    """
    if n < 2:
        raise InputError(f"{n} categories", "at least 2", "Count the categories again.")
    if hidden:
        return Pair(
            lambda: CategoryNet(n, hidden, given=False, seed=seed),
            lambda: CategoryNet(n, hidden, given=True, seed=seed + 1),
        )
    return Pair(lambda: Table(n, given=False), lambda: Table(n, given=True))


def tables_of(joint: Tensor) -> dict[str, Tensor]:
    """Parameters of the tables that hold a joint distribution exactly, both ways.

    Args:
        joint: shape (..., N, N), positive, a row for each category of A; it is normalised here.
            Counts plus a small number give smoothed maximum likelihood.

    Example:
        >>> tables_of(torch.tensor([[1.0, 1.0], [1.0, 5.0]]))["a.logits"].exp()
        tensor([0.2500, 0.7500])
    """
    logs = joint.log() - joint.sum((-2, -1), keepdim=True).log()
    a, b = logs.logsumexp(-1), logs.logsumexp(-2)
    return {
        "a.logits": a,
        "b_given_a.logits": logs - a.unsqueeze(-1),
        "b.logits": b,
        "a_given_b.logits": logs.mT - b.unsqueeze(-1),
    }


def counts(x: Tensor, n: int) -> Tensor:
    """How often each pair of categories occurs: (S, 2) to (N, N)."""
    like = x if x.is_floating_point() else torch.zeros((), device=x.device)
    return one_hot(x[..., 0], n, like).mT @ one_hot(x[..., 1], n, like)
