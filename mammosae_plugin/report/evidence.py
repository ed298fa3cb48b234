"""The report's section on all latents: verdicts, the latents that matter most, and performance by group."""

__all__ = ["evidence_section"]

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.report.rendering import script
from mammosae_plugin.report.views import TableView, table_view
from mammosae_plugin.schema.names import readable
from mammosae_plugin.schema.results import Results, Row, n_best, number, shortcuts
from mammosae_plugin.visualization.tables import Estimate, estimate

_PLACE = "in its boxes"
_WORDS = ("concept", "context", "shortcut", "unclear")
_SHOWN = 100
"""Latents of one model and finding that the page shows; a browser sorts no longer tables at once."""


def evidence_section(results: Results) -> dict[str, Any] | None:
    """What the template shows of the evidence; None where the study has none, as those of earlier versions."""
    rows = results.get("evidence", [])
    if not rows:
        return None
    pairs = list(dict.fromkeys((row["model"], row["concept"]) for row in rows))
    of_pairs = {pair: [row for row in rows if (row["model"], row["concept"]) == pair] for pair in pairs}
    first = {
        pair: sorted(own, key=lambda row: (row["verdict"] == _WORDS[-1], -_size(row)))[:_SHOWN]
        for pair, own in of_pairs.items()
    }
    text, script_hash = script("sort.js")
    return {
        "verdicts": [_counted(pair, own) for pair, own in of_pairs.items()],
        "table": _table(list(first.values()), n_best(results)),
        "order": _order(max(map(len, of_pairs.values())), n_best(results)),
        "script": text,
        "script_hash": script_hash,
        "n_tests": max(int(row["n_tests"] or 0) for row in rows),
        "shortcuts": [{**row, "title": f"{row['model']}, {readable(row['concept'])}"} for row in shortcuts(results)],
        "groups": table_view(pd.DataFrame([_group(row) for row in results.get("groups", [])]), n_labels=4),
        "alpha": f"{results['config'].get('analysis', {}).get('confounders', {}).get('alpha', 0.05):g}",
    }


def _table(of_pairs: list[list[Row]], printed: int) -> TableView | None:
    told = pd.DataFrame([_told(row) for own in of_pairs for row in own])
    if not any(np.isfinite(number(row["place"])) for own in of_pairs for row in own):
        told = told.drop(columns=_PLACE)  # without boxes nothing lies in them
    view = table_view(told, n_labels=3)
    places = [place for own in of_pairs for place in range(len(own))]
    further = frozenset(row for row, place in enumerate(places) if place >= printed)
    return view and replace(view, further=further)


def _order(n_most: int, printed: int) -> str:
    """Which latents stand in the table and how, for its caption."""
    which = "All latents that fire" if n_most <= _SHOWN else f"The first {_SHOWN} latents of each model and finding"
    print_out = f" In print the first {printed} of each." if n_most > printed else ""
    return (
        f"{which}, those with a verdict first, then by the size of their reliance (where it is not known, of AUROC "
        f"less 0.5). A click on a heading sorts by that column, a second turns it, a third restores it.{print_out}"
    )


def _size(row: Row) -> float:
    reliance = number(row["reliance"])
    return abs(reliance) if reliance == reliance else abs(number(row["auroc"]) - 0.5)


def _counted(pair: tuple[str, str], rows: list[Row]) -> str:
    """A sentence: how many latents of each verdict."""
    counts = Counter(row["verdict"] for row in rows)
    words = ", ".join(f"{counts[word]} {word}" for word in _WORDS if counts[word])
    power = number(rows[0]["detectable_auroc"])
    found = f"; of one latent an AUROC from {power:.2f} on is found with 80 % power" if power == power else ""
    patients = f"{rows[0]['n_patients_with']} patients with the finding, {rows[0]['n_patients_without']} without"
    return f"{pair[0]}, {readable(pair[1])}: of {len(rows)} latents that fire {words} ({patients}{found})."


def _told(row: Row) -> Row:
    return {
        "model": row["model"],
        "concept": row["concept"],
        "latent": row["latent"],
        "verdict": row["verdict"],
        "why": row["reason"],
        "AUROC": estimate(row, "auroc"),
        "q": Estimate(number(row["auroc_q"])),
        "reliance": estimate(row, "reliance"),
        "effect on the logit": estimate(row, "effect"),
        _PLACE: estimate(row, "place"),
        "goes with": row["covariate"] or None,
        "q given the covariates": Estimate(number(row["given_q"])),
    }


def _group(row: Row) -> Row:
    return {
        "model": row["model"],
        "concept": row["concept"],
        "by": row["by"] or "all",
        "group": row["group"] or "all",
        "n": row["n_rows"],
        "with the finding": row["n_positive"],
        "AUROC": estimate(row, "auroc"),
        "of the others": Estimate(number(row["rest_auroc"])),
        "q": Estimate(number(row["q"])),
        "worst": "worst" if row["worst"] else None,
        "not scored": row["reason"] or None,
    }
