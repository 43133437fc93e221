"""Why a model, a loss and tasks of one's own do not fit together, told once something failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tegu.engine.evaluate import Score
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError, InputTypeError
from tegu.learners.learner import Learner
from tegu.losses import cross_entropy, token_cross_entropy

FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
LOOKED_AT = 64  # episodes
FORM = (
    "tegu.Episode(support, query) of tegu.Examples(x, y, mask): x (T, S, ...), y (T, S) int64 or "
    "(T, S, D) floating, mask (T, S) bool, and T = len(index)"
)


def check_kinds(learner: Any, tasks: Any) -> None:
    """Refuses what is no learner, or no source of episodes.

    Raises:
        InputError: it says what to pass.
    """
    for role, value in (("learner", learner), ("tasks", tasks)):
        if isinstance(value, type):
            name = value.__name__
            raise InputTypeError(
                f"the class {name} as {role}", "an object of it", f"Write {name}(...)."
            )
    if not isinstance(learner, Learner):
        raise InputTypeError(
            f"a {type(learner).__name__} as learner",
            "a learner around a model",
            "Write tegu.Reptile(model=YOURS), say.",
        )
    if not callable(getattr(tasks, "episodes", None)):
        raise InputTypeError(
            f"a {type(tasks).__name__} as tasks",
            "an object with a method episodes(index)",
            "Pass tegu.FewShotTasks(data, n_way=5, n_shot=1), say.",
        )


@contextmanager
def explained(learner: Learner, tasks: Any, score: Score | None = None) -> Iterator[None]:
    """Looks for the cause of a failure inside, one part after another, and names it.

    Where all parts do what they should, the failure stays as it is.

    Args:
        learner: the algorithm around a model.
        tasks: a source of episodes.
        score: of outputs and queries, where there is one of the user's own.

    Raises:
        InputError: the first part that does not fit, with the failure as its cause.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except FAILURES as failure:
        if misfit := _misfit(learner, tasks, score):
            raise misfit from failure
        raise


def _misfit(learner: Learner, tasks: Any, score: Score | None) -> InputError | None:
    try:
        drawn = tasks.episodes(torch.arange(LOOKED_AT))
    except FAILURES:
        return None  # their own words say best what is wrong
    if fault := _malformed(drawn):
        return InputTypeError(
            f"episodes of {type(tasks).__name__} with {fault}",
            FORM,
            "tegu.episodes.stack makes a batch of episodes of unequal sizes.",
        )
    if learner.network:
        return None  # its model is no function of inputs alone
    if learner.loss is token_cross_entropy:
        return _unknown_tokens(learner, drawn)
    return _unanswered(learner, drawn, score)


def _malformed(drawn: Any) -> str:
    """What a batch of episodes lacks; "" where nothing."""
    if not isinstance(drawn, Episode):
        return f"a {type(drawn).__name__} in place of tegu.Episode"
    for name, half in zip(Episode._fields, drawn, strict=True):
        if not isinstance(half, Examples):
            return f"a {type(half).__name__} as {name}"
        for part, value in zip(Examples._fields, half, strict=True):
            if not isinstance(value, Tensor):
                return f"a {type(value).__name__} as {name}.{part}"
        if half.mask.ndim != 2 or len(half.mask) != LOOKED_AT:
            return f"{name}.mask of shape {tuple(half.mask.shape)} for {LOOKED_AT} episodes"
        for part, value in (("x", half.x), ("y", half.y)):
            if value.shape[:2] != half.mask.shape:
                return (
                    f"{name}.{part} of shape {tuple(value.shape)} and {name}.mask of "
                    f"{tuple(half.mask.shape)}"
                )
        if half.mask.dtype != torch.bool:
            return f"{name}.mask of {half.mask.dtype}"
        if not half.y.is_floating_point() and half.y.dtype != torch.int64:
            return f"{name}.y of {half.y.dtype}"
        if half.y.is_floating_point() and half.y.ndim < 3:
            return f"{name}.y of numbers of shape {tuple(half.y.shape)}"
    return ""


