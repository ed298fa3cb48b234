"""From a PNG on disk to the network's input, exactly as the released Mammo-SAE and Mammo-CLIP code does it."""

import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import kind_of

MEAN = 0.3089279
STD = 0.25053555408335154
_TAIL = 4096  # bytes of a file in which the end of a PNG is looked for

PREPROCESSING: dict[str, Any] = {
    "read_as": "8-bit RGB",
    "steps": ["to float32", "minus its minimum", "over its new maximum", f"minus {MEAN}", f"over {STD}"],
    "mean": MEAN,
    "std": STD,
    "resize": None,
}
"""The preprocessing in plain JSON, for the metadata of whatever is made from preprocessed images."""


def preprocessing_fingerprint() -> str:
    """SHA-256 of what `preprocess` makes of a fixed ramp: it changes with every setting that changes the pixels.

    What is made from preprocessed images must be kept under it; a dataset's `fingerprint` holds it.
    """
    ramp = np.arange(5, 250, dtype=np.uint8).reshape(7, 35)
    return hashlib.sha256(preprocess(ramp).numpy().tobytes()).hexdigest()


class BadImageError(InputError):
    """One image that cannot be used: unreadable, wrongly sized, not 8-bit, or constant.

    Attributes:
        reason: the cause alone, without the image's name (what a quarantine file lists).
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)  # one required argument, because DataLoader workers rebuild errors from their text
        self.reason = message if reason is None else reason


def read_png(path: str | os.PathLike[str], image_size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read an 8-bit grayscale or RGB image.

    Args:
        path: the file.
        image_size: (height, width) that the image must have, or None for any.

    Returns:
        uint8 array of shape (H, W) for a grayscale file, (H, W, 3) for a colour file.

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
            if image.mode not in ("L", "RGB"):
                raise bad(f"has pixel mode {image.mode}, expected 8-bit grayscale (L) or RGB: convert it")
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


def check_contrast(array: npt.NDArray[np.uint8], name: str = "") -> None:
    """Raise `BadImageError` when all values of the image are equal, which the preprocessing would divide by zero."""
    if array.size == 0 or array.min() == array.max():
        reason = "has no pixels" if array.size == 0 else f"is constant (every value is {array.flat[0]})"
        raise BadImageError(f"image {name}: {reason}" if name else f"the image {reason}", reason)


def preprocess(array: npt.NDArray[np.uint8], name: str = "") -> torch.Tensor:
    """An 8-bit image as the network's input: x - min(x), over its new maximum, minus MEAN, over STD, in float32.

    Minimum and maximum are taken over the whole image. Source: the dataset class of the released Mammo-SAE code.

    Args:
        array: uint8, (H, W) grayscale (replicated to three channels) or (H, W, 3) RGB.
        name: the image's name, for the error message.

    Returns:
        float32 tensor (3, H, W), contiguous.

    Raises:
        BadImageError: the image is constant.
        TypeError: the array has another type or shape.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise TypeError(f"expected a uint8 array (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
    check_contrast(array, name)
    values = array.astype(np.float32)
    values -= values.min()
    values /= values.max()
    values -= np.float32(MEAN)
    values /= np.float32(STD)
    image = torch.from_numpy(values)
    return image.expand(3, -1, -1).contiguous() if image.ndim == 2 else image.permute(2, 0, 1).contiguous()
