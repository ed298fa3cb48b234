"""Whether the pixels of an image fit its annotations: what one look tells, and what many looks tell together."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from mammosae_plugin.datasets.base import DatasetError

INVERTED, ON_BACKGROUND, REPEATED, OTHER_SIDE = (
    "inverted polarity",
    "box on the background",
    "pixels of another image",
    "breast on the other side",
)

AT_SKIN = ("Nipple_Retraction", "Skin_Retraction", "Skin_Thickening")
"""Findings whose boxes lie half outside of the breast."""

_DARK = 0.1  # of the image's range: up to here a pixel is background
_BORDER = 0.02  # of the shorter side: the frame in which a mammogram shows its background
_MUCH_BORDER = 0.3  # of the frame; what is background there covers at least half of it in most mammograms
_LITTLE_TISSUE = 0.4  # of a box; boxes at the skin or the nipple have half of it and more
_MIRRORED = {
    "mirrored left to right": (True, False),
    "turned upside down": (False, True),
    "turned by 180 degrees": (True, True),
}
# From how many boxes on the background on, and which share of all boxes, mirroring is no matter of single images.
_FEW, _SHARE = 3, 0.05
_SIDED = 0.1  # more tissue in one half of the image than in the other, as a share of the half
_MAJORITY, _ENOUGH = 0.6, 8  # of the images of one laterality, before the others are on the wrong side; and how many
_SURE = 0.01  # p-value of "boxes are at least as bright as what lies mirrored to them"


@dataclass(frozen=True)
class Look:
    """What one look at an image told.

    Attributes:
        is_inverted: the background seems bright.
        tissue: (n_boxes, 4) the share of each box that is not background, as it is and under each of `_MIRRORED`; NaN
            where the image shows no background.
        brightness: (n_boxes, 4) the mean of its pixels (dark where the image is inverted), likewise.
        side: "left" or "right", the half of the image with more tissue; "" where they are alike.
        digest: of its pixels.
    """

    is_inverted: bool
    tissue: npt.NDArray[np.float64]
    brightness: npt.NDArray[np.float64]
    side: str
    digest: bytes


def look(pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64]) -> Look:
    """Look at an image that is not constant.

    Args:
        pixels: uint8, (H, W) or (H, W, 3).
        boxes: (n, 4) xyxy pixels.
    """
    gray = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    low, high = int(gray.min()), int(gray.max())
    dark, bright = low + _DARK * (high - low), high - _DARK * (high - low)
    border = _border(gray)
    n_dark, n_bright = (border <= dark).mean(), (border >= bright).mean()
    # Not only the frame: scanned films have a thin bright one.
    is_inverted = n_bright >= _MUCH_BORDER and n_bright > 3 * n_dark and (gray >= bright).mean() > (gray <= dark).mean()
    tissue = gray < bright if is_inverted else gray > dark
    shares, means = np.full((2, len(boxes), 1 + len(_MIRRORED)), np.nan)
    if max(n_dark, n_bright) >= _MUCH_BORDER:
        for number, box in enumerate(boxes):
            places = [box, *(_mirror(box, gray.shape, *axes) for axes in _MIRRORED.values())]
            shares[number] = [_mean_in(tissue, place) for place in places]
            means[number] = [_mean_in(gray, place) * (-1 if is_inverted else 1) for place in places]
    middle = gray.shape[1] // 2
    more = float(tissue[:, :middle].mean() - tissue[:, middle:].mean())
    side = "" if abs(more) < _SIDED else "left" if more > 0 else "right"
    return Look(bool(is_inverted), shares, means, side, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())


def _border(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    width = max(1, int(_BORDER * min(gray.shape)))
    sides = gray[:width], gray[-width:], gray[:, :width], gray[:, -width:]
    return np.concatenate([side.ravel() for side in sides])


def _mirror(
    box: npt.NDArray[np.float64], shape: Sequence[int], left_right: bool, up_down: bool
) -> npt.NDArray[np.float64]:
    (height, width), (xmin, ymin, xmax, ymax) = shape, box
    if left_right:
        xmin, xmax = width - xmax, width - xmin
    if up_down:
        ymin, ymax = height - ymax, height - ymin
    return np.array([xmin, ymin, xmax, ymax])


def _mean_in(values: npt.NDArray[Any], box: npt.NDArray[np.float64]) -> float:
    xmin, ymin = (max(0, math.floor(value)) for value in box[:2])
    xmax, ymax = (math.ceil(value) for value in box[2:])
    inside = values[ymin:ymax, xmin:xmax]
    return float(inside.mean()) if inside.size else math.nan


def suspects(looks: Mapping[str, Look], laterality: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(image_id, suspicion, detail) of every image that does not fit its annotations, in the order of `looks`.

    Args:
        looks: by image id.
        laterality: "L" or "R" by image id.
    """
    usual = {letter: _usual_side(looks, laterality, letter) for letter in ("L", "R")}
    first: dict[bytes, str] = {}
    for image_id, found in looks.items():
        if found.is_inverted:
            yield image_id, INVERTED, "the background is bright: was MONOCHROME1 not inverted?"
        shares = found.tissue[:, 0]
        if (shares < _LITTLE_TISSUE).any():
            yield image_id, ON_BACKGROUND, f"{100 * np.nanmin(shares):.0f} % of the box is tissue"
        expected = usual.get(laterality[image_id], "")
        if expected and found.side and found.side != expected:
            yield image_id, OTHER_SIDE, f"most images of laterality {laterality[image_id]} have it on the {expected}"
        if found.digest in first:
            yield image_id, REPEATED, f"the pixels are those of {first[found.digest]}"
        first.setdefault(found.digest, image_id)


