"""Originals that are fitted into a network's input whenever they are read, in place of being prepared once."""

__all__ = ["is_original", "mask_of", "original_size", "read_original"]

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.dicom import read_picture, read_tags
from mammosae_plugin.datasets.mapping import ImageMapping
from mammosae_plugin.datasets.mask_files import read_mask
from mammosae_plugin.datasets.preparation import Transform, prepare_picture
from mammosae_plugin.file_kinds import kind_of


def is_original(file: str, mapping: ImageMapping) -> bool:
    """Whether a file is letterboxed when it is read: DICOM, by its name, or anything where the mapping says so."""
    return mapping.preparation == "letterbox" or Path(file).suffix.lower() != ".png"


def original_size(path: Path) -> tuple[int, int]:
    """Height and width of a PNG or DICOM image, by its header.

    Raises:
        BadImageError: The file is missing, is neither, or does not say its size.
        InputError: pydicom is not installed.
    """
    try:
        if kind_of(path) == "a PNG image":
            with Image.open(path) as image:
                return image.height, image.width
    except FileNotFoundError as error:
        raise BadImageError(f"{path.name}: the file does not exist", "the file does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"{path.name}: cannot be read", "cannot be read") from error
    rows, columns = read_tags(path, ["Rows", "Columns"]).values()
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise BadImageError(f"{path.name}: is DICOM without pixels", "is DICOM without pixels")
    return int(rows), int(columns)


def read_original(path: Path, image_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The letterboxed pixels (H, W) of a PNG or DICOM image, as `mammosae prepare --preparation letterbox` has them.

    Raises:
        BadImageError: The file cannot be used.
        InputError: pydicom is not installed.
    """
    pixels = prepare_picture(read_picture(path, rescale=False), "letterbox", image_size).pixels
    return pixels.astype(np.uint8, copy=False)


def mask_of(path: Path, frame: Transform | None, image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask (H, W): over an original, letterboxed as its image is; without `frame` as it is.

    Raises:
        BadImageError: The file cannot be used, or, of a mask that is used as it is, has another size.
        InputError: pydicom is not installed.
    """
    return read_mask(path, image_size) if frame is None else frame.mask(read_mask(path))
