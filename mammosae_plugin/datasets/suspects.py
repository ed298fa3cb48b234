"""Whether the pixels of an image fit its annotations: what one look tells, and what many looks tell together."""

__all__ = [
    "box_scores", "breast_of", "INVERTED", "Look", "look", "NO_MAMMOGRAM", "ON_BACKGROUND", "OTHER_SIDE",
    "refuse_mirrored", "REPEATED", "suspects", "tissue_of", "TURNED", "warn_of_sides", "warn_of_weak_boxes",
    "WHOLE_IMAGE",
]  # fmt: skip

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import mannwhitneyu

from mammosae_plugin.datasets.base import DatasetError
from mammosae_plugin.datasets.box_forms import Form, best, forms, scores
from mammosae_plugin.datasets.boxes import covers_image

logger = logging.getLogger(__name__)

INVERTED, TURNED, NO_MAMMOGRAM, WHOLE_IMAGE, ON_BACKGROUND, REPEATED, OTHER_SIDE = (
    "inverted polarity",
    "turned by 90 degrees",
    "no mammogram",
    "box over the whole image",
    "box on the background",
    "pixels of another image",
    "breast on the other side",
)

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
_CUSTOMARY = {"L": "left", "R": "right"}  # where the chest wall is
_CHEST_WALL = 0.7  # of an edge
_LEAST_TISSUE, _LEAST_LEVELS, _COLOURED = 0.03, 17, 16  # of the image; of 256 gray levels; between two channels
_SURE, _MANY = 0.01, 20  # a p-value, and the boxes from which on it means something


@dataclass(frozen=True)
class Look:
    """What one look at an image told.

    Attributes:
        is_inverted: the background seems bright.
        is_turned: the chest wall seems to be above or below.
        no_mammogram: why it cannot be one; "" if it can.
        has_whole_box: a box covers nearly the whole image.
        tissue: (n_boxes, 4) the share of each box that is not background, as it is and under each of `_MIRRORED`; NaN
            where the image shows no background.
        scores: (n_boxes, m) how well each box fits the image, read in m ways (`box_forms`).
        of_others: (n,) the same of the boxes of another image, as they are.
        side: "left" or "right", the half of the image with more tissue; "" where they are alike.
        digest: of its pixels.
        image_size: (height, width).
    """

    is_inverted: bool
    is_turned: bool
    no_mammogram: str
    has_whole_box: bool
    tissue: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    of_others: npt.NDArray[np.float32]
    side: str
    digest: bytes
    image_size: tuple[int, int]


def look(pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> Look:
    """Look at an image that is not constant.

    Args:
        pixels: uint8, (H, W) or (H, W, 3).
        boxes: (n, 4) xyxy pixels.
        others: (m, 4) boxes of another image of the same side, to compare with.
    """
    gray, tissue, is_inverted, has_background = _tissue(pixels)
    shares = np.full((len(boxes), 1 + len(_MIRRORED)), np.nan)
    if has_background:
        for number, box in enumerate(boxes):
            places = [box, *(_mirror(box, gray.shape, *axes) for axes in _MIRRORED.values())]
            shares[number] = [_mean_in(tissue, place) for place in places]
    height, width = gray.shape
    ways = forms((height, width))
    middle = width // 2
    more = float(tissue[:, :middle].mean() - tissue[:, middle:].mean())
    side = "" if abs(more) < _SIDED else "left" if more > 0 else "right"
    upper, lower, left, right = (edge.mean() for edge in (tissue[0], tissue[-1], tissue[:, 0], tissue[:, -1]))
    is_turned = has_background and max(upper, lower) > max(_CHEST_WALL, max(left, right) + _MUCH_BORDER)
    n_levels = int((np.bincount(gray.ravel(), minlength=256) > 0).sum())
    spread = pixels.max(axis=2) - pixels.min(axis=2) if pixels.ndim == 3 else np.zeros(1)
    no_mammogram = (
        "hardly anything is brighter than the background"
        if tissue.mean() < _LEAST_TISSUE
        else f"only {n_levels} gray levels"
        if n_levels < _LEAST_LEVELS
        else "it has colours"
        if (spread > _COLOURED).mean() > _LEAST_TISSUE
        else ""
    )
    return Look(
        is_inverted,
        bool(is_turned),
        no_mammogram,
        bool(covers_image(boxes, (height, width)).any()),
        shares,
        scores(gray, tissue, boxes, ways),
        scores(gray, tissue, others, ways[:1])[:, 0],
        side,
        hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(),
        (height, width),
    )


def box_scores(
    pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64], ways: Sequence[Form]
) -> npt.NDArray[np.float32]:
    """How well boxes (n, 4), read in m ways, fit an image: (n, m), see `box_forms.scores`."""
    gray, tissue, _, _ = _tissue(pixels)
    return scores(gray, tissue, boxes, ways)


