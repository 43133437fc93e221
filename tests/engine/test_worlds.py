"""Many worlds at once equal one after another."""

from __future__ import annotations

import pytest
import torch

from tegu import keys
from tegu.datasets.causal_pairs import CategoryPairs
from tegu.engine.vectorise import Vectorised
from tegu.engine.worlds import stacked, train_worlds
from tegu.episodes import Episode
from tegu.learners import CausalTransfer, Reptile
from tegu.models import Mlp, category_pair


def test_worlds_at_once_equal_one_by_one() -> None:
    """In each its own parameters, its own episodes, its own Adam: as the engine does it alone."""
    worlds = [CategoryPairs(n_shot=6, n_query=5, n_categories=3, world=w) for w in range(3)]
    learner = CausalTransfer(model=category_pair(3), inner_batch=0, refit=True, fit=0.0)
    start = [{k: v + 0.1 * w for k, v in learner.init().items()} for w in range(3)]
    together, _, path = train_worlds(
        learner,
        stacked(start),
        worlds,
        meta_iterations=3,
        meta_batch=2,
        outer_lr=0.05,
        first=4,
        watch=lambda params: params["belief/gamma"],
    )
    assert path.shape == (3, 3)
    assert torch.equal(path[-1], together["belief/gamma"])
    engine = Vectorised(learner)
    for w, world in enumerate(worlds):
        params, outer = start[w], engine.outer_state(start[w])
        for i in range(3):
            index = torch.arange(2 * (4 + i), 2 * (4 + i) + 2)
            episodes: Episode = world.episodes(index)
            # A learner that takes the whole support set in each step draws nothing from its key.
            key = keys.fold(keys.key(0), index)
            params, outer, _ = engine.update(params, outer, episodes, key, outer_lr=0.05)
        for name, value in params.items():
            torch.testing.assert_close(together[name][w], value, rtol=1e-4, atol=1e-6)


def test_stages_and_losses() -> None:
    worlds = [CategoryPairs(n_categories=3, world=w) for w in range(2)]
    learner = CausalTransfer(model=category_pair(3), fit=0.5)
    told: list[int] = []
    start = stacked([learner.init()] * 2)
    fitted, _, losses = train_worlds(
        learner, start, worlds, meta_iterations=60, outer_lr=0.1, progress=told.append
    )
    assert told == [50, 60]
    assert losses.shape == (60, 2)
    assert bool((losses[-1] < losses[0]).all())
    assert not bool(fitted["belief/gamma"].any())
    moved, _, _ = train_worlds(learner, fitted, worlds, meta_iterations=1, outer_lr=0.1, done=0.5)
    assert bool(moved["belief/gamma"].all())


def test_a_rule_of_its_own_is_no_outer_loss() -> None:
    learner = Reptile(model=Mlp(1, 1))
    with pytest.raises(TypeError, match="Reptile is not meta-trained by an outer loss alone"):
        train_worlds(learner, learner.init(), [], meta_iterations=1, outer_lr=0.1)


def test_adam_goes_on_where_it_stopped() -> None:
    worlds = [CategoryPairs(n_shot=20, n_query=5, n_categories=3, world=w) for w in range(2)]
    learner = CausalTransfer(model=category_pair(3), fit=0.5)
    start = stacked([learner.init()] * 2)
    whole, _, _ = train_worlds(learner, start, worlds, meta_iterations=4, outer_lr=0.1)
    half, outer, _ = train_worlds(learner, start, worlds, meta_iterations=2, outer_lr=0.1)
    end, _, _ = train_worlds(
        learner, half, worlds, meta_iterations=2, outer_lr=0.1, first=2, outer=outer
    )
    torch.testing.assert_close(end, whole, rtol=0, atol=0)
