"""What files that lie beside weights say of a machine and of a dataset's part, as it may go out."""

__all__ = ["portable", "with_fingerprint"]

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def with_fingerprint(value: Any, before: str | None, now: str) -> Any:
    """A JSON value in which the fingerprint of a part of a dataset is that of the study's whole dataset."""
    if isinstance(value, Mapping):
        return {key: with_fingerprint(item, before, now) for key, item in value.items()}
    if isinstance(value, list):
        return [with_fingerprint(item, before, now) for item in value]
    return now if before is not None and value == before else value


def portable(value: Any) -> Any:
    """A JSON value in which of paths of this machine only the names of files are left, and of folders nothing."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    for flavour in (PurePosixPath, PureWindowsPath):
        path = flavour(value)
        if (path.is_absolute() or value.startswith(("~", "./", "../"))) and len(path.parts) > 1:
            return path.name if re.fullmatch(r"\.[a-z][a-z0-9]{1,11}", path.suffix.lower()) else "a local folder"
    return value
