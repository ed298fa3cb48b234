"""Figure 2: how well the classifier still works when only the best latents are kept, or when they are switched off."""

__all__ = ["MODES", "plot_sweep", "plot_sweeps"]

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from mammosae_plugin.visualization.style import ACTIVATE, DEACTIVATE, INK, MASS, MUTED, RANDOM, figure_style

MODES = ("activate", "deactivate")
_COLOR = {"activate": ACTIVATE, "deactivate": DEACTIVATE}
_MARKER = {"activate": "o", "deactivate": "s"}
_HEADING = {"activate": "Activate: keep the group, zero the rest", "deactivate": "Deactivate: zero the group"}
_LEGEND = (
    "k best latents per class, act",
    "k best",
    "unmodified",
    "random live latents, same number",
    "random",
    "chance",
)
_SHORT_HEADING = {"activate": "only the group kept", "deactivate": "the group switched off"}


def plot_sweep(
    rows: pd.DataFrame, *, title: str, reference_auroc: float | None, n_controls: int | None = None
) -> Figure:
    """AUROC against k for one model and concept, a panel per mode (Figure 2 of the Mammo-SAE paper).

    Args:
        rows: as `intervention.sweep` returns them, one row per (mode, k): mode, k, auroc, auroc_low, auroc_high,
            random_auroc_mean, random_auroc_low, random_auroc_high and, if present, mass_auroc_mean, _low, _high.
        title: heading of the figure.
        reference_auroc: AUROC of the unmodified model, drawn as a dashed line; `None` leaves the line out.
        n_controls: random groups beside every group; one alone has neither a mean nor a range in the legend.

    Returns:
        The figure. k counts latents per class: the group is the union of the k best latents of every class. k = 0 has
        its own place left of 1 on an axis that is otherwise logarithmic.
    """
    modes = [mode for mode in MODES if (rows["mode"] == mode).any()]
    with figure_style():
        figure = Figure(figsize=(3.5 * max(len(modes), 1) + 0.1, 3.5), layout="constrained")
        grid = figure.subplots(1, max(len(modes), 1), sharey=True, squeeze=False)
        for axes, mode in zip(grid[0], modes, strict=False):
            _panel(axes, rows, mode, reference_auroc, n_controls)
            axes.set_title(_HEADING[mode])
        _finish(figure, grid, title)
    return figure


def plot_sweeps(
    rows: pd.DataFrame,
    *,
    models: Sequence[str],
    title: str,
    reference_aurocs: Mapping[str, float] | None = None,
    n_controls: int | None = None,
) -> Figure:
    """AUROC against k for one concept, all models side by side: a column per model, a row per mode.

    Args:
        rows: as for `plot_sweep`, with a further column `model`.
        models: the models to show, in order.
        title: heading of the figure.
        reference_aurocs: model to AUROC of the unmodified model.
        n_controls: as for `plot_sweep`.
    """
    modes = [mode for mode in MODES if (rows["mode"] == mode).any()] or list(MODES)
    with figure_style():
        width = 3.4 * len(models) + 0.4 if len(models) > 1 else 4.6
        figure = Figure(figsize=(width, 2.55 * len(modes) + 0.8), layout="constrained")
        grid = figure.subplots(len(modes), len(models), sharex=True, sharey=True, squeeze=False)
        for row, mode in enumerate(modes):
            for column, model in enumerate(models):
                axes = grid[row, column]
                reference = (reference_aurocs or {}).get(model)
                _panel(axes, rows[rows["model"] == model], mode, reference, n_controls)
                axes.set_title(f"{model}: {_SHORT_HEADING[mode]}")
        _finish(figure, grid, title)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, mode: str, reference: float | None, n_controls: int | None) -> None:
    kinds = ("one group", "one group") if n_controls == 1 else ("mean, range", "mean")
    rows = rows[rows["mode"] == mode].sort_values("k")
    k = rows["k"].to_numpy(dtype=float)

    def column(name: str) -> np.ndarray:
        return rows[name].to_numpy(dtype=float) if name in rows else np.full(len(rows), np.nan)

    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
    if reference is not None and np.isfinite(reference):
        axes.axhline(reference, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="unmodified model")
    for name, color, style, label in (
        ("random", RANDOM, "-", f"random live latents, same number ({kinds[0]})"),
        ("mass", MASS, (0, (4, 1.5, 1, 1.5)), f"random live latents, same activation ({kinds[1]})"),
    ):
        mean = column(f"{name}_auroc_mean")
        if np.isfinite(mean).any():
            low, high = column(f"{name}_auroc_low"), column(f"{name}_auroc_high")
            if name == "random":  # a second band would hide more than it shows; its range is in the table
                axes.fill_between(k, low, high, color=color, alpha=0.28, linewidth=0)
            axes.plot(k, mean, color=color, linewidth=1.2, linestyle=style, label=label)
    color = _COLOR[mode]
    axes.fill_between(k, column("auroc_low"), column("auroc_high"), color=color, alpha=0.22, linewidth=0)
    axes.plot(
        k,
        column("auroc"),
        color=color,
        marker=_MARKER[mode],
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=f"k best latents per class, {mode}d (95 % interval)",
    )
    _k_axis(axes, k)


def _k_axis(axes: Axes, k: np.ndarray) -> None:
    largest = max(k.max(initial=1.0), 1.0)
    axes.set_xscale("symlog", linthresh=1, linscale=0.55)
    axes.set_xlim(-0.15, largest * 1.35)
    powers = [10.0**n for n in range(int(np.floor(np.log10(largest))) + 1)]
    if largest > 2.5 * powers[-1]:
        powers.append(largest)  # the last k is the whole SAE: name it unless a label stands close by
    axes.xaxis.set_major_locator(FixedLocator([0.0, *powers]))
    axes.xaxis.set_minor_locator(FixedLocator([value for value in k if value not in powers and value > 0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=2.5, width=0.6)
    axes.grid(axis="x", visible=False)


def _finish(figure: Figure, grid: np.ndarray, title: str) -> None:
    lows = [np.nanmin(line.get_ydata(), initial=0.5) for axes in grid.flat for line in axes.get_lines()]
    bands = [
        np.nanmin(p.vertices[:, 1], initial=0.5) for axes in grid.flat for c in axes.collections for p in c.get_paths()
    ]
    grid[0, 0].set_ylim(max(0.0, min([*lows, *bands]) - 0.03), 1.02)
    for axes in grid[:, 0]:
        axes.set_ylabel("AUROC")
    for axes in grid[-1, :]:
        axes.set_xlabel("k, latents per class (the group is their union)")
    for axes in grid.flat:
        axes.tick_params(labelbottom=True)
    figure.suptitle(title, x=0.01, ha="left")
    handles: dict[str, Artist] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = sorted(handles, key=lambda label: next(n for n, start in enumerate(_LEGEND) if label.startswith(start)))
    n_columns = 2 if figure.get_figwidth() > 6 else 1
    figure.legend(
        [handles[label] for label in order], order, loc="outside lower left", ncols=n_columns, columnspacing=1.6
    )
