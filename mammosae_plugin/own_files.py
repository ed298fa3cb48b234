"""Folders in which files of ours lie beside a user's: what we wrote is replaced and removed, and nothing else.

A record says with which SHA-256 each file was written. A file that has another one has been edited, and one without an
entry was never ours; both are the user's.
"""

__all__ = [
    "Digests",
    "empty_staging",
    "RECORD",
    "remove_files",
    "replace_files",
    "replace_folder",
    "require_own",
    "STAGING",
]

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, atomic_path, read_json, sha256_of_file, write_json

logger = logging.getLogger(__name__)

RECORD = ".mammosae-files.json"
STAGING = f"{TEMPORARY}results"

Digests = dict[str, list[str]]
"""By path relative to the folder, "/" between its parts: the SHA-256 of every content that may be ours."""


def empty_staging(folder: Path) -> Path:
    """A new, empty folder inside `folder`, to write in what `replace_files` then puts there."""
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a killed process
    staging.mkdir(parents=True)
    return staging


def replace_files(staged: Path, folder: Path, *, record: Path | None = None) -> None:
    """Put all files of `staged` into `folder`, and remove those of ours that are no longer among them.

    What the user has edited under a name of ours is renamed (`table_1.csv` to `table_1.edited.csv`) before the new file
    takes its place; where there is no new one it stays. A killed call is made good by the next one.

    Args:
        staged: Files in the layout that they shall have; they stay.
        folder: Where they go; made if absent.
        record: The file with the digests; by default a hidden one in `folder`.
    """
    record = record or folder / RECORD
    before = _recorded(record)
    now = {path.relative_to(staged).as_posix(): sha256_of_file(path) for path in _files(staged)}
    both = {name: [*before.get(name, []), *([now[name]] if name in now else [])] for name in {**before, **now}}
    write_json(record, both)  # before the first of them is there: killed now, this run's files are known as ours too
    for name, digest in now.items():
        target = folder / name
        if target.exists() and not target.is_dir() and sha256_of_file(target) == digest:
            continue
        if target.exists() and not _is_own(target, both[name]):
            logger.warning("%s was edited; it is kept as %s", target, put_aside(target).name)
        for parent in target.parents[: len(Path(name).parents) - 1]:
            if parent.is_file():
                logger.warning("%s is no folder of ours; it is kept as %s", parent, put_aside(parent).name)
        with atomic_path(target) as temporary:
            shutil.copyfile(staged / name, temporary)
    _remove(folder, {name: digests for name, digests in before.items() if name not in now})
    write_json(record, {name: [digest] for name, digest in now.items()})


def require_unclaimed(folder: Path, begun: Iterable[str], written: Iterable[str]) -> None:
    """Refuse a folder in which a file of somebody else's would be overwritten.

    Args:
        folder: Where a job is to write.
        begun: Files of which one is there as soon as the job has begun: then the rest are its own.
        written: Files that it writes, or that are of another job which needs the folder for itself.

    Raises:
        InputError: One of these is there, and the job has not begun.
    """
    if any((folder / name).exists() for name in begun):
        return
    for name in written:
        if (folder / name).exists():
            raise InputError(f"{folder / name} is in the way, and of no earlier run; move it, or name another folder")


def require_own(files: Iterable[Path], record: Path) -> None:
    """Refuse to write over what no earlier run has written.

    Args:
        files: What `replace_files` is to write, beside the record.
        record: As for `replace_files`.

    Raises:
        InputError: One of these is there and not in the record, or the record names another file that is there and
            would be removed; nothing was changed.
    """
    known, files = _recorded(record) if record.exists() else {}, list(files)
    for path in files:
        if (path.exists() or path.is_symlink()) and path.name not in known:
            raise InputError(f"{path} is in the way, and of no earlier run; move it, or name another file")
    for name in known.keys() - {path.name for path in files}:
        if (other := record.with_name(name)).exists():
            raise InputError(f"{other} was written by an earlier run and would be lost; move it, or name another file")


def are_untouched(folder: Path) -> bool:
    """Whether all files that `replace_files` has put into a folder last are there as they were written."""
    record = folder / RECORD
    recorded = _recorded(record) if record.exists() else {}
    return bool(recorded) and all(
        len(digests) == 1 and _is_own(folder / name, digests) for name, digests in recorded.items()
    )


def remove_files(folder: Path) -> None:
    """Remove our files from a folder, and the folder itself if nothing else is in it."""
    record = folder / RECORD
    if not record.exists():
        return
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    _remove(folder, _recorded(record))
    record.unlink()
    _remove_if_empty(folder)


def replace_folder(staged: Path, folder: Path) -> None:
    """`replace_files` for a folder that goes out with all that is in it, so that nothing else may lie there.

    The record lies beside the folder.

    Raises:
        InputError: A file there was edited, or is none of ours; nothing was changed.
    """
    record = _record_beside(folder)
    before = _recorded(record)
    for path in _files(folder):
        name = path.relative_to(folder)
        same = (staged / name).is_file() and _is_own(path, [sha256_of_file(staged / name)])
        if not same and not _is_own(path, before.get(name.as_posix(), [])):
            raise InputError(
                f"{path} was edited, or not written by this package, and would be lost; move it away, or name a new "
                "folder"
            )
    replace_files(staged, folder, record=record)


def _record_beside(folder: Path) -> Path:
    """The record of a folder that goes out with all that is in it."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}{RECORD}")


def _recorded(record: Path) -> Digests:
    found = read_json(record) if record.exists() else {}
    if not isinstance(found, dict) or not all(isinstance(digests, list) for digests in found.values()):
        raise InputError(f"{record} is damaged; delete it, upon which all files there count as yours and stay")
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def _is_own(path: Path, digests: list[str]) -> bool:
    return path.is_file() and sha256_of_file(path) in digests


def put_aside(path: Path) -> Path:
    """Rename a file or folder to a free name beside it."""
    number = 1
    while True:
        aside = path.with_name(f"{path.stem}.edited{'' if number == 1 else number}{path.suffix}")
        if not aside.exists():
            return path.rename(aside)
        number += 1


def _remove(folder: Path, digests: Mapping[str, list[str]]) -> None:
    for name, known in digests.items():
        path = folder / name
        if _is_own(path, known):
            path.unlink()
        for parent in path.parents:
            if parent == folder:
                break
            _remove_if_empty(parent)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
