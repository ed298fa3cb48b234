"""Which results this process has asked for, of its own making or not: what a study still uses."""

__all__ = ["ask_for", "forget", "in_use"]

from pathlib import Path

_asked_for: set[Path] = set()


def ask_for(result: Path) -> None:
    """Note that a file or folder is used."""
    _asked_for.add(result)


def in_use(folder: Path) -> set[Path]:
    """What has been asked for below a folder."""
    return {path for path in _asked_for if folder in path.parents}


def forget() -> None:
    """Begin anew, as another process would."""
    _asked_for.clear()
