"""A contact sheet: images with their boxes and masks, for the eye of whoever set the data up. It is never published."""

__all__ = ["Mark", "plot_contact_sheet", "Tile"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mammosae_plugin.errors import InputError
from mammosae_plugin.visualization.style import MUTED, figure_style

_COLORS = ("#56b4e9", "#e69f00", "#f0e442", "#00d4a0", "#ff8fc7", "#ff5f3b")  # bright enough on grey tissue
_PANEL, _GAP, _CAPTION, _HEAD, _SIDE = 2.0, 0.16, 0.52, 0.62, 0.16  # inches
_TITLE_LETTERS = 32


@dataclass(frozen=True)
class Mark:
    """One annotation of an image.

    Attributes:
        label: What it is of.
        color: The number of its colour.
        box: xyxy, in pixels of `Tile.size`, or None.
        mask: bool (h, w) of any size, which covers the whole image, or None.
    """

    label: str
    color: int
    box: tuple[float, float, float, float] | None = None
    mask: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Tile:
    """One image of the sheet.

    Attributes:
        pixels: uint8 (h, w), the image in any size; None where it cannot be read.
        size: Height and width of the pixels that boxes are in.
        title: Its name, cut in the middle where it is long.
        caption: What is said below it, in lines.
        marks: Its annotations.
    """

    pixels: npt.NDArray[np.uint8] | None
    size: tuple[int, int]
    title: str
    caption: tuple[str, ...]
    marks: tuple[Mark, ...] = ()


def plot_contact_sheet(tiles: Sequence[Tile], title: str, *, columns: int = 6) -> Figure:
    """Draw images side by side, each with its boxes, named, and what is known of it.

    Args:
        tiles: The images, in the order of reading.
        title: Of the sheet.
        columns: How many stand side by side.

    Raises:
        InputError: There is no image.
    """
    if not tiles:
        raise InputError("a contact sheet needs at least one image")
    columns = min(columns, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    tallest = [min(max(_PANEL * tile.size[0] / tile.size[1] for tile in row), 2 * _PANEL) for row in rows]
    width = max(2 * _SIDE + columns * _PANEL + (columns - 1) * _GAP, 6.0)
    height = _HEAD + sum(tall + _CAPTION + 0.22 for tall in tallest)
    with figure_style():
        figure = Figure(figsize=(width, height))
        top = height - _HEAD
        for row, tall in zip(rows, tallest, strict=True):
            for at, tile in enumerate(row):
                left = _SIDE + at * (_PANEL + _GAP)
                place = (left / width, (top - tall) / height, _PANEL / width, tall / height)
                _draw(figure.add_axes(place), tile)
            top -= tall + _CAPTION + 0.22
        figure.suptitle(title, x=_SIDE / width, y=1 - 0.1 / height, ha="left", va="top")
    return figure


def _draw(axes: Axes, tile: Tile) -> None:
    height, width = tile.size
    axes.set_axis_off()
    axes.set_title(_short(tile.title), fontsize=6.5, loc="left", pad=3)
    extent = (0, width, height, 0)
    if tile.pixels is None:
        axes.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=MUTED, linestyle=":"))
        axes.text(width / 2, height / 2, "cannot be read", ha="center", va="center", fontsize=7, color=MUTED)
    else:
        axes.imshow(tile.pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
    for mark in tile.marks:
        _mark(axes, mark, tile.size)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.text(0, -0.02, "\n".join(tile.caption), transform=axes.transAxes, fontsize=6.5, va="top", linespacing=1.25)


def _mark(axes: Axes, mark: Mark, size: tuple[int, int]) -> None:
    color = _COLORS[mark.color % len(_COLORS)]
    height, width = size
    box = mark.box
    if mark.mask is not None and mark.mask.any():
        h, w = mark.mask.shape
        x, y = (np.arange(w) + 0.5) * width / w, (np.arange(h) + 0.5) * height / h
        axes.contour(x, y, mark.mask.astype(float), levels=[0.5], colors=color, linewidths=0.9)
        if box is None:
            down, across = np.flatnonzero(mark.mask.any(axis=1)), np.flatnonzero(mark.mask.any(axis=0))
            box = (
                across[0] * width / w,
                down[0] * height / h,
                (across[-1] + 1) * width / w,
                (down[-1] + 1) * height / h,
            )
    if box is None:
        return
    left, top, right, bottom = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=0.9))
    above, leftmost = top > 0.06 * height, left < 0.6 * width
    axes.text(
        left if leftmost else right,
        top if above else bottom,
        mark.label,
        fontsize=5,
        color="black",
        ha="left" if leftmost else "right",
        va="bottom" if above else "top",
        bbox={"facecolor": color, "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
        clip_on=True,
    )


def _short(title: str) -> str:
    if len(title) <= _TITLE_LETTERS:
        return title
    half = (_TITLE_LETTERS - 1) // 2
    return f"{title[:half]}…{title[-half:]}"
