"""The report's section on how the leading latents fire: by class, together with others, and along whose directions."""

__all__ = ["firing_section"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from mammosae_plugin.report.captions import figure, n_of, names_said
from mammosae_plugin.report.views import TableView, table_view, without_empty
from mammosae_plugin.schema.names import MINUS, readable, strengths_name
from mammosae_plugin.schema.results import Results, Row, leading_latents, number, pairs

_SHOWN = 3
_NONE = "none beyond chance"
_HEADINGS = {"together": "Fires together with", "decoder": "Nearest directions"}


def firing_section(results: Results, folder: Path, *, up: str) -> dict[str, Any] | None:
    """What the template shows of how the leading latents of a concept fire; None where nothing was kept of it.

    Args:
        results: of one concept, with `neighbours` where there are some.
        folder: where figures lie.
        up: the way from the page to the results folder.

    Returns:
        figures: histograms by class, one per model; table: neighbours, or None; n: how much stands behind these.
    """
    figures = [one for pair in pairs(results) if (one := _figure(results, *pair, folder, up))["source"]]
    table = _neighbours(cast(Row, results).get("neighbours", []))
    if not figures and table is None:
        return None
    return {"figures": figures, "table": table, "n": n_of(results, "test"), "shown": _SHOWN}


def _figure(results: Results, model: str, concept: str, folder: Path, up: str) -> Row:
    alt = f"{model}, {readable(concept)}: shares of the test images of each class by how strongly a latent fires"
    one = figure(folder, strengths_name(model, concept), alt, n_of(results, "test"), up=up)
    return {**one, "names": names_said(results, model, concept, leading_latents(results, model, concept))}


def _neighbours(rows: Sequence[Row]) -> TableView | None:
    """A row per latent: the nearest of both kinds, as far as they are nearer than chance."""
    of: dict[tuple[str, int], dict[str, list[str]]] = {}
    for row in rows:
        beside = of.setdefault((row["model"], row["latent"]), {}).setdefault(row["kind"], [])
        if len(beside) < _SHOWN and number(row["value"]) > number(row["chance"]):
            beside.append(_told(row))
    told = [
        {
            "model": model,
            "latent": latent,
            **{words: (", ".join(own[kind]) or _NONE) if kind in own else None for kind, words in _HEADINGS.items()},
        }
        for (model, latent), own in of.items()
    ]
    return table_view(without_empty(pd.DataFrame(told), list(_HEADINGS.values())), n_labels=2) if told else None


def _told(row: Row) -> str:
    value, chance = (f"{number(row[name]):.2f}".replace("-", MINUS) for name in ("value", "chance"))
    return f"{row['neighbour']} ({value}; {chance})"
