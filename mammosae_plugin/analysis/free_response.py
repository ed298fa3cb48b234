"""FROC: how many lesions points find, against how many false positives each image has."""

__all__ = ["FPPI", "froc_of", "FrocResult"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import between, entries, numbers
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.boxes import as_boxes

FPPI = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
"""False positives per image at which the sensitivity is read, as in LUNA16 without its 8."""


@dataclass(frozen=True)
class FrocResult:
    """A free-response ROC.

    Attributes:
        sensitivity: (len(fppi),) share of the boxes that are found, at each number of false positives per image.
        cpm: their mean, the competition performance metric.
        fppi: (len(fppi),) those numbers.
    """

    sensitivity: NDArray[np.float64]
    cpm: float
    fppi: NDArray[np.float64]

    def to_frame(self) -> pd.DataFrame:
        """A row per number of false positives per image: fppi, sensitivity."""
        return pd.DataFrame({"fppi": self.fppi, "sensitivity": self.sensitivity})


def froc_of(
    predictions: Sequence[tuple[ArrayLike, ArrayLike]],
    ground_truth: Sequence[ArrayLike],
    *,
    fppi: Sequence[float] = FPPI,
) -> FrocResult:
    """The sensitivity of points, at given numbers of false positives per image.

    A point finds every box that it lies in, edges included; of the points in a box the one with the highest score
    counts, and the others are neither hits nor false. Points outside every box are false positives. All images count,
    those without a box too. The sensitivity at f is the best that any threshold reaches with at most f false positives
    per image; nothing is interpolated (Bandos et al., Biometrics 65, 2009, on the estimate).

    Args:
        predictions: one (points (n, 2) xy in pixels, scores (n,)) per image.
        ground_truth: one boxes (m, 4) xyxy per image.
        fppi: false positives per image, 0 or more.

    Raises:
        InputError: sequences of different length; points, scores or boxes of another shape or not finite; boxes that
            end where they begin or before; no box in any image.
    """
    limits = [between(one, "fppi", 0, np.inf) for one in entries(fppi, "fppi")]
    predictions, ground_truth = entries(predictions, "predictions"), entries(ground_truth, "ground_truth")
    if len(predictions) != len(ground_truth):
        raise InputError(f"{len(predictions)} images have predictions, but {len(ground_truth)} have ground truth")
    if not predictions:
        raise InputError("there is no image: give points and boxes of one at least")
    found: list[NDArray[np.float64]] = []
    false: list[NDArray[np.float64]] = []
    for image, (prediction, truth) in enumerate(zip(predictions, ground_truth, strict=True)):
        points, scores = _checked_points(prediction, image)
        boxes = as_boxes(truth, image, "ground truth")
        after, before = points[:, None] >= boxes[None, :, :2], points[:, None] <= boxes[None, :, 2:]
        inside = np.all(after & before, axis=2)
        found.append(np.where(inside, scores[:, None], -np.inf).max(axis=0, initial=-np.inf))
        false.append(scores[~inside.any(axis=1)])
    best, false_scores = np.concatenate(found), np.sort(np.concatenate(false))[::-1]
    if not len(best):
        raise InputError("sensitivity is undefined without a ground-truth box: give images that have boxes")
    sensitivity = np.array([_sensitivity(best, false_scores, limit * len(predictions)) for limit in limits])
    cpm = float(sensitivity.mean()) if len(limits) else float("nan")
    return FrocResult(sensitivity, cpm, np.array(limits, dtype=np.float64))


def _sensitivity(best: NDArray[np.float64], false_scores: NDArray[np.float64], most: float) -> float:
    """The share of boxes above the lowest threshold that lets through at most `most` false positives."""
    allowed = int(np.floor(most + 1e-9))
    hit = np.isfinite(best)
    if allowed < len(false_scores):
        hit &= best > false_scores[allowed]  # at this score one too many would come through
    return float(hit.mean())


def _checked_points(prediction: Any, image: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not isinstance(prediction, (tuple, list)) or len(prediction) != 2:
        raise InputError(f"the prediction for image {image} is no pair: give (points (n, 2), scores (n,))")
    points, scores = (
        numbers(prediction[0], f"points of image {image}"),
        numbers(prediction[1], f"scores of image {image}"),
    )
    points, scores = points.reshape(-1, 2) if points.size == 0 else points, scores.reshape(-1)
    if points.ndim != 2 or points.shape[1] != 2 or len(scores) != len(points):
        raise InputError(f"image {image} has points {points.shape} and scores {scores.shape}: expected (n, 2) and (n,)")
    if not (np.isfinite(points).all() and np.isfinite(scores).all()):
        raise InputError(f"image {image} has a point or a score that is not finite")
    return points, scores
