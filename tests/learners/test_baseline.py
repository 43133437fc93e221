"""Baseline and Baseline++ against torch's own layer and optimiser, in a plain loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.learners import Baseline, BaselinePlusPlus
from tegu.learners.finetune import cycle

KEYS = keys.fold(keys.key(0), torch.arange(3))
SGD = {"momentum": 0.8, "dampening": 0.6, "weight_decay": 0.05}


def scores_by_hand(weights: dict[str, Tensor], f: Tensor, *, cosine: bool) -> Tensor:
    if not cosine:
        return f @ weights["weight"].T + weights["bias"]
    of_f, of_w = f.norm(dim=1, keepdim=True), weights["weight"].norm(dim=1)
    return 3.0 * (f @ weights["weight"].T) / (of_f * of_w)


@pytest.mark.parametrize("kind", [Baseline, BaselinePlusPlus])
@pytest.mark.parametrize("batch", [0, 4])
def test_a_task_is_learnt_as_torch_optim_learns_it(
    kind: type[Baseline], batch: int, smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    """Seven steps of SGD with momentum, dampening and decay; padding is never dealt."""
    cosine = kind is BaselinePlusPlus
    more: Any = {"scale": 3.0} if cosine else {}
    learner = kind(
        model=smooth,
        n_way=3,
        n_classes=7,
        eval_steps=7,
        eval_batch=batch,
        head_lr=0.2,
        **SGD,
        **more,
    )
    params = learner.init()
    mask = toy_episodes.support.mask.clone()
    mask[:, 1] = False
    support = toy_episodes.support._replace(mask=mask)
    state = Vectorised(learner).adapt(params, support, KEYS)
    assert set(state) == {"weights", "present", "support"}
    found = Vectorised(learner).predict(params, state, toy_episodes.query)
    for t in range(3):
        known = smooth_features(params, support.x[t])
        weights = {k: w.clone().requires_grad_() for k, w in learner.fresh(KEYS[t], known).items()}
        torch_sgd = torch.optim.SGD(list(weights.values()), lr=0.2, **SGD)
        order = cycle(keys.fold(KEYS[t], 3), mask[t], batch=4, steps=7)
        for i in range(7):
            rows = order[i] if batch else torch.tensor([0, 2, 3, 4, 5])
            assert 1 not in rows.tolist()
            scores = scores_by_hand(weights, known[rows], cosine=cosine)
            torch_sgd.zero_grad()
            F.cross_entropy(scores, support.y[t][rows]).backward()
            torch_sgd.step()
        own = {k: w.detach() for k, w in weights.items()}
        torch.testing.assert_close({k: v[t] for k, v in state["weights"].items()}, own)
        asked = smooth_features(params, toy_episodes.query.x[t])
        torch.testing.assert_close(found[t], scores_by_hand(own, asked, cosine=cosine))


def test_without_momentum_nothing_is_dampened(smooth: nn.Module, toy_episodes: Episode) -> None:
    """As in torch.optim, where dampening is of the momentum."""
    learner = Baseline(model=smooth, n_way=3, n_classes=7, eval_steps=3, momentum=0.0)
    params, support = learner.init(), toy_episodes.support
    found = [
        Vectorised(replace(learner, dampening=d)).adapt(params, support, KEYS)["weights"]
        for d in (0.9, 0.0)
    ]
    torch.testing.assert_close(*found)


def test_heads_start_like_torch_s_layers(smooth: nn.Module) -> None:
    """Weights and biases within 1 / sqrt(D), of another draw for each task."""
    learner = Baseline(model=smooth, n_way=300, n_classes=7)
    one, other = (learner.fresh(KEYS[i], torch.zeros(1, 4).double()) for i in (0, 1))
    for name, shape in (("weight", (300, 4)), ("bias", (300,))):
        assert one[name].shape == shape
        assert 0.48 < float(one[name].max()) <= 0.5
        assert -0.5 <= float(one[name].min()) < -0.48
        assert not bool((one[name] == other[name]).any())
    assert not bool((one["weight"].flatten()[:300] == one["bias"]).any())


def test_absent_classes_take_no_part_in_the_fit(smooth: nn.Module, toy_episodes: Episode) -> None:
    """A 5-way head shown three classes learns them as a 3-way head does."""
    one = select(toy_episodes, 0)
    states = []
    for n_way in (3, 5):
        learner = BaselinePlusPlus(model=smooth, n_way=n_way, n_classes=7, eval_steps=20)
        states.append(learner.adapt(learner.init(), one.support, KEYS[0])["weights"]["weight"])
    torch.testing.assert_close(states[1][:3], states[0])


def test_hundred_steps_learn_separated_classes(smooth: nn.Module) -> None:
    """With the published settings."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 6, generator=generator).double() * 2
    near = x + 0.1 * torch.randn(3, 5, 6, generator=generator).double()
    y = torch.arange(3).repeat_interleave(5)
    for kind in (Baseline, BaselinePlusPlus):
        learner = kind(model=smooth, n_way=3, n_classes=7)
        params = learner.init()
        state = learner.adapt(params, Examples.dense(near.flatten(0, 1), y), KEYS[0])
        scores = learner.predict(params, state, x[:, 0], torch.ones(3, dtype=torch.bool))
        assert scores.argmax(-1).tolist() == [0, 1, 2]


def test_the_published_scale_goes_by_the_number_of_classes(smooth: nn.Module) -> None:
    x = torch.ones(2, 5, dtype=torch.float64)
    for n_classes, scale in ((200, 2.0), (201, 10.0)):
        auto, told = (
            BaselinePlusPlus(model=smooth, n_classes=n_classes, base_scale=s) for s in (0.0, scale)
        )
        params = auto.init()
        assert torch.equal(auto.classify(params, x), told.classify(params, x))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"eval_steps": -1}, "eval_steps is -1; expected at least 0"),
        ({"eval_batch": -1}, "eval_batch is -1; expected at least 0"),
        ({"head_lr": 0.0}, r"head_lr is 0\.0; expected a number above 0"),
        ({"momentum": 1.0}, r"momentum is 1\.0; expected at least 0 and below 1"),
        ({"dampening": -0.1}, r"dampening is -0\.1; expected at least 0"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0; expected at least 0"),
        ({"scale": 0.0}, r"scale is 0\.0; expected a number above 0"),
        ({"base_scale": -2.0}, r"base_scale is -2\.0; expected at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str, smooth: nn.Module) -> None:
    with pytest.raises(InputError, match=text):
        BaselinePlusPlus(model=smooth, n_classes=7, **settings)
