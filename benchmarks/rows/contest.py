"""What every row of the benchmark is: a work, who does it, and how right the answers are."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tegu import timing
from tegu.engine.memory import kept
from tegu.engine.precision import half_pays
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, moved, select
from tegu.inner import Params
from tegu.learners import Learner
from tegu.sampling import Tasks

# How far an answer may be from the loop in float64, as a share of its length.
MOST = {"fp64": 1e-9, "fp32": 1e-2, "bf16": 0.25}
GRAPHS = ", CUDA graphs"  # behind a work that tegu replays
Named = TypeVar("Named", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Setup:
    """What is told to every row.

    Args:
        data_dir: folder of data sets.
        rounds: of each contest, at most.
        seconds: of each contest, about; at least three rounds.
        device: where all run.
    """

    data_dir: Path | None = None
    rounds: int = 20
    seconds: float = 60.0
    device: str = "cpu"

    @property
    def graphs(self) -> tuple[bool, ...]:
        """Whether tegu replays CUDA graphs: on a GPU once not and once so."""
        return (False, True) if self.device == "cuda" else (False,)

    def worth(self, contests: Sequence[Named]) -> list[Named]:
        """The contests, whose first item is a precision, without bf16 where it is slower."""
        return [one for one in contests if one[0] in self._precisions]

    @property
    def _precisions(self) -> list[str]:
        pays = half_pays(torch.device(self.device))
        return [name for name in timing.DTYPES if name != "bf16" or pays]

    @property
    def limits(self) -> dict[str, float]:
        """The machine's operations per second in each precision, measured now."""
        return {name: timing.limit(name, self.device) for name in self._precisions}


@dataclass(frozen=True)
class Contest:
    """One row: tegu and a rival at the same work.

    Args:
        work: what is done in one call.
        precision: tegu's.
        rival: who else does it, with its precision where that is not tegu's.
        ours: one call; the number chooses the tasks.
        theirs: likewise; None where the rival is not installed.
        flops: floating-point operations of one call, as the plain loop does it.
        each: calls in a round.
        per: how many units of the work one call does; times are told for one unit.
        part: how many units the rival does in one call, where it does fewer.
        alike: whether the rival is tegu too, and keeps freed memory as tegu does.
    """

    work: str
    precision: str
    rival: str
    ours: Callable[[int], Any]
    theirs: Callable[[int], Any] | None
    flops: int | None = None
    each: int = 1
    per: float = 1.0
    part: float = field(default=0.0)
    alike: bool = False


def run(contest: Contest, setup: Setup, limits: dict[str, float]) -> dict[str, Any]:
    """Times a contest: a cell of the result document."""
    started: list[float] = []

    def enough() -> bool:
        started.append(time.monotonic())
        return len(started) >= 4 and started[-1] - started[0] > setup.seconds

    acts = [contest.ours] if contest.theirs is None else [contest.ours, contest.theirs]
    found = timing.in_turn(
        acts,
        rounds=setup.rounds,
        each=contest.each,
        device=setup.device,
        enough=enough,
        # As in a training of tegu's; the rival has what its users have.
        within=[kept, kept if contest.alike else nullcontext][: len(acts)],
    )
    ours = [x / contest.per for x in found[0]]
    theirs = [x / (contest.part or contest.per) for x in found[1]] if len(found) > 1 else None
    share = None
    if contest.flops:
        seconds = sorted(found[0])[len(found[0]) // 2]
        share = contest.flops / limits[contest.precision] / seconds
    rival = contest.rival if contest.theirs else f"{contest.rival}: not installed"
    return timing.cell(contest.work, rival, contest.precision, ours, theirs, share=share)


def check(
    work: str, who: str, precision: str, found: Sequence[Tensor], right: Sequence[Tensor]
) -> None:
    """Refuses an answer that is not the float64 loop's; tells how far it is away."""
    check_several(work, who, precision, [(found, right)])


def check_several(
    work: str,
    who: str,
    precision: str,
    pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
) -> None:
    """The same by the median of several answers.

    Rounding can turn single ReLUs on or off, which a gradient through steps of descent then
    magnifies: one batch of tasks in several differs by a percent, whoever computes it.
    """
    distances = [timing.apart(*pair) for pair in pairs]
    distance = statistics.median(distances)
    print(f"  {work}: {who} in {precision} is {distance:.1e} away from the loop in float64")
    timing.refuse(work, f"{who} in {precision}", distance, MOST[precision])


@dataclass(frozen=True)
class Drawn:
    """Batches of tasks, drawn before anything is timed, which take turns.

    Args:
        batches: episodes with a leading axis of tasks.
        keys: of each batch, shape (T,).
    """

    batches: list[Episode]
    keys: list[Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Episode, Tensor]]:
        return zip(self.batches, self.keys, strict=True)

    def __getitem__(self, i: int) -> tuple[Episode, Tensor]:
        i %= len(self.batches)
        return self.batches[i], self.keys[i]


def engine_of(learner: Learner, precision: str, *, compiled: bool, graphs: bool) -> Vectorised:
    """tegu's way of running a row."""
    return Vectorised(
        learner, vectorise="vmap", compile=compiled, precision=precision, cuda_graphs=graphs
    )


def told(work: str, graphs: bool) -> str:
    """What is done, with a word on how."""
    return work + GRAPHS if graphs else work


def answer(act: Callable[[], Any], graphs: bool) -> Any:
    """What a call answers: with CUDA graphs the third, as one is called and one recorded."""
    for _ in range(2 if graphs else 0):
        act()
    return act()


def draw(tasks: Tasks, root: Tensor, *, per: int, batches: int = 16, device: str = "cpu") -> Drawn:
    """The first tasks of a source, `per` in a batch."""
    from tegu import keys

    index = torch.arange(per * batches)
    block, folded = moved(tasks.episodes(index), torch.device(device)), keys.fold(root, index)
    parts = [slice(i * per, (i + 1) * per) for i in range(batches)]
    copied = [_contiguous(select(block, rows)) for rows in parts]
    return Drawn(copied, [folded[rows].to(device) for rows in parts])


def gradient(engine: Vectorised, params: Params, episodes: Episode, at: Tensor) -> Params:
    """The outer gradient as the program of a whole outer update has it, which is what is timed.

    Adam's mean of gradients after its first update is a tenth of the first.
    """
    outer = engine.update(params, engine.outer_state(params), episodes, at, outer_lr=0.0)[1]
    return {k.removeprefix("m/"): 10 * m for k, m in outer.items() if k.startswith("m/")}


def _contiguous(episodes: Episode) -> Episode:
    halves = (type(half)(*(x.contiguous() for x in half)) for half in episodes)
    return Episode(*halves)


def double(episodes: Episode) -> Episode:
    """The same tasks in float64."""

    def one(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    return Episode(*(type(half)(*(one(x) for x in half)) for half in episodes))


Row = Callable[[Setup], Iterator[Contest]]


class Peak:
    """Bytes at the peak above what the process held before, of a GPU or where Linux tells."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def of(self, act: Callable[[], Any]) -> int | None:
        """The peak of one call."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            act()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - held
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back first
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            before = self._now("VmRSS")
            act()
            return max(0, self._now("VmHWM") - before)
        except (OSError, AttributeError):
            return None

    def _now(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith(f"{name}:"))
