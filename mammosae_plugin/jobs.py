"""Pieces of work done by several processes of this machine, whose results come in order and whose errors stay short."""

__all__ = ["run_jobs"]

import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mammosae_plugin.errors import InputError
from mammosae_plugin.progress import progress

_T = TypeVar("_T")


class _Told(Dataset[Any]):
    """Results, or the errors met: raised in a worker process they would arrive as tracebacks of many lines."""

    def __init__(self, work: Dataset[Any]) -> None:
        self.work = work

    def __getitem__(self, at: int) -> Any:
        try:
            return self.work[at]
        except (InputError, OSError) as error:
            return error


def run_jobs(
    work: Dataset[_T], num_workers: int, description: str, *, unit: str = "item", shown: bool = True
) -> list[_T]:
    """All results of a piece of work, in order.

    Args:
        work: Gives the result of each piece, which must not depend on those before it.
        num_workers: Processes, each of one thread, that end when this one does; 0 works in this process. No more are
            started than there are cores or pieces.
        description: For the progress bar.
        unit: What a piece is, for the progress bar.
        shown: Whether there is a bar.

    Raises:
        InputError, OSError: What a piece met, the first in order.
    """
    n: int = len(work)  # type: ignore[arg-type]  # all of them have a length
    loader: Iterator[Any] = iter(
        DataLoader(
            _Told(work),
            sampler=range(n),
            batch_size=None,
            num_workers=min(num_workers, n, _n_cores()),
            generator=torch.Generator(),  # else it draws from everybody's
        )
    )
    results = []
    for result in progress(loader, total=n, description=description, unit=unit, shown=n > 0 and shown):
        if isinstance(result, Exception):
            raise result
        results.append(result)
    return results


def _n_cores() -> int:
    """Cores that this process may use, which a batch system may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