def _tissue(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], bool, bool]:
    """(H, W) gray with bright tissue; where tissue is; whether the image is inverted, and shows its background."""
    gray = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    low, high = int(gray.min()), int(gray.max())
    dark, bright = low + _DARK * (high - low), high - _DARK * (high - low)
    border = _border(gray)
    n_dark, n_bright = (border <= dark).mean(), (border >= bright).mean()
    # Not only the frame: scanned films have a thin bright one.
    is_inverted = n_bright >= _MUCH_BORDER and n_bright > 3 * n_dark and (gray >= bright).mean() > (gray <= dark).mean()
    tissue = gray < bright if is_inverted else gray > dark
    return 255 - gray if is_inverted else gray, tissue, bool(is_inverted), bool(max(n_dark, n_bright) >= _MUCH_BORDER)


def tissue_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
    """Where an image (H, W) shows tissue: (H, W) bool; None where it shows no background."""
    _, tissue, _, has_background = _tissue(pixels)
    return tissue if has_background else None


def breast_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
    """Where the breast is: the largest region of tissue that hangs together, holes filled, without letters and labels.

    (H, W) bool; None where an image shows no background, or nothing else.
    """
    tissue = tissue_of(pixels)
    if tissue is None or not tissue.any():
        return None
    regions, _ = ndimage.label(tissue, np.ones((3, 3)))
    largest = int(np.bincount(regions.ravel())[1:].argmax()) + 1
    return np.asarray(ndimage.binary_fill_holes(regions == largest), dtype=np.bool_)


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
        laterality: "L" or "R" by image id, as far as it is known.
    """
    usual = {letter: _usual_side(looks, laterality, letter) for letter in ("L", "R")}
    first: dict[bytes, str] = {}
    for image_id, found in looks.items():
        if found.is_inverted:
            yield image_id, INVERTED, "the background is bright: was MONOCHROME1 not inverted?"
        if found.is_turned:
            yield image_id, TURNED, "the breast lies along the upper or lower edge"
        if found.no_mammogram:
            yield image_id, NO_MAMMOGRAM, found.no_mammogram
        if found.has_whole_box:
            yield image_id, WHOLE_IMAGE, "a box covers nearly the whole image"
        shares = found.tissue[:, 0]
        if (shares < _LITTLE_TISSUE).any():
            yield image_id, ON_BACKGROUND, f"{100 * np.nanmin(shares):.0f} % of the box is tissue"
        expected = usual.get(laterality.get(image_id, ""), "")
        if expected and found.side and found.side != expected:
            yield image_id, OTHER_SIDE, f"those of laterality {laterality[image_id]} have it on the {expected}"
        if found.digest in first:
            yield image_id, REPEATED, f"the pixels are those of {first[found.digest]}"
        first.setdefault(found.digest, image_id)


def _usual_side(looks: Mapping[str, Look], laterality: Mapping[str, str], letter: str) -> str:
    sides = [found.side for image_id, found in looks.items() if laterality.get(image_id) == letter and found.side]
    if len(sides) < _ENOUGH:
        return ""
    most = next((side for side in ("left", "right") if sides.count(side) >= _MAJORITY * len(sides)), None)
    return most or _CUSTOMARY[letter]  # without a majority, how mammograms are shown


def warn_of_sides(looks: Mapping[str, Look], laterality: Mapping[str, str]) -> None:
    """Warn where left breasts are shown as right ones are by custom, and right ones as left ones."""
    sides = {letter: _usual_side(looks, laterality, letter) for letter in _CUSTOMARY}
    if all(side and side != _CUSTOMARY[letter] for letter, side in sides.items()):
        logger.warning(
            "left breasts lie on the right side of their images and right ones on the left: is laterality exchanged, "
            "or were all images mirrored?"
        )


def refuse_mirrored(
    looks: Mapping[str, Look], laterality: Mapping[str, str], at_skin: Mapping[str, npt.NDArray[np.bool_]]
) -> None:
    """Refuse boxes that fit better when read in another way (`box_forms`), of all images or of those of one side.

    They lie on the background and, mirrored, on the breast; or they are brighter than what lies around them, as most
    findings are, only when read in that way. Findings at the skin and the nipple do not count for the latter.

    Args:
        looks: by image id.
        laterality: "L" or "R" by image id, as far as it is known.
        at_skin: by image id, (n_boxes,) which of its boxes mark such findings.

    Raises:
        DatasetError: the boxes do not fit as they are.
    """
    if not at_skin:
        return
    boxed = [image_id for image_id in looks if image_id in at_skin]
    of_side = {side: [image_id for image_id in boxed if laterality.get(image_id) == side] for side in ("L", "R")}
    names = {"L": " of left breasts", "R": " of right breasts"}
    whole = _wrong_form(looks, boxed, at_skin)
    if whole is not None:
        form, why = whole
        others = [side for side, own in of_side.items() if own and not _agrees(looks, own, at_skin, form)]
        if not others:
            raise _refusal("", form, why)
    for side, own in of_side.items():
        wrong = _wrong_form(looks, own, at_skin)
        if wrong is not None:
            raise _refusal(names[side], *wrong)
    if whole is not None:
        raise _refusal("", *whole)


def _refusal(whose: str, form: Form, why: str) -> DatasetError:
    mirrored = "either the images or the boxes were mirrored or turned; prepare both in the same way"
    sized = "give xmin, ymin, xmax, ymax in pixels of the prepared images"
    advice = mirrored if form == Form(mirror=form.mirror) else sized
    return DatasetError(f"boxes{whose} fit the images better {form.text} ({why}): {advice}")


def _all_scores(
    looks: Mapping[str, Look], image_ids: Sequence[str], at_skin: Mapping[str, npt.NDArray[np.bool_]]
) -> npt.NDArray[np.float32]:
    found = [looks[image_id].scores[~at_skin[image_id]] for image_id in image_ids]
    return np.concatenate(found) if found else np.zeros((0, 1), dtype=np.float32)


def _agrees(
    looks: Mapping[str, Look], image_ids: Sequence[str], at_skin: Mapping[str, npt.NDArray[np.bool_]], form: Form
) -> bool:
    found = _all_scores(looks, image_ids, at_skin)
    ways = forms(looks[image_ids[0]].image_size)
    return not len(found) or bool(found[:, ways.index(form)].mean() > found[:, 0].mean() + 0.1)


def _wrong_form(
    looks: Mapping[str, Look], image_ids: Sequence[str], at_skin: Mapping[str, npt.NDArray[np.bool_]]
) -> tuple[Form, str] | None:
    """How the boxes of these images should be read instead, and why; None where they fit."""
    if not image_ids:
        return None
    likely = best(_all_scores(looks, image_ids, at_skin), forms(looks[image_ids[0]].image_size))
    off = _off_the_breast(np.concatenate([looks[image_id].tissue for image_id in image_ids]))
    if off is not None and not _agrees(looks, image_ids, at_skin, off[0]):
        off = None
    if likely is not None and (likely.is_sure or off is not None):
        n = likely.better + likely.worse
        return likely.form, f"{likely.better} of {n} stand out better then"
    return off


def warn_of_weak_boxes(looks: Mapping[str, Look], at_skin: Mapping[str, npt.NDArray[np.bool_]]) -> None:
    """Warn where boxes may have been written in another way, or fit their images no better than those of others."""
    boxed = [image_id for image_id in looks if image_id in at_skin]
    if not boxed:
        return
    found = _all_scores(looks, boxed, at_skin)
    likely = best(found, forms(looks[boxed[0]].image_size))
    if likely is not None:
        n = likely.better + likely.worse
        logger.warning(
            "boxes may be wrong: %d of %d stand out better from the images %s", likely.better, n, likely.form.text
        )
    of_others = np.concatenate([looks[image_id].of_others for image_id in boxed])
    own = found[:, 0]
    if len(own) >= _MANY and len(of_others) >= _MANY:
        p_value = mannwhitneyu(own, of_others, alternative="greater").pvalue
        if p_value > _SURE:
            logger.warning(
                "boxes fit their images no better than those of other images do (p = %.2f): are they of these images?",
                p_value,
            )


def _off_the_breast(tissue: npt.NDArray[np.float64]) -> tuple[Form, str] | None:
    off = (tissue < 0.5).sum(axis=0)
    mirrored = int(off[1:].argmin()) + 1
    if off[0] < max(_FEW, _SHARE * len(tissue)) or off[mirrored] > off[0] / 4:
        return None
    why = f"{off[0]} of {len(tissue)} lie on the background, then {off[mirrored]}"
    return Form(mirror=list(_MIRRORED.values())[mirrored - 1]), why
