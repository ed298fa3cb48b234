"""Figures 4 and 5: mean activation of every live latent in images with the finding against images without it."""

__all__ = ["plot_class_means"]

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mammosae_plugin.errors import InputError
from mammosae_plugin.schema.results import BACKGROUND, CONCEPT
from mammosae_plugin.visualization.labels import label_points, points_inside
from mammosae_plugin.visualization.style import (
    BACKGROUND_LATENT,
    CONCEPT_LATENT,
    INK,
    MUTED,
    OTHER_LATENT,
    figure_style,
)

_ROLES = {
    CONCEPT: (CONCEPT_LATENT, "^", "concept latent (AUROC beside it)"),
    BACKGROUND: (BACKGROUND_LATENT, "s", "background latent (AUROC beside it)"),
}
_NO_ROLE = (INK, "o", "leading latent without a role")
_NOTE_PLACES = (0.68, 0.82, 0.95)
"""Heights for the note above the dashed line; the first that covers the fewest points is taken."""


def plot_class_means(
    mean_0: np.ndarray,
    mean_1: np.ndarray,
    latents: np.ndarray,
    named: Sequence[tuple[int, str, float]],
    *,
    title: str,
    class_names: tuple[str, str] = ("images without the finding", "images with the finding"),
) -> Figure:
    """Class means (Equation 2 of the Mammo-SAE paper) of two classes against each other, one point per live latent.

    Args:
        mean_0: (n,) mean activation over positions and images of class 0, per live latent; not negative.
        mean_1: (n,) the same for class 1.
        latents: (n,) index of each latent.
        named: (latent, role, AUROC of the latent) of the latents to mark and label; roles "concept" and "background"
            have a mark of their own and the AUROC behind them in the label.
        title: heading of the figure.
        class_names: what the two classes are, for the axes (x, y).

    Both axes are logarithmic, with a place for zero, so that a latent that fires in one class only is still shown.
    Raises `InputError` when the arrays differ in length or a named latent is not among `latents`.
    """
    x, y = np.asarray(mean_0, dtype=float), np.asarray(mean_1, dtype=float)
    index = {int(latent): position for position, latent in enumerate(latents)}
    if not len(x) == len(y) == len(index):
        raise InputError(
            f"class means need equally long arrays of distinct latents, got {len(x)}, {len(y)}, {len(index)}"
        )
    absent = [latent for latent, *_ in named if latent not in index]
    if absent:
        raise InputError(f"named latents {absent[:3]} are not among the {len(index)} live latents")

    with figure_style():
        figure = Figure(figsize=(4.9, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        top, smallest = _scales(axes, np.concatenate([x, y]))
        axes.fill_between([0, top], [0, top], top, color=CONCEPT_LATENT, alpha=0.045, linewidth=0, zorder=0)
        axes.plot(
            [0, top], [0, top], color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1, label="equal in both"
        )
        marked = np.zeros(len(x), dtype=bool)
        marked[[index[latent] for latent, *_ in named]] = True
        axes.scatter(
            x[~marked],
            y[~marked],
            s=9,
            color=OTHER_LATENT,
            alpha=0.75,
            linewidth=0,
            zorder=2,
            label="other live latents",
        )
        for role, (color, marker, label) in (*_ROLES.items(), ("", _NO_ROLE)):
            at = [index[latent] for latent, given, _ in named if (given if given in _ROLES else "") == role]
            if at:
                axes.scatter(
                    x[at],
                    y[at],
                    s=38,
                    color=color,
                    marker=marker,
                    edgecolor="white",
                    linewidth=0.6,
                    zorder=4,
                    label=label,
                )
        axes.set_xlabel(f"mean activation, {class_names[0]}")
        axes.set_ylabel(f"mean activation, {class_names[1]}")
        note: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8, "color": MUTED, "fontstyle": "italic"}
        notes = [
            axes.text(0.02, _NOTE_PLACES[0], f"more in {class_names[1]} ↑", va="center", **note),
            axes.text(0.98, 0.025, f"more in {class_names[0]} →", ha="right", **note),
        ]
        figure.suptitle(textwrap.fill(title, 50), x=0.01, ha="left")
        figure.legend(loc="outside lower left", ncols=2)
        labels = [(x[index[one[0]]], y[index[one[0]]], _name(*one), one[1]) for one in named]
        _label(figure, axes, labels, np.column_stack([x[~marked], y[~marked]]), notes)
    return figure


def _scales(axes: Axes, values: np.ndarray) -> tuple[float, float]:
    """Give both axes the same symmetric-log scale; returns its upper end and the start of the logarithmic part."""
    positive = values[values > 0]
    largest = float(positive.max()) if len(positive) else 1.0
    # The smallest one in a hundred would stretch the axes over empty decades; they stand in the linear part near zero.
    low = float(np.quantile(positive, 0.01)) if len(positive) else 0.1
    threshold = 10.0 ** np.floor(np.log10(max(low, largest * 1e-7)))
    top = largest * 1.8
    decades = np.arange(int(round(np.log10(threshold))), int(np.floor(np.log10(top))) + 1)
    ticks = [0.0, *(10.0**decade for decade in decades)]

    def tick(value: float, _: object) -> str:
        return f"{value:g}" if value == 0 or threshold >= 1e-3 else f"$10^{{{round(np.log10(value))}}}$"

    for axis, set_scale, set_limits in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        set_scale("symlog", linthresh=threshold, linscale=0.5)
        set_limits(-0.12 * threshold, top)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(tick))
    axes.set_aspect("equal", adjustable="box")
    return top, threshold


def _name(latent: int, role: str, auroc: float) -> str:
    return f"{latent} ({auroc:.2f})" if role in _ROLES and np.isfinite(auroc) else str(latent)


def _label(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    others: np.ndarray,
    notes: Sequence[Text],
) -> None:
    """Name points (x, y, name, role) away from notes, of which the first is moved to where it covers the fewest points.

    Args:
        figure: The figure, laid out.
        axes: Where the points are.
        points: Those to name.
        others: (n, 2) x and y of the points without a name.
        notes: Texts in the axes.
    """
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    every = np.vstack([others, *([x, y] for x, y, _, _ in points)])
    cloud = axes.transData.transform(every) if len(every) else np.empty((0, 2))

    def covered_at(height: float) -> int:
        notes[0].set_y(height)
        return points_inside(notes[0].get_window_extent(renderer).padded(4 * figure.dpi / 72), cloud)

    notes[0].set_y(min(_NOTE_PLACES, key=covered_at))
    named = [(x, y, name, _ROLES[role][0] if role in _ROLES else INK) for x, y, name, role in points]
    label_points(figure, axes, named, others, [note.get_window_extent(renderer) for note in notes])
