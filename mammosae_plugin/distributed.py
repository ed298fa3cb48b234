"""Several processes at one job: which of them this one is, what they do together, what they tell each other.

`torchrun` (torch.distributed.elastic) starts the processes on any number of hosts, watches them, and starts them anew
when one dies; nothing of that is here. What they share is a folder. Without torchrun there is one process, and every
function here is what it says for one.

An error must end all processes soon and be told once. Work that each does by itself stands in `together()`: what goes
wrong in one is raised in all, at the latest when they meet at the block's end, and earlier where they `check()`. A
process that fails elsewhere just ends, upon which torchrun ends the others.
"""

__all__ = [
    "add_up", "alone", "check", "ending", "gathered", "give_to_all", "is_first", "is_main", "least", "main_first",
    "mean", "on_main", "place", "rank", "require_same", "share", "spread", "start", "stop", "together", "world_size",
]  # fmt: skip

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from mammosae_plugin.arguments import shown
from mammosae_plugin.errors import InputError
from mammosae_plugin.progress import progress_bar

if TYPE_CHECKING:
    import torch

R = TypeVar("R")
T = TypeVar("T")

_IN_STEP = timedelta(minutes=30)  # for what all processes do at the same pace, a checkpoint's writing included
_AT_MEETINGS = timedelta(days=1)  # for shares of work, of which a slow host's may take hours more
_GRACE = timedelta(seconds=5)  # in which the first process may tell the error that another one has met too
_SPOKEN = "mammosae/spoken"


@dataclass
class _Team:
    """This process among the others.

    Attributes:
        store: What all processes can read and write, served by torchrun.
        meeting: The group in which they wait for each other.
        n_meetings: How many blocks of `together` there have been, the same number in every process.
        alone: How deep the process is in blocks of `alone`.
    """

    rank: int
    size: int
    store: Any
    meeting: Any
    n_meetings: int = 0
    alone: int = 0

    @property
    def error_key(self) -> str:
        return f"mammosae/error/{self.n_meetings}"


_team: _Team | None = None


class _Elsewhere(Exception):
    """Another process has failed; the meeting at the end of the block says how."""


def start() -> None:
    """Join the other processes, if torchrun started this one and it has not joined them yet.

    gloo carries what lies on the CPU, nccl what lies on GPUs, of which each process of a host takes its own.

    Raises:
        InputError: torchrun started more processes on this host than it has GPUs.
    """
    global _team
    if _team is not None or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if not dist.is_available() or not dist.is_torchelastic_launched():
        return
    backend = "gloo"
    n_devices = torch.cuda.device_count()
    if n_devices and _local_rank() < n_devices:
        torch.cuda.set_device(_local_rank())
        backend = "cpu:gloo,cuda:nccl"
    if dist.is_initialized():
        raise InputError(
            "torch.distributed is set up already; call mammosae_plugin.distributed.start() instead of "
            "init_process_group()"
        )
    served, rank, size = next(rendezvous("env://", timeout=_IN_STEP))
    store = dist.PrefixStore(_met(served, rank, size), served)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_IN_STEP)
    _team = _Team(rank, size, store, dist.new_group(backend="gloo", timeout=_AT_MEETINGS))


def _met(store: Any, rank: int, size: int) -> str:
    """A name for this start of all processes, under which they write what they tell each other.

    torchrun serves one store for all restarts, in which the addresses of processes that are dead still stand. So the
    first process invites under a name of chance, every other one answers with another, and is in when its own answer
    comes back.
    """
    mine, limit = uuid.uuid4().hex, time.monotonic() + _IN_STEP.total_seconds()
    prefix = "mammosae/start"
    if rank == 0:
        store.set(f"{prefix}/invitation", mine)
    while time.monotonic() < limit:
        if rank == 0:
            keys = [f"{prefix}/{mine}/{other}" for other in range(1, size)]
            if store.check(keys):
                store.set(f"{prefix}/{mine}", " ".join(store.get(key).decode() for key in keys))
                return f"{prefix}/{mine}"
        elif store.check([f"{prefix}/invitation"]):
            name = f"{prefix}/{store.get(f'{prefix}/invitation').decode()}"
            store.set(f"{name}/{rank}", mine)
            if store.check([name]) and store.get(name).decode().split()[rank - 1] == mine:
                return name
        time.sleep(0.02)
    raise InputError(f"process {rank} of {size} has waited {_IN_STEP} for the others; see what they say")


def stop() -> None:
    """Leave the other processes; at the end of a program in which nothing went wrong."""
    import torch.distributed as dist

    global _team
    if _team is not None:
        _team = None
        dist.destroy_process_group()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """The number of this process among all, from 0."""
    return 0 if _team is None or _team.alone else _team.rank


def world_size() -> int:
    """How many processes there are."""
    return 1 if _team is None or _team.alone else _team.size


def is_main() -> bool:
    """Whether this is the process that writes what only one may write, and shows progress."""
    return rank() == 0


def is_first() -> bool:
    """Whether this is the first process, also where it is by itself (`alone`)."""
    return _team is None or _team.rank == 0


def place(device: str) -> str:
    """The device of this process: where torchrun started it, "cuda" is the GPU of its own number on its host.

    Raises:
        InputError: No device has this name, the host has fewer GPUs than processes, or one GPU is named for all.
    """
    import torch

    start()
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is {shown(device)}: name one, such as cpu, cuda or cuda:1") from error
    if _team is None or wanted.type != "cuda":
        return str(wanted)
    local, n_devices = _local_rank(), torch.cuda.device_count()
    if local >= n_devices:
        raise InputError(
            f"torchrun started process {local} on a host with {n_devices} GPUs; give --nproc-per-node {n_devices}"
        )
    if wanted.index is not None and wanted.index != local:
        raise InputError(f"{device} is one GPU for several processes; give the device as cuda, and each takes its own")
    return f"cuda:{local}"


