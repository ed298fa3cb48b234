"""An image that is an example of a latent: whole, with what it fires on and the boxes, and close to the place."""

__all__ = ["draw_example", "DrawnExample"]

from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from mammosae_plugin.arguments import as_array, between, numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.visualization.style import HEATMAP_COLORS, PREDICTED_BOX, TRUTH_BOX

_OPACITY = 0.6
_OUTLINED = 0.5  # share of the map's largest value round which the outline runs
_LINES = 240  # times that a line fits into the longest side
_THINNEST = 2  # pixels of a line: thinner ones lose their colour where a file keeps colours at half the resolution
_LEAST_CELLS = 4  # of the map's grid, on a side of the crop


@dataclass(frozen=True)
class DrawnExample:
    """What is shown of one image.

    Attributes:
        whole: The image with the heat, its outline and the boxes.
        crop: A square round the map's peak, at the image's own resolution, with the outline and the boxes and without
            the heat, so that the tissue is seen; None where no place is known.
    """

    whole: Image.Image
    crop: Image.Image | None


def draw_example(
    pixels: ArrayLike | Image.Image,
    map: ArrayLike | None,  # noqa: A002 - what it is
    boxes: ArrayLike = (),
    *,
    crop_side: float = 0.25,
    longest: int = 768,
) -> DrawnExample:
    """Draw where a latent fires in an image, over the image.

    The colour and its opacity rise with the activation, as a share of the map's own largest. A white line between black
    ones, which is seen on any grey and by any eye, runs where that share is a half. Boxes are red between black lines.

    Args:
        pixels: (H, W) uint8, or a grey picture.
        map: (h, w) activations over the positions of the image, interpolated between the centres of positions; None,
            or a map of one position, says nothing of places.
        boxes: (n, 4) xyxy in pixels of the image.
        crop_side: the crop's side as a share of the image's longest side; it is at least four positions wide.
        longest: the longest side of either picture in pixels; larger ones are made smaller, none larger.

    Raises:
        InputError: pixels, a map or boxes of another shape, or values that are not finite.

    Example:
        >>> drawn = draw_example(dataset.gray(0), table.maps([812], 0)[0], table.boxes(0, "Mass"))
        >>> drawn.whole.save("example.png")
    """
    crop_side = between(crop_side, "crop_side", 0, 1, with_low=False)
    longest = whole(longest, "longest", least=16)
    gray = pixels.convert("L") if isinstance(pixels, Image.Image) else _picture(pixels)
    values = None if map is None else _map(map)
    outlines = numbers(boxes, "boxes")
    if outlines.size and (outlines.ndim != 2 or outlines.shape[1] != 4 or not np.isfinite(outlines).all()):
        raise InputError(f"boxes have shape {outlines.shape}: give finite corners (n, 4), xyxy in pixels of the image")
    outlines = outlines.reshape(-1, 4)
    if values is None or values.size == 1 or not values.max() > 0:
        return DrawnExample(_drawn(gray, (0, 0, *gray.size), None, outlines, longest, heat=False), None)
    everything = (0, 0, *gray.size)
    cells = (gray.width / values.shape[1], gray.height / values.shape[0])
    y, x = np.unravel_index(int(np.argmax(values)), values.shape)
    side = round(max(crop_side * max(gray.size), _LEAST_CELLS * max(cells)))
    frame = _square(((x + 0.5) * cells[0], (y + 0.5) * cells[1]), side, gray.size)
    return DrawnExample(
        _drawn(gray, everything, values, outlines, longest, heat=True),
        _drawn(gray, frame, values, outlines, longest, heat=False),
    )


def _picture(pixels: ArrayLike) -> Image.Image:
    array = as_array(pixels, "pixels")
    if array.ndim != 2 or array.dtype != np.uint8 or not array.size:
        raise InputError(f"pixels are {array.dtype} of shape {array.shape}: give a grey image (H, W) of uint8")
    return Image.fromarray(array)


def _map(values: ArrayLike) -> NDArray[np.float32]:
    array = numbers(values, "map")
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise InputError(f"map has shape {array.shape}: give finite activations (h, w) over an image's positions")
    return np.maximum(array, 0).astype(np.float32)


def _square(centre: tuple[float, float], side: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a square round a place, moved so that it lies in the image."""
    ends = []
    for middle, length in zip(centre, size, strict=True):
        own = min(side, length)
        first = min(max(round(middle - own / 2), 0), length - own)
        ends.append((first, first + own))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _drawn(
    gray: Image.Image,
    frame: tuple[int, int, int, int],
    values: NDArray[np.float32] | None,
    boxes: NDArray[np.float64],
    longest: int,
    *,
    heat: bool,
) -> Image.Image:
    """A part of the image, at most so large, with what is drawn on it."""
    left, top, right, bottom = frame
    scale = min(1.0, longest / max(right - left, bottom - top))
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    drawn = gray.resize(size, Image.Resampling.LANCZOS, box=frame).convert("RGB")
    width = max(_THINNEST, round(max(size) / _LINES))
    if values is not None:
        h, w = values.shape
        part = (left * w / gray.width, top * h / gray.height, right * w / gray.width, bottom * h / gray.height)
        large = Image.fromarray(values / values.max()).resize(size, Image.Resampling.BILINEAR, box=part)
        share = np.clip(np.asarray(large), 0, 1)
        painted = np.asarray(drawn, dtype=np.float32)
        if heat:
            opacity = _OPACITY * np.sqrt(share)[..., None]
            painted = painted * (1 - opacity) + 255 * matplotlib.colormaps[HEATMAP_COLORS](share)[..., :3] * opacity
        drawn = Image.fromarray(_outlined(painted.round().astype(np.uint8), share >= _OUTLINED, width))
    draw = ImageDraw.Draw(drawn)
    x_scale, y_scale = size[0] / (right - left), size[1] / (bottom - top)
    for x0, y0, x1, y1 in boxes:
        corners = ((x0 - left) * x_scale, (y0 - top) * y_scale, (x1 - left) * x_scale, (y1 - top) * y_scale)
        for grow, color, line in ((width, "black", 3 * width), (0, TRUTH_BOX, width)):
            draw.rectangle(
                (corners[0] - grow, corners[1] - grow, corners[2] + grow, corners[3] + grow), outline=color, width=line
            )
    return drawn


def _outlined(painted: NDArray[np.uint8], inside: NDArray[np.bool_], width: int) -> NDArray[np.uint8]:
    """A line round what is inside: white, with a black one at either side."""
    if inside.all() or not inside.any():
        return painted
    from_edge = np.where(inside, ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside) - 1)
    found = painted.copy()
    found[from_edge <= 1.5 * width] = 0
    found[from_edge <= 0.5 * width] = matplotlib.colors.to_rgb(PREDICTED_BOX) * np.array(255)
    return found
