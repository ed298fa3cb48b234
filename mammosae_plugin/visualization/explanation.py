"""Where in one image a logit comes from: the latents that speak most for and against, over the image."""

__all__ = [
    "ExplainedPanels",
    "LatentPanel",
    "plot_explanation",
    "plot_on_original",
    "plot_strongest",
    "write_explanations",
]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mammosae_plugin.schema.names import explained_name, readable, signed
from mammosae_plugin.schema.results import Results, may_show_images
from mammosae_plugin.visualization.drawings import Drawings
from mammosae_plugin.visualization.heatmaps import draw_activation, draw_tissue, small_enough
from mammosae_plugin.visualization.style import MUTED, figure_style

_PANEL = 1.75  # inches: width of a panel
_GAP = 0.1
_CAPTION = 0.5
_HEAD = 0.5
_FOOT = 0.62
_SIGNED = "PuOr_r"  # purple against, orange for
_LEAST_WIDTH = 4.6


@dataclass(frozen=True)
class LatentPanel:
    """One panel: a map at the image's size, and what is written under it.

    Attributes:
        map: (H, W).
        caption: one line or two.
        signed: whether the map has both signs, and is drawn for and against.
    """

    map: NDArray[np.floating]
    caption: str
    signed: bool = False


@dataclass(frozen=True)
class ExplainedPanels:
    """What the figure of an image shows whose logit is taken apart.

    Attributes:
        model: the model's name.
        concept: the concept.
        rule: by which the image was chosen.
        place: its place by the rule, from 1.
        logit: of the image.
        image: uint8 (H, W).
        whole: (H, W) all latents together, for (positive) and against.
        latents: the latents that are shown.
        contributions: what each adds to the logit.
        maps: (H, W) of each.
    """

    model: str
    concept: str
    rule: str
    place: int
    logit: float
    image: NDArray[np.uint8]
    whole: NDArray[np.floating]
    latents: Sequence[int]
    contributions: Sequence[float]
    maps: Sequence[NDArray[np.floating]]


def plot_strongest(shown: ExplainedPanels, captions: Mapping[int, str]) -> Figure:
    """The image, all latents together, and the strongest for and against, each over the image.

    Args:
        shown: the image and its maps.
        captions: by latent what is known of it, a word or two.
    """
    rows = []
    for sign, heading in ((1, "strongest for"), (-1, "strongest against")):
        panels = [
            LatentPanel(np.abs(one), _under(latent, value, captions.get(latent, "")))
            for latent, value, one in zip(shown.latents, shown.contributions, shown.maps, strict=True)
            if np.sign(value) == sign
        ]
        rows.append((heading, panels))
    whole = LatentPanel(shown.whole, "all latents together", signed=True)
    title = f"{shown.model}, {readable(shown.concept)}: logit {signed(shown.logit)}"
    return plot_explanation(shown.image, rows, title=title, beside=whole)


def write_explanations(results: Results, panels: Iterable[ExplainedPanels], drawings: Drawings) -> None:
    """Draw the images of a study whose logit is taken apart.

    Nothing is drawn, nor touched, where the images are patients' and the config does not ask for images. The figures
    are in no record, and so never published.

    Args:
        results: what was found at a layer.
        panels: an entry per image, consumed one at a time.
        drawings: the figures of the study's results folder.
    """
    if not may_show_images(results):
        return
    said = {
        (image["model"], image["concept"], row["latent"]): row["role"] or row["verdict"] or ""
        for image in results.get("explained", [])
        for row in image["latents"]
    }
    for shown in panels:
        captions = {latent: said.get((shown.model, shown.concept, latent), "") for latent in shown.latents}
        name = explained_name(shown.model, shown.concept, shown.rule, shown.place)
        drawings.draw(name, plot_strongest, shown, captions, dpi=120)


def _under(latent: int, contribution: float, said: str) -> str:
    return f"latent {latent}\n{signed(contribution)}" + (f" · {said}" if said else "")


