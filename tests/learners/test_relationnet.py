"""Relation networks against a plain loop over pairs of class and query."""

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
from tegu.learners import RelationNet

KEYS = keys.fold(keys.key(0), torch.arange(3))


def relation(params: Params, pair: Tensor) -> Tensor:
    """The relation module on one concatenated pair (2D,), before the sigmoid."""
    hidden = params["relation/first.weight"] @ pair + params["relation/first.bias"]
    out = params["relation/last.weight"] @ hidden.clamp(min=0) + params["relation/last.bias"]
    return out[0]


def reference(
    features: Any, params: Params, episodes: Episode, *, pool: str, objective: str
) -> Tensor:
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        known, asked = features(params, support.x), features(params, query.x)
        for f, y in zip(asked, query.y, strict=True):
            scores = []
            for n in range(3):
                own = [g for g, label in zip(known, support.y, strict=True) if int(label) == n]
                centre = sum(own) if pool == "sum" else sum(own) / len(own)
                scores.append(relation(params, torch.cat([centre, f])))
            if objective == "squared":
                errors = [(s.sigmoid() - float(n == int(y))) ** 2 for n, s in enumerate(scores)]
                losses.append(sum(errors) / 3)
            else:
                losses.append(F.cross_entropy(torch.stack(scores), y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("objective", ["squared", "cross-entropy"])
def test_meta_gradient(
    pool: str,
    objective: str,
    smooth: nn.Module,
    smooth_features: Any,
    slopes: Any,
    toy_episodes: Episode,
) -> None:
    """Against autograd through a plain loop, and against differences of it."""
    chosen = {"pool": pool, "objective": objective}
    learner = RelationNet(model=smooth, n_way=3, hidden=4, seed=3, **chosen)
    params = learner.init()
    wrt = {k: (v + 0.1).requires_grad_() for k, v in params.items()}
    loss = reference(smooth_features, wrt, toy_episodes, **chosen)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    at = {k: v.detach() for k, v in wrt.items()}
    found, value = Vectorised(learner).outer_gradient(at, toy_episodes, KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    assert all(float(g.abs().sum()) > 0 for g in found.values())
    by_gradient, by_differences = slopes(
        lambda p: reference(smooth_features, p, toy_episodes, **chosen), at, found
    )
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_answers_are_those_of_training(
    smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    learner, one = RelationNet(model=smooth, n_way=3, hidden=4), select(toy_episodes, 0)
    params = learner.init()
    state = learner.adapt(params, one.support, KEYS[0])
    found = learner.predict(params, state, one.query.x, one.query.mask)
    known, asked = smooth_features(params, one.support.x), smooth_features(params, one.query.x)
    for q in range(6):
        for n in range(3):
            pair = torch.cat([known[one.support.y == n].sum(0), asked[q]])
            torch.testing.assert_close(found[q, n], relation(params, pair))


def test_repeated_shots_change_sums_and_no_means(smooth: nn.Module, toy_episodes: Episode) -> None:
    one = select(toy_episodes, 0)
    twice = Examples(*(torch.cat([field, field]) for field in one.support))
    for pool, same in (("sum", False), ("mean", True)):
        learner = RelationNet(model=smooth, n_way=3, pool=pool)
        params = learner.init()
        states = [learner.adapt(params, s, KEYS[0])["classes"] for s in (one.support, twice)]
        assert torch.allclose(*states) == same


def test_weights_of_the_relation_module(smooth: nn.Module) -> None:
    """From a seed, in the model's dtype; another seed gives others."""
    one, again, other = (RelationNet(model=smooth, seed=s).init() for s in (1, 1, 2))
    names = [name for name in one if name.startswith("relation/")]
    shapes = {name.removeprefix("relation/"): tuple(one[name].shape) for name in names}
    assert shapes == {
        "first.weight": (64, 10),
        "first.bias": (64,),
        "last.weight": (1, 64),
        "last.bias": (1,),
    }
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one["relation/first.weight"], other["relation/first.weight"])
    assert one["relation/last.weight"].dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"hidden": 0}, "hidden is 0; expected at least 1"),
        ({"pool": "max"}, "unknown pool 'max'; expected one of mean, sum"),
        ({"objective": "square"}, "unknown objective 'square'.*Did you mean 'squared'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str, smooth: nn.Module) -> None:
    with pytest.raises(InputError, match=text):
        RelationNet(model=smooth, **settings)


def test_a_model_must_tell_its_width() -> None:
    with pytest.raises(InputError, match=r"Linear without an attribute feature_width"):
        RelationNet(model=nn.Linear(6, 5), body="").init()
