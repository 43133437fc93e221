"""What each command does: a document for programs and a text for people."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tegu import bench, compare, recipes, report
from tegu import leaderboard as board
from tegu import pictures as draw
from tegu.causal import UPDATES, find_direction
from tegu.columns import Columns, read_columns
from tegu.console import Tell, bar, say, training
from tegu.datasets import pack_folder
from tegu.engine.checkpoint import Checkpoint, load_checkpoint
from tegu.engine.distribute import ALONE, Ranks
from tegu.engine.evaluate import Result, evaluate
from tegu.engine.profile import Watch
from tegu.engine.train import LARGEST, Progress, Run, read_metrics
from tegu.engine.vectorise import Vectorised
from tegu.episodes import select
from tegu.errors import InputError, unknown
from tegu.graphs import UPDATES as GRAPH_UPDATES
from tegu.graphs import recover
from tegu.inner import Params
from tegu.job import Job, alike
from tegu.leaderboard import Budget
from tegu.learners import LEARNERS
from tegu.losses import gaussian, moments
from tegu.meta import fitting
from tegu.recipes import Cell
from tegu.sampling import Tasks

CHECKPOINT = "checkpoint.safetensors"
PACKING = ("size", "channels", "fit", "shares", "seed", "least", "workers", "skip_broken")
Outcome = tuple[dict[str, Any], str]


def train(
    arguments: argparse.Namespace, overrides: dict[str, Any], ranks: Ranks = ALONE
) -> Outcome:
    """Meta-learning into a run folder, with pictures of how it went."""
    with ranks.agreement():
        if arguments.recipe is None:
            data, learner = overrides.get("data.name", "glyphs"), overrides.get("learner.name")
            if learner is None:
                learner = "maml" if data == "sinusoids" else "reptile"
            recipe = recipes.starting(str(learner), str(data), overrides)
        else:
            recipe = recipes.load(arguments.recipe, overrides)
        job = Job(recipe, arguments.data_dir, ranks)
        job.check()
    folder = arguments.run or Path("runs") / job.recipe.name
    looks = arguments.profile and ranks.first
    with Watch(folder / "trace.json.gz") if looks else nullcontext() as watch:
        _, last, pictures = _train(job, folder, resume=arguments.resume)
    document = {
        "run": str(folder),
        "meta_iterations": last.iteration,
        "seconds": round(last.seconds, 1),
        "loss": last.loss if math.isfinite(last.loss) else None,  # nothing was left to do
        "validation": last.validation,
        "pictures": [str(path) for path in pictures],
    }
    text = [f"meta-learned in {report.duration(last.seconds)}: {folder}", *_listed(pictures)]
    if watch:
        document["profile"] = report.profile_document(watch)
        text += ["", report.profile(watch), ""]
    return document, "\n".join([*text, f"next: tegu evaluate {folder}"])


def reproduce(
    arguments: argparse.Namespace, overrides: dict[str, Any], ranks: Ranks = ALONE
) -> Outcome:
    """A recipe from start to end: run, every figure of it, result file."""
    with ranks.agreement():
        job = Job(recipes.load(arguments.recipe, overrides), arguments.data_dir, ranks)
        name = job.recipe.name
        folder = arguments.run or Path("runs") / name
        others = _beside(job, arguments, overrides)
        for one in (job, *others):
            one.check()
        output = _output(arguments, folder, name, check=ranks.first)
    params, last, pictures = _train(job, folder, resume=arguments.resume)
    cells = _score(job, params)
    if others:
        cells = _labelled(cells, job)
        for other in others:
            # Inside the folder of the run that it belongs to.
            learned, _, more = _train(other, folder / other.recipe.name, resume=arguments.resume)
            cells += _labelled(_score(other, learned), other)
            pictures += more
        if ranks.first:
            pictures.append(_picture_cells(job, cells, folder / "comparison.png"))
    document = report.result_document(
        name=name,
        command=f"tegu reproduce {arguments.recipe}{_settings(arguments)}",
        seed=job.recipe.train.seed,
        training=_training(last),
        cells=cells,
        processes=ranks.world,
    )
    if ranks.first:
        report.write_result(output, document)
    text = [report.table(cells), *_listed(pictures), f"result: {output}"]
    return document, "\n".join(text)


def _beside(job: Job, arguments: argparse.Namespace, overrides: dict[str, Any]) -> list[Job]:
    """The recipes beside this one, under the same settings but for the network and the learner."""
    shared = {k: v for k, v in overrides.items() if k.split(".")[0] not in ("model", "learner")}
    shared.pop("train.outer_lr", None)
    return [
        Job(recipes.load(name, shared), arguments.data_dir, job.ranks) for name in job.recipe.beside
    ]


def _labelled(cells: list[dict[str, Any]], job: Job) -> list[dict[str, Any]]:
    name = job.recipe.learner["name"]
    return [{**one, "protocol": {**one["protocol"], "learner": name}} for one in cells]


def _picture_cells(job: Job, cells: list[dict[str, Any]], path: Path) -> Path:
    rows = [(one["protocol"]["learner"], one["value"], one["ci95"]) for one in cells]
    metric = job.measure.metric
    draw.comparison(
        rows,
        path,
        title=job.recipe.title,
        metric=metric,
        label=f"{metric} on unseen tasks",
        highlight=rows[0][0],
    )
    return path


def evaluate_run(
    arguments: argparse.Namespace, overrides: dict[str, Any], ranks: Ranks = ALONE
) -> Outcome:
    """Scores what a run has meta-learned so far."""

    def read() -> tuple[dict[str, Any], tuple[Params, ...]]:
        recipe = _recipe_of(arguments.run)
        for key in overrides:
            # Where data lie may change, and new classes may lie there.
            if key.split(".")[0] not in ("evaluate", "engine") and key != "data.path":
                raise InputError(
                    f"{key} in an evaluation",
                    "settings of [evaluate] or [engine], or data.path; the others were fixed in "
                    "training",
                    "Train another run with it.",
                )
        checkpoint = _checkpoint_of(arguments.run, recipe)
        known = {"iteration": checkpoint.iteration, "seconds": checkpoint.notes.get("seconds")}
        return {"recipe": recipe, **known}, (checkpoint.params,)

    saved, (params,) = ranks.from_first(read)
    with ranks.agreement():
        job = Job(recipes.parse(saved["recipe"], overrides), arguments.data_dir, ranks)
        params = fitting(params, job.learner, where=arguments.run / CHECKPOINT)
    # Tasks that are made rather than read are made on the CPU.
    device = job.recipe.engine.device if job.targets == "classes" else "cpu"
    params = {k: v.to(device) for k, v in params.items()}
    cells = _score(job, params)
    document = report.result_document(
        name=job.recipe.name,
        command=f"tegu evaluate RUN{_settings(arguments)}",
        seed=job.recipe.train.seed,
        training={
            "seconds": saved["seconds"],
            "meta_iterations": saved["iteration"],
            "peak_bytes": report.peak_bytes(),
        },
        cells=cells,
    )
    output = arguments.run / "evaluation.json"
    if ranks.first:
        report.write_result(output, document)
    return document, f"{report.table(cells)}\nresult: {output}"


def leaderboard(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """All learners at one budget, each in a process of its own."""
    budget = _budget(Budget, arguments)
    learners = arguments.learner or board.contenders()
    for name in learners:
        if name not in board.contenders():
            raise unknown("learner of classes", name, board.contenders())
    boards = arguments.data or ["omniglot", "cifar-fs"]
    folder = arguments.run or Path("runs/leaderboard")
    output = _output(arguments, folder, "leaderboard")
    words = [w for name in arguments.learner or () for w in ("--learner", name)]
    words += [w for name in arguments.data or () for w in ("--data", name)]
    words += _told(budget)
    with bar("leaderboard", len(learners) * len(boards), unit="entries") as tell:
        document = board.run(
            learners,
            boards,
            budget,
            folder,
            data_dir=arguments.data_dir,
            command=shlex.join(["tegu", "leaderboard", *words]),
            progress=lambda done, _total, note: tell(done, note),
        )
    report.write_result(output, document)
    pictures = []
    for data in boards:
        for n_shot in board.BOARDS[data].shots:
            pictures.append(folder / f"{data}-{n_shot}-shot.png")
            _picture_board(document, data, n_shot, pictures[-1])
    text = [report.table(document["cells"]), *_listed(pictures), f"result: {output}"]
    return document, "\n".join(text)


def compare_learners(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """Learners side by side, each in a process of its own."""
    budget, names = _budget(compare.Budget, arguments), arguments.learners
    data = arguments.data
    if data is None:
        able = compare.common(names)
        if not able:
            told = [f"{name} learns {' or '.join(LEARNERS[name].targets)}" for name in names]
            raise InputError(
                f"a comparison of {' and '.join(names)}, which learn no common kind of task",
                "learners with targets in common",
                f"Take others: {', '.join(told)}.",
            )
        data = able[0]
    folder = arguments.run or Path("runs/compare")
    output = _output(arguments, folder, f"compare-{'-'.join(names)}")
    words = [*names, *(["--data", data] if arguments.data else []), *_told(budget)]
    with bar("compare", len(names), unit="learners") as tell:
        document, entries = compare.run(
            names,
            data,
            budget,
            folder,
            data_dir=arguments.data_dir,
            command=shlex.join(["tegu", "compare", *words]),
            progress=lambda done, _total, note: tell(done, note),
        )
    report.write_result(output, document)
    picture = folder / f"{data}-{'-'.join(names)}.png"
    draw.side_by_side(entries, picture, title=f"{' and '.join(names)} on {data}")
    header, *rows = document["table"]
    text = [report.aligned(header, rows), *_listed([picture]), f"result: {output}"]
    return document, "\n".join(text)


def bench_recipe(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """Every way of running a recipe, timed in turn on this machine."""
    if arguments.output:
        _check_output(arguments.output)
    if not 0 < arguments.seconds < math.inf:
        raise InputError(
            f"--seconds {arguments.seconds}", "a number above 0", "Write --seconds 20."
        )
    job = Job(recipes.load(arguments.recipe, overrides), arguments.data_dir)
    job.check()
    with bar("bench", len(bench.WAYS), unit="ways") as tell:
        found = bench.measure(
            job,
            seconds=arguments.seconds,
            ways=bench.WAYS,
            progress=lambda done, _total, note: tell(done, note),
        )
    document = bench.document(
        job, found, command=f"tegu bench {arguments.recipe}{_settings(arguments)}"
    )
    header, *rows = document["table"]
    text = [f"{job.recipe.name}, one meta-iteration:", report.aligned(header, rows)]
    for precision in ("fp32", "bf16"):
        if way := bench.fastest(found, precision):
            text.append(f"fastest in {precision}: {way.settings}")
    if arguments.output:
        report.write_result(arguments.output, document)
        text.append(f"result: {arguments.output}")
    return document, "\n".join(text)


def _budget(kind: type[Any], arguments: argparse.Namespace) -> Any:
    """A budget of some kind, whose fields are options of the command."""
    return kind(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(kind)})


def _told(budget: Any) -> list[str]:
    """The options that make this budget of the usual one."""
    usual = vars(type(budget)())
    said = {key: value for key, value in vars(budget).items() if value != usual[key]}
    return [
        word
        for key, value in said.items()
        for word in (f"--{key}", f"{value:g}" if isinstance(value, float) else str(value))
    ]


def _output(arguments: argparse.Namespace, folder: Path, name: str, *, check: bool = True) -> Path:
    """Where a result goes: as told, else among the project's results, else into the folder."""
    shared = Path("benchmarks/results")
    path: Path = arguments.output or (shared if shared.is_dir() else folder) / f"{name}.json"
    if check:
        _check_output(path)
    return path


