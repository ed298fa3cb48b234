"""The score card of an SAE as a figure: every score of it, of seeds of itself and of controls."""

__all__ = ["plot_score_card"]

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mammosae_plugin.schema.names import MINUS
from mammosae_plugin.schema.score_card import CONTROLS, SAE, SCORES, SEPARATES, TRAINED, Comparison, ScoreCard, shown_d
from mammosae_plugin.visualization.style import ACTIVATE, DEACTIVATE, GRID, INK, MUTED, RANDOM, figure_style

_LABELS = {SAE: "this SAE", TRAINED: "trained seeds", "pca": "PCA"}
_COLUMNS = 3
_DOTTED, _DASHED = (0, (1, 1.6)), (0, (5, 3))
_CHANCE = dict.fromkeys(("latent_auroc", "probe_1", "probe_5", "probe_20", "probe_all"), 0.5)


def plot_score_card(card: ScoreCard) -> Figure:
    """A panel per score: a dot for each SAE, a row for each kind, and d of the trained seeds against each control.

    Args:
        card: The score card.

    Returns:
        The figure. Dotted lines are chance, dashed ones the rows themselves, where a score needs no SAE.
    """
    scores = card.scored
    n_rows = -(-len(scores) // _COLUMNS)
    compared = {(one.score, one.control): one for one in card.comparisons()}
    height = 0.19 * len(card.kinds) + 0.62
    with figure_style():
        figure = Figure(figsize=(9.2, height * n_rows + 1.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr,call-arg,unused-ignore]
        panels = figure.subplots(n_rows, _COLUMNS, squeeze=False)
        for place, axes in enumerate(panels.flat):
            if place >= len(scores):
                axes.set_axis_off()
                continue
            _panel(axes, card, scores[place], compared, labelled=place % _COLUMNS == 0)
        told = (
            f"{card.described()}\nAt the right: d of the seeds against the control. In orange, below {SEPARATES:g}: it "
            "does not separate."
        )
        title = f"Score card: {card.sae.get('architecture', 'SAE')}, {card.sae.get('d_sae', 0):,} latents"
        # The title makes room for the lines below it, which are no part of the layout.
        heading = figure.suptitle(f"{title}\n\n", x=0.01, ha="left", linespacing=1.25)
        heading.set_in_layout(True)
        top = 1 - 0.26 / figure.get_figheight()
        figure.text(0.01, top, told, color=MUTED, fontsize=8, va="top", linespacing=1.35)
        figure.legend(handles=_handles(card), loc="outside lower left", ncols=5, columnspacing=1.6, handletextpad=0.5)
    return figure


def _panel(
    axes: Axes, card: ScoreCard, score: str, compared: dict[tuple[str, str], Comparison], *, labelled: bool
) -> None:
    kinds, better = card.kinds, SCORES[score].better
    arrow = {"higher": "  →", "lower": "  ←", None: ""}[better]
    title, _, unit = SCORES[score].title.partition(", ")
    axes.set_title(title[:1].upper() + title[1:] + arrow)
    for place, kind in enumerate(kinds):
        values = card.values(score, kind)
        if kind == SAE:
            axes.plot(values, [place] * len(values), "D", color=INK, markersize=4.5, zorder=3)
            continue
        color = ACTIVATE if kind == TRAINED else RANDOM
        axes.plot(
            values, [place] * len(values), "o", color=color, markersize=5, markeredgecolor="white",
            markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        if len(values) > 1:
            axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=1.3, zorder=2)
    low, high = _limits(card, score)
    axes.set_xlim(low, high)
    chance, dense = _references(card, score)
    for value, style in ((chance, _DOTTED), (dense, _DASHED)):
        if value is not None and low < value < high:
            axes.axvline(value, color=MUTED, linewidth=0.9, linestyle=style, zorder=1)
    for place, kind in enumerate(kinds):
        if kind in CONTROLS:
            _annotate(axes, place, compared.get((score, kind)), bool(card.values(score, kind)))
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_yticks(range(len(kinds)), [_LABELS.get(kind, kind) for kind in kinds] if labelled else [""] * len(kinds))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    told = [unit] * bool(unit) + ([] if chance is None else [f"chance {chance:.2f}".replace("-", MINUS)])
    axes.set_xlabel(", ".join(told), color=MUTED, fontsize=7.5, labelpad=2, loc="right")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines["left"].set_visible(False)


def _references(card: ScoreCard, score: str) -> tuple[float | None, float | None]:
    """Chance, and the score of the rows themselves."""
    name = "retrieval_map" if score.startswith("retrieval") else score  # random images are the same for all ways
    chance = (card.references.get("random") or {}).get(name, _CHANCE.get(score))
    return chance, (card.references.get("dense") or {}).get(score)


def _limits(card: ScoreCard, score: str) -> tuple[float, float]:
    """Around the dots; a line of reference counts where it is so near that dots stay apart."""
    values = [value for kind in card.kinds for value in card.values(score, kind)]
    low, high = min(values), max(values)
    room = (high - low) or 0.1 * abs(high) or 0.1
    for value in _references(card, score):
        if value is not None and low - room < value < high + room:
            low, high = min(low, value), max(high, value)
    room = (high - low) or room
    return low - 0.06 * room, high + 0.3 * room  # the numbers stand at the right


def _annotate(axes: Axes, place: int, one: Comparison | None, has_values: bool) -> None:
    if one is None or one.d is None:
        if not has_values:
            axes.text(0.99, place, "–", transform=axes.get_yaxis_transform(), ha="right", va="center", color=MUTED)
        return
    apart = one.d >= SEPARATES
    axes.text(
        0.99,
        place,
        shown_d(one.d),
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=7.5,
        color=MUTED if apart else DEACTIVATE,
        fontweight="normal" if apart else "bold",
    )


def _handles(card: ScoreCard) -> Sequence[Line2D]:
    dot = {"linestyle": "none", "markersize": 5}
    found = [
        Line2D([], [], color=INK, marker="D", label="this SAE", **dot),  # type: ignore[arg-type]
        Line2D([], [], color=ACTIVATE, marker="o", label="seeds of it, and their mean", **dot),  # type: ignore[arg-type]
        Line2D([], [], color=RANDOM, marker="o", label="controls", **dot),  # type: ignore[arg-type]
    ]
    drawn = [
        [value is not None and low < value < high for value in _references(card, score)]
        for score in card.scored
        for low, high in [_limits(card, score)]
    ]
    if any(chance for chance, _ in drawn):
        found.append(Line2D([], [], color=MUTED, linewidth=0.9, linestyle=_DOTTED, label="chance"))
    if any(dense for _, dense in drawn):
        found.append(Line2D([], [], color=MUTED, linewidth=0.9, linestyle=_DASHED, label="the rows themselves"))
    return found
