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
from tegu.sampling import Tasks

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
    lacking = [name for name in ("episodes", "split") if not hasattr(tasks, name)]
    if lacking:
        raise InputTypeError(
            f"a {type(tasks).__name__} without {lacking[0]} as tasks",
            "an object with a method episodes(index), and the name of its `split`",
            "Pass tegu.FewShotTasks(data, n_way=5, n_shot=1), say.",
        )


@contextmanager
def explained(
    learner: Learner, tasks: Tasks, *, at_once: int, score: Score | None = None
) -> Iterator[None]:
    """Looks for the cause of a failure inside, one part after another, and names it.

    Where all parts do what they should, or the cause cannot be found, the failure stays as it is.

    Args:
        learner: the algorithm around a model.
        tasks: a source of episodes.
        at_once: episodes to look at, as many as are drawn anyway.
        score: of outputs and queries, where there is one of the user's own.

    Raises:
        InputError: the first part that does not fit, with the failure as its cause.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as failure:
        try:
            misfit = _misfit(learner, tasks, at_once, score)
        except Exception:
            misfit = None
        if misfit:
            raise misfit from failure
        raise


def _misfit(learner: Learner, tasks: Tasks, at_once: int, score: Score | None) -> InputError | None:
    drawn = tasks.episodes(torch.arange(at_once))
    # Else its model is no function of inputs alone.
    plain = not learner.network and not set(learner.targets) <= {"pairs", "samples"}
    tokens = learner.loss is token_cross_entropy
    if odd := _malformed(drawn, at_once) or (_mistyped(drawn, tokens) if plain else ""):
        return InputTypeError(
            f"episodes of {type(tasks).__name__} with {odd}",
            FORM,
            "tegu.episodes.stack makes a batch of episodes of unequal sizes.",
        )
    if not plain:
        return None
    if tokens:
        return _unknown_tokens(learner, drawn)
    some, n_way = next(iter(learner.init().values())), getattr(tasks, "n_way", 0)
    one = select(drawn, 0)
    for half, judges in ((one.support, {"loss": learner.loss}), (one.query, {"score": score})):
        examples = Examples(*(field[half.mask].to(some.device) for field in half))
        if not len(examples.x):
            continue
        numbers = some.dtype if examples.y.is_floating_point() else None
        examples = examples._replace(
            x=examples.x.to(some.dtype), y=examples.y.to(some.device, numbers)
        )
        with torch.no_grad():
            outputs = _answered(learner, examples)
            if isinstance(outputs, InputError):
                return outputs
            if fault := _misnumbered(learner, outputs, drawn):
                return fault
            for role, judge in judges.items():
                told = outputs[..., :n_way] if role == "score" and n_way else outputs
                if judge and (fault := _misjudged(role, judge, told, examples)):
                    return fault
    return None


def _malformed(drawn: Any, count: int) -> str:
    """What a batch of so many episodes lacks; "" where nothing."""
    if not isinstance(drawn, Episode):
        return f"a {type(drawn).__name__} in place of tegu.Episode"
    for name, half in zip(Episode._fields, drawn, strict=True):
        if not isinstance(half, Examples):
            return f"a {type(half).__name__} as {name}"
        for part, value in zip(Examples._fields, half, strict=True):
            if not isinstance(value, Tensor):
                return f"a {type(value).__name__} as {name}.{part}"
        if half.mask.ndim != 2 or len(half.mask) != count:
            return f"{name}.mask of shape {tuple(half.mask.shape)} for {count} episodes"
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


def _mistyped(drawn: Episode, tokens: bool) -> str:
    """Inputs that are numbers where they should be tokens, or the other way round."""
    wrong = (n for n, half in drawn._asdict().items() if half.x.is_floating_point() == tokens)
    name = next(wrong, "")
    return f"{name}.x of {getattr(drawn, name).x.dtype}" + ", no tokens" * tokens if name else ""


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


def _answered(learner: Learner, examples: Examples) -> Tensor | InputError:
    """Outputs for one task's examples, (S, outputs); or why there are none.

    A learner whose model ends in features makes the outputs itself: zeros in their place.
    """
    model, shape = type(learner.model).__name__, tuple(examples.x.shape)
    try:
        call = learner.features if learner.headless else learner.forward
        outputs: Any = call(learner.init(), examples.x, examples.mask)
    except InputError as failure:
        return failure
    except Exception as failure:
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
    if outputs.ndim < 2 or len(outputs) != len(examples.x):
        return InputError(
            f"an answer of shape {tuple(outputs.shape)} by {model} to inputs of {shape}",
            "a row for each input: (S, outputs)",
            "Look at what its forward does to the first axis.",
        )
    if not learner.headless:
        return outputs
    numbers = examples.y.is_floating_point()
    width = examples.y.shape[-1] if numbers else 1 + int(examples.y.max())
    return outputs.new_zeros(len(outputs), width)


def _misnumbered(learner: Learner, outputs: Tensor, drawn: Episode) -> InputError | None:
    """Classes beyond the model's outputs."""
    if learner.loss is not cross_entropy or learner.headless:
        return None
    most = max(int(half.y[half.mask].max()) for half in drawn if half.mask.any())
    if most < outputs.shape[-1]:
        return None
    return InputError(
        f"class number {most} for a model with {outputs.shape[-1]} outputs",
        "numbers from 0 to one less than that",
        "Number the classes of each task anew, or build the model with more outputs.",
    )


def _misjudged(role: str, judge: Score, outputs: Tensor, examples: Examples) -> InputError | None:
    """A loss or score that fails on examples, or gives something else than a number."""
    name = getattr(judge, "__name__", type(judge).__name__)
    if isinstance(judge, type):
        return InputTypeError(f"the class {name} as {role}", "a function", f"Write {name}().")
    try:
        value: Any = judge(outputs, examples)
    except InputError as failure:
        return failure
    except Exception as failure:
        return InputError(
            f"the {role} `{name}`, which fails ({_first_line(failure)})",
            f"a {role} of (outputs, target): a tensor with a row for each example, and "
            "tegu.Examples with x, y and mask",
            "Write lambda outputs, target: YOURS(outputs, target.y), if no row only pads.",
        )
    if not isinstance(value, Tensor) or value.ndim:
        told = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        return InputError(
            f"{told} from the {role} `{name}`", "a tensor of one number", "Take a mean."
        )
    return None


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