def _picture_board(document: dict[str, Any], data: str, n_shot: int, path: Path) -> None:
    """Each learner's honest figure: without transduction where there is one."""
    rows: dict[str, tuple[str, float, float, float]] = {}
    for one in document["cells"]:
        protocol = one["protocol"]
        if (protocol["data"], protocol["n_shot"]) != (data, n_shot):
            continue
        name = protocol["learner"]
        rows.setdefault(name, (name, one["value"], one["ci95"], one["cost"]["adapt_ms"]))
    way = board.BOARDS[data].n_way
    draw.tradeoff(
        list(rows.values()),
        path,
        title=f"{data}, {way}-way {n_shot}-shot: what each learner reaches, and what a task costs",
    )


def pack(arguments: argparse.Namespace) -> Outcome:
    """A folder of images in one file a split."""
    with ExitStack() as stack:
        opened: list[Tell] = []  # how many images there are is known once they are listed

        def progress(done: int, total: int) -> None:
            if not opened:
                shown = bar(f"pack {arguments.folder}", total, unit="images")
                opened.append(stack.enter_context(shown))
            opened[0](done, "")

        chosen = {name: getattr(arguments, name) for name in PACKING}
        index, broken = pack_folder(arguments.folder, arguments.out, **chosen, progress=progress)
    splits = {
        split: {"classes": len(part["counts"]), "examples": sum(part["counts"])}
        for split, part in index["splits"].items()
    }
    document = {
        "pack": str(arguments.out),
        "shape": index["shape"],
        "splits": splits,
        "broken": [error.given for error in broken],
    }
    text = [
        *(f"{s}: {n['classes']:,} classes, {n['examples']:,} images" for s, n in splits.items()),
        *(f"left out: {error.given}" for error in broken),
        f"next: tegu train --learner protonet --data packed --set data.path={arguments.out}",
    ]
    return document, "\n".join(text)


