"""Lake's challenge: how many of 400 characters does a learner get wrong, shown one example each?

    python benchmarks/lake.py --data-dir DATA --seeds 5 --seconds 3600

20-way one-shot classification within one alphabet, the 20 runs of Lake et al. (2015), drawn from
the 20 evaluation alphabets. Training sees the 30 background alphabets, or one of the two sets of
five, and nothing else: nothing here is tuned, chosen or stopped by the evaluation alphabets.
Settings are chosen by `--set held-out`: six background alphabets are kept out of training, and
asked about; for the sets of five by `--judge others`, which asks about the other background
alphabets.

Images are cropped to the ink and shrunk. Tasks of training come from one alphabet each, a
turned alphabet being another one, and their images are turned, sheared and shifted at random.
At test time every support image is joined by `--views` variations of it, as more shots of its
class, and a query is answered in as many variations, whose probabilities are averaged; with
cosines, the nearest of all pairs of variations count most. `--views 0` leaves images alone.

The sets of five can be joined by alphabets made out of them, by `--mirror` and by `--mix`, whose
characters are pairs of characters, one over the other; and by some of random strokes,
`--scribbles`. An interval is that of the mean over training seeds.

Trainings are kept under --run: one that was stopped goes on, and a finished one is not done again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recorded import command, training
from torch import Tensor

from tegu import keys, recipes, report
from tegu.datasets import ClassDataset, load_lake_runs, load_omniglot
from tegu.datasets.augment import affine
from tegu.datasets.omniglot import SHRINK
from tegu.datasets.scribbles import load_scribbles
from tegu.engine.precision import chosen
from tegu.engine.run import Run
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, moved, select
from tegu.inner import Params
from tegu.job import Job
from tegu.learners import LEARNERS, Learner
from tegu.sampling import ClassBatches, FewShotTasks

# Alphabets of training: all of them, and the two minimal sets of the published benchmark.
SETS: dict[str, tuple[str, ...]] = {
    "background": (),
    "small1": ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"),
    "small2": ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"),
    "held-out": (),
}
AT_ONCE = 5  # tasks that are judged side by side
HELD_OUT = 6  # background alphabets, where settings are chosen
PUBLISHED = {
    "background": 1 - 0.137,  # prototypical networks
    "small1": 1 - 0.301,
    "small2": 1 - 0.301,
}
# What a learner is given beside its usual settings; cosines as in `matchingnet`, and every
# example as support in its turn, learn fastest on the held-out alphabets.
OWN: dict[str, dict[str, Any]] = {
    "matchingnet": {"learner.scale": 25.0, "learner.turns": 6},
}
# What changes where each class has many shots: cosines times 60, so that the nearest pairs decide.
JUDGED: dict[str, dict[str, Any]] = {"matchingnet": {"scale": 60.0}}
NETWORKS: dict[str, dict[str, Any]] = {
    "convnet": {"model.name": "convnet", "model.widths": [32, 64, 64, 128, 128]},
    "conv4": {"model.name": "conv4", "model.widths": [64] * 4},
    "conv4-pool": {"model.name": "conv4", "model.widths": [64] * 4, "model.pool": True},
}
# Part of a run's settings only where they are not these, so that older runs go on.
MORE = {"mirror": False, "mix": 0, "scribbles": 0}  # alphabets beside sets of five
USUAL = {"iterations": 0, "width_factor": 1.0, **MORE}
SOURCE = "Lake, Salakhutdinov, Tenenbaum (2019), The Omniglot challenge (unconfirmed)"
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def training_data(name: str, data_dir: Path | None, shrink: str) -> ClassDataset:
    """Background characters with their rotations; ink is 255."""
    held_out = HELD_OUT if name == "held-out" else 0
    data = load_omniglot(
        "meta_train",
        partition="alphabets",
        data_dir=data_dir,
        rotations=True,
        shrink=shrink,
        held_out=held_out,
    )
    if alphabets := SETS[name]:
        data = data.where(lambda character: character.split("/")[0] in alphabets)
    return replace(data, examples=255 - data.tensor)


def mirrored(data: ClassDataset) -> ClassDataset:
    """Each alphabet also as in a mirror, which is another one, of other characters."""
    assert data.groups is not None
    names = (f"{name}/mirrored" for name in data.class_names)
    return replace(
        data,
        examples=torch.cat([data.tensor, data.tensor.flip(-1)]),
        counts=data.counts.repeat(2),
        class_names=(*data.class_names, *names),
        groups=torch.cat([data.groups, data.groups + data.groups.max() + 1]),
    )


def with_scribbles(data: ClassDataset, alphabets: int, drawers: int = 20) -> ClassDataset:
    """Alphabets of random strokes beside those of people."""
    if not alphabets:
        return data
    assert data.groups is not None
    more = load_scribbles("meta_train", alphabets=alphabets, drawers=drawers)
    assert more.groups is not None
    return replace(
        data,
        examples=torch.cat([data.tensor, 255 - more.tensor]),
        counts=torch.cat([data.counts, more.counts]),
        class_names=data.class_names + more.class_names,
        groups=torch.cat([data.groups, more.groups + data.groups.max() + 1]),
    )


def mixed(data: ClassDataset, times: int) -> ClassDataset:
    """More alphabets, of characters that are two of an alphabet's, one over the other.

    Each alphabet brings `times` new ones of as many characters: each of its own once below and
    once above. All drawings of a new character have the two at the same places and angles, and
    pair drawers at random.

    Args:
        data: images, ink 255, as many for each class.
        times: 0 for none.
    """
    assert data.groups is not None
    drawings = data.tensor.unflatten(0, (data.n_classes, -1))  # (K, drawers, 1, H, W)
    images, groups, names = [data.tensor], [data.groups], list(data.class_names)
    for n in range(times):
        for group in data.groups.unique().tolist():
            at = keys.key(0, "mix", n, group)
            members = (data.groups == group).nonzero()[:, 0]
            members = members[keys.permutation(at, len(members))]
            pairs = members, members.roll(1)
            parts = [placed(drawings[some], keys.fold(at, i)) for i, some in enumerate(pairs)]
            images.append((255 * torch.maximum(*parts)).round().to(data.tensor.dtype).flatten(0, 1))
            groups.append(torch.full_like(members, (n + 1) * (int(data.groups.max()) + 1) + group))
            both = zip(*(some.tolist() for some in pairs), strict=True)
            names += [f"{data.class_names[a]} under {data.class_names[b]}" for a, b in both]
    found = torch.cat(images)
    counts = torch.full((len(names),), drawings.shape[1])
    return replace(
        data, examples=found, counts=counts, class_names=tuple(names), groups=torch.cat(groups)
    )


def placed(drawings: Tensor, at: Tensor) -> Tensor:
    """Drawings (K, D, 1, H, W), shuffled in each class, at a place that all of a class share."""
    size = len(drawings)
    each = keys.fold(at, torch.arange(size))
    order = keys.permutation(keys.fold(each, 1), drawings.shape[1])  # (K, D)
    shuffled = drawings[torch.arange(size)[:, None], order].flatten(0, 1) / 255
    alike = each.repeat_interleave(drawings.shape[1])
    images = affine(shuffled, alike, degrees=20.0, scale=(0.55, 0.85), shift=0.2)
    found: Tensor = images.unflatten(0, drawings.shape[:2])
    return found


def held_out_episodes(data_dir: Path | None, shrink: str) -> Episode:
    """100 runs like those of the challenge, within background alphabets that were held out."""
    data = load_omniglot(
        "meta_val", partition="alphabets", data_dir=data_dir, shrink=shrink, held_out=HELD_OUT
    )
    data = replace(data, examples=255 - data.tensor)
    return FewShotTasks(data, 20, 1, 1, seed=0, within=True).episodes(torch.arange(100))


def other_episodes(name: str, data_dir: Path | None, shrink: str) -> Episode:
    """200 runs like those of the challenge, within background alphabets not in a set of five."""
    data = load_omniglot("meta_train", partition="alphabets", data_dir=data_dir, shrink=shrink)
    data = data.where(lambda character: character.split("/")[0] not in SETS[name])
    data = replace(data, examples=255 - data.tensor)
    return FewShotTasks(data, 20, 1, 1, seed=0, within=True).episodes(torch.arange(200))


def lake_episodes(data_dir: Path | None, shrink: str) -> Episode:
    """The 20 runs: 20 support and 20 query images each, ink 1."""
    runs = load_lake_runs(data_dir=data_dir, shrink=shrink)
    classes = torch.arange(20).expand(20, 20)
    halves = [
        Examples(1 - images / 255, labels, torch.ones_like(labels, dtype=torch.bool))
        for images, labels in ((runs.support, classes), (runs.query, runs.labels))
    ]
    return Episode(*halves)


def network_of(name: str, factor: float) -> dict[str, Any]:
    """Settings of a network with its widths times a factor."""
    usual = NETWORKS[name]
    return usual | {"model.widths": [round(factor * width) for width in usual["model.widths"]]}


def learner_of(name: str, seed: int, n_classes: int, network: dict[str, Any]) -> Learner:
    """The learner with its usual settings and its `OWN`."""
    settings = {"data.partition": "alphabets", "train.n_way": 20, "train.seed": seed}
    settings |= network | OWN.get(name, {})
    recipe = recipes.starting(name, "omniglot", settings)
    one = Job(recipe)
    if LEARNERS[name].pretrains:
        own: Any = dict(recipe.learner)
        cls: Any = LEARNERS[own.pop("name")]
        made: Learner = cls(model=one._model(), n_way=20, n_classes=n_classes, seed=seed, **own)
        return made
    return one.learner


def changed(images: Tensor, key: Tensor, augment: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Each image of (T, S, C, H, W) under a change of its own."""
    flat = images.flatten(0, 1)
    new = augment(flat, keys.fold(key, torch.arange(len(flat), device=key.device)))
    return new.reshape(images.shape)


