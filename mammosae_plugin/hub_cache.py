"""Files in huggingface_hub's cache: what they must contain, and what is done about a damaged one.

The Hub knows a large file by its SHA-256 and a small one by git's hash. Where links can be made, a file in the cache,
snapshots/<commit>/<path>, is one to blobs/<hash>, which tells the hash without the Hub.
"""

__all__ = ["download_anew", "FileHash", "git_hash", "named_by_cache"]

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mammosae_plugin.files import TEMPORARY, sha256_of_file

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FileHash:
    """How the Hub knows a file's content.

    Attributes:
        sha256: the SHA-256 of a large file, 64 hexadecimal digits; None for a small one.
        git: git's hash of a small file, 40 hexadecimal digits; for a large one it says nothing of the content.
    """

    sha256: str | None
    git: str

    def is_of(self, path: Path) -> bool:
        """Whether a file has this content."""
        return sha256_of_file(path) == self.sha256 if self.sha256 is not None else git_hash(path) == self.git


def git_hash(path: Path) -> str:
    """Git's name of a file's content: SHA-1 over its length and bytes, 40 hexadecimal digits."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def named_by_cache(path: Path) -> FileHash | None:
    """The hash by which the cache names a file; None where the file is no link to one of such a name."""
    if not path.is_symlink():
        return None
    name = path.readlink().name
    if _SHA256.fullmatch(name):
        return FileHash(name, "")
    return FileHash(None, name) if _GIT.fullmatch(name) else None


def download_anew(path: Path, download: Callable[[], object]) -> None:
    """Replace a damaged file of the cache by what `download` puts there.

    huggingface_hub leaves a file that is there as it is, whatever it was asked for. If the download fails, the damaged
    file is back in its place: a cache without it would count as whole.
    """
    aside = path.with_name(f"{TEMPORARY}{path.name}")
    is_there = path.is_symlink() or path.exists()
    if is_there:
        os.replace(path, aside)
    try:
        download()
    except BaseException:
        if is_there:
            os.replace(aside, path)
        raise
    aside.unlink(missing_ok=True)
