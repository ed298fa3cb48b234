"""Rows of activations on disk (docs/activations.md): written once, checked at every read, streamed in random order."""

__all__ = [
    "ActivationStore", "BLOCK_BYTES", "DTYPES", "FORMAT_VERSION", "MANIFEST", "merge_stores", "READABLE",
    "RESERVOIR_BYTES", "rows_per_block", "SAME_IN_A_MERGE", "seal_store", "shard_tensors", "write_store",
]  # fmt: skip

import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mammosae_plugin import distributed
from mammosae_plugin.activations.reservoir import BlockReader, ending, ordered_batches, shuffled_batches
from mammosae_plugin.activations.store_facts import DTYPE_NAMES, FORMAT_VERSION, MANIFEST, READABLE, StoreFacts
from mammosae_plugin.activations.stored_shards import StoredShard, bytes_of, damaged
from mammosae_plugin.arguments import shown, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    is_sealed,
    local_path,
    read_json,
    sealed,
    sha256_of_file,
    sha256_of_json,
    write_json,
)
from mammosae_plugin.shards import recorded_digests, require_plan, run_shards

logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
BLOCK_BYTES = 2**20  # what is read and checked at once: large enough for a disk's full speed
RESERVOIR_BYTES = 2**30


class ActivationStore(StoreFacts, Dataset[torch.Tensor]):
    """Activation rows that `extract_activations` wrote. Nothing is read before it is asked for.

    It is a dataset of torch, of rows (d_in,) float32 in the order of `labels()`: `DataLoader(store, 64, shuffle=True)`.

    Args:
        folder: The store.

    Attributes:
        manifest: What the rows are (docs/activations.md lists the fields).
        n_rows: Number of rows.
        d_in: Width of a row.
        hook_name: The hook point whose values the rows are.
        dtype: Type of the rows on disk.
        image_ids: The ids of the images, in the order of their numbers.

    Raises:
        InputError: The folder is not a complete store, is of another format, or is not what its manifest says.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.dtype = DTYPES[self.manifest["dtype"]]
        self._shards = [
            StoredShard(self.folder / name, n_rows, self.d_in, self.dtype, self._rows_per_block)
            for name, n_rows in self._n_rows_of.items()
        ]

    # Reading

    def __len__(self) -> int:
        """The number of rows."""
        return self.n_rows

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """Rows as float32, by their numbers, in the order of `labels()`, from files that are mapped.

        Each block of rows is compared with its checksum before the first of its rows is given out.

        Args:
            index: A number, which gives (d_in,); or a slice or several numbers, which give (n, d_in). Negative ones
                count from the end.

        Raises:
            IndexError: There is no such row.
            InputError: A file is damaged.
        """
        if isinstance(index, (int, np.integer)):
            return self._taken(np.array([index]))[0]
        numbers = np.arange(self.n_rows)[index] if isinstance(index, slice) else np.asarray(index)
        if numbers.dtype == bool and numbers.shape == (self.n_rows,):
            numbers = np.flatnonzero(numbers)
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise InputError(f"rows are named by a number, a slice or a list of numbers, not by {type(index).__name__}")
        return self._taken(numbers.astype(np.int64))

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """The rows of a batch, which torch's `DataLoader` asks for at once."""
        return list(self[indices])

    def _taken(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        outside = numbers[(numbers < -self.n_rows) | (numbers >= self.n_rows)]
        if len(outside):
            raise IndexError(f"{self.folder} has no row {outside[0]}; it has {self.n_rows}")
        numbers = numbers % max(1, self.n_rows)
        firsts = np.cumsum([0] + [shard.n_rows for shard in self._shards])
        taken = torch.empty(len(numbers), self.d_in)
        shard_of = np.searchsorted(firsts, numbers, side="right") - 1
        for number in np.unique(shard_of).tolist():
            places = np.flatnonzero(shard_of == number)
            taken[torch.from_numpy(places)] = self._shards[number].rows(numbers[places] - firsts[number]).float()
        return taken

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        start: int = 0,
        epochs: int | None = None,
        drop_last: bool = False,
        epoch_rows: int | None = None,
        images: Iterable[int] | None = None,
        reservoir_rows: int | None = None,
        part: tuple[int, int] = (0, 1),
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[torch.Tensor]:
        """A stream of (batch_size, d_in) batches, every row once per epoch, without end unless `epochs` is given.

        Each epoch has its own order. A batch may span two epochs, so that all have the same size. Every block that is
        read is compared with its checksum and must be finite.

        Args:
            batch_size: Rows per batch.
            shuffle: Whether rows come in random order; else in that of `labels()`.
            seed: Chooses the orders.
            start: Number of batches to pass over: a stream from batch n equals the stream from 0 after n batches. With
                the seed it is the whole state of the stream.
            epochs: How often every row is given; None means without end.
            drop_last: Leave the last batch out where it has fewer rows than the others; only streams that end have one.
            epoch_rows: End each epoch after so many rows of its order; None gives all.
            images: Only rows of images of these numbers.
            reservoir_rows: Rows held in memory, of the store's type; None means as many as fit into 1 GiB.
            part: Number r of n: give only the rows [r * batch_size / n, (r + 1) * batch_size / n) of each batch.
            device: Where the batches go.
            dtype: Type of the batches.

        Raises:
            InputError: An impossible setting; while reading, a block that is damaged or not finite.
        """
        row_bytes = self.d_in * self.dtype.itemsize
        blocks = self._blocks(images)
        batch_size, seed = whole(batch_size, "batch_size", least=1), whole(seed, "seed", least=0)
        start = whole(start, "start", least=0)
        epochs = None if epochs is None else whole(epochs, "epochs (None is without end)", least=1)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"dtype is {shown(dtype)}: give one of torch's, such as torch.float16")
        stream = shuffled_batches if shuffle else ordered_batches
        endless = stream(
            blocks,
            batch_size,
            seed=seed,
            start=start,
            reservoir_rows=max(2, RESERVOIR_BYTES // row_bytes) if reservoir_rows is None else reservoir_rows,
            epoch_rows=epoch_rows,
            part=part,
        )
        wanted = None if epochs is None else epochs * (int(blocks.lengths.sum()) if epoch_rows is None else epoch_rows)
        if wanted is not None:
            endless = ending(endless, batch_size, start=start, rows=wanted, drop_last=drop_last, part=part)
        is_plain = torch.device(device).type == "cpu" and dtype == torch.float32
        return endless if is_plain else (batch.to(device, dtype) for batch in endless)

    def rows_of(self, images: Iterable[int]) -> torch.Tensor:
        """(n, d_in) float32: all rows of the images of these numbers, by image number and then by position.

        Raises:
            InputError: An image number that the store does not have, or a damaged block.
        """
        chosen = self._are_chosen(images)
        rows, keys = [], []
        for shard in self._shards:
            image, position = self._labels(shard)
            kept = chosen[image]
            for block in range(shard.n_blocks):
                span = shard.span(block)
                if kept[span].any():
                    rows.append(self._read_block(shard, block)[torch.from_numpy(kept[span])].float())
            keys.append(np.stack([image[kept], position[kept]]))
        if not rows:
            return torch.empty(0, self.d_in)
        image, position = np.concatenate(keys, axis=1)
        return torch.cat(rows)[torch.from_numpy(np.lexsort((position, image)))]

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """(len(rows), d_in) float32: the rows of the given numbers, in that order; for a few rows, not for a stream."""
        firsts = np.cumsum([0] + [shard.n_rows for shard in self._shards])
        taken = torch.empty(len(rows), self.d_in)
        shard_of = np.searchsorted(firsts, rows, side="right") - 1
        block_of = (rows - firsts[shard_of]) // self._rows_per_block
        for number, block in sorted(set(zip(shard_of.tolist(), block_of.tolist(), strict=True))):
            places = np.flatnonzero((shard_of == number) & (block_of == block))
            local = rows[places] - firsts[number] - block * self._rows_per_block
            read = self._read_block(self._shards[number], block)
            taken[torch.from_numpy(places)] = read[torch.from_numpy(local)].float()
        return taken

    def labels(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(n_rows,) image number and (n_rows,) position (in reading order of the grid) of every row, as stored."""
        pairs = [self._labels(shard) for shard in self._shards]
        if not pairs:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        return np.concatenate([image for image, _ in pairs]), np.concatenate([position for _, position in pairs])

    def shards(self, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The rows (n, d_in), image (n,) and position (n,) of each shard, sorted by image and position.

        Args:
            first: The row to begin with; shards that end before it are not read.

        Raises:
            InputError: A shard is damaged or holds a row that is not finite.
        """
        ends = np.cumsum([shard.n_rows for shard in self._shards])
        for shard in (shard for shard, end in zip(self._shards, ends, strict=True) if end > first):
            image, position = self._labels(shard)
            rows = torch.cat([self._read_block(shard, block) for block in range(shard.n_blocks)])
            order = torch.from_numpy(np.lexsort((position, image)))
            yield rows[order], torch.from_numpy(image)[order], torch.from_numpy(position)[order]

    def verify(self) -> None:
        """Read everything: the SHA-256 of plan and shards, every checksum, every row finite, every image number known.

        That the manifest is the one that was written, and every shard the one of its place, opening has found.

        Raises:
            InputError: Something is not what the manifest says.
        """
        require_plan(self.folder)
        for entry, shard in zip(self.manifest["shards"], self._shards, strict=True):
            if sha256_of_file(shard.path) != entry["sha256"]:
                raise damaged(shard.path, "its SHA-256 is not the recorded one")
            self._labels(shard)
            for block in range(shard.n_blocks):
                self._read_block(shard, block)

    def _blocks(self, images: Iterable[int] | None) -> BlockReader:
        places = [(shard, block) for shard in self._shards for block in range(shard.n_blocks)]
        kept: list[torch.Tensor] | None = None
        if images is None:
            lengths = [shard.span(block).stop - shard.span(block).start for shard, block in places]
        else:
            chosen = self._are_chosen(images)
            kept = []
            for shard in self._shards:
                in_shard = torch.from_numpy(chosen[self._labels(shard)[0]])
                kept += [in_shard[shard.span(block)] for block in range(shard.n_blocks)]
            lengths = [int(mask.sum()) for mask in kept]

        def read(number: int) -> torch.Tensor:
            rows = self._read_block(*places[number])
            return rows if kept is None else rows[kept[number]]

        return BlockReader(np.array(lengths, dtype=np.int64), read, self.d_in, self.dtype)

    def _are_chosen(self, images: Iterable[int]) -> NDArray[np.bool_]:
        numbers = np.asarray(list(images), dtype=np.int64)
        unknown = numbers[(numbers < 0) | (numbers >= len(self.image_ids))]
        if len(unknown):
            raise InputError(
                f"there is no image {unknown[0]}: {self.folder} has the images 0 to {len(self.image_ids) - 1}"
            )
        chosen = np.zeros(len(self.image_ids), dtype=bool)
        chosen[numbers] = True
        return chosen

    def _labels(self, shard: StoredShard) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        image, position = shard.labels()
        if len(image) and not (image.min() >= 0 and image.max() < len(self.image_ids)):
            raise damaged(shard.path, "it has rows of images that the manifest does not list")
        return image, position

    def _read_block(self, shard: StoredShard, block: int) -> torch.Tensor:
        rows = shard.block(block)
        low, high = torch.aminmax(rows)  # both are NaN where any value is
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            row = int((~torch.isfinite(rows).all(dim=1)).nonzero()[0, 0])
            image, position = (values[shard.span(block)][row] for values in self._labels(shard))
            raise InputError(
                f"{shard.path} has a row that is not finite: image {self.image_ids[image]}, position {position}; "
                "extract that image's rows again or leave the image out"
            )
        return rows


def rows_per_block(d_in: int, dtype: torch.dtype) -> int:
    """Rows in a block of about `BLOCK_BYTES`."""
    return max(1, BLOCK_BYTES // (d_in * dtype.itemsize))


def shard_tensors(
    rows: Sequence[torch.Tensor],
    image: Sequence[torch.Tensor],
    position: Sequence[torch.Tensor],
    *,
    seed: Sequence[int],
) -> dict[str, torch.Tensor]:
    """The tensors of one shard, its rows in a random order: so that each block holds rows of all the shard's images.

    Args:
        rows: Pieces (n_i, d_in) of the store's type.
        image: For each piece (n_i,) the numbers of the images.
        position: For each piece (n_i,) the positions.
        seed: Chooses the order.
    """
    lengths = [len(piece) for piece in rows]
    places = torch.from_numpy(np.random.default_rng(list(seed)).permutation(sum(lengths)))
    tensors = {
        "rows": torch.empty(len(places), rows[0].shape[1], dtype=rows[0].dtype),
        "image": torch.empty(len(places), dtype=torch.int32),
        "position": torch.empty(len(places), dtype=torch.int32),
    }
    for name, pieces in (("rows", rows), ("image", image), ("position", position)):
        for where, piece in zip(torch.split(places, lengths), pieces, strict=True):
            tensors[name][where] = piece.to(tensors[name].dtype)
    step = rows_per_block(rows[0].shape[1], rows[0].dtype)
    sums = [
        [zlib.crc32(bytes_of(tensors[name][start : start + step])) for name in ("rows", "image", "position")]
        for start in range(0, len(places), step)
    ]
    return tensors | {"crc32": torch.tensor(sums, dtype=torch.int64).reshape(-1, 3)}


def seal_store(folder: Path, described: Mapping[str, Any], *, d_in: int, dtype: str) -> ActivationStore:
    """Write the manifest of a folder whose shards are complete, and open it.

    Args:
        folder: Shards of `shard_tensors`, sealed by `run_shards`.
        described: The manifest's fields that say what the rows are.
        d_in: Width of a row.
        dtype: Name of the rows' type.
    """
    shards = []
    for name, digest in sorted(recorded_digests(folder).items(), key=lambda item: _number(item[0])):
        path = folder / name
        shards.append({"name": name, "rows": _n_rows(path), "bytes": path.stat().st_size, "sha256": digest})
    manifest = {
        **described,
        "format_version": FORMAT_VERSION,
        "dtype": dtype,
        "d_in": d_in,
        "rows_per_block": rows_per_block(d_in, DTYPES[dtype]),
        "n_rows": sum(shard["rows"] for shard in shards),
        "shards": shards,
    }
    file = folder / MANIFEST

    def write() -> None:
        there = read_json(file) if file.exists() else None
        if there is None or not is_sealed(there) or there["shards"] != shards:
            write_json(file, sealed(manifest))

    distributed.on_main(write)
    return ActivationStore(folder)


def _number(name: str) -> int:
    return int(re.findall(r"\d+", name)[0])


def _n_rows(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(header["image"]["shape"][0])


def write_store(
    folder: str | Path,
    shards: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    described: Mapping[str, Any],
    *,
    seed: int = 0,
) -> ActivationStore:
    """Write rows that are already in memory as a store.

    Args:
        folder: Where the store goes.
        shards: For each shard rows (n, d_in) of float32, float16 or bfloat16, image (n,) and position (n,).
        described: The manifest's fields that say what the rows are; at least `image_ids`.
        seed: Chooses the order of the rows within each shard.

    Raises:
        InputError: No rows, rows of another type, or a folder that holds something else.
    """
    if not shards:
        raise InputError("there are no rows to write")
    dtype = next((name for name, known in DTYPES.items() if known == shards[0][0].dtype), None)
    if dtype is None:
        raise InputError(f"rows are {shards[0][0].dtype}; a store holds {', '.join(DTYPES)}")
    folder = local_path(folder)

    def compute(items: range) -> dict[str, torch.Tensor]:
        rows, image, position = shards[items.start]
        return shard_tensors([rows], [image], [position], seed=[seed, items.start])

    told = {key: sha256_of_json(value) for key, value in described.items()}
    plan = {"format_version": FORMAT_VERSION, "described": told, "dtype": dtype, "seed": seed}
    run_shards(folder, plan, len(shards), 1, compute, description="write rows", unit="shard")
    return seal_store(folder, described, d_in=shards[0][0].shape[1], dtype=dtype)


SAME_IN_A_MERGE = (
    *("model", "hook_name", "layout", "image_size", "preprocessing", "dtype", "d_in", "fraction", "count"),
    *("sample_from", "augmentation", "seed", "autocast"),
)


def merge_stores(folders: Sequence[str | Path], out: str | Path) -> ActivationStore:
    """One store with the rows of several: of other images, from the same layer of the same model, made the same way.

    The shards are rewritten one by one; a killed call is made again and continues.

    Args:
        folders: The stores, in the order in which their images are numbered in the result.
        out: Where the merged store goes.

    Raises:
        InputError: The stores do not belong together, share an image, one of them is damaged, or `out` holds something
            else.
    """
    stores = [ActivationStore(folder) for folder in folders]
    if not stores:
        raise InputError("name the stores to merge")
    first = stores[0]
    for store in stores[1:]:
        for field in SAME_IN_A_MERGE:
            if store.manifest.get(field) != first.manifest.get(field):
                raise InputError(
                    f"{store.folder} and {first.folder} do not belong together: {field} is "
                    f"{store.manifest.get(field)!r} and {first.manifest.get(field)!r}"
                )
    image_ids = [image_id for store in stores for image_id in store.image_ids]
    image_id, times = Counter(image_ids).most_common(1)[0]
    if times > 1:
        raise InputError(f"image {image_id} is in more than one of the stores; its rows would count twice")
    offsets = np.cumsum([0] + [len(store.image_ids) for store in stores])
    sources = [
        (store, shard, int(offset)) for store, offset in zip(stores, offsets, strict=False) for shard in store._shards
    ]

    def compute(items: range) -> dict[str, torch.Tensor]:
        store, shard, offset = sources[items.start]
        image, position = store._labels(shard)
        rows = torch.cat([store._read_block(shard, block) for block in range(shard.n_blocks)])
        return shard_tensors(
            [rows], [torch.from_numpy(image + offset)], [torch.from_numpy(position)], seed=[0, items.start]
        )

    plan = {"format_version": FORMAT_VERSION, "merged": [sha256_of_json(store.manifest) for store in stores]}
    run_shards(local_path(out), plan, len(sources), 1, compute, description="merge", unit="shard")
    manifests = [store.manifest for store in stores]
    described = {
        **first.manifest,
        "image_ids": image_ids,
        "patients": [patient for manifest in manifests for patient in manifest.get("patients", [])],
        "splits": sorted({split for manifest in manifests for split in manifest.get("splits", [])}),
        "dataset": sha256_of_json([manifest.get("dataset") for manifest in manifests]),
        "dataset_name": " + ".join(dict.fromkeys(str(manifest.get("dataset_name")) for manifest in manifests)),
        "merged": plan["merged"],
    }
    return seal_store(local_path(out), described, d_in=first.d_in, dtype=first.manifest["dtype"])
