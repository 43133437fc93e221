"""How this machine runs a recipe fastest: every way of running it, in turn, on the same tasks.

The way that all others are compared with is what a plain loop does: task after task, nothing
compiled, fp32. Before a way is timed, its update is held against that loop's in float64: a
fast wrong answer wins nothing. Compiling takes time too, which is told with the number of
meta-iterations after which it has repaid itself.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tegu import origin, report, timing
from tegu.engine.batches import batches
from tegu.engine.compiled import can_compile
from tegu.engine.memory import kept
from tegu.engine.precision import half_pays
from tegu.engine.trees import map_tensors
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.errors import InputError
from tegu.inner import Params
from tegu.job import Job

# How far an update may be from the loop's in float64, as a share of its length.
MOST = {"fp32": 1e-2, "bf16": 0.25}
BATCHES = 4  # meta-batches, drawn before anything is timed


@dataclass(frozen=True)
class Way:
    """One way of running a meta-batch.

    Args:
        name: for people.
        vectorise: "loop" or "vmap".
        compile: whether the inner step, or the outer gradient, is compiled.
        precision: "fp32" or "bf16".
        cuda_graphs: whether whole updates are replayed; None on a CPU, where there are none.
    """

    name: str
    vectorise: str
    compile: bool
    precision: str
    cuda_graphs: bool | None = None

    @property
    def settings(self) -> str:
        """The options that choose this way."""
        compiled = "on" if self.compile else "off"
        chosen = {"vectorise": self.vectorise, "compile": compiled, "precision": self.precision}
        if self.cuda_graphs is not None:
            chosen["cuda_graphs"] = str(self.cuda_graphs).lower()
        return " ".join(f"--set engine.{name}={value}" for name, value in chosen.items())


WAYS = (
    Way("task after task", "loop", False, "fp32"),
    Way("many at once", "vmap", False, "fp32"),
    Way("many at once, compiled", "vmap", True, "fp32"),
    Way("many at once", "vmap", False, "bf16"),
    Way("many at once, compiled", "vmap", True, "bf16"),
)
ON_GPU = (
    *(replace(way, cuda_graphs=False) for way in WAYS),
    *(replace(way, name=f"{way.name}, CUDA graphs", cuda_graphs=True) for way in WAYS[1:]),
)
HEADER = [
    "way",
    "precision",
    "ms",
    "times as fast",
    "share of limit",
    "begins after",
    "repaid after",
]


@dataclass
class Found:
    """What is known of a way.

    Args:
        way: which.
        act: one meta-iteration on the meta-batch of a number.
        begins: seconds of its first meta-iteration, compiling included.
        distance: of its update from the loop's in float64, as a share of its length.
        why_not: why it is not timed, if it is not.
        times: seconds of a meta-iteration, a number a round.
    """

    way: Way
    act: Callable[[int], Any]
    begins: float = math.nan
    distance: float = math.nan
    why_not: str = ""
    times: tuple[float, ...] = ()


def ways_of(job: Job) -> tuple[Way, ...]:
    """All ways that there are on the recipe's device, the plain loop's first."""
    return ON_GPU if torch.device(job.recipe.engine.device).type == "cuda" else WAYS


def measure(
    job: Job,
    *,
    seconds: float = 20.0,
    rounds: int = 50,
    ways: tuple[Way, ...] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Found]:
    """Times one meta-iteration of a recipe in every way that gets it right.

    Args:
        job: the recipe.
        seconds: of timing, about; at least three rounds of all ways.
        rounds: at most; each way takes its turn in a round.
        ways: the first is what the others are compared with; none for all that there are.
        progress: told how many of how many ways are ready to be timed, and which.
    """
    device, size = torch.device(job.recipe.engine.device), job.recipe.train.meta_batch
    ways = ways or ways_of(job)
    tasks, learner = job.training_tasks(), job.learner
    seed = job.recipe.train.seed
    as_in_training = batches(
        tasks, meta_batch=size, seed=seed, first=0, last=BATCHES, device=device
    )
    drawn = [(episodes, at) for _, episodes, at in as_in_training]
    params = {k: v.to(device) for k, v in learner.init().items()}
    rate = job.recipe.train.outer_lr

    def update(engine: Vectorised, start: Params, episodes: Episode, at: Tensor) -> Params:
        """What an outer update changes, by the program that is timed: the step of the learner's
        own rule; or the gradient, to which the first mean of Adam is proportional."""
        outer = engine.outer_state(start)
        new, outer, _ = engine.update(start, outer, episodes, at, outer_lr=rate)
        if learner.outer_update is None:
            return {k.removeprefix("m/"): m for k, m in outer.items() if k.startswith("m/")}
        return {name: new[name] - start[name] for name in start}

    exact = update(Vectorised(learner, vectorise="loop"), *_double(params, *drawn[0]))
    found = []
    for number, way in enumerate(ways):
        engine = Vectorised(
            learner,
            vectorise=way.vectorise,
            compile=way.compile,
            precision=way.precision,
            cuda_graphs=bool(way.cuda_graphs),
        )
        one = Found(way, _training(engine, params, drawn, rate))
        found.append(one)
        _begun(one, partial(update, engine, params, *drawn[0]), exact, device)
        if progress:
            progress(number + 1, len(ways), f"{way.name}, {way.precision}")
    _time([one for one in found if not one.why_not], seconds, rounds, device)
    return found


def _begun(one: Found, update: Callable[[], Params], exact: Params, device: torch.device) -> None:
    """Runs a way for the first time; notes how long that takes, or why it is none to be timed."""
    way = one.way
    if way.compile and not can_compile():
        one.why_not = "no C++ compiler"
        return
    if way.precision == "bf16" and not half_pays(device):
        one.why_not = "slower here than fp32, even in large products"
        return
    began = time.perf_counter()
    try:
        for _ in range(3 if way.cuda_graphs else 1):  # called, recorded, replayed
            got = update()
        timing.finished(device)
    except InputError as refused:
        one.why_not = refused.given
        return
    except RuntimeError as failure:  # of vmap: control flow that depends on data, say
        one.why_not = str(failure).strip().splitlines()[0]
        return
    one.begins = time.perf_counter() - began
    one.distance = timing.apart([got[k] for k in exact], list(exact.values()))
    if not one.distance <= MOST[way.precision]:
        one.why_not = f"{one.distance:.1e} of its length away from float64"


def _double(params: Params, episodes: Episode, at: Tensor) -> tuple[Params, Episode, Tensor]:
    def one(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    return map_tensors(one, params), map_tensors(one, episodes), at


def _training(
    engine: Vectorised, params: Params, drawn: list[tuple[Episode, Tensor]], rate: float
) -> Callable[[int], Any]:
    outer = engine.outer_state(params)

    def act(i: int) -> None:
        nonlocal params, outer
        episodes, at = drawn[i % len(drawn)]
        params, outer, _ = engine.update(params, outer, episodes, at, outer_lr=rate)

    return act


@kept()
def _time(found: list[Found], seconds: float, rounds: int, device: torch.device) -> None:
    if not found:
        return
    began = time.monotonic()
    done = 0

    def enough() -> bool:
        nonlocal done
        done += 1
        return done >= 3 and time.monotonic() - began >= seconds

    times = timing.in_turn([one.act for one in found], rounds=rounds, device=device, enough=enough)
    for one, own in zip(found, times, strict=True):
        one.times = tuple(own)


def document(job: Job, found: list[Found], *, command: str) -> dict[str, Any]:
    """The result of `measure`, with a table for people.

    Raises:
        InputError: not one way got the update right.
    """
    timed = [one for one in found if one.times]
    if not timed:
        raise InputError(
            f"{job.recipe.name}: {'; '.join(one.why_not for one in found)}",
            "a way of running it that gives the update of the loop in float64",
            "Look for what is random in the model, or not differentiable.",
        )
    device, first = torch.device(job.recipe.engine.device), timed[0]
    limits = {name: timing.limit(name, device) for name in {one.way.precision for one in timed}}
    flops = timing.operations(lambda: first.act(0))
    work, cells, rows = f"{job.recipe.name}, a meta-iteration", [], [HEADER]
    for one in found:
        way = one.way
        if not one.times:
            rows.append([way.name, way.precision, one.why_not, *[""] * (len(HEADER) - 3)])
            continue
        cell = timing.cell(
            f"{work}, {way.name}",
            f"{first.way.name}, {first.way.precision}",
            way.precision,
            one.times,
            first.times,
            share=flops / limits[way.precision] / _median(one),
        )
        cells.append(cell)
        saved = 1e-3 * (cell["rival_ms"] - cell["ours_ms"])
        cost = one.begins - first.begins
        repaid = (
            "at once" if cost <= 0 else f"{math.ceil(cost / saved):,}" if saved > 0 else "never"
        )
        rows.append(
            [
                way.name,
                way.precision,
                f"{cell['ours_ms']:.3g}",
                f"{cell['ratio']:.2f} ({cell['ratio_min']:.2f} to {cell['ratio_max']:.2f})",
                f"{100 * cell['share_of_limit']:.0f} %",
                f"{one.begins:.1f} s",
                "" if one is first else repaid,
            ]
        )
    made = report.result_document(
        name=f"bench-{job.recipe.name}",
        command=command,
        seed=job.recipe.train.seed,
        training={"seconds": None, "meta_iterations": None, "peak_bytes": origin.peak_bytes()},
        cells=cells,
    )
    return {**made, "table": rows}


def fastest(found: list[Found], precision: str) -> Way | None:
    """The fastest of the ways that were timed in this precision."""
    timed = [one for one in found if one.times and one.way.precision == precision]
    return min(timed, key=_median).way if timed else None


def _median(one: Found) -> float:
    return statistics.median(one.times)
