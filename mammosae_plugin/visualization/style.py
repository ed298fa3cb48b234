"""One look for all figures: fonts, sizes and a palette that stays apart for colour-blind readers and in grey print."""

__all__ = [
    "ACTIVATE", "BACKGROUND_LATENT", "CONCEPT_LATENT", "DEACTIVATE", "figure_style", "GRID", "HEATMAP_COLORS", "INK",
    "MASS", "MUTED", "OTHER_LATENT", "PREDICTED_BOX", "RANDOM", "save_figure", "SERIES", "TRUTH_BOX",
]  # fmt: skip

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path

# Okabe and Ito's colours where hue carries meaning; greys where it does not.
INK = "#1c2127"
MUTED = "#5c6670"
GRID = "#e3e7eb"
ACTIVATE = "#0072b2"
DEACTIVATE = "#d55e00"
RANDOM = "#7d8791"
MASS = "#b0568f"
CONCEPT_LATENT = "#d55e00"
BACKGROUND_LATENT = "#0072b2"
OTHER_LATENT = "#a9b1b9"
TRUTH_BOX = "#ff2a2a"
PREDICTED_BOX = "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
HEATMAP_COLORS = "viridis"

_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same figure on every machine
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "svg.hashsalt": "mammosae-plugin",
}

# What each writer would otherwise put in by itself: times and versions, which differ from run to run.
_NO_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with this package's style and nothing of the caller's; matplotlib's settings are as before afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _STYLE.items():
            matplotlib.rcParams[name] = value  # type: ignore[index,unused-ignore]
        yield


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Write a figure as PNG, PDF or SVG, whole or not at all, without dates or versions: same figure, same bytes.

    Raises `InputError` for another file ending.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in _NO_METADATA:
        raise InputError(
            f"{os.fspath(path)}: figures are written as .png, .pdf or .svg, not {suffix or 'without ending'}"
        )
    with atomic_path(path) as temporary, figure_style():
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=_NO_METADATA[suffix])
