"""The public place of `analysis.localization`, and of the average precision by which it judges."""

from mammosae_plugin.analysis.localization import (
    BoxScore,
    Contours,
    MapBoxes,
    Threshold,
    heatmap,
    heatmap_boxes,
    localize,
    localize_baselines,
    localize_thresholds,
)
from mammosae_plugin.measures.boxes import average_precision

__all__ = [
    "BoxScore",
    "Contours",
    "MapBoxes",
    "Threshold",
    "average_precision",
    "heatmap",
    "heatmap_boxes",
    "localize",
    "localize_baselines",
    "localize_thresholds",
]