def causal(arguments: argparse.Namespace) -> Outcome:
    """Which of two columns is the cause, or the graph of more."""
    file: Path = arguments.file
    output = arguments.output or Path(f"{file.stem}-belief.png")
    if output.suffix.lower() != ".png":
        raise InputError(f"a picture named {output}", "a name that ends in .png", "Rename it.")
    _check_output(output)
    torch.set_num_threads(1)  # tensors are small here: a second thread costs more than it brings
    table = read_columns(file, environment=arguments.environment)
    if table.labels and len(table.names) > 2:
        return _causal_graph(table, arguments, output)
    if arguments.baseline is not None:
        raise InputError(
            f"--baseline for {len(table.names)} columns of numbers",
            "three columns or more, and --environment",
            "Leave --baseline out.",
        )
    updates = UPDATES if arguments.updates is None else arguments.updates
    with bar(f"causal {file.name}", updates, unit="updates") as tell:
        found = find_direction(
            table,
            kind=arguments.kind,
            seed=arguments.seed,
            repetitions=arguments.repetitions,
            updates=updates,
            progress=lambda done: tell(done, ""),
        )
    (a, b), (low, high) = found.names, found.band
    draw.belief_paths(
        [(f"{a} -> {b}", found.path)],
        output,
        title=f"{found.direction}: belief over {found.episodes} episodes",
        label=f"belief in {a} -> {b}",
        each=2,
    )
    document = {
        "file": str(file),
        "columns": [a, b],
        "direction": found.direction,
        "belief": found.belief,
        "band": [low, high],
        "rows": found.rows,
        "environments": found.environments,
        "episodes": found.episodes,
        "repetitions": len(found.path),
        "kind": found.kind,
        "seed": found.seed,
        "warning": found.warning or None,
        "picture": str(output),
    }
    labels = f"{found.environments} environments" if table.labels else "no environments"
    text = [
        f"direction: {found.direction}",
        f"belief in {a} -> {b}: {found.belief:.3f} ({low:.3f} to {high:.3f}, "
        f"80 % of {len(found.path)} repetitions)",
        f"rests on: {found.rows:,} rows of {found.kind}, {labels}, {found.episodes} episodes "
        "in each repetition",
        *([f"warning: {found.warning}"] if found.warning else []),
        *_listed([output]),
    ]
    return document, "\n".join(text)


