"""Work that is killed outright at a chosen moment, in processes of a program of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from threadpoolctl import threadpool_limits

WRITES = ((os, "replace"), (safetensors.torch, "save_file"), (os, "fsync"))
"""What writing a file calls: before it gets its name, before anything is written, before it is on the disk."""


def ended(program: str, *arguments: object) -> str:
    """What a Python program printed that ran in a process of its own with one thread; it must end well."""
    tests = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def killed_at(moment: int | None, work: Callable[[], object], calls: Sequence[tuple[Any, str]]) -> bool:
    """Do some work in a child process that kills itself at the `moment`-th of these calls; whether it came to that.

    Args:
        moment: Counted from 1; None: never.
        work: What is done.
        calls: (module, name) of the functions whose calls count, beside `WRITES`.
    """
    child = os.fork()
    if child == 0:
        try:
            threadpool_limits(1)  # threads of a pool are no part of a fork, and the child would wait for them
            torch.set_num_threads(1)
            _die_at(moment, (*calls, *WRITES))
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def _die_at(moment: int | None, functions: Sequence[tuple[Any, str]]) -> None:
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **settings: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **settings)

        return count

    for module, name in functions:
        setattr(module, name, counted(getattr(module, name)))
