"""How boxes can have been written other than as xmin, ymin, xmax, ymax in pixels, and which way fits the images best.

What a box marks is mostly brighter than what lies around it, and is tissue. So each way of reading the numbers has a
score for each box, and the way whose boxes score best is the likely one, whatever was done to the file.
"""

__all__ = ["Array", "best", "EXCHANGED_CORNERS", "Finding", "Form", "forms", "scores"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

Array = npt.NDArray[np.float64]

EXCHANGED_CORNERS = "corners in another order (the lower ones exchanged with the higher ones)"
_ORDERS: dict[str, Callable[[Array], Array]] = {
    "": lambda b: b,
    "xmin, ymin, width, height": lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1),
    "center x, center y, width, height": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1
    ),
    EXCHANGED_CORNERS: lambda b: np.concatenate(
        [np.minimum(b[:, :2], b[:, 2:]), np.maximum(b[:, :2], b[:, 2:])], axis=1
    ),
    "ymin, xmin, ymax, xmax (x and y exchanged)": lambda b: b[:, [1, 0, 3, 2]],
    "xmin, xmax, ymin, ymax": lambda b: b[:, [0, 2, 1, 3]],
    "ymin, ymax, xmin, xmax": lambda b: b[:, [2, 0, 3, 1]],
    "ymin, xmin, height, width": lambda b: np.stack([b[:, 1], b[:, 0], b[:, 1] + b[:, 3], b[:, 0] + b[:, 2]], axis=1),
}
_MIRRORS = {
    (False, False): "",
    (True, False): "mirrored left to right",
    (False, True): "turned upside down",
    (True, True): "turned by 180 degrees",
}
_FACTORS = (0.25, 1 / 3, 0.4, 0.5, 0.57, 2 / 3, 0.75, 0.8, 0.9, 1.0, 1.1, 1.25, 4 / 3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
_UNITS = {"shares of the image (0 to 1)": 1, "percent of the image": 100, "thousandths of the image": 1000}
_SHIFTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
_MOST_CHANGES = 2
_LEAST = 256  # pixels of the shorter side at which images are compared
_PRICE = 0.4  # of each change, over the root of the number of boxes: from few boxes only simple causes are told
_BETTER = 0.3  # in the mean score
_SURE_IF_MIRRORED = 0.01  # p-values: 3 ways are no more than mirrored, 50 have one other change, 600 have two
_SURE = (1.0, 1e-3, 1e-5)


@dataclass(frozen=True)
class Form:
    """One way in which boxes can be written.

    Attributes:
        order: what the four numbers are; "" where they are xmin, ymin, xmax, ymax.
        unit: "" for pixels.
        factors: by which x and y are multiplied to be pixels of the image.
        mirror: whether x and y then run from the other side.
        shift: how far the boxes then lie too far to the right and down, in shares of the image's sides.
    """

    order: str = ""
    unit: str = ""
    factors: tuple[float, float] = (1.0, 1.0)
    mirror: tuple[bool, bool] = (False, False)
    shift: tuple[float, float] = (0.0, 0.0)

    def read(self, boxes: Array, image_size: tuple[int, int]) -> Array:
        """(n, 4) boxes as written -> xyxy in pixels of the image."""
        sides = np.array(image_size[::-1], dtype=np.float64)
        read = _ORDERS[self.order](boxes) * np.tile(self.factors, 2)
        for axis in (0, 1):
            if self.mirror[axis]:
                read[:, [axis, 2 + axis]] = sides[axis] - read[:, [2 + axis, axis]]
        return np.asarray(read - np.tile(sides * self.shift, 2))

    @property
    def n_changes(self) -> int:
        """How much must have gone wrong."""
        other_size = 0 if self.unit or self.factors == (1, 1) else 1 + (self.factors[0] != self.factors[1])
        return bool(self.order) + bool(self.unit) + other_size + any(self.mirror) + any(self.shift)

    @property
    def text(self) -> str:
        """In words, to follow "boxes fit better"."""
        what = " in ".join(part for part in (self.order, self.unit) if part)
        parts = [f"read as {what}"] if what else []
        if not self.unit and self.factors != (1, 1):
            width, height = (f"{1 / factor:.2g}" for factor in self.factors)
            parts.append(f"as boxes of another resize (images about {width} times as wide and {height} times as high)")
        if any(self.shift):
            axis = 0 if self.shift[0] else 1
            toward = (("left", "right"), ("up", "down"))[axis][self.shift[axis] < 0]
            parts.append(f"when moved {toward} by {abs(self.shift[axis]):.0%} of the image")
        return ", ".join([*parts, *([f"when {_MIRRORS[self.mirror]}"] if any(self.mirror) else [])])


@cache
def forms(image_size: tuple[int, int]) -> tuple[Form, ...]:
    """The ways that are tried; as pixels of corners first."""
    sides = image_size[::-1]
    units = [Form(unit=name, factors=(sides[0] / n, sides[1] / n)) for name, n in _UNITS.items()]
    sizes = [Form(factors=(factor, factor)) for factor in _FACTORS]
    found = [
        Form(order, form.unit, form.factors, mirror)
        for order in _ORDERS
        for form in units + sizes
        for mirror in _MIRRORS
    ]
    found += [Form(factors=(x, y)) for x in _FACTORS for y in _FACTORS if x != y]
    found += [Form(shift=(sign * by, 0.0)) for by in _SHIFTS for sign in (1, -1)]
    found += [Form(shift=(0.0, sign * by)) for by in _SHIFTS for sign in (1, -1)]
    likely = [form for form in found if form.n_changes <= _MOST_CHANGES]
    return tuple(sorted(likely, key=lambda form: form.n_changes))


def scores(
    gray: npt.NDArray[np.uint8], tissue: npt.NDArray[np.bool_], boxes: Array, ways: Sequence[Form]
) -> npt.NDArray[np.float32]:
    """How well boxes, read in each way, fit an image.

    Args:
        gray: uint8 (H, W), tissue bright.
        tissue: (H, W), what is not background.
        boxes: (n, 4) as written.
        ways: m ways to read them.

    Returns:
        (n, m): by how many deviations of the tissue a box is brighter than the tissue around it (at most 2); -2 to -1.5
        for a box on the background or without anything around, -3 for one without area or beyond the image.
    """
    if not len(boxes):
        return np.zeros((0, len(ways)), dtype=np.float32)
    height, width = gray.shape
    step = max(1, min(height, width) // _LEAST)
    mask = tissue[::step, ::step].astype(np.float64)
    values = mask * gray[::step, ::step]
    n_tissue = max(1.0, mask.sum())
    deviation = max(1.0, float(np.sqrt((values**2).sum() / n_tissue - (values.sum() / n_tissue) ** 2)))
    areas, sums = (np.pad(table, ((1, 0), (1, 0))).cumsum(0).cumsum(1) for table in (mask, values))

    places = np.stack([way.read(boxes, (height, width)) for way in ways], axis=1) / step  # (n, m, 4)
    n_rows, n_columns = mask.shape
    limits = np.array([n_columns, n_rows] * 2, dtype=np.float64)
    places = np.nan_to_num(places, posinf=0, neginf=0)
    size = places[..., 2:] - places[..., :2]
    within = places.clip(0, limits)
    shown = (within[..., 2:] - within[..., :2]).prod(axis=-1)
    is_box = (size > 0).all(axis=-1) & (shown >= 0.8 * size.prod(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = _corners(within, limits)
        around = _corners(np.concatenate([places[..., :2] - 0.3 * size, places[..., 2:] + 0.3 * size], -1), limits)
        n_inside, n_around = _in(areas, inside), _in(areas, around)
        share = n_inside / _area(inside)
        ring = n_around - n_inside
        ring_mean = (_in(sums, around) - _in(sums, inside)) / ring
        contrast = ((_in(sums, inside) / n_inside - ring_mean) / deviation).clip(-1, 2)
        found = np.where((share >= 0.5) & (ring > 0.5), contrast, -2 + np.where(ring > 0.5, share, 0))
    return np.where(is_box & np.isfinite(found), found, -3).astype(np.float32)


@dataclass(frozen=True)
class Finding:
    """The way to read boxes that fits best, and how many boxes fit better and worse so than as xyxy pixels."""

    form: Form
    better: int
    worse: int
    p_value: float

    @property
    def is_sure(self) -> bool:
        """Whether chance is no explanation, though so many ways were tried."""
        is_mirrored = self.form == Form(mirror=self.form.mirror)
        return self.p_value < (_SURE_IF_MIRRORED if is_mirrored else _SURE[self.form.n_changes])


def best(found: npt.NDArray[np.floating], ways: Sequence[Form]) -> Finding | None:
    """The way that fits clearly better than the first; None where the first is best, or nothing is known.

    Args:
        found: (n, m) scores.
        ways: m ways, of which the first is xyxy pixels.
    """
    if not len(found):
        return None
    price = _PRICE / np.sqrt(len(found)) * np.array([way.n_changes for way in ways])
    means = found.mean(axis=0) - price
    at = int(means.argmax())
    better, worse = int((found[:, at] > found[:, 0]).sum()), int((found[:, at] < found[:, 0]).sum())
    if at == 0 or means[at] < means[0] + _BETTER:
        return None
    p_value = float(binomtest(better, better + worse, alternative="greater").pvalue)
    return Finding(ways[at], better, worse, p_value) if p_value < 0.05 else None


def _corners(places: Array, limits: Array) -> npt.NDArray[np.int64]:
    low, high = np.floor(places[..., :2]), np.ceil(places[..., 2:])
    return np.asarray(np.nan_to_num(np.concatenate([low, high], axis=-1).clip(0, limits)), dtype=np.int64)


def _in(table: Array, corners: npt.NDArray[np.int64]) -> Array:
    xmin, ymin, xmax, ymax = np.moveaxis(corners, -1, 0)
    return np.asarray(table[ymax, xmax] - table[ymin, xmax] - table[ymax, xmin] + table[ymin, xmin])


def _area(corners: npt.NDArray[np.int64]) -> Array:
    return np.asarray((corners[..., 2:] - corners[..., :2]).prod(axis=-1), dtype=np.float64)
