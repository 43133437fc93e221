"""Learners side by side on one kind of task: ease, speed, accuracy, and how cost grows.

Every learner gets the same seconds of meta-training, the same tasks and the same
test episodes, in a process of its own. Four questions are measured:

* ease: the recipe that a user would write, if tegu had no settings to start from, in
  lines and settings;
* speed: meta-iterations and episodes a second, and accuracy on unseen tasks after
  each share of the seconds;
* one new task: milliseconds to learn it and to answer a query, and bytes to keep it;
* growth: both times as the support set grows, and as sequences grow where there are any.

Scoring takes at most about as long as training, and timing half as long: where tasks are
slow to learn, fewer are scored and the largest sizes are left out.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu import keys, origin, recipes, report
from tegu.engine.evaluate import Result, evaluate
from tegu.engine.train import meta_train
from tegu.engine.trees import tensors_of
from tegu.engine.vectorise import Vectorised
from tegu.entries import commits, limited
from tegu.entries import entry as kept_entry
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, unknown
from tegu.files import expanded
from tegu.inner import Params
from tegu.job import Job
from tegu.learners import LEARNERS
from tegu.learners.learner import count_weights
from tegu.processes import apart
from tegu.recipes import Recipe
from tegu.sources import SOURCES

LEAST = 1.0  # seconds for the timings of one size of a task
POINTS = 8  # of the curve of accuracy, at doubling shares of the seconds
BLOCK = 10  # test tasks side by side, between looks at the clock
REPEATS = 12  # timings of one task at most, after one that does not count
SIZES = (1, 2, 4, 8, 16)  # factors of the support set
LENGTHS = (1, 2, 4)  # factors of the sequences


@dataclass(frozen=True)
class Budget:
    """What every learner gets.

    Args:
        seconds: of meta-training, evaluations left out.
        episodes: test tasks for each point of the curve.
        seed: of weights, training tasks and random numbers.
        precision: "fp32", "bf16", or "auto": bf16 where the machine is faster in it.
        threads: processor threads; 0 for torch's own choice.
    """

    seconds: float = 300.0
    episodes: int = 300
    seed: int = 0
    precision: str = "fp32"
    threads: int = 0

    def __post_init__(self) -> None:
        limited(self.seconds)


def common(learners: Iterable[str]) -> list[str]:
    """Data sets whose tasks all of these learners learn, made ones first."""
    names = list(learners)
    for name in names:
        if name not in LEARNERS:
            raise unknown("learner", name, LEARNERS)
    able = [s for s in SOURCES.values() if all(s.targets in LEARNERS[n].targets for n in names)]
    return [s.name for s in sorted(able, key=lambda s: (s.downloads, s.name))]


def job(
    learner: str,
    data: str,
    budget: Budget,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Job:
    """The training of one learner.

    Args:
        learner: its name.
        data: name of a data set.
        budget: what it gets.
        data_dir: a folder of data sets to look in first.
        settings: in place of the usual ones, by dotted key.

    Raises:
        InputError: no such learner, data set or setting, or one that does not fit the other.
    """
    decided: dict[str, Any] = {
        "train.meta_iterations": 10_000_000,
        "train.seconds": float(budget.seconds),
        "train.seed": budget.seed,
        "train.validate_every": 0,
        "evaluate.episodes": budget.episodes,
        "engine.precision": budget.precision,
        "engine.threads": budget.threads,
        "engine.compile": "off",
    }
    names = {"data.name", "learner.name"}
    if both := sorted((decided.keys() | names) & (settings or {}).keys()):
        raise InputError(
            f"{both[0]} among the settings of a comparison",
            "others than what the comparison is of, and than its budget",
            "Use the options: see `tegu compare --help`.",
        )
    recipe = recipes.starting(learner, data, {**(settings or {}), **decided})
    return Job(recipe, data_dir)


def written(recipe: Recipe) -> str:
    """The recipe in TOML without what it would say anyway: what a user writes.

    `tegu.recipes.parse` makes the same recipe of it.
    """
    lines: list[str] = []
    for section in ("data", "model", "learner", "train", "engine"):
        part = getattr(recipe, section)
        if section == "learner":
            values, known = dict(part), fields(LEARNERS[part["name"]])
        else:
            values, known = {f.name: getattr(part, f.name) for f in fields(part)}, fields(part)
        name = values.pop("name", getattr(type(part), "name", ""))
        own = {f.name: f for f in known}
        said = {k: v for k, v in values.items() if _default(own[k]) != v}
        if name or said:
            lines += [f"[{section}]", *([f'name = "{name}"'] if name else [])]
            lines += [f"{key} = {json.dumps(value)}" for key, value in said.items()]
    return "\n".join(lines) + "\n"


def _default(one: Field[Any]) -> Any:
    return one.default if one.default is not MISSING else None


def entry(
    learner: str,
    data: str,
    budget: Budget,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, scores and times one learner; arguments as for `job`."""
    one = job(learner, data, budget, data_dir, settings)
    one.check()
    curve: list[tuple[float, int, Result]] = []
    params, last = _trained(one, budget, curve)
    engine = one.engine(one.judge(one.recipe.evaluate.cells[0]), steps=0)
    text = written(recipes.starting(learner, data, dict(settings or {})))
    episode = _episode(one)
    share = max(LEAST, budget.seconds / 2 / (len(SIZES) + len(LENGTHS)))
    adapt_ms, answer_ms, size = cost(engine, params, episode, seconds=share)
    return {
        "curve": [(seconds, iteration, vars(result)) for seconds, iteration, result in curve],
        "meta_iterations": last,
        "meta_batch": one.recipe.train.meta_batch,
        "recipe": text,
        "parameters": count_weights(params),
        "adapt_ms": adapt_ms,
        "answer_ms": answer_ms,
        "state_bytes": size,
        "peak_bytes": origin.peak_bytes(),
        "precision": engine.precision,
        "growth": growth(engine, params, episode, one.targets, seconds=share),
    }


