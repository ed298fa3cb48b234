"""Boxes of VinDr's prepared annotation file: the defect of its author's code mended, impossible boxes told.

The author's code cut 5 pixels from each side of the original image, then took the right edge of a box as
`min(height - 10, xmax - 5)` and the lower edge as `min(width - 10, ymax - 5)`: height and width are exchanged. In
`vindr_detection_v1_folds.csv` 12 of 2,254 boxes therefore end above where they begin and 49 more are cut at the bottom.
"""

__all__ = [
    "Array", "BORDER", "Boxes", "changes", "covers_image", "few", "fit_by_originals", "Marks", "mend", "Originals",
    "Report", "report_other_pixels", "UnmendableBoxes",
]  # fmt: skip

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin.datasets.base import BOX_COLUMNS
from mammosae_plugin.datasets.box_forms import Form, forms

logger = logging.getLogger(__name__)

Boxes = Literal["mended", "as_published"]
UnmendableBoxes = Literal["drop_few", "refuse", "drop_and_list"]
Array = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]
Report = Callable[[Marks, str], None]

BORDER = 5  # pixels of the original image that the author's code cut from each side
_ENOUGH = 8  # boxes, before a file is refused for what they are together
_FEW = 3
_FEW_SHARE = 0.02  # of all boxes: so many may be odd before a file is refused
_NEARLY_ALL = 0.9
_MENDABLE = 0.25  # the share of boxes that fit as they are, from which the author's defect is looked for in the others
_NEAR = 1.25  # the scales of images of one file differ by less
_SLIGHT = 0.1  # of the side: how far mended boxes may overhang where it is only asked what they are
_SLACK = 2.0  # pixels by which the rounding of two corners may change a length
_WHOLE = 0.003  # of the side: the 5 pixels above, and rounding
LOOKS_CUT = (
    "this looks like the exchange of height and width by the author's code, which is mended where the file has the "
    "columns height, width, xmin, ymin, xmax and ymax; add them, or use data.boxes: as_published"
)
_AXES = ((0, 2), (1, 3))  # columns of low and high corner, of x and of y


@dataclass(frozen=True)
class Originals:
    """What the file says of the original images; NaN where it says nothing.

    Attributes:
        corners: (n, 4) xyxy in pixels of the original image.
        sides: (n, 2) its width and height.
    """

    corners: Array
    sides: Array

    def of(self, rows: Marks) -> "Originals":
        """Those of some rows."""
        return Originals(self.corners[rows], self.sides[rows])


@dataclass(frozen=True)
class _Axis:
    """One axis of all boxes: `low` to `high` in the original image, `shown` to `shown_high` in the prepared one."""

    low: Array
    high: Array
    side: Array
    other_side: Array
    shown: Array
    shown_high: Array
    shown_side: int

    @property
    def is_candidate(self) -> Marks:
        """Where the author's code took another edge than the box's."""
        return np.asarray(self.high - BORDER > self.other_side - 2 * BORDER, dtype=bool)

    @property
    def mended(self) -> Array:
        """The high edge if the author's code cut it: the scale follows from where the cut was."""
        scale = (self.shown_high - self.shown) / ((self.other_side - 2 * BORDER) - (self.low - BORDER))
        return np.asarray(np.where(scale > 0, self.shown + (self.high - self.low) * scale, np.nan), dtype=np.float64)

    @property
    def smallest(self) -> Array:
        """The least length that the box can have in the prepared image, which shows the original or a part of it."""
        before = np.where(self.low > 0, (self.shown - _SLACK / 2) / self.low, 0)
        after = np.where(self.low < self.side, (self.shown_side - self.shown - _SLACK / 2) / (self.side - self.low), 0)
        scale = np.fmax(np.fmax(before, after), self.shown_side / self.side)
        return np.asarray((self.high - self.low) * scale, dtype=np.float64)

    def is_too_short(self, edge: Array) -> Marks:
        """Where the box, if it ended at `edge`, would show more of the original than there is."""
        return np.asarray(edge - self.shown + _SLACK < 0.99 * self.smallest, dtype=bool)

    @property
    def is_whole_image(self) -> Marks:
        """Where the box is that of the original image resized as a whole, in which case nothing was cut."""
        scale, near = self.shown_side / self.side, 1 + _WHOLE * self.shown_side
        both = np.maximum(np.abs(self.low * scale - self.shown), np.abs(self.high * scale - self.shown_high))
        return np.asarray(both <= near, dtype=bool)


