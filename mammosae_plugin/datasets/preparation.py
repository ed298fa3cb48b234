"""From an original picture to the image that a network is shown, and back: crops, scales and mirrors with an inverse.

Coordinates are those of edges: a picture of width w reaches from 0 to w, and its first pixel from 0 to 1.
"""

__all__ = [
    "area_resized", "Bits", "breast_box", "Flip", "letterbox", "Orientation", "prepare_picture", "PREPARATIONS",
    "Prepared", "Transform",
]  # fmt: skip

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.dicom import Picture
from mammosae_plugin.errors import InputError

Flip = Literal["none", "laterality", "content"]
Orientation = Literal["stored", "upright"]
Bits = Literal[8, 16]
Floats = npt.NDArray[np.float64]

PREPARATIONS = ("mammo-clip", "letterbox")
"""`mammo-clip`: what Mammo-CLIP's code does to DICOM. `letterbox`: the whole image, aspect kept, black around it."""

_EDGE = 5  # pixels that Mammo-CLIP's code cuts from each side
_BACKGROUND = 40  # of 255: up to here it takes a pixel for background
_MIDDLE = 0.4  # on each side of the middle: the share of rows, then of columns, in which it looks for the breast


@dataclass(frozen=True)
class Transform:
    """Where the pixels of a prepared image come from: turned, cropped, resized, put into a frame, mirrored.

    Attributes:
        source: (height, width) of the original.
        turn: What is done to the original first: (rows and columns exchanged, upside down, mirrored).
        crop: (left, top, right, bottom) of what is kept of that, in pixels.
        inner: (height, width) to which it is resized.
        offset: (left, top) of that in the prepared image.
        output: (height, width) of the prepared image.
        mirrored: Whether the prepared image is mirrored, last.
    """

    source: tuple[int, int]
    turn: tuple[bool, bool, bool]
    crop: tuple[int, int, int, int]
    inner: tuple[int, int]
    offset: tuple[int, int]
    output: tuple[int, int]
    mirrored: bool = False

    @property
    def matrix(self) -> Floats:
        """(2, 3): a point (x, y) of the original is `matrix @ (x, y, 1)` of the prepared image."""
        height, width = self.source
        whole = np.eye(3)
        if self.turn[0]:
            whole, (height, width) = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), (width, height)
        if self.turn[1]:
            whole = np.array([[1, 0, 0], [0, -1, height], [0, 0, 1.0]]) @ whole
        if self.turn[2]:
            whole = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ whole
        left, top, right, bottom = self.crop
        sx, sy = self.inner[1] / (right - left), self.inner[0] / (bottom - top)
        whole = np.array([[sx, 0, self.offset[0] - left * sx], [0, sy, self.offset[1] - top * sy], [0, 0, 1]]) @ whole
        if self.mirrored:
            whole = np.array([[-1, 0, self.output[1]], [0, 1, 0], [0, 0, 1.0]]) @ whole
        return whole[:2]

    @property
    def inverse(self) -> Floats:
        """(2, 3): a point of the prepared image is `inverse @ (x, y, 1)` of the original."""
        return np.linalg.inv(np.vstack([self.matrix, [0, 0, 1]]))[:2]

    @property
    def area(self) -> float:
        """How many pixels of the prepared image stand for one of the original."""
        return float(abs(np.linalg.det(self.matrix[:, :2])))

    def boxes(self, boxes: npt.ArrayLike) -> Floats:
        """Boxes of the original (n, 4), xyxy, as boxes of the prepared image; they may reach over it."""
        return _moved(boxes, self.matrix)

    def boxes_back(self, boxes: npt.ArrayLike) -> Floats:
        """Boxes of the prepared image (n, 4), xyxy, as boxes of the original."""
        return _moved(boxes, self.inverse)

    def heatmap_back(self, heatmap: npt.NDArray[Any], *, outside: float = 0.0) -> npt.NDArray[Any]:
        """A map over the prepared image, of any resolution, as a map over the original.

        Args:
            heatmap: (h, w), covering the whole prepared image.
            outside: What pixels get that the prepared image does not show.

        Returns:
            (height, width) of the original: at each pixel's centre the nearest value.
        """
        height, width = self.source
        a = self.matrix * np.array([[heatmap.shape[1] / self.output[1]], [heatmap.shape[0] / self.output[0]]])
        across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
        of_x, of_y = (across, down) if not self.turn[0] else (down, across)  # on which of the two each depends
        x = np.floor((a[0, 0] + a[0, 1]) * of_x + a[0, 2]).astype(np.int64)
        y = np.floor((a[1, 0] + a[1, 1]) * of_y + a[1, 2]).astype(np.int64)
        rows = y.clip(0, heatmap.shape[0] - 1), x.clip(0, heatmap.shape[1] - 1)
        inside = np.outer((y == rows[0]), (x == rows[1]))
        found = np.where(inside, heatmap[np.ix_(*rows)], outside)
        return found.T if self.turn[0] else found

    def turned(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The original (height, width), or what lies over it, turned and cropped: a view of it."""
        left, top, right, bottom = self.crop
        return _turned(pixels, self.turn)[top:bottom, left:right]

    def framed(self, inner: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The resized crop in its place in the prepared image."""
        if self.inner != self.output:
            whole = np.zeros(self.output, dtype=inner.dtype)
            left, top = self.offset
            whole[top : top + self.inner[0], left : left + self.inner[1]] = inner
            inner = whole
        return np.ascontiguousarray(inner[:, ::-1] if self.mirrored else inner)

    def mask(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """A mask over the original as one of the prepared image: pixels that are covered by half or more.

        Where that leaves nothing of a mask that is not empty, those that are touched at all. A mask of another size
        than the original is stretched over it.
        """
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != self.source:
            rows, columns = ((np.arange(new) * old // new) for old, new in zip(mask.shape, self.source, strict=True))
            mask = mask[np.ix_(rows, columns)]
        share = _resampled(self.turned(mask).astype(np.float32), self.inner)
        found = share >= 0.5
        return np.asarray(self.framed(found if found.any() else share > 0), dtype=bool)

    def to_json(self) -> dict[str, Any]:
        """It in plain JSON, with both matrices for readers that want nothing else."""
        return {
            **{name: _plain(value) for name, value in vars(self).items()},
            "matrix": self.matrix.tolist(),
            "inverse": self.inverse.tolist(),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Transform":
        """The transform that `to_json` gave.

        Raises:
            InputError: A part is missing or of another form.
        """
        try:
            parts: dict[str, Any] = {
                name: said[name] if name == "mirrored" else tuple(said[name]) for name in cls.__annotations__
            }
            return cls(**parts)
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no transform of a prepared image: {str(said)[:80]}") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _moved(boxes: npt.ArrayLike, matrix: Floats) -> Floats:
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
    moved = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def _turned(pixels: npt.NDArray[Any], turn: tuple[bool, bool, bool]) -> npt.NDArray[Any]:
    if turn[0]:
        pixels = pixels.T
    return pixels[:: -1 if turn[1] else 1, :: -1 if turn[2] else 1]


# -- resizing by area --------------------------------------------------------------------------------------------------


def area_resized(pixels: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Each new pixel is the mean over the area that it covers, parts of pixels by their share; whole numbers rounded.

    Args:
        pixels: (H, W), uint8, uint16 or float32.
        size: (height, width) of the result.

    Returns:
        The same type; computed in float32.
    """
    if pixels.shape == size:
        return pixels
    found = _resampled(pixels.astype(np.float32), size)
    if pixels.dtype == np.float32:
        return found
    return np.rint(found).astype(pixels.dtype)


def _resampled(pixels: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    down = _shares(pixels.shape[0], size[0]) @ pixels
    across = _shares(pixels.shape[1], size[1]) @ np.ascontiguousarray(down.T)
    return np.asarray(across.T, dtype=np.float32)


@lru_cache(maxsize=64)
def _shares(n_in: int, n_out: int) -> Any:
    """Sparse (n_out, n_in): the share of each new pixel that each old one fills; rows sum to one."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    at = np.floor(edges[:-1]).astype(np.int64)[:, None] + np.arange(int(np.ceil(n_in / n_out)) + 1)
    filled = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    shares = (filled.clip(0) * (n_out / n_in)).astype(np.float32)
    starts = np.arange(0, at.size + 1, at.shape[1])
    matrix = sparse.csr_array((shares.ravel(), at.clip(max=n_in - 1).ravel(), starts), shape=(n_out, n_in))
    matrix.eliminate_zeros()
    return matrix


# -- the preparations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A prepared image.

    Attributes:
        pixels: uint8 or uint16 (H, W), black background.
        transform: Where they come from.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    transform: Transform


def prepare_picture(
    picture: Picture,
    preparation: str = "mammo-clip",
    image_size: tuple[int, int] = (1520, 912),
    *,
    bits: Bits = 8,
    flip: Flip = "none",
    orientation: Orientation = "stored",
    laterality: str | None = None,
) -> Prepared:
    """Prepare one picture.

    Args:
        picture: As `read_picture` gives it.
        preparation: "mammo-clip": 5 pixels are cut from each side, the rest is stretched to the full range, the breast
            is cropped (`breast_box`) and resized by area, its aspect not kept. "letterbox": the whole picture is
            stretched to the full range and resized by area, its aspect kept, in the middle of a black image.
        image_size: (height, width) of the result.
        bits: 8 or 16 per pixel.
        flip: "laterality" mirrors right breasts, "content" images whose right half has more tissue; then the chest wall
            lies at the left in all of them.
        orientation: "upright" turns pictures whose header says that rows and columns are exchanged, or that the head is
            below; "stored" turns none.
        laterality: "L" or "R", for `flip`.

    Raises:
        BadImageError: The picture is too small, or all its pixels are equal.
        InputError: There is no such preparation, or flip needs a laterality that is not known.
    """
    if preparation not in PREPARATIONS:
        raise InputError(f"there is no preparation {preparation!r}; choose one of {', '.join(PREPARATIONS)}")
    if flip == "laterality" and laterality not in ("L", "R"):
        raise BadImageError("its laterality is not known (L or R), and flip: laterality needs it")
    cuts_edges = preparation == "mammo-clip"
    codes, values = picture.rising(padding_is_black=not cuts_edges)
    turn = _turn(picture.info.orientation) if orientation == "upright" else (False, False, False)
    source = (codes.shape[0], codes.shape[1])
    codes = _turned(codes, turn)
    edge = _EDGE if cuts_edges else 0
    inside = codes[edge : codes.shape[0] - edge, edge : codes.shape[1] - edge]
    if inside.size == 0:
        raise BadImageError(f"is too small ({source[0]} x {source[1]} pixels)")
    low, high = int(inside.min()), int(inside.max())
    if values[low] == values[high]:
        raise BadImageError("is constant (every value is the same)")
    crop = (edge, edge, edge + inside.shape[1], edge + inside.shape[0])
    inner, offset = image_size, (0, 0)
    if cuts_edges:
        left, top, right, bottom = breast_box(inside, _stretched(values, low, high, 8))
        inside = inside[top:bottom, left:right]
        crop = (edge + left, edge + top, edge + right, edge + bottom)
    else:
        frame = letterbox((inside.shape[0], inside.shape[1]), image_size)
        inner, offset = frame.inner, frame.offset
    levels = _stretched(values, low, high, bits)
    resized = area_resized(levels[inside], inner)
    mirrored = flip == "laterality" and laterality == "R"
    if flip == "content":
        mirrored = _is_at_right(resized)
    transform = Transform(source, turn, crop, inner, offset, image_size, mirrored)
    return Prepared(transform.framed(resized), transform)


def letterbox(source: tuple[int, int], image_size: tuple[int, int]) -> Transform:
    """Where the pixels of a letterboxed picture come from: known from its size alone, (height, width)."""
    scale = min(image_size[0] / source[0], image_size[1] / source[1])
    inner = (_side(source[0] * scale, image_size[0]), _side(source[1] * scale, image_size[1]))
    offset = ((image_size[1] - inner[1]) // 2, (image_size[0] - inner[0]) // 2)
    return Transform(source, (False, False, False), (0, 0, source[1], source[0]), inner, offset, image_size)


def _side(exact: float, most: int) -> int:
    return min(max(int(round(exact)), 1), most)


def _stretched(values: Floats, low: int, high: int, bits: int) -> npt.NDArray[Any]:
    """The level of every code, of those between codes `low` and `high` from 0 to the largest; as Mammo-CLIP's code."""
    from_zero = values.clip(values[low], values[high]) - values[low]
    levels: npt.NDArray[Any] = from_zero / from_zero[high] * ((1 << bits) - 1)
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


def _is_at_right(pixels: npt.NDArray[Any]) -> bool:
    """Whether more tissue lies in the right half."""
    tissue = pixels > _BACKGROUND * (int(np.iinfo(pixels.dtype).max) // 255)
    half = pixels.shape[1] // 2
    return bool(tissue[:, -half:].sum() > tissue[:, :half].sum()) if half else False


def _turn(directions: tuple[str, str] | None) -> tuple[bool, bool, bool]:
    """What makes a picture upright of which rows and columns point to these directions of the body."""
    if directions is None or not all(directions):
        return (False, False, False)
    across, down = directions
    exchanged = across[0] in "HFLR" and down[0] in "AP"
    if exchanged:
        across, down = down, across
    return (exchanged, down[0] == "H", False)


def breast_box(codes: npt.NDArray[Any], levels: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Where Mammo-CLIP's code sees the breast: (left, top, right, bottom).

    Levels up to 40 count as background. Of the columns that are not constant within the middle 80 % of the rows the
    longest run is taken, then of the rows that are not constant within the middle 80 % of these columns; the first of
    several as long (where that code takes all of them), and everything where no column or row varies.

    Args:
        codes: (H, W), whole numbers in the order of brightness.
        levels: uint8, of every code its level.
    """
    levels = np.where(levels <= _BACKGROUND, np.uint8(0), levels)
    middle = codes[_middle(codes.shape[0])]
    left, right = _longest_run(levels[middle.min(axis=0)] != levels[middle.max(axis=0)])
    middle = codes[:, left:right][:, _middle(right - left)]
    top, bottom = _longest_run(levels[middle.min(axis=1)] != levels[middle.max(axis=1)])
    return left, top, right, bottom


def _middle(length: int) -> slice:
    half = int(length * _MIDDLE)
    if half == 0:
        return slice(0, length)
    return slice(length // 2 - half, length // 2 + half)


def _longest_run(varies: npt.NDArray[np.bool_]) -> tuple[int, int]:
    steps = np.flatnonzero(np.diff(np.concatenate([[False], varies, [False]])))
    starts, ends = steps[::2], steps[1::2]
    if len(starts) == 0:
        return 0, len(varies)
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])