def _causal_graph(table: Columns, arguments: argparse.Namespace, output: Path) -> Outcome:
    """Direct causes among three columns or more, from interventions on unknown ones."""
    assert table.labels is not None
    baseline = table.labels[0] if arguments.baseline is None else arguments.baseline
    if baseline not in table.labels:
        raise unknown("label", baseline, dict.fromkeys(table.labels))
    number = {baseline: 0}
    for label in table.labels:
        number.setdefault(label, len(number))
    updates = GRAPH_UPDATES if arguments.updates is None else arguments.updates
    with bar(f"causal {arguments.file.name}", updates, unit="updates") as tell:
        belief = recover(
            table.values,
            torch.tensor([number[label] for label in table.labels]),
            seed=arguments.seed,
            meta_iterations=updates,
            progress=lambda done: tell(done, ""),
        )
    names, k = table.names, len(table.names)
    edges = sorted(
        (-float(belief[effect, cause]), names[cause], names[effect])
        for effect in range(k)
        for cause in range(k)
        if belief[effect, cause] > 0.5
    )
    title = f"{len(edges)} direct causes likelier than not, among {k} columns"
    draw.belief_graph(names, belief, output, title=title)
    document = {
        "file": str(arguments.file),
        "columns": list(names),
        "edges": [{"cause": a, "effect": b, "belief": -minus} for minus, a, b in edges],
        "beliefs": belief.tolist(),
        "rows": len(table.values),
        "interventions": len(number) - 1,
        "baseline": baseline,
        "updates": updates,
        "seed": arguments.seed,
        "picture": str(output),
    }
    text = [
        *([f"{a} -> {b}  {-minus:.3f}" for minus, a, b in edges] or ["no edge is likely"]),
        f"rests on: {len(table.values):,} rows, {len(number) - 1} interventions beside "
        f"'{baseline}', {updates} updates",
        *_listed([output]),
    ]
    return document, "\n".join(text)