def _unknown_tokens(learner: Learner, drawn: Episode) -> InputError | None:
    """Sequences that have more kinds of tokens, or are longer, than the model knows."""
    model = learner.model
    kinds = {"x": getattr(model, "n_inputs", None), "y": getattr(model, "n_outputs", None)}
    longest = getattr(model, "longest", None)
    for half in drawn:
        for part, known in kinds.items():
            values = getattr(half, part)
            if known and values.numel() and int(values.max()) >= known:
                setting = "n_inputs" if part == "x" else "n_outputs"
                return InputError(
                    f"token {int(values.max())} in {part} for a model with {setting}={known}",
                    "tokens below it",
                    "Build the model with as many as your Vocabulary has.",
                )
        if longest and half.y.shape[-1] > longest:
            return InputError(
                f"answers of {half.y.shape[-1]} tokens for a model with longest={longest}",
                "no longer ones, their END included",
                "Build the model with a larger `longest`.",
            )
    return None


def _unanswered(learner: Learner, drawn: Episode, score: Score | None) -> InputError | None:
    """A model, a loss or a score that cannot take what it is given."""
    params = learner.init()
    some = next(iter(params.values()))
    support = select(drawn, 0).support
    examples = Examples(support.x.to(some), support.y.to(some.device), support.mask.to(some.device))
    if examples.y.is_floating_point():
        examples = examples._replace(y=examples.y.to(some.dtype))
    model, shape = type(learner.model).__name__, tuple(examples.x.shape)
    with torch.no_grad():
        try:
            outputs: Any = learner.forward(params, examples.x, examples.mask)
        except InputError as failure:
            return failure
        except FAILURES as failure:
            return InputError(
                f"inputs of shape {shape}, which {model} refuses ({_first_line(failure)})",
                "a model for such inputs, or inputs for such a model",
                "Call the model on a tensor of that shape until it answers.",
            )
        if not isinstance(outputs, Tensor):
            return InputTypeError(
                f"a {type(outputs).__name__} as the answer of {model}",
                "one tensor, a row for each input",
                "Wrap it in a module whose forward returns the tensor alone.",
            )
        if learner.headless:
            return None  # it answers with features
        if outputs.ndim < 2 or len(outputs) != len(examples.x):
            return InputError(
                f"an answer of shape {tuple(outputs.shape)} by {model} to inputs of {shape}",
                "a row for each input: (S, outputs)",
                "Look at what its forward does to the first axis.",
            )
        if learner.loss is cross_entropy:
            most = max(int(half.y.max()) for half in drawn if half.y.numel())
            if most >= outputs.shape[-1]:
                return InputError(
                    f"class number {most} for a model with {outputs.shape[-1]} outputs",
                    "numbers from 0 to one less than that",
                    f"Number the classes of each task anew, or build {model} with more outputs.",
                )
        for role, judge in (("loss", learner.loss), ("score", score)):
            if judge and (fault := _misjudged(role, judge, outputs, examples)):
                return fault
    return None


def _misjudged(role: str, judge: Score, outputs: Tensor, examples: Examples) -> InputError | None:
    """A loss or score that fails on examples, or gives something else than a number."""
    name = getattr(judge, "__name__", type(judge).__name__)
    wanted = (
        f"a {role} of (outputs, target): a tensor with a row for each example, and tegu.Examples "
        "with x, y and mask"
    )
    try:
        value: Any = judge(outputs, examples)
    except InputError as failure:
        return failure
    except FAILURES as failure:
        return InputError(
            f"the {role} `{name}`, which fails ({_first_line(failure)})",
            wanted,
            f"Write lambda outputs, target: {name}(outputs, target.y), if no row only pads.",
        )
    if not isinstance(value, Tensor) or value.ndim:
        told = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        return InputError(
            f"{told} from the {role} `{name}`", "a tensor of one number", "Take a mean."
        )
    return None


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
