"""How strongly latents fire in the images of each class: a histogram per latent."""

__all__ = ["plot_strengths"]

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from mammosae_plugin.schema.names import counted
from mammosae_plugin.visualization.style import BACKGROUND_LATENT, CONCEPT_LATENT, SERIES, figure_style

_COLUMNS = 3
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def plot_strengths(
    latents: Sequence[int],
    largest: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    title: str,
    class_names: Sequence[str],
) -> Figure:
    """For each latent the share of each class's images by the latent's maximum over positions, where it fires.

    Args:
        latents: (n,) their numbers.
        largest: (n,) the largest activation of each, where the last bin ends.
        counts: (n, n_class, 1 + n_bins) images; first those in which the latent does not fire, then by equal parts of
            the range from 0 to `largest`.
        title: heading of the figure.
        class_names: (n_class,) what the classes are.
    """
    n_rows = -(-len(latents) // _COLUMNS)
    n_bins = counts.shape[2] - 1
    sizes = counts[0].sum(axis=1)
    colors = (BACKGROUND_LATENT, CONCEPT_LATENT) if len(sizes) == 2 else SERIES
    with figure_style():
        figure = Figure(figsize=(7.2, 0.9 + 1.75 * n_rows), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(n_rows, _COLUMNS, sharey=True, squeeze=False)
        for axes in panels.flat[len(latents) :]:
            axes.set_visible(False)
        for panel, (latent, top, own) in enumerate(zip(latents, largest, counts, strict=True)):
            axes = panels.flat[panel]
            edges = np.linspace(0, top, n_bins + 1)
            for label, (of_class, size) in enumerate(zip(own, sizes, strict=True)):
                shares = of_class / max(size, 1)
                look = {"color": colors[label % len(colors)], "linestyle": _DASHES[label % len(_DASHES)]}
                name = f"{class_names[label]} (n = {counted(int(size), 'image')})"
                axes.stairs(shares[1:], edges, label=name if panel == 0 else None, linewidth=1.4, **look)
                if len(sizes) == 2:
                    axes.stairs(shares[1:], edges, fill=True, alpha=0.12, color=look["color"])
                axes.annotate(
                    f"fires in {1 - shares[0]:.0%}",
                    (1, 1),
                    xytext=(0, -10 * label),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="right",
                    va="top",
                    color=look["color"],
                    fontsize=8,
                    fontweight="bold",
                )
            axes.set_title(f"latent {latent}")
            axes.set_xticks([0, top / 2, top], ["0", f"{top / 2:.2g}", f"{top:.2g}"])
            axes.set_xlabel("maximum over positions" if panel >= len(latents) - _COLUMNS else "")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for row in panels:
            row[0].set_ylabel("share of its class")
        panels[0, 0].set_ylim(0, 1.3 * max((counts[:, :, 1:] / np.maximum(sizes, 1)[:, None]).max(), 0.01))
        figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left")
        figure.legend(loc="outside lower left", ncols=min(len(sizes), 3))
    return figure
