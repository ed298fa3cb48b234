"""Figures of retrieval: an image beside those that are found by its latents, and how many latents that takes."""

__all__ = ["plot_hits", "plot_k_sweep"]

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mammosae_plugin.errors import InputError
from mammosae_plugin.schema.names import readable
from mammosae_plugin.visualization.style import ACTIVATE, DEACTIVATE, GRID, MUTED, RANDOM, SERIES, figure_style

_MOST_HITS = 8  # in one figure
_MOST_LABELS = 9
_PANEL = 1.45  # inches: width of one image's panel
_LETTERS = 20  # of an image's id in its panel
_MEASURES = {
    "precision": "precision of the first {n}",
    "recall": "recall of the first {n}",
    "average_precision": "average precision",
    "ndcg": "nDCG of the first {n}",
}


def plot_hits(
    latents: pd.DataFrame,
    *,
    title: str,
    captions: Sequence[str] = (),
    images: Sequence[NDArray[np.uint8]] = (),
    axis_label: str = "activation",
    names: Mapping[int, str] | None = None,
) -> Figure:
    """An image's strongest latents, and how active the same are in the images that are like it (SAIL's fingerprints).

    Where a text was asked for there is no such image: hits alone are drawn.

    Args:
        latents: as `analysis.fingerprints` gives them: place (0: the image asked for, if it is an image), image_id,
            latent, activation (or what else the bars show).
        title: heading of the figure.
        captions: lines under the id of each image, such as likeness and labels.
        images: uint8 (H, W) of each image, drawn above its latents; none draws the latents alone.
        axis_label: what the bars show.
        names: what stands beside a latent's bar, by latent; else its number.

    Returns:
        The figure: a column per image, the first 8 hits; a bar per latent, all on one scale, and in the hits a line
        where the image asked for has it.

    Raises:
        InputError: captions or images for another number of images.
    """
    places = sorted(set(latents["place"]))
    for given, what in ((captions, "captions"), (images, "images")):
        if len(given) not in (0, len(places)):
            raise InputError(f"{len(places)} images need as many {what}, got {len(given)}")
    has_query = places[0] == 0
    drawn = places[: _MOST_HITS + has_query]
    own = latents[latents["place"] == places[0]]
    called, n_latents, limit = names or {}, len(own), 1.12 * float(latents["activation"].max())
    told = [one.split("\n") for one in captions] or [[] for _ in places]
    lines = 1 + max(map(len, told))
    bars = 0.22 * n_latents + 0.5
    heights = [_PANEL * images[0].shape[0] / images[0].shape[1], bars] if len(images) else [bars]
    with figure_style():
        figure = Figure(
            figsize=(max(_PANEL * len(drawn) + 0.9, 4.6), sum(heights) + 0.13 * lines + 1.2), layout="constrained"
        )
        grid = figure.subplots(len(heights), len(drawn), squeeze=False, height_ratios=heights)
        for column, place in enumerate(drawn):
            rows = latents[latents["place"] == place]
            if len(images):
                picture = grid[0, column]
                picture.imshow(images[column], cmap="gray", vmin=0, vmax=255)
                picture.set_axis_off()
            axes = grid[-1, column]
            _bars(axes, rows, own if has_query else None, limit, is_query=place == 0)
            if column == 0:
                axes.set_yticks(range(n_latents), [called.get(one, f"latent {one}") for one in own["latent"]])
            heading = "query" if place == 0 else f"hit {place}"
            said = [
                _short(str(rows["image_id"].iloc[0])),
                *(one if len(one) <= _LETTERS else f"{one[: _LETTERS - 1]}…" for one in told[column]),
            ]
            grid[0, column].set_title(heading, loc="left", fontsize=8.5, pad=5 + 8.8 * lines)
            beside = grid[0, column].annotate(
                "\n".join(said + [""] * (lines - len(said))), (0, 1), xytext=(0, 3), xycoords="axes fraction",
                textcoords="offset points", fontsize=6.8, color=MUTED, va="bottom", linespacing=1.25,
            )  # fmt: skip
            beside.set_in_layout(False)  # or a long name would make its panel narrow
        figure.get_layout_engine().set(h_pad=0.09)  # type: ignore[union-attr,call-arg]
        grid[-1, 0].set_xlabel(axis_label, loc="left")
        if has_query:
            mark: dict[str, Any] = {"color": DEACTIVATE, "linestyle": "none", "marker": "|", "mew": 1.3, "ms": 9}
            figure.legend(
                handles=[
                    Patch(color=DEACTIVATE, label="the query"),
                    Patch(color=ACTIVATE, label="a hit"),
                    Line2D([], [], **mark, label="the query's activation"),
                ],
                loc="outside lower right",
                ncols=3,
            )
        n_hits = len(places) - has_query
        left_out = f" (the first {_MOST_HITS} of {n_hits} hits)" if len(places) > len(drawn) else ""
        figure.suptitle(f"{title}{left_out}", x=0.01, ha="left")
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, own: pd.DataFrame | None, limit: float, *, is_query: bool) -> None:
    """Bars of one image; `own` is what the image asked for has, if one was."""
    y = np.arange(len(rows))
    values = rows["activation"].to_numpy(dtype=float)
    axes.barh(y, values, height=0.62, color=DEACTIVATE if is_query else ACTIVATE)
    if not is_query:
        there = np.zeros(len(rows)) if own is None else own["activation"].to_numpy(dtype=float)
        if own is not None:
            axes.vlines(there, y - 0.38, y + 0.38, color=DEACTIVATE, linewidth=1.2)
        for place in np.flatnonzero(values <= 0).tolist():
            left = 0.03 * limit + (there[place] if there[place] < 0.35 * limit else 0)
            axes.text(left, place, "silent", va="center", fontsize=6.5, color=MUTED)
    axes.set_xlim(0, limit)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(y, [])
    tick = _round_down(limit / 1.12)
    axes.set_xticks([0, tick], ["0", f"{tick:g}"])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _round_down(value: float) -> float:
    """The value with its first digit alone, downwards: a tick that lies on the axis."""
    if not value > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(np.floor(value / power) * power)


