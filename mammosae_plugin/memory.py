"""Memory that a process has freed, kept for its next buffers instead of given back to the system."""

__all__ = ["keep_freed_memory"]

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_THEIR_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let the C library keep large buffers that the main thread has freed, until the process ends.

    A network on full-size mammograms makes and frees gigabytes of maps per image. By default glibc returns each to the
    system, which clears every page anew when it is touched again; in a virtual machine that can take longer than the
    network's arithmetic. What was once needed is given back only at the end, and buffers that grow from one to the next
    leave gaps: where sizes repeat, as in passes over images, peak memory stays about the same. No value changes. The
    command `mammosae` calls this; a program of your own may, before its work begins.

    Returns:
        Whether the setting was made. It is left alone where the C library is another one (macOS, Windows, musl), and
        where the environment says how glibc keeps memory (`MALLOC_MMAP_MAX_`, `MALLOC_MMAP_THRESHOLD_`,
        `MALLOC_TRIM_THRESHOLD_`, or `glibc.malloc` in `GLIBC_TUNABLES`).
    """
    theirs = any(name in os.environ for name in _THEIR_SETTINGS)
    if not sys.platform.startswith("linux") or theirs or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
    except OSError:  # a statically linked interpreter
        return False
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    # No buffer is mapped by itself, and the heap never shrinks (-1: no threshold).
    return bool(library.mallopt(_M_MMAP_MAX, 0)) and bool(library.mallopt(_M_TRIM_THRESHOLD, -1))
