"""From a recipe to the objects that it names: data, model, learner, engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tegu.datasets import ClassDataset, Sinusoids, load_glyphs, load_omniglot
from tegu.engine.evaluate import Result, evaluate
from tegu.engine.train import Progress, Run, Settings, meta_train
from tegu.engine.vectorise import Vectorised, can_compile
from tegu.errors import InputError, unknown
from tegu.inner import Params
from tegu.learners import LEARNERS, Learner
from tegu.losses import accuracy, cross_entropy, squared_error
from tegu.models import Conv4, Mlp
from tegu.recipes import Cell, Recipe
from tegu.sampling import FewShotTasks, Tasks

WORTH_COMPILING = 5_000  # meta-iterations; compiling takes half a minute
SOURCES = ("glyphs", "omniglot", "sinusoids")
MODELS = ("conv4", "mlp")


@dataclass(frozen=True)
class Job:
    """A recipe brought to life.

    Args:
        recipe: every setting.
        data_dir: a folder of data sets to look in first.
    """

    recipe: Recipe
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.recipe.data.name not in SOURCES:
            raise unknown("data set", self.recipe.data.name, SOURCES)
        if self.recipe.model.name not in MODELS:
            raise unknown("model", self.recipe.model.name, MODELS)
        if self.regression and self.recipe.model.name == "conv4":
            raise InputError(
                "the model conv4 on sinusoids",
                "a model that takes single numbers",
                "Write model.name=mlp, or take glyphs or omniglot.",
            )
        if self.data_dir is not None and not self.data_dir.expanduser().is_dir():
            raise InputError(
                f"no folder {self.data_dir}", "a folder with data sets", "Check --data-dir."
            )
        try:
            torch.zeros(1, device=self.recipe.engine.device).item()  # "meta" holds no numbers
        except (RuntimeError, AssertionError) as failure:
            raise InputError(
                f"engine.device is '{self.recipe.engine.device}'",
                "a device that this machine has",
                "Write cpu, or cuda where there is a GPU.",
            ) from failure
        if self.recipe.engine.compile not in ("auto", "on", "off"):
            raise unknown(
                "value of engine.compile", self.recipe.engine.compile, ["auto", "on", "off"]
            )
        if self.recipe.engine.threads > 0:
            torch.set_num_threads(self.recipe.engine.threads)

    @property
    def regression(self) -> bool:
        """Whether tasks have numbers as targets rather than classes."""
        return self.recipe.data.name == "sinusoids"

    @property
    def validation(self) -> str:
        """The split that the progress figure comes from."""
        data = self.recipe.data
        has_none = data.name == "omniglot" and data.partition in ("reptile", "alphabets")
        return data.validation or ("meta_train" if has_none else "meta_val")

    def check(self) -> None:
        """Builds all that training and evaluation need, so that nothing wrong shows later.

        Raises:
            InputError: a setting that one of them refuses.
        """
        train, scored = self.recipe.train, self.recipe.evaluate
        learner = self.learner
        self.engine(learner, steps=0)
        own_loss = type(learner).outer_loss is not Learner.outer_loss
        if not (train.n_query or self.regression or learner.outer_update or own_loss):
            raise InputError(
                f"train.n_query is 0 with the learner {learner.name}",
                "queries, which it meta-learns from",
                "Write train.n_query=5, say.",
            )
        wanted = [("meta_train", 0, train.n_shot, train.n_query)]
        wanted += [(scored.split, c.n_way, c.n_shot, c.n_query) for c in scored.cells]
        if train.validate_every:
            first = scored.cells[0]
            wanted.append((self.validation, first.n_way, first.n_shot, first.n_query))
        for split, n_way, n_shot, n_query in dict.fromkeys(wanted):
            self.tasks(split, n_way=n_way, n_shot=n_shot, n_query=n_query, seed=0)
        for cell in scored.cells:
            if self.ways(cell) != train.n_way and learner.for_ways(cell.n_way) is learner:
                raise InputError(
                    f"n_way is {cell.n_way} in a cell and {train.n_way} in training with the "
                    f"learner {learner.name}, whose model has an output for each class",
                    "the same number",
                    "Leave the cell's n_way out, or take a learner by metric or closed form.",
                )
            replace(learner, normalisation=cell.normalisation)

    def data(self, split: str) -> ClassDataset:
        """One split of the recipe's classes, on the recipe's device."""
        if split not in self._splits:
            self._splits[split] = self._load(split)
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, ClassDataset]:
        return {}

    def _load(self, split: str) -> ClassDataset:
        settings = self.recipe.data
        if settings.name == "glyphs":
            found = load_glyphs(split)
        else:
            found = load_omniglot(
                split,
                partition=settings.partition,
                data_dir=self.data_dir,
                rotations=settings.rotations and split == "meta_train",
            )
        return found.to(self.recipe.engine.device)

    def ways(self, cell: Cell) -> int:
        """Classes of a task of this cell."""
        return cell.n_way or self.recipe.train.n_way

    def tasks(self, split: str, *, n_shot: int, n_query: int, seed: int, n_way: int = 0) -> Tasks:
        """Episodes of a split, of as many classes as in training where n_way is 0."""
        if self.regression:
            return Sinusoids(split, n_shot=n_shot, n_query=max(n_query, 1), seed=seed)
        n_way = n_way or self.recipe.train.n_way
        return FewShotTasks(self.data(split), n_way, n_shot, n_query, seed)

    @cached_property
    def learner(self) -> Learner:
        """The algorithm around its model."""
        model: torch.nn.Module
        settings, train = self.recipe.model, self.recipe.train
        if settings.name == "conv4":
            model = Conv4(train.n_way, width=settings.width, seed=train.seed)
        else:
            inputs, outputs = (1, 1) if self.regression else (28 * 28, train.n_way)
            model = Mlp(
                inputs,
                outputs,
                hidden=settings.hidden,
                activation=settings.activation,
                seed=train.seed,
            )
        chosen: dict[str, Any] = dict(self.recipe.learner)
        cls = LEARNERS[chosen.pop("name")]
        loss = squared_error if self.regression else cross_entropy
        learner = cls(model=model.to(self.recipe.engine.device), loss=loss, **chosen)
        return learner.for_ways(train.n_way)

    def engine(self, learner: Learner, *, steps: int) -> Vectorised:
        """The learner vectorised; compiled where `steps` inner steps repay it."""
        settings = self.recipe.engine
        compiled = settings.compile == "on" or (
            settings.compile == "auto" and steps >= 5 * WORTH_COMPILING and can_compile()
        )
        return Vectorised(
            learner,
            vectorise=settings.vectorise,
            compile=compiled,
            precision=settings.precision,
        )

    def train(
        self,
        folder: Path | None,
        *,
        resume: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Params, Progress]:
        """Meta-learning, into a run folder."""
        train = self.recipe.train
        settings = Settings(
            meta_iterations=train.meta_iterations,
            meta_batch=train.meta_batch,
            outer_lr=train.outer_lr,
            outer_lr_final=train.outer_lr_final,
            seed=train.seed,
            validate_every=train.validate_every,
            checkpoint_seconds=train.checkpoint_seconds,
        )
        tasks = self.tasks(
            "meta_train", n_shot=train.n_shot, n_query=train.n_query, seed=train.seed
        )
        steps = train.meta_iterations * self.learner.steps(training=True)
        return meta_train(
            self.engine(self.learner, steps=steps),
            tasks,
            settings,
            run=Run(folder, self.recipe.plain()) if folder else None,
            resume=resume,
            validate=self._validate if train.validate_every else None,
            progress=progress,
        )

    def _validate(self, params: Params) -> float:
        cell, train = self.recipe.evaluate.cells[0], self.recipe.train
        tasks = self._validation_tasks
        learner = replace(self.learner, normalisation=cell.normalisation)
        learner = learner.for_ways(self.ways(cell))
        engine = Vectorised(learner, vectorise=self.recipe.engine.vectorise)
        score, metric = self.score
        (result,) = evaluate(
            engine, params, tasks, episodes=train.validate_episodes, score=score, metric=metric
        )
        return result.value

    @cached_property
    def _validation_tasks(self) -> Tasks:
        cell = self.recipe.evaluate.cells[0]
        return self.tasks(
            self.validation,
            n_way=cell.n_way,
            n_shot=cell.n_shot,
            n_query=cell.n_query,
            seed=self.recipe.train.seed + 1,
        )

    @property
    def score(self) -> tuple[Any, str]:
        """How a task is scored, and what the score is called."""
        return (squared_error, "mse") if self.regression else (accuracy, "accuracy")

    def evaluate(
        self,
        params: Params,
        *,
        learner: Learner | None = None,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> list[tuple[Cell, Result]]:
        """Every cell of the recipe; cells that differ only in normalisation share their tasks."""
        settings = self.recipe.evaluate
        score, metric = self.score
        results: dict[Cell, Result] = {}
        groups: dict[tuple[int, int, int, int], list[Cell]] = {}
        for cell in settings.cells:
            kind = (self.ways(cell), cell.n_shot, cell.n_query, cell.eval_batch)
            groups.setdefault(kind, []).append(cell)
        total = len(groups) * settings.episodes
        for number, ((n_way, n_shot, n_query, batch), cells) in enumerate(groups.items()):
            chosen: Any = (learner or self.learner).for_ways(n_way)
            if batch:
                chosen = replace(chosen, eval_batch=batch)
            steps = settings.episodes // settings.at_once * chosen.steps(training=False)
            engine = self.engine(chosen, steps=10 * steps)
            tasks = self.tasks(
                settings.split, n_way=n_way, n_shot=n_shot, n_query=n_query, seed=settings.seed
            )

            def told(done: int, mean: float, before: int = number * settings.episodes) -> None:
                if progress:
                    progress(before + done, total, mean)

            found = evaluate(
                engine,
                params,
                tasks,
                episodes=settings.episodes,
                at_once=settings.at_once,
                seed=settings.seed,
                score=score,
                metric=metric,
                normalisations=[cell.normalisation for cell in cells],
                progress=partial(told),
            )
            results.update(zip(cells, found, strict=True))
        return [(cell, results[cell]) for cell in settings.cells]
