"""Phase 2 at scale: learn many unseen tasks and say how well, with an interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.engine.distribute import ALONE, Ranks
from tegu.engine.memory import kept
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, moved
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import Learner, State
from tegu.losses import accuracy
from tegu.models.norm import layers
from tegu.sampling import Tasks

Score = Callable[[Tensor, Examples], Tensor]


@dataclass(frozen=True)
class Result:
    """A figure with what it takes to read it.

    Args:
        metric: "accuracy" (0 to 1) or "mse".
        value: mean over episodes.
        ci95: half-width of the 95 % interval of that mean, 1.96 standard errors.
        episodes: how many were scored.
        split: which split they came from.
        normalisation: where batch statistics came from.
    """

    metric: str
    value: float
    ci95: float
    episodes: int
    split: str
    normalisation: str


@kept()
def evaluate(
    engine: Vectorised,
    params: Params,
    tasks: Tasks,
    *,
    episodes: int = 1000,
    at_once: int = 100,
    seconds: float = float("inf"),
    seed: int = 0,
    score: Score = accuracy,
    metric: str = "accuracy",
    normalisations: Iterable[str] = (),
    progress: Callable[[int, float], None] | None = None,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """Mean score over the first episodes of a split, each adapted to from `params`.

    Args:
        engine: the learner, vectorised.
        params: what was meta-learned.
        tasks: where episodes come from, normally of "meta_test".
        episodes: how many; an interval needs at least 2.
        at_once: how many run side by side; bounds the memory.
        seconds: end after so much time, with as many episodes as were scored by then, 2
            blocks of them at least; each result says how many. In one process only.
        seed: of the learner's own random numbers.
        score: of one episode's outputs and queries.
        metric: what the score is called.
        normalisations: score the same tasks under each of these; by default only
            under the learner's own.
        progress: told the number of episodes done and the mean so far.
        ranks: the processes that share the episodes; all of them call this alike.

    Returns:
        One result for each normalisation.
    """
    if episodes < 2:
        raise InputError(
            f"{episodes} episodes", "at least 2", "Ask for 600 or more to get a useful interval."
        )
    check_range("at_once", at_once, 1, todo="Leave it out, or write 100.")
    if ranks.world > 1 and seconds < float("inf"):
        raise InputError(
            f"an evaluation that ends after {seconds:g} seconds, over {ranks.world} processes",
            "one process, or no such limit",
            "Leave seconds out.",
        )
    own = engine.learner
    learners = [replace(own, normalisation=name) for name in normalisations] or [own]
    engines = _engines(engine, learners)
    root = keys.key(seed, "evaluate", tasks.split)
    scores = torch.zeros(len(learners), episodes, dtype=torch.float64)
    own_scores: list[Tensor] = []  # of the first learner, for the progress
    # Whole batches go to ranks in turn: of the size they have on one, unless there are few.
    at_once = min(at_once, -(-episodes // ranks.world))
    began, some = time.monotonic(), next(iter(params.values()))
    for start in range(ranks.rank * at_once, episodes, ranks.world * at_once):
        if start > at_once and time.monotonic() - began >= seconds:
            episodes, scores = start, scores[:, :start]
            break
        index = torch.arange(start, min(start + at_once, episodes))
        batch = moved(tasks.episodes(index), some.device, some.dtype)
        if not batch.query.mask.shape[1]:
            raise InputError(
                "episodes without queries",
                "some to be scored on",
                "Pass tasks with n_query=15, say; learners may train without.",
            )
        at = keys.fold(root, index).to(some.device)
        scores[:, index] = _scores(engines, learners, params, batch, at, score)
        if progress and ranks.first:
            own_scores.append(scores[0, index])
            progress(int(index[-1]) + 1, float(torch.cat(own_scores).mean()))
    return [
        Result(
            metric=metric,
            value=float(each.mean()),
            ci95=1.96 * float(each.std()) / episodes**0.5,
            episodes=episodes,
            split=tasks.split,
            normalisation=learner.normalisation if layers(learner.model) else "none",
        )
        for learner, each in zip(learners, ranks.summed(scores), strict=True)
    ]


def _engines(engine: Vectorised, learners: Sequence[Learner]) -> dict[bool, Vectorised]:
    """What learns the tasks for these learners, by whether it does so under running statistics.

    Tasks are learnt under them where, and only where, queries are answered so.
    """
    engines = {engine.learner.normalisation == "running": engine}
    for learner in learners:
        if (kind := learner.normalisation == "running") not in engines:
            engines[kind] = engine.of(learner)
    return engines


def _scores(
    engines: dict[bool, Vectorised],
    learners: Sequence[Learner],
    params: Params,
    batch: Episode,
    at: Tensor,
    score: Score,
) -> Tensor:
    """A score for each learner and task of a batch, (learners, T); each task is learnt once."""
    states: dict[bool, State] = {}
    found = []
    for learner in learners:
        kind = learner.normalisation == "running"
        if kind not in states:
            states[kind] = engines[kind].adapt(params, batch.support, at)
        outputs = engines[kind].predict(params, states[kind], batch.query, learner=learner)
        if batch.query.x.is_floating_point():
            outputs = outputs.to(batch.query.x.dtype)
        found.append(vmap(score)(outputs, batch.query).double().cpu())
    return torch.stack(found)