def accuracy(
    learner: Learner,
    params: Params,
    episodes: Episode,
    views: int,
    seed: int,
    augment: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Share of the answers that are right."""
    if views:
        learner = replace(learner, **JUDGED.get(learner.name, {}))
    engine, right = Vectorised(learner), []
    for number, start in enumerate(range(0, len(episodes.query.y), AT_ONCE)):
        support, query = select(episodes, slice(start, start + AT_ONCE))
        device = query.y.device
        at = [keys.key(seed, "lake", number, v, device=device) for v in range(views + 1)]
        shots = [support] + [
            support._replace(x=changed(support.x, keys.fold(one, 1), augment)) for one in at[1:]
        ]
        whole = Examples(*(torch.cat(parts, 1) for parts in zip(*shots, strict=True)))
        each = torch.arange(len(query.y), device=device)
        state = engine.adapt(params, whole, keys.fold(at[0], each))
        total = engine.predict(params, state, query).float().softmax(-1)
        for one in at[1:]:
            asked = query._replace(x=changed(query.x, keys.fold(one, 2), augment))
            total = total + engine.predict(params, state, asked).float().softmax(-1)
        right.append(total.argmax(-1) == query.y)
    return float(torch.cat(right).double().mean())


def trained(
    name: str, which: str, seed: int, arguments: argparse.Namespace
) -> tuple[Learner, Params, Progress]:
    """One training run; its seconds with it."""
    data = training_data(which, arguments.data_dir, arguments.shrink)
    if which.startswith("small"):
        data = mixed(mirrored(data) if arguments.mirror else data, arguments.mix)
        data = with_scribbles(data, arguments.scribbles)
    data = data.to(arguments.device)
    network = network_of(arguments.network, arguments.width_factor)
    learner = learner_of(name, seed, data.n_classes, network)
    learner.model.to(arguments.device)
    augment = partial(affine, **changes(arguments))
    seconds = arguments.small_seconds if which.startswith("small") else arguments.seconds
    seconds = 0.0 if arguments.iterations else seconds
    tasks: Any
    if LEARNERS[name].pretrains:
        tasks = ClassBatches(data, 128, seed, augment=augment)
    else:
        tasks = FewShotTasks(data, 20, 1, 5, seed, augment=augment, within=True)
    settings = Settings(
        meta_iterations=arguments.iterations or 10_000_000,
        meta_batch=arguments.meta_batch,
        outer_lr=arguments.outer_lr,
        outer_schedule="cosine",
        seed=seed,
        seconds=seconds,
    )
    engine = Vectorised(
        learner, precision=arguments.precision, compile=arguments.compile, cuda_graphs=True
    )

    def told(progress: Any) -> None:
        if progress.iteration % 320 == 0:
            print(
                f"  {progress.iteration:,} {progress.loss:.3f} {progress.seconds:.0f} s", flush=True
            )

    asked = ("network", "shrink", "meta_batch", "outer_lr", "precision", "compile")
    recipe = {key: getattr(arguments, key) for key in asked} | OWN.get(name, {})
    small = which.startswith("small")
    later = {k: getattr(arguments, k) for k in USUAL if small or k not in MORE}
    recipe |= {key: value for key, value in later.items() if value != USUAL[key]}
    recipe |= {k: v for k, v in changes(arguments).items() if k != "fill"}
    run = Run(
        arguments.run / f"{name}-{which}-{seed}",
        {"learner": name, "set": which, "seed": seed, "seconds": seconds, **recipe},
    )
    params, last = meta_train(engine, tasks, settings, run=run, resume=True, progress=told)
    return learner, params, last


def changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """How images are changed, where that is not as usual."""
    found: dict[str, Any] = {"fill": 0.0}
    for name in ("elastic", "degrees", "shear", "shift"):
        if value := getattr(arguments, name):
            found[name] = value
    if arguments.scale:
        found["scale"] = (1 - arguments.scale, 1 + arguments.scale)
    return found


def cell(
    name: str, learner: Learner, which: str, values: list[float], views: int, others: bool
) -> dict[str, Any]:
    """Mean over training seeds, with the interval of that mean."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    half = T_95.get(len(values), 1.96) * spread / len(values) ** 0.5 if spread is not None else None
    shown = f"{name}, {which}, {views} views" if views else f"{name}, {which}"
    split = which if which == "held-out" else "other background alphabets" if others else "lake"
    protocol = {"data": "omniglot", "split": split, "within": "group", "n_way": 20}
    protocol |= {"normalisation": learner.normalisation}
    protocol |= {"transductive": True} if learner.transductive else {}
    return {
        "protocol": {**protocol, "n_shot": 1, "n_query": 1, "learner": shown},
        "metric": "accuracy",
        "value": statistics.mean(values),
        "ci95": half,
        "episodes": (100 if which == "held-out" else 200 if others else 20) * len(values),
        "published": PUBLISHED.get(which) if name == "protonet" and not others else None,
        "source": SOURCE if name == "protonet" and which in PUBLISHED else "",
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/lake"), help="folder of trainings")
    parser.add_argument("--learner", action="append", default=[], help="default: matchingnet")
    parser.add_argument(
        "--set", action="append", default=[], choices=SETS, help="default: all but held-out"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--judge", default="lake", choices=("lake", "others"), help="see above")
    parser.add_argument("--elastic", type=float, default=0, help="pixels by which images are bent")
    parser.add_argument("--degrees", type=float, default=0, help="of turns; 0 for the usual 10")
    parser.add_argument("--shear", type=float, default=0, help="0 for the usual 0.3")
    parser.add_argument("--scale", type=float, default=0, help="around 1; 0 for the usual 0.2")
    parser.add_argument("--shift", type=float, default=0, help="of a side; 0 for the usual 0.02")
    parser.add_argument("--mirror", action="store_true", help="mirrored alphabets are others")
    parser.add_argument("--mix", type=int, default=0, help="alphabets of pairs, for each alphabet")
    parser.add_argument("--scribbles", type=int, default=0, help="alphabets of random strokes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=3600, help="of each training")
    parser.add_argument("--iterations", type=int, default=0, help="end by them, not by seconds")
    parser.add_argument("--small-seconds", type=float, default=3600, help="on five alphabets")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--shrink", default="crop", choices=SHRINK, help="to 28 pixels")
    parser.add_argument("--network", default="convnet", choices=NETWORKS)
    parser.add_argument("--width-factor", type=float, default=1.0, help="on all widths of it")
    parser.add_argument("--outer-lr", type=float, default=0.002)
    parser.add_argument("--meta-batch", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/lake-challenge.json")
    )
    arguments = parser.parse_args(words)
    more = [name for name in MORE if getattr(arguments, name)]
    if more and not any(s.startswith("small") for s in arguments.set or ["small"]):
        parser.error(f"--{more[0]} is for the sets of five: add --set small1")
    if arguments.scribbles and arguments.shrink != "crop":
        parser.error("--scribbles are cropped to the ink, as with --shrink crop")
    cells, runs = [], []
    for name in arguments.learner or ["matchingnet"]:
        for which in arguments.set or list(SETS)[:3]:
            others = arguments.judge == "others" and which.startswith("small")
            asked = held_out_episodes if which == "held-out" else lake_episodes
            asked = partial(other_episodes, which) if others else asked
            episodes = moved(asked(arguments.data_dir, arguments.shrink), arguments.device)
            augment = partial(affine, **changes(arguments))
            plain, averaged = [], []
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
                learner, params, last = trained(name, which, seed, arguments)
                judge = learner.for_ways(20)
                runs.append(last)
                plain.append(accuracy(judge, params, episodes, 0, seed, augment))
                averaged.append(accuracy(judge, params, episodes, arguments.views, seed, augment))
                print(
                    f"{name} {which} seed {seed}: error {1 - plain[-1]:.2%} plain, "
                    f"{1 - averaged[-1]:.2%} with {arguments.views} views",
                    flush=True,
                )
            cells.append(cell(name, learner, which, plain, 0, others))
            if arguments.views:
                cells.append(cell(name, learner, which, averaged, arguments.views, others))
    document = report.result_document(
        name=arguments.output.stem,
        command=command(__file__, parser, arguments),
        seed=0,
        training=training(runs, chosen(arguments.precision, torch.device(arguments.device))),
        cells=cells,
    )
    report.write_result(arguments.output, document)
    print(report.table(cells))


if __name__ == "__main__":
    main()
