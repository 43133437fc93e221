"""FEAT against a plain loop over classes, with the attention written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Feat

KEYS = keys.fold(keys.key(0), torch.arange(3))


def transformer(params: Params, items: list[Tensor]) -> list[Tensor]:
    """One head of self-attention within a set, item by item."""
    w = {k.removeprefix("attention/"): v for k, v in params.items()}
    out = []
    for item in items:
        query = w["query.weight"] @ item
        alike = torch.stack([query @ (w["key.weight"] @ other) for other in items])
        weights = (alike / len(item) ** 0.5).exp()
        weights = weights / weights.sum()
        mixed = sum(a * (w["value.weight"] @ o) for a, o in zip(weights, items, strict=True))
        x = item + w["out.weight"] @ mixed + w["out.bias"]
        centred = x - x.mean()
        x = centred / ((centred**2).mean() + 1e-5).sqrt()
        out.append(x * w["norm.weight"] + w["norm.bias"])
    return out


def prototypes(params: Params, known: Tensor, y: Tensor, n_way: int = 3) -> list[Tensor]:
    return transformer(params, [known[y == n].mean(0) for n in range(n_way)])


def distances(f: Tensor, centres: list[Tensor]) -> Tensor:
    return torch.stack([((f - c) ** 2).sum() for c in centres])


def reference(features: Any, params: Params, episodes: Episode, *, balance: float) -> Tensor:
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        known, asked = features(params, support.x), features(params, query.x)
        centres = prototypes(params, known, support.y)
        own = [
            F.cross_entropy(-distances(f, centres) / 3.0, y)
            for f, y in zip(asked, query.y, strict=True)
        ]
        every, labels = torch.cat([known, asked]), torch.cat([support.y, query.y])
        sets = [transformer(params, list(every[labels == n])) for n in range(3)]
        means = [sum(items) / len(items) for items in sets]
        second = [
            F.cross_entropy(-distances(f, means) / 2.0, y)
            for f, y in zip(every, labels, strict=True)
        ]
        losses.append(torch.stack(own).mean() + balance * torch.stack(second).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_meta_gradient(
    balance: float, smooth: nn.Module, smooth_features: Any, slopes: Any, toy_episodes: Episode
) -> None:
    """Against autograd through plain loops, and against differences of them."""
    learner = Feat(model=smooth, n_way=3, temperature=3.0, balance=balance, balance_temperature=2.0)
    generator = torch.Generator().manual_seed(4)
    params = {
        k: v + 0.2 * torch.rand(v.shape, generator=generator) for k, v in learner.init().items()
    }
    wrt = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = reference(smooth_features, wrt, toy_episodes, balance=balance)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    found, value = Vectorised(learner).outer_gradient(params, toy_episodes, KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    by_gradient, by_differences = slopes(
        lambda p: reference(smooth_features, p, toy_episodes, balance=balance), params, found
    )
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_absent_classes_are_not_attended_to(
    smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """A 5-way learner shown three classes adapts them as a 3-way one does."""
    learner, one = Feat(model=smooth, n_way=5), select(toy_episodes, 0)
    params = learner.init()
    state = learner.adapt(params, one.support, KEYS[0])
    expected = prototypes(params, smooth_features(params, one.support.x), one.support.y)
    torch.testing.assert_close(state["prototypes"][:3], torch.stack(expected))
    scores = learner.predict(params, state, one.query.x, one.query.mask)
    asked = smooth_features(params, one.query.x)
    for f, row in zip(asked, scores, strict=True):
        torch.testing.assert_close(row[:3], -distances(f, expected) / 64)
    losses = [Feat(model=smooth, n_way=n).outer_loss(params, one, KEYS[0]) for n in (3, 5)]
    torch.testing.assert_close(losses[0], losses[1])


def test_the_regulariser_asks_no_padding(smooth: nn.Module, toy_episodes: Episode) -> None:
    """Gradients with rows of noise behind support and queries equal those without."""
    learner = Feat(model=smooth, n_way=3, temperature=3.0)
    params, one = learner.init(), Episode(*(Examples(*h) for h in toy_episodes))
    padded = Episode(
        *(
            Examples(
                torch.cat([half.x, torch.full_like(half.x[:, :2], 9.0)], 1),
                torch.cat([half.y, torch.ones_like(half.y[:, :2])], 1),
                torch.cat([half.mask, torch.zeros_like(half.mask[:, :2])], 1),
            )
            for half in one
        )
    )
    engine = Vectorised(learner)
    expected = engine.outer_gradient(params, one, KEYS)
    torch.testing.assert_close(engine.outer_gradient(params, padded, KEYS), expected)


def test_weights_of_the_attention(smooth: nn.Module) -> None:
    """From a seed; no two of the four matrices are alike."""
    one, other = Feat(model=smooth, seed=1).init(), Feat(model=smooth, seed=2).init()
    matrices = [v for k, v in one.items() if k.startswith("attention/") and v.ndim == 2]
    assert [tuple(m.shape) for m in matrices] == [(5, 5)] * 4
    assert not any(torch.equal(a, b) for a in matrices for b in matrices if a is not b)
    assert not torch.equal(one["attention/out.weight"], other["attention/out.weight"])
    assert one["attention/norm.weight"].tolist() == [1] * 5
    assert one["attention/norm.bias"].tolist() == [0] * 5


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": 0.0}, r"temperature is 0\.0; expected a number above 0"),
        ({"balance_temperature": -1.0}, r"balance_temperature is -1\.0; expected a number above"),
        ({"balance": -0.1}, r"balance is -0\.1; expected at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str, smooth: nn.Module) -> None:
    with pytest.raises(InputError, match=text):
        Feat(model=smooth, **settings)
