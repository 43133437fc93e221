"""How long until tegu works: an import, a first meta-step, a compiled run's second start?

    python benchmarks/startup.py --data-dir DATA

Each start is a process of its own. The clock of the meta-steps starts when `import
torch` is done and stops after the first meta-iteration of `tegu train`, data, network
and compiler included. A first start finds no compiled code, a second that of the first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tegu import report, timing

IMPORTS = """
import time
a = time.perf_counter()
import torch
b = time.perf_counter()
import tegu
print(b - a, time.perf_counter() - b)
"""

FIRST_STEP = """
import sys, time
a = time.perf_counter()
import torch
b = time.perf_counter()
from tegu import cli
from tegu.engine.vectorise import Vectorised

def stopped(*arguments, **settings):
    update(*arguments, **settings)
    print(b - a, time.perf_counter() - b)
    raise SystemExit

update, Vectorised.update = Vectorised.update, stopped
cli.main(sys.argv[1:])
"""
RECIPES = ("maml-sinusoids", "reptile-glyphs", "reptile-omniglot-5way")
COMPILED = "reptile-omniglot-5way"


def child(code: str, *words: str, **environment: str) -> tuple[float, float]:
    """Seconds of `import torch`, and of what came after it, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        check=True,
        env={**os.environ, **environment},
    )
    first, second = map(float, done.stdout.split())
    return first, second


def first_step(recipe: str, data: list[str], compiled: str, cache: Path) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", recipe, "--run", f"{folder}/run", *data]
        words += ["--set", f"engine.compile={compiled}"]
        return child(FIRST_STEP, *words, TORCHINDUCTOR_CACHE_DIR=str(cache))


def timed(work: str, rival: str, pairs: list[tuple[float, float]]) -> dict[str, object]:
    """A cell from (seconds of the rival, seconds of ours) pairs."""
    theirs, ours = zip(*pairs, strict=True)
    return timing.cell(work, rival, "", ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/startup.json"))
    arguments = parser.parse_args()
    data = ["--data-dir", str(arguments.data_dir)]
    with tempfile.TemporaryDirectory() as folder:
        # Python keeps compiled modules, as it does unless a setting forbids it.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/modules"
        child(IMPORTS)  # fills the file cache
        cells = [
            timed(
                "import tegu, after import torch",
                "import torch",
                [child(IMPORTS) for _ in range(2 * arguments.rounds)],
            )
        ]
        for recipe in RECIPES:
            first_step(recipe, data, "off", Path(folder))
            cells.append(
                timed(
                    f"first meta-step of {recipe}, after import torch",
                    "import torch",
                    [
                        first_step(recipe, data, "off", Path(folder))
                        for _ in range(arguments.rounds)
                    ],
                )
            )
        pairs = []
        for number in range(arguments.rounds):
            cache = Path(folder) / str(number)
            times = [first_step(COMPILED, data, "on", cache)[1] for _ in range(2)]
            pairs.append((times[0], times[1]))
            print(f"compiled: first start {times[0]:.1f} s, second {times[1]:.1f} s", flush=True)
        cells.append(
            timed(f"second start of {COMPILED}, compiled", "the first start", pairs),
        )
    document = report.result_document(
        name="startup",
        command=f"python benchmarks/startup.py --data-dir DATA --rounds {arguments.rounds}",
        seed=0,
        training={"seconds": None, "meta_iterations": None, "peak_bytes": None},
        cells=cells,
    )
    report.write_result(arguments.output, document)
    print(report.table(cells))


if __name__ == "__main__":
    main()