def _short(text: str) -> str:
    half = (_LETTERS - 1) // 2
    return text if len(text) <= _LETTERS else f"{text[:half]}…{text[-half:]}"


_DASHED: Any = (0, (4, 2))
_DOTTED: Any = (0, (1, 1.5))
_LINES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("latents", "fingerprint", "fingerprint", {"color": ACTIVATE, "marker": "o"}),
    ("untrained", "fingerprint", "fingerprint, untrained SAE", {"color": MUTED, "marker": "o", "linestyle": _DASHED}),
    ("dense", "dense_fingerprint", "largest dense values", {"color": SERIES[2], "marker": "s", "linestyle": _DOTTED}),
)
_POINTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("latents", "cosine", "cosine of all latents", {"color": ACTIVATE, "marker": "D"}),
    ("latents", "bm25", "BM25 over latents", {"color": SERIES[4], "marker": "^"}),
    ("untrained", "cosine", "cosine, untrained SAE", {"color": MUTED, "marker": "D", "mfc": "white"}),
    ("untrained", "bm25", "BM25, untrained SAE", {"color": MUTED, "marker": "^", "mfc": "white"}),
    ("dense", "dense", "dense vectors", {"color": SERIES[2], "marker": "s"}),
)


def plot_k_sweep(scores: pd.DataFrame, *, measure: str = "precision", title: str = "") -> Figure:
    """How well images are found against the number of latents in a fingerprint; a panel per label.

    Args:
        scores: as `analysis.retrieval_scores` gives them.
        measure: "precision", "recall", "average_precision" or "ndcg".
        title: heading of the figure.

    Returns:
        The figure: fingerprints of latents, of an untrained SAE's and of dense coordinates as lines with their 95 %
        intervals over groups; whatever uses all latents at "all"; random images as a dotted line. The first 9 labels.

    Raises:
        InputError: another measure, or no row.
    """
    if measure not in _MEASURES:
        raise InputError(f"measure is {measure!r}: choose one of {', '.join(_MEASURES)}")
    labels = list(dict.fromkeys(scores["label"]))
    if not labels:
        raise InputError("there is no score to draw: retrieval_scores gave no row")
    drawn = labels[:_MOST_LABELS]
    ks = sorted({int(k) for k in scores["k"] if k > 0})
    n_columns = min(3, len(drawn))
    n_rows = -(-len(drawn) // n_columns)
    shown = scores[scores["label"].isin(drawn)]
    highest = np.nanmax([*shown[[measure, f"{measure}_high"]].to_numpy(dtype=float).ravel(), 0.0])
    n_lines = 5 if n_columns < 3 else 3
    with figure_style():
        figure = Figure(
            figsize=(max(2.75 * n_columns + 0.4, 4.8), 2.35 * n_rows + 0.3 + 0.18 * n_lines), layout="constrained"
        )
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
        for number, axes in enumerate(grid.flat):
            if number >= len(drawn):
                axes.set_axis_off()
                continue
            _sweep_panel(axes, scores[scores["label"] == drawn[number]], ks, measure, drawn[number])
            axes.set_ylim(0, min(1.08 * highest, 1.03) if highest > 0 else 1)
            axes.tick_params(labelbottom=True)
        n = int(scores["n"].iloc[0])
        for axes in grid[:, 0]:
            axes.set_ylabel(_MEASURES[measure].format(n=n))
        for number in range(max(len(drawn) - n_columns, 0), len(drawn)):
            grid.flat[number].set_xlabel("K, latents in the fingerprint")
        handles = {
            label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        order = [name for _, _, name, _ in (*_LINES, *_POINTS)] + ["random images (chance)"]
        told = [name for name in order if name in handles]
        figure.legend(
            [handles[name] for name in told], told, loc="outside lower left", ncols=max(n_columns, 2), columnspacing=1.6
        )
        left_out = f" (the first {_MOST_LABELS} of {len(labels)} labels)" if len(labels) > len(drawn) else ""
        figure.suptitle(f"{title or 'Retrieval judged by labels'}{left_out}", x=0.01, ha="left")
    return figure


def _sweep_panel(axes: Axes, rows: pd.DataFrame, ks: list[int], measure: str, label: str) -> None:
    places = {k: place for place, k in enumerate(ks)}
    everything = len(ks)
    axes.set_xlim(-0.4, everything + 0.6)
    axes.set_xticks([*range(everything), everything], [*map(str, ks), "all"])
    axes.grid(axis="x", visible=False)
    axes.axvspan(everything - 0.6, everything + 0.6, color=GRID, alpha=0.45, linewidth=0)
    axes.set_title(textwrap.shorten(readable(label.replace("=", ": ", 1)), 34, placeholder="…"), pad=16)
    known = rows[rows["precision"].notna()]
    if len(known):
        n_queries, n_groups = (int(known[name].max()) for name in ("n_queries", "n_query_groups"))
        few = ", too few for an interval" if known[f"{measure}_low"].isna().all() else ""
        axes.annotate(
            f"{n_queries:,} queries of {n_groups:,} groups{few}", (0, 1), xytext=(0, 4), xycoords="axes fraction",
            textcoords="offset points", fontsize=7, color=MUTED,
        )  # fmt: skip
    if not len(known):
        said = textwrap.fill(str(rows["reason"].iloc[0]), 26)
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=8)
        return
    chance = known[known["source"] == "random"]
    if len(chance):
        ends = [float(chance[f"{measure}{end}"].iloc[0]) for end in ("_low", "_high")]
        if np.isfinite(ends).all():
            axes.axhspan(*ends, color=RANDOM, alpha=0.25, linewidth=0)
        axes.axhline(
            float(chance[measure].iloc[0]),
            color=RANDOM,
            linewidth=1.1,
            linestyle=(0, (1, 2)),
            label="random images (chance)",
        )
    for source, method, name, style in _LINES:
        own = known[(known["source"] == source) & (known["method"] == method)].sort_values("k")
        if len(own):
            x = own["k"].map(places).to_numpy(dtype=float)
            low, high = own[f"{measure}_low"].to_numpy(dtype=float), own[f"{measure}_high"].to_numpy(dtype=float)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
            axes.plot(x, own[measure], **style, markeredgecolor="white", markeredgewidth=0.5, label=name)
    there = [(s, m) for s, m, _, _ in _POINTS if ((known["source"] == s) & (known["method"] == m)).any()]
    spread = dict(zip(there, np.linspace(-0.42, 0.42, len(there)) if len(there) > 1 else [0.0], strict=True))
    for source, method, name, style in _POINTS:
        if (source, method) in spread:
            one = known[(known["source"] == source) & (known["method"] == method)].iloc[0]
            x_place = everything + spread[source, method]
            axes.vlines(x_place, one[f"{measure}_low"], one[f"{measure}_high"], color=style["color"], linewidth=1.0)
            axes.plot([x_place], [one[measure]], linestyle="none", markersize=4.5, **style, label=name)
