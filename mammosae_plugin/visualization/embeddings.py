"""Figures of a study of embeddings: levels, what probes tell, how pure latents are, what retrieval finds."""

__all__ = ["METHOD_NAMES", "METHODS", "MOST_SERIES", "plot_coherence", "plot_levels", "plot_probes", "plot_retrieval"]

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammosae_plugin.datasets.concepts import PRESENT
from mammosae_plugin.schema.names import readable
from mammosae_plugin.visualization.style import INK, MUTED, SERIES, figure_style

MOST_SERIES = len(SERIES)
"""How many SAEs one figure can tell apart; of more it shows the first."""
_MARKERS = "os^Dv<"
_PER_ROW = 4
_SHORT = 20  # letters of a name, of which three stand side by side below a figure
METHODS = ("cosine", "fingerprint", "bm25", "dense", "random")
"""The methods of retrieval that are shown, in order."""
METHOD_NAMES = {"cosine": "all latents", "bm25": "BM25", "dense": "vectors"}
"""What readers call a method of retrieval, where it is not its own name."""


def plot_levels(quality: pd.DataFrame, *, title: str) -> Figure:
    """Explained variance against L0, a point per level of each SAE, joined from the smallest to the largest.

    Args:
        quality: The rows of one split of the table `quality`.
        title: Heading.
    """
    with figure_style():
        series = _series(quality)
        figure = Figure(figsize=(6.6, 3.1), layout="constrained")
        axes = figure.subplots()
        for number, (name, own) in enumerate(series):
            axes.plot(own["l0"], own["explained_variance"], **_style(number), label=name)
            if number < 2:
                for row in own.to_dict("records"):
                    axes.annotate(
                        f"{row['level']:,}",
                        (row["l0"], row["explained_variance"]),
                        xytext=(0, 6 if number == 0 else -11),
                        textcoords="offset points",
                        ha="center",
                        fontsize=7,
                        color=MUTED,
                    )
        _plain_log(axes, quality["l0"])
        axes.set_xlabel("L0: latents that fire per image")
        axes.set_ylabel("explained variance")
        low = float(quality["explained_variance"].min())
        axes.set_ylim(min(0.0, low - 0.05 * abs(low)), 1.04)
        axes.margins(x=0.12)
        axes.set_title(title)
        _legend(figure, axes, len(series))
    return figure


def plot_probes(probes: pd.DataFrame, *, title: str) -> Figure:
    """AUROC against the number of latents that a probe may use, a panel per label; dashed: the probe on the vectors.

    Args:
        probes: The table `probes`.
        title: Heading.
    """
    labels = _labels(probes)
    codes = probes[probes["arm"] == "codes"]
    names = [name for name, _ in _series(codes)]
    models = list(dict.fromkeys(codes["model"]))
    shown_arms = probes[probes["arm"].isin(["codes", "dense"])]
    lowest = min(0.35, float(shown_arms[["auroc", "auroc_permuted"]].astype(float).min().min()) - 0.03)
    with figure_style():
        figure, panels = _panels(len(labels), 2.3)
        for axes, (concept, name) in zip(panels, labels, strict=True):
            axes.set_title(_label(concept, name), fontsize=8.5)
            axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
            shown = codes[(codes["concept"] == concept) & (codes["class"] == name)]
            for number, (series, own) in enumerate(_series(shown)):
                own = own[~own["uses_all"].astype("boolean").fillna(False)].sort_values("k")
                place = names.index(series) if series in names else number
                style = _style(place)
                axes.fill_between(
                    own["k"], own["auroc_low"], own["auroc_high"], color=style["color"], alpha=0.15, linewidth=0
                )
                axes.plot(own["k"], own["auroc"], **style, label=series)
                axes.plot(own["k"], own["auroc_permuted"], color=style["color"], linewidth=0.8, alpha=0.5)
            dense = probes[(probes["arm"] == "dense") & (probes["concept"] == concept) & (probes["class"] == name)]
            for row in dense.to_dict("records"):
                if math.isfinite(row["auroc"]):
                    first = [place for place, one in enumerate(names) if _model(one, models) == row["model"]]
                    color = SERIES[first[0] % len(SERIES)] if first else INK
                    axes.axhline(row["auroc"], color=color, linewidth=1.1, linestyle=(0, (5, 2)))
            _plain_log(axes, codes.loc[~codes["uses_all"].astype("boolean").fillna(False), "k"].dropna().unique())
            axes.set_ylim(lowest, 1.02)
            if not len(shown) or not np.isfinite(shown["auroc"].astype(float)).any():
                axes.text(
                    0.5, 0.5, "cannot be told:\nsee the table", transform=axes.transAxes, ha="center", color=MUTED
                )
        _label_outside(panels, "latents in the probe", "AUROC")
        figure.suptitle(title, x=0.01, ha="left")
        _legend(figure, panels[0], len(names))
    return figure


