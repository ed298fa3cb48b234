"""What files that lie beside weights say of a machine and of a dataset's part, as it may go out."""

__all__ = ["portable", "provenance_of", "with_fingerprint"]

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors.torch import load_file

from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.provenance import environment, package_versions, tensors_fingerprint
from mammosae_plugin.training.saving import CFG, WEIGHTS
from mammosae_plugin.version import __version__


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


def provenance_of(folder: Path, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What made a staged SAE: digests of its files, versions, and where its file was from."""
    metadata = cfg.get("metadata", {})
    came_from = {key: metadata[key] for key in sorted(metadata) if key.startswith("source_")}
    return {
        "weights_sha256": sha256_of_file(folder / WEIGHTS),
        "cfg_sha256": sha256_of_file(folder / CFG),
        "tensors": tensors_fingerprint(load_file(folder / WEIGHTS)),
        "published_with": {"mammosae_plugin": __version__, "packages": package_versions(), **environment()},
        "trained_with": {
            key: metadata[key] for key in ("sae_lens_training_version", "mammosae_version") if key in metadata
        },
        "dataset_fingerprint": metadata.get("dataset_fingerprint"),
        "model_fingerprint": metadata.get("model_fingerprint"),
        "source": came_from or None,
    }
