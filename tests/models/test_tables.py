"""The transformer over rows against plain loops over rows, heads and layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tegu.errors import InputError
from tegu.models import TableTransformer

WIDTH, HEADS = 8, 2


def network(seed: int = 0) -> TableTransformer:
    """One whose every weight counts: none is left at its first value of zero or one."""
    net = TableTransformer(3, 5, width=WIDTH, layers=2, heads=HEADS, hidden=12).double()
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data += 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def table(S: int = 6, Q: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(S, 5, generator=generator, dtype=torch.float64)
    asked = torch.randn(Q, 5, generator=generator, dtype=torch.float64)
    return rows, torch.tensor([0, 2, 2, 0, 2, 0])[:S], asked


def normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * gain + shift


def attention(query: Tensor, keys: list[Tensor], head: int) -> list[Tensor]:
    part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
    alike = [(query[part] @ k[part] / math.sqrt(WIDTH / HEADS)).exp() for k in keys]
    return [a / sum(alike) for a in alike]


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference(net: TableTransformer, rows: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
    known = [
        net.row @ r + net.row_shift + net.classes[y] for r, y in zip(rows, classes, strict=True)
    ]
    tokens = known + [net.row @ r + net.row_shift for r in asked]
    S = len(known)
    for b in net.blocks:
        before = [normed(t, b.norm, b.norm_shift) for t in tokens]
        keys = [b.both[:WIDTH] @ n for n in before[:S]]
        values = [b.both[WIDTH:] @ n for n in before[:S]]
        after = []
        for token, n in zip(tokens, before, strict=True):
            mixed = []
            for head in range(HEADS):
                weights = attention(b.query @ n, keys, head)
                part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                mixed.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
            token = token + b.mix @ torch.cat(mixed)
            inner = gelu(b.wide @ normed(token, b.norm2, b.norm2_shift) + b.wide_shift)
            after.append(token + b.narrow @ inner + b.narrow_shift)
        tokens = after
    last = [normed(t, net.last, net.last_shift) for t in tokens]
    keys = [net.vote_key @ t for t in last[:S]]
    scores = []
    for t in last[S:]:
        share = torch.zeros(net.n_way, dtype=t.dtype)
        for head in range(HEADS):
            for w, y in zip(attention(net.vote_query @ t, keys, head), classes, strict=True):
                share[y] += w / HEADS
        scores.append(net.read @ t + net.read_shift + torch.log(share + 1e-3))
    return torch.stack(scores)


def test_scores_are_those_of_plain_loops() -> None:
    net, (rows, classes, asked) = network(), table()
    with torch.no_grad():
        memory = net.remember(rows, classes, torch.ones(6, dtype=torch.bool))
        found = net(asked, memory)
        expected = reference(net, rows, classes, asked)
    assert_close(found[:, [0, 2]], expected[:, [0, 2]])
    assert bool((found[:, 1] == torch.finfo(torch.float64).min).all())  # no row of class 1


def test_padding_and_order_of_known_rows_change_nothing() -> None:
    net, (rows, classes, asked) = network(), table()
    mask = torch.ones(6, dtype=torch.bool)
    expected = net(asked, net.remember(rows, classes, mask))
    padded = net.remember(
        torch.cat([rows, 50 * rows[:2]]), torch.cat([classes, classes[:2]]), torch.arange(8) < 6
    )
    assert_close(net(asked, padded), expected)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(net(asked, net.remember(rows[order], classes[order], mask)), expected)
    assert_close(net(asked[:1], net.remember(rows, classes, mask)), expected[:1])


def test_a_new_network_votes_with_the_shares_of_classes() -> None:
    """At first layers add nothing, and keys differ little: no class is far from its share."""
    net, generator = TableTransformer(3, 5, width=64), torch.Generator().manual_seed(1)
    rows, asked = (torch.randn(n, 5, generator=generator) for n in (60, 40))
    classes = torch.tensor([0] * 50 + [2] * 10)
    shares = net(asked, net.remember(rows, classes, torch.ones(60).bool())).softmax(-1)
    expected = torch.tensor([5 / 6, 0.0, 1 / 6])
    assert_close(shares.mean(0), expected, atol=0.03, rtol=0)
    assert_close(shares, expected.expand(40, 3), atol=0.12, rtol=0)


def test_heads_share_the_width() -> None:
    with pytest.raises(InputError, match="width 10 for 4 heads; expected a multiple"):
        TableTransformer(width=10)
