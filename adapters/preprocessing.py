"""How pixels become a network's input. It belongs to the network, and to the fingerprint of all that is made."""

__all__ = ["BadImageError", "check_contrast", "IMAGENET", "MAMMO_CLIP", "Number", "own_preprocessing", "Preprocessing"]

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from mammosae_plugin.errors import InputError

Number = float | tuple[float, float, float]
"""One for all channels, or one for each of red, green and blue."""


class BadImageError(InputError):
    """One image that cannot be used: unreadable, wrongly sized, not 8-bit, or constant.

    Attributes:
        reason: the cause alone, without the image's name (what a quarantine file lists).
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)  # one required argument, because DataLoader workers rebuild errors from their text
        self.reason = message if reason is None else reason


def check_contrast(array: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], name: str = "") -> None:
    """Raise `BadImageError` when all values of the image are equal, which the preprocessing would divide by zero."""
    if array.size == 0 or array.min() == array.max():
        reason = "has no pixels" if array.size == 0 else f"is constant (every value is {array.flat[0]})"
        raise BadImageError(f"image {name}: {reason}" if name else f"the image {reason}", reason)


@dataclass(frozen=True)
class Preprocessing:
    """A network's own preprocessing; gray images are repeated to three channels, and only `size` resizes.

    Attributes:
        mean: what is taken off after scaling.
        std: what the rest is divided by.
        scale: "own_range": minus the image's minimum, over its new maximum, as the released Mammo-SAE code does it;
            "full_range": over 255, as timm's networks expect it.
        channels: 3, or 1 for a network that takes gray images.
        size: (H, W) that every image is stretched to, after it was scaled; None leaves it as it is.
    """

    mean: Number
    std: Number
    scale: Literal["own_range", "full_range"]
    channels: Literal[1, 3] = 3
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """See that a range of the image's own goes with one mean for all channels, since it is that of all of them."""
        per_channel = isinstance(self.mean, tuple) or isinstance(self.std, tuple)
        if self.scale == "own_range" and per_channel:
            raise InputError("a preprocessing to the image's own range has one mean and one std, not one per channel")
        if self.channels == 1 and per_channel:
            raise InputError("a preprocessing to one channel has one mean and one std, not three")
        if not all(np.isfinite([*np.atleast_1d(self.mean), *np.atleast_1d(self.std)])) or np.min(self.std) <= 0:
            raise InputError(f"a preprocessing has mean {self.mean} and std {self.std}: give numbers, std above 0")

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of what the network is given of images of `image_size`."""
        return self.size or image_size

    def __call__(self, array: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], name: str = "") -> torch.Tensor:
        """An image as the network's input, computed in float32.

        Args:
            array: uint8, (H, W) grayscale or (H, W, 3) RGB; or uint16, whose full range is 65535.
            name: the image's name, for the error message.

        Returns:
            float32 tensor (channels, H, W), contiguous.

        Raises:
            BadImageError: the image is constant.
            TypeError: the array has another type or shape.
        """
        is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
        if array.dtype not in (np.uint8, np.uint16) or not is_image:
            raise TypeError(f"expected a uint8 array (or uint16) (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
        check_contrast(array, name)
        if self.channels == 1 and array.ndim == 3:
            array = np.asarray(Image.fromarray(array).convert("L"))
        values = array.astype(np.float32)
        if self.scale == "own_range":
            values -= values.min()
            values /= values.max()
        else:
            values /= np.float32(np.iinfo(array.dtype).max)
        if values.ndim == 2 and isinstance(self.mean, tuple):
            values = np.repeat(values[..., None], 3, axis=2)
        values -= np.asarray(self.mean, dtype=np.float32)
        values /= np.asarray(self.std, dtype=np.float32)
        image = torch.from_numpy(values)
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        if self.size is not None:
            image = functional.interpolate(
                image[None], self.size, mode="bilinear", antialias=True, align_corners=False
            )[0]
        return image.expand(self.channels, -1, -1).contiguous()

    def again(self, image: torch.Tensor) -> torch.Tensor:
        """A preprocessed image (channels, H, W) that was changed, as if its pixels had been changed before.

        An image in its own range is stretched to the full range again, as Mammo-CLIP does it, which augments before it
        preprocesses; one without any contrast left stays.
        """
        low, high = image.min(), image.max()
        if self.scale == "full_range" or low == high:
            return image
        assert not isinstance(self.mean, tuple) and not isinstance(self.std, tuple)  # the constructor has seen to it
        stretched: torch.Tensor = ((image - low) / (high - low) - self.mean) / self.std
        return stretched

    def describe(self) -> dict[str, Any]:
        """It in plain JSON, for the metadata of whatever is made from preprocessed images."""
        mean, std = (list(value) if isinstance(value, tuple) else value for value in (self.mean, self.std))
        scaling = ["minus its minimum", "over its new maximum"] if self.scale == "own_range" else ["over 255"]
        return {
            "read_as": "8-bit RGB" if self.channels == 3 else "8-bit gray",
            "steps": ["to float32", *scaling, f"minus {mean}", f"over {std}"],
            "mean": mean,
            "std": std,
            "resize": None if self.size is None else list(self.size),
        }

    @classmethod
    def described(cls, said: Any) -> "Preprocessing":
        """The preprocessing that `describe` described.

        Raises:
            InputError: it is none that this release knows.
        """
        if isinstance(said, Mapping):
            mean, std = (
                tuple(value) if isinstance(value, list) and len(value) == 3 else value
                for value in (said.get("mean"), said.get("std"))
            )
            scale = "full_range" if "over 255" in str(said.get("steps")) else "own_range"
            channels = 1 if said.get("read_as") == "8-bit gray" else 3
            size = said.get("resize")
            try:
                found = cls(mean, std, scale, channels, None if size is None else (int(size[0]), int(size[1])))  # type: ignore[arg-type]  # what it is is compared
            except (TypeError, ValueError, IndexError):
                found = None
            if found is not None and found.describe() == dict(said):
                return found
        raise InputError(f"the preprocessing {said!r} is none that this release knows; update it")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what it makes of a fixed ramp: it changes with every setting that changes the pixels."""
        ramp = np.arange(5, 250, dtype=np.uint8).reshape(7, 35)
        return hashlib.sha256(self(ramp).numpy().tobytes()).hexdigest()


MAMMO_CLIP = Preprocessing(mean=0.3089279, std=0.25053555408335154, scale="own_range")
"""Exactly what the released Mammo-SAE and Mammo-CLIP code does."""

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale="full_range")
"""What most networks expect whose weights were trained on ImageNet."""


def own_preprocessing(network: Any) -> Preprocessing | None:
    """How a network says that it wants pixels; None where it does not.

    Its attribute `preprocessing`, which networks of this package have; or mean and std of timm's `default_cfg`, with
    every image stretched to the `input_size` there.
    """
    own = getattr(network, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own
    config = getattr(network, "default_cfg", None) or {}
    if not all(name in config for name in ("mean", "std", "input_size")):
        return None
    channels, *size = config["input_size"]
    mean: Any = tuple(float(one) for one in config["mean"])
    std: Any = tuple(float(one) for one in config["std"])
    if channels == 1:
        mean, std = sum(mean) / len(mean), sum(std) / len(std)
    return Preprocessing(mean, std, "full_range", 1 if channels == 1 else 3, (int(size[0]), int(size[1])))
