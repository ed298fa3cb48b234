"""Localization: boxes from a heatmap, judged against the radiologists' boxes (Table 2 of the paper).

The heatmap is that of one latent, or, as a baseline, of one channel of the layer or of Grad-CAM.

Average precision depends on the score of a box, which neither the paper nor its release defines. Here it is the maximum
of the heatmap in the box's region unless another rule is asked for, and every result holds the value under each rule of
`BOX_SCORES`.
"""

__all__ = [
    "BOX_SCORES", "BoxScore", "Contours", "heatmap", "heatmap_boxes", "Localization", "localize", "localize_baselines",
    "localize_thresholds", "Threshold",
]  # fmt: skip

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from tqdm.auto import tqdm

from mammosae_plugin.analysis.regions import pixels_above, regions_of
from mammosae_plugin.arguments import (
    as_array,
    between,
    checked_arguments,
    entries,
    indices,
    one_of,
    shown,
    whole,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.boxes import average_precision
from mammosae_plugin.measures.statistics import NETWORK_ERROR, settled
from mammosae_plugin.shapes import Boxes, LatentMaps

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

BoxScore = Literal["maximum", "mean", "sum", "area"]
BOX_SCORES: tuple[BoxScore, ...] = get_args(BoxScore)
"""What a box can be scored by: the maximum, mean or sum of the heatmap over its region's pixels, or their number."""

Contours = Literal["all", "outer"]
"""Which regions get a box: all, or, as in the release, those that no other region encloses."""

# Of the largest value of a heatmap: what interpolation in float32 can add or take away. A pixel must clear the
# threshold by more than that, or a map that is constant to rounding would have regions.
_INTERPOLATION_ERROR = 2.0**-20

# Fewer heatmaps than this are done before a progress bar would be read.
_HEATMAPS_WITHOUT_PROGRESS = 200


@dataclass(frozen=True)
class Threshold:
    """Where a heatmap is cut: at a percentile of its pixels, or, if `relative` is given, at that share of its maximum.

    Attributes:
        percentile: from 0 and below 100, which nothing lies above.
        relative: share of the maximum, above 0 and below 1, or None.

    Raises:
        InputError: either is outside its range, or no number.
    """

    percentile: float = 95.0
    relative: float | None = None

    def __post_init__(self) -> None:
        between(self.percentile, "percentile", 0, 100, with_high=False)
        if self.relative is not None:
            between(self.relative, "relative", 0, 1, with_low=False, with_high=False)

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.relative is None else f"relative {self.relative:g}"


@dataclass(frozen=True)
class Localization:
    """How well heatmaps find a concept's boxes, and what made boxes of them.

    Attributes:
        concept: whose boxes are the ground truth.
        split: the split evaluated.
        box_score: by what `average_precision` in the rows ranks boxes.
        contours: which regions got a box.
        min_area: smaller boxes were dropped, in square pixels of the model's input.
        rows: one per heatmap's subject, `threshold` and `iou_threshold`, as the function that made this says.
    """

    concept: str
    split: str
    box_score: BoxScore
    contours: Contours
    min_area: float
    rows: pd.DataFrame = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The rows."""
        return self.rows.copy()


def heatmap(latent_map: ArrayLike, image_size: tuple[int, int]) -> NDArray[np.float32]:
    """A latent's map at the size of the model's input, by bilinear interpolation (align_corners False).

    Args:
        latent_map: (h, w) activations over the positions of the feature map.
        image_size: (H, W) in pixels.

    Returns:
        (H, W) float32.

    Raises:
        InputError: not (h, w), values that are not finite, or a size that is not two numbers of pixels.
    """
    values = _checked_map(latent_map, "the latent's map", "(h, w)").astype(np.float32)
    if len(entries(image_size, "image_size")) != 2:
        raise InputError(f"image_size is {shown(image_size)}: give height and width in pixels")
    image_size = (whole(image_size[0], "the height", least=1), whole(image_size[1], "the width", least=1))
    return _upsampled(values, np.empty(image_size, dtype=np.float32))


def _upsampled(values: NDArray[np.float32], upsampled: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map interpolated into the memory of a heatmap, which it fills."""
    # `torch.nn.functional.interpolate`, but into NumPy's memory: torch's own aligned allocations of this size fragment
    # the heap of older glibc (before 2.38), by gigabytes over a thousand heatmaps.
    batch, out = torch.from_numpy(values.copy())[None, None], torch.from_numpy(upsampled)[None, None]
    torch.ops.aten.upsample_bilinear2d.out(batch, list(upsampled.shape), False, out=out)
    return upsampled


def heatmap_boxes(
    heatmap: NDArray[np.floating],
    *,
    percentile: float = 95.0,
    relative: float | None = None,
    min_area: float = 10.0,
    box_score: BoxScore = "maximum",
    contours: Contours = "all",
) -> tuple[Boxes, NDArray[np.float32]]:
    """The rectangles around the regions where a heatmap lies strictly above a threshold.

    Args:
        heatmap: (H, W) at input size.
        percentile: threshold as a percentile of all pixels (as `numpy.percentile`, linear interpolation).
        relative: threshold as a share of the maximum instead, such as the released code's 0.3.
        min_area: rectangles whose width times height is smaller are dropped, in square pixels.
        box_score: the score of a box: the "maximum", "mean" or "sum" of the heatmap over the region's pixels, or their
            number ("area").
        contours: "all" regions, or "outer": a region inside a hole of another one gives no box, as in the release.

    Returns:
        boxes (n, 4) float32 xyxy, whose right and lower ends lie one pixel past the region; and scores (n,) float32.
        Regions are connected through edges and corners, and come in the order of their first pixel. A map that is
        constant, to rounding, gives no box by percentile; a map without a positive value gives none at all.

    Raises:
        InputError: not (H, W), not finite, a threshold or area out of range, or an unknown rule.
    """
    one_of(box_score, "box_score", BOX_SCORES)
    cut = _Cut(Threshold(percentile, relative), min_area, contours)
    boxes, scores = cut.boxes(_checked_map(heatmap, "the heatmap", "(H, W)"))
    return boxes, scores[box_score]


@checked_arguments
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
    box_score: BoxScore = "maximum",
    contours: Contours = "all",
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
        box_score: as for `heatmap_boxes`: by what `average_precision` ranks boxes.
        contours: as for `heatmap_boxes`.

    Returns:
        One row per latent: rank (1 for the first given), latent, n_images, n_boxes, average_precision, n_predictions,
        and average_precision_maximum, _mean, _sum and _area: the value under each rule of `BOX_SCORES`. Images are
        counted, whatever the unit of other metrics: an image with two boxes of the concept is one image.

    Raises:
        InputError: no image with a box of the concept, a latent whose maps the table lacks, or an argument out of
            range.
    """
    results = localize_thresholds(
        table,
        latents,
        concept,
        split=split,
        thresholds=[Threshold(percentile, relative)],
        iou_thresholds=[iou_threshold],
        min_area=min_area,
        box_score=box_score,
        contours=contours,
    ).rows
    return results.drop(columns=["threshold", "iou_threshold"], errors="ignore")


@checked_arguments
def localize_thresholds(
    table: "LatentTable",
    latents: Sequence[int] | NDArray[np.int64],
    concept: str,
    *,
    split: str = "test",
    thresholds: Sequence[Threshold] = (Threshold(),),
    iou_thresholds: Sequence[float] = (0.25,),
    min_area: float = 10.0,
    box_score: BoxScore = "maximum",
    contours: Contours = "all",
) -> Localization:
    """`localize` for several ways to cut a heatmap and several IoU thresholds, upsampling each map once.

    Returns:
        The rows of `localize` for every pair, with two columns more: threshold ("percentile 95" or "relative 0.3")
        and iou_threshold.
    """
    chosen = indices(latents, "the latents", table.d_sae, distinct=True).tolist()
    rules = _Rules(thresholds, iou_thresholds, min_area, box_score, contours)
    rows = _localized(table, concept, chosen, lambda image_row: table.maps(chosen, image_row), split, rules)
    return Localization(concept, split, box_score, contours, min_area, rows)


@checked_arguments
def localize_baselines(
    table: "LatentTable",
    concept: str,
    *,
    channels: Sequence[int] | NDArray[np.int64],
    split: str = "test",
    thresholds: Sequence[Threshold] = (Threshold(),),
    iou_thresholds: Sequence[float] = (0.25,),
    min_area: float = 10.0,
    box_score: BoxScore = "maximum",
    contours: Contours = "all",
) -> Localization:
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
        box_score: as for `localize`.
        contours: as for `heatmap_boxes`.

    Returns:
        The rows of `localize_thresholds` with a column `method`: "channel", where `latent` is the channel's number and
        `rank` its place among those given, or "grad_cam", where `latent` is -1 and `rank` 1.

    Raises:
        InputError: as `localize_thresholds`.
    """
    chosen = indices(channels, "the channels", table.mean_channels.shape[1], distinct=True).tolist()
    rules = _Rules(thresholds, iou_thresholds, min_area, box_score, contours)
    maps: dict[str, tuple[list[int], Callable[[int], LatentMaps]]] = {
        "channel": (chosen, lambda image_row: table.channel_maps(chosen, image_row))
    }
    if concept in table.gradcam_heads:
        maps["grad_cam"] = ([-1], lambda image_row: table.gradcam(concept, image_row)[None])
    frames = [
        _localized(table, concept, shown, maps_of, split, rules).assign(method=method)
        for method, (shown, maps_of) in maps.items()
        if shown
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return Localization(concept, split, box_score, contours, min_area, rows)


@dataclass(frozen=True)
class _Cut:
    """How boxes are made of a heatmap: cut at a threshold, small ones and perhaps enclosed ones dropped."""

    threshold: Threshold
    min_area: float
    contours: Contours

    def __post_init__(self) -> None:
        between(self.min_area, "min_area", 0, np.inf)
        one_of(self.contours, "contours", get_args(Contours))

    def boxes(self, values: NDArray[np.floating]) -> tuple[Boxes, dict[BoxScore, NDArray[np.float32]]]:
        """Boxes (n, 4) of a heatmap (H, W), and their scores (n,) under every rule."""
        cut = self.threshold
        pixels, own = pixels_above(
            values.ravel(), percentile=cut.percentile, relative=cut.relative, error=_INTERPOLATION_ERROR
        )
        if len(pixels) == 0:
            return np.empty((0, 4), np.float32), {rule: np.empty(0, np.float32) for rule in BOX_SCORES}
        found = regions_of(pixels, own, values.shape[1])
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        shown = sides.prod(axis=1) >= self.min_area
        if self.contours == "outer":
            shown &= _outermost(pixels, found.labels, values.shape)
        scores = (found.maxima, found.sums / found.areas, found.sums, found.areas)
        columns = [score[shown].astype(np.float32) for score in scores]
        return found.boxes[shown].astype(np.float32), dict(zip(BOX_SCORES, columns, strict=True))


def _outermost(pixels: NDArray[np.int64], labels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which regions border on the outside: holes are what edges, not corners, do not join to it."""
    above = np.zeros(shape, dtype=np.bool_)
    above.ravel()[pixels] = True
    outside = ~ndimage.binary_fill_holes(above)
    bordering: NDArray[np.bool_] = ndimage.binary_dilation(outside, border_value=1)
    shown = np.zeros(labels.max() + 1, dtype=np.bool_)
    shown[labels[bordering.ravel()[pixels]]] = True
    return shown


@dataclass(frozen=True)
class _Rules:
    """What `localize_thresholds` varies and what it keeps, checked."""

    thresholds: Sequence[Threshold]
    iou_thresholds: Sequence[float]
    min_area: float
    box_score: BoxScore
    contours: Contours

    def __post_init__(self) -> None:
        thresholds, iou_thresholds = (
            entries(self.thresholds, "thresholds"),
            entries(self.iou_thresholds, "iou_thresholds"),
        )
        if not thresholds or not iou_thresholds:
            raise InputError("thresholds or iou_thresholds is empty: give at least one of each")
        for threshold in thresholds:
            if not isinstance(threshold, Threshold):
                raise InputError(f"thresholds hold {shown(threshold)}: give Threshold(95) or Threshold(relative=0.3)")
        checked = [between(value, "iou_threshold", 0, 1, with_low=False) for value in iou_thresholds]
        object.__setattr__(self, "thresholds", list(dict.fromkeys(thresholds)))
        object.__setattr__(self, "iou_thresholds", list(dict.fromkeys(checked)))
        one_of(self.box_score, "box_score", BOX_SCORES)
        _Cut(Threshold(), self.min_area, self.contours)


def _localized(
    table: "LatentTable",
    concept: str,
    shown: list[int],
    maps_of: Callable[[int], LatentMaps],
    split: str,
    rules: _Rules,
) -> pd.DataFrame:
    """Judge heatmaps of any kind.

    Args:
        shown: what the heatmaps are of (latents or channels), best first; the column `latent`.
        maps_of: image row -> (len(shown), h, w).
    """
    if concept not in table.concepts:
        instead = f"choose one of {', '.join(table.concepts)}" if table.concepts else f"{table.folder} has none"
        raise InputError(f"'{concept}' is not a finding with boxes: {instead}")
    rows = table.rows(concept, split=split, unit="image")
    truths = {int(row): table.boxes(int(row), concept) for row in rows.image_rows[rows.labels == 1]}
    truths = {row: boxes for row, boxes in truths.items() if len(boxes)}
    if not truths:
        raise InputError(f"split '{split}' has no image with a box of '{concept}': there is nothing to localize")

    cuts = [_Cut(threshold, rules.min_area, rules.contours) for threshold in rules.thresholds]
    found: dict[tuple[int, _Cut], list[tuple[Boxes, dict[BoxScore, NDArray[np.float32]]]]] = {
        (number, cut): [] for number in shown for cut in cuts
    }
    memory = np.empty(table.image_size, dtype=np.float32)
    quick = len(truths) * len(shown) < _HEATMAPS_WITHOUT_PROGRESS
    for image_row in tqdm(truths, desc=f"localizing {concept}", unit="image", disable=quick):
        for number, values in zip(shown, maps_of(image_row), strict=True):
            # Interpolation makes nothing positive of a map that is zero everywhere.
            upsampled = _upsampled(values.astype(np.float32), memory) if values.any() else values
            for cut in cuts:
                found[number, cut].append(cut.boxes(upsampled))

    ground_truth = list(truths.values())
    records = []
    for cut in cuts:
        for iou_threshold in rules.iou_thresholds:
            for rank, number in enumerate(shown, start=1):
                own = found[number, cut]
                by_score = {rule: _precision(own, rule, ground_truth, iou_threshold) for rule in BOX_SCORES}
                record = {
                    "rank": rank,
                    "latent": number,
                    "n_images": len(truths),
                    "n_boxes": sum(len(boxes) for boxes in ground_truth),
                    "average_precision": by_score[rules.box_score],
                    "n_predictions": sum(len(boxes) for boxes, _ in own),
                    **{f"average_precision_{rule}": value for rule, value in by_score.items()},
                    "threshold": str(cut.threshold),
                    "iou_threshold": iou_threshold,
                }
                records.append(record)
    return pd.DataFrame.from_records(records)


def _precision(
    found: Sequence[tuple[Boxes, dict[BoxScore, NDArray[np.float32]]]],
    rule: BoxScore,
    ground_truth: Sequence[NDArray[np.float32]],
    iou_threshold: float,
) -> float:
    """Average precision of the boxes of all images, scored by one rule."""
    scores = np.concatenate([scores[rule] for _, scores in found])
    levels = settled(scores, NETWORK_ERROR * float(np.abs(scores).max(initial=0)))
    starts = np.cumsum([len(boxes) for boxes, _ in found])[:-1]
    predictions = [(boxes, own) for (boxes, _), own in zip(found, np.split(levels, starts), strict=True)]
    return average_precision(predictions, ground_truth, iou_threshold=iou_threshold)


def _checked_map(values: ArrayLike, name: str, shape: str) -> NDArray[np.floating]:
    array = as_array(values, name)
    if array.dtype.kind not in "fiub" or array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise InputError(f"{name} has shape {array.shape}: expected finite values {shape}")
    return array if array.dtype.kind == "f" else array.astype(np.float64)
