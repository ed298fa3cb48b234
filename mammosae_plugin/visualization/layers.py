"""The layers of a study side by side: which separates the classes best, and which localizes best."""

__all__ = ["plot_layers"]

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammosae_plugin.schema.names import readable
from mammosae_plugin.visualization.style import MUTED, SERIES, figure_style

_MARKERS = "os^Dv<>"
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_SPREAD = (
    0.05  # of the distance between two layers: lines side by side, so that their intervals do not cover each other
)


def plot_layers(rows: pd.DataFrame, *, title: str) -> Figure:
    """Two panels over the layers: AUROC of the best single latent with its interval, and the best average precision.

    Args:
        rows: `layers` of a study's results, a row per layer, model and concept; missing values are NaN.
        title: heading of the figure.

    Returns:
        The figure. A line per model and concept: the concept has the colour, the model the marker and the dashes.
    """
    layers = list(dict.fromkeys(rows["layer"]))
    pairs = list(dict.fromkeys(zip(rows["model"], rows["concept"], strict=True)))
    models, concepts = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    place = {layer: number for number, layer in enumerate(layers)}
    with figure_style():
        width = 7.1 + 1.1 * max(len(layers) - 4, 0)
        figure = Figure(figsize=(width, 3.3 + 0.17 * (len(pairs) + 1) // 2), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr,call-arg]
        separation, localization = figure.subplots(1, 2)
        for number, (model, concept) in enumerate(pairs):
            own = rows[(rows["model"] == model) & (rows["concept"] == concept)]
            x = own["layer"].map(place).to_numpy(dtype=float) + _SPREAD * (number - (len(pairs) - 1) / 2)
            style = {
                "color": SERIES[concepts.index(concept) % len(SERIES)],
                "marker": _MARKERS[models.index(model) % len(_MARKERS)],
                "linestyle": _DASHES[models.index(model) % len(_DASHES)],
                "markeredgecolor": "white",
                "markeredgewidth": 0.5,
                "markersize": 5.5,
            }
            auroc, low, high = (own[f"single_latent_auroc{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
            separation.vlines(x, low, high, color=style["color"], linewidth=1.0, alpha=0.6)
            separation.plot(x, auroc, **style)
            best = own["best_latent_ap"].to_numpy(dtype=float)
            localization.plot(x, best, **style, label=f"{model}, {readable(concept)}")
        separation.set_title("Separation: the best single latent")
        separation.set_ylabel("AUROC on test images")
        separation.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        localization.set_title("Localization: the best latent's map")
        localization.set_ylabel("average precision of its boxes")
        localization.set_ylim(0, max(1.08 * np.nan_to_num(float(rows["best_latent_ap"].max())), 0.05))
        for axes in (separation, localization):
            _layer_axis(axes, layers)
        figure.suptitle(title, x=0.01, ha="left")
        figure.legend(loc="outside lower left", ncols=2, columnspacing=1.6)
    return figure


def _layer_axis(axes: Axes, layers: list[str]) -> None:
    axes.set_xlim(-0.4, len(layers) - 0.6)
    axes.set_xticks(range(len(layers)), layers, rotation=0 if max(map(len, layers)) * len(layers) < 40 else 30)
    axes.grid(axis="x", visible=False)
