"""Errors that a user can act on: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable


class InputError(ValueError):
    """A value that tegu cannot work with.

    The command line prints it without a traceback and exits with code 2.

    Args:
        given: what was received.
        expected: what would have been accepted.
        todo: what the reader can do now.

    Attributes:
        everywhere: whether all processes of a run raise it alike, so that one may speak.

    Example:
        >>> print(InputError("n_way is 1", "at least 2 classes", "Pass n_way=2 or more."))
        n_way is 1; expected at least 2 classes. Pass n_way=2 or more.
    """

    everywhere = False

    def __init__(self, given: str, expected: str, todo: str) -> None:
        super().__init__(f"{given}; expected {expected}. {todo}")
        self.given, self.expected, self.todo = given, expected, todo

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """So that it crosses from one process to another."""
        return type(self), (self.given, self.expected, self.todo)


class InputTypeError(InputError, TypeError):
    """A value of the wrong kind, a string where a number belongs, say."""


def check_range(
    name: str,
    value: float,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    todo: str = "",
    whole: bool = False,
) -> None:
    """Refuses a number out of its bounds, and one that is not finite.

    Args:
        name: of the number.
        value: the number.
        least, most: bounds that it may reach.
        above, below: bounds that it may not.
        todo: what the reader can do; to raise or to lower it, where this is empty.
        whole: whether it must be a whole number.

    Raises:
        InputError: out of bounds, or none of these numbers.

    Example:
        >>> check_range("dropout", 0.5, 0, below=1)
        >>> check_range("dropout", 1, 0, below=1)
        Traceback (most recent call last):
        tegu.errors.InputError: dropout is 1; expected at least 0 and below 1. Lower dropout.
    """
    if not isinstance(value, numbers.Integral if whole else numbers.Real):
        kind = "a whole number" if whole else "a number"
        raise InputTypeError(f"{name} is {value!r}", kind, todo or f"Change {name}.")
    low = -math.inf if least is None else least
    high = math.inf if most is None else most
    inside = low <= value <= high and abs(value) < math.inf
    inside = inside and (above is None or value > above) and (below is None or value < below)
    if inside:
        return
    if least is not None and most is not None:
        wanted = f"{_told(least)} to {_told(most)}"
    else:
        bounds = (("at least", least), ("above", above), ("at most", most), ("below", below))
        wanted = " and ".join(f"{way} {_told(bound)}" for way, bound in bounds if bound is not None)
        wanted = f"a number {wanted}" if above is not None and below is None else wanted
    if not abs(value) < math.inf:
        raise InputError(f"{name} is {value}", f"{wanted}, finite", todo or f"Change {name}.")
    few = value < low or (above is not None and value <= above)
    raise InputError(f"{name} is {value}", wanted, todo or f"{'Raise' if few else 'Lower'} {name}.")


def _told(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a list, with the nearest name offered.

    Example:
        >>> print(unknown("learner", "reptil", ["reptile", "maml"]))
        unknown learner 'reptil'; expected one of maml, reptile. Did you mean 'reptile'?
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    todo = f"Did you mean '{near[0]}'?" if near else f"Choose a {kind} from that list."
    return InputError(f"unknown {kind} '{name}'", f"one of {', '.join(names)}", todo)
