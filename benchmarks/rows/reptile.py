"""Reptile on Omniglot 5-way: the paper's inner loop, and its test tasks of 50 steps.

The plain loop is what a user would write: `nn.Conv2d`, `nn.BatchNorm2d`, `torch.optim.Adam`
with one state for all tasks, one task after another. tegu writes Adam as TensorFlow does,
with epsilon outside the bias correction, and has the tasks of a meta-batch start from one
state; so each is compared with a loop in float64 that does the same as itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rows.contest import (
    Contest,
    Drawn,
    Setup,
    answer,
    check_several,
    double,
    draw,
    engine_of,
    told,
)
from rows.plain import PlainConv4, Rounded, with_weights
from tegu import keys, recipes, timing
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.inner import Params
from tegu.job import Job
from tegu.learners.finetune import cycle, split

RECIPE = "reptile-omniglot-5way"
OUTER_LR = 1.0
WARM = 30  # meta-iterations before the comparison, so that Adam's state is not empty
CHECKED = 5  # meta-iterations whose updates are compared


def reference(
    weights: Params,
    inner: Params,
    x: Tensor,
    y: Tensor,
    order: Tensor,
    learner: Any,
    *,
    inside: bool = False,
    scale: float = 1.0,
) -> tuple[Params, Params]:
    """One task learnt by a plain loop, in the dtype of the weights, by tegu's names.

    Args:
        weights: where the task starts.
        inner: Adam's carried state, "v/NAME" and "step".
        x: images (S, 1, H, W).
        y: labels (S,).
        order: rows of each mini-batch (steps, B).
        learner: its step size.
        inside: epsilon inside the bias correction, as torch.optim.Adam has it.
        scale: factor of the loss.

    Returns:
        Weights and state after the last step.
    """
    model = PlainConv4(
        len(weights["head.bias"]), width=len(weights["body.norms.0.bias"]), tracks=False
    )
    at: Params = {k: p.clone().requires_grad_() for k, p in weights.items()}
    v = {name: inner[f"v/{name}"] for name in weights}
    step = inner["step"]
    for rows in order:
        scores = functional_call(model, model.unnamed(at), (x[rows],))
        value = scale * F.cross_entropy(scores, y[rows])
        grads = dict(zip(at, torch.autograd.grad(value, list(at.values())), strict=True))
        step = step + 1
        correction = (1 - 0.999**step) ** 0.5
        moved: Params = {}
        for name, p in at.items():
            v[name] = 0.999 * v[name] + 0.001 * grads[name] ** 2
            root = v[name].sqrt()
            below = root / correction + 1e-8 if inside else (root + 1e-8) / correction
            moved[name] = (p - learner.inner_lr * grads[name] / below).detach().requires_grad_()
        at = moved
    return {k: p.detach() for k, p in at.items()}, {
        **{f"v/{k}": s for k, s in v.items()},
        "step": step,
    }


def outer(
    params: Params, episodes: Episode, order: Tensor, learner: Any, *, serial: bool
) -> Params:
    """Weights after one meta-iteration, by `reference`: side by side, or serially as torch."""
    weights, inner = split(params)
    ends: list[Params] = []
    for task in range(len(order)):
        x, y = episodes.support.x[task], episodes.support.y[task]
        end, after = reference(weights, inner, x, y, order[task], learner, inside=serial)
        inner = after if serial else inner
        ends.append(end)
    return {
        name: w + OUTER_LR * (sum(end[name] for end in ends) / len(ends) - w)
        for name, w in weights.items()
    }


def orders(learner: Any, episodes: Episode, at: Tensor, *, training: bool) -> Tensor:
    """Rows of the mini-batches that tegu gives each task: (T, steps, B)."""
    batch = learner.inner_batch if training else learner.eval_batch
    steps = learner.steps(training=training)
    return torch.stack(
        [
            cycle(key, mask, batch=batch, steps=steps)
            for key, mask in zip(at, episodes.support.mask, strict=True)
        ]
    )


class PlainReptile:
    """Reptile as a loop over tasks and steps on one module."""

    def __init__(self, params: Params, learner: Any, *, rounded: bool) -> None:
        weights, inner = split(params)
        n_way, width = len(weights["head.bias"]), len(weights["body.norms.0.bias"])
        self.network = PlainConv4(n_way, width=width, tracks=False)
        with_weights(self.network, weights)
        self.model: nn.Module = Rounded(self.network) if rounded else self.network
        # beta1 = 0 as published; torch counts the warm-up of v as TensorFlow does.
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=learner.inner_lr, betas=(0.0, 0.999)
        )
        v = self.network.unnamed({k: inner[f"v/{k}"] for k in weights})
        for name, p in self.network.named_parameters():
            self.optimiser.state[p] = {
                "step": inner["step"].float().cpu().clone(),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": v[name].to(p).clone(),
            }

    def named(self) -> Params:
        return self.network.named({k: p.detach() for k, p in self.network.named_parameters()})

    def learn(self, x: Tensor, y: Tensor, order: Tensor, scale: float = 1.0) -> None:
        """One task: images (S, 1, H, W), labels (S,), rows of mini-batches (steps, B)."""
        for rows in order:
            self.optimiser.zero_grad()
            (scale * F.cross_entropy(self.model(x[rows]), y[rows])).backward()
            self.optimiser.step()

    def iterate(self, episodes: Episode, order: Tensor) -> None:
        """One meta-iteration; order is (T, steps, B)."""
        parameters = list(self.network.parameters())
        old = [p.detach().clone() for p in parameters]
        total = [torch.zeros_like(p) for p in old]
        for task in range(len(order)):
            self.learn(episodes.support.x[task], episodes.support.y[task], order[task])
            with torch.no_grad():
                for p, before, sum_ in zip(parameters, old, total, strict=True):
                    sum_ += p
                    p.copy_(before)
        with torch.no_grad():
            for p, before, sum_ in zip(parameters, old, total, strict=True):
                p.copy_(before + OUTER_LR * (sum_ / len(order) - before))

    def answer(self, episodes: Episode, order: Tensor, scale: float) -> Tensor:
        """Scores (T, Q, N) of the queries of tasks, each learnt from the same start."""
        start = [p.detach().clone() for p in self.network.parameters()]
        state = [
            {k: v.clone() for k, v in self.optimiser.state[p].items()}
            for p in self.network.parameters()
        ]
        scores = []
        for task in range(len(order)):
            self.learn(episodes.support.x[task], episodes.support.y[task], order[task], scale)
            with torch.no_grad():
                scores.append(self.model(episodes.query.x[task]))
                for p, before, kept in zip(self.network.parameters(), start, state, strict=True):
                    p.copy_(before)
                    for name, value in kept.items():
                        self.optimiser.state[p][name].copy_(value)
        return torch.stack(scores)


def warmed(learner: Any, drawn: Drawn) -> Params:
    """Parameters after some meta-iterations, not compiled: Adam's state has settled."""
    engine = Vectorised(learner, vectorise="vmap")
    params: Params = learner.init()
    for i in range(WARM):
        episodes, at = drawn[i]
        params, _ = engine.outer_step(params, episodes, at, outer_lr=OUTER_LR)
    return params


