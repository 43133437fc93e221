"""Entries of a comparison: measured once under the same settings on the same machine, and kept."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tegu import origin
from tegu.errors import InputError
from tegu.files import write_atomically

LARGEST = 64 << 20  # bytes that an entry may have
MACHINE = ("cpu", "instructions", "cores", "threads", "gpu")


def limited(seconds: float) -> None:
    """Refuses a budget that never ends.

    Raises:
        InputError: seconds of training that are no number above 0.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(f"a budget of {seconds:g} seconds", "a number above 0", "Write 60, say.")


def entry(
    file: Path,
    settings: Any,
    make: Callable[[], dict[str, Any]],
    same: Callable[[Any, Any], bool] = operator.eq,
) -> dict[str, Any]:
    """What `make` returned when it was last called under these settings on such a machine.

    Args:
        file: keeps it, with the commit, the versions and the machine that made it.
        settings: all that decides it, as plain data.
        make: measures it anew, where the file is not there or tells of anything else.
        same: whether two settings decide the same.
    """
    machine = origin.hardware()
    told = {
        "settings": settings,
        "versions": origin.versions(),
        "machine": {name: machine[name] for name in MACHINE},
    }
    told = json.loads(json.dumps(told))  # as it reads back: tuples are lists there
    kept = _read(file)
    others = all(kept.get(name) == told[name] for name in ("versions", "machine"))
    if not others or not same(kept.get("settings"), told["settings"]):
        kept = {**told, "commit": origin.commit(), **json.loads(json.dumps(make()))}
        write_atomically(file, (json.dumps(kept, indent=1) + "\n").encode())
    return kept


def commits(entries: list[dict[str, Any]]) -> list[str]:
    """The commits that made some entries."""
    return list(dict.fromkeys(one["commit"] for one in entries if one["commit"]))


def _read(file: Path) -> dict[str, Any]:
    """An entry; empty where there is none that can be read."""
    try:
        if file.stat().st_size > LARGEST:
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
