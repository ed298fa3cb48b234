"""Rows of activations on disk, and the shuffled, resumable stream of batches that SAE training reads."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json
from mammosae_plugin.shards import shard_paths

FORMAT_VERSION = 1
MANIFEST = "activations.json"


class ActivationStore:
    """Activation rows that `extract_activations` wrote; the shards are memory-mapped, not loaded.

    Args:
        folder: The store.

    Attributes:
        manifest: What the rows are: hook name, model, dataset, image ids, fraction, seed.
        n_rows: Number of rows.
        d_in: Width of a row.

    Raises:
        InputError: The folder is not a complete store, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).exists():
            raise InputError(
                f"{self.folder} is not a complete activation store (no {MANIFEST}); run `mammosae extract` again"
            )
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        if self.manifest["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{self.folder} has activation format {self.manifest['format_version']}; this version reads format "
                f"{FORMAT_VERSION}, so extract again"
            )

    @cached_property
    def _shards(self) -> list[dict[str, torch.Tensor]]:
        return [load_file(path) for path in shard_paths(self.folder)]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0] + [len(shard["rows"]) for shard in self._shards])

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return int(self._shards[0]["rows"].shape[1])

    def image_rows(self) -> np.ndarray:
        """(n_rows,) int64: the index of each row's image in `manifest["image_ids"]`."""
        return np.concatenate([shard["image"].numpy() for shard in self._shards])

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """(len(rows), d_in) float32: the rows of the given numbers, in that order."""
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        taken = torch.empty(len(rows), self.d_in)
        for shard in np.unique(shard_of):
            places = np.flatnonzero(shard_of == shard)
            local = torch.from_numpy(rows[places] - self._starts[shard])
            taken[torch.from_numpy(places)] = self._shards[shard]["rows"][local].float()
        return taken

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
        """An endless stream of (batch_size, d_in) float32 batches, every row exactly once per epoch.

        Each epoch is its own permutation, drawn from seed and epoch; a batch may span two epochs, so that all have the
        same size.

        Args:
            batch_size: Rows per batch.
            seed: Chooses the permutations.
            start: Number of batches to pass over: a stream from batch n equals the stream from 0 after n batches.
        """
        position = start * batch_size
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        while True:
            wanted = np.arange(position, position + batch_size)
            rows = []
            for number in np.unique(wanted // self.n_rows):
                if number != epoch:
                    epoch, order = number, np.random.default_rng([seed, number]).permutation(self.n_rows)
                rows.append(order[wanted[wanted // self.n_rows == number] % self.n_rows])
            yield self.take(np.concatenate(rows))
            position += batch_size
