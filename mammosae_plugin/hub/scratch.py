"""Folders in the place for temporary files, which a later run removes where the process that made them was killed.

A process id would not tell whose a folder is: it may be another's by now, or mean nothing in another container. A lock
on a file does: the system lets go of it when its process ends, however it ends.
"""

__all__ = ["PREFIX", "Scratch", "tidy"]

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

if sys.platform != "win32":  # where nothing is tidied
    import fcntl

PREFIX = "mammosae-"
_LOCK = "lock"


class Scratch:
    """A new, empty folder for one process; what killed processes left is removed on the way.

    Args:
        purpose: goes into its name.

    Attributes:
        folder: the folder; nothing of ours is in it.
    """

    def __init__(self, purpose: str) -> None:
        tidy()
        while True:
            self._place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
            self._handle: int | None = os.open(self._place / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(self._handle, wait=True)
            if (self._place / _LOCK).exists():
                break
            os.close(self._handle)  # a run that tidied came between the making of the lock and its locking
        self.folder = self._place / "files"
        self.folder.mkdir()

    def remove(self) -> None:
        """Remove it with all it holds; doing so twice does nothing more."""
        if self._handle is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            os.close(self._handle)
            self._handle = None


def tidy() -> None:
    """Remove the folders of this user whose process has ended without doing so."""
    if sys.platform == "win32":
        return
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it has gone meanwhile, or is none of ours
            found = place.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            handle = os.open(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle, wait=False):
                    shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the file is locked for this process now."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by a living process; or this file system knows no locks, and nothing is tidied on it
        return False
    return True
