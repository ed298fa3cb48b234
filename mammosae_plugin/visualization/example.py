"""The picture on a report's first page: the image in which one telling latent is strongest."""

__all__ = ["Example", "example_latent", "leading_pair", "plot_example"]

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from mammosae_plugin.analysis.localization import heatmap
from mammosae_plugin.schema.results import Results, Row, best_row, pairs, reference_auroc
from mammosae_plugin.visualization.heatmaps import draw_activation, draw_boxes, draw_tissue, small_enough
from mammosae_plugin.visualization.lesions import best_of
from mammosae_plugin.visualization.style import PREDICTED_BOX, TRUTH_BOX, figure_style

_HEIGHT = 3.6  # inches: of a panel; the width follows the image
_GAP = 0.08
_CAPTION = 0.32
_DETAIL = 0.4  # share of the image's height and width that the detail shows


@dataclass(frozen=True)
class Example:
    """What the picture shows.

    Attributes:
        image: uint8 (H, W).
        map: (h, w) activations of the latent on the feature grid.
        boxes: (n, 4) xyxy in pixels: the annotators' boxes of the concept.
        said: what the labels say of the image.
        latent: the latent.
    """

    image: np.ndarray
    map: np.ndarray
    boxes: np.ndarray
    said: str
    latent: int


def leading_pair(results: Results) -> tuple[str, str] | None:
    """The model and concept of the highest test AUROC without the SAE; None where none is defined.

    Nothing that was found through the SAE enters the choice.
    """
    aurocs = {pair: reference_auroc(results, *pair) for pair in pairs(results)}
    known = {pair: auroc for pair, auroc in aurocs.items() if math.isfinite(auroc)}
    return max(known, key=known.__getitem__, default=None)


def example_latent(results: Results, model: str, concept: str) -> tuple[int, str] | None:
    """The latent of a classifier that the first page shows, and by what it was chosen; None without a ranking.

    The one that finds lesions best, else whose boxes are best, else the first of the class with the finding.
    """

    def own(rows: list[Row]) -> list[Row]:
        return [row for row in rows if (row["model"], row["concept"]) == (model, concept)]

    if best := best_of(own(results.get("lesions", [])), "latent"):
        return int(best["latent"]), "the one of the highest CPM among the best, on these same test images"
    boxes = own(results["localization"])
    if boxes and (marked := best_row(boxes)):
        return int(marked["latent"]), "the one of the highest average precision, on these same test images"
    ranked = [row for row in own(results["rankings"]) if row["class"] == 1 and row["latents"]]
    return (int(ranked[0]["latents"][0]), "the first of the ranking on training images") if ranked else None


def plot_example(shown: Example) -> Figure:
    """The image, the latent's map over it, and what lies round its peak, outlined at half of its maximum.

    Red: the annotators' boxes.
    """
    size = (shown.image.shape[0], shown.image.shape[1])
    full = np.asarray(heatmap(np.asarray(shown.map, dtype=np.float32), size))
    peak = np.unravel_index(int(full.argmax()), full.shape)
    panel = _HEIGHT * size[1] / size[0]
    width, height = 3 * panel + 4 * _GAP, _HEIGHT + _CAPTION + _GAP
    texts = (shown.said, f"where latent {shown.latent} fires", "detail at its peak")
    with figure_style():
        figure = Figure(figsize=(width, height))
        for column, text in enumerate(texts):
            left = _GAP + column * (panel + _GAP)
            axes = figure.add_axes((left / width, _CAPTION / height, panel / width, _HEIGHT / height))
            draw_tissue(axes, shown.image if column == 2 else small_enough(shown.image), size)
            if column == 1:
                draw_activation(axes, full, float(full.max()) or 1.0, None)
            draw_boxes(axes, shown.boxes, TRUTH_BOX, "-", 1.4)
            if column == 2:  # an outline leaves in sight what the latent fires at
                if full.max() > 0:
                    half = [float(full.max()) / 2]
                    axes.contour(full, levels=half, colors=PREDICTED_BOX, linewidths=1.4, extent=_extent(size))
                ends = [_span(int(at), length) for at, length in zip(peak, size, strict=True)]
                axes.set_xlim(*ends[1])
                axes.set_ylim(*reversed(ends[0]))
            axes.set_xlabel(text, fontsize=10, labelpad=4)
    return figure


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the first and last pixels of a map have their centres: contours go through centres."""
    return 0.5, size[1] - 0.5, 0.5, size[0] - 0.5


def _span(at: int, length: int) -> tuple[float, float]:
    """The part of an axis of the image round a place that the detail shows."""
    part = _DETAIL * length
    first = min(max(at - part / 2, 0), length - part)
    return first, first + part