def list_recipes(arguments: argparse.Namespace) -> Outcome:
    """All recipes, or one with every default filled in."""
    if arguments.recipe:
        plain = recipes.load(arguments.recipe).plain()
        lines = [f"{plain['name']}: {plain['title']}"]
        if plain["source"]:
            lines.append(f"source: {plain['source']}")
        for section in ("data", "model", "learner", "train", "engine", "evaluate"):
            lines.append(f"[{section}]")
            for key, value in plain[section].items():
                shown = f"{len(value)} figures" if key == "cells" else json.dumps(value)
                lines.append(f"  {key} = {shown}")
        return plain, "\n".join(lines)
    found = [recipes.load(name) for name in recipes.names()]
    width = max(len(recipe.name) for recipe in found)
    document = {"recipes": [{"name": r.name, "title": r.title, "source": r.source} for r in found]}
    return document, "\n".join(f"{r.name:<{width}}  {r.title}" for r in found)


def info(arguments: argparse.Namespace) -> Outcome:
    """What a run folder holds."""
    plain = _recipe_of(arguments.run)
    recipe, checkpoint = recipes.parse(plain), _checkpoint_of(arguments.run, plain)
    metrics = read_metrics(arguments.run / "metrics.jsonl")
    names = sorted(path.name for path in arguments.run.iterdir() if path.is_file())
    weights = sum(v.numel() for k, v in checkpoint.params.items() if "/" not in k)
    document = {
        "run": str(arguments.run),
        "recipe": recipe.name,
        "learner": recipe.learner["name"],
        "data": recipe.data.name,
        "iteration": checkpoint.iteration,
        "meta_iterations": recipe.train.meta_iterations,
        "seconds": checkpoint.notes.get("seconds"),
        "parameters": weights,
        "digest": checkpoint.digest(),
        "validation": metrics[-1].get("validation") if metrics else None,
        "files": names,
    }
    return document, "\n".join(f"{key:<16} {_inline(value)}" for key, value in document.items())