def plot_coherence(scores: pd.DataFrame, *, title: str) -> Figure:
    """Coherence of every scored latent, most coherent first, against that of as many groups at random (dotted).

    Args:
        scores: The rows of one N of the table `monosemanticity`.
        title: Heading.
    """
    with figure_style():
        figure = Figure(figsize=(6.6, 3.1), layout="constrained")
        axes = figure.subplots()
        series = _series(scores)
        for number, (name, own) in enumerate(series):
            falling = np.sort(own["coherence"].dropna().to_numpy())[::-1]
            style = {**_style(number), "marker": ""}
            if len(falling):
                axes.plot((np.arange(len(falling)) + 1) / len(falling) * 100, falling, **style, label=name)
                axes.axhline(float(own["null"].iloc[0]), color=style["color"], linewidth=0.9, linestyle=(0, (1, 2)))
        axes.set_xlabel("scored latents, most coherent first (%)")
        axes.set_ylabel("coherence of its images' labels")
        axes.set_ylim(0, 1.02)
        axes.set_title(title)
        _legend(figure, axes, len(series))
    return figure


def plot_retrieval(retrieval: pd.DataFrame, *, title: str) -> Figure:
    """Share of the first images found that have the query's label, by method, a panel per label.

    Args:
        retrieval: The table `retrieval`.
        title: Heading.
    """
    labels = _labels(retrieval)
    methods = [method for method in METHODS if (retrieval["method"] == method).any()]
    with figure_style():
        figure, panels = _panels(len(labels), 2.1)
        series = [name for name, _ in _series(retrieval)]
        for axes, (concept, name) in zip(panels, labels, strict=True):
            axes.set_title(_label(concept, name), fontsize=8.5)
            shown = retrieval[(retrieval["concept"] == concept) & (retrieval["class"] == name)]
            for number, (one, own) in enumerate(_series(shown)):
                place = series.index(one)
                own = own.set_index("method").reindex(methods)
                y = np.arange(len(methods)) + 0.16 * (number - (len(series) - 1) / 2)
                style = {**_style(place), "linestyle": "none"}
                axes.hlines(y, own["precision_low"], own["precision_high"], color=style["color"], linewidth=1)
                axes.plot(own["precision"], y, **style, label=one)
            axes.set_yticks(range(len(methods)), [METHOD_NAMES.get(method, method) for method in methods])
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.set_xlim(0, 1.02)
            axes.grid(axis="y", visible=False)
            if axes not in panels[::_PER_ROW]:
                axes.set_yticklabels([])
        for axes in panels[-_PER_ROW:]:
            axes.set_xlabel("precision")
        figure.suptitle(title, x=0.01, ha="left")
        _legend(figure, panels[0], len(series))
    return figure


def _labels(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The labels of the rows, concept and class, in their order."""
    return list(dict.fromkeys(zip(rows["concept"], rows["class"], strict=True)))


def _series(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each SAE, the first `MOST_SERIES` of them, by its name for readers."""
    of_models = rows[["model", "sae"]].drop_duplicates()
    one_each = not of_models["model"].duplicated().any()
    one_model = of_models["model"].nunique() == 1 and not one_each
    found = []
    for model, sae in of_models.head(MOST_SERIES).itertuples(index=False, name=None):
        name = model if one_each else sae if one_model else f"{model}, {sae}"
        found.append((name, rows[(rows["model"] == model) & (rows["sae"] == sae)]))
    return found


def _model(series: str, models: Sequence[str]) -> str:
    return series if series in models else series.split(", ")[0] if series.split(", ")[0] in models else models[0]


def _style(number: int) -> dict[str, Any]:
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "markersize": 5,
    }


def _label(concept: str, name: str) -> str:
    return readable(concept) if name == PRESENT else f"{readable(concept)}: {name}"


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(n, _PER_ROW)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(max(1.9 * columns, 3.4), height * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=False)
    for spare in grid.ravel()[n:]:
        spare.set_visible(False)
    return figure, list(grid.ravel()[:n])


def _label_outside(panels: Sequence[Axes], x: str, y: str) -> None:
    for axes in panels[::_PER_ROW]:
        axes.set_ylabel(y)
    for number, axes in enumerate(panels):
        if number % _PER_ROW:
            axes.set_yticklabels([])
        if number + _PER_ROW >= len(panels):
            axes.set_xlabel(x)


def _plain_log(axes: Axes, values: Any) -> None:
    """A logarithmic axis whose ticks are some of the values, as plain numbers."""
    axes.set_xscale("log")
    axes.minorticks_off()
    shown: list[float] = []
    for value in sorted({float(f"{value:.2g}") for value in values if value > 0}):
        if not shown or value >= 1.3 * shown[-1]:
            shown.append(value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])


def _legend(figure: Figure, axes: Axes, n: int) -> None:
    if n > 1:
        handles, names = axes.get_legend_handles_labels()
        longest = max(map(len, names), default=0)
        figure.legend(
            handles, names, loc="outside lower left", ncols=min(n, 3 if longest <= _SHORT else 2), columnspacing=1.6
        )
