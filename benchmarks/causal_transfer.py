"""Does the belief find the cause, how soon, and is a rotated encoder's angle recovered?

    python benchmarks/causal_transfer.py --worlds 24

Bengio et al. (2019), arXiv:1901.10912, on random worlds of two variables, each case with the
columns in order and exchanged: categories by tables and by networks, numbers by mixture density
networks and by a joint mixture in closed form; then the angle of an encoder together with the
belief. Every world is a random model of its own, with models and a belief of its own.

A belief's figure is the median over worlds after so many episodes, its interval that of the
median by the bootstrap. An angle's error counts to the nearest of the two answers that exist, the
pair in order or exchanged (a quarter turn further), each with its belief and either sign.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from tegu import keys, origin, report
from tegu.datasets.causal_pairs import CategoryPairs, ContinuousPairs
from tegu.engine.worlds import stacked, train_worlds
from tegu.inner import Params
from tegu.learners.causal_transfer import ANGLE, GAMMA, CausalTransfer
from tegu.models import ExpertPair, category_pair, mixture_pair, tables_of
from tegu.models.experts import fit_joint
from tegu.pictures import belief_paths

SOURCE = "arXiv:1901.10912, curve of the published code (figures/alphas_continuous.npz)"
PUBLISHED = {1: 0.525, 51: 0.982, 101: 0.9985, 500: 0.99999}
# The stage in which the belief moves; before it the models are fitted.
LEARNING: dict[str, Any] = {"done": 1.0}

Beliefs = NDArray[np.float64]


def initial(learner: CausalTransfer, worlds: Sequence[Any]) -> Params:
    """The learner's own parameters for each world."""
    return stacked([learner.init() for _ in worlds])


def believed(
    learner: CausalTransfer, params: Params, worlds: Sequence[Any], episodes: int, lr: float
) -> Beliefs:
    """Beliefs over episodes, from 0.5 on: (worlds, episodes + 1)."""
    _, _, path = train_worlds(
        learner,
        params,
        worlds,
        meta_iterations=episodes,
        outer_lr=lr,
        watch=lambda now: now[GAMMA].sigmoid(),
        **LEARNING,
    )
    return np.concatenate([np.full((1, len(worlds)), 0.5), path.double().numpy()]).T


def tables(swapped: bool, count: int) -> Beliefs:
    """N = 10 categories, tables that hold the training distribution exactly, as in the paper.

    Two steps of SGD 0.1 on ten pairs each; the belief by Adam at the paper's rate of 0.01.
    """
    worlds = [CategoryPairs(n_query=1, world=w, swapped=swapped) for w in range(count)]
    learner = CausalTransfer(model=category_pair(10))
    exact = stacked([tables_of(one.training.float()) for one in worlds])
    return believed(learner, {**initial(learner, worlds), **exact}, worlds, 500, 0.01)


def networks(swapped: bool, count: int) -> Beliefs:
    """N = 10 categories of worlds that networks of 8 hidden units draw, by networks of 32.

    As in the published code but for the models' width: theirs have 8 units too, which fit one
    direction only. Fitted well, by falling rates and growing batches, since what two directions
    that are fitted apart differ by hides what adaptation tells. Ten steps of SGD 0.1 on ten pairs
    each (theirs: 0.01, on one pair); the belief by Adam 0.05 (theirs: 0.1, falling).
    """
    worlds = [CategoryPairs(n_shot=100, world=w, swapped=swapped, network=8) for w in range(count)]
    learner = CausalTransfer(model=category_pair(10, hidden=32), inner_steps=10, inner_lr=0.1)
    params = initial(learner, worlds)
    for batches, lr, size in ((600, 0.01, 512), (800, 0.002, 1024)):
        sized = [replace(one, n_query=size) for one in worlds]
        params, _, _ = train_worlds(learner, params, sized, meta_iterations=batches, outer_lr=lr)
    worlds = [replace(one, n_query=1) for one in worlds]
    return believed(learner, params, worlds, 300, 0.05)


CONTINUOUS: dict[str, Any] = {
    "evidence": "mean",
    "inner_optimiser": "adam",
    "inner_batch": 0,
    "em": 1,
}


def densities(swapped: bool, count: int) -> Beliefs:
    """Mixture density networks, 10 components and 32 hidden units; marginals adapt by EM.

    Fitted by Adam for 1200 batches of 256 pairs; ten steps of Adam 0.001 on 256 pairs.
    """
    worlds = [
        ContinuousPairs(n_shot=256, n_query=256, world=w, swapped=swapped) for w in range(count)
    ]
    learner = CausalTransfer(model=mixture_pair(), inner_lr=0.001, inner_steps=10, **CONTINUOUS)
    params = initial(learner, worlds)
    for lr in (0.01, 0.003):
        params, _, _ = train_worlds(learner, params, worlds, meta_iterations=600, outer_lr=lr)
    worlds = [replace(one, n_query=1) for one in worlds]
    return believed(learner, params, worlds, 101, 0.1)


def jointly(learner: CausalTransfer, worlds: Sequence[Any], pairs: int) -> Params:
    """Both factorisations of a joint mixture of `pairs` training pairs of each world."""
    components = len(learner.init()["a.mean"])
    drawn = [replace(one, n_query=pairs).episodes(torch.tensor([10**6])) for one in worlds]
    x = torch.cat([one.query.x for one in drawn])
    at = keys.fold(keys.key(0, "joint"), torch.arange(len(worlds)))

    def fitted(x: Tensor, key: Tensor) -> Params:
        return ExpertPair.of(fit_joint(x, components, key, floor=0.02))

    return {**initial(learner, worlds), **vmap(fitted)(x, at)}