def plot_explanation(
    image: NDArray[np.uint8],
    rows: Sequence[tuple[str, Sequence[LatentPanel]]],
    *,
    title: str,
    beside: LatentPanel | None = None,
    plain: str = "as the network sees it",
) -> Figure:
    """The image, then rows of maps over it.

    Args:
        image: uint8 (H, W).
        rows: heading and panels of each row, maps of the image's size.
        title: of the figure.
        beside: a panel of both signs under the image itself, before the second row.
        plain: written under the image itself.
    """
    size = image.shape
    shown = small_enough(image)
    n_columns = 1 + max((len(panels) for _, panels in rows), default=0)
    panel_height = _PANEL * size[0] / size[1]
    width = max(n_columns * (_PANEL + _GAP) + _GAP, _LEAST_WIDTH)
    row_height = panel_height + _CAPTION + 0.28
    height = _HEAD + max(len(rows), 1) * row_height + _FOOT
    with figure_style():
        figure = Figure(figsize=(width, height))
        for number, (heading, panels) in enumerate(rows):
            top = height - _HEAD - number * row_height - 0.24
            figure.text((2 * _GAP + _PANEL) / width, (top + 0.06) / height, heading, fontsize=9)
            first = _axes(figure, 0, top - panel_height, panel_height)
            draw_tissue(first, shown, size)
            if number == 1 and beside is not None:
                _drawsigned(first, beside.map)
            first.set_xlabel(plain if number == 0 or beside is None else beside.caption, fontsize=8, labelpad=3)
            for column, panel in enumerate(panels, start=1):
                axes = _axes(figure, column, top - panel_height, panel_height)
                draw_tissue(axes, shown, size)
                if panel.signed:
                    _drawsigned(axes, panel.map)
                else:
                    draw_activation(axes, np.asarray(panel.map), float(panel.map.max(initial=0)) or 1.0, None)
                axes.set_xlabel(panel.caption, fontsize=8, labelpad=3)
        figure.suptitle(title, x=_GAP / width, y=1 - 0.1 / height, ha="left", va="top", fontsize=10)
        signed = [panel.signed for _, panels in rows for panel in panels]
        _foot(figure, beside is not None or any(signed))
    return figure


def plot_on_original(
    original: NDArray[np.uint8], panels: Sequence[LatentPanel], *, title: str, plain: str = "original"
) -> Figure:
    """The original picture and maps over its own pixels, in one row; as for `plot_explanation`."""
    return plot_explanation(original, [("", panels)], title=title, plain=plain)


def _axes(figure: Figure, column: int, bottom: float, panel_height: float) -> Axes:
    width, height = figure.get_figwidth(), figure.get_figheight()
    left = _GAP + column * (_PANEL + _GAP)
    return figure.add_axes((left / width, bottom / height, _PANEL / width, panel_height / height))


def _drawsigned(axes: Axes, values: NDArray[np.floating]) -> None:
    height, width = values.shape
    limit = float(np.abs(values).max(initial=0)) or 1.0
    step = max(1, round(height / 640))
    share = np.clip(np.asarray(values)[step // 2 :: step, step // 2 :: step] / limit, -1, 1)
    colors = matplotlib.colormaps[_SIGNED]((share + 1) / 2, bytes=True)
    colors[..., 3] = np.round(255 * 0.75 * np.abs(share)).astype(np.uint8)
    axes.imshow(colors, extent=(0, width, height, 0), interpolation="antialiased")


def _foot(figure: Figure, has_signed: bool) -> None:
    width, height = figure.get_figwidth(), figure.get_figheight()
    bars = [("viridis", Normalize(0, 1), ["0", "largest"], "activation of a latent (a scale per panel)")]
    if has_signed:
        bars.append((_SIGNED, Normalize(-1, 1), ["against", "for"], "all latents together, through the head"))
    for number, (colors, norm, ends, label) in enumerate(bars):
        left, bottom = _GAP, 0.4 - 0.3 * number
        axes = figure.add_axes((left / width, bottom / height, 0.9 / width, 0.09 / height))
        bar = figure.colorbar(ScalarMappable(norm, colors), cax=axes, orientation="horizontal", ticks=[])
        bar.outline.set_visible(False)
        figure.text((left + 1.0) / width, (bottom + 0.045) / height, f"{ends[0]} – {ends[1]}: {label}",
                    va="center", fontsize=7.5, color=MUTED)  # fmt: skip
