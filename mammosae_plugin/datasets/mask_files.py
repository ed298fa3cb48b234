"""Masks of findings: PNG or DICOM files in which what is not 0 belongs to the finding."""

__all__ = ["boxes_of_mask", "largest_part", "read_mask"]

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.dicom import is_dicom, read_stored

_TOUCHING = np.ones((3, 3), dtype=np.int8)
_LOSSY = ("JPEG", "MPO", "WEBP")


def read_mask(path: Path, image_size: tuple[int, int] | None = None) -> npt.NDArray[np.bool_]:
    """A mask (H, W) from a PNG of any depth or a DICOM file.

    Raises:
        BadImageError: the file is missing or cannot be read, or has another size than (height, width).
    """

    def bad(reason: str) -> BadImageError:
        return BadImageError(f"mask {path.name}: {reason}", reason)

    try:
        values = read_stored(path) if is_dicom(path) else _of_image(path)
    except BadImageError as error:
        raise bad(error.reason) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise bad("cannot be read as an image") from error
    mask = np.asarray(values != 0 if values.ndim == 2 else (values != 0).any(axis=2), dtype=np.bool_)
    if image_size is not None and mask.shape != tuple(image_size):
        height, width = mask.shape
        raise bad(f"is {height} x {width} pixels, its image {image_size[0]} x {image_size[1]} (height x width)")
    return mask


def _of_image(path: Path) -> npt.NDArray[Any]:
    with Image.open(path) as image:
        if image.format in _LOSSY:
            raise BadImageError("", f"is {image.format}, which smears the edges of masks: save it as PNG")
        if image.mode == "P":  # whose numbers are the labels
            return np.asarray(image)
        if image.mode not in ("RGBA", "LA", "PA"):
            return np.asarray(image)
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3] * (pixels[..., 3:] > 0)  # what is clear is not painted, whatever its colour


def largest_part(mask: npt.NDArray[Any]) -> int:
    """The pixels of the largest connected part of a mask (H, W), as `boxes_of_mask` has them; 0 of an empty one."""
    parts, _ = ndimage.label(mask, structure=_TOUCHING)
    return int(np.bincount(parts.ravel())[1:].max(initial=0))


def boxes_of_mask(mask: npt.NDArray[np.bool_], min_area: int = 1) -> npt.NDArray[np.float64]:
    """The boxes (n, 4) xyxy around the connected parts of a mask (H, W), those touching at corners as one.

    Parts of fewer pixels than `min_area` have none. A box ends where its last pixel ends.
    """
    parts, _ = ndimage.label(mask, structure=_TOUCHING)
    boxes = []
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        rows, columns = place
        if min_area > 1 and int((parts[place] == number).sum()) < min_area:
            continue
        boxes.append([columns.start, rows.start, columns.stop, rows.stop])
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