def moved(params: Params, start: Params) -> list[Tensor]:
    """How far each weight went."""
    weights = split(start)[0]
    return [params[name].double() - weights[name].double() for name in weights]


def exact(params: Params) -> Params:
    return {k: p.double() for k, p in params.items()}


NAMES = [("fp32", ""), ("bf16", "bf16"), ("bf16", "fp32")]


def training(setup: Setup) -> Iterator[Contest]:
    """One meta-iteration: 5 tasks, 5 steps of 10 images."""
    job = Job(recipes.load(RECIPE, {"engine.device": setup.device}), setup.data_dir)
    learner: Any = job.learner
    root = keys.key(0, "speed")
    drawn = draw(job.training_tasks(), root, per=5, batches=48, device=setup.device)
    params = warmed(learner, drawn)
    order = [
        orders(learner, e, at, training=True)
        for e, at in zip(drawn.batches, drawn.keys, strict=True)
    ]
    start, work = exact(params), "Reptile, Omniglot 5-way, one meta-iteration"
    right = {
        serial: [
            moved(outer(start, double(drawn[i][0]), order[i], learner, serial=serial), start)
            for i in range(CHECKED)
        ]
        for serial in (False, True)
    }

    def checked(
        who: str, precision: str, found: Callable[[int], Params], *, serial: bool = False
    ) -> None:
        ways = [moved(found(i), start) for i in range(CHECKED)]
        check_several(work, who, precision, list(zip(ways, right[serial], strict=True)))

    step = Vectorised(learner, vectorise="vmap").outer_step
    checked(
        "tegu",
        "fp64",
        lambda i: step(start, double(drawn[i][0]), drawn[i][1], outer_lr=OUTER_LR)[0],
    )
    plain = PlainReptile(params, learner, rounded=False)
    flops = timing.operations(lambda: plain.iterate(drawn[0][0], order[0]))
    acts: dict[tuple[str, bool, bool], Callable[[int], None]] = {}
    contests = [("fp32", "", False), *((*names, True) for names in NAMES)]
    for graphs, (precision, rounded, compiled) in product(setup.graphs, setup.worth(contests)):
        way = precision, compiled, graphs
        if way not in acts:
            engine = engine_of(learner, precision, compiled=compiled, graphs=graphs)

            def found(i: int, engine: Vectorised = engine) -> Params:
                return engine.update(params, {}, *drawn[i], outer_lr=OUTER_LR)[0]

            answer(partial(found, 0), graphs)  # what is checked is replayed
            checked("tegu", precision, found)
            acts[way] = _stepping(engine, params, drawn)

        def after(i: int, rounded: str = rounded) -> Params:
            rival = PlainReptile(params, learner, rounded=rounded == "bf16")
            rival.iterate(drawn[i][0], order[i])
            return rival.named()

        checked("plain loop", rounded or "fp32", after, serial=True)
        rival = PlainReptile(params, learner, rounded=rounded == "bf16")

        def theirs(i: int, rival: PlainReptile = rival) -> None:
            rival.iterate(drawn[i][0], order[i % len(order)])

        name = f"plain loop, {rounded}" if rounded else "plain loop"
        how = told(work if compiled else f"{work}, not compiled", graphs)
        yield Contest(how, precision, name, acts[way], theirs, flops=flops, each=3)