def _trained(
    one: Job, budget: Budget, curve: list[tuple[float, int, Result]]
) -> tuple[Params, int]:
    """Meta-trains, and scores the same test tasks whenever the next share of time is over."""
    cell, settings = one.recipe.evaluate.cells[0], one.settings
    measure, learner = one.measure, one.learner
    judge = Vectorised(one.judge(cell), vectorise=one.recipe.engine.vectorise)
    tasks = one.tasks(
        "meta_test", n_way=cell.n_way, n_shot=cell.n_shot, n_query=cell.n_query, seed=budget.seed
    )
    due = [budget.seconds * 2.0**-k for k in reversed(range(POINTS))]
    state = {"began": time.monotonic(), "paused": 0.0, "iteration": 0}

    def look(params: Params) -> float:
        now = time.monotonic()
        state["iteration"] += 1
        passed = now - state["began"] - state["paused"]
        if due and passed >= due[0]:
            while due and passed >= due[0]:
                due.pop(0)
            (result,) = evaluate(
                judge,
                params,
                tasks,
                episodes=budget.episodes,
                at_once=min(BLOCK, one.recipe.evaluate.at_once),
                # The last figure, which the table shows, gets half of the time for all.
                seconds=budget.seconds / (2 if not due else 2 * (POINTS - 1)),
                score=measure.score,
                metric=measure.metric,
            )
            curve.append((passed, int(state["iteration"]), result))
            state["paused"] += time.monotonic() - now
        return curve[-1][2].value if curve else 0.0

    settings.validate_every = 1
    engine = one.engine(learner, steps=0)
    params, last = meta_train(engine, one.training_tasks(), settings, validate=look)
    if not curve or due:  # the last update ended a moment before its time
        due[:], state["iteration"] = [0.0], last.iteration - 1
        look(params)
    return params, last.iteration


def _episode(one: Job) -> Episode:
    """One task with the ways of the first figure and the shots of meta-training."""
    train, n_way = one.recipe.train, one.recipe.evaluate.cells[0].n_way
    n_query = max(train.n_query, 1)
    tasks = one.tasks("meta_train", n_way=n_way, n_shot=train.n_shot, n_query=n_query, seed=11)
    return tasks.episodes(torch.arange(1))


def cost(
    engine: Vectorised, params: Params, episode: Episode, *, seconds: float
) -> tuple[float, float, int]:
    """Milliseconds to learn one task, and to answer one query; bytes of what is learned.

    Medians of `REPEATS` timings, or of as many as begin within so many seconds.
    """
    at = keys.key(0).reshape(1)
    query = Examples(*(field[:, :1] for field in episode.query))
    learnt: list[float] = []
    answered: list[float] = []
    start = time.perf_counter()
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        if len(learnt) > 1 and began - start >= seconds:
            break
        state = engine.adapt(params, episode.support, at)
        middle = time.perf_counter()
        engine.predict(params, state, query)
        answered.append(1e3 * (time.perf_counter() - middle))
        learnt.append(1e3 * (middle - began))
    size = sum(x.numel() * x.element_size() for x in tensors_of(state))
    return statistics.median(learnt[1:]), statistics.median(answered[1:]), size


