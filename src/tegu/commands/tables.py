"""Commands about data that somebody brings: causes in a table, a folder of images."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path

import torch

from tegu import pictures as draw
from tegu.causal import REPETITIONS, UPDATES, find_direction
from tegu.columns import Columns, read_columns
from tegu.commands.shared import Outcome, check_output, listed
from tegu.console import Tell, bar
from tegu.datasets import pack_folder
from tegu.errors import InputError, unknown
from tegu.graphs import ROWS, recover
from tegu.graphs import UPDATES as GRAPH_UPDATES

PACKING = ("size", "channels", "fit", "shares", "seed", "least", "workers", "skip_broken")


def pack(arguments: argparse.Namespace) -> Outcome:
    """A folder of images in one file a split."""
    with ExitStack() as stack:
        opened: list[Tell] = []  # how many images there are is known once they are listed

        def progress(done: int, total: int) -> None:
            if not opened:
                shown = bar(f"pack {arguments.folder}", total, unit="images")
                opened.append(stack.enter_context(shown))
            opened[0](done, "")

        chosen = {name: getattr(arguments, name) for name in PACKING}
        index, broken = pack_folder(arguments.folder, arguments.out, **chosen, progress=progress)
    splits = {
        split: {"classes": len(part["counts"]), "examples": sum(part["counts"])}
        for split, part in index["splits"].items()
    }
    document = {
        "pack": str(arguments.out),
        "shape": index["shape"],
        "splits": splits,
        "broken": [error.given for error in broken],
    }
    path = f"data.path={arguments.out}"
    text = [
        *(f"{s}: {n['classes']:,} classes, {n['examples']:,} images" for s, n in splits.items()),
        *(f"left out: {error.given}" for error in broken),
        f"next: tegu train --learner protonet --data packed --set {shlex.quote(path)}",
    ]
    return document, "\n".join(text)


def causal(arguments: argparse.Namespace) -> Outcome:
    """Which of two columns is the cause, or the graph of more."""
    file: Path = arguments.file
    output = arguments.output or Path(f"{file.stem}-belief.png")
    if output.suffix.lower() != ".png":
        raise InputError(f"a picture named {output}", "a name that ends in .png", "Rename it.")
    check_output(output)
    torch.set_num_threads(1)  # tensors are small here: a second thread costs more than it brings
    table = read_columns(file, environment=arguments.environment)
    if table.labels and len(table.names) > 2:
        for name in ("kind", "repetitions"):
            if getattr(arguments, name) is not None:
                raise InputError(
                    f"--{name} for {len(table.names)} columns",
                    "two columns",
                    f"Leave --{name} out.",
                )
        return _causal_graph(table, arguments, output)
    return _causal_pair(table, arguments, output)


def _causal_pair(table: Columns, arguments: argparse.Namespace, output: Path) -> Outcome:
    """Which of two columns is the cause."""
    file: Path = arguments.file
    if arguments.baseline is not None:
        raise InputError(
            f"--baseline for {len(table.names)} columns of numbers",
            "three columns or more, and --environment",
            "Leave --baseline out.",
        )
    updates = UPDATES if arguments.updates is None else arguments.updates
    with bar(f"causal {file.name}", updates, unit="updates") as tell:
        found = find_direction(
            table,
            kind=arguments.kind or "auto",
            seed=arguments.seed,
            repetitions=REPETITIONS if arguments.repetitions is None else arguments.repetitions,
            updates=updates,
            progress=lambda done: tell(done, ""),
        )
    (a, b), (low, high) = found.names, found.band
    draw.belief_paths(
        [(f"{a} -> {b}", found.path)],
        output,
        title=f"{found.direction}: belief over {found.episodes} episodes",
        label=f"belief in {a} -> {b}",
        each=2,
    )
    document = {
        "file": str(file),
        "columns": [a, b],
        "direction": found.direction,
        "belief": found.belief,
        "band": [low, high],
        "rows": found.rows,
        "environments": found.environments,
        "episodes": found.episodes,
        "repetitions": len(found.path),
        "kind": found.kind,
        "seed": found.seed,
        "warning": found.warning or None,
        "picture": str(output),
    }
    labels = f"{found.environments} environments" if table.labels else "no environments"
    text = [
        f"direction: {found.direction}",
        f"belief in {a} -> {b}: {found.belief:.3f} ({low:.3f} to {high:.3f}, "
        f"80 % of {len(found.path)} repetitions)",
        f"rests on: {found.rows:,} rows of {found.kind}, {labels}, {found.episodes} episodes "
        "in each repetition",
        *([f"warning: {found.warning}"] if found.warning else []),
        *listed([output]),
    ]
    return document, "\n".join(text)


def _causal_graph(table: Columns, arguments: argparse.Namespace, output: Path) -> Outcome:
    """Direct causes among three columns or more, from interventions on unknown ones."""
    assert table.labels is not None
    baseline = table.labels[0] if arguments.baseline is None else arguments.baseline
    if baseline not in table.labels:
        raise unknown("label", baseline, dict.fromkeys(table.labels))
    number = {baseline: 0}
    for label in table.labels:
        number.setdefault(label, len(number))
    for label in number:
        if (rows := table.labels.count(label)) < ROWS:
            raise InputError(
                f"{rows} rows labelled '{label}'",
                f"at least {ROWS} for each label",
                "Collect more, or take them out of the table.",
            )
    table.check_varying()
    updates = GRAPH_UPDATES if arguments.updates is None else arguments.updates
    with bar(f"causal {arguments.file.name}", updates, unit="updates") as tell:
        belief = recover(
            table.values,
            torch.tensor([number[label] for label in table.labels]),
            seed=arguments.seed,
            meta_iterations=updates,
            progress=lambda done: tell(done, ""),
        )
    names, k = table.names, len(table.names)
    edges = sorted(
        (-float(belief[effect, cause]), names[cause], names[effect])
        for effect in range(k)
        for cause in range(k)
        if belief[effect, cause] > 0.5
    )
    title = f"{len(edges)} direct causes likelier than not, among {k} columns"
    draw.belief_graph(names, belief, output, title=title)
    document = {
        "file": str(arguments.file),
        "columns": list(names),
        "edges": [{"cause": a, "effect": b, "belief": -minus} for minus, a, b in edges],
        "beliefs": belief.tolist(),
        "rows": len(table.values),
        "interventions": len(number) - 1,
        "baseline": baseline,
        "updates": updates,
        "seed": arguments.seed,
        "picture": str(output),
    }
    text = [
        *([f"{a} -> {b}  {-minus:.3f}" for minus, a, b in edges] or ["no edge is likely"]),
        f"rests on: {len(table.values):,} rows, {len(number) - 1} interventions beside "
        f"'{baseline}', {updates} updates",
        *listed([output]),
    ]
    return document, "\n".join(text)
