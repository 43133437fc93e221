"""Episodes of a run: functions of the iteration's number, however they are drawn."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine import batches as module
from tegu.engine.batches import batches
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.sampling import FewShotTasks

ALL = {"meta_batch": 2, "seed": 3}


@dataclass
class Watched:
    """Tasks that note what was drawn, and by which thread."""

    tasks: FewShotTasks
    waits: bool = False
    drawn: list[Tensor] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    fails_at: int = -1

    @property
    def split(self) -> str:
        return self.tasks.split

    def episodes(self, index: Tensor) -> Episode:
        self.drawn.append(index)
        self.threads.add(threading.current_thread().name)
        if self.fails_at in index.tolist():
            raise InputError("a broken file", "a whole one", "Mend it.")
        return self.tasks.episodes(index)


@dataclass
class Padded(Watched):
    """Tasks that leave all queries but the first out, and note whose."""

    trimmed_at: list[int] = field(default_factory=list)

    def trimmed(self, episodes: Episode) -> Episode:
        self.trimmed_at.append(len(episodes.query.mask))
        query = Examples(*(x[:, :1] for x in episodes.query))
        return episodes._replace(query=query)


@pytest.fixture
def tasks(toy_data: ClassDataset) -> FewShotTasks:
    return FewShotTasks(toy_data, n_way=3, n_shot=2, n_query=1, seed=5)


def tell(found: Iterator[tuple[int, Episode, Tensor]]) -> list[tuple[int, Tensor, Tensor]]:
    return [(number, episode.support.x.clone(), at) for number, episode, at in found]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("first", [0, 7])
def test_iteration_i_has_the_same_episodes_however_they_are_drawn(
    tasks: FewShotTasks, waits: bool, first: int
) -> None:
    watched = Watched(tasks, waits)
    found = tell(batches(watched, first=first, last=40, **ALL))
    assert [number for number, _, _ in found] == list(range(first, 40))
    for number, x, at in found:
        index = torch.arange(2 * number, 2 * number + 2)
        assert torch.equal(x, tasks.episodes(index).support.x)
        assert torch.equal(at, keys.fold(keys.key(3, "meta_train"), index))
    assert torch.equal(torch.cat(watched.drawn), torch.arange(2 * first, 80))  # each once
    assert any("tegu-sampling" in name for name in watched.threads) == waits


def test_each_iteration_is_trimmed_by_itself(tasks: FewShotTasks) -> None:
    padded = Padded(tasks)
    found = list(batches(padded, first=0, last=5, device=torch.device("cpu"), **ALL))
    assert padded.trimmed_at == [2] * 5
    for (number, episode, at), (_, whole, other) in zip(
        found, batches(tasks, first=0, last=5, **ALL), strict=True
    ):
        assert episode.query.y.shape[1] == 1 < whole.query.y.shape[1]
        assert torch.equal(episode.query.x, whole.query.x[:, :1])
        assert torch.equal(at, other), number


def test_blocks_grow_no_larger_than_their_bytes(
    tasks: FewShotTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tasks.episodes(torch.arange(2))
    size = sum(x.numel() * x.element_size() for half in one for x in half)
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * size)
    watched = Watched(tasks)
    tell(batches(watched, first=0, last=11, **ALL))
    assert [len(index) // 2 for index in watched.drawn] == [1, 3, 3, 3, 1]
    monkeypatch.setattr(module, "BLOCK_BYTES", 0)
    watched = Watched(tasks)
    tell(batches(watched, first=0, last=3, **ALL))
    assert [len(index) // 2 for index in watched.drawn] == [1, 1, 1]


@pytest.mark.parametrize("waits", [False, True])
def test_what_fails_while_drawing_is_told_where_it_would_be_used(
    tasks: FewShotTasks, waits: bool
) -> None:
    found = batches(Watched(tasks, waits, fails_at=2), first=0, last=40, **ALL)
    next(found)
    with pytest.raises(InputError, match="a broken file"):
        next(found)


def test_the_thread_ends_with_a_run_that_stops_early(tasks: FewShotTasks) -> None:
    found = batches(Watched(tasks, waits=True), first=0, last=1000, **ALL)
    next(found)
    next(found)
    found.close()
    assert not [t for t in threading.enumerate() if "tegu-sampling" in t.name]


def test_processes_draw_the_same_episodes(tasks: FewShotTasks) -> None:
    alone = tell(batches(tasks, first=3, last=150, **ALL))
    drawn = tell(batches(tasks, first=3, last=150, workers=2, **ALL))
    for (i, x, at), (j, y, to) in zip(alone, drawn, strict=True):
        assert i == j
        assert torch.equal(x, y)
        assert torch.equal(at, to)
    assert not multiprocessing.active_children()


def test_what_fails_in_a_process_is_told_where_it_would_be_used(tasks: FewShotTasks) -> None:
    found = batches(Watched(tasks, fails_at=2), first=0, last=40, workers=1, **ALL)
    next(found)
    with pytest.raises(InputError, match="a broken file") as failure:
        next(found)
    assert failure.value.todo == "Mend it."


@pytest.mark.parametrize("taken", [1, 3], ids=["while it draws", "before it is asked again"])
def test_a_process_that_was_killed_is_told_of(taken: int, tasks: FewShotTasks) -> None:
    found = batches(tasks, first=0, last=1000, workers=1, **ALL)
    for _ in range(taken):  # the first block is one iteration, and drawn by no worker
        next(found)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(InputError, match="has ended"):
        for _ in found:
            pass


def test_a_process_killed_while_it_writes_is_told_of(
    tasks: FewShotTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what it drew lies in the pipe then, and who reads waits for the other half."""
    pools: list[Any] = []

    def made(*args: Any, **settings: Any) -> Any:
        pools.append(ProcessPoolExecutor(*args, **settings))
        return pools[-1]

    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.setattr(module, "ProcessPoolExecutor", made)
    found = batches(tasks, first=0, last=1000, workers=2, **ALL)
    next(found)
    next(found)
    time.sleep(1)  # all that was asked for is drawn, and read
    a_thousand_bytes = struct.pack("!i", 1000)
    os.write(pools[0]._result_queue._writer.fileno(), a_thousand_bytes + b"a few")
    killed, _ = multiprocessing.active_children()
    os.kill(killed.pid or 0, signal.SIGKILL)
    with pytest.raises(InputError, match="has ended"):
        for _ in found:
            pass
    assert not multiprocessing.active_children()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same_episodes(toy_data: ClassDataset) -> None:
    here, there = (
        FewShotTasks(data, n_way=3, n_shot=2, n_query=1, seed=5)
        for data in (toy_data, toy_data.to("cuda"))
    )
    alone = tell(batches(here, first=3, last=150, **ALL))
    drawn = tell(batches(there, first=3, last=150, **ALL))
    for (i, x, at), (j, y, to) in zip(alone, drawn, strict=True):
        assert i == j
        assert y.is_cuda
        assert torch.equal(x, y.cpu())
        assert torch.equal(at, to.cpu())
