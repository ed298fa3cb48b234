"""Which lesions maps find: free-response ROC curves, and the same in a table."""

__all__ = ["best_of", "plot_froc", "table_lesions"]

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mammosae_plugin.schema.results import Results, Row, number, pairs
from mammosae_plugin.visualization.style import ACTIVATE, INK, MUTED, SERIES, figure_style
from mammosae_plugin.visualization.tables import METHODS, Estimate, PValue, estimate

_OTHER = "#b9c1c9"  # latents that are not the best
_LINES: dict[str, dict[str, Any]] = {
    "latent": {"color": ACTIVATE, "marker": "o", "linewidth": 1.9},
    "group": {"color": SERIES[1], "marker": "D", "linestyle": (0, (6, 1.5))},
    "channel": {"color": SERIES[2], "marker": "s", "linestyle": (0, (4, 1.5, 1, 1.5))},
    "grad_cam": {"color": SERIES[3], "marker": "^", "linestyle": (0, (2, 1.2))},
}


def best_of(rows: Sequence[Row], method: str) -> Row | None:
    """The row of a method with the highest CPM, the first of equal ones; None without one."""
    own = [row for row in rows if row["method"] == method and np.isfinite(number(row["all_cpm"]))]
    return max(own, key=lambda row: (number(row["all_cpm"]), -row["rank"]), default=None)


def plot_froc(rows: Sequence[Row], *, models: Sequence[str], title: str) -> Figure:
    """Sensitivity against false positives per image on all test images, a panel per model.

    Args:
        rows: rows of lesions of one concept: model, method, rank, latent, n_latents, fppi and all_sensitivity with
            _low, _high and _chance (lists), all_cpm.
        models: the models to show, in order.
        title: heading of the figure.

    Returns:
        The figure. The best latent has its interval as a band; its chance, what it finds of other patients' lesions,
        is dotted. Of raw channels the best is drawn. 0 false positives per image have no place on the axis.
    """
    with figure_style():
        figure = Figure(figsize=(3.5 * len(models) + 0.5 if len(models) > 1 else 4.8, 3.9), layout="constrained")
        grid = figure.subplots(1, len(models), sharey=True, squeeze=False)
        for axes, model in zip(grid[0], models, strict=True):
            _panel(axes, [row for row in rows if row["model"] == model], model)
        grid[0, 0].set_ylabel("sensitivity: share of lesions found")
        figure.suptitle(title, x=0.01, ha="left")
        handles: dict[str, Artist] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        n_columns = 2 if len(models) > 1 else 1
        handles = {
            label: handles[label] for label in sorted(handles, key=lambda label: label.endswith("other latents"))
        }
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=n_columns)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], model: str) -> None:
    best = {method: best_of(rows, method) for method in _LINES}
    latents = [row for row in rows if row["method"] == "latent"]
    other = f"the {len(latents) - 1} other latents"
    for row in latents:
        if row is not best["latent"]:
            axes.plot(*_curve(row, ""), color=_OTHER, linewidth=0.8, zorder=1.5, label=other)
    n_summed = best["group"]["n_latents"] if best["group"] else 0
    labels = {
        "latent": f"latent of the highest CPM of {len(latents)} (95 % interval)",
        "group": f"sum of the {n_summed} best latents, weighted by logit effect",
        "channel": "raw channel of the highest CPM",
        "grad_cam": "Grad-CAM",
    }
    for method, shown in best.items():
        if shown is not None:
            style = {**_LINES[method], "markeredgecolor": "white", "markeredgewidth": 0.5, "label": labels[method]}
            axes.plot(*_curve(shown, ""), **style)
    if (first := best["latent"]) is not None:
        x, low = _curve(first, "_low")
        axes.fill_between(x, low, _curve(first, "_high")[1], color=ACTIVATE, alpha=0.18, linewidth=0)
        chance = "that latent on other patients' lesions (chance)"
        axes.plot(*_curve(first, "_chance"), color=INK, linewidth=1.1, linestyle=(0, (1, 1.6)), label=chance)
    axes.set_title(f"{model}: latent {first['latent']}, CPM {number(first['all_cpm']):.2f}" if first else model)
    axes.set_ylim(-0.02, 1.02)
    ticks = sorted({float(x) for row in rows for x in row["fppi"] if x > 0})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _fraction(value)))
    axes.set_xlabel("false positives per image")
    axes.tick_params(labelleft=True)
    if not latents:
        axes.text(0.5, 0.5, "nothing was judged", transform=axes.transAxes, ha="center", color=MUTED)


def _curve(row: Row, end: str) -> tuple[np.ndarray, np.ndarray]:
    x = np.array(row["fppi"], dtype=float)
    y = np.array([number(value) for value in row[f"all_sensitivity{end}"] or [None] * len(x)])
    return x[x > 0], y[x > 0]


def _fraction(value: float) -> str:
    told = Fraction(value).limit_denominator(64)
    return f"{told}" if abs(float(told) - value) < 1e-9 else f"{value:g}"


def table_lesions(results: Results) -> pd.DataFrame:
    """Every latent that was looked for lesions in, their weighted sum, the best raw channel and Grad-CAM.

    One row each: CPM on all images with chance and adjusted p, sensitivity at the number of false positives per image
    that lies nearest to 1, CPM with false positives in healthy images, of breasts, pointing game, energy inside, AP,
    and of a sum what it gains over its best latent.
    """
    rows: list[Row] = []
    of_pair = {pair: [row for row in results.get("lesions", []) if (row["model"], row["concept"]) == pair]
               for pair in pairs(results)}  # fmt: skip
    for (model, concept), found in of_pair.items():
        channel = best_of(found, "channel")
        for row in found:
            if row["method"] == "channel" and row is not channel:
                continue
            at = int(np.argmin([abs(np.log2(max(x, 1e-9))) for x in row["fppi"]]))
            near = {end: [number(x) for x in row[f"all_sensitivity{end}"] or []] for end in ("", "_low", "_high")}
            point, low, high = (values[at] if values else float("nan") for values in near.values())
            sensitivity = Estimate(point, low, high)
            named = {"group": f"sum of {row['n_latents']} latents", "latent": "latent", **METHODS}[row["method"]]
            rows.append(
                {
                    "model": model,
                    "concept": concept,
                    "map": named if row["method"] != "channel" else f"best {named}",
                    "latent or channel": row["latent"] if row["latent"] >= 0 else None,
                    "CPM": estimate(row, "all_cpm"),
                    "by chance": Estimate(number(row["all_cpm_chance"])),
                    "adjusted p": PValue(number(row["p_adjusted"])),
                    f"found at {_fraction(row['fppi'][at])} per image": sensitivity,
                    "CPM, healthy": estimate(row, "healthy_cpm"),
                    "healthy, by chance": Estimate(number(row["healthy_cpm_chance"])),
                    "CPM, breasts": estimate(row, "breast_cpm"),
                    "breasts, by chance": Estimate(number(row["breast_cpm_chance"])),
                    "pointing": estimate(row, "pointing"),
                    "pointing by chance": Estimate(number(row["pointing_chance"])),
                    "energy inside": estimate(row, "energy"),
                    "energy by chance": Estimate(number(row["energy_chance"])),
                    "AP": Estimate(number(row["average_precision"])),
                    "gain over its best": estimate(row, "gain", signed=True),
                }
            )
    frame = pd.DataFrame(rows, dtype=object)
    empty = [name for name in ("CPM, breasts", "breasts, by chance", "AP", "gain over its best") if name in frame
             and all(np.isnan(cell.value) for cell in frame[name])]  # fmt: skip
    return frame.drop(columns=empty)
