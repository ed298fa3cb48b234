"""The strongest places of latents' maps in every image, as a latents table keeps them (`peak_finder` finds them)."""

__all__ = ["cell_centres", "map_groups_of", "MapKind", "Peaks", "read_peaks"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

MapKind = tuple[str, str | None]
"""A kind of maps, such as "latents" or "gradcam.Mass", and the tensor that says which number each map has, for each
entry of an image ("indices") or for all images alike; None: one map of each image."""

_PARTS = ("counts", "positions", "values")
_GROUP = "map_groups."


@dataclass(frozen=True)
class Peaks:
    """Peaks of maps of some images, by image, then by map as the table lists them, then by falling value.

    Attributes:
        image_rows: (m,) int64, rows of `LatentTable.images`.
        columns: (m,) int64, which of the maps that were asked for.
        cells: (m,) int64, positions in the grid, row by row.
        points: (m, 2) float64 xy in pixels of the network's input: the centres of these cells.
        values: (m,) float32.
    """

    image_rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    cells: NDArray[np.int64]
    points: NDArray[np.float64]
    values: NDArray[np.float32]


def read_peaks(
    shards: Sequence[tuple[Path, int]],
    of: MapKind,
    wanted: NDArray[np.int64],
    grid: tuple[int, int],
    image_size: tuple[int, int],
) -> Peaks:
    """The peaks of one kind of maps.

    Args:
        shards: each with the image row that it begins with.
        of: the kind.
        wanted: (n,) numbers of maps.
        grid: (h, w) of the maps.
        image_size: (H, W) of the images.

    Raises:
        KeyError: a shard has no such peaks, or not of the number that the error holds.
    """
    kind, names_of_maps = of
    order = np.argsort(wanted)
    rising = wanted[order]
    pieces: list[tuple[NDArray[np.generic], ...]] = []
    for path, first in shards:
        with safe_open(path, framework="numpy") as file:
            try:
                counts, positions, values = (file.get_tensor(f"peaks.{kind}.{part}") for part in _PARTS)
            except SafetensorError as error:
                raise KeyError(*wanted[:1].tolist()) from error
            indptr = file.get_tensor("indptr")
            numbers = np.zeros(1, np.int64) if names_of_maps is None else file.get_tensor(names_of_maps)
        images = np.arange(first, first + len(indptr) - 1)
        if names_of_maps == "indices":
            images = np.repeat(images, np.diff(indptr))
        else:
            if missing := sorted(set(wanted.tolist()) - set(numbers.tolist())):
                raise KeyError(missing[0])
            images, numbers = np.repeat(images, len(numbers)), np.tile(numbers, len(images))
        place = np.searchsorted(rising, numbers)
        own = np.zeros(len(numbers), dtype=np.bool_)
        own[place < len(rising)] = rising[place[place < len(rising)]] == numbers[place < len(rising)]
        is_own, n = np.repeat(own, counts), counts[own]
        pieces.append((np.repeat(images[own], n), np.repeat(order[place[own]], n), positions[is_own], values[is_own]))
    types = (np.int64, np.int64, np.int64, np.float32)
    nothing = tuple(np.zeros(0, kind) for kind in types)
    image_rows, columns, cells, found = (
        np.concatenate(own).astype(kind) for own, kind in zip(zip(nothing, *pieces, strict=True), types, strict=True)
    )
    return Peaks(image_rows, columns, cells, cell_centres(cells, grid, image_size), found)


def map_groups_of(shard: Path) -> dict[str, dict[int, float]]:
    """By name the weights of the latents of the sums whose peaks a shard holds."""
    with safe_open(shard, framework="numpy") as file:
        names = [key for key in file.keys() if key.startswith(_GROUP) and key.endswith(".latents")]  # noqa: SIM118
        found = {}
        for latents in names:
            name = latents.removeprefix(_GROUP).removesuffix(".latents")
            weights = file.get_tensor(f"{_GROUP}{name}.weights")
            found[name] = dict(zip(file.get_tensor(latents).tolist(), weights.tolist(), strict=True))
    return found


def cell_centres(cells: NDArray[np.integer], grid: tuple[int, int], image_size: tuple[int, int]) -> NDArray[np.float64]:
    """(m, 2) xy in pixels of the centres of cells (m,) of a map (h, w) over an image (H, W), counted row by row."""
    rows, columns = np.divmod(np.asarray(cells, dtype=np.int64), grid[1])
    centres = [(columns + 0.5) * image_size[1] / grid[1], (rows + 0.5) * image_size[0] / grid[0]]
    return np.stack(centres, axis=1)
