"""Every stored row, table and SAE below a folder read whole, and held against its SHA-256."""

__all__ = ["Verified", "verify"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mammosae_plugin.adapters.sae_formats.saelens import DIGESTS, TRAINING
from mammosae_plugin.checked_files import changed_files
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import is_sealed, local_path, read_json
from mammosae_plugin.latents.table import FILES, TABLE
from mammosae_plugin.progress import progress
from mammosae_plugin.shards import DONE, PLAN, recorded_digests, require_plan


@dataclass(frozen=True)
class Verified:
    """What was read of a folder.

    Attributes:
        n_files: Files that have a recorded SHA-256.
        nbytes: Bytes of them.
        damaged: Files that are missing or are not what was written, in order.
    """

    n_files: int
    nbytes: int
    damaged: tuple[Path, ...]


def verify(folder: str | Path) -> Verified:
    """Read every file below a folder that has a recorded SHA-256, and compare: rows, latents tables, trained SAEs.

    Other commands read a file whole only where its size or times have changed since it was last found whole, so damage
    by a disk is found here. What a run has not finished has no recorded SHA-256, and is checked when it goes on.

    Args:
        folder: A study's output folder, or a store, table or SAE alone.

    Raises:
        InputError: It is no folder, or nothing in it has one.

    Example:
        >>> verify("study").damaged
        ()
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name a study's output folder, or a store, table or SAE")
    found: dict[Path, dict[str, str]] = {}
    damaged: set[Path] = set()
    for kind, digests_in in _KINDS.items():
        for path in folder.rglob(kind):
            digests = digests_in(path)
            if digests is None:
                damaged.add(path)
            elif digests:
                found.setdefault(path.parent, {}).update(digests)
    if not found and not damaged:
        raise InputError(f"{folder} holds no store, latents table or SAE that is whole; name a study's output folder")
    for room, digests in progress(sorted(found.items()), description="verify", unit="folder", delay=2):
        damaged |= {room / name for name in changed_files(room, digests, anew=True)}
    paths = [room / name for room, digests in found.items() for name in digests]
    nbytes = sum(path.stat().st_size for path in paths if path.exists())
    return Verified(len(paths), nbytes, tuple(sorted(damaged)))


def _of_shards(seal: Path) -> Mapping[str, str] | None:
    if not (seal.parent / PLAN).exists() and not any(seal.parent.glob("shard-*.safetensors")):
        return {}  # another file of this name
    try:
        require_plan(seal.parent)
    except InputError:
        return None
    return recorded_digests(seal.parent) or None


def _of_table(header: Path) -> Mapping[str, str] | None:
    try:
        said = read_json(header)
    except InputError:
        return None
    return said[FILES] if is_sealed(said) and FILES in said else None


def _of_sae(training: Path) -> Mapping[str, str] | None:
    try:
        said = read_json(training)
    except InputError:
        return None
    return said.get(DIGESTS, {}) if isinstance(said, dict) else {}


_KINDS: Mapping[str, Callable[[Path], Mapping[str, str] | None]] = {
    DONE: _of_shards,
    TABLE: _of_table,
    TRAINING: _of_sae,
}
"""By the file that says it: what reads the SHA-256 of the files beside it, by name; None where it is damaged."""