def mixtures(swapped: bool, count: int) -> Beliefs:
    """A joint mixture of 20 normal distributions, factorised both ways in closed form."""
    worlds = [
        ContinuousPairs(n_shot=256, n_query=1, world=w, swapped=swapped) for w in range(count)
    ]
    learner = CausalTransfer(model=ExpertPair(20), inner_lr=0.01, inner_steps=5, **CONTINUOUS)
    return believed(learner, jointly(learner, worlds, 1000), worlds, 101, 0.1)


def encoder(count: int) -> tuple[NDArray[np.float64], Beliefs]:
    """Pairs observed turned by -pi/4; angle and belief learned together, from 0 and 0.5.

    The start lies half-way between both answers, pi/4 and -pi/4. Interventions move the cause's
    mean by up to one standard deviation and halve that deviation, so that transfer pairs lie where
    models were fitted: where these have to extrapolate, an angle a tenth of a radian off may fit
    the transfer pairs better than the right one.

    Returns:
        Errors of the angle over episodes (worlds, episodes), radians, and beliefs alike.
    """
    worlds = [
        ContinuousPairs(n_shot=256, n_query=1, world=w, angle=-math.pi / 4, shift=2.0, narrowed=0.5)
        for w in range(count)
    ]
    learner = CausalTransfer(
        model=ExpertPair(30), inner_lr=0.01, inner_steps=5, encoder=True, **CONTINUOUS
    )
    params, seen, first = jointly(learner, worlds, 4000), [], 0
    for episodes, lr in ((200, 0.02), (100, 0.005), (100, 0.002)):
        params, _, path = train_worlds(
            learner,
            params,
            worlds,
            meta_iterations=episodes,
            outer_lr=lr,
            first=first,
            watch=lambda now: torch.stack([now[ANGLE], now[GAMMA].sigmoid()], -1),
            **LEARNING,
        )
        seen.append(path.double())
        first += episodes
    angle, belief = torch.cat(seen).unbind(-1)
    # In order the encoder's angle is pi/4; exchanged it is -pi/4; half a turn changes signs only.
    right = torch.where(belief > 0.5, math.pi / 4, -math.pi / 4)
    off = torch.remainder(angle - right + math.pi / 2, math.pi) - math.pi / 2
    return off.abs().T.numpy(), belief.T.numpy()


def interval(values: NDArray[np.float64]) -> float:
    """Half-width of the 95 % interval of a median, by the bootstrap."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(high - low) / 2


def cell(
    name: str, values: NDArray[np.float64], episodes: int, metric: str, published: float | None
) -> dict[str, Any]:
    """A median over worlds with its interval."""
    return {
        "protocol": {"data": name, "split": "meta_train", "learner": "causal-transfer"},
        "metric": metric,
        "value": float(np.median(values)),
        "ci95": interval(values),
        "episodes": episodes,
        "published": published,
        "source": SOURCE if published is not None else "",
    }


CASES: dict[str, tuple[str, Callable[[bool, int], Beliefs], tuple[int, ...]]] = {
    "tables": ("10 categories, tables", tables, (100, 500)),
    "networks": ("10 categories, networks", networks, (100, 300)),
    "densities": ("numbers, mixture density networks", densities, (1, 51, 101)),
    "mixtures": ("numbers, joint mixture", mixtures, (1, 51, 101)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=24, help="random models of each case")
    parser.add_argument("--only", action="append", choices=[*CASES, "encoder"])
    default = Path("benchmarks/results/causal-transfer.json")
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/causal-belief.png"))
    arguments = parser.parse_args()
    start, cells = time.monotonic(), []
    paths: dict[bool, dict[str, Beliefs]] = {False: {}, True: {}}
    wanted = arguments.only or [*CASES, "encoder"]
    for key, (name, case, points) in CASES.items():
        if key not in wanted:
            continue
        for swapped in (False, True):
            beliefs = case(swapped, arguments.worlds)
            shown = f"{name}, exchanged" if swapped else name
            paths[swapped][name] = beliefs
            for episodes in points:
                published = PUBLISHED.get(episodes) if key == "densities" and not swapped else None
                cells.append(cell(shown, beliefs[:, episodes], episodes, "belief", published))
            print(
                report.table(cells[-len(points) :]), f"{time.monotonic() - start:.0f} s", flush=True
            )
    if "encoder" in wanted:
        errors, beliefs = encoder(arguments.worlds)
        told = "numbers turned by -pi/4, encoder"
        cells.append(cell(told, errors[:, -1], errors.shape[1], "radians off", None))
        certain = np.maximum(beliefs[:, -1], 1 - beliefs[:, -1])
        cells.append(cell(told, certain, errors.shape[1], "belief", None))
        print(json.dumps({"errors": errors[:, -1].tolist(), "beliefs": beliefs[:, -1].tolist()}))
    print(report.table(cells), flush=True)
    if arguments.only:
        return
    document = report.result_document(
        name="causal-transfer",
        command=f"python benchmarks/causal_transfer.py --worlds {arguments.worlds}",
        seed=0,
        training={
            "seconds": round(time.monotonic() - start, 1),
            "meta_iterations": None,
            "peak_bytes": origin.peak_bytes(),
        },
        cells=cells,
    )
    report.write_result(arguments.output, document)
    belief_paths(
        list(paths[False].items()),
        arguments.picture,
        title=f"{arguments.worlds} random worlds of each kind; dashed: the effect is in column 1",
        label="belief in column 1 -> column 2",
        others=paths[True],
    )


if __name__ == "__main__":
    main()
