"""How often does the belief name the cause in real pairs without any intervention?

    python benchmarks/tuebingen.py --data-dir DATA

The Tuebingen cause-effect pairs (Mooij et al. 2016), but for the six of more than two columns. The
columns of each are flipped by a keyed coin, since the cause is the first in most. The figure is
the share of right directions, each weighted as the collection says, with its interval by the
bootstrap over pairs; the files that describe pairs are not read.

These pairs hold no interventions, which the method learns from: this leaves its assumptions. As
`tegu causal` does without environments, rows are drawn with weights that grow or fall with the rank
of one column, and then, by the same random numbers, of the other. The two directions are treated
alike, so that no bias towards a side can come from the draw; see src/tegu/causal.py.

Beside it, regression error: scaled to [0, 1], the direction with the smaller squared error is the
causal one, by a cubic polynomial or by a shifted cube (Bloebaum et al. 2018, arXiv:1802.06698).
"""

from __future__ import annotations

import argparse
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tegu import keys, origin, report
from tegu.causal import find_direction, swapped
from tegu.columns import Columns

Values = NDArray[np.float64]


def pairs(archive: Path) -> Iterator[tuple[int, Columns, float]]:
    """Number, columns with the cause first, and weight of every pair of two columns."""
    with zipfile.ZipFile(archive) as opened:
        meta = next(name for name in opened.namelist() if name.endswith("pairmeta.txt"))
        for line in opened.read(meta).decode().splitlines():
            number, *columns, weight = line.split()
            name = f"pair{number}.txt"
            if name not in opened.namelist():
                continue
            cells = opened.read(name).decode().split("\n")
            values = np.array([row.split() for row in cells if row.strip()], dtype=np.float64)
            if values.shape[1] != 2:
                continue
            cause = int(columns[0]) - 1
            kept = values[:, [cause, 1 - cause]]
            yield int(number), Columns(("cause", "effect"), kept), float(weight)


def scaled(values: Values) -> Values:
    """Each column from 0 to 1."""
    least: Values = values.min(0)
    out: Values = (values - least) / (values.max(0) - least)
    return out


def error(x: Values, y: Values, powers: tuple[int, ...]) -> float:
    """Mean squared error of the best sum of these powers of x, a constant among them."""
    basis = np.stack([x**power for power in powers], 1)
    found = np.linalg.lstsq(basis, y, rcond=None)[0]
    return float(np.mean((basis @ found - y) ** 2))


def regression(table: Columns, powers: tuple[int, ...]) -> bool:
    """Whether the first column is the cause, by the smaller error."""
    first, second = scaled(table.values).T
    return error(first, second, powers) < error(second, first, powers)


def accuracy(right: Values, weights: Values) -> tuple[float, float]:
    """Weighted share, and the half-width of its 95 % interval by the bootstrap over pairs."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(right), size=(4000, len(right)))
    shares = (right * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float((right * weights).sum() / weights.sum()), float(high - low) / 2


RULES = {"regression error, cubic": (0, 1, 2, 3), "regression error, shifted cube": (0, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--repetitions", type=int, default=5, help="beliefs for each pair")
    parser.add_argument("--updates", type=int, default=40, help="of each belief")
    parser.add_argument("--seed", type=int, default=0)
    default = Path("benchmarks/results/tuebingen.json")
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    right: dict[str, list[bool]] = {"causal-transfer, pseudo-interventions": []}
    right |= {name: [] for name in RULES}
    weights, firsts = [], 0
    folder = arguments.data_dir / "tuebingen_pairs"
    for number, table, weight in pairs(folder / "pairs.zip"):
        flipped = bool(keys.bits(keys.key(arguments.seed, "tuebingen", number), 1) % 2)
        shown = swapped(table) if flipped else table
        found = find_direction(
            shown,
            kind="numbers",
            seed=arguments.seed + number,
            repetitions=arguments.repetitions,
            updates=arguments.updates,
        )
        firsts += found.belief > 0.5
        right["causal-transfer, pseudo-interventions"].append((found.belief > 0.5) != flipped)
        for name, powers in RULES.items():
            right[name].append(regression(shown, powers) != flipped)
        weights.append(weight)
        if len(weights) % 10 == 0:
            print(f"{len(weights)} pairs, {time.monotonic() - start:.0f} s", flush=True)
    cells: list[dict[str, Any]] = []
    for name, answers in right.items():
        value, ci95 = accuracy(np.array(answers, dtype=np.float64), np.array(weights))
        cells.append(
            {
                "protocol": {
                    "data": f"tuebingen, {len(weights)} pairs, weighted",
                    "split": "all",
                    "learner": name,
                },
                "metric": "accuracy",
                "value": value,
                "ci95": ci95,
                "episodes": len(weights),
                "published": None,
                "source": "",
            }
        )
    document = report.result_document(
        name="tuebingen",
        command=f"python benchmarks/tuebingen.py --data-dir DATA --repetitions "
        f"{arguments.repetitions} --updates {arguments.updates} --seed {arguments.seed}",
        seed=arguments.seed,
        training={
            "seconds": round(time.monotonic() - start, 1),
            "meta_iterations": None,
            "peak_bytes": origin.peak_bytes(),
        },
        cells=cells,
    )
    report.write_result(arguments.output, document)
    print(report.table(cells), f"\nfirst column named in {firsts} of {len(weights)}")


if __name__ == "__main__":
    main()
