"""Where the lesions of a split lie, cell by cell of a map, which images are healthy, and whose lesions they borrow."""

__all__ = ["covered", "lenders", "Lesions", "Masks"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mammosae_plugin.analysis.spatial import cell_shares
from mammosae_plugin.arguments import as_array
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.peaks import cell_centres

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Masks = Callable[[str], ArrayLike | None]
"""Image id -> mask (H, W) in pixels of the network's input, not 0 in the concept's lesions; None without one."""

_SUBCELLS = 8  # a box's share of a cell of the map is counted on 8 x 8 points


@dataclass(frozen=True)
class Lesions:
    """The lesions of a concept in the images of a split, and the images that they are looked for in.

    Attributes:
        image_rows: (n_images,) rows of `LatentTable.images`: images whose label is known, without those that have the
            concept but no box or mask of it.
        n_unlocated: images that were left out so.
        patients: (n_images,) the patient of each.
        is_healthy: (n_images,) without the concept, and without a box or mask of anything.
        image: (n_lesions,) place of each lesion's image among `image_rows`, rising.
        inside: (n_lesions, h * w) cells whose centre lies in the lesion.
        shares: (n_lesions, h * w) float32 share of each cell that belongs to it.
        breast: (n_lesions,) number of the breast of each, from 0; empty where sides are not known.
    """

    image_rows: NDArray[np.int64]
    n_unlocated: int
    patients: NDArray[np.object_]
    is_healthy: NDArray[np.bool_]
    image: NDArray[np.int64]
    inside: NDArray[np.bool_]
    shares: NDArray[np.float32]
    breast: NDArray[np.int64]

    @property
    def boxed(self) -> NDArray[np.int64]:
        """Places of the images with lesions, among `image_rows`."""
        return np.unique(self.image)

    def of_image(self, image: int) -> slice:
        """The lesions of an image."""
        first, stop = np.searchsorted(self.image, [image, image + 1]).tolist()
        return slice(first, stop)

    @classmethod
    def read(cls, table: "LatentTable", concept: str, split: str, masks: Masks | None = None) -> "Lesions":
        """From a table's boxes, or from masks where there are some.

        Raises:
            InputError: no finding with boxes, none in the split, or a mask of another size than the images.
        """
        if concept not in table.concepts:
            raise InputError(f"'{concept}' is not a finding with boxes: choose one of {', '.join(table.concepts)}")
        rows = table.rows(concept, split=split)
        n_cells = table.grid[0] * table.grid[1]
        own = [
            _of_image(table, int(row), concept, masks) if label == 1 else _nothing(n_cells)
            for row, label in zip(rows.image_rows, rows.labels, strict=True)
        ]
        n_lesions = np.array([len(inside) for inside, _ in own], dtype=np.int64)
        if not n_lesions.any():
            raise InputError(f"split '{split}' has no image with a box of '{concept}': there is nothing to localize")
        located = (n_lesions > 0) | (rows.labels != 1)
        findings = table.findings
        anything = np.unique(findings["image_row"].to_numpy()[findings["xmin"].notna().to_numpy()])
        image_rows = rows.image_rows[located]
        image = np.repeat(np.arange(len(image_rows)), n_lesions[located])
        return cls(
            image_rows=image_rows,
            n_unlocated=int((~located).sum()),
            patients=rows.patient_ids[located],
            is_healthy=(rows.labels[located] == 0) & ~np.isin(image_rows, anything),
            image=image,
            inside=np.concatenate([inside for inside, _ in own]),
            shares=np.concatenate([shares for _, shares in own]),
            breast=_breasts(table.images.iloc[image_rows[image]]),
        )


_OfImage = tuple[NDArray[np.bool_], NDArray[np.float32]]


def _nothing(n_cells: int) -> _OfImage:
    return np.zeros((0, n_cells), dtype=np.bool_), np.zeros((0, n_cells), dtype=np.float32)


def _of_image(table: "LatentTable", row: int, concept: str, masks: Masks | None) -> _OfImage:
    """(n, h * w) cells whose centre lies in each lesion of an image, and the share of each cell in it."""
    mask = None if masks is None else masks(str(table.images["image_id"].iloc[row]))
    if mask is None:
        boxes = table.boxes(row, concept)
        if not len(boxes):
            return _nothing(table.grid[0] * table.grid[1])
        shares = [covered(box[None], table.grid, table.image_size) for box in boxes]
        return _centres_inside(boxes, table.grid, table.image_size), np.stack(shares).astype(np.float32)
    found = as_array(mask, f"the mask of image row {row}")
    if found.shape != table.image_size:
        raise InputError(f"the mask of image row {row} has shape {found.shape}: expected {table.image_size}, (H, W)")
    parts, n_parts = ndimage.label(found != 0, structure=np.ones((3, 3), dtype=np.int8))
    if not n_parts:
        return _nothing(table.grid[0] * table.grid[1])
    x, y = np.floor(cell_centres(np.arange(table.grid[0] * table.grid[1]), table.grid, table.image_size)).astype(int).T
    numbers = np.arange(1, n_parts + 1)
    shares = [cell_shares(parts == number, table.grid).ravel() for number in numbers]
    return parts[y, x] == numbers[:, None], np.stack(shares).astype(np.float32)


def _centres_inside(
    boxes: NDArray[np.floating], grid: tuple[int, int], image_size: tuple[int, int]
) -> NDArray[np.bool_]:
    """(n, h * w) cells whose centre lies in each box (n, 4) xyxy, edges included."""
    centres = cell_centres(np.arange(grid[0] * grid[1]), grid, image_size)
    x, y = centres[None, :, 0], centres[None, :, 1]
    left, top, right, bottom = (boxes[:, [side]].astype(np.float64) for side in range(4))
    found: NDArray[np.bool_] = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    return found


def _breasts(images: pd.DataFrame) -> NDArray[np.int64]:
    """(n,) the breast of each image, numbered from 0; empty where one has no side."""
    if "laterality" not in images or not _is_filled(images["laterality"]).all():
        return np.zeros(0, dtype=np.int64)
    exams = ["exam_id"] if "exam_id" in images and _is_filled(images["exam_id"]).all() else []
    grouped = images.groupby(["patient_id", *exams, "laterality"], sort=False, dropna=False)
    return np.asarray(grouped.ngroup(), dtype=np.int64)


def _is_filled(values: pd.Series) -> "pd.Series[bool]":
    return values.notna() & (values.astype(str).str.strip() != "")


def lenders(images: pd.DataFrame, patients: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which images may lend an image their boxes, (n, n): other patients', of the same side and view."""
    alike: NDArray[np.bool_] = np.asarray(patients[:, None] != patients[None, :])
    for name in ("laterality", "view"):
        if name in images.columns:
            values = images[name].to_numpy(dtype=object)
            alike &= np.asarray(values[:, None] == values[None, :])
    return alike


def covered(boxes: NDArray[np.float32], grid: tuple[int, int], image_size: tuple[int, int]) -> NDArray[np.float64]:
    """The share of every cell of the map that boxes (n, 4) xyxy in pixels cover, (h * w,)."""
    y, x = (
        (np.arange(cells * _SUBCELLS) + 0.5) * pixels / (cells * _SUBCELLS)
        for cells, pixels in zip(grid, image_size, strict=True)
    )
    inside = np.zeros((len(y), len(x)))
    for left, top, right, bottom in boxes:
        inside[np.ix_((y >= top) & (y < bottom), (x >= left) & (x < right))] = 1
    cells: NDArray[np.float64] = inside.reshape(grid[0], _SUBCELLS, grid[1], _SUBCELLS).mean(axis=(1, 3)).ravel()
    return cells
