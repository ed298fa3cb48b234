"""What a store of activations says of itself, read from its manifest and its files' sizes: no row, and no torch."""

__all__ = ["DTYPE_NAMES", "FORMAT_VERSION", "MANIFEST", "READABLE", "StoreFacts"]

import logging
from pathlib import Path
from typing import Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import SEAL, is_sealed, local_path, read_json
from mammosae_plugin.shards import is_done, recorded_digests, shard_paths

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
READABLE = (2, FORMAT_VERSION)  # in format 2 the manifest had no checksum, and shards did not know their place
MANIFEST = "activations.json"
DTYPE_NAMES = ("float32", "float16", "bfloat16")


class StoreFacts:
    """A store's manifest, checked against the folder.

    Args:
        folder: The store.

    Attributes:
        manifest: What the rows are (docs/activations.md lists the fields).
        n_rows: Number of rows.
        d_in: Width of a row.
        hook_name: The hook point whose values the rows are.
        image_ids: The ids of the images, in the order of their numbers.

    Raises:
        InputError: The folder is not a complete store, is of another format, or is not what its manifest says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = local_path(folder)
        if not (self.folder / MANIFEST).exists():
            raise InputError(
                f"{self.folder} is not a complete activation store (no {MANIFEST}); run `mammosae extract` again"
            )
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        if not isinstance(self.manifest, dict) or "format_version" not in self.manifest:
            raise InputError(f"{self.folder / MANIFEST} is damaged: it is no manifest of a store; extract again")
        version = self.manifest["format_version"]
        if version not in READABLE:
            raise InputError(
                f"{self.folder} has activation format {version}; this version reads format {FORMAT_VERSION}, so "
                "extract again"
            )
        if (version == FORMAT_VERSION or SEAL in self.manifest) and not is_sealed(self.manifest):
            raise InputError(
                f"{self.folder / MANIFEST} was changed after it was written (its SHA-256 is not the one that it "
                "gives); restore it, or extract again with the settings that made it"
            )
        if version != FORMAT_VERSION:
            logger.warning(
                "%s has activation format %s: its rows are read as before, but exchanged shards and edits of its "
                "manifest cannot be noticed in it; extract again for format %d",
                *(self.folder, version, FORMAT_VERSION),
            )
        try:
            self.n_rows: int = self.manifest["n_rows"]
            self.d_in: int = self.manifest["d_in"]
            self.hook_name: str = self.manifest["hook_name"]
            self.image_ids: tuple[str, ...] = tuple(self.manifest["image_ids"])
            self._rows_per_block: int = self.manifest["rows_per_block"]
            self._n_rows_of: dict[str, int] = {entry["name"]: entry["rows"] for entry in self.manifest["shards"]}
            if self.manifest["dtype"] not in DTYPE_NAMES:
                raise KeyError(self.manifest["dtype"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.folder / MANIFEST} is damaged ({error!r}); extract again") from error
        self._check_folder()

    def _check_folder(self) -> None:
        """Compare what can be compared without reading the rows: which files there are, their sizes and headers."""
        again = "extract again with the settings that made it, which replaces what is missing or damaged"
        if not is_done(self.folder):
            raise InputError(f"{self.folder} is not complete (no done.json); {again}")
        said = {entry["name"]: entry for entry in self.manifest["shards"]}
        there = {path.name for path in self.folder.glob("shard-*.safetensors")}
        for name in sorted(said.keys() - there):
            raise InputError(f"{self.folder} lacks {name}, which its manifest lists; {again}")
        for name in sorted(there - said.keys()):
            raise InputError(f"{self.folder} holds {name}, which its manifest does not list; remove that file")
        for name, entry in said.items():
            size = (self.folder / name).stat().st_size
            if size != entry["bytes"]:
                raise InputError(f"{self.folder / name} has {size} bytes instead of {entry['bytes']}; {again}")
        digests = {name: entry["sha256"] for name, entry in said.items()}
        if digests != recorded_digests(self.folder):
            raise InputError(f"{self.folder}: {MANIFEST} and done.json do not belong together; {again}")
        shard_paths(self.folder)
        if self.n_rows != sum(entry["rows"] for entry in said.values()):
            raise InputError(f"{self.folder / MANIFEST}: n_rows is not the sum of the shards' rows; {again}")

    def summary(self) -> str:
        """What the rows are, in a few lines."""
        said = self.manifest
        kept = (
            f"{said['count']} positions" if said.get("count") else f"{said.get('fraction') or 1:.3g} of the positions"
        )
        kept += ", augmented" if said.get("augmentation") else ""
        grid = said.get("layout", {}).get("grid")
        lines = {
            "rows": f"{self.n_rows} rows of {self.d_in} {said['dtype']}, {self._nbytes / 1e9:.4g} GB "
            f"in {len(self._n_rows_of)} shards",
            "layer": f"{self.hook_name} of {said.get('architecture')}"
            + (f", grid {grid[0]} x {grid[1]}" if grid else ""),
            "model": f"weights {str(said.get('model'))[:12]}",
            "images": f"{len(self.image_ids)} images of {len(set(said.get('patients', [])))} patients, "
            f"{' x '.join(map(str, said.get('image_size', [])))} pixels, {kept} of each (seed {said.get('seed')})",
            "data": f"{said.get('dataset_name')} {str(said.get('dataset'))[:12]}, "
            f"splits {', '.join(said.get('splits', []))}",
        }
        return "\n".join(f"{name:8}{text}" for name, text in lines.items())

    @property
    def _nbytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["shards"])