def quickstart(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Outcome:
    """Meta-learning next to learning from scratch, on characters nobody has shown it."""
    job = Job(recipes.load("reptile-glyphs", overrides), arguments.data_dir)
    characters = job.recipe.data.name in ("glyphs", "omniglot")
    if not characters or job.recipe.learner["name"] != "reptile":
        raise InputError(
            f"a quick start with {job.recipe.learner['name']} on {job.recipe.data.name}",
            "reptile on glyphs or omniglot",
            "Use `tegu train` for others.",
        )
    job.check()
    if arguments.output:
        _check_output(arguments.output)
    if arguments.resume and not arguments.run:
        raise InputError("--resume without --run", "the run to go on with", "Add --run DIR.")
    folder = arguments.run = arguments.run or _new_folder(Path("runs") / "quickstart")
    params, last, pictures = _train(job, folder, resume=arguments.resume)
    cell, way = job.recipe.evaluate.cells[0], job.recipe.train.n_way
    learner: Any = job.learner
    fresh = learner.init()
    # From scratch: the same network and images, a common Adam, and time to converge.
    scratch = replace(learner, carry=False, beta1=0.9, eval_steps=5 * learner.eval_steps)
    rows: dict[str, Result] = {}
    for name, chosen, start in (
        ("scratch", scratch, {k: v for k, v in fresh.items() if "/" not in k}),
        ("before", learner, fresh),
        ("after", learner, params),
    ):
        rows[name] = _score_cell(job, cell, chosen, start, title=f"evaluate {name}")
    after, protocol = rows["after"], _protocol(job, cell)
    chance = 1 / way
    labels = {
        "scratch": "trained from scratch on the support set",
        "before": "Reptile before meta-training",
        "after": "Reptile after meta-training",
    }
    bars = [("chance", chance, 0.0)]
    bars += [(labels[name], row.value, row.ci95) for name, row in rows.items()]
    gain = 100 * (after.value - rows["scratch"].value)
    title = f"Unseen characters, {way}-way {cell.n_shot}-shot: {gain:+.0f} points by meta-learning"
    picture = folder / "comparison.png"
    draw.comparison(bars, picture, title=title, highlight=labels["after"])
    shown = folder / "episode.png"
    _picture_episode(job, cell, params, shown)
    pictures = [picture, shown, *pictures]
    cells = [
        report.cell(row, **{**protocol, "learner": labels[name]}) for name, row in rows.items()
    ]
    output = arguments.output or folder / "quickstart.json"
    report.write_result(
        output,
        report.result_document(
            name="quickstart",
            command=f"tegu quickstart{_settings(arguments)}",
            seed=job.recipe.train.seed,
            training=_training(last),
            cells=cells,
        ),
    )
    document = {
        "chance": chance,
        **{name: row.value for name, row in rows.items()},
        "ci95": after.ci95,
        "intervals": {name: row.ci95 for name, row in rows.items()},
        "episodes": after.episodes,
        "seconds": 0.0,
        "protocol": {**protocol, "split": after.split, "normalisation": after.normalisation},
        "run": str(folder),
        "pictures": [str(path) for path in pictures],
        "result": str(output),
    }
    lines = [
        f"{way}-way {cell.n_shot}-shot on {after.episodes} tasks of unseen characters",
        f"chance: {chance:.1%}",
        report.table(cells),
        *_listed(pictures),
        f"result: {output}",
        f"next: tegu info {folder}, tegu train --help, tegu recipes",
    ]
    return document, "\n".join(lines)


def _train(job: Job, folder: Path, *, resume: bool) -> tuple[Params, Progress, list[Path]]:
    recipe, metric = job.recipe, job.measure.metric
    if names := _converted(job):
        say(f"{len(names)} BatchNorm layers use the task's own statistics: {', '.join(names)}")
    threads = f", {torch.get_num_threads()} threads" if recipe.engine.device == "cpu" else ""
    say(
        f"engine: {job.training_engine}, {recipe.engine.device}{threads}; see [engine] to change it"
    )
    limit, title = round(recipe.train.seconds), f"meta-train {recipe.name}"
    total, unit = (limit, "s") if limit else (recipe.train.meta_iterations, "iterations")
    with bar(title, total, unit=unit) as tell:
        told = training(
            tell, metric=metric, meta_batch=recipe.train.meta_batch, by_time=bool(limit)
        )
        params, last = job.train(folder, resume=resume, progress=told)
    pictures: list[Path] = []
    if not job.ranks.first:
        return params, last, pictures
    if metrics := read_metrics(folder / "metrics.jsonl"):
        pictures.append(folder / "learning-curve.png")
        chance = 1 / recipe.train.n_way if metric == "accuracy" else None
        title = f"{recipe.title or recipe.name}: {job.validation.replace('_', '-')} tasks"
        draw.learning_curve(metrics, pictures[-1], title=title, chance=chance, metric=metric)
    if job.recipe.data.name == "sinusoids":
        pictures.append(folder / "fit.png")
        _picture_fit(job, params, pictures[-1])
    return params, last, pictures


def _converted(job: Job) -> list[str]:
    from tegu.models.norm import converted

    return converted(job.learner.model)


def _score(job: Job, params: Params) -> list[dict[str, Any]]:
    settings = job.recipe.evaluate
    groups = {alike(cell) for cell in settings.cells}
    total = len(groups) * settings.episodes
    metric = job.measure.metric
    with bar(f"evaluate {job.recipe.name}", total, unit="episodes") as tell:
        found = job.evaluate(
            params,
            progress=lambda done, _total, mean: tell(
                done, f"{metric} {report.shown(mean, metric)}"
            ),
        )
    return [
        report.cell(
            result,
            published=None if cell.published < 0 else cell.published,
            source=cell.source or (job.recipe.source if cell.published >= 0 else ""),
            **_protocol(job, cell),
        )
        for cell, result in found
    ]


def _score_cell(job: Job, cell: Cell, learner: Any, params: Params, *, title: str) -> Result:
    settings = job.recipe.evaluate
    _, score, metric = job.measure
    tasks = job.tasks(settings.split, n_shot=cell.n_shot, n_query=cell.n_query, seed=settings.seed)
    with bar(title, settings.episodes, unit="episodes") as tell:
        (result,) = evaluate(
            job.engine(learner, steps=0),
            params,
            tasks,
            episodes=settings.episodes,
            at_once=settings.at_once,
            seed=settings.seed,
            score=score,
            metric=metric,
            normalisations=[cell.normalisation],
            progress=lambda done, mean: tell(done, f"{metric} {report.shown(mean, metric)}"),
        )
    return result


def _protocol(job: Job, cell: Cell) -> dict[str, Any]:
    together = {"transductive": True} if job.learner.transductive else {}
    return {
        "data": job.recipe.data.name,
        "n_way": (cell.n_way or job.recipe.train.n_way) if job.targets == "classes" else None,
        "n_shot": cell.n_shot,
        "n_query": cell.n_query,
        **job.recipe.data.protocol(),
        **together,
    }


def _one_episode(job: Job, cell: Cell) -> tuple[Tasks, Any, torch.Tensor]:
    from tegu import keys

    tasks = job.tasks(
        job.recipe.evaluate.split,
        n_shot=cell.n_shot,
        n_query=cell.n_query,
        seed=job.recipe.evaluate.seed,
    )
    batch = tasks.episodes(torch.arange(3))
    at = keys.fold(keys.key(0), torch.arange(3)).to(batch.support.x.device)
    return tasks, batch, at


def _picture_episode(job: Job, cell: Cell, params: Params, path: Path) -> None:
    wide = replace(cell, n_query=4)
    _, batch, at = _one_episode(job, wide)
    engine = Vectorised(job.learner)
    state = engine.adapt(params, batch.support, at)
    guessed = engine.predict(params, state, batch.query).argmax(-1)
    one = select(batch, 0)
    right = int((guessed[0] == one.query.y).sum())
    draw.episode(
        one.support.x,
        one.support.y,
        one.query.x,
        one.query.y,
        guessed[0],
        path,
        title=f"One task of unseen characters: {right} of {len(one.query.y)} recognised "
        f"from {cell.n_shot} example each",
    )


def _picture_fit(job: Job, params: Params, path: Path) -> None:
    cell = job.recipe.evaluate.cells[0]
    _, batch, at = _one_episode(job, cell)
    learner: Any = job.learner
    fits = []
    steps = learner.steps(training=False)
    for count in sorted({0, 1, steps}) if steps else [0]:
        engine = Vectorised(replace(learner, eval_steps=count) if steps else learner)
        state = engine.adapt(params, batch.support, at)
        name = f"after {count} step{'s' * (count > 1)}" if count else "before"
        outputs = engine.predict(params, state, batch.query)
        if learner.loss is gaussian:
            outputs, _ = moments(outputs, batch.query.y.shape[-1])
        fits.append((name if steps else "learnt", outputs))
    draw.sinusoid_fit(
        batch.query.x,
        batch.query.y,
        batch.support.x,
        batch.support.y,
        fits,
        path,
        title=f"Three new waves, {cell.n_shot} points each",
    )


def _training(last: Progress) -> dict[str, Any]:
    return {
        "seconds": round(last.seconds, 1),
        "meta_iterations": last.iteration,
        "peak_bytes": report.peak_bytes(),
    }


def _settings(arguments: argparse.Namespace) -> str:
    """The options that change a result, for its record; paths stay out of it."""
    words = [f" --set {item}" for item in arguments.set]
    for name in ("threads", "episodes"):
        if (value := getattr(arguments, name, None)) is not None:
            words.append(f" --{name} {value}")
    return "".join(words)


def _recipe_of(run: Path) -> dict[str, Any]:
    file = run / "recipe.json"
    if not file.is_file() or file.stat().st_size > LARGEST:
        raise InputError(
            f"{run} holds no run", "a folder that `tegu train` has made", "Check the path."
        )
    try:
        plain = json.loads(file.read_text())
        if not isinstance(plain, dict) or "learner" not in plain:
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError(
            f"{file} is no recipe", "the settings that a run has written", "Train the run again."
        ) from None
    return plain


def _checkpoint_of(run: Path, recipe: dict[str, Any]) -> Checkpoint:
    checkpoint = load_checkpoint(run / CHECKPOINT)
    if checkpoint.recipe != Run(run, recipe).digest():
        raise InputError(
            f"{run / CHECKPOINT} belongs to other settings than {run / 'recipe.json'}",
            "the two files that one run has written",
            "Put the right one back, or train the run again.",
        )
    return checkpoint


def _check_output(path: Path) -> None:
    """Refuses a file that could not be written after hours of training."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"{path} cannot be written",
            "a file in a folder that can be written",
            "Choose another --output.",
        )


def _new_folder(wanted: Path) -> Path:
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _listed(pictures: list[Path]) -> list[str]:
    return [f"picture: {path}" for path in pictures]


def _inline(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


COMMANDS: dict[str, Callable[..., Outcome]] = {
    "quickstart": quickstart,
    "train": train,
    "evaluate": evaluate_run,
    "reproduce": reproduce,
    "leaderboard": leaderboard,
    "compare": compare_learners,
    "bench": bench_recipe,
    "causal": causal,
    "pack": pack,
    "recipes": list_recipes,
    "info": info,
}
