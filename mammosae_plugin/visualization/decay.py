"""How fast scores of latents fall from the best latent on (SAIL's score decay)."""

__all__ = ["plot_score_decay"]

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammosae_plugin.errors import InputError
from mammosae_plugin.visualization.style import MUTED, SERIES, figure_style

_SCORES = ("coherence", "specificity", "monosemanticity")
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


def plot_score_decay(scores: pd.DataFrame | Mapping[str, pd.DataFrame], *, title: str = "Score decay") -> Figure:
    """Coherence, specificity and monosemanticity of the latents, the best first; a row of panels per number of images.

    Args:
        scores: as `analysis.monosemanticity_of` gives them; or several by name, such as those of an untrained SAE
            beside a trained one.
        title: heading of the figure.

    Returns:
        The figure. Latents that fire in too few groups have no score and no place; the others are counted. The
        dotted line is the coherence of images at random.

    Raises:
        InputError: frames without scores, or with another number of images.
    """
    frames = {"": scores} if isinstance(scores, pd.DataFrame) else dict(scores)
    sizes = [
        sorted(int(one[1]) for name in frame if (one := _NUMBERED.fullmatch(str(name)))) for frame in frames.values()
    ]
    if not sizes or not sizes[0]:
        raise InputError(
            "there are no scores to draw: give the frame of monosemanticity_of, with coherence_10 or others"
        )
    if any(size != sizes[0] for size in sizes):
        raise InputError(f"the scores are of other numbers of images ({', '.join(map(str, sizes))}): score with one n")
    with figure_style():
        figure = Figure(figsize=(7.6, 2.3 * len(sizes[0]) + 1.0), layout="constrained")
        grid = figure.subplots(len(sizes[0]), 3, squeeze=False)
        for row, size in enumerate(sizes[0]):
            for axes, score in zip(grid[row], _SCORES, strict=True):
                _panel(axes, frames, score, size)
        for axes in grid[-1]:
            axes.set_xlabel("latents, the best first")
        for axes in grid[:, 0]:
            axes.set_ylabel("score")
        handles = dict(zip(*reversed(grid[0, 0].get_legend_handles_labels()), strict=True))
        if handles:
            figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=4)
        figure.suptitle(title, x=0.01, ha="left")
    return figure


_NUMBERED = re.compile(r"coherence_([0-9]+)")


def _panel(axes: Axes, frames: Mapping[str, pd.DataFrame], score: str, size: int) -> None:
    counts = []
    for number, (name, frame) in enumerate(frames.items()):
        values = frame[f"{score}_{size}"].to_numpy(dtype=float)
        values = np.sort(values[np.isfinite(values)])[::-1]
        counts.append(f"{name} {len(values):,}".strip())
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=SERIES[number % len(SERIES)],
            linestyle=_DASHES[number % len(_DASHES)],
            label=name or "_",
        )
    nulls = [float(null) for frame in frames.values() for null in frame[f"null_{size}"].dropna().unique()]
    if score == "coherence" and nulls:
        axes.axhline(float(np.mean(nulls)), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), label="images at random")
    axes.set_title(f"{score.capitalize()}, {size} images", pad=16)
    axes.annotate(
        f"latents: {', '.join(counts)}", (0, 1), xytext=(0, 4), xycoords="axes fraction", textcoords="offset points",
        fontsize=7, color=MUTED,
    )  # fmt: skip
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
