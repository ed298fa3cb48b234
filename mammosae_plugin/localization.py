"""The public place of `analysis.localization`."""

from mammosae_plugin.analysis.localization import (
    BoxScore,
    Contours,
    Threshold,
    average_precision,
    heatmap,
    heatmap_boxes,
    localize,
    localize_baselines,
    localize_thresholds,
)

__all__ = [
    "BoxScore",
    "Contours",
    "Threshold",
    "average_precision",
    "heatmap",
    "heatmap_boxes",
    "localize",
    "localize_baselines",
    "localize_thresholds",
]
