"""A contact sheet: images with their boxes and masks, for the eye of whoever set the data up. It is never published."""

__all__ = ["Mark", "plot_contact_sheet", "Tile"]

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mammosae_plugin.errors import InputError
from mammosae_plugin.visualization.style import MUTED, figure_style

_COLORS = ("#56b4e9", "#e69f00", "#f0e442", "#00d4a0", "#ff8fc7", "#ff5f3b")  # bright enough on grey tissue
_PANEL, _GAP, _HEAD, _SIDE, _LINE = 2.0, 0.16, 0.62, 0.16, 0.116  # inches
_LETTERS = 34  # wide ones, of which so many fit below a panel


@dataclass(frozen=True)
class Mark:
    """One annotation of an image.

    Attributes:
        label: What it is of; the box bears a number that stands for it in all of the sheet.
        box: xyxy, in pixels of `Tile.size`.
    """

    label: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Tile:
    """One image of the sheet.

    Attributes:
        pixels: uint8 (h, w), the image in any size; None where it cannot be read.
        size: Height and width of the pixels that boxes are in.
        title: Its name, cut in the middle where it is long.
        caption: What is said below it; each begins on a line of its own.
        marks: Its annotations.
        mask: bool (h, w) of any size, which covers the whole image: what belongs to any finding; or None.
    """

    pixels: npt.NDArray[np.uint8] | None
    size: tuple[int, int]
    title: str
    caption: tuple[str, ...]
    marks: tuple[Mark, ...] = ()
    mask: npt.NDArray[np.bool_] | None = None


def plot_contact_sheet(tiles: Sequence[Tile], title: str, *, columns: int = 6) -> Figure:
    """Draw images side by side, each with its boxes and masks, and what is known of it below.

    Args:
        tiles: The images, in the order of reading.
        title: Of the sheet.
        columns: How many stand side by side.

    Raises:
        InputError: There is no image.
    """
    if not tiles:
        raise InputError("a contact sheet needs at least one image")
    labels = dict.fromkeys(mark.label for tile in tiles for mark in tile.marks)
    numbers = {label: number for number, label in enumerate(labels)}
    captions = [_wrapped(tile, numbers) for tile in tiles]
    columns = min(columns, len(tiles))
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    tallest = [min(max(_PANEL * tiles[at].size[0] / tiles[at].size[1] for at in row), 2 * _PANEL) for row in rows]
    below = [0.3 + _LINE * max(len(captions[at]) for at in row) for row in rows]
    width = max(2 * _SIDE + columns * _PANEL + (columns - 1) * _GAP, 6.0)
    height = _HEAD + sum(tallest) + sum(below)
    with figure_style():
        figure = Figure(figsize=(width, height))
        top = height - _HEAD
        for row, tall, foot in zip(rows, tallest, below, strict=True):
            for place, at in enumerate(row):
                left = _SIDE + place * (_PANEL + _GAP)
                axes = figure.add_axes((left / width, (top - tall) / height, _PANEL / width, tall / height))
                _draw(axes, tiles[at], captions[at], numbers)
            top -= tall + foot
        figure.suptitle(title, x=_SIDE / width, y=1 - 0.1 / height, ha="left", va="top")
    return figure


def _wrapped(tile: Tile, numbers: Mapping[str, int]) -> list[str]:
    """The lines below an image: what its numbers stand for comes last."""
    own = sorted({numbers[mark.label] for mark in tile.marks})
    names = list(numbers)
    said = [*tile.caption, *(f"{number + 1} {names[number]}" for number in own)]
    return [line for text in said for line in textwrap.wrap(text, _LETTERS, subsequent_indent="  ")]


def _draw(axes: Axes, tile: Tile, caption: Sequence[str], numbers: Mapping[str, int]) -> None:
    height, width = tile.size
    axes.set_axis_off()
    axes.set_title(_short(tile.title), fontsize=6.5, loc="left", pad=3)
    axes.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=MUTED, linewidth=0.6))
    if tile.pixels is None:
        axes.text(width / 2, height / 2, "cannot be read", ha="center", va="center", fontsize=7, color=MUTED)
    else:
        extent = (0, width, height, 0)
        axes.imshow(tile.pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
    if tile.mask is not None and tile.mask.any():
        h, w = tile.mask.shape
        x, y = (np.arange(w) + 0.5) * width / w, (np.arange(h) + 0.5) * height / h
        axes.contour(x, y, tile.mask.astype(float), levels=[0.5], colors="white", linewidths=0.6, linestyles=":")
    for mark in tile.marks:
        _mark(axes, mark, numbers[mark.label], tile.size)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.annotate(
        "\n".join(caption),
        (0, 0),
        xycoords="axes fraction",
        xytext=(0, -3),
        textcoords="offset points",
        fontsize=6.5,
        va="top",
        linespacing=1.2,
    )


def _mark(axes: Axes, mark: Mark, number: int, size: tuple[int, int]) -> None:
    color = _COLORS[number % len(_COLORS)]
    left, top, right, bottom = mark.box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=0.9))
    is_above = top > 0.06 * size[0]
    axes.text(
        left + 0.01 * size[1],
        top if is_above else bottom,
        str(number + 1),
        fontsize=5,
        color="black",
        va="bottom" if is_above else "top",
        bbox={"facecolor": color, "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
        clip_on=True,
    )


def _short(title: str) -> str:
    if len(title) <= _LETTERS - 2:
        return title
    half = (_LETTERS - 3) // 2
    return f"{title[:half]}…{title[-half:]}"
