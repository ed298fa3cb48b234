"""One run at a time in one output folder; the others are told so and change nothing.

The lock is the operating system's on a hidden file: it lets go when the process ends, however it ends, so that a killed
run can be continued at once. Record locks (`fcntl.lockf`) are used, which network file systems pass on to their server,
and which a killed run's surviving worker processes do not hold. Where a file system knows no locks, the file's being
there is the lock, and it is stale if its process no longer runs; of a process on another host that cannot be seen.

Under torchrun the processes are one run: the first of them holds the lock for all.
"""

__all__ = ["LOCK", "only_run"]

import contextlib
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from mammosae_plugin import distributed
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import make_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".mammosae.lock"
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}

_held: dict[Path, tuple[int, int]] = {}  # by lock file its process and thread, which record locks do not keep apart
_held_guard = threading.Lock()


@contextmanager
def only_run(*folders: Path, file: Path | None = None) -> Iterator[None]:
    """A block in which no other run works on these outputs; blocks of one thread may be nested.

    Args:
        folders: Folders, in which the locks lie; made if absent.
        file: A file, beside which the lock lies.

    Raises:
        InputError: Another run works on one of them; nothing was changed.
    """
    locks = {folder.resolve() / LOCK: folder for folder in folders}
    if file is not None:
        locks[file.resolve().with_name(f".{file.resolve().name}.lock")] = file
    with ExitStack() as stack:

        def acquire() -> None:
            for lock, place in sorted(locks.items()) if distributed.is_first() else ():
                stack.enter_context(_locked(lock, place))

        distributed.start()
        distributed.on_main(acquire)
        yield


@contextmanager
def _locked(lock: Path, place: Path) -> Iterator[None]:
    me = os.getpid(), threading.get_ident()
    with _held_guard:
        holder = _held.get(lock)
        if holder is None or holder[0] != me[0]:  # of the process that this one was forked from
            _held[lock] = me
    if holder == me:
        yield
        return
    if holder is not None and holder[0] == me[0]:
        raise InputError(f"{place} is being written by another thread of this process; wait for it, or name another")
    folder, was_there = lock.parent, lock.parent.exists()
    try:
        make_folder(folder)
        handle = _acquire(lock, place)
        try:
            yield
        finally:
            _release(lock, handle)
    finally:
        del _held[lock]
        if not was_there:
            with contextlib.suppress(OSError):  # something has been written there
                folder.rmdir()


def _acquire(lock: Path, place: Path) -> int:
    """Lock the file and write in it who holds it; returns its descriptor, the only one that may be opened and closed.

    Closing another one of the same file would let go of the lock.
    """
    while True:
        handle, is_new = _open(lock)
        try:
            locked, holder = _lock(handle), _read(handle)
            if not _is_at(handle, lock):  # its holder has removed it, and another run may have made a new one
                os.close(handle)
                continue
            if locked is False:
                raise InputError(_busy(place, holder, "wait for it"))
            if locked is None and not is_new:
                if not holder or _may_run(holder):
                    raise InputError(_busy(place, holder, f"wait for it, delete {lock} if that process has ended"))
                lock.unlink()
                os.close(handle)
                continue
            os.truncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(_own_record()).encode())
            return handle
        except BaseException:
            os.close(handle)
            raise


def _open(lock: Path) -> tuple[int, bool]:
    """A descriptor of the file, and whether it was made just now."""
    while True:
        try:
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError as error:
            if lock.is_dir() or (lock.is_symlink() and not lock.exists()):
                what = "a folder" if lock.is_dir() else "a link to nothing"
                raise InputError(f"{lock} is {what}, where the lock of its folder goes; remove it") from error
            with contextlib.suppress(FileNotFoundError):  # its holder has just removed it
                return os.open(lock, os.O_RDWR), False


def _release(lock: Path, handle: int) -> None:
    if sys.platform == "win32":  # which removes no open file
        os.close(handle)
    with contextlib.suppress(OSError):
        lock.unlink()
    if sys.platform != "win32":
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether the file is locked for this process now; None where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, 1 << 20, os.SEEK_SET)  # behind the record, which others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _TAKEN else None
    return True


def _is_at(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _own_record() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _read(handle: int) -> dict[str, Any]:
    """Who holds the lock; empty while nobody has written it."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(handle, 1 << 12) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _may_run(holder: dict[str, Any]) -> bool:
    """Whether the process in the record may still run; of another host's nobody knows."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("host") != socket.gethostname():
        return True
    start = _process_start(pid)
    return start is not None and start == holder.get("process_start")


def _process_start(pid: int) -> str | None:
    """When a process of this host started, in the system's own form; "" where none can be had, None without process."""
    if sys.platform == "win32":
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # somebody else's
        return ""
    return ""


def _busy(place: Path, holder: dict[str, Any], way_out: str) -> str:
    who = "".join(f" {word} {holder[key]}" for word, key in _TOLD.items() if key in holder)
    return f"{place} is being written by another run{who and f' ({who.strip()})'}; {way_out}, or name another output"


_TOLD = {"process": "pid", "on": "host", "since": "since"}
