"""The leaderboard of the documents: all learners of classes at one budget, each data set in turn.

    python benchmarks/leaderboard.py --data-dir DATA --run FOLDER --episodes 600

This is `tegu leaderboard`, all of whose options it takes, with its result, tables and pictures put
where the documents show them. Entries are kept under --run: what was stopped goes on, and
a finished one is not measured again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tables

from tegu.cli import main

RESULT = Path(__file__).resolve().parent / "results/leaderboard.json"

if __name__ == "__main__":
    sys.exit(main(["leaderboard", "--output", str(RESULT), *sys.argv[1:]]) or tables.main([]))
