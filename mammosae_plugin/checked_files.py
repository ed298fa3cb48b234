"""Whether the files of a folder are what was written: read once, and again when their size or times are other."""

__all__ = ["changed_files", "note_of"]

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file, sha256_of_json, write_json

_SETTLED = 2.0  # seconds after which another write gives a file another time, on every file system in use


def changed_files(folder: Path, digests: Mapping[str, str], *, anew: bool = False) -> list[str]:
    """The files of a folder that are missing, or that do not have the SHA-256 that was recorded.

    One that was found whole is not read again until its size, or the time of its last change, is another: that of the
    inode counts too, which a copy that keeps the other time does not keep. Damage by a disk changes no time, and is
    found where a file is used, or with `anew`.

    Args:
        folder: Where they lie; what was found whole is noted in the user's cache, and no file of the folder changes.
        digests: The SHA-256 of each by name.
        anew: Read them all.
    """
    before = {} if anew else _checked(folder)
    whole: dict[str, Any] = {}
    for name, digest in digests.items():
        entry = _entry(folder / name, digest)
        if entry is not None and (before.get(name) == entry or sha256_of_file(folder / name) == digest):
            whole[name] = entry
    oldest = (time.time() - _SETTLED) * 1e9
    known = {name: entry for name, entry in whole.items() if entry[-1] < oldest}
    if anew or not known.items() <= before.items():
        with suppress(OSError, InputError):  # where nothing can be written, files are read again
            write_json(note_of(folder), before | known)
    return [name for name in digests if name not in whole]


def _entry(path: Path, digest: str) -> list[Any] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [digest, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def note_of(folder: Path) -> Path:
    """The file that says what was found whole in a folder: name -> SHA-256, and size and times of the file."""
    general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("MAMMOSAE_CACHE") or Path(general, "mammosae"))
    return cache / "checked" / f"{sha256_of_json(str(folder.resolve()))[:32]}.json"


def _checked(folder: Path) -> dict[str, Any]:
    note = note_of(folder)
    try:
        found = read_json(note) if note.exists() else {}
    except (InputError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
