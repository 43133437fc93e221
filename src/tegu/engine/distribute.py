"""Tasks split over processes: one exchange in each outer update, and nothing around the model.

Every process (a rank) holds all that is meta-learned and draws its own part of each
meta-batch: episode i is a function of the seed, the split and i, so that ranks draw just
what one process would. What must be known of the others, sums over tasks and whether to
stop, say, travels in one buffer. All ranks then take the same step.

`torchrun` starts the ranks and says in the environment which is which. Without it there is
one rank, and every function here does nothing.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tegu.engine.trees import like, tensors_of
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.learner import Learner


@dataclass(frozen=True)
class Ranks:
    """Which of the processes that share a run this one is.

    Args:
        rank: its number, 0 to world - 1.
        world: how many there are.
        local: its number among those of this machine.
        job: name of what `torchrun` was started for, the same after it has started a
            process again; "" without it.

    Example:
        >>> [Ranks(rank, 3).part(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    job: str = ""

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and prints."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Which of so many episodes are this rank's; they differ by at most one in number."""
        return slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def check(self, learner: Learner, meta_batch: int) -> None:
        """Refuses what cannot be split.

        Raises:
            InputError: tasks that go on from one another, or fewer tasks than ranks.
        """
        if self.world == 1:
            return
        if learner.goes_on():
            raise InputError(
                f"{type(learner).__name__} with serial=True over {self.world} processes",
                "tasks that can be learnt side by side, or one process",
                "Write learner.serial=false, or start one process.",
            )
        if meta_batch < self.world:
            raise InputError(
                f"a meta_batch of {meta_batch} over {self.world} processes",
                "at least one episode for each",
                f"Write train.meta_batch={self.world} or more, or start fewer processes.",
            )

    def place(self, device: str) -> None:
        """Makes "cuda" mean this rank's own GPU.

        Raises:
            InputError: a GPU by its number, or fewer GPUs than ranks on this machine.
        """
        if self.world == 1 or not device.startswith("cuda"):
            return
        if device != "cuda":
            raise InputError(
                f"the device {device} over {self.world} processes",
                "cuda, of which each process takes its own",
                "Write engine.device=cuda.",
            )
        if self.local >= (there := torch.cuda.device_count()):
            raise InputError(
                f"process {self.local} of a machine with {there} GPUs",
                "at most one process for each GPU",
                f"Start torchrun with --nproc-per-node {max(there, 1)}.",
            )
        torch.cuda.set_device(self.local)

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Raises what is refused inside on one rank on all of them.

        Otherwise the others would wait for it.
        """
        refused: InputError | None = None
        try:
            yield
        except InputError as error:
            if self.world == 1:
                raise
            refused = error
        if self.world == 1:
            return
        import torch.distributed as dist

        lowest = torch.tensor(self.rank if refused else self.world)
        _exchange(lambda: dist.all_reduce(lowest, dist.ReduceOp.MIN))
        if (origin := int(lowest)) == self.world:
            return
        parts = (refused.given, refused.expected, refused.todo) if refused else None
        given, expected, todo = json.loads(self._told(json.dumps(parts).encode(), origin))
        where = "" if origin == 0 else f" (process {origin} of {self.world})"
        raise shared(InputError(given + where, expected, todo)) from refused

    def from_first(
        self, read: Callable[[], tuple[Any, tuple[Params, ...]]]
    ) -> tuple[Any, tuple[Params, ...]]:
        """What a function returns on rank 0, on all ranks: plain data, and dicts of tensors.

        So a run's folder need be on the machine of rank 0 alone, and no rank can read
        another state of it.

        Raises:
            InputError: the function's own, on all ranks.
        """
        if self.world == 1:
            return read()
        plain: Any = None
        found: tuple[Params, ...] = ()
        with self.agreement():
            if self.first:
                plain, found = read()
        shapes = [
            [(name, str(x.dtype).removeprefix("torch."), list(x.shape)) for name, x in one.items()]
            for one in found
        ]
        plain, shapes = json.loads(self._told(json.dumps([plain, shapes]).encode(), 0))
        packed = b"".join(
            _bytes(x[None].cpu()).numpy().tobytes() for one in found for x in one.values()
        )
        left = torch.frombuffer(bytearray(self._told(packed, 0) or b"\0"), dtype=torch.uint8)
        dicts: list[Params] = []
        at = 0
        for tensors in shapes:
            dicts.append({})
            for name, kind, shape in tensors:
                dtype: torch.dtype = getattr(torch, kind)
                end = at + dtype.itemsize * math.prod(shape)
                dicts[-1][name] = left[at:end].clone().view(dtype).reshape(shape)
                at = end
        return plain, tuple(dicts)

    def _told(self, data: bytes, origin: int) -> bytes:
        """The bytes of rank `origin`, on all ranks."""
        import torch.distributed as dist

        size = torch.tensor(len(data))
        _exchange(lambda: dist.broadcast(size, origin))
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == origin and data:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(buffer):
            _exchange(lambda: dist.broadcast(buffer, origin))
        return buffer.numpy().tobytes()

    def summed(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, the same bits on each."""
        if self.world == 1:
            return tensor
        import torch.distributed as dist

        # Devices other than these two have no way of their own between processes.
        buffer = tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()
        _exchange(lambda: dist.all_reduce(buffer))
        return buffer.to(tensor.device)

    def gathered(self, rows: Tensor, counts: list[int]) -> Tensor:
        """The rows of all ranks, in their order.

        Args:
            rows: uint8, shape (counts[rank], B).
            counts: how many each rank has.
        """
        import torch.distributed as dist

        device = rows.device if rows.device.type in ("cpu", "cuda") else torch.device("cpu")
        padded = torch.zeros(max(counts), rows.shape[1], dtype=torch.uint8, device=device)
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        _exchange(lambda: dist.all_gather(found, padded))
        together = torch.cat([one[:n] for one, n in zip(found, counts, strict=True)])
        return together.to(rows.device)


ALONE = Ranks()


class Meeting:
    """The one exchange of an outer update, in which ranks learn all they must of one another.

    Args:
        ranks: who takes part.
        total: tasks of a meta-batch, this rank's and the others'.
        note: numbers that this rank adds, asked for at the last moment.
    """

    def __init__(self, ranks: Ranks, total: int, note: Callable[[], list[float]]) -> None:
        self.ranks, self.total, self._note = ranks, total, note
        part = ranks.part(total)
        self.first, self._share = part.start, (part.stop - part.start) / total
        self._told: list[float] | None = None

    def mean(self, tree: Any) -> Any:
        """Mean over all tasks, of the means over each rank's own."""
        return self._added(tree, self._share)

    def sum(self, tree: Any) -> Any:
        """Sum over ranks."""
        return self._added(tree, 1.0)

    def _added(self, tree: Any, factor: float) -> Any:
        if self.ranks.world == 1:
            return tree
        leaves, note = tensors_of(tree), self._note()
        wide = torch.float32
        for x in leaves:
            wide = torch.promote_types(wide, x.dtype)
        said = torch.tensor(note, dtype=wide, device=leaves[0].device)
        flat = torch.cat([x.detach().reshape(-1).to(wide) for x in leaves])
        buffer = self.ranks.summed(torch.cat([factor * flat, said]))
        *parts, told = buffer.split([*(x.numel() for x in leaves), len(note)])
        self._told = told.tolist()
        return like(
            tree, [p.reshape(x.shape).to(x.dtype) for p, x in zip(parts, leaves, strict=True)]
        )

    def gather(self, states: Any) -> Any:
        """The states of all tasks, in their order, from each rank's own."""
        if self.ranks.world == 1:
            return states
        leaves = tensors_of(states)
        n = len(leaves[0])
        note = torch.tensor(self._note(), dtype=torch.float64, device=leaves[0].device)
        columns = [_bytes(x) for x in leaves]
        rows = torch.cat([*columns, _bytes(note.expand(n, -1))], 1)
        each = [Ranks(r, self.ranks.world).part(self.total) for r in range(self.ranks.world)]
        counts = [part.stop - part.start for part in each]
        *parts, notes = self.ranks.gathered(rows, counts).split(
            [*(c.shape[1] for c in columns), 8 * len(note)], 1
        )
        said = notes[[part.start for part in each]].contiguous().view(torch.float64)
        self._told = said.sum(0).tolist()
        found = [
            part.contiguous().view(x.dtype).reshape(self.total, *x.shape[1:])
            if x[0].numel()
            else x.new_empty(self.total, *x.shape[1:])
            for part, x in zip(parts, leaves, strict=True)
        ]
        return like(states, found)

    def told(self) -> list[float]:
        """The sums of all ranks' numbers, once the outer update is done."""
        if self.ranks.world == 1:
            return self._note()
        assert self._told is not None
        told, self._told = self._told, None
        return told


def _bytes(x: Tensor) -> Tensor:
    """The bytes of each row: (T, ...) to (T, B), uint8."""
    flat = x.detach().reshape(len(x), math.prod(x.shape[1:])).contiguous()
    if not flat.numel():
        return torch.empty(len(x), 0, dtype=torch.uint8, device=x.device)
    return flat.view(torch.uint8)


def surroundings() -> Ranks:
    """Which rank this process is, by the environment variables that `torchrun` sets.

    Raises:
        InputError: these make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    said = [os.environ.get(name, "") for name in names]
    if not (said[0] and said[1] and os.environ.get("MASTER_ADDR")):
        return ALONE
    try:
        rank, world, local, port = (int(value or "0") for value in said)
        if not 0 <= rank < world or local < 0 or not 0 < port < 1 << 16:
            raise ValueError
    except ValueError:
        raise InputError(
            ", ".join(f"{name}={value}" for name, value in zip(names, said, strict=True)),
            "a rank, the number of processes, the rank on this machine, and a port",
            "Start with torchrun, which sets them, or unset them.",
        ) from None
    return Ranks(rank, world, local, _job())


def _job() -> str:
    """What tells one call of `torchrun` from the next, and not one start of a process of it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if name in ("", "none"):  # torchrun's word for no name: then the process that is torchrun
        parent = os.getppid()
        try:
            began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            began = ""  # no such files on this system
        name = f"{socket.gethostname()}/{parent}/{began}" if name else ""
    return name


def name_of_start(store: Any, rank: int, world: int) -> str:
    """A name that the processes of this start agree on, and those of no start before knew.

    `torchrun` keeps one store while it restarts, where a process would find the address of a
    dead one and wait for it (torch 2.13; pytorch issue 135712 tells of the like).

    Args:
        store: that of `torch.distributed`, shared by all ranks.
        rank: of this process.
        world: how many there are.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"here/{rank}", own)
        name: str = store.get(f"welcome/{own}").decode()
        store.set(f"heard/{name}/{own}", "")
        return name
    end = time.monotonic() + store.timeout.total_seconds()
    for other in range(1, world):
        welcomed = ""
        while not (welcomed and store.check([f"heard/{own}/{welcomed}"])):
            there: str = store.get(f"here/{other}").decode()  # may be that of a dead process
            if there != welcomed:
                welcomed = there
                store.set(f"welcome/{there}", own)
            elif time.monotonic() > end:
                raise RuntimeError(f"process {other} of {world} has not come")
            else:
                time.sleep(0.005)
    return own


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that `torchrun` started, able to exchange tensors; or this process alone.

    Tensors on a CPU travel by gloo and those on GPUs by nccl.
    """
    ranks = surroundings()
    if ranks.world == 1:
        yield ranks
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    gpus = torch.cuda.is_available() and dist.is_nccl_available()

    def meet() -> None:
        store, rank, world = next(rendezvous("env://"))
        own = PrefixStore(name_of_start(store, rank, world), store)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=world)

    _exchange(meet)
    yield ranks
    dist.destroy_process_group()  # not after an error: it might wait for ranks that are gone


def shared(error: InputError) -> InputError:
    """Marks an error that all ranks raise alike, so that one of them prints it."""
    error.everywhere = True
    return error


def _exchange(act: Callable[[], Any]) -> None:
    try:
        act()
    except RuntimeError as failure:
        reason = str(failure).strip().splitlines()[0]
        raise shared(
            InputError(
                f"a process of this run is gone or cannot be reached: {reason}",
                "all processes to run to the end",
                "Look for its own error above; with --max-restarts N, torchrun starts all again "
                "and the run goes on from its last checkpoint.",
            )
        ) from failure
