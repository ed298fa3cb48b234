"""Rows in random order from blocks on disk: bounded memory, every row once per epoch, resumable at any batch.

An epoch draws a new order of all blocks. Blocks are read in that order into a reservoir, where their rows lie in
random places; when it is full its rows are given out, while threads fill the next. A row's place in the stream is a
function of (seed, epoch, number of the filling) alone, so the state of a run is its seed and the number of batches
taken, and going on from there reads no more than one filling.
"""

__all__ = ["BlockReader", "ending", "ordered_batches", "READERS", "shuffled_batches"]

import os
import sys
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mammosae_plugin.errors import InputError

READERS = min(8, os.cpu_count() or 1)  # threads that read, check and place blocks beside the training step


@dataclass(frozen=True)
class BlockReader:
    """Rows in blocks, the unit of reading.

    Attributes:
        lengths: (n_blocks,) rows in each block.
        read: Gives block b as (lengths[b], width), of the stream's dtype; called from several threads.
        width: Features per row.
        dtype: Type of the rows in memory.
    """

    lengths: NDArray[np.int64]
    read: Callable[[int], torch.Tensor]
    width: int
    dtype: torch.dtype


def shuffled_batches(
    blocks: BlockReader,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    reservoir_rows: int,
    epoch_rows: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[torch.Tensor]:
    """An endless stream of (batch_size, width) float32 batches, every row exactly once per epoch.

    A batch may span two epochs: the ragged end of one is carried over into the next, so all batches have one size and
    no row is dropped.

    Args:
        blocks: The rows.
        batch_size: Rows per batch.
        seed: Chooses the orders, not negative.
        start: Number of batches to pass over: a stream from batch n equals the stream from 0 after n batches.
        reservoir_rows: Rows in memory: half are given out while the other half is filled. Two blocks at least.
        epoch_rows: End each epoch after so many rows of its order; None gives all.
        part: Number r of n: give only the rows [r * batch_size / n, (r + 1) * batch_size / n) of each batch.

    Raises:
        InputError: An impossible setting, or no row at all.
    """
    epoch_rows, mine = _checked(blocks, batch_size, seed, start, reservoir_rows, epoch_rows, part)
    epoch, offset = divmod(start * batch_size, epoch_rows)
    window_rows = reservoir_rows // 2
    windows = _windows(blocks.lengths, seed, epoch, offset, window_rows, epoch_rows)
    return _batches(_filled(blocks, windows, window_rows), batch_size, blocks.width, mine)


def ordered_batches(
    blocks: BlockReader,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    reservoir_rows: int,
    epoch_rows: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[torch.Tensor]:
    """The same stream with the rows in the order in which they are stored, whatever the seed.

    The arguments are those of `shuffled_batches`.
    """
    epoch_rows, mine = _checked(blocks, batch_size, seed, start, reservoir_rows, epoch_rows, part)
    return _batches(_in_order(blocks, start * batch_size % epoch_rows, epoch_rows), batch_size, blocks.width, mine)


def ending(
    batches: Iterator[torch.Tensor],
    batch_size: int,
    *,
    start: int,
    rows: int,
    drop_last: bool,
    part: tuple[int, int] = (0, 1),
) -> Iterator[torch.Tensor]:
    """The batches of an endless stream that began at batch `start`, until `rows` rows of it from its beginning."""
    n_whole, rest = divmod(rows, batch_size)
    yield from islice(batches, max(0, n_whole - start))
    size = batch_size // part[1]
    mine = min(max(0, rest - part[0] * size), size)
    if mine and not drop_last and start <= n_whole:
        yield next(batches)[:mine]


def _checked(
    blocks: BlockReader,
    batch_size: int,
    seed: int,
    start: int,
    reservoir_rows: int,
    epoch_rows: int | None,
    part: tuple[int, int],
) -> tuple[int, range]:
    """Rows per epoch, and which rows of each batch are given."""
    n_rows = int(blocks.lengths.sum())
    epoch_rows = n_rows if epoch_rows is None else epoch_rows
    for name, value, least in (("batch_size", batch_size, 1), ("start", start, 0), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    if reservoir_rows < 2:
        raise InputError(f"reservoir_rows is {reservoir_rows}; it must be at least 2")
    if n_rows == 0:
        raise InputError("there is no row to read; check which images were chosen")
    if not 1 <= epoch_rows <= n_rows:
        raise InputError(f"epoch_rows is {epoch_rows}; it must be from 1 to the number of rows, {n_rows}")
    number, n_parts = part
    if not 0 <= number < n_parts or batch_size % n_parts:
        raise InputError(f"there is no part {number} of {n_parts} equal parts of a batch of {batch_size} rows")
    size = batch_size // n_parts
    return epoch_rows, range(number * size, (number + 1) * size)


def _batches(
    pieces: Iterator[torch.Tensor], batch_size: int, width: int, mine: range
) -> Generator[torch.Tensor, None, None]:
    memory = _Recycled(len(mine), width)
    batch, filled = memory.take(), 0
    for rows in pieces:
        taken = 0
        while taken < len(rows):
            n = min(batch_size - filled, len(rows) - taken)
            first, last = max(filled, mine.start), min(filled + n, mine.stop)  # of these rows' places in the batch
            if first < last:
                batch[first - mine.start : last - mine.start] = rows[taken + first - filled : taken + last - filled]
            taken, filled = taken + n, filled + n
            if filled == batch_size:
                yield batch
                batch, filled = memory.take(), 0


def _in_order(blocks: BlockReader, offset: int, epoch_rows: int) -> Generator[torch.Tensor, None, None]:
    """Blocks one after the other, from row `offset` of an epoch on, for ever."""
    ends = np.cumsum(blocks.lengths)
    while True:
        for block in np.flatnonzero((ends > offset) & (blocks.lengths > 0)).tolist():
            first = int(ends[block] - blocks.lengths[block])
            given = slice(max(0, offset - first), min(int(blocks.lengths[block]), epoch_rows - first))
            if given.start < given.stop:
                yield blocks.read(block)[given]
        offset = 0


class _Recycled:
    """Tensors whose memory is used again once nobody holds it: fresh pages cost several times what filling does."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape
        self._free: list[NDArray[np.float32]] = []

    def take(self) -> torch.Tensor:
        memory = self._free.pop() if self._free else np.empty(self._shape, np.float32)
        lease = memory.view()  # the tensor's storage holds it, and so does whatever shares that storage
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return torch.from_numpy(lease)


@dataclass(frozen=True)
class _Window:
    """One filling of the reservoir: its blocks, the place of each of their rows, and which places are given out."""

    blocks: NDArray[np.int64]
    places: NDArray[np.int64]
    given: slice


def _windows(
    lengths: NDArray[np.int64], seed: int, epoch: int, offset: int, window_rows: int, epoch_rows: int
) -> Iterator[_Window]:
    """The fillings from row `offset` of an epoch on, for ever; each has at most `window_rows` rows, or is one block."""
    step = max(1, window_rows - int(lengths.max()) + 1)
    for number in count(epoch):
        order = np.random.default_rng([seed, number, 0]).permutation(np.flatnonzero(lengths))
        ends = np.cumsum(lengths[order])
        _, firsts = np.unique((ends - 1) // step, return_index=True)
        for window, members in enumerate(np.split(order, firsts[1:])):
            first = int(ends[firsts[window]] - lengths[members[0]])
            n_rows = int(lengths[members].sum())
            given = slice(max(0, offset - first), min(n_rows, epoch_rows - first))
            if given.start < given.stop:
                places = np.random.default_rng([seed, number, window + 1]).permutation(n_rows)
                yield _Window(members, places, given)
        offset = 0


def _filled(blocks: BlockReader, windows: Iterator[_Window], window_rows: int) -> Generator[torch.Tensor, None, None]:
    """The rows of each window in their places, while the next one is read; they are overwritten after that."""
    capacity = min(int(blocks.lengths.sum()), max(window_rows, int(blocks.lengths.max())))
    reservoirs = [torch.empty(capacity, blocks.width, dtype=blocks.dtype) for _ in range(2)]
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="reservoir")

    def place(block: int, places: NDArray[np.int64], into: NDArray[Any]) -> None:
        into[places] = _plain(blocks.read(block))  # NumPy scatters rows twice as fast as torch

    def begin(window: _Window) -> list[Future[None]]:
        into = _plain(reservoirs[1])
        pieces = np.split(window.places, np.cumsum(blocks.lengths[window.blocks])[:-1])
        work = zip(window.blocks.tolist(), pieces, strict=True)
        return [readers.submit(place, block, places, into) for block, places in work]

    try:
        window = next(windows)
        reading = begin(window)
        while True:
            for done in reading:
                done.result()
            reservoirs.reverse()
            rows, window = reservoirs[0][window.given], next(windows)
            reading = begin(window)
            yield rows
    finally:
        if not sys.is_finalizing():  # then the module of queues is gone, and the threads are
            readers.shutdown(wait=False, cancel_futures=True)


def _plain(rows: torch.Tensor) -> NDArray[Any]:
    """The same memory as integers of the same size, which NumPy knows for every type."""
    integers: NDArray[Any] = rows.view(torch.int16 if rows.element_size() == 2 else torch.int32).numpy()
    return integers