def _stepping(engine: Vectorised, params: Params, drawn: Drawn) -> Callable[[int], None]:
    def act(i: int) -> None:
        nonlocal params
        episodes, at = drawn[i]
        params, _, _ = engine.update(params, {}, episodes, at, outer_lr=OUTER_LR)

    return act


AT_ONCE, SUBSET = 50, 10


def testing(setup: Setup) -> Iterator[Contest]:
    """Test tasks of 50 steps on 5 images; a call is 50 of tegu's tasks, 10 of the plain loop's."""
    job = Job(recipes.load(RECIPE, {"engine.device": setup.device}), setup.data_dir)
    learner: Any = replace(job.learner, normalisation="transductive")
    root = keys.key(0, "speed")
    drawn = draw(job.training_tasks(), root, per=5, batches=WARM, device=setup.device)
    params, start = warmed(learner, drawn), {}
    tasks = job.tasks("meta_test", n_shot=1, n_query=1, seed=1)
    drawn = draw(tasks, root, per=AT_ONCE, batches=4, device=setup.device)
    order = [
        orders(learner, e, at, training=False)
        for e, at in zip(drawn.batches, drawn.keys, strict=True)
    ]
    some, at = drawn[0]
    scale = learner.eval_batch / learner.inner_batch if learner.summed else 1.0
    start = exact(params)
    work = "10,000 Reptile test tasks, 50 steps; milliseconds of 10,000"
    few = SUBSET

    def answers(params: Params, *, inside: bool) -> list[Tensor]:
        found = []
        for task in range(few):
            one = double(some)
            end, _ = reference(
                *split(params),
                one.support.x[task],
                one.support.y[task],
                order[0][task],
                learner,
                inside=inside,
                scale=scale,
            )
            model = PlainConv4(5, tracks=False)
            found.append(functional_call(model, model.unnamed(end), (one.query.x[task],)))
        return found

    right = {inside: answers(start, inside=inside) for inside in (False, True)}

    def solved(engine: Vectorised, params: Params, episodes: Episode, at: Tensor) -> Tensor:
        return engine.predict(params, engine.adapt(params, episodes.support, at), episodes.query)

    first = slice(0, few)

    def checked(who: str, precision: str, found: Tensor, *, inside: bool = False) -> None:
        pairs = [([a], [b]) for a, b in zip(found, right[inside], strict=True)]  # of each task
        check_several(work, who, precision, pairs)

    ours = solved(Vectorised(learner, vectorise="vmap"), start, double(some), at)
    checked("tegu", "fp64", ours[first])
    plain = PlainReptile(params, learner, rounded=False)
    flops = timing.operations(lambda: plain.answer(some, order[0], scale))
    acts: dict[tuple[str, bool], Callable[[int], Any]] = {}
    for graphs, (precision, rounded) in product(setup.graphs, setup.worth(NAMES)):
        if (precision, graphs) not in acts:
            engine = engine_of(learner, precision, compiled=True, graphs=graphs)
            replies = answer(partial(solved, engine, params, some, at), graphs)
            checked("tegu", precision, replies[first])

            def act(i: int, engine: Vectorised = engine) -> Any:
                return solved(engine, params, *drawn[i])

            acts[precision, graphs] = act
        rival = PlainReptile(params, learner, rounded=rounded == "bf16")
        found = rival.answer(some, order[0][first], scale)
        checked("plain loop", rounded or "fp32", found, inside=True)

        def theirs(i: int, rival: PlainReptile = rival) -> None:
            rival.answer(drawn[i][0], order[i % len(order)][first], scale)

        name = f"plain loop{', ' if rounded else ''}{rounded} (from {SUBSET} tasks a round)"
        yield Contest(
            told(work, graphs),
            precision,
            name,
            acts[precision, graphs],
            theirs,
            flops=flops,
            per=AT_ONCE / 10_000,
            part=SUBSET / 10_000,
        )
