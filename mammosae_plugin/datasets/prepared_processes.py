"""Images prepared by several processes, in order; a file that kills its process costs one image and no more."""

__all__ = ["in_processes"]

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

from mammosae_plugin.datasets.prepared_images import How, ImageJob, Record, prepare_one, unprepared
from mammosae_plugin.memory import keep_freed_memory

_AHEAD = 4  # images per process that wait for their turn or to be taken
_KILLER = "the program that decodes it crashes"


def in_processes(jobs: Sequence[ImageJob], how: How, workers: int) -> Generator[Record, None, None]:
    """The record of every job, in order.

    Args:
        jobs: What is prepared.
        how: How it is.
        workers: Processes; 0 prepares in this one.
    """
    if workers == 0:
        for job in jobs:
            yield prepare_one(job, how)
        return
    left = iter(jobs)
    pool = _pool(workers)
    pending: deque[tuple[ImageJob, Future[Record]]] = deque()
    try:
        while True:
            for job in islice(left, _AHEAD * workers - len(pending)):
                pending.append((job, pool.submit(prepare_one, job, how)))
            if not pending:
                return
            job, future = pending[0]
            try:
                record = future.result()
            except BrokenProcessPool:
                waiting = [one for one, _ in pending]
                pending.clear()
                pool.shutdown(wait=True, cancel_futures=True)
                for one in waiting:  # each in a process of its own: which of them was it?
                    yield _alone(one, how)
                pool = _pool(workers)
                continue
            pending.popleft()
            yield record
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(job: ImageJob, how: How) -> Record:
    with _pool(1) as pool:
        try:
            return pool.submit(prepare_one, job, how).result()
        except BrokenProcessPool:
            return unprepared(job, _KILLER)


def _pool(workers: int) -> ProcessPoolExecutor:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])  # what is imported once need not be for every process
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Leave the keys to the parent, end when it ends, however it ends, and keep buffers, whose sizes repeat."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
