"""From a PNG on disk to pixels, and to Mammo-CLIP's input."""

__all__ = ["as_8_bit", "BadImageError", "preprocess", "PREPROCESSING", "read_png"]

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, BadImageError
from mammosae_plugin.file_kinds import kind_of

_TAIL = 4096  # bytes of a file in which the end of a PNG is looked for

_DEEP = ("I;16", "I;16B", "I;16L", "I")  # 16-bit grayscale PNG, by Pillow's release

PREPROCESSING: dict[str, Any] = MAMMO_CLIP.describe()
"""Mammo-CLIP's preprocessing in plain JSON."""


def read_png(
    path: str | os.PathLike[str], image_size: tuple[int, int] | None = None, *, deep: bool = False
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Read an 8-bit grayscale or RGB image, or where that is wanted a 16-bit grayscale one.

    Args:
        path: the file.
        image_size: (height, width) that the image must have, or None for any.
        deep: read 16-bit grayscale too, instead of refusing it.

    Returns:
        uint8 array of shape (H, W) for a grayscale file, (H, W, 3) for a colour file; uint16 (H, W) for a deep one.

    Raises:
        BadImageError: the file is missing, empty, truncated or no image, is named .png and is no PNG, has another size,
            or is not 8-bit grayscale or RGB (16-bit data would be clipped and an alpha channel dropped in silence, so
            both are refused).
    """
    name = Path(path).name

    def bad(reason: str) -> BadImageError:
        return BadImageError(f"image {name}: {reason}", reason)

    try:
        if os.stat(path).st_size == 0:
            raise bad("the file is empty (0 bytes)")
        with Image.open(path) as image:
            if image.format != "PNG" and _is_named_png(path):
                raise bad(_other_format(path))
            width, height = image.size
            if image_size is not None and (height, width) != tuple(image_size):
                raise bad(f"is {height} x {width} pixels, expected {image_size[0]} x {image_size[1]} (height x width)")
            if deep and image.mode in _DEEP:
                pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
            elif image.mode not in ("L", "RGB"):
                raise bad(f"has pixel mode {image.mode}, expected 8-bit grayscale (L) or RGB: convert it")
            else:
                pixels = np.asarray(image, dtype=np.uint8)
        if _is_named_png(path) and not _has_end(path):
            raise bad("cannot be read (image file is truncated: its end is missing)")
        return pixels
    except FileNotFoundError as error:
        raise bad("the file does not exist") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, BadImageError):
            raise
        if isinstance(error, UnidentifiedImageError):
            raise bad(_other_format(path)) from error
        # The system's own message would repeat the path, and with it the image's id.
        text = getattr(error, "strerror", None) or " ".join(str(error).replace(str(path), "the file").split())
        raise bad(f"cannot be read ({text or type(error).__name__})") from error


def as_8_bit(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Pixels for display: those of 16 bit over the range that they have."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    low, high = int(pixels.min()), int(pixels.max())
    return np.round((pixels.astype(np.float32) - low) * np.float32(255 / max(1, high - low))).astype(np.uint8)


def _has_end(path: str | os.PathLike[str]) -> bool:
    """Whether the last chunk of a PNG is there (and not much behind it): pixels decode without the last bytes too."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return b"IEND\xaeB`\x82" in file.read()


def _is_named_png(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".png"


def _other_format(path: str | os.PathLike[str]) -> str:
    """What a file is that cannot be taken for the image that its name promises."""
    kind, wanted = kind_of(path), "PNG" if _is_named_png(path) else "image that can be read"
    if kind is None:
        return "cannot be read (its content is of no known format)"
    if kind == "a PNG image":
        return "cannot be read (the header of the PNG is damaged)"
    is_none = any(word in kind for word in ("pointer", "HTML", "archive", "JSON", "document"))
    way_out = "put the image itself in its place" if is_none else "convert it to 8-bit PNG, a new name is not enough"
    return f"is {kind}, not a{'n' if wanted[0] == 'i' else ''} {wanted}: {way_out}"


def preprocess(array: npt.NDArray[np.uint8], name: str = "") -> torch.Tensor:
    """An 8-bit image as Mammo-CLIP's input: x - min(x), over its new maximum, minus MEAN, over STD, in float32.

    Minimum and maximum are taken over the whole image. Source: the dataset class of the released Mammo-SAE code.

    Args:
        array: uint8, (H, W) grayscale (repeated to three channels) or (H, W, 3) RGB.
        name: the image's name, for the error message.

    Returns:
        float32 tensor (3, H, W), contiguous.

    Raises:
        BadImageError: the image is constant.
        TypeError: the array has another type or shape.
    """
    return MAMMO_CLIP(array, name)
