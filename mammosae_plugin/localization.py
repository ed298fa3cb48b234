"""Localization: boxes from a heatmap, judged against the radiologists' boxes (Table 2 of the paper).

The heatmap is that of one latent, or, as a baseline, of one channel of the layer or of Grad-CAM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from tqdm.auto import tqdm

from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Boxes = NDArray[np.float32]

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)

# Fewer heatmaps than this are done before a progress bar would be read.
_HEATMAPS_WITHOUT_PROGRESS = 200


@dataclass(frozen=True)
class Threshold:
    """Where a heatmap is cut: at a percentile of its pixels, or, if `relative` is given, at that share of its maximum.

    Attributes:
        percentile: 0 ... 100.
        relative: share of the maximum, 0 ... 1, or None.
    """

    percentile: float = 95.0
    relative: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile}: give a number from 0 to 100")
        if self.relative is not None and not 0 <= self.relative <= 1:
            raise InputError(f"relative is {self.relative}: give a share of the maximum from 0 to 1")

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.relative is None else f"relative {self.relative:g}"


def heatmap(latent_map: ArrayLike, image_size: tuple[int, int]) -> NDArray[np.float32]:
    """A latent's map at the size of the model's input, by bilinear interpolation (align_corners False).

    Args:
        latent_map: (h, w) activations over the positions of the feature map.
        image_size: (H, W) in pixels.

    Returns:
        (H, W) float32.
    """
    values = np.asarray(latent_map, dtype=np.float32)
    if values.ndim != 2:
        raise InputError(f"the latent's map has shape {values.shape}: expected (h, w)")
    # `torch.nn.functional.interpolate`, but into NumPy's memory: torch's own aligned allocations of this size fragment
    # the heap of older glibc (before 2.38), by gigabytes over a thousand heatmaps.
    upsampled: NDArray[np.float32] = np.empty(image_size, dtype=np.float32)
    batch, out = torch.from_numpy(values.copy())[None, None], torch.from_numpy(upsampled)[None, None]
    torch.ops.aten.upsample_bilinear2d.out(batch, list(image_size), False, out=out)
    return upsampled


def heatmap_boxes(
    heatmap: NDArray[np.floating],
    *,
    percentile: float = 95.0,
    relative: float | None = None,
    min_area: float = 10.0,
) -> tuple[Boxes, NDArray[np.float32]]:
    """The rectangles around the regions where a heatmap lies strictly above a threshold.

    Args:
        heatmap: (H, W) at input size.
        percentile: threshold as a percentile of all pixels (as `numpy.percentile`, linear interpolation).
        relative: threshold as a share of the maximum instead, such as the released code's 0.3.
        min_area: rectangles whose width times height is smaller are dropped, in square pixels.

    Returns:
        boxes (n, 4) float32 xyxy, whose right and lower ends lie one pixel past the region; and scores (n,) float32,
        the region's maximum. Regions are connected through edges and corners, and come in the order of their first
        pixel. A constant map gives no box by percentile; a map without a positive value gives none at all.

    Raises:
        InputError: not (H, W), not finite, or a threshold out of range.
    """
    return _boxes_above(_checked_heatmap(heatmap), Threshold(percentile, relative), min_area)


def average_precision(
    predictions: Sequence[tuple[ArrayLike, ArrayLike]],
    ground_truth: Sequence[ArrayLike],
    *,
    iou_threshold: float = 0.25,
) -> float:
    """Average precision of scored boxes of one class, matched as COCO does, with all-point interpolation.

    Predictions of all images are taken by falling score (ties: the order given). Each takes, of its image's boxes that
    are still free, the one with the largest IoU, if that is at least `iou_threshold` (ties: the later box, as
    pycocotools does); without one it is a false positive. The result is the mean over ground-truth boxes of the best
    precision at that recall or a higher one.

    Args:
        predictions: one (boxes (n, 4) xyxy, scores (n,)) per image.
        ground_truth: one boxes (m, 4) xyxy per image.
        iou_threshold: smallest intersection over union of a match.

    Returns:
        A value from 0 to 1.

    Raises:
        InputError: sequences of different length, boxes that are not (n, 4), or no ground-truth box at all.
    """
    if len(predictions) != len(ground_truth):
        raise InputError(f"{len(predictions)} images have predictions, but {len(ground_truth)} have ground truth")
    n_truth = 0
    all_scores: list[NDArray[np.float64]] = []
    all_hits: list[NDArray[np.bool_]] = []
    for image, ((boxes, scores), truth) in enumerate(zip(predictions, ground_truth, strict=True)):
        predicted, true = _as_boxes(boxes, image, "predictions"), _as_boxes(truth, image, "ground truth")
        score = np.asarray(scores, dtype=np.float64).reshape(-1)
        if len(score) != len(predicted) or np.isnan(score).any():
            raise InputError(
                f"image {image} has {len(predicted)} predicted boxes: give one score for each, without NaN"
            )
        order = np.argsort(-score, kind="stable")
        n_truth += len(true)
        all_scores.append(score[order])
        all_hits.append(_matched(_iou(predicted[order], true), iou_threshold))
    if n_truth == 0:
        raise InputError("average precision is undefined without a ground-truth box: give images that have boxes")

    order = np.argsort(-np.concatenate(all_scores), kind="stable")
    hits = np.concatenate(all_hits)[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[hits].sum() / n_truth)


def localize(
    table: "LatentTable",
    latents: Sequence[int] | NDArray[np.int64],
    concept: str,
    *,
    split: str = "test",
    percentile: float = 95.0,
    relative: float | None = None,
    iou_threshold: float = 0.25,
    min_area: float = 10.0,
) -> pd.DataFrame:
    """How well the heatmap of each latent finds a concept's boxes, as in Table 2 of the paper.

    Only images that contain the concept and have a box of it are used, and all their boxes of it are ground truth.

    Args:
        table: the latents table, which must hold the maps of these latents.
        latents: latent indices, best first.
        concept: a finding.
        split: the split evaluated.
        percentile: as for `heatmap_boxes`.
        relative: as for `heatmap_boxes`.
        iou_threshold: as for `average_precision`.
        min_area: as for `heatmap_boxes`.

    Returns:
        One row per latent: rank (1 for the first given), latent, n_images, n_boxes, average_precision, n_predictions.

    Raises:
        InputError: no image with a box of the concept, or a latent whose maps the table lacks.
    """
    results = localize_thresholds(
        table,
        latents,
        concept,
        split=split,
        thresholds=[Threshold(percentile, relative)],
        iou_thresholds=[iou_threshold],
        min_area=min_area,
    )
    return results.drop(columns=["threshold", "iou_threshold"])


def localize_thresholds(
    table: "LatentTable",
    latents: Sequence[int] | NDArray[np.int64],
    concept: str,
    *,
    split: str = "test",
    thresholds: Sequence[Threshold] = (Threshold(),),
    iou_thresholds: Sequence[float] = (0.25,),
    min_area: float = 10.0,
) -> pd.DataFrame:
    """`localize` for several ways to cut a heatmap and several IoU thresholds, upsampling each map once.

    Returns:
        The rows of `localize` for every pair, with two columns more: threshold ("percentile 95" or "relative 0.3")
        and iou_threshold.
    """
    chosen = [int(latent) for latent in latents]
    return _localized(
        table, concept, chosen, lambda image_row: table.maps(chosen, image_row),
        split=split, thresholds=thresholds, iou_thresholds=iou_thresholds, min_area=min_area,
    )  # fmt: skip


def localize_baselines(
    table: "LatentTable",
    concept: str,
    *,
    channels: Sequence[int] | NDArray[np.int64],
    split: str = "test",
    thresholds: Sequence[Threshold] = (Threshold(),),
    iou_thresholds: Sequence[float] = (0.25,),
    min_area: float = 10.0,
) -> pd.DataFrame:
    """What localizes without an SAE: raw channels of the layer and Grad-CAM, through the very code that judges latents.

    Args:
        table: the latents table, which must hold the maps of these channels; Grad-CAM is added where it has the maps
            of this concept's classifier.
        concept: a finding.
        channels: channels of the layer, best first (`probing.rank_channels`).
        split: the split evaluated.
        thresholds: as for `localize_thresholds`.
        iou_thresholds: as for `average_precision`.
        min_area: as for `heatmap_boxes`.

    Returns:
        The rows of `localize_thresholds` with a column `method`: "channel", where `latent` is the channel's number and
        `rank` its place among those given, or "grad_cam", where `latent` is -1 and `rank` 1.

    Raises:
        InputError: as `localize_thresholds`.
    """
    chosen = [int(channel) for channel in channels]
    maps: dict[str, tuple[list[int], Callable[[int], NDArray[np.float32]]]] = {
        "channel": (chosen, lambda image_row: table.channel_maps(chosen, image_row))
    }
    if concept in table.gradcam_heads:
        maps["grad_cam"] = ([-1], lambda image_row: table.gradcam(concept, image_row)[None])
    frames = [
        _localized(
            table, concept, numbers, maps_of,
            split=split, thresholds=thresholds, iou_thresholds=iou_thresholds, min_area=min_area,
        ).assign(method=method)
        for method, (numbers, maps_of) in maps.items()
        if numbers
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _localized(
    table: "LatentTable",
    concept: str,
    numbers: list[int],
    maps_of: Callable[[int], NDArray[np.float32]],
    *,
    split: str,
    thresholds: Sequence[Threshold],
    iou_thresholds: Sequence[float],
    min_area: float,
) -> pd.DataFrame:
    """Judge heatmaps of any kind.

    Args:
        numbers: what the heatmaps are of (latents or channels), best first; the column `latent`.
        maps_of: image row -> (len(numbers), h, w).
    """
    if concept not in table.concepts:
        raise InputError(f"'{concept}' is not a finding with boxes: choose one of {', '.join(table.concepts)}")
    rows = table.rows(concept, split=split, unit="image")
    truths = {int(row): table.boxes(int(row), concept) for row in rows.image_rows[rows.labels == 1]}
    truths = {row: boxes for row, boxes in truths.items() if len(boxes)}
    if not truths:
        raise InputError(f"split '{split}' has no image with a box of '{concept}': there is nothing to localize")

    found: dict[tuple[int, Threshold], list[tuple[Boxes, NDArray[np.float32]]]] = {
        (number, threshold): [] for number in numbers for threshold in thresholds
    }
    quick = len(truths) * len(numbers) < _HEATMAPS_WITHOUT_PROGRESS
    for image_row in tqdm(truths, desc=f"localizing {concept}", unit="image", disable=quick):
        for number, values in zip(numbers, maps_of(image_row), strict=True):
            # Interpolation makes nothing positive of a map that is zero everywhere.
            upsampled = heatmap(values, table.image_size) if values.any() else values
            for threshold in thresholds:
                found[number, threshold].append(_boxes_above(upsampled, threshold, min_area))

    ground_truth = list(truths.values())
    records = [
        {
            "rank": rank,
            "latent": number,
            "n_images": len(truths),
            "n_boxes": sum(len(boxes) for boxes in ground_truth),
            "average_precision": average_precision(found[number, threshold], ground_truth, iou_threshold=iou_threshold),
            "n_predictions": sum(len(boxes) for boxes, _ in found[number, threshold]),
            "threshold": str(threshold),
            "iou_threshold": iou_threshold,
        }
        for threshold in thresholds
        for iou_threshold in iou_thresholds
        for rank, number in enumerate(numbers, start=1)
    ]
    return pd.DataFrame.from_records(records)


def _boxes_above(
    values: NDArray[np.floating], threshold: Threshold, min_area: float
) -> tuple[Boxes, NDArray[np.float32]]:
    above = _above(values, threshold)
    boxes: list[tuple[int, int, int, int]] = []
    scores: list[float] = []
    if above is not None:
        labels, _ = ndimage.label(above, structure=_EIGHT_NEIGHBOURS)
        for label, region in enumerate(ndimage.find_objects(labels), start=1):
            y, x = region
            if (y.stop - y.start) * (x.stop - x.start) < min_area:
                continue
            boxes.append((x.start, y.start, x.stop, y.stop))
            scores.append(float(values[region][labels[region] == label].max()))
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores, dtype=np.float32)


def _above(values: NDArray[np.floating], threshold: Threshold) -> NDArray[np.bool_] | None:
    """The pixels strictly above the threshold, or None when the map has no positive value."""
    maximum = values.max()
    if maximum <= 0:
        return None
    if threshold.relative is not None:
        return np.asarray(values > threshold.relative * maximum)
    # The interpolated percentile lies between two neighbouring order statistics, and below the upper one. So a pixel is
    # strictly above it exactly when it is strictly above the lower one.
    position = int(np.floor(threshold.percentile / 100 * (values.size - 1)))
    # Most maps are mostly zero; selecting among equal values is slow, so the lowest value is counted instead.
    lower = values.min()
    higher = values[values > lower]
    position -= values.size - higher.size
    if position >= 0:
        lower = np.partition(higher, position)[position]
    return np.asarray(values > lower)


def _checked_heatmap(values: NDArray[np.floating]) -> NDArray[np.floating]:
    values = np.asarray(values)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"the heatmap has shape {values.shape}: expected finite values (H, W)")
    return values


def _as_boxes(boxes: ArrayLike, image: int, what: str) -> NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"image {image} has {what} of shape {array.shape}: expected boxes (n, 4)")
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
