"""MAML of second order: sinusoids and Omniglot, against four ways of writing its loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rows import rivals
from rows.contest import (
    Contest,
    Drawn,
    Setup,
    answer,
    check_several,
    double,
    draw,
    engine_of,
    gradient,
    told,
)
from rows.plain import PlainConv4, PlainMlp, Rounded, with_weights
from tegu import keys, recipes, timing
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.inner import Params
from tegu.job import Job
from tegu.learners import Learner

OUTER_LR = 1e-3
CHECKED = 3  # batches of tasks whose gradients are compared


class Rival:
    """The outer gradient by some way of writing the inner loop, and Adam on it."""

    def __init__(self, adapter: rivals.Adapter, model: nn.Module, loss: Any, learner: Any) -> None:
        self.model = model
        self.plain: Any = getattr(model, "model", model)
        self.iterate = adapter(model, loss, learner.inner_lr, learner.inner_steps)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=OUTER_LR)

    def backward(self, episodes: Episode) -> None:
        self.optimiser.zero_grad()
        (x, y, _), (query_x, query_y, _) = episodes
        self.iterate(x, y, query_x, query_y)

    def gradient(self, episodes: Episode) -> Params:
        """By tegu's names."""
        self.backward(episodes)
        grads = {n: p.grad for n, p in self.plain.named_parameters() if p.grad is not None}
        named: Params = self.plain.named(grads)
        return named

    def __call__(self, episodes: Episode) -> None:
        self.backward(episodes)
        self.optimiser.step()


def contests(
    work: str,
    learner: Learner,
    network: Callable[[], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    drawn: Drawn,
    names: list[tuple[str, str]],
    graphs: Sequence[bool],
    *,
    compiled: bool = True,
    each: int = 1,
) -> Iterator[Contest]:
    """One contest for each pair of tegu's precision and rival; ", bf16" marks a rival rounded."""
    params = learner.init()
    exact = {k: v.double() for k, v in params.items()}
    loop = Rival(rivals.plain, with_weights(network(), exact), loss, learner)
    right = [loop.gradient(double(drawn[i][0])) for i in range(CHECKED)]

    def checked(who: str, precision: str, found: Callable[[int], Params]) -> None:
        pairs = [
            ([one[k] for k in wanted], list(wanted.values()))
            for one, wanted in zip(map(found, range(CHECKED)), right, strict=True)
        ]
        check_several(work, who, precision, pairs)

    engine = Vectorised(learner, vectorise="vmap")
    checked(
        "tegu", "fp64", lambda i: engine.outer_gradient(exact, double(drawn[i][0]), drawn[i][1])[0]
    )
    plain = Rival(rivals.plain, with_weights(network(), params), loss, learner)
    flops = timing.operations(lambda: plain.gradient(drawn[0][0]))
    engines: dict[tuple[str, bool], Callable[[int], None]] = {}
    for replayed, (precision, name) in product(graphs, names):
        if (precision, replayed) not in engines:
            engine = engine_of(learner, precision, compiled=compiled, graphs=replayed)

            def found(i: int, engine: Vectorised = engine) -> Params:
                return gradient(engine, params, *drawn[i])

            answer(lambda: found(0), replayed)  # what is checked is replayed
            checked("tegu", precision, found)
            engines[precision, replayed] = _training(engine, params, drawn)
        yield Contest(
            told(work, replayed),
            precision,
            name,
            engines[precision, replayed],
            _rival(name, network, params, loss, learner, drawn, checked),
            flops=flops,
            each=each,
        )


def _training(engine: Vectorised, params: Params, drawn: Drawn) -> Callable[[int], None]:
    outer = engine.outer_state(params)

    def act(i: int) -> None:
        nonlocal params, outer
        episodes, at = drawn[i]
        params, outer, _ = engine.update(params, outer, episodes, at, outer_lr=OUTER_LR)

    return act


def _rival(
    name: str,
    network: Callable[[], nn.Module],
    params: Params,
    loss: Any,
    learner: Learner,
    drawn: Drawn,
    checked: Callable[[str, str, Callable[[int], Params]], None],
) -> Callable[[int], None] | None:
    who, _, said = name.partition(", ")
    rounded = said if said == "bf16" else ""
    if not rivals.have(who):
        return None
    model = with_weights(network(), params)
    with rivals.quiet():
        one = Rival(rivals.MAML[who], Rounded(model) if rounded else model, loss, learner)
        checked(who, rounded or "fp32", lambda i: one.gradient(drawn[i][0]))
    return lambda i: one(drawn[i][0])


def sinusoids(steps: int) -> Callable[[Setup], Iterator[Contest]]:
    """Finn's sine waves: 25 tasks of 10 points, 10 queries, dense layers of 40 and 40."""

    def row(setup: Setup) -> Iterator[Contest]:
        wanted = {"learner.inner_steps": steps, "engine.device": setup.device}
        job = Job(recipes.load("maml-sinusoids", wanted))
        root = keys.key(0, "speed")
        drawn = draw(job.training_tasks(), root, per=25, device=setup.device)
        yield from contests(
            f"MAML, sinusoids, 25 tasks, {steps} inner step{'s' if steps > 1 else ''}",
            job.learner,
            lambda: PlainMlp(1, 1, (40, 40)),
            F.mse_loss,
            drawn,
            [("fp32", who) for who in ("learn2learn", "torchopt", "higher", "plain loop")],
            setup.graphs,
            each=10,
        )

    return row


def omniglot(setup: Setup) -> Iterator[Contest]:
    """5-way 1-shot, 75 queries, Conv-4 with strides, 8 tasks, 5 steps.

    Inner steps of 0.01: at 0.1, rounding to bf16 turns an untrained network's gradient by half of
    its length, in the plain loop as in tegu.
    """
    wanted = {
        "learner.inner_steps": 5,
        "learner.inner_lr": 0.01,
        "train.meta_batch": 8,
        "train.n_query": 15,
        "engine.device": setup.device,
    }
    job = Job(recipes.load("maml-omniglot-5way", wanted), setup.data_dir)
    root = keys.key(0, "speed")
    drawn = draw(job.training_tasks(), root, per=8, batches=8, device=setup.device)
    names = [("fp32", "learn2learn"), ("fp32", "plain loop")]
    names += [("bf16", "learn2learn, bf16"), ("bf16", "learn2learn, fp32")]
    names += [("bf16", "plain loop, bf16")]
    yield from contests(
        "MAML second order, Omniglot 5-way 1-shot, 8 tasks, 5 steps, 75 queries",
        job.learner,
        lambda: PlainConv4(5, tracks=False),
        F.cross_entropy,
        drawn,
        setup.worth(names),
        setup.graphs,
    )
