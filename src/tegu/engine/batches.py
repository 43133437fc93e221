"""Draws the episodes of a run block by block, ahead of the work where that pays."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor

from tegu import keys
from tegu.engine.profile import part
from tegu.engine.trees import tensors_of
from tegu.episodes import Episode, moved, select
from tegu.sampling import Tasks

BLOCK = 32  # meta-iterations whose episodes are drawn together, at most
BLOCK_BYTES = 64 << 20  # that such a block may have

ALL = slice(None)
Drawn = tuple[Episode, Tensor]  # episodes, and a key for each


def batches(
    tasks: Tasks,
    *,
    meta_batch: int,
    seed: int,
    first: int,
    last: int,
    own: slice = ALL,
    device: torch.device | None = None,
) -> Iterator[tuple[int, Episode, Tensor]]:
    """Iterations first to last - 1, each with its number, episodes and keys.

    Iteration i has episodes i * meta_batch and on, however blocks are cut, or those of
    them that `own` picks where processes share a meta-batch. A thread draws the next block
    during the work on this one where `tasks.waits` says that drawing waits for files. Else
    whatever does the work would only be shared: a GPU is asked for a block ahead of its work
    anyway.

    Episodes are put on `device`, or stay where they are drawn.
    """
    root, each = keys.key(seed, "meta_train"), len(range(meta_batch)[own])

    def draw(block: range) -> Drawn:
        index = torch.arange(block.start * meta_batch, block.stop * meta_batch)
        index = index.reshape(-1, meta_batch)[:, own].flatten()
        episodes = tasks.episodes(index)
        if device is not None:
            episodes = moved(episodes, device)
        return episodes, keys.fold(root, index).to(episodes.support.x.device)

    block = range(first, min(first + 1, last))  # one iteration says how many fit into a block
    with part("sampling"):
        drawn = draw(block)
    size = sum(x.numel() * x.element_size() for x in tensors_of(drawn[0]))
    length = max(1, min(BLOCK, BLOCK_BYTES // max(size, 1)))
    ahead = getattr(tasks, "waits", False)
    with ExitStack() as stack:
        reader = stack.enter_context(_reader()) if ahead else None
        while block:
            following = range(block.stop, min(block.stop + length, last))
            coming: Future[Drawn] | None = None
            if reader and following:
                coming = reader.submit(draw, following)
            episodes, at = drawn
            for i, number in enumerate(block):
                rows = slice(i * each, (i + 1) * each)
                yield number, select(episodes, rows), at[rows]
            block = following
            if block:
                with part("sampling"):
                    drawn = coming.result() if coming else draw(block)


def _reader() -> ThreadPoolExecutor:
    """One thread, whose tensor operations take no cores from the work."""
    return ThreadPoolExecutor(1, "tegu-sampling", torch.set_num_threads, (1,))
