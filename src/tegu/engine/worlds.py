"""One learner meta-trained in many worlds at once, each with parameters of its own.

A statement about a method, a median over random models say, takes many small meta-trainings that
differ in their data alone. They run side by side: parameters carry a leading axis W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from tegu import keys
from tegu.engine.trees import map_tensors
from tegu.episodes import Episode
from tegu.inner import Adam, Params
from tegu.learners.learner import SCHEDULED, TRACKED, Learner
from tegu.sampling import Tasks

BLOCK = 50  # meta-iterations whose episodes are drawn at once


def stacked(each: Sequence[Params]) -> Params:
    """Parameters of W worlds as one dict with a leading axis W."""
    together: Params = map_tensors(lambda *tensors: torch.stack(tensors), *each)
    return together


def train_worlds(
    learner: Learner,
    params: Params,
    worlds: Sequence[Tasks],
    *,
    meta_iterations: int,
    outer_lr: float,
    first: int = 0,
    meta_batch: int = 1,
    done: float = 0.0,
    seed: int = 0,
    outer: Params | None = None,
    watch: Callable[[Params], Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Params, Params, Tensor]:
    """Outer updates by Adam on the learner's outer loss in each world.

    Args:
        learner: one that has an outer loss, and tracks nothing.
        params: leading axis W; `stacked` makes them.
        worlds: W sources of episodes.
        meta_iterations: outer updates.
        outer_lr: step size.
        first: iterations that lie behind: iteration i draws episodes i * meta_batch and on.
        meta_batch: episodes per outer update, in each world.
        done: share of meta-training that lies behind, for the learner's `schedule`, which
            holds for the whole call.
        seed: of the learner's random numbers.
        outer: state of Adam to go on with; None for a fresh one.
        watch: what to note down of the parameters after each update, shape (W, ...).
        progress: told how many iterations are done.

    Returns:
        New parameters, new state of Adam, and what was watched: (meta_iterations, W, ...);
        without `watch` the outer losses, (meta_iterations, W).
    """
    if learner.outer_update is not None or any(k.startswith(TRACKED) for k in params):
        raise TypeError(f"{type(learner).__name__} is not meta-trained by an outer loss alone")
    some = next(iter(params.values()))
    staged = {SCHEDULED + k: v.to(some) for k, v in learner.schedule(done).items()}

    def mean_loss(params: Params, episodes: Episode, key: Tensor) -> Tensor:
        def one(episode: Episode, key: Tensor) -> Tensor:
            return learner.outer_loss({**params, **staged}, episode, key)

        return vmap(one)(episodes, key).mean()

    gradient = vmap(grad_and_value(mean_loss))
    adam, seen = Adam(outer_lr), []
    outer = adam.init(params) if outer is None else outer
    root = keys.fold(keys.key(seed, "worlds"), torch.arange(len(worlds)))
    for start in range(0, meta_iterations, BLOCK):
        count = min(BLOCK, meta_iterations - start)
        index = torch.arange((first + start) * meta_batch, (first + start + count) * meta_batch)
        drawn = map_tensors(
            lambda *tensors: torch.stack(tensors), *(world.episodes(index) for world in worlds)
        )
        key = keys.fold(root[:, None], index)
        for i in range(count):
            rows = slice(i * meta_batch, (i + 1) * meta_batch)
            episodes = map_tensors(lambda x, rows=rows: x[:, rows], drawn)
            grads, losses = gradient(params, episodes, key[:, rows])
            with torch.no_grad():
                params, outer = adam.update(params, grads, outer)
            seen.append(watch(params) if watch else losses.detach())
        if progress:
            progress(start + count)
    return params, outer, torch.stack(seen)
