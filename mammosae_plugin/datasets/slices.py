"""From a volume to the pictures of its slices and to what lies in each: grey levels, crop, resize, orientation.

The rules are SAIL's (arXiv 2603.23794, its released code), but for grey levels, which are the window's by default and
not those of each volume, so that a grey value means one Hounsfield unit. Arrays are indexed [x, y, z].
"""

__all__ = [
    "AXES", "blank", "centre_square", "deepened", "first_to_last", "gray_volume", "hounsfield_windows", "is_half_depth",
    "Levels", "organ_regions", "picture", "presence", "resampled", "Slicing", "Spacing", "STUDY_TYPE", "Volume",
    "Window", "window_of",
]  # fmt: skip

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.arguments import flag, numbers, one_of, shown
from mammosae_plugin.errors import InputError

AXES = ("x", "y", "z")
STUDY_TYPE = "study_type"
_PERCENTILES = (1, 99)
_PLANE_TOLERANCE = 1e-3  # mm
_ALL_TOLERANCE = 1e-6  # mm, and 1e-5 of the spacing beside it, which is stored in single precision

Window = tuple[float, float]
Levels = Literal["window", "volume"]
Spacing = Literal["isotropic", "in_plane"]
Volume = npt.NDArray[Any]


@dataclass(frozen=True)
class Slicing:
    """How the volumes of one modality become pictures.

    Attributes:
        axes: The axes along which slices are cut, of "x", "y", "z"; or "shortest", that with the fewest voxels (the
            first of equally short ones).
        window: (center, width) in Hounsfield units; "study_type", by the table's column of that name (`window_of`); or
            None, percentiles 1 and 99 of the values above 0, as for MRI.
        levels: Which values become 0 and 255: "window", the bounds of the window or the two percentiles; or "volume",
            the smallest and largest value that this volume has between them, as the released code has it.
        spacing: "isotropic" leaves out volumes whose voxels are no cubes; "in_plane" resamples the slices to the
            smaller of their two spacings, which goes with one axis.
        canonical: Whether the voxels are first put in the order right, anterior, superior by the file's own affine;
            else they stay as they are stored, as in the released code.
        mask_above: Voxels of a mask above this value belong to its label.

    Raises:
        InputError: A value is none of these, or they do not go together.
    """

    axes: tuple[str, ...] | Literal["shortest"] = AXES
    window: Window | Literal["study_type"] | None = "study_type"
    levels: Levels = "window"
    spacing: Spacing = "isotropic"
    canonical: bool = False
    mask_above: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.axes != "shortest":
            axes = tuple(self.axes)
            if not axes or len(set(axes)) < len(axes) or not set(axes) <= set(AXES):
                raise InputError(f"axes are {shown(self.axes)}: give some of 'x', 'y', 'z', each once, or 'shortest'")
            object.__setattr__(self, "axes", tuple(sorted(axes)))
        if self.window is not None and self.window != STUDY_TYPE:
            window: list[float] = (
                [] if isinstance(self.window, str) else np.ravel(numbers(self.window, "window")).tolist()
            )
            if len(window) != 2 or not np.isfinite(window).all() or window[1] <= 0:
                raise InputError(
                    f"window is {shown(self.window)}: give (center, width) in Hounsfield units, 'study_type' or None"
                )
            object.__setattr__(self, "window", tuple(window))
        one_of(self.levels, "levels", get_args(Levels))
        one_of(self.spacing, "spacing", get_args(Spacing))
        flag(self.canonical, "canonical")
        if not np.isfinite(numbers(self.mask_above, "mask_above")).all():
            raise InputError(f"mask_above is {shown(self.mask_above)}: give a number")
        if self.spacing == "in_plane" and self.axes != "shortest" and len(self.axes) > 1:
            raise InputError("spacing 'in_plane' goes with one axis or with 'shortest': give one of them")

    def axes_of(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The axes along which a volume of this shape is cut."""
        return (AXES[int(np.argmin(shape))],) if self.axes == "shortest" else self.axes

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(Path(__file__).with_name("totalsegmentator.json").read_text(encoding="utf-8"))
    return table


def hounsfield_windows() -> dict[str, Window]:
    """The window (center, width) of every known study type of CT, in Hounsfield units."""
    return {name: (center, width) for name, (center, width) in _table()["hounsfield_windows"].items()}


def organ_regions() -> dict[str, str]:
    """The region of the body of every organ that TotalSegmentator's CT and MRI masks have (121 of them)."""
    return {organ: region for region, organs in _table()["regions"].items() for organ in organs}


def window_of(study_type: Any) -> Window:
    """The window (center, width) of a study type, whatever its case and blanks.

    Raises:
        BadImageError: it is missing, or none that is known.
    """
    if not isinstance(study_type, str) or not study_type.strip():
        raise _bad("its study type is not known, so there is no window for it")
    window = hounsfield_windows().get(" ".join(study_type.lower().split()))
    if window is None:
        raise _bad(f"there is no window for its study type {study_type.strip()!r}")
    return window


def gray_volume(values: Volume, spacing: tuple[float, float, float], slicing: Slicing, window: Window | None) -> Volume:
    """A volume as uint8 (X, Y, Z), resampled in the plane of its slices where `slicing` says so.

    Args:
        values: (X, Y, Z), as stored.
        spacing: the voxel's edges in mm.
        slicing: how.
        window: (center, width) in Hounsfield units; None takes the percentiles.

    Raises:
        BadImageError: its voxels are no cubes where they have to be, a value is no number, or nothing is left of it.
    """
    _check_spacing(spacing, slicing)
    if values.dtype.kind == "f" and (n_broken := values.size - int(np.isfinite(values).sum())):
        raise _bad(f"{n_broken} of its values are no numbers")
    values = resampled(values, spacing, slicing)
    if window is not None:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    else:
        foreground = values[values > 0]
        if not foreground.size:
            raise _bad("it has no value above 0")
        floating = foreground if foreground.dtype == np.float32 else foreground.astype(np.float64)
        low, high = (float(value) for value in np.percentile(floating, _PERCENTILES))
    if slicing.levels == "volume":
        low, high = (float(np.clip(value, low, high)) for value in (values.min(), values.max()))
    if low == high:
        raise _bad(f"all of it is {low:g} within its window" if window else f"all of it is {low:g}")
    gray = np.empty(values.shape, dtype=np.uint8)
    for depth in range(values.shape[2]):  # one slice at a time in floating point: memory
        part = values[:, :, depth]
        part = np.clip(part if part.dtype == np.float32 else part.astype(np.float64), low, high)
        gray[:, :, depth] = (part - low) / (high - low) * 255.0
    return gray


def _check_spacing(spacing: tuple[float, float, float], slicing: Slicing) -> None:
    listed = " x ".join(f"{edge:g}" for edge in spacing)
    if not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise _bad(f"its voxels are {listed} mm")
    first, *others = spacing
    if slicing.spacing == "isotropic" and not np.allclose(others, first, rtol=1e-5, atol=_ALL_TOLERANCE):
        raise _bad(f"its voxels are no cubes ({listed} mm)")


def resampled(
    values: Volume, spacing: tuple[float, float, float], slicing: Slicing, *, nearest: bool = False
) -> Volume:
    """The volume with slices of square pixels: linear (then float32) between voxels, or the nearest voxel.

    The first voxel stays where it is; what lies more than half a voxel beyond the last one is 0.
    """
    if slicing.spacing == "isotropic":
        return values
    (axis,) = slicing.axes_of(values.shape)
    first, second = (AXES.index(other) for other in AXES if other != axis)
    if np.isclose(spacing[first], spacing[second], rtol=1e-5, atol=_PLANE_TOLERANCE):
        return values
    along = first if spacing[first] > spacing[second] else second
    old, new = spacing[along], min(spacing[first], spacing[second])
    n = values.shape[along]
    at = np.arange(round(n * old / new)) * new / old
    if nearest:
        found = values.take(np.floor(at + 0.5).astype(int).clip(0, n - 1), axis=along)
    else:
        below = np.floor(at).astype(int).clip(0, n - 1)
        shape = [1, 1, 1]
        shape[along] = len(at)
        share = (at - below).reshape(shape)
        above = (below + 1).clip(0, n - 1)
        found = values.take(below, axis=along) * (1 - share) + values.take(above, axis=along) * share
        found = found.astype(np.float32)
    outside = [slice(None)] * 3
    outside[along] = slice(int((at < n - 0.5).sum()), None)
    found[tuple(outside)] = 0
    return found


def deepened(mask: Volume, depth: int) -> Volume:
    """A mask of half as many slices along z as its volume, each spread to its nearest neighbours.

    A few masks of TotalSegmentator are so; the released code stretches them like this.
    """
    at = np.arange(depth) * (mask.shape[2] - 1) / max(depth - 1, 1)
    return np.asarray(mask.take(np.floor(at + 0.5).astype(int), axis=2))


def is_half_depth(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a mask of this shape has half as many slices along z as a volume of shape `of`."""
    return shape[:2] == of[:2] and shape[2] in {of[2] // 2, (of[2] + 1) // 2} - {0}


def centre_square(volume: Volume, axis: str) -> Volume:
    """The volume cut to the largest square in the middle of its slices along an axis (a view)."""
    along = AXES.index(axis)
    side = min(size for at, size in enumerate(volume.shape) if at != along)
    starts = [(size - side) // 2 for size in volume.shape]
    return volume[tuple(slice(None) if at == along else slice(start, start + side) for at, start in enumerate(starts))]


def presence(mask: npt.NDArray[np.bool_], axis: str) -> npt.NDArray[np.bool_]:
    """Of every slice along an axis (n,), whether any voxel of the mask lies in its centre square."""
    others = tuple(at for at, name in enumerate(AXES) if name != axis)
    return np.asarray(centre_square(mask, axis).any(axis=others))


def first_to_last(there: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of every slice of a stack (n,), whether it lies from the first to the last one that has any label.

    Args:
        there: (n, labels), which labels lie in which slice, in order.
    """
    some = np.flatnonzero(there.any(axis=1))
    wanted = np.zeros(len(there), dtype=bool)
    if len(some):
        wanted[some[0] : some[-1] + 1] = True
    return wanted


def blank(gray: Volume, axis: str) -> npt.NDArray[np.bool_]:
    """Of every slice along an axis (n,), whether its centre square has one grey level only."""
    others = tuple(at for at, name in enumerate(AXES) if name != axis)
    square = centre_square(gray, axis)
    return np.asarray(square.min(axis=others) == square.max(axis=others))


def picture(gray: Volume, axis: str, index: int, side: int) -> npt.NDArray[np.uint8]:
    """One slice as it is looked at: its centre square, resized (Lanczos), turned, along x and y mirrored too.

    Args:
        gray: uint8 (X, Y, Z).
        axis: "x", "y" or "z".
        index: which slice along it.
        side: pixels of the picture's edges.

    Returns:
        uint8 (side, side).
    """
    plane = centre_square(gray, axis).take(index, axis=AXES.index(axis))
    resized = Image.fromarray(np.ascontiguousarray(plane)).resize((side, side), Image.Resampling.LANCZOS)
    turned = np.rot90(np.asarray(resized))
    return np.ascontiguousarray(turned if axis == "z" else np.fliplr(turned))


def _bad(reason: str) -> BadImageError:
    return BadImageError(f"the volume cannot be used: {reason}", reason)
