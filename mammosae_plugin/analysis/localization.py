"""Localization: boxes from a heatmap, judged against the radiologists' boxes (Table 2 of the paper).

The heatmap is that of one latent, or, as a baseline, of one channel of the layer or of Grad-CAM.

Average precision depends on the score of a box, which neither the paper nor its release defines. Here it is the maximum
of the heatmap in the box's region unless another rule is asked for, and every result holds the value under each rule of
`BOX_SCORES`.
"""

__all__ = [
    "BOX_SCORES", "BoxScore", "Contours", "heatmap", "heatmap_boxes", "Localization", "localize", "localize_baselines",
    "localize_thresholds", "MapBoxes", "Threshold",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.analysis.map_boxes import (
    BOX_SCORES,
    BoxesWithScores,
    BoxScore,
    Contours,
    Cut,
    MapBoxes,
    MapKind,
    Threshold,
    upsampled,
)
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
from mammosae_plugin.shapes import Boxes

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable


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
    return upsampled(values, np.empty(image_size, dtype=np.float32))


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
    cut = Cut(Threshold(percentile, relative), min_area, contours)
    found = cut.boxes(_checked_map(heatmap, "the heatmap", "(H, W)"))
    return found[:, :4], found[:, 4 + BOX_SCORES.index(box_score)]


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
    boxes: MapBoxes | None = None,
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
        boxes: those of this table's maps that are known, to which what is lacking is added; give one to the calls for
            several concepts, and for boxes that several processes make.

    Returns:
        One row per latent: rank (1 for the first given), latent, n_images, n_boxes, average_precision, n_predictions,
        and average_precision_maximum, _mean, _sum and _area: the value under each rule of `BOX_SCORES`. Images are
        counted, whatever the unit of other metrics: an image with two boxes of the concept is one image.

    Raises:
        InputError: no image with a box of the concept, a latent whose maps the table lacks, or an argument out of
            range, or the boxes of another table.
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
        boxes=boxes,
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
    boxes: MapBoxes | None = None,
) -> Localization:
    """`localize` for several ways to cut a heatmap and several IoU thresholds, upsampling each map once.

    Returns:
        The rows of `localize` for every pair, with two columns more: threshold ("percentile 95" or "relative 0.3")
        and iou_threshold.
    """
    chosen = indices(latents, "the latents", table.d_sae, distinct=True).tolist()
    rules = _Rules(thresholds, iou_thresholds, min_area, box_score, contours)
    rows = _localized(_known(boxes, table), concept, ("latent", ""), chosen, split, rules)
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
    boxes: MapBoxes | None = None,
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
        boxes: as for `localize`.

    Returns:
        The rows of `localize_thresholds` with a column `method`: "channel", where `latent` is the channel's number and
        `rank` its place among those given, or "grad_cam", where `latent` is -1 and `rank` 1.

    Raises:
        InputError: as `localize_thresholds`.
    """
    chosen = indices(channels, "the channels", table.mean_channels.shape[1], distinct=True).tolist()
    rules = _Rules(thresholds, iou_thresholds, min_area, box_score, contours)
    known = _known(boxes, table)
    maps: list[tuple[MapKind, list[int]]] = [(("channel", ""), chosen)]
    if concept in table.gradcam_heads:
        maps.append((("grad_cam", concept), [-1]))
    frames = [
        _localized(known, concept, kind, numbers, split, rules).assign(method=kind[0])
        for kind, numbers in maps
        if numbers
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return Localization(concept, split, box_score, contours, min_area, rows)


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
        Cut(Threshold(), self.min_area, self.contours)


def _known(boxes: MapBoxes | None, table: "LatentTable") -> MapBoxes:
    """The boxes of a table's maps that are known.

    Raises:
        InputError: they are those of another table.
    """
    if boxes is None:
        return MapBoxes(table)
    if not isinstance(boxes, MapBoxes):
        raise InputError(f"boxes are {shown(boxes)}: give MapBoxes(table), or nothing")
    if boxes.table is not table:
        raise InputError("boxes are those of another table: give MapBoxes of the very table that is judged")
    return boxes


def _localized(
    boxes: MapBoxes, concept: str, kind: MapKind, numbers: list[int], split: str, rules: _Rules
) -> pd.DataFrame:
    """Judge heatmaps of any kind.

    Args:
        numbers: of what the heatmaps are, latents or channels, best first; the column `latent`.
    """
    table = boxes.table
    if concept not in table.concepts:
        instead = f"choose one of {', '.join(table.concepts)}" if table.concepts else f"{table.folder} has none"
        raise InputError(f"'{concept}' is not a finding with boxes: {instead}")
    rows = table.rows(concept, split=split, unit="image")
    truths = {int(row): table.boxes(int(row), concept) for row in rows.image_rows[rows.labels == 1]}
    truths = {row: boxes for row, boxes in truths.items() if len(boxes)}
    if not truths:
        raise InputError(f"split '{split}' has no image with a box of '{concept}': there is nothing to localize")

    cuts = [Cut(threshold, rules.min_area, rules.contours) for threshold in rules.thresholds]
    found = boxes.of(kind, numbers, truths, cuts, f"localizing {concept}")
    ground_truth = list(truths.values())
    records = []
    for cut in cuts:
        for iou_threshold in rules.iou_thresholds:
            for rank, number in enumerate(numbers, start=1):
                own = found[number, cut]
                by_score = {rule: _precision(own, rule, ground_truth, iou_threshold) for rule in BOX_SCORES}
                record = {
                    "rank": rank,
                    "latent": number,
                    "n_images": len(truths),
                    "n_boxes": sum(len(boxes) for boxes in ground_truth),
                    "average_precision": by_score[rules.box_score],
                    "n_predictions": sum(map(len, own)),
                    **{f"average_precision_{rule}": value for rule, value in by_score.items()},
                    "threshold": str(cut.threshold),
                    "iou_threshold": iou_threshold,
                }
                records.append(record)
    return pd.DataFrame.from_records(records)


def _precision(
    found: Sequence[BoxesWithScores], rule: BoxScore, ground_truth: Sequence[NDArray[np.float32]], iou_threshold: float
) -> float:
    """Average precision of the boxes of all images, scored by one rule."""
    scores = np.concatenate([boxes[:, 4 + BOX_SCORES.index(rule)] for boxes in found])
    levels = settled(scores, NETWORK_ERROR * float(np.abs(scores).max(initial=0)))
    starts = np.cumsum([len(boxes) for boxes in found])[:-1]
    predictions = [(boxes[:, :4], own) for boxes, own in zip(found, np.split(levels, starts), strict=True)]
    return average_precision(predictions, ground_truth, iou_threshold=iou_threshold)


def _checked_map(values: ArrayLike, name: str, shape: str) -> NDArray[np.floating]:
    array = as_array(values, name)
    if array.dtype.kind not in "fiub" or array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise InputError(f"{name} has shape {array.shape}: expected finite values {shape}")
    return array if array.dtype.kind == "f" else array.astype(np.float64)
