"""Several SAEs side by side: what they keep, how sparsely, what their latents mean and how few recover the layer."""

__all__ = ["plot_pareto", "plot_quality_and_recovery", "plot_recovery"]

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from mammosae_plugin.arguments import one_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.schema.names import readable
from mammosae_plugin.visualization.labels import label_points
from mammosae_plugin.visualization.style import ACTIVATE, INK, MUTED, OTHER_LATENT, RANDOM, SERIES, figure_style

_MEASURES = {
    "l0": "active latents per row (L0)",
    "explained_variance": "explained variance",
    "monosemanticity": "monosemanticity",
    "recovery": "recovered share",
}
_PLANES = (
    ("A  Reconstruction and sparsity", "l0", "explained_variance"),
    ("B  Recovery and sparsity", "l0", "recovery"),
    ("C  Monosemanticity and sparsity", "l0", "monosemanticity"),
    ("D  Monosemanticity and recovery", "recovery", "monosemanticity"),
)
_MARKERS = "osD^vP<>"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_CHANCE: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": (0, (1, 2))}
_MOST_NAMED = 12  # SAEs on the front that are named; the others are in the table
_MOST_LINES = len(SERIES)


def plot_pareto(ranking: pd.DataFrame, *, title: str = "Reconstruction, sparsity, recovery and meaning") -> Figure:
    """SAEs in the planes of reconstruction, sparsity, recovery and monosemanticity; those on the Pareto front named.

    Args:
        ranking: one row per SAE, as `analysis.rank_saes` gives them: name, l0, explained_variance, monosemanticity,
            recovery, on_front and, if they are known, monosemanticity_sd and recovery_sd (over seeds, drawn as bars)
            and n_seeds. A column control that is true marks SAEs that only show what needs no training.
        title: heading of the figure.

    Returns:
        The figure. A panel whose measures no SAE has says so.

    Raises:
        InputError: no row, or a column that lacks.
    """
    _need(ranking, ("name", "on_front", *_MEASURES), "ranking")
    control = _flags(ranking, "control")
    front = _flags(ranking, "on_front") & ~control
    named = np.flatnonzero(front)[:_MOST_NAMED]
    numbers = {int(row): str(place + 1) for place, row in enumerate(named)}
    with figure_style():
        figure = Figure(figsize=(7.4, 6.5 + 0.17 * -(-len(named) // 2)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(2, 2)
        clouds = []
        for axes, (heading, x, y) in zip(grid.flat, _PLANES, strict=True):
            axes.set_title(heading)
            clouds.append(_plane(axes, ranking, x, y, front, control))
        point: dict[str, Any] = {"linestyle": "none", "markersize": 6}
        other: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": MUTED, "marker": "o", "markersize": 5}
        handles = [
            Line2D([], [], **point, marker="o", color=ACTIVATE, mec="white", label="on the Pareto front"),
            Line2D([], [], **{**point, **other}, label="another is at least as good in all"),
        ]
        if control.any():
            handles.append(Line2D([], [], **point, marker="X", color=INK, mec="white", label="control"))
        if any(np.isfinite(_column(ranking, f"{name}_sd")).any() for name in ("monosemanticity", "recovery")):
            seeds = f" over {int(ranking['n_seeds'].max())} seeds" if "n_seeds" in ranking else ""
            handles.append(Line2D([], [], color=MUTED, linewidth=1, label=f"± 1 SD{seeds}"))
        for row, number in numbers.items():
            told = textwrap.shorten(str(ranking["name"].iloc[row]), 52, placeholder="…")
            handles.append(Line2D([], [], linestyle="none", label=f"{number}   {told}"))
        if front.sum() > len(named):
            handles.append(Line2D([], [], linestyle="none", label=f"and {front.sum() - len(named)} more on the front"))
        figure.legend(handles=handles, loc="outside lower left", ncols=2, columnspacing=2)
        figure.suptitle(f"{title} ({len(ranking)} SAEs)", x=0.01, ha="left")
        figure.draw_without_rendering()
        for axes, points in zip(grid.flat, clouds, strict=True):
            there = [int(row) for row in named if np.isfinite(points[row]).all()]
            labels = [(*points[row].tolist(), numbers[row], ACTIVATE) for row in there]
            others = np.delete(points, there, axis=0)
            label_points(figure, axes, labels, others[np.isfinite(others).all(axis=1)])
    return figure


def _plane(
    axes: Axes, ranking: pd.DataFrame, x: str, y: str, front: NDArray[np.bool_], control: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Draw the SAEs in one plane, and return where they are (n, 2), NaN where they have no place."""
    points = np.column_stack([_column(ranking, x), _column(ranking, y)])
    points[~np.isfinite(points).all(axis=1)] = np.nan
    axes.set_xlabel(_MEASURES[x] + (", fewer is sparser" if x == "l0" else ""))
    axes.set_ylabel(_MEASURES[y])
    if not np.isfinite(points).any():
        _nothing(axes, "no SAE has both")
        return points
    for name, at, direction in ((x, 0, "x"), (y, 1, "y")):
        spread = _column(ranking, f"{name}_sd")
        has = np.isfinite(spread) & np.isfinite(points[:, at])
        if has.any():
            bars: dict[str, Any] = {f"{direction}err": spread[has]}
            axes.errorbar(*points[has].T, **bars, linestyle="none", color=MUTED, linewidth=0.8, alpha=0.6, zorder=1)
    rest = ~front & ~control
    marks: tuple[tuple[NDArray[np.bool_], dict[str, Any]], ...] = (
        (rest, {"facecolor": "white", "edgecolor": MUTED, "s": 22, "linewidth": 0.9}),
        (front, {"facecolor": ACTIVATE, "edgecolor": "white", "s": 34, "linewidth": 0.6}),
        (control, {"facecolor": INK, "edgecolor": "white", "s": 42, "linewidth": 0.6, "marker": "X"}),
    )
    for chosen, style in marks:
        axes.scatter(points[chosen, 0], points[chosen, 1], zorder=3, **style)
    if x == "l0":
        _log_axis(axes, points[:, 0])
    axes.margins(0.12)
    return points


def plot_quality_and_recovery(
    rows: pd.DataFrame,
    *,
    ks: Sequence[int] = (1, 3, 10, 50),
    measure: str = "recovered",
    title: str = "SAE quality and recovery",
) -> Figure:
    """Eight panels over L0: what SAEs of a grid keep, tell and mean, and what 1, 3, 10 and 50 latents recover (SAIL).

    Args:
        rows: one row per SAE: model, l0 and, where they are known, explained_variance, sparse_auroc and dense_auroc
            (means over targets), alive (latents), monosemanticity, and of each k `<measure>_<k>`; `<column>_low` and
            `_high` are drawn as intervals. monosemanticity_chance is a dotted line. SAEs of a model that share their
            `width` are joined by a line.
        ks: four numbers of latents.
        measure: "recovered", the share above chance, or "auroc".
        title: heading of the figure.

    Returns:
        The figure. A colour per model, a line and a mark per width. A panel that no SAE has a value for says so.

    Raises:
        InputError: another measure, other than four numbers of latents, more than six models, no row, no column model
            or l0.
    """
    one_of(measure, "measure", ("recovered", "auroc"))
    _need(rows, ("model", "l0"), "rows")
    if len(ks) != 4:
        raise InputError(f"ks hold {len(ks)} numbers of latents: the figure has a place for four")
    models = list(dict.fromkeys(rows["model"]))
    if len(models) > len(SERIES):
        raise InputError(f"there are {len(models)} models, and colours for {len(SERIES)}: draw several figures")
    widths = list(dict.fromkeys(rows["width"])) if "width" in rows else [None]
    share = "share above chance" if measure == "recovered" else "mean AUROC"
    panels = [
        ("explained_variance", "Reconstruction", "explained variance"),
        ("sparse_auroc", "Probe on all latents", "mean AUROC over targets"),
        ("alive", "Feature activity", "latents that ever fire"),
        ("monosemanticity", "Monosemanticity", "mean of the best latents"),
        *((f"{measure}_{k}", f"Recovery, {k} latent{'s' if k > 1 else ''}", share) for k in ks),
    ]
    with figure_style():
        figure = Figure(figsize=(10.6, 5.5), layout="constrained")
        grid = figure.subplots(2, 4)
        for axes, letter, (column, heading, unit) in zip(grid.flat, "ABCDEFGH", panels, strict=True):
            axes.set_title(f"{letter}  {heading}")
            axes.set_ylabel(unit)
            if not np.isfinite(_column(rows, column)).any():
                _nothing(axes, "not measured")
                continue
            _over_l0(axes, rows, column, models, widths)
            if column in ("sparse_auroc", *(f"auroc_{k}" for k in ks)):
                _dense_lines(axes, rows, models)
                axes.axhline(0.5, **_CHANCE)
            elif column.startswith("recovered"):
                axes.axhline(0, **_CHANCE)
            chance = _column(rows, "monosemanticity_chance")
            if column == "monosemanticity" and np.isfinite(chance).any():
                axes.axhline(float(np.nanmean(chance)), **_CHANCE)
        for axes in grid[1]:
            axes.set_xlabel("active latents per row (L0)")
        _share_limits(grid[1])
        handles = [Line2D([], [], color=SERIES[place], linewidth=3, label=model) for place, model in enumerate(models)]
        if widths != [None]:
            handles += [
                Line2D([], [], color=MUTED, linestyle=_dashes(place), marker=_marker(place), mec="white",
                       label=f"{width:,} latents" if isinstance(width, (int, np.integer)) else str(width))
                for place, width in enumerate(widths)
            ]  # fmt: skip
        if np.isfinite(_column(rows, "dense_auroc")).any():
            handles.append(
                Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="dense layer, by model")
            )
        handles.append(Line2D([], [], **_CHANCE, label="chance"))
        figure.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 8), columnspacing=1.5)
        figure.suptitle(f"{title} ({len(rows)} SAEs)", x=0.01, ha="left")
    return figure


def _over_l0(axes: Axes, rows: pd.DataFrame, column: str, models: list[Any], widths: list[Any]) -> None:
    for place, model in enumerate(models):
        for number, width in enumerate(widths):
            own = rows[rows["model"] == model]
            if width is not None:
                own = own[own["width"] == width]
            own = own[np.isfinite(_column(own, column)) & np.isfinite(_column(own, "l0"))].sort_values("l0")
            x, y = _column(own, "l0"), _column(own, column)
            color = SERIES[place]
            axes.vlines(
                x, _column(own, f"{column}_low"), _column(own, f"{column}_high"), color=color, linewidth=0.9, alpha=0.5
            )
            axes.plot(
                x, y, color=color, marker=_marker(number), linestyle=_dashes(number), linewidth=1.1, alpha=0.9,
                markersize=5, markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
    _log_axis(axes, _column(rows, "l0"))
    axes.margins(y=0.08)


def _dense_lines(axes: Axes, rows: pd.DataFrame, models: list[Any]) -> None:
    for place, model in enumerate(models):
        dense = _column(rows[rows["model"] == model], "dense_auroc")
        if np.isfinite(dense).any():
            axes.axhline(float(np.nanmean(dense)), color=SERIES[place], linewidth=1, linestyle=(0, (4, 2)))


def plot_recovery(
    rows: pd.DataFrame, *, by: str = "label", title: str = "What a few latents recover of the dense layer"
) -> Figure:
    """Recovered share against the number of latents, a line per label or per SAE, beside permuted labels.

    Args:
        rows: `Recovery.curves` (by "label"), or `Recovery.summary` of several SAEs with a column that names them:
            k, recovered, recovered_low, recovered_high, recovered_permuted. Rows without a share are left out.
        by: the column that says which line a row is of.
        title: heading of the figure.

    Returns:
        The figure. With more lines than six, only the six with the most recovered at the largest k are named and
        coloured. 0 is chance, 1 what the dense probe tells.

    Raises:
        InputError: a column that lacks, or no row with a share.
    """
    _need(rows, (by, "k", "recovered"), "rows")
    known = rows[np.isfinite(_column(rows, "recovered"))].sort_values("k")
    if not len(known):
        raise InputError("no row has a recovered share: the dense probe tells none of the labels")
    last = known.groupby(by, sort=False)["recovered"].last().sort_values(ascending=False, kind="stable")
    named = list(last.index[:_MOST_LINES])
    colors = {name: SERIES[place] for place, name in enumerate(sorted(named, key=list(dict.fromkeys(rows[by])).index))}
    ks = sorted(set(known["k"].tolist()))
    with figure_style():
        n_lines = len(colors) + 4
        figure = Figure(figsize=(5.4, 3.5 + 0.17 * -(-n_lines // 2)), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, **_CHANCE, label="chance")
        axes.axhline(1, color=INK, linewidth=1.0, linestyle=(0, (5, 3)), label="dense layer")
        for name in last.index[_MOST_LINES:]:
            own = known[known[by] == name]
            axes.plot(own["k"], own["recovered"], color=OTHER_LATENT, linewidth=0.9, zorder=1)
        if len(last) > _MOST_LINES:
            axes.plot([], [], color=OTHER_LATENT, linewidth=0.9, label=f"{len(last) - _MOST_LINES} others")
        by_chance = known.groupby("k")[["recovered_permuted"]].mean() if "recovered_permuted" in known else None
        if by_chance is not None and np.isfinite(_column(by_chance, "recovered_permuted")).any():
            axes.plot(
                by_chance.index, by_chance["recovered_permuted"], color=RANDOM, linewidth=1.2,
                linestyle=(0, (4, 1.5, 1, 1.5)), label="permuted labels, mean",
            )  # fmt: skip
        has_interval = False
        for place, (name, color) in enumerate(colors.items()):
            own = known[known[by] == name]
            low, high = _column(own, "recovered_low"), _column(own, "recovered_high")
            has_interval |= bool(np.isfinite(low).any())
            if len(colors) <= 3:
                axes.fill_between(own["k"], low, high, color=color, alpha=0.18, linewidth=0)
            else:  # bands would cover each other
                shift = 1.025 ** (place - (len(colors) - 1) / 2)
                axes.vlines(own["k"] * shift, low, high, color=color, linewidth=0.9, alpha=0.45)
            axes.plot(
                own["k"], own["recovered"], color=color, marker=_marker(place), linestyle=_dashes(place),
                markeredgecolor="white", markeredgewidth=0.5, label=textwrap.shorten(_told(name), 34, placeholder="…"),
            )  # fmt: skip
        _log_axis(axes, np.array(ks, dtype=float), ticks=ks)
        drawn = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata(), dtype=float) if np.isfinite(y)]
        axes.set_ylim(min(-0.1, min(drawn) - 0.06), max(1.1, max(drawn) + 0.06))
        axes.set_xlabel("k, latents that the probe may use")
        axes.set_ylabel("share of the dense AUROC above 0.5")
        n_labels = len(last) if by == "label" else known["n_labels"].max() if "n_labels" in known else 0
        said = [f"{int(n_labels)} label{'s' if n_labels > 1 else ''}"] if n_labels else []
        said += ["95 % intervals over groups"] if has_interval else []
        axes.set_title(", ".join(said), fontsize=8, fontweight="normal", color=MUTED)
        figure.legend(loc="outside lower left", ncols=2, columnspacing=1.6)
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def _told(name: Any) -> str:
    return readable(str(name).replace("=", ": ", 1))


def _marker(place: int) -> str:
    return _MARKERS[place % len(_MARKERS)]


def _dashes(place: int) -> Any:
    return _DASHES[place % len(_DASHES)]


def _column(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column as numbers, NaN where it is missing or lacks."""
    if name not in rows:
        return np.full(len(rows), np.nan)
    return rows[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _flags(rows: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    return rows[name].fillna(False).to_numpy(dtype=bool) if name in rows else np.zeros(len(rows), dtype=bool)


def _need(rows: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in rows]
    if missing or not len(rows):
        raise InputError(f"{name} have no {', '.join(missing) or 'row'}: there is nothing to draw")


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def _log_axis(axes: Axes, values: NDArray[np.float64], *, ticks: Sequence[int] | None = None) -> None:
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return
    low, high = float(known.min()), float(known.max())
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.25)
    if ticks is None:
        steps = [step * 10.0**power for power in range(-3, 7) for step in (1, 2, 5)]
        ticks = [step for step in steps if low / 1.25 <= step <= high * 1.25]  # type: ignore[misc]
        if len(ticks) > 5:
            ticks = [step for step in ticks if f"{step:e}"[0] == "1"]
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _share_limits(panels: Sequence[Axes]) -> None:
    """One scale for panels of one measure, so that they can be read against each other."""
    drawn = [axes for axes in panels if axes.lines]
    if drawn:
        ends = np.array([axes.get_ylim() for axes in drawn])
        for axes in drawn:
            axes.set_ylim(ends[:, 0].min(), ends[:, 1].max())
