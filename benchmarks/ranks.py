"""Do two processes learn what one does, how much faster, and what if some are killed?

    python benchmarks/ranks.py --data-dir DATA

Three questions, each answered by whole runs of `tegu train` that `torchrun` starts on this
machine, every process with one thread:

* how far apart are the weights that two processes and one end with, after the same updates
  by plain gradient descent in fp32;
* how many episodes a second do two processes learn, next to one, in turn;
* does a run whose processes are killed five times, at moments drawn at random, end by itself
  with the bits of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import recorded
import torch
from safetensors.torch import load_file

from tegu import report, timing
from tegu.engine.evaluate import Result
from tegu.engine.precision import chosen

RECIPE = "reptile-omniglot-5way"
KILLS = 5
ALIKE = 5  # updates whose weights are compared; later a ReLU falls the other way in one of the two
TASKS = 8  # of a meta-batch that is timed; five would be three and two, 1.67 times at best
START = 20  # meta-iterations of the short run that is taken off a long one
SGD = ("--set", "learner.inner_optimiser=sgd", "--set", "learner.inner_lr=0.01")
EXACT = ("--set", "engine.precision=fp32", "--set", "engine.compile=off")
# As in a whole run; some hundreds of iterations do not repay compiling.
COMPILED = ("--set", "engine.compile=on")


def command(ranks: int, run: Path, words: list[str], *, restarts: int = 0) -> list[str]:
    train = ["tegu", "train", RECIPE, "--run", str(run), "--json", *words]
    if ranks == 1:
        return [sys.executable, "-m", *train]
    start = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *start, "-m", "--", *train]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def trained(ranks: int, run: Path, words: list[str]) -> float:
    """Seconds of meta-training of one run."""
    done = subprocess.run(
        command(ranks, run, words), capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout)["seconds"])


def pace(ranks: int, place: Path, words: list[str], iterations: int) -> float:
    """Milliseconds of a meta-iteration: a long run less a short one, which leaves compiling out."""
    short, long = (
        trained(ranks, place / f"{count}", [*words, "--meta-iterations", str(count)])
        for count in (START, START + iterations)
    )
    return 1e3 * (long - short) / iterations


def apart(one: Path, other: Path) -> float:
    """The largest difference of a number between two checkpoints."""
    a, b = (load_file(run / "checkpoint.safetensors") for run in (one, other))
    if a.keys() != b.keys():
        raise SystemExit("the two runs hold different things")
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def children(parent: int) -> list[int]:
    """The processes that `torchrun` has started, its ranks."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in map(int, found) if b"tegu" in _words(pid)]


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def killed(run: Path, words: list[str], seed: int) -> int:
    """Runs two ranks and kills one of them, time and again; how often it was done."""
    draw, times = random.Random(seed), 0
    process = subprocess.Popen(
        command(2, run, words, restarts=2 * KILLS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    checkpoint, before = run / "checkpoint.safetensors", 0.0
    while process.poll() is None:
        time.sleep(0.05)
        # Once more work was kept than at the last kill, so that the run gets on.
        kept = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        if times == KILLS or kept <= before:
            continue
        time.sleep(draw.uniform(0, 2))
        if ranks := children(process.pid):
            before = time.time()
            try:
                os.kill(draw.choice(ranks), signal.SIGKILL)
            except ProcessLookupError:
                continue
            times += 1
    if process.returncode:
        raise SystemExit(f"the killed run ended with code {process.returncode}")
    return times


def figure(metric: str, value: float, count: int, learner: str) -> dict[str, object]:
    found = Result(metric, value, 0.0, count, "meta_train", "none")
    return {**report.cell(found, data="omniglot", learner=learner), "ci95": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--iterations", type=int, default=300, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="fp32, bf16 or auto")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ranks.json"))
    arguments = parser.parse_args()
    common = ["--data-dir", str(arguments.data_dir), "--set", "train.validate_every=0"]
    precision = chosen(arguments.precision, torch.device("cpu"))
    common += ["--set", f"engine.precision={precision}"]
    began = time.monotonic()
    cells: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        words = [*common, *SGD, *EXACT, "--meta-iterations", str(ALIKE)]
        trained(1, place / "one", words)
        trained(2, place / "two", words)
        difference = apart(place / "one", place / "two")
        print(f"apart after {ALIKE} updates: {difference:.1e}", flush=True)
        cells.append(figure("largest difference, 2 and 1 ranks", difference, ALIKE, "reptile"))

        words = [*common, *COMPILED, "--set", f"train.meta_batch={TASKS}"]
        for ranks in (2, 1):  # fills the caches of compiled code
            trained(ranks, place / f"{TASKS}-{ranks}", [*words, "--meta-iterations", "2"])
        pairs = [
            [
                pace(ranks, place / f"{TASKS}-{ranks}-{number}", words, arguments.iterations)
                for ranks in (2, 1)
            ]
            for number in range(arguments.rounds)
        ]
        two, one = ([1e-3 * pair[i] for pair in pairs] for i in (0, 1))
        work = f"Reptile, Omniglot 5-way, meta-batch {TASKS}, 2 ranks"
        cells.append(timing.cell(work, "1 rank, 1 thread", precision, two, one))
        print(report.table(cells[-1:]), flush=True)

        words = [*common, "--meta-iterations", "400", "--set", "train.checkpoint_seconds=1"]
        trained(2, place / "undisturbed", words)
        times = killed(place / "killed", words, seed=0)
        same = apart(place / "undisturbed", place / "killed") == 0
        print(f"killed {times} times; the same bits: {same}", flush=True)
        cells.append(figure("times killed", float(times), 1, "reptile"))
        cells.append(figure("same bits as undisturbed", float(same), 1, "reptile"))
    document = report.result_document(
        name="ranks",
        command=recorded.command(__file__, parser, arguments),
        seed=0,
        training={
            "seconds": time.monotonic() - began,
            "meta_iterations": None,
            "peak_bytes": None,
        },
        cells=cells,
    )
    report.write_result(arguments.output, document)


if __name__ == "__main__":
    main()
