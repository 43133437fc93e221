"""Reptile on arrays, by the settings that people turn first.

What `tegu.meta_train` does with a learner, tasks and a data set, for examples and labels that
lie in two arrays and a network of dense layers. Whoever outgrows it finds the same parts in
`learned`, `learner` and `tasks`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tegu.adapted import Adapted, described, fitting
from tegu.arrays import grouped
from tegu.datasets import ClassDataset
from tegu.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tegu.engine.evaluate import Result
from tegu.engine.train import Progress
from tegu.errors import InputError, check_range, unknown
from tegu.learners import Reptile
from tegu.meta import MetaLearned, meta_train
from tegu.models import Mlp
from tegu.sampling import FewShotTasks
from tegu.threads import alone

SHAPING = ("hidden_size", "layers", "n_way")  # settings that the network is built by
SHOTS = 10  # examples of a class in a training task, where classes have so many
QUERIES = 15  # at most, of each class of a test task


@dataclass
class ReptileEstimator:
    """Meta-learns from arrays, and learns tasks of classes that it has never seen.

    Bring inputs to the order of 1 first: one learning rate serves all of them. After `fit`,
    `learning_rate`, `steps`, `n_shot` and `n_way` up to what it was can be set to other values.
    scikit-learn's searches try settings out, where they keep classes apart: pass them
    `cv=GroupKFold(3)`, and `groups=y` to their `fit`.

    Args:
        hidden_size: width of each hidden layer.
        layers: number of hidden layers.
        learning_rate: of a task's steps, which Adam takes.
        n_way: classes of a task, at most.
        n_shot: examples of each class in a test task.
        meta_iterations: outer updates.
        meta_batch: tasks of an outer update.
        steps: gradient steps on a new task.
        seed: of weights, tasks and orders.

    Attributes:
        learned: what `fit` has meta-learned; None before.

    Example:
        >>> noise = torch.Generator().manual_seed(0)
        >>> x = torch.randn(200, 8, generator=noise)  # any array: one row an example
        >>> y = [f"class {i // 10}" for i in range(200)]  # and its label
        >>> one = ReptileEstimator(hidden_size=16, layers=1, meta_iterations=3)
        >>> _ = one.fit(x[:150], y[:150])
        >>> one.evaluate(x[150:], y[150:], episodes=10).episodes  # of classes that `fit` never saw
        10
        >>> task = one.adapt(x[150::10], ["a", "b", "c", "d", "e"])  # one example each
        >>> len(task.predict(x[:3]))
        3

    Reference:
        Nichol, Achiam, Schulman (2018), arXiv:1803.02999; see `tegu.Reptile`.
    """

    hidden_size: int = 64
    layers: int = 2
    learning_rate: float = 1e-3
    n_way: int = 5
    n_shot: int = 1
    meta_iterations: int = 1000
    meta_batch: int = 5
    steps: int = 50
    seed: int = 0
    learned: MetaLearned | None = field(default=None, init=False, repr=False)
    _built: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _seen: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("hidden_size", 1), ("layers", 1), ("n_way", 2), ("n_shot", 1)):
            check_range(name, getattr(self, name), least, whole=True)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by their names, as scikit-learn's tools ask for them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def set_params(self, **settings: Any) -> ReptileEstimator:
        """Changes settings; those that shape the network count from the next `fit` on.

        Raises:
            InputError: there is no such setting, or a value is out of range.
        """
        for name, value in settings.items():
            if name not in self.get_params():
                raise unknown("setting", name, self.get_params())
            setattr(self, name, value)
        self.__post_init__()
        return self

    def learner(self, width: int) -> Reptile:
        """The learner for inputs of so many numbers, as `fit` builds it."""
        hidden = (self.hidden_size,) * self.layers
        return Reptile(
            model=Mlp(width, self.n_way, hidden=hidden, seed=self.seed),
            inner_lr=self.learning_rate,
            eval_steps=self.steps,
        )

    def tasks(self, x: Any, y: Any, *, training: bool) -> FewShotTasks:
        """Episodes from arrays: without queries, and with more shots, where for training."""
        data = grouped(x, y, split="meta_train" if training else "meta_test")
        if data.examples.shape[1:] == ():
            raise InputError(
                f"x has shape {(len(data.examples),)}", "a row for each label", "Pass x[:, None]."
            )
        if training:
            shots, counts = _shots(data, self.n_way), data.counts.tolist()
            if few := [i for i, count in enumerate(counts) if count < shots]:
                warnings.warn(
                    f"{len(few)} of {data.n_classes} classes have fewer than {shots} examples and "
                    f"are left out: {', '.join(data.class_names[i] for i in few[:3])}",
                    stacklevel=3,
                )
                data = data.take([i for i, count in enumerate(counts) if count >= shots])
            return FewShotTasks(data, self.n_way, shots, 0, self.seed)
        queries = max(1, min(QUERIES, int(data.counts.min()) - self.n_shot))
        return FewShotTasks(data, self.n_way, self.n_shot, queries, self.seed)

    def fit(
        self, x: Any, y: Any, *, progress: Callable[[Progress], None] | None = None
    ) -> ReptileEstimator:
        """Phase 1, meta-learning: what the classes of many tasks share.

        Args:
            x: shape (M, ...), examples of many classes; flattened.
            y: M labels of any hashable kind.
            progress: told how it goes.

        Raises:
            InputError: numbers of examples and labels differ, a number is NaN or infinite,
                or there are fewer classes than `n_way`.

        Warns:
            UserWarning: up to one class in ten is left out, as it has fewer examples than
                tasks would otherwise have.
        """
        tasks = self.tasks(x, y, training=True)
        built = {name: int(getattr(self, name)) for name in SHAPING}
        self.learned = meta_train(
            self.learner(_width(tasks.data)),
            tasks,
            meta_iterations=self.meta_iterations,
            meta_batch=self.meta_batch,
            seed=self.seed,
            progress=progress,
        )
        self._built, self._seen = built, frozenset(tasks.data.class_names)
        return self

    def evaluate(self, x: Any, y: Any, *, episodes: int = 600) -> Result:
        """Accuracy, with its interval, over tasks of classes that `fit` has not seen.

        Args:
            x: shape (M, ...).
            y: M labels; each class needs `n_shot` + 1 examples.
            episodes: tasks to draw.

        Warns:
            UserWarning: `fit` has seen classes of these names; not told after `load`.
        """
        tasks = self.tasks(x, y, training=False)
        learned = self.fitted(tasks.data.examples.shape)
        if both := sorted(self._seen.intersection(tasks.data.class_names)):
            warnings.warn(
                f"{len(both)} of {tasks.data.n_classes} classes have names that fit has seen, "
                f"{both[0]!r} say: if they are the same, accuracy on new ones will be lower. Keep "
                "classes apart, with sklearn.model_selection.GroupKFold and groups=y for example.",
                stacklevel=2,
            )
        (result,) = learned.evaluate(tasks, episodes=episodes)
        return result

    def score(self, x: Any, y: Any) -> float:
        """The accuracy of `evaluate`, by which scikit-learn's tools choose among settings."""
        return self.evaluate(x, y).value

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools ask of an estimator: this one is none of its classifiers."""
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=True))

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` was called, as scikit-learn's pipelines ask."""
        return self.learned is not None

    def adapt(self, x: Any, y: Any) -> Adapted:
        """Phase 2, task learning: a new task from its examples and labels; call its `predict`."""
        return self.fitted().adapt(x, y, seed=self.seed)

    def features(self, x: Any) -> Tensor:
        """The representation that all tasks share: (M, ...) to (M, hidden_size)."""
        return self.fitted().features(x)

    def fitted(self, shape: tuple[int, ...] = ()) -> MetaLearned:
        """What was meta-learned.

        Raises:
            InputError: nothing yet, or inputs of another shape (M, ...).
        """
        if self.learned is None:
            raise InputError("an estimator before fit", "one that has learned", "Call fit first.")
        width = next(iter(self.learned.learner.model.parameters())).shape[1]
        if shape and _numbers(shape) != width:
            raise InputError(
                f"x has shape {tuple(shape)}",
                f"rows of {width} numbers, as in fit",
                "Reshape x.",
            )
        now: Any = {"inner_lr": self.learning_rate, "eval_steps": self.steps}
        with alone(self.learned.learner.model):
            return MetaLearned(replace(self.learned.learner, **now), self.learned.params)

    def save(self, path: str | Path) -> None:
        """Writes settings and what was meta-learned to one file, whole or not at all."""
        learned = self.fitted()
        width = next(iter(learned.learner.model.parameters())).shape[1]
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
        told = json.dumps({"estimator": plain, "built": self._built, "width": width})
        save_checkpoint(Path(path), Checkpoint(learned.params, {}, 0, self.seed, told, {}))

    @classmethod
    def load(cls, path: str | Path) -> ReptileEstimator:
        """Reads a file of `save`."""
        saved = load_checkpoint(Path(path))
        with described(path, "estimator", "ReptileEstimator.save"):
            told = json.loads(saved.recipe)
            one = cls(**told["estimator"])
            built = dict(told.get("built", {}))  # earlier versions had what the settings say
            one._built = {name: int(built.get(name, getattr(one, name))) for name in SHAPING}
            whole = cls(**{**told["estimator"], **one._built})
            learner = whole.learner(int(told["width"]))
        one.learned = MetaLearned(learner, fitting(saved.params, learner, where=path))
        return one


def _shots(data: ClassDataset, n_way: int) -> int:
    """Examples of a class in a training task: as many, `SHOTS` at most, as nine in ten have."""
    spared = max(0, min(data.n_classes // 10, data.n_classes - n_way))
    return min(SHOTS, int(data.counts.sort().values[spared]))


def _numbers(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape[1:]).numel())


def _width(data: ClassDataset) -> int:
    return _numbers(tuple(data.examples.shape))
