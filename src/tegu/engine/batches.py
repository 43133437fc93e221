"""Draws the episodes of a run block by block, ahead of the work where that pays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tegu import keys
from tegu.engine.memory import kept
from tegu.engine.profile import part
from tegu.engine.trees import like, tensors_of
from tegu.episodes import Episode, moved, select
from tegu.errors import InputError
from tegu.sampling import Tasks

BLOCK = 32  # meta-iterations whose episodes are drawn together, at most
BLOCK_BYTES = 64 << 20  # that such a block may have

PATIENCE = 5.0  # seconds of waiting for a draw after which its process is looked at

ALL = slice(None)


def batches(
    tasks: Tasks,
    *,
    meta_batch: int,
    seed: int,
    first: int,
    last: int,
    own: slice = ALL,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    workers: int = 0,
) -> Iterator[Drawn]:
    """Iterations first to last - 1, each with its number, episodes and keys.

    Iteration i has episodes i * meta_batch and on, however blocks are cut, or those of
    them that `own` picks where processes share a meta-batch. With `workers`, so many
    processes draw the next blocks during the work on this one; and a thread does where
    `tasks.waits` says that drawing waits for files. Else whatever does the work would only
    be shared; but a GPU is asked for a block before it is done with the one before.

    Episodes are put on `device`, their numbers in `dtype`, or stay as they are drawn. Where
    tasks can leave out padding, each iteration has no more than its own episodes need
    (`tasks.trimmed`).
    """
    each = len(range(meta_batch)[own])

    def index_of(block: range, where: torch.device) -> Tensor:
        # Made where it is used: a copy to a GPU would wait for all that the GPU has to do.
        index = torch.arange(block.start * meta_batch, block.stop * meta_batch, device=where)
        return index.reshape(-1, meta_batch)[:, own].flatten()

    trim: Callable[[Episode], Episode] | None = getattr(tasks, "trimmed", None)

    def placed(episodes: Episode) -> Episode:
        return episodes if device is None else moved(episodes, device, dtype)

    def whole(episodes: Episode) -> Episode:
        # What is still to be trimmed is looked at for it: on a GPU that would wait.
        return episodes if trim else placed(episodes)

    def part_of(episodes: Episode, rows: slice) -> Episode:
        some = select(episodes, rows)
        return placed(trim(some)) if trim else some

    block = range(first, min(first + 1, last))  # one iteration says how many fit into a block
    with part("sampling"):
        found = tasks.episodes(index_of(block, torch.device("cpu")))
        episodes, drawn_on = whole(found), found.support.x.device
    root = keys.key(seed, "meta_train", device=drawn_on if device is None else device)
    size = sum(x.numel() * x.element_size() for x in tensors_of(episodes))
    length = max(1, min(BLOCK, BLOCK_BYTES // max(size, 1)))
    blocks = (range(at, min(at + length, last)) for at in range(block.stop, last, length))
    with ExitStack() as stack:
        reader = _reader(tasks, workers, episodes, stack)
        coming: deque[tuple[range, Callable[[], Episode]]] = deque()

        def ask(count: int) -> None:
            for block in islice(blocks, count):
                coming.append((block, reader(index_of(block, drawn_on))))

        ask(2 * workers or 1)
        while True:
            at = keys.fold(root, index_of(block, root.device))
            for i, number in enumerate(block):
                if number == block[-1] and coming and drawn_on.type != "cpu":
                    # Asked for while the GPU still has this block's work before it.
                    with part("sampling"):
                        following, drawn = coming.popleft()
                        coming.appendleft((following, partial(whole, drawn())))
                rows = slice(i * each, (i + 1) * each)
                yield number, part_of(episodes, rows), at[rows]
            if not coming:
                return
            block, drawn = coming.popleft()
            with part("sampling"):
                episodes = whole(drawn())
            ask(1)


Drawn = tuple[int, Episode, Tensor]
"""An iteration's number, episodes and keys."""


class WorkersError(InputError):
    """A process that draws tasks is gone."""


# From episodes' numbers to a function that waits for them.
Reader = Callable[[Tensor], Callable[[], Episode]]


def _reader(tasks: Tasks, workers: int, like_these: Episode, stack: ExitStack) -> Reader:
    """Who draws: other processes, a thread, or whoever asks, when it asks for them."""
    if workers:
        # Begun anew, since what uses a GPU, or threads, cannot be forked.
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(tasks,)
        )
        stack.callback(pool.shutdown, cancel_futures=True)

        def from_processes(index: Tensor) -> Callable[[], Episode]:
            with _ended():
                coming = pool.submit(_draw, index.numpy())
            return lambda: _received(coming, pool, like_these)

        return from_processes
    if getattr(tasks, "waits", False):
        # Its tensor operations take no cores from the work.
        thread = ThreadPoolExecutor(1, "tegu-sampling", torch.set_num_threads, (1,))
        stack.callback(thread.shutdown, cancel_futures=True)
        usual = torch.get_num_threads()
        thread.submit(int).result()  # by then it has set its own number, and all later threads'
        torch.set_num_threads(usual)
        return lambda index: thread.submit(tasks.episodes, index).result
    return lambda index: partial(tasks.episodes, index)


_tasks: Tasks  # of a process that draws
_all_its_life = kept()


def _begin(tasks: Tasks) -> None:
    global _tasks
    _tasks = tasks
    _all_its_life.__enter__()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run's own process ends all
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """A run that is killed cannot end its processes, and their queue would never."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _draw(index: np.ndarray) -> list[np.ndarray]:
    return [x.numpy() for x in tensors_of(_tasks.episodes(torch.from_numpy(index)))]


def _received(
    coming: Future[list[np.ndarray]], pool: ProcessPoolExecutor, like_these: Episode
) -> Episode:
    while not wait([coming], PATIENCE).done:
        _break_if_stuck(pool)
    with _ended():
        found: Episode = like(like_these, map(torch.from_numpy, coming.result()))
    return found


def _break_if_stuck(pool: Any) -> None:
    """Has a pool see that one of its processes is gone.

    One that was killed while it wrote has left half of a draw in the pool's pipe. The pool waits
    for the other half, since it holds the writing end too, and others wait for their turn to write.
    """
    processes = list((pool._processes or {}).values())
    if not all(process.is_alive() for process in processes):
        for process in processes:
            process.kill()
        pool._result_queue._writer.close()


@contextmanager
def _ended() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as failure:
        raise WorkersError(
            "a process that draws tasks has ended",
            "engine.workers that live as long as the run",
            "Look whether memory is short; resume the run, with fewer workers perhaps.",
        ) from failure