def share(items: Sequence[T]) -> list[T]:
    """Of things that all processes know in one order, those that this one does."""
    return list(islice(items, rank(), None, world_size()))


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process counts as the only one: it waits for nobody and shares nothing."""
    if _team is None:
        yield
        return
    team = _team
    team.alone += 1
    try:
        yield
    finally:
        team.alone -= 1


@contextmanager
def together() -> Iterator[None]:
    """A block that every process runs by itself, and leaves only when all have run it.

    An error in one is raised in all, as `InputError` where it is one or the system's (a full disk). The block must hold
    nothing in which processes wait for each other.
    """
    if _team is None or _team.alone:
        yield
        return
    team, problem = _team, None
    team.n_meetings += 1
    try:
        yield
    except Exception as error:
        problem = error
        team.store.set(team.error_key, "1")
    told = None
    if problem is not None and not isinstance(problem, _Elsewhere):
        told = (isinstance(problem, (InputError, OSError)), _text(problem))
    found = [(number, *one) for number, one in enumerate(_everyones(told)) if one is not None]
    if not found:
        return
    number, is_input, text = found[0]
    if problem is not None and number == team.rank:
        raise problem
    raise InputError(text) if is_input else RuntimeError(f"process {number} failed: {text}")


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def check() -> None:
    """Within a block of `together`: leave it if another process has failed."""
    if _team is not None and not _team.alone and _team.store.check([_team.error_key]):
        raise _Elsewhere


def _everyones(value: T) -> list[T]:
    """What each process gives, by number; each waits for all."""
    import torch.distributed as dist

    assert _team is not None
    values: list[Any] = [None] * _team.size
    dist.all_gather_object(values, value, group=_team.meeting)
    return values


def on_main(do: Callable[[], T]) -> T:
    """Let the first process do something while the others wait; all get what it gave, or its error."""
    if world_size() == 1:
        return do()
    value: Any = None
    with together():
        if is_main():
            with alone():
                value = do()
    found: T = _everyones(value)[0]
    return found


def spread(do: Callable[[T], R], items: Sequence[T], *, n_threads: int = 0, description: str, unit: str) -> list[R]:
    """What is made of each of many things, all of it in all processes, each of which makes its share.

    Args:
        do: Makes something, which can be pickled, of one thing.
        items: What all processes know in one order.
        n_threads: Threads of each process that make it; 0 makes it in the calling thread.
        description: For the progress bar, which the first process shows.
        unit: What an item is, for the progress bar.

    Returns:
        In the order of `items`.

    Raises:
        InputError: As `together`.
    """
    mine, made = share(items), []
    with (
        together(),
        progress_bar(
            total=len(mine), description=description, unit=unit, leave=False, shown=len(mine) > 0 and is_main()
        ) as bar,
        ThreadPoolExecutor(max(n_threads, 1)) as pool,
        closing(pool.map(do, mine) if n_threads else (do(item) for item in mine)) as results,  # type: ignore[type-var]
    ):
        for result in results:
            check()
            made.append(result)
            bar.update()
    if world_size() == 1:
        return made
    of_each = _everyones(made)
    return [of_each[number % len(of_each)][number // len(of_each)] for number in range(len(items))]


@contextmanager
def main_first() -> Iterator[None]:
    """A block that the first process runs before the others, which then find on disk what it has made."""
    if world_size() == 1:
        yield
    elif is_main():
        with together(), alone():
            yield
    else:
        with together():
            pass
        with alone():
            yield


def require_same(value: object, what: str) -> None:
    """Compare a value among all processes.

    Raises:
        InputError: They differ; `what` says what that means.
    """
    if world_size() > 1:
        found = _everyones(value)
        if any(other != found[0] for other in found):
            raise InputError(f"{what} ({', '.join(map(str, found))}); all hosts must share one folder")


def add_up(tensors: "Iterable[torch.Tensor]") -> None:
    """Replace each tensor by its sum over all processes."""
    import torch.distributed as dist

    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def least(tensor: "torch.Tensor") -> None:
    """Replace a tensor by the least of each of its values over all processes."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)


def mean(tensor: "torch.Tensor") -> "torch.Tensor":
    """The mean of a tensor over all processes, without gradient."""
    import torch.distributed as dist

    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gathered(tensor: "torch.Tensor") -> "torch.Tensor":
    """(world_size, ...): the tensors of all processes, which have one shape, without gradient."""
    import torch
    import torch.distributed as dist

    if world_size() == 1:
        return tensor.detach()[None]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.stack(parts)


def give_to_all(tensors: "Iterable[torch.Tensor]") -> None:
    """Replace each tensor by that of the first process."""
    import torch.distributed as dist

    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def ending(exit_code: int) -> tuple[bool, int]:
    """How this process ends upon an error: whether it tells the user, and the exit code, which is the teller's.

    The first process tells it if it meets the error too, else any one. A process that fails only since another one has
    left ends as that one did.
    """
    if _team is None:
        return True, exit_code
    try:
        end = time.monotonic() + _GRACE.total_seconds()
        while _team.rank and time.monotonic() < end and not _team.store.check([_SPOKEN]):
            time.sleep(0.05)
        mine = f"{_team.rank} {exit_code}"
        told = _team.store.compare_set(_SPOKEN, "", mine).decode()
    except Exception:  # the store has gone with torchrun
        return True, exit_code
    return told == mine, int(told.split()[1])
