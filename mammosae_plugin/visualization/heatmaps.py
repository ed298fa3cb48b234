"""Figure 3: where in a mammogram the best latents fire, over the image, with the annotated boxes."""

__all__ = ["draw_activation", "draw_boxes", "draw_tissue", "plot_heatmaps", "small_enough"]

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from mammosae_plugin.analysis.localization import heatmap, heatmap_boxes
from mammosae_plugin.errors import InputError
from mammosae_plugin.schema.names import digits
from mammosae_plugin.visualization.style import HEATMAP_COLORS, INK, MUTED, PREDICTED_BOX, TRUTH_BOX, figure_style

_PANEL = 0.94  # inches: width of one panel; the height follows the image
_GAP = 0.07
_CAPTION = 0.36
_HEAD = 0.62
_FOOT = 0.86
_LEAST_WIDTH = 7.5  # of the figure: what the line beside the colour bar takes
_DRAWN_HEIGHT = 640  # pixels: images taller than this are shrunk before drawing
_OPACITY = 0.65


def plot_heatmaps(
    images: Sequence[np.ndarray],
    heatmaps: np.ndarray,
    boxes: Sequence[np.ndarray],
    latents: Sequence[int],
    activations: np.ndarray,
    *,
    titles: Sequence[str],
    title: str,
    scale: Literal["latent", "common"] = "latent",
    percentile: float | None = 95.0,
) -> Figure:
    """A row per image, a column per latent: activation maps over the mammogram (Figure 3 of the Mammo-SAE paper).

    Args:
        images: uint8 (H, W) each, all of one size; the first column shows them without a map.
        heatmaps: (n_images, n_latents, h, w) activations on the feature grid, or (n_images, n_latents, H, W) already at
            image size; not negative. Maps on the grid are upsampled as for localization.
        boxes: annotated boxes per image, (n, 4) xyxy in image pixels; drawn in red.
        latents: index of the latent of each column, best first.
        activations: (n_images, n_latents) mean activation over positions, written under each panel.
        titles: one line or two per image, written under its plain panel.
        title: heading of the figure.
        scale: "latent" stretches the colours of every column to that latent's largest activation in the images shown;
            "common" uses one scale for all. The figure says which.
        percentile: outline, dashed, the regions that localization predicts at this percentile of each map; `None`
            leaves them out.

    Raises `InputError` when shapes do not fit together.
    """
    maps = np.asarray(heatmaps, dtype=np.float32)
    means = np.asarray(activations, dtype=float)
    n_images, n_latents = len(images), len(latents)
    if n_images == 0 or n_latents == 0:
        raise InputError("heatmaps need at least one image and one latent")
    size = images[0].shape
    if len(size) != 2 or any(image.shape != size or image.dtype != np.uint8 for image in images):
        raise InputError("heatmaps need uint8 grey images of one size (H, W)")
    if maps.ndim != 4 or maps.shape[:2] != (n_images, n_latents) or means.shape != (n_images, n_latents):
        raise InputError(
            f"{n_images} images and {n_latents} latents need maps ({n_images}, {n_latents}, h, w) and activations "
            f"({n_images}, {n_latents}), got {maps.shape} and {means.shape}"
        )
    if len(boxes) != n_images or len(titles) != n_images:
        raise InputError(f"{n_images} images need as many box lists and titles, got {len(boxes)} and {len(titles)}")

    peaks = maps.max(axis=(0, 2, 3))
    limits = np.full(n_latents, peaks.max()) if scale == "common" else peaks
    with figure_style():
        panel_height = _PANEL * size[0] / size[1]
        width = (n_latents + 1) * (_PANEL + _GAP) + _GAP
        height = _HEAD + n_images * (panel_height + _CAPTION) + _FOOT
        figure = Figure(figsize=(max(width, _LEAST_WIDTH), height))
        for row in range(n_images):
            shrunk = small_enough(images[row])
            for column in range(n_latents + 1):
                left = _GAP + column * (_PANEL + _GAP)
                bottom = height - _HEAD - (row + 1) * panel_height - row * _CAPTION
                box = (
                    left / figure.get_figwidth(),
                    bottom / height,
                    _PANEL / figure.get_figwidth(),
                    panel_height / height,
                )
                axes = figure.add_axes(box)
                draw_tissue(axes, shrunk, size)
                if column == 0:
                    axes.set_xlabel(titles[row], fontsize=8, labelpad=3)
                else:
                    full = _full_size(maps[row, column - 1], size)
                    draw_activation(axes, full, float(limits[column - 1]), percentile)
                    axes.set_xlabel(
                        f"latent {latents[column - 1]}\nmean {digits(float(means[row, column - 1]))}",
                        fontsize=8,
                        labelpad=3,
                    )
                draw_boxes(axes, boxes[row], TRUTH_BOX, "-", 1.1)
                if row == 0:
                    axes.set_title("image" if column == 0 else f"rank {column}", fontsize=8, loc="center", pad=4)
        figure.suptitle(title, x=_GAP / figure.get_figwidth(), y=1 - 0.12 / height, ha="left", va="top")
        _foot(figure, scale, float(peaks.max()), percentile)
    return figure


