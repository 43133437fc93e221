"""The figures and pictures of a run, cell by cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tegu import pictures as draw
from tegu import report
from tegu.console import bar
from tegu.engine.evaluate import Result, evaluate
from tegu.engine.vectorise import Vectorised
from tegu.episodes import moved, select
from tegu.inner import Params
from tegu.job import Job, alike
from tegu.losses import gaussian, moments
from tegu.recipes import Cell
from tegu.sampling import Tasks


def score(job: Job, params: Params) -> list[dict[str, Any]]:
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
            **protocol_of(job, cell),
        )
        for cell, result in found
    ]


def score_cell(job: Job, cell: Cell, learner: Any, params: Params, *, title: str) -> Result:
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


def protocol_of(job: Job, cell: Cell) -> dict[str, Any]:
    together = {"transductive": True} if job.learner.transductive else {}
    return {
        "data": job.recipe.data.name,
        "n_way": (cell.n_way or job.recipe.train.n_way) if job.targets == "classes" else None,
        "n_shot": cell.n_shot,
        "n_query": cell.n_query,
        **job.recipe.data.protocol(job.recipe.evaluate.split),
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
    batch = moved(tasks.episodes(torch.arange(3)), job.recipe.engine.device)
    at = keys.fold(keys.key(0), torch.arange(3)).to(batch.support.x.device)
    return tasks, batch, at


def picture_episode(job: Job, cell: Cell, params: Params, path: Path) -> None:
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


def picture_fit(job: Job, params: Params, path: Path) -> None:
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


def labelled(cells: list[dict[str, Any]], job: Job) -> list[dict[str, Any]]:
    name = job.recipe.learner["name"]
    return [{**one, "protocol": {**one["protocol"], "learner": name}} for one in cells]


def picture_cells(job: Job, cells: list[dict[str, Any]], path: Path) -> Path:
    rows = [(one["protocol"]["learner"], one["value"], one["ci95"]) for one in cells]
    metric = job.measure.metric
    draw.comparison(
        rows,
        path,
        title=job.recipe.title,
        metric=metric,
        label=f"{metric} on unseen tasks",
        highlight=[rows[0][0]],
    )
    return path
