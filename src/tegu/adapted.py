"""Tasks that were learned: they answer queries, and can be kept in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu.arrays import ANYTHING, Signature, read_inputs, taken
from tegu.datasets import tokens
from tegu.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.learner import Learner, State, check_fixed
from tegu.losses import gaussian, moments, token_cross_entropy
from tegu.threads import alone


@dataclass(frozen=True, eq=False)
class Adapted:
    """A task that was learned: answers queries, with the caller's own labels.

    Args:
        learner: the algorithm with its model and settings.
        params: what was meta-learned.
        state: what the task's examples have made of it.
        labels: of the task's classes, in the order of scores; none where there are no classes.
        n_targets: D, where targets are numbers.
        signature: of its examples.
    """

    learner: Learner
    params: Params = field(repr=False)
    state: State = field(repr=False)
    labels: tuple[Hashable, ...]
    n_targets: int = 0
    signature: Signature = ANYTHING

    def outputs(self, x: Any) -> Tensor:
        """Scores (Q, classes), or for numbers and sequences what the learner's loss takes."""
        some = next(iter(self.params.values()))
        if self.learner.loss is token_cross_entropy:
            kinds = getattr(self.learner.model, "n_inputs", 0)
            inputs = tokens.rows(x, "x", kinds=kinds).to(some.device)
        else:
            inputs = read_inputs(x, "x", some.dtype).to(some)
            self.signature.check(Signature.of(x, inputs))
        mask = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
        with alone(self.learner.model), torch.no_grad(), taken(inputs):
            out = self.learner.predict(self.params, self.state, inputs, mask)
        return out[:, : len(self.labels)] if self.labels else out

    def predict(self, x: Any) -> Any:
        """Labels of queries as a list, predictions (Q, D) of numbers, or rows of tokens."""
        out = self.outputs(x)
        if self.learner.loss is token_cross_entropy:
            return [tokens.spoken(row) for row in out.argmax(-1).tolist()]
        if self.labels:
            return [self.labels[i] for i in out.argmax(-1).tolist()]
        return moments(out, self.n_targets)[0] if self.learner.loss is gaussian else out

    def predict_distribution(self, x: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (Q, D) of each query's target.

        Raises:
            InputError: the learner's loss is not `tegu.losses.gaussian`.
        """
        if self.learner.loss is not gaussian:
            raise InputError(
                f"a distribution from {type(self.learner).__name__} with another loss",
                "a learner whose loss is tegu.losses.gaussian",
                "Meta-train with that loss, or take a neural process: cnp, np, anp or tnp.",
            )
        return moments(self.outputs(x), self.n_targets)

    def predict_proba(self, x: Any) -> Tensor:
        """Probabilities (Q, classes) in the order of `labels`; rows sum to 1.

        Raises:
            InputError: the task is not one of classes.
        """
        if not self.labels:
            raise InputError(
                f"probabilities from {type(self.learner).__name__} on a task without classes",
                "a task of classes",
                "Call predict, or predict_distribution.",
            )
        return self.outputs(x).softmax(-1)

    def save(self, path: str | Path) -> None:
        """Writes the learned task to one file that answers by itself, whole or not at all.

        Frozen parameters and buffers stay with the model; the file has digests of them.

        Raises:
            InputError: a label is neither text nor number, or the disk has no room.
        """
        for label in self.labels:
            if not isinstance(label, (str, int, float)) and label is not None:
                raise InputError(
                    f"the label {label!r}, a {type(label).__name__}, in a file",
                    "labels of text or numbers",
                    "Adapt with names for them.",
                )
        tensors: Params = {}
        told = {
            "task": _numbered(self.state, tensors),
            "labels": self.labels,
            "n_targets": self.n_targets,
            "learner": self.learner.name,
            "signature": self.signature,
        }
        notes = {"fixed": self.learner.fixed()}
        saved = Checkpoint(self.params, tensors, 0, 0, json.dumps(told), notes)
        save_checkpoint(Path(path), saved)

    @classmethod
    def load(cls, path: str | Path, learner: Learner) -> Adapted:
        """Reads a file of `save`, for a learner built as the one that wrote it."""
        saved = load_checkpoint(Path(path))
        params = fitting(saved.params, learner, where=path, fixed=saved.notes.get("fixed"))
        device = next(iter(params.values())).device
        with described(path, "learned task", "Adapted.save"):
            told = json.loads(saved.recipe)
            state = _filled(told["task"], {k: v.to(device) for k, v in saved.outer.items()})
            labels, n_targets = tuple(told["labels"]), int(told["n_targets"])
            shape, numbers = told.get("signature", ((), ""))
            signature = Signature(tuple(int(n) for n in shape), str(numbers))
            made_by = told.get("learner", learner.name)  # earlier versions did not tell
        if made_by != learner.name:
            raise InputError(
                f"{path} holds a task of {made_by}, for {learner.name}",
                "the learner that it was learnt by",
                "Build that one, or learn the task again.",
            )
        with alone(learner.model):
            own = learner.for_ways(len(labels)) if labels else learner
        return cls(own, params, state, labels, n_targets, signature)


def fitting(params: Params, learner: Learner, *, where: str | Path, fixed: Any = None) -> Params:
    """What was meta-learned, if it is the learner's.

    Args:
        params: read from a file.
        learner: built as it was when the file was written.
        where: the file.
        fixed: the file's note of `Learner.fixed`; earlier versions made none.

    Raises:
        InputError: names or shapes of parameters differ from the learner's, or the model's
            frozen parameters and buffers from those that it had.
    """
    with alone(learner.model):
        expected, now = learner.init(), learner.fixed()
    if {k: v.shape for k, v in params.items()} != {k: v.shape for k, v in expected.items()}:
        raise InputError(
            f"{where} holds other parameters than this learner has",
            f"{len(expected)} tensors of the learner's own names and shapes",
            "Build the learner and its model with the settings they were trained with.",
        )
    check_fixed(fixed, now, where=where)
    return {name: value.to(expected[name].device) for name, value in params.items()}


@contextmanager
def described(path: str | Path, what: str, made_by: str) -> Iterator[None]:
    """Refuses a file whose description is not of what it was taken for."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as failure:
        raise InputError(
            f"{path} holds no {what}",
            f"a file of {made_by}",
            "Read it with the load of what saved it: MetaLearned, Adapted or ReptileEstimator.",
        ) from failure


def _numbered(tree: Any, tensors: Params) -> Any:
    """Nested dicts and tuples with numbers in place of their tensors, which `tensors` takes."""
    if isinstance(tree, Tensor):
        tensors[str(len(tensors))] = tree
        return len(tensors) - 1
    if isinstance(tree, dict):
        return {name: _numbered(value, tensors) for name, value in tree.items()}
    return [_numbered(value, tensors) for value in tree]


def _filled(tree: Any, tensors: Params) -> Any:
    """What `_numbered` was given."""
    if isinstance(tree, int):
        return tensors[str(tree)]
    if isinstance(tree, dict):
        return {name: _filled(value, tensors) for name, value in tree.items()}
    return tuple(_filled(value, tensors) for value in tree)
