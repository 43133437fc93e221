"""Does training on data ten times larger than all memory stay flat, and what does it cost in speed?

    python benchmarks/streaming.py --folder FOLDER-ON-A-DISK-WITH-ROOM

Writes a pack of random images, ten times as large as the limit, then meta-trains prototypical
networks on it in a process whose address space is limited as by `ulimit -v`: torch, threads and
all have to fit in, and a map of the file would not. Memory is noted as the run goes on; the last
quarter of it must not need more than the first. The same training on data in memory, in a process
without a limit, says what the file costs in speed. Both processes alternate.

`--sparse` writes the first image of each class only and leaves holes for the others, which read as
zeros: fast, and no measure of a disk. The result says so. The files are removed in the end.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded import command

import tegu
from tegu import report, timing
from tegu.console import bar
from tegu.datasets import Packable, load_packed, write_packed
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.processes import apart

SIDE, EACH = 84, 500  # pixels; images of a class
BYTES = 3 * SIDE**2
META_BATCH, N_QUERY = 4, 5  # 5-way 1-shot: 120 images in a meta-iteration


def write(folder: Path, size: int, *, sparse: bool) -> None:
    """A pack of so many bytes: a colour and noise for each class."""
    generator = np.random.default_rng(0)
    n_classes = -(-size // (EACH * BYTES))
    count = 1 if sparse else EACH

    def rows() -> Any:
        colour = generator.integers(0, 128, (1, 3, 1, 1), dtype=np.uint8)
        for start in range(0, count, 100):
            shape = (min(100, count - start), 3, SIDE, SIDE)
            yield torch.from_numpy(colour + generator.integers(0, 128, shape, dtype=np.uint8))

    with bar("write", n_classes, unit="classes") as tell:

        def classes() -> Any:
            for i in range(n_classes):
                yield Packable("meta_train", f"class {i}", rows())
                tell(i + 1, "")

        write_packed(folder, classes())
    if sparse:
        stretch(folder, n_classes)


def stretch(folder: Path, n_classes: int) -> None:
    """The same pack with holes, so that each class has its one image first and then zeros."""
    array = folder / "meta_train.npy"
    written = np.load(array, mmap_mode="r")
    shape = (n_classes * EACH, *written.shape[1:])
    with (folder / "wide.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        begin = file.tell()
        for i in range(n_classes):
            file.seek(begin + i * EACH * BYTES)
            file.write(written[i].data)
        file.truncate(begin + n_classes * EACH * BYTES)
    (folder / "wide.npy").replace(array)
    index = json.loads((folder / "classes.json").read_text())
    index["splits"]["meta_train"]["counts"] = [EACH] * n_classes
    (folder / "classes.json").write_text(json.dumps(index))


def status() -> dict[str, int]:
    """Bytes of address space and of memory, now and at the peak."""
    text = Path("/proc/self/status").read_text()
    return {
        name: int(re.search(rf"{name}:\s+(\d+)", text)[1]) << 10  # type: ignore[index]
        for name in ("VmPeak", "VmSize", "VmRSS", "RssAnon", "RssFile")
    }


def train(folder: Path, iterations: int, limit: int, in_memory: int) -> dict[str, Any]:
    """Meta-trains under a limit in bytes, 0 for none, on the file or on so many of its classes."""
    import resource

    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    data = load_packed(folder, "meta_train")
    if in_memory:
        chosen = set(data.class_names[:in_memory])
        data = data.where(lambda name: name in chosen).read()
    mapped = True
    try:
        np.memmap(folder / "meta_train.npy", np.uint8, "r").flush()
    except OSError:
        mapped = False
    model = tegu.models.Conv4(0, channels=3, size=SIDE, width=16)
    learner = tegu.learners.ProtoNet(model=model, normalisation="transductive")
    tasks = tegu.FewShotTasks(replace(data, name="stream"), 5, 1, N_QUERY)
    seen: list[dict[str, int]] = []
    times: list[tuple[int, float]] = []

    def progress(done: Progress) -> None:
        seen.append(status())
        times.append((done.iteration, time.perf_counter()))

    settings = Settings(iterations, META_BATCH, outer_lr=1e-3)
    meta_train(Vectorised(learner), tasks, settings, progress=progress)
    (first, began), (last, ended) = times[0], times[-1]
    quarter = max(1, len(seen) // 4)
    return {
        "images": (last - first) * META_BATCH * 5 * (1 + N_QUERY) / (ended - began),
        "first": max(one["VmRSS"] for one in seen[:quarter]),
        "last": max(one["VmRSS"] for one in seen[-quarter:]),
        "space": max(one["VmPeak"] for one in seen),
        "file": len(tegu.load_packed(folder, "meta_train").examples) * BYTES,
        "seconds": ended - began,
        "mapped": mapped,
    }


def cell(work: str, metric: str, value: float, episodes: int) -> dict[str, Any]:
    """A figure without an interval: it is counted, not sampled."""
    protocol = {"data": work, "split": "meta_train", "n_way": 5, "n_shot": 1, "n_query": N_QUERY}
    return {
        "protocol": {**protocol, "learner": "protonet"},
        "metric": metric,
        "value": value,
        "ci95": None,
        "episodes": episodes,
        "published": None,
        "source": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the files may lie")
    parser.add_argument("--limit-gb", type=float, default=1.5, help="of address space, 10^9 bytes")
    parser.add_argument("--times", type=float, default=10.0, help="data to limit")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="of the two processes in turns")
    parser.add_argument("--sparse", action="store_true", help="mostly holes in place of images")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/streaming.json"))
    arguments = parser.parse_args()
    limit, began = int(arguments.limit_gb * 1e9), time.monotonic()
    size = int(limit * arguments.times)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        pack = Path(place) / "pack"
        free = shutil.disk_usage(place).free
        if not arguments.sparse and free < 1.05 * size:
            raise SystemExit(f"{size / 1e9:.0f} GB are needed, {free / 1e9:.0f} are free: --sparse")
        write(pack, size, sparse=arguments.sparse)
        streamed, held = [], []
        for _ in range(arguments.rounds):
            streamed.append(apart("from a file", train, pack, arguments.iterations, limit, 0))
            held.append(apart("from memory", train, pack, arguments.iterations, 0, 40))
            print(streamed[-1], held[-1], sep="\n", flush=True)
    assert not any(one["mapped"] for one in streamed), "the limit is no limit"
    assert streamed[0]["file"] >= arguments.times * limit
    growth = max(one["last"] / one["first"] for one in streamed)
    kind = "a sparse file" if arguments.sparse else "a file"
    work, n = f"random images in {kind}", arguments.iterations * META_BATCH
    cells = [
        cell(work, "bytes of the file", streamed[0]["file"], n),
        cell(work, "limit of address space, bytes", limit, n),
        cell(work, "address space, bytes", max(one["space"] for one in streamed), n),
        cell(work, "memory, first quarter, bytes", max(one["first"] for one in streamed), n),
        cell(work, "memory, last quarter, bytes", max(one["last"] for one in streamed), n),
        cell(work, "last quarter / first", growth, n),
        timing.cell(
            f"ProtoNet, {work}, an image of 84 x 84",
            "the same in memory",
            "fp32",
            [1 / one["images"] for one in streamed],
            [1 / one["images"] for one in held],
        ),
    ]
    document = report.result_document(
        name="streaming",
        command=command(__file__, parser, arguments),
        seed=0,
        training={
            "seconds": round(time.monotonic() - began, 1),
            "meta_iterations": arguments.iterations,
            "peak_bytes": max(one["last"] for one in streamed),
        },
        cells=cells,
    )
    print(report.markdown_table(document))
    report.write_result(arguments.output, document)


if __name__ == "__main__":
    main()
