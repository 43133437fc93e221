"""Errors that a user can act on: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
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
