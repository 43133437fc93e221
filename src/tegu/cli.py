"""The command line: each command is a library call with a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from tegu.arguments import COMMANDS, parser_of_commands
from tegu.errors import InputError, unknown

SPLIT = ("train", "evaluate", "reproduce")  # what several processes can share

BUDGETS = ("compare",)  # commands whose options are no settings of a recipe

SHORT = {
    "learner": "learner.name",
    "data": "data.name",
    "model": "model.name",
    "meta_iterations": "train.meta_iterations",
    "seed": "train.seed",
    "precision": "engine.precision",
    "device": "engine.device",
    "threads": "engine.threads",
    "episodes": "evaluate.episodes",
}


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    out = {}
    short = {} if arguments.command in BUDGETS else SHORT
    for name, key in short.items():
        if (value := getattr(arguments, name, None)) is not None:
            out[key] = value
    for item in arguments.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set {item}", "SECTION.KEY=VALUE", f"Write --set {item}=VALUE.")
        out[key.strip()] = value.strip()
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    from tegu.console import complain, say

    arguments = None
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        arguments = parser_of_commands().parse_args(words)
        if arguments.version:
            from tegu import __version__

            print(f"tegu {__version__}")
            return 0
        if not arguments.command:
            parser_of_commands().print_help()
            return 0
        arguments.words = words
        return _run(arguments)
    except InputError as error:
        # What is wrong with the words themselves is so for each process.
        speaker = _speaker(everywhere=error.everywhere or arguments is None)
        if speaker is not None:
            complain(error, speaker)
        return 2
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # nobody reads what is left to be written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as failure:
        where = f"{failure.filename}: " if failure.filename else ""
        complain(
            InputError(
                f"{where}{failure.strerror or failure}",
                "files and folders that can be read and written",
                "Check the path, its permissions and the room on the disk.",
            ),
            "",
        )
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 128 + signal.SIGINT


def _speaker(*, everywhere: bool) -> str | None:
    """Who tells of an error: "" for the first process; None where that one tells it too."""
    if "RANK" not in os.environ:
        return ""
    from tegu.engine.distribute import surroundings

    try:
        ranks = surroundings()
    except InputError:
        return ""
    if ranks.first:
        return ""
    return None if everywhere else f"process {ranks.rank} of {ranks.world}: "


def _resuming(arguments: argparse.Namespace) -> str:
    """The command that goes on with a run that was stopped."""
    words = ["tegu", *arguments.words]
    if arguments.command == "quickstart" and not any(w.startswith("--run") for w in words):
        words += ["--run", str(arguments.run)]
    if "RANK" in os.environ:
        words = ["torchrun", "OPTIONS", "-m", "--", *words]
    return shlex.join(words if arguments.resume else [*words, "--resume"])


def _run(arguments: argparse.Namespace) -> int:
    from tegu import commands
    from tegu.console import say, silent
    from tegu.engine.distribute import joined, shared, surroundings
    from tegu.engine.stops import Interrupted

    ranks = surroundings()
    if ranks.world > 1 and arguments.command not in SPLIT:
        raise shared(
            InputError(
                f"tegu {arguments.command} over {ranks.world} processes",
                f"one of {', '.join(SPLIT)}, which can be split",
                f"Start tegu {arguments.command} without torchrun.",
            )
        )
    began = time.monotonic()
    handler = commands.COMMANDS[arguments.command]
    try:
        if arguments.command in ("causal", "pack", "predict", "recipes", "info"):
            document, text = handler(arguments)
        elif arguments.command == "leaderboard":
            document, text = handler(arguments, {})
        elif arguments.command in SPLIT:
            with silent(unless=ranks.first), joined() as ranks:
                with ranks.agreement():
                    overrides = _overrides(arguments)
                document, text = handler(arguments, overrides, ranks)
        else:
            document, text = handler(arguments, _overrides(arguments))
    except Interrupted as stop:
        if ranks.first:
            say(f"{stop}; nothing is lost, go on with: {_resuming(arguments)}")
        return 128 + stop.signum
    if arguments.command == "quickstart":
        document["seconds"] = round(time.monotonic() - began, 1)
    if not ranks.first:
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in any letters
        sys.stdout.reconfigure(errors="backslashreplace")
    print(json.dumps(_finite(document), indent=1, allow_nan=False) if arguments.json else text)
    if sys.stdout is not None:
        sys.stdout.flush()
    return 0


def _finite(tree: Any) -> Any:
    """Plain data with None in place of numbers that JSON has no word for."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