def small_enough(image: np.ndarray) -> np.ndarray:
    factor = max(1, round(image.shape[0] / _DRAWN_HEIGHT))
    return np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image


def _full_size(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return values if values.shape == size else np.asarray(heatmap(values, (size[0], size[1])))


def draw_tissue(axes: Axes, image: np.ndarray, size: tuple[int, ...]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, size[1], size[0], 0), interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_activation(axes: Axes, full: np.ndarray, limit: float, percentile: float | None) -> None:
    """Colour by activation, opaque where the latent fires most and clear where it does not, so that tissue shows."""
    height, width = full.shape
    if not full.max() > 0:
        note = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1.5}
        axes.text(
            *(0.5, 0.02),
            "does not fire here",
            transform=axes.transAxes,
            ha="center",
            fontsize=7,
            color="white",
            bbox=note,
        )
        return
    step = max(1, round(height / _DRAWN_HEIGHT))
    share = np.clip(full[step // 2 :: step, step // 2 :: step] / limit, 0, 1)
    colors = matplotlib.colormaps[HEATMAP_COLORS](share, bytes=True)
    colors[..., 3] = np.round(255 * _OPACITY * np.sqrt(share)).astype(np.uint8)
    axes.imshow(colors, extent=(0, width, height, 0), interpolation="antialiased")
    if percentile is not None:
        predicted, _ = heatmap_boxes(full, percentile=percentile)
        draw_boxes(axes, np.asarray(predicted), PREDICTED_BOX, (0, (3, 2)), 0.6)


def draw_boxes(
    axes: Axes, boxes: np.ndarray, color: str, style: str | tuple[float, tuple[float, ...]], width: float
) -> None:
    """Outlines of (n, 4) xyxy boxes."""
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=float).reshape(-1, 4):
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=width)
        )


def _foot(figure: Figure, scale: str, peak: float, percentile: float | None) -> None:
    width, height = figure.get_figwidth(), figure.get_figheight()
    keys = [Line2D([], [], color=TRUTH_BOX, linewidth=1.3, label="annotated finding")]
    if percentile is not None:
        words = f"map above its {percentile:g}th percentile (white)"
        keys.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label=words))
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(_GAP / width, 0.56 / height),
        ncols=2,
        fontsize=8,
        borderaxespad=0,
        borderpad=0,
    )
    largest = peak or 1.0
    if scale == "latent":
        limit, label = 1.0, "activation as a share of the latent's largest in these images (a scale per column)"
    else:
        limit, label = largest, "activation (one scale for all columns)"
    bar_width = 1.7
    axes = figure.add_axes((_GAP / width, 0.33 / height, bar_width / width, 0.1 / height))
    ticks = [0.0, limit / 2, limit]
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, limit), HEATMAP_COLORS), cax=axes, orientation="horizontal", ticks=ticks
    )
    bar.ax.set_xticklabels([f"{tick:.3g}" for tick in ticks], fontsize=7.5)
    bar.outline.set_visible(False)
    figure.text((_GAP + bar_width + 0.14) / width, 0.38 / height, label, va="center", fontsize=8, color=MUTED)
