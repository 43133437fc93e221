"""From a recipe to the objects that it names: data, model, learner, engine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tegu import recipes
from tegu.datasets import ClassDataset
from tegu.engine.compiled import can_compile
from tegu.engine.distribute import ALONE, Ranks
from tegu.engine.evaluate import Result, evaluate
from tegu.engine.run import Run
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.errors import InputError, unknown
from tegu.files import expanded
from tegu.inner import Params
from tegu.learners import LEARNERS, Learner
from tegu.losses import MEASURES, Measure
from tegu.networks import NETWORKS
from tegu.recipes import Cell, Recipe
from tegu.sampling import ClassBatches, Tasks
from tegu.sources import SOURCES, Wanted

WORTH_COMPILING = 5_000  # meta-iterations; compiling takes half a minute
WORTH_COMPILING_GRADIENT = 2_000  # of an outer gradient, which takes longer
LENGTHS = ("train.meta_iterations", "train.seconds")  # settings of how long a run goes on


@dataclass(frozen=True)
class Job:
    """A recipe brought to life.

    Args:
        recipe: every setting.
        data_dir: a folder of data sets to look in first.
        ranks: the processes that share its work; each makes the same job.
        n_classes: of a training that is over, for a learner that is pre-trained on all of
            them; 0 for those that the data have.
    """

    recipe: Recipe
    data_dir: Path | None = None
    ranks: Ranks = ALONE
    n_classes: int = 0

    def __post_init__(self) -> None:
        self._check_pair()
        if self.data_dir is not None:
            folder = expanded(self.data_dir)
            if not folder.is_dir():
                raise InputError(
                    f"no folder {folder}", "a folder with data sets", "Check --data-dir."
                )
            object.__setattr__(self, "data_dir", folder)
        self.ranks.place(self.recipe.engine.device)
        try:
            # "meta" holds no numbers, and "mps" none of 64 bits.
            torch.zeros(1, device=self.recipe.engine.device, dtype=torch.float64).item()
        except (RuntimeError, AssertionError, TypeError) as failure:
            raise InputError(
                f"engine.device is '{self.recipe.engine.device}'",
                "a device that this machine has, and that holds float64",
                "Write cpu, or cuda where there is a GPU.",
            ) from failure
        if self.recipe.engine.compile not in ("auto", "on", "off"):
            raise unknown(
                "value of engine.compile", self.recipe.engine.compile, ["auto", "on", "off"]
            )
        on_gpu = self.recipe.engine.device != "cpu" and self.targets == "classes"
        if self.recipe.engine.workers and on_gpu:
            raise InputError(
                f"engine.workers is {self.recipe.engine.workers}, but tasks of "
                f"{self.recipe.data.name} are drawn on the GPU",
                "0, or data whose tasks are drawn on a processor",
                "Leave engine.workers out.",
            )
        if self.recipe.engine.threads > 0:
            torch.set_num_threads(self.recipe.engine.threads)

    def _check_pair(self) -> None:
        """A learner of such targets, and a network for such inputs."""
        name, source, model = self.recipe.learner["name"], self.recipe.data, self.recipe.model
        if source.targets not in LEARNERS[name].targets:
            learns = LEARNERS[name].targets
            able = [other for other, cls in LEARNERS.items() if source.targets in cls.targets]
            fits = [other for other, cls in SOURCES.items() if cls.targets in learns]
            raise InputError(
                f"{name} on {source.name}, whose targets are {source.targets}",
                f"{' or '.join(learns)}, which it learns",
                f"Take {name} on {_some(fits)}, or {_some(able)} on {source.name}.",
            )
        wanted, kind = LEARNERS[name].network, source.inputs().kind
        if model.reads_sets != bool(wanted) or (wanted and model.name != wanted["name"]):
            single = [n for n, one in NETWORKS.items() if not one.reads_sets and kind in one.takes]
            raise InputError(
                f"the model {model.name} with the learner {name}",
                f"the model {wanted['name']}" if wanted else "a model that reads single inputs",
                f"Write model.name={wanted['name'] if wanted else _some(single)}.",
            )
        if kind not in model.takes:
            able = [other for other, cls in NETWORKS.items() if kind in cls.takes]
            raise InputError(
                f"the model {model.name} on {source.name}, whose inputs are {kind}",
                f"a model that takes {kind}",
                f"Write model.name={_some(able)}.",
            )

    @property
    def targets(self) -> str:
        """What a task's targets are: "classes", "numbers", "sequences" or "samples"."""
        return self.recipe.data.targets

    @property
    def validation(self) -> str:
        """The split that the progress figure comes from."""
        return self.recipe.data.validated()

    def check(self) -> None:
        """Builds all that training and evaluation need, so that nothing wrong shows later.

        Raises:
            InputError: a setting that one of them refuses.
        """
        train, scored = self.recipe.train, self.recipe.evaluate
        learner, _ = self.learner, self.settings
        self.ranks.check(learner, train.meta_batch)
        self.engine(learner, steps=0)
        if learner.uses_queries() and not train.n_query and self.targets == "classes":
            raise InputError(
                f"train.n_query is 0 with the learner {learner.name}",
                "queries, which it meta-learns from",
                "Write train.n_query=5, say.",
            )
        self.training_tasks()
        wanted = [(scored.split, c.n_way, c.n_shot, c.n_query) for c in scored.cells]
        if train.validate_every:
            first = scored.cells[0]
            wanted.append((self.validation, first.n_way, first.n_shot, first.n_query))
        for split, n_way, n_shot, n_query in dict.fromkeys(wanted):
            self.tasks(split, n_way=n_way, n_shot=n_shot, n_query=n_query, seed=0)
        for cell in scored.cells:
            self.judge(cell, learner)

    def data(self, split: str) -> ClassDataset:
        """One split of the recipe's classes, on the recipe's device."""
        if split not in self._splits:
            self._splits[split] = self._load(split)
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, ClassDataset]:
        return {}

    def _load(self, split: str) -> ClassDataset:
        found = self.recipe.data.load(split, self.data_dir)
        # With its number, since a thread that reads ahead has a current device of its own.
        return found.to(torch.zeros(1, device=self.recipe.engine.device).device)

    def tasks(
        self,
        split: str,
        *,
        n_shot: int,
        n_query: int,
        seed: int,
        n_way: int = 0,
        training: bool = False,
    ) -> Tasks:
        """Episodes of a split; n_way 0 is that of training."""
        classes = self.targets == "classes"
        # Only episodes of classes can go without queries.
        n_query = n_query if classes else max(n_query, 1)
        wanted = Wanted(
            split, n_way or self.recipe.train.n_way, n_shot, n_query, seed, training=training
        )
        return self.recipe.data.tasks(wanted, self.data(split) if classes else None)

    def judge(self, cell: Cell, learner: Learner | None = None) -> Learner:
        """The learner as a figure wants it: its ways, its normalisation, its mini-batches.

        Raises:
            InputError: it cannot answer for so many classes, or so normalised.
        """
        train, chosen = self.recipe.train, learner or self.learner
        n_way = cell.n_way or train.n_way
        other: Any = chosen.for_ways(n_way)
        if n_way != train.n_way and other is chosen:
            raise InputError(
                f"a figure for {n_way} ways from {chosen.name} trained for {train.n_way}",
                "the same number, since its network has one output for each class",
                f"Set train.n_way={n_way}, or take a learner by metric, protonet say.",
            )
        if cell.eval_batch:
            if "eval_batch" not in {f.name for f in fields(other)}:
                raise InputError(
                    f"a figure with eval_batch {cell.eval_batch} from {chosen.name}",
                    "a learner that learns tasks by mini-batches",
                    "Leave eval_batch out.",
                )
            other = replace(other, eval_batch=cell.eval_batch)
        if other.tracks and cell.normalisation == "running" != other.normalisation:
            raise InputError(
                f"a figure with running statistics from a run with {other.normalisation}",
                "learner.normalisation=running, so that they are learned",
                "Change one of the two.",
            )
        out: Learner = replace(other, normalisation=cell.normalisation)
        return out

    def training_tasks(self) -> Tasks:
        """What is meta-learned from: episodes, or batches of all training classes.

        These are the only examples that are augmented.
        """
        train = self.recipe.train
        if LEARNERS[self.recipe.learner["name"]].pretrains:
            data, augment = self.data("meta_train"), self.recipe.data.varied()
            return ClassBatches(data, train.batch, train.seed, augment=augment)
        return self.tasks(
            "meta_train",
            n_shot=train.n_shot,
            n_query=train.n_query,
            seed=train.seed,
            training=True,
        )

    def _model(self) -> torch.nn.Module:
        inputs, cls = self.recipe.data.inputs(), LEARNERS[self.recipe.learner["name"]]
        outputs = 0 if cls.headless else inputs.outputs or self.recipe.train.n_way
        if extra := cls.extra_inputs(self.recipe.learner):
            inputs = inputs.wider(extra)
        return self.recipe.model.build(inputs, outputs, seed=self.recipe.train.seed)

    @cached_property
    def learner(self) -> Learner:
        """The algorithm around its model."""
        chosen: dict[str, Any] = dict(self.recipe.learner)
        cls = LEARNERS[chosen.pop("name")]
        train = self.recipe.train
        own = {f.name for f in fields(cls)}
        numbers = self.recipe.data.inputs().outputs if self.targets == "numbers" else 0
        told = {"n_way": train.n_way, "seed": train.seed, "numbers": numbers}
        chosen |= {name: value for name, value in told.items() if name in own}
        if cls.pretrains:
            chosen["n_classes"] = self.n_classes or self.data("meta_train").n_classes
        return cls(
            model=self._model().to(self.recipe.engine.device), loss=self.measure.loss, **chosen
        )

    def engine(self, learner: Learner, *, steps: int, gradients: int = 0) -> Vectorised:
        """The learner vectorised; compiled where so many steps or outer gradients repay it."""
        settings = self.recipe.engine
        worth = steps >= 5 * WORTH_COMPILING or gradients >= WORTH_COMPILING_GRADIENT
        compiled = settings.compile == "on" or (
            settings.compile == "auto" and worth and can_compile()
        )
        return Vectorised(
            learner,
            vectorise=settings.vectorise,
            compile=compiled,
            precision=settings.precision,
            cuda_graphs=settings.cuda_graphs,
            checkpoint=settings.checkpoint,
            at_once=settings.at_once,
            outer_optimiser=self.recipe.train.outer_optimiser,
            weight_decay=self.recipe.train.weight_decay,
        )

    @cached_property
    def training_engine(self) -> Vectorised:
        """The learner vectorised for the whole of meta-training."""
        learner, iterations = self.learner, self.recipe.train.meta_iterations
        by_rule = learner.outer_update is not None
        return self.engine(
            learner,
            steps=iterations * learner.steps(training=True) if by_rule else 0,
            gradients=0 if by_rule else iterations,
        )

    @property
    def settings(self) -> Settings:
        """How long and how fast to meta-learn."""
        train = self.recipe.train
        return Settings(
            meta_iterations=train.meta_iterations,
            meta_batch=train.meta_batch,
            outer_lr=train.outer_lr,
            outer_lr_final=train.outer_lr_final,
            outer_schedule=train.outer_schedule,
            seed=train.seed,
            seconds=train.seconds,
            validate_every=train.validate_every,
            checkpoint_seconds=train.checkpoint_seconds,
            workers=self.recipe.engine.workers,
        )

    def train(
        self,
        folder: str | Path | None,
        *,
        resume: bool = False,
        lengths: tuple[str, ...] = (),
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Params, Progress]:
        """Meta-learning, into a run folder.

        Args:
            folder: of the run; None keeps nothing.
            resume: go on from its checkpoint.
            lengths: settings that may have changed since, as `Run` takes them.
            progress: told how it goes.
        """
        train = self.recipe.train
        classes = self._changing_classes("meta_train") if folder else None
        known = self.recipe.plain(), self.ranks.job, recipes.alike, classes
        return meta_train(
            self.training_engine,
            self.training_tasks(),
            self.settings,
            run=Run(Path(folder), *known, lengths=lengths) if folder else None,
            resume=resume,
            validate=self._validate if train.validate_every else None,
            progress=progress,
            ranks=self.ranks,
        )

    def _changing_classes(self, split: str) -> dict[str, int] | None:
        """Classes of a split and their sizes, where a user may change them."""
        if not self.recipe.data.changes:
            return None
        data = self.data(split)
        return dict(zip(data.class_names, data.counts.tolist(), strict=True))

    def check_unseen(self, trained_on: Collection[str]) -> None:
        """Refuses to score classes that a run was trained on as if they were new to it.

        Args:
            trained_on: their names.

        Raises:
            InputError: the split that is scored has one of them.
        """
        split = self.recipe.evaluate.split
        if split == "meta_train" or not self.recipe.data.changes:
            return
        if both := sorted(set(self.data(split).class_names) & set(trained_on)):
            raise InputError(
                f"{len(both)} of the classes of {split} that the run was trained on: "
                f"{', '.join(both[:3])}",
                "classes that it has not seen: the data have changed since",
                "Put the data back as they were, train another run, or name other data with "
                "--set data.path=FOLDER.",
            )

    def _validate(self, params: Params) -> float:
        train, measure = self.recipe.train, self.measure
        (result,) = evaluate(
            self._validation_engine,
            params,
            self._validation_tasks,
            episodes=train.validate_episodes,
            at_once=self.recipe.evaluate.at_once,
            score=measure.score,
            metric=measure.metric,
            ranks=self.ranks,
        )
        return result.value

    @cached_property
    def _validation_engine(self) -> Vectorised:
        return Vectorised(
            self.judge(self.recipe.evaluate.cells[0]),
            vectorise=self.recipe.engine.vectorise,
            cuda_graphs=self.recipe.engine.cuda_graphs,
        )

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
    def measure(self) -> Measure:
        """How answers are judged: the learner's own way, or that of the targets."""
        own = LEARNERS[self.recipe.learner["name"]].measure
        return MEASURES[own or self.targets]

    def evaluate(
        self,
        params: Params,
        *,
        learner: Learner | None = None,
        seconds: float = float("inf"),
        progress: Callable[[int, int, float], None] | None = None,
    ) -> list[tuple[Cell, Result]]:
        """Every cell of the recipe; cells that differ only in normalisation share their tasks.

        Args:
            params: what was meta-learned.
            learner: in place of the recipe's.
            seconds: end each group of cells that share their tasks after so much time.
            progress: told tasks done, tasks in all, and the mean so far.
        """
        settings = self.recipe.evaluate
        measure = self.measure
        results: dict[Cell, Result] = {}
        groups: dict[Cell, list[Cell]] = {}
        for cell in settings.cells:
            groups.setdefault(alike(cell), []).append(cell)
        total = len(groups) * settings.episodes
        for number, cells in enumerate(groups.values()):
            cell = cells[0]
            chosen = self.judge(cell, learner)
            steps = settings.episodes // settings.at_once * chosen.steps(training=False)
            engine = self.engine(chosen, steps=10 * steps)
            tasks = self.tasks(
                settings.split,
                n_way=cell.n_way,
                n_shot=cell.n_shot,
                n_query=cell.n_query,
                seed=settings.seed,
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
                seconds=seconds,
                seed=settings.seed,
                score=measure.score,
                metric=measure.metric,
                normalisations=[cell.normalisation for cell in cells],
                progress=partial(told),
                ranks=self.ranks,
            )
            results.update(zip(cells, found, strict=True))
        return [(cell, results[cell]) for cell in settings.cells]


def _some(names: list[str]) -> str:
    """The first few of some names."""
    return " or ".join(names[:3])


def alike(cell: Cell) -> Cell:
    """What figures from the same tasks and adapted states have in common."""
    return replace(cell, normalisation="", published=-1.0, source="")