def growth(
    engine: Vectorised, params: Params, episode: Episode, targets: str, *, seconds: float
) -> list[dict[str, Any]]:
    """Costs of one task as it grows: {"support", "length", "adapt_ms", "answer_ms"} each.

    Each takes so many seconds at most, about: the times of larger ones are None.
    """
    bigger = (Episode(_more(episode.support, n, axis=1), episode.query) for n in SIZES)
    longer = (
        Episode(_longer(episode.support, n), _longer(episode.query, n))
        for n in (LENGTHS[1:] if targets == "sequences" else ())
    )
    found: list[dict[str, Any]] = []
    for grown in (bigger, longer):
        adapt_ms: float | None = 0.0
        answer_ms: float | None = 0.0
        for one in grown:
            if adapt_ms is not None and answer_ms is not None:
                # A size is timed twice at least, and the next takes twice as long or more.
                if 4 * (adapt_ms + answer_ms) > 1e3 * seconds:
                    adapt_ms = answer_ms = None
                else:
                    adapt_ms, answer_ms, _ = cost(engine, params, one, seconds=seconds)
            length = one.support.y.shape[-1] if targets == "sequences" else None
            size, times = one.support.mask.shape[1], {"adapt_ms": adapt_ms, "answer_ms": answer_ms}
            found.append({"support": size, "length": length, **times})
    return found


def _more(examples: Examples, factor: int, *, axis: int) -> Examples:
    """The same examples so many times over."""
    return Examples(*(torch.cat([field] * factor, axis) for field in examples))


def _longer(examples: Examples, factor: int) -> Examples:
    """Sequences so many times as long: each row's words over and over, and no padding."""

    def drawn_out(rows: Tensor) -> Tensor:
        real = (rows > 0).sum(-1, keepdim=True).clamp(min=1)
        at = torch.arange(factor * rows.shape[-1]).expand(*rows.shape[:-1], -1) % real
        return rows.gather(-1, at)

    return Examples(drawn_out(examples.x), drawn_out(examples.y), examples.mask)


