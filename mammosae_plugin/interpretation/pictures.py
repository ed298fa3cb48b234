"""Pictures of a table's images, for a model that looks at them: whole, and round the place where a latent peaks."""

__all__ = ["Pictures"]

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from mammosae_plugin.arguments import between, indices, whole
from mammosae_plugin.datasets.protocol import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import ELEMENTS, PEAKS

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_BOX = (255, 214, 0)
"""Yellow, which no gray image has."""
_LINES = 250
"""How many times a box's line fits into the longest side."""


class Pictures:
    """The images of a latents table, read when they are asked for.

    Args:
        table: the latents table.
        dataset: its images, as `open_dataset` and `load_images` open them.
        longest: the longest side of a picture in pixels; larger images are made smaller, none larger.
        crop: the side of the square round a peak, as a share of the image's longest side.

    Attributes:
        about: what is known of the dataset, by which the privacy guard decides where pictures may go.
        has_peaks: whether the table keeps where latents fire.

    Raises:
        InputError: the dataset has none of the table's images.
    """

    def __init__(self, table: "LatentTable", dataset: StudyDataset, *, longest: int = 896, crop: float = 0.25) -> None:
        self._table, self._dataset = table, dataset
        self._longest, self._crop = whole(longest, "longest", least=16), between(crop, "crop", 0, 1, with_low=False)
        items = dataset.images if dataset.unit == "image" else dataset.findings
        ids = items["image_id"].astype(str).tolist()
        self._number = {image_id: number for number, image_id in reversed(list(enumerate(ids)))}  # the first item of it
        self._peaks: dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        self.about = dataset.about
        self.has_peaks = table.elements.get(PEAKS) == ELEMENTS[PEAKS]
        if not self._number.keys() & set(table.images["image_id"].astype(str)):
            raise InputError(f"the data have none of the images of {table.folder}; name those that it was made of")

    def gray(self, image_row: int) -> NDArray[np.uint8]:
        """(H, W) of one image.

        Raises:
            InputError: the data lack it.
        """
        image_id = str(self._table.images["image_id"].iloc[image_row])
        if image_id not in self._number:
            raise InputError(f"the data lack {image_id}; name those that {self._table.folder} was made of")
        return self._dataset.gray(self._number[image_id])

    def whole(self, image_row: int) -> Image.Image:
        """The whole image, with nothing drawn on it."""
        return self._fitted(Image.fromarray(self.gray(image_row)))

    def around(self, image_row: int, latent: int) -> tuple[Image.Image, ...]:
        """The image with a box round the latent's peak, and what is in the box; the image alone where it has none."""
        image = Image.fromarray(self.gray(image_row))
        peak = self._peak(image_row, latent)
        if peak is None:
            return (self._fitted(image),)
        left, top, right, bottom = box = self._box(peak, image.size)
        drawn = image.convert("RGB")
        ImageDraw.Draw(drawn).rectangle(
            (left, top, right - 1, bottom - 1), outline=_BOX, width=max(1, round(max(image.size) / _LINES))
        )
        return self._fitted(drawn), self._fitted(image.crop(box))

    def read_peaks(self, latents: ArrayLike, split: str) -> None:
        """Read the peaks of many latents at once, which `around` else does one by one; the strongest of each image."""
        wanted = indices(latents, "the latents", self._table.d_sae)
        if not self.has_peaks or not len(wanted):
            return
        places = np.unique(wanted)
        found = self._table.peaks(places, split=split)
        order = np.lexsort((found.values, found.image_rows, found.columns))
        columns, rows = found.columns[order], found.image_rows[order]
        is_strongest = np.append((np.diff(columns) != 0) | (np.diff(rows) != 0), True)[: len(order)]
        strongest, columns = order[is_strongest], columns[is_strongest]
        height, width = self._table.image_size
        points = (found.points[strongest] / (width, height)).astype(np.float32)
        bounds = np.searchsorted(columns, np.arange(len(places) + 1))
        for latent, first, end in zip(places.tolist(), bounds[:-1], bounds[1:], strict=True):
            self._peaks[split, latent] = found.image_rows[strongest[first:end]], points[first:end]

    def _peak(self, image_row: int, latent: int) -> tuple[float, float] | None:
        """Where a latent is strongest in an image, as shares of its width and height."""
        split = str(self._table.images["split"].iloc[image_row])
        if not self.has_peaks:
            return None
        if (split, latent) not in self._peaks:
            self.read_peaks([latent], split)
        rows, points = self._peaks[split, latent]
        place = int(np.searchsorted(rows, image_row))
        if place == len(rows) or rows[place] != image_row:
            return None
        x, y = points[place].tolist()
        return x, y

    def _box(self, peak: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the square round a peak, moved so that it lies in the image."""
        side = max(1, round(self._crop * max(size)))
        ends = []
        for share, length in zip(peak, size, strict=True):
            own = min(side, length)
            first = min(max(round(share * length - own / 2), 0), length - own)
            ends.append((first, first + own))
        (left, right), (top, bottom) = ends
        return left, top, right, bottom

    def _fitted(self, image: Image.Image) -> Image.Image:
        scale = self._longest / max(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
