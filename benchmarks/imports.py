"""What does `import tegu` cost on top of `import torch`?

python benchmarks/imports.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from tegu import report

PROBE = """
import time
a = time.perf_counter()
import torch
b = time.perf_counter()
import tegu
c = time.perf_counter()
print(b - a, c - b)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/imports.json"))
    arguments = parser.parse_args()
    torch_s, tegu_s = [], []
    for number in range(arguments.rounds + 1):
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=True)
        first, second = map(float, done.stdout.split())
        if number:  # the first fills the file cache
            torch_s.append(first)
            tegu_s.append(second)
    ratios = [b / a for a, b in zip(tegu_s, torch_s, strict=True)]
    cell = {
        "work": "import tegu, after import torch",
        "rival": "import torch",
        "precision": "",
        "ours_ms": 1e3 * statistics.median(tegu_s),
        "rival_ms": 1e3 * statistics.median(torch_s),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "share_of_limit": None,
    }
    document = report.result_document(
        name="imports",
        command="python benchmarks/imports.py",
        seed=0,
        training={"seconds": None, "meta_iterations": None, "peak_bytes": None},
        cells=[cell],
    )
    report.write_result(arguments.output, document)
    print(report.table([cell]))


if __name__ == "__main__":
    main()