def _usual_side(looks: Mapping[str, Look], laterality: Mapping[str, str], letter: str) -> str:
    sides = [found.side for image_id, found in looks.items() if laterality[image_id] == letter and found.side]
    if len(sides) < _ENOUGH:
        return ""
    return next((side for side in ("left", "right") if sides.count(side) >= _MAJORITY * len(sides)), "")


def refuse_mirrored(
    looks: Mapping[str, Look], laterality: Mapping[str, str], at_skin: Mapping[str, npt.NDArray[np.bool_]]
) -> None:
    """Refuse boxes that fit better when mirrored, of all images or of those of one side.

    They lie on the background and, mirrored, on the breast; or they are darker than what lies mirrored to them, though
    most findings are brighter. Findings at the skin and the nipple are not, and do not count for the latter.

    Args:
        looks: by image id.
        laterality: "L" or "R" by image id.
        at_skin: by image id, (n_boxes,) which of its boxes mark such findings.

    Raises:
        DatasetError: the boxes are mirrored to the images.
    """
    groups = {"": list(looks)}
    for side, name in (("L", "left"), ("R", "right")):
        groups[f" of {name} breasts"] = [image_id for image_id in looks if laterality[image_id] == side]
    evidence: dict[str, str | None] = {}
    no_boxes = np.zeros((0, 1 + len(_MIRRORED)))
    for group, image_ids in groups.items():
        tissue = np.concatenate([no_boxes, *(looks[image_id].tissue for image_id in image_ids)])
        brightness = [looks[i].brightness[~at_skin[i]] for i in image_ids if i in at_skin]
        evidence[group] = _off_the_breast(tissue) or _darker(np.concatenate([no_boxes, *brightness]))
    sides = [group for group in groups if group and evidence[group]]
    worst = sides[0] if len(sides) == 1 else ""
    if evidence[worst]:
        raise DatasetError(
            f"boxes{worst} fit the images better when {evidence[worst]}: either the images or the boxes were mirrored "
            "or turned; prepare both in the same way"
        )


def _off_the_breast(tissue: npt.NDArray[np.float64]) -> str | None:
    off = (tissue < 0.5).sum(axis=0)
    mirrored = int(off[1:].argmin()) + 1
    if off[0] < max(_FEW, _SHARE * len(tissue)) or off[mirrored] > off[0] / 4:
        return None
    return f"{list(_MIRRORED)[mirrored - 1]} ({off[0]} of {len(tissue)} lie on the background, then {off[mirrored]})"


def _darker(brightness: npt.NDArray[np.float64]) -> str | None:
    """A sign test, for each way of mirroring."""
    darker = (brightness[:, :1] < brightness[:, 1:]).sum(axis=0)
    brighter = (brightness[:, :1] > brightness[:, 1:]).sum(axis=0)
    worst = int((darker - brighter).argmax())
    n = int(darker[worst] + brighter[worst])
    if n == 0 or binomtest(int(darker[worst]), n, alternative="greater").pvalue >= _SURE:
        return None
    return f"{list(_MIRRORED)[worst]} ({darker[worst]} of {n} are darker than what they would mark then)"
