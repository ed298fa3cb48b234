"""One image that somebody asks about: of the study by its id, or a file as the study's network would be shown it."""

__all__ = ["Shown", "shown_file", "shown_image", "shown_row"]

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.analysis.retrieval import nearest_ids
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.datasets.dicom import read_picture
from mammosae_plugin.datasets.preparation import Transform, prepare_picture
from mammosae_plugin.datasets.preprocessing import as_8_bit, read_png
from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import kind_of
from mammosae_plugin.files import local_path


@dataclass(frozen=True)
class Shown:
    """An image as the network is shown it, and where it comes from.

    Attributes:
        name: what it is called.
        pixels: uint8 or uint16 (H, W), or (H, W, 3).
        row: its row in the study's data, None where it is none of these.
        patient: whose it is, where that is known.
        original: the picture before it was prepared, uint8 (H, W), with the way there; None where it came prepared.
        prepared: what was done to it, in a sentence; None likewise.
    """

    name: str
    pixels: NDArray[Any]
    row: int | None = None
    patient: str | None = None
    original: tuple[NDArray[np.uint8], Transform] | None = None
    prepared: str | None = None

    @property
    def gray(self) -> NDArray[np.uint8]:
        """For display, (H, W)."""
        pixels = as_8_bit(self.pixels)
        found: NDArray[np.uint8] = pixels if pixels.ndim == 2 else pixels.mean(axis=2).round().astype(np.uint8)
        return found


def shown_image(image: str, images: StudyDataset, preparation: str | None = None) -> Shown:
    """An image of the study by its id, or a file.

    Args:
        image: the id, or the path.
        images: the study's images.
        preparation: "mammo-clip" or "letterbox", for a file that is not prepared yet; by default that of the study's
            data, or mammo-clip.

    Raises:
        InputError: it is neither.
        BadImageError: the file cannot be read.
    """
    ids = images.images["image_id"].astype(str).tolist()
    path = local_path(image)
    if not path.is_file():
        if image in ids:
            return shown_row(images, ids.index(image))
        near = nearest_ids(image, ids) or ids[:1]
        raise InputError(
            f"{image} is no file, and no image of the study ({len(ids)} images, such as {', '.join(near)})"
        )
    paths = [one.resolve() for one in images.image_paths]
    if path.resolve() in paths and preparation is None:
        return shown_row(images, paths.index(path.resolve()))
    return shown_file(path, images, preparation)


def shown_row(images: StudyDataset, row: int) -> Shown:
    """An image of the study by its row.

    Raises:
        BadImageError: its file is gone or damaged.
    """
    about = images.images.iloc[row]
    pixels = images.pixels(row) if hasattr(images, "pixels") else images.gray(row)
    return Shown(str(about["image_id"]), pixels, row, str(about["patient_id"]))


def shown_file(path: Path, images: StudyDataset, preparation: str | None = None, *, name: str | None = None) -> Shown:
    """A file, prepared as the study's images were; arguments and errors as for `shown_image`.

    Args:
        path: a PNG or DICOM file.
        images: the study's images.
        preparation: as there.
        name: what it is called, where its path does not say so.
    """
    name = name or path.name
    size = (int(images.image_size[0]), int(images.image_size[1]))
    if preparation is None and (path.suffix.lower() == ".png" or kind_of(path) == "a PNG image"):
        pixels = read_png(path, None, deep=True)
        if pixels.shape[:2] == size:
            return Shown(name, pixels)
    own = getattr(getattr(images, "mapping", None), "preparation", None)
    picture = read_picture(path, rescale=False)
    way = preparation or ("letterbox" if own == "letterbox" else "mammo-clip")
    prepared = prepare_picture(picture, way, size)
    (height, width), (rows, columns) = prepared.transform.source, prepared.transform.inner
    left, top, right, bottom = prepared.transform.crop
    said = (
        f"The file has {height} x {width} pixels (height x width), and was prepared by {way}: its rows {top} to "
        f"{bottom} and columns {left} to {right} were resized to {rows} x {columns} in an image of "
        f"{size[0]} x {size[1]}, and brightness was stretched to the full range. --preparation chooses another way."
    )
    original = _displayed(picture.pixels), prepared.transform
    return Shown(name, prepared.pixels, original=original, prepared=said)


def _displayed(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A picture for display: its middle 99.8 % of values over the whole range."""
    low, high = np.percentile(pixels, [0.1, 99.9])
    found: NDArray[np.uint8] = np.round(255 * ((pixels - low) / max(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)
    return found
