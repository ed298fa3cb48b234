"""Boxes that were found, held against boxes that are there: average precision over intersection over union."""

__all__ = ["as_boxes", "average_precision"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import between, entries, numbers
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import settled

# IoUs of boxes that are not whole pixels round; pycocotools allows for as much.
_IOU_ERROR = 1e-10


def average_precision(
    predictions: Sequence[tuple[ArrayLike, ArrayLike]],
    ground_truth: Sequence[ArrayLike],
    *,
    iou_threshold: float = 0.25,
) -> float:
    """Average precision of scored boxes of one class, matched as COCO does, with all-point interpolation.

    Predictions of all images are taken by falling score (ties, to rounding: the order given). Each takes, of its
    image's boxes that are still free, the one with the largest IoU, if that is at least `iou_threshold` less 1e-10
    (ties: the later box, as pycocotools does); without one it is a false positive. The result is the mean over
    ground-truth boxes of the best precision at that recall or a higher one.

    Args:
        predictions: one (boxes (n, 4) xyxy, scores (n,)) per image.
        ground_truth: one boxes (m, 4) xyxy per image.
        iou_threshold: smallest intersection over union of a match, above 0 and up to 1.

    Returns:
        A value from 0 to 1.

    Raises:
        InputError: sequences of different length; boxes that are not (n, 4), not finite, or end where they begin or
            before (x2 <= x1 or y2 <= y1); scores that are not one finite number for each box; a threshold out of range;
            or no ground-truth box at all.
    """
    iou_threshold = between(iou_threshold, "iou_threshold", 0, 1, with_low=False)
    predictions, ground_truth = entries(predictions, "predictions"), entries(ground_truth, "ground_truth")
    if len(predictions) != len(ground_truth):
        raise InputError(f"{len(predictions)} images have predictions, but {len(ground_truth)} have ground truth")
    for image, prediction in enumerate(predictions):
        if not isinstance(prediction, (tuple, list)) or len(prediction) != 2:
            raise InputError(f"the prediction for image {image} is no pair: give (boxes (n, 4), scores (n,))")
    truths = [as_boxes(truth, image, "ground truth") for image, truth in enumerate(ground_truth)]
    found = [as_boxes(boxes, image, "predictions") for image, (boxes, _) in enumerate(predictions)]
    given = [
        _as_scores(scores, len(boxes), image)
        for image, ((_, scores), boxes) in enumerate(zip(predictions, found, strict=True))
    ]
    n_truth = sum(len(truth) for truth in truths)
    if n_truth == 0:
        raise InputError("average precision is undefined without a ground-truth box: give images that have boxes")

    scores = settled(np.concatenate(given))
    hits = np.zeros(len(scores), dtype=np.bool_)
    stop = 0
    for boxes, truth in zip(found, truths, strict=True):
        start, stop = stop, stop + len(boxes)
        order = np.argsort(-scores[start:stop], kind="stable")
        hits[start + order] = _matched(_iou(boxes[order], truth), iou_threshold - _IOU_ERROR)
    hits = hits[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[hits].sum() / n_truth)


def as_boxes(boxes: ArrayLike, image: int, what: str) -> NDArray[np.float64]:
    """Boxes of an image as (n, 4) xyxy; the impossible is refused."""
    array = numbers(boxes, f"{what} of image {image}")
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"image {image} has {what} of shape {array.shape}: expected boxes (n, 4)")
    impossible = ~np.isfinite(array).all(axis=1) | (array[:, 2:] <= array[:, :2]).any(axis=1)
    if impossible.any():
        number = int(np.flatnonzero(impossible)[0])
        raise InputError(
            f"image {image} has {what} with an impossible box, number {number}: {array[number].tolist()}; give finite "
            "x1, y1, x2, y2 with x1 < x2 and y1 < y2"
        )
    return array


def _as_scores(scores: ArrayLike, n_boxes: int, image: int) -> NDArray[np.float64]:
    array = numbers(scores, f"scores of image {image}").reshape(-1)
    if len(array) != n_boxes or not np.isfinite(array).all():
        raise InputError(
            f"image {image} has {n_boxes} predicted boxes: give one score for each, finite and without NaN"
        )
    return array


def _iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of every pair, (n, m)."""
    upper_left = np.maximum(first[:, None, :2], second[None, :, :2])
    lower_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.prod(np.clip(lower_right - upper_left, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def _matched(iou: NDArray[np.float64], iou_threshold: float) -> NDArray[np.bool_]:
    """Which predictions (n,), given by falling score, take a box that is still free; `iou` is (n, m)."""
    hits = np.zeros(len(iou), dtype=np.bool_)
    free = np.ones(iou.shape[1], dtype=np.bool_)
    for prediction, overlaps in enumerate(iou):
        candidates = np.flatnonzero(free & (overlaps >= iou_threshold))
        if len(candidates):
            best = candidates[len(candidates) - 1 - np.argmax(overlaps[candidates][::-1])]
            hits[prediction], free[best] = True, False
    return hits