def _axes(boxes: Array, originals: Originals, image_size: tuple[int, int]) -> Iterator[_Axis]:
    for axis, (low, high) in enumerate(_AXES):
        yield _Axis(
            originals.corners[:, low],
            originals.corners[:, high],
            originals.sides[:, axis],
            originals.sides[:, 1 - axis],
            boxes[:, low],
            boxes[:, high],
            image_size[1 - axis],
        )


def _all(marks: Marks) -> Marks:
    """(n, m) -> (n,): whether all marks of the row are set."""
    return np.asarray(marks.all(axis=1), dtype=bool)


def mend(boxes: Array, originals: Originals, image_size: tuple[int, int], tolerance: float) -> tuple[Array, Marks]:
    """The boxes without the defect of the author's code (see the module), and which ones were mended.

    Where the code can have cut an edge, some boxes tell whether it did: they are inverted or too short to show the
    original image at any crop, or on the contrary what a plain resize gives, or would leave the image if they were
    mended. The majority of those that tell decides for the file, which one code has made.

    Args:
        boxes: (n, 4) xyxy pixels of the prepared image as in the file, NaN without a box.
        originals: The boxes in the original images.
        image_size: (height, width) of the prepared images.
        tolerance: the overhang, as a share of the image's side, up to which a mended box is believed.

    Returns:
        The boxes (n, 4) and marks (n,).
    """
    mended, marks = boxes.copy(), np.zeros(len(boxes), dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        for axis, (_, high) in zip(_axes(boxes, originals, image_size), _AXES, strict=True):
            edge = axis.mended
            fits = axis.is_candidate & (edge > axis.shown) & (edge <= axis.shown_side * (1 + tolerance))
            fits &= ~axis.is_too_short(edge)
            certain = axis.is_candidate & ((axis.shown_high <= axis.shown) | axis.is_too_short(axis.shown_high))
            right = axis.is_candidate & ~certain & (axis.is_whole_image | ~fits)
            has_defect = not right.any() or certain.sum() > right.sum()
            cut = fits & has_defect
            mended[cut, high] = edge[cut]
            marks |= cut
    return mended, marks


def most_left_out(n_boxes: int) -> float:
    """How many odd boxes may be left out when asked for: a quarter, or 8; more are no slips of single rows."""
    return max(_ENOUGH, n_boxes / 4)


def few(n_odd: int, n_boxes: int) -> bool:
    """Whether so few boxes are odd that they are slips of single rows, which stop nothing: one of 8 or more, or 2 %."""
    return n_odd <= max(n_boxes >= _ENOUGH, _FEW_SHARE * n_boxes)


def covers_image(boxes: Array, image_size: tuple[int, int]) -> Marks:
    """Which boxes (n, 4) are nearly the whole image."""
    sides = np.array(image_size[::-1])
    with np.errstate(invalid="ignore"):
        return _all(boxes[:, :2] < 0.1 * sides) & _all(boxes[:, 2:] > 0.9 * sides)


class OtherPixels(NamedTuple):
    """Which boxes are no pixels of the prepared images.

    Attributes:
        reported: (n,) those that were reported.
        shares: (n,) others that are shares of the image, at most half of all and no more than may be left out on
            request.
        cause_is_told: whether the report says what is to be done, so that no other way to read the boxes is looked for.
    """

    reported: Marks
    shares: Marks
    cause_is_told: bool = False


def report_other_pixels(
    boxes: Array, originals: Originals, image_size: tuple[int, int], report: Report, *, wanted: Boxes = "mended"
) -> OtherPixels:
    """Report boxes that cannot be pixels of the prepared images.

    Args:
        boxes: (n, 4) as in the file, NaN without a box.
        originals: The boxes in the original images.
        image_size: (height, width) of the prepared images.
        report: Takes marks (n,) and what is wrong with the boxes so marked.
        wanted: With "as_published", boxes that only the author's code spoilt are not reported.
    """
    height, width = image_size
    nothing = np.zeros(len(boxes), dtype=bool)
    has_box = _all(~np.isnan(boxes))
    n_boxes = int(has_box.sum())

    def told(marks: Marks, what: str, *, is_cause: bool = False) -> OtherPixels:
        report(marks, what)
        return OtherPixels(marks, nothing, is_cause)

    with np.errstate(invalid="ignore", divide="ignore"):
        shares = in_shares(boxes)
        if shares.sum() > min(most_left_out(n_boxes), max(1, n_boxes / 2)):
            return told(shares, are_shares(image_size))
        rest = has_box & ~shares
        copied = rest & _all(np.abs(boxes - originals.corners) < 0.5)
        copied &= ~_all(~(np.abs(originals.sides - (width, height)) > 1))  # images that were resized
        if copied.sum() > rest.sum() / 2:
            return told(
                copied,
                "resized_* boxes repeat the boxes of the original images: give them in pixels of the "
                f"{height} x {width} images",
            )
        whole = rest & covers_image(boxes, image_size)
        if whole.sum() >= _FEW and whole.sum() > rest.sum() / 2:
            return told(
                whole,
                f"boxes cover the whole {height} x {width} image: give those of the findings, or leave the cells empty",
                is_cause=True,
            )
        if _sides_are_exchanged(boxes[rest], originals.of(rest), image_size):
            return told(rest, "original boxes fit only if the columns width and height are exchanged", is_cause=True)
        if fit_by_originals(boxes[rest], originals.of(rest), image_size) is not None:
            return told(rest, f"boxes cannot be the original boxes in {height} x {width} images")
        short = nothing.copy()
        for axis in _axes(boxes, originals, image_size):
            short |= rest & ~axis.is_candidate & axis.is_too_short(axis.shown_high)
    if _are_many(short, rest):
        if not looks_cut_by_the_author(boxes[rest], originals.of(rest), image_size):
            return told(
                short, f"boxes cannot be the original boxes in {height} x {width} images, however these were cropped"
            )
        if wanted == "mended":
            return told(short, f"boxes are too short for the original boxes beside them: {LOOKS_CUT}", is_cause=True)
    if short.any():
        logger.warning("%d boxes do not fit the original boxes beside them, at any crop of the image", short.sum())
    extent = boxes[rest, 2:].max(axis=0) / (width, height) if rest.any() else np.ones(2)
    if rest.sum() >= _ENOUGH and (extent < 1 / 3).all():
        where = (
            f"lie in the upper left ninth of the {height} x {width} images" if (extent > 0).any() else "are negative"
        )
        return told(rest, f"boxes all {where if extent.any() else 'are zero'}")
    return OtherPixels(nothing, shares)


def in_shares(boxes: Array) -> Marks:
    """Which boxes (n, 4) can only be shares of an image."""
    with np.errstate(invalid="ignore"):
        return _all(boxes > -0.5) & _all(boxes < 1.05) & ~_all(boxes <= 0)


def are_shares(image_size: tuple[int, int]) -> str:
    """What is wrong with boxes that are shares of images of this (height, width)."""
    return f"boxes are shares of the image (0 to 1): multiply x by {image_size[1]} and y by {image_size[0]} pixels"


def _are_many(wrong: Marks, of: Marks) -> bool:
    """Whether so many boxes are wrong that they are no slips of single rows."""
    return bool(wrong.sum() >= _ENOUGH and wrong.sum() > of.sum() / 10)


def _too_short(boxes: Array, originals: Originals, image_size: tuple[int, int]) -> list[Marks]:
    """Per axis, which boxes are inverted or would show more of the original image than there is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return [
            (axis.shown_high < axis.shown) | axis.is_too_short(axis.shown_high)
            for axis in _axes(boxes, originals, image_size)
        ]


def looks_cut_by_the_author(boxes: Array, originals: Originals, image_size: tuple[int, int]) -> bool:
    """Whether the boxes (n, 4) are wrong in the way of the author's code, where the file lacks what would mend them.

    Wrong are lower edges alone, or right ones alone; where original boxes are known, the edge opposite lies where it
    lies at the scale of the other boxes or, for crops, before that.
    """
    known = ~np.isnan(originals.corners).any(axis=1)
    if (known & ~np.isnan(originals.sides).any(axis=1)).any():
        return False  # nothing is lacking
    x, y = _too_short(boxes, originals, image_size)
    if x.any() == y.any():
        return False
    short, low, high = (x, 0, 2) if x.any() else (y, 1, 3)
    if not (short & known).any():
        return not known.any() and bool(short.mean() <= _MENDABLE)
    right = ~short & known & ~np.isnan(boxes[:, low])
    if not right.any():
        return False
    lengths, shown = ((of[:, high] - of[:, low])[right] for of in (originals.corners, boxes))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = originals.corners[:, low] * np.nanmedian(shown / lengths)
    return bool((boxes[:, low] <= _NEAR * expected)[short & known].mean() >= _NEARLY_ALL)


def _sides_are_exchanged(boxes: Array, originals: Originals, image_size: tuple[int, int]) -> bool:
    """Whether boxes (n, 4), the author's defect mended, fit the original ones only with width and height exchanged."""
    turned = Originals(originals.corners, originals.sides[:, ::-1])
    (share, n_short), (turned_share, n_turned_short) = (
        (
            _whole_share(mended, known, image_size),
            np.logical_or.reduce(_too_short(mended, known, image_size)).sum(),
        )
        for known in (originals, turned)
        for mended in [mend(boxes, known, image_size, _SLIGHT)[0]]
    )
    if share < _NEARLY_ALL <= turned_share:
        return True
    # Of images that were cropped.
    return bool(n_short >= max(_ENOUGH, len(boxes) / 2) and few(n_turned_short, len(boxes)))


def fit_by_originals(boxes: Array, originals: Originals, image_size: tuple[int, int]) -> Form | None:
    """The other way to read the boxes in which nearly all are the originals, resized as a whole; None without one."""
    ways = forms(image_size)
    whole = _whole_share(boxes, originals, image_size)
    if (~np.isnan(boxes[:, 0])).sum() < _FEW or whole > 1 / 2:
        return None

    def share_read(form: Form) -> float:
        read = form.read(boxes, image_size)
        found = _whole_share(read, originals, image_size)
        if found < _MENDABLE:
            return found
        return max(found, _whole_share(mend(read, originals, image_size, _SLIGHT)[0], originals, image_size))

    share, at = max((share_read(form), -number) for number, form in enumerate(ways))
    form = ways[-at]
    # Images that were cropped at the right and at the bottom have boxes that only seem to be of larger images.
    with np.errstate(invalid="ignore", divide="ignore"):
        short = [axis.is_too_short(axis.shown_high) for axis in _axes(boxes, originals, image_size)]
    is_other = (short[0] | short[1]).any() or bool(form.order) or any(form.mirror)
    return form if share >= _NEARLY_ALL and is_other else None


def _whole_share(boxes: Array, originals: Originals, image_size: tuple[int, int]) -> float:
    """The share of the boxes that are the original ones in images that were resized as a whole."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = _axes(boxes, originals, image_size)
        fitting = x.is_whole_image & y.is_whole_image
    return float(fitting.sum() / max(1, (~np.isnan(boxes[:, 0])).sum()))


def changes(
    lines: npt.NDArray[np.int64], in_file: Array, *, mended: Marks, clipped: Marks, dropped: Mapping[str, Marks]
) -> pd.DataFrame:
    """What was done to each box, one row per row of the annotation file.

    Args:
        lines: (n,) the rows' lines in the file.
        in_file: (n, 4) the boxes as in the file.
        mended: (n,) which were mended.
        clipped: (n,) which were clipped to their image.
        dropped: by reason, (n,) which were dropped.

    Returns:
        Columns line; inverted (in the file), mended, clipped, dropped (bool); reason; file_xmin, file_ymin, file_xmax,
        file_ymax.
    """
    with np.errstate(invalid="ignore"):
        inverted = (in_file[:, 2:] <= in_file[:, :2]).any(axis=1)
    reasons = {
        "reaches over the image's edge": clipped,
        "cut at an edge by the author's code": mended & ~inverted,
        "inverted by the author's code": mended & inverted,
        **dropped,
    }
    frame = pd.DataFrame({"line": lines, "inverted": inverted, "mended": mended, "clipped": clipped})
    frame["dropped"] = np.logical_or.reduce([np.zeros_like(mended), *dropped.values()])
    frame["reason"] = np.select(list(reasons.values())[::-1], list(reasons)[::-1], default="")
    frame[[f"file_{column}" for column in BOX_COLUMNS]] = in_file
    return frame
