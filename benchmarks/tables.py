"""Writes the tables and pictures of the documents from the result files.

    python benchmarks/tables.py           # rewrite them
    python benchmarks/tables.py --check   # say which differ, and exit with 1

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`, where NAME
is a file in benchmarks/results. `<!-- table: NAME: TEXT -->` has only the timings of works that
begin with that text, or the figures on a data set: "omniglot 1-shot".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tegu import leaderboard, pictures, report

APPLICATIONS = {
    "CIFAR-FS": "photographs",
    "Arabic speech commands": "spoken words",
    "Banking77": "bank questions",
}
MEANT = "meta-learned"
ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/*.md")
TABLE = re.compile(r"(<!-- table: ([\w-]+)(?:: ([^\n]+))? -->\n).*?(<!-- /table -->)", re.S)


def result(name: str) -> dict[str, Any]:
    """One file of benchmarks/results."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())
    return found


def filled(text: str) -> str:
    """A document with each table made anew."""
    return TABLE.sub(lambda m: m[1] + report.markdown_table(some(result(m[2]), m[3])) + m[4], text)


def some(document: dict[str, Any], beginning: str | None) -> dict[str, Any]:
    """The document with only the cells that begin so."""
    cells = [c for c in document["cells"] if _subject(c).startswith(beginning or "")]
    return {**document, "cells": cells}


def _subject(item: dict[str, Any]) -> str:
    """What a cell is about: a timed work, or the data of a figure."""
    if "work" in item:
        return str(item["work"])
    protocol = item["protocol"]
    return f"{protocol.get('data', '')} {protocol.get('n_shot', 0)}-shot"


def draw() -> None:
    """The pictures that are made from result files."""
    document = result("quickstart")
    names = ["chance", *(one["protocol"]["learner"] for one in document["cells"])]
    figures = [(1 / document["cells"][0]["protocol"]["n_way"], 0.0)]
    figures += [(one["value"], one["ci95"]) for one in document["cells"]]
    rows = [(name, *figure) for name, figure in zip(names, figures, strict=True)]
    pictures.comparison(
        rows,
        ROOT / "docs/images/quickstart.png",
        title="Unseen characters, 5-way 1-shot: what meta-learning adds",
    )
    document = result("applications")
    bars = [
        (f"{what}: {MEANT if learner == 'protonet' else learner}", one["value"], one["ci95"])
        for data, what in APPLICATIONS.items()
        for learner in ("logistic regression", "protonet")
        for one in document["cells"]
        if _subject(one) == f"{data} 1-shot" and one["protocol"]["learner"] == learner
    ]
    pictures.comparison(
        bars,
        ROOT / "docs/images/applications.png",
        title="Five new kinds of things, one example of each",
        highlight=[name for name, _, _ in bars if name.endswith(MEANT)],
    )
    leaderboard.draw(result("leaderboard"), ROOT / "docs/images/leaderboard")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args(words)
    stale = []
    for path in sorted(p for pattern in DOCUMENTS for p in ROOT.glob(pattern)):
        text = path.read_text()
        if (new := filled(text)) != text:
            stale.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(new)
    if arguments.check:
        print("\n".join(f"differs from the result files: {name}" for name in stale))
        return 1 if stale else 0
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