def run(
    learners: Iterable[str],
    data: str,
    budget: Budget,
    folder: str | Path,
    *,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "tegu compare",
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The whole comparison: a result document, and what each learner's entry holds.

    Args:
        learners: two names or more; the first is what the others are compared with.
        data: a data set whose tasks all of them learn.
        budget: of each learner.
        folder: one file an entry, so that nothing is measured twice.
        data_dir: a folder of data sets to look in first.
        settings: of all learners, in place of the usual ones, by dotted key.
        command: for the document.
        progress: told how many of how many entries are done, and the last figure.

    Raises:
        InputError: fewer than two learners, one twice, or one that does not fit.
    """
    names = list(learners)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"a comparison of {' and '.join(names) or 'nothing'}",
            "two different learners or more",
            "Write tegu compare reptile seq2seq, say.",
        )
    plain, metrics = {}, {}
    for name in names:
        one = job(name, data, budget, data_dir, settings)
        one.check()
        source = one.recipe.data
        files = {"files": _state(getattr(source, "path", ""))} if source.changes else {}
        plain[name], metrics[name] = {**one.recipe.plain(), **files}, one.measure.metric
        del one  # which has data of its own
    if len(set(metrics.values())) > 1:
        told = ", ".join(f"{name} by {metric}" for name, metric in metrics.items())
        raise InputError(
            f"learners that are scored differently on {data}: {told}",
            "learners with a metric in common",
            "Compare those that share one.",
        )
    entries: dict[str, dict[str, Any]] = {}
    for number, (name, own) in enumerate(plain.items()):
        kept = kept_entry(
            expanded(folder) / f"{data}-{name}.json",
            own,
            partial(apart, f"{name} on {data}", entry, name, data, budget, data_dir, settings),
            _same,
        )
        entries[name] = kept
        if progress:
            result = kept["curve"][-1][2]
            value = report.shown(result["value"], result["metric"])
            progress(number + 1, len(names), f"{name}: {value}")
    document = report.result_document(
        name=f"compare-{'-'.join(names)}",
        command=command,
        seed=budget.seed,
        training={
            "seconds": budget.seconds * len(names),
            "meta_iterations": sum(e["meta_iterations"] for e in entries.values()),
            "peak_bytes": max(e["peak_bytes"] or 0 for e in entries.values()),
            "commits": commits(list(entries.values())),
        },
        cells=_figures(entries, data, budget) + _timings(entries),
    )
    return {**document, "table": rows(entries, budget)}, entries


def _state(path: str) -> str:
    """A digest of names, sizes and times of the files at a path: another where they changed."""
    place = Path(path)
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    state = [(str(p.relative_to(place)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _same(kept: Any, told: Any) -> bool:
    """Whether two entries are of the same settings, and of the same files where there are some."""
    if not (isinstance(kept, dict) and kept.get("files") == told.get("files")):
        return False
    kept, told = ({k: v for k, v in one.items() if k != "files"} for one in (kept, told))
    return recipes.alike(kept, told)


def _figures(entries: dict[str, dict[str, Any]], data: str, budget: Budget) -> list[dict[str, Any]]:
    """A cell for each point of each curve, and for what a user writes."""
    cells = []
    for name, one in entries.items():
        for seconds, iteration, result in one["curve"]:
            measured = {
                "training_seconds": round(seconds, 2),
                "meta_iterations": iteration,
                "adapt_ms": one["adapt_ms"],
                "peak_bytes": one["peak_bytes"],
                "state_bytes": one["state_bytes"],
            }
            found = report.cell(Result(**result), data=data, learner=name)
            cells.append({**found, "cost": measured})
        lines = [line for line in one["recipe"].splitlines() if line]
        for metric, value in (
            ("lines written", len(lines)),
            ("settings written", sum(" = " in line for line in lines)),
            ("parameters", one["parameters"]),
            ("episodes a second", one["meta_iterations"] * one["meta_batch"] / budget.seconds),
        ):
            plain = Result(metric, float(value), 0.0, 1, "meta_train", "none")
            cells.append(report.cell(plain, data=data, learner=name))
    return cells


def _timings(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The first learner's times against each other's, for each size of a task."""
    first, *others = entries
    cells = []
    for other in others:
        pairs = zip(entries[first]["growth"], entries[other]["growth"], strict=True)
        for ours, rivals in pairs:
            if ours["adapt_ms"] is None or rivals["adapt_ms"] is None:
                continue  # too slow to be timed
            size = f"{ours['support']} and {rivals['support']} support examples"
            if ours["support"] == rivals["support"]:
                size = f"{ours['support']} support examples"
            length = f", answers of {ours['length']} tokens" if ours["length"] else ""
            for work, key in (("learn a task", "adapt_ms"), ("answer a query", "answer_ms")):
                ratio = rivals[key] / ours[key]
                cells.append(
                    {
                        "work": f"{first}: {work}, {size}{length}",
                        "rival": other,
                        "precision": entries[first]["precision"],
                        "ours_ms": ours[key],
                        "rival_ms": rivals[key],
                        "ratio": ratio,
                        "ratio_min": None,
                        "ratio_max": None,
                        "share_of_limit": None,
                    }
                )
    return cells


def rows(entries: dict[str, dict[str, Any]], budget: Budget) -> list[list[str]]:
    """What people read: a row for each question, a column for each learner, a header first."""
    found: list[list[str]] = [["", *entries]]

    def row(title: str, told: Callable[[dict[str, Any]], str]) -> None:
        found.append([title, *(told(one) for one in entries.values())])

    def lines(one: dict[str, Any]) -> list[str]:
        return [line for line in one["recipe"].splitlines() if line]

    def point(one: dict[str, Any], at: int) -> str:
        seconds, _, r = one["curve"][at]
        end = report.shown(r["ci95"], r["metric"])
        value = report.shown(r["value"], r["metric"])
        return f"{value} +- {end} ({seconds:.0f} s, {r['episodes']} tasks)"

    row("lines a user writes", lambda one: str(len(lines(one))))
    row("settings among them", lambda one: str(sum(" = " in line for line in lines(one))))
    row("parameters", lambda one: f"{one['parameters']:,}")
    row("meta-iterations a second", lambda one: f"{one['meta_iterations'] / budget.seconds:.2f}")
    row(
        "episodes a second",
        lambda one: f"{one['meta_iterations'] * one['meta_batch'] / budget.seconds:.1f}",
    )
    metric = next(iter(entries.values()))["curve"][-1][2]["metric"]
    row(f"{metric} at half the time", lambda one: point(one, max(-2, -len(one["curve"]))))
    row(f"{metric} in the end", lambda one: point(one, -1))
    row("learn one task", lambda one: f"{one['adapt_ms']:.1f} ms")
    row("answer one query", lambda one: f"{one['answer_ms']:.1f} ms")
    row("a learned task holds", lambda one: f"{one['state_bytes']:,} bytes")
    some = next(iter(entries.values()))["growth"]
    for number, one in enumerate(some):
        title = f"learn a task of {one['support']} support examples"
        if number >= len(SIZES):
            title = f"learn a task with answers of {one['length']} tokens"
        times = [each["growth"][number]["adapt_ms"] for each in entries.values()]
        shown = ("too slow to time" if ms is None else f"{ms:.1f} ms" for ms in times)
        found.append([title, *shown])
    return found
