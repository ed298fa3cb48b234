"""The report's section on all latents: verdicts, the latents that matter most, and performance by group."""

__all__ = ["evidence_section"]

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.report.views import (
    TableView,
    name_cell,
    named_column,
    names_of_pair,
    table_view,
    typeset,
    without_empty,
)
from mammosae_plugin.schema.names import counted, readable
from mammosae_plugin.schema.results import Results, Row, n_best, number, shortcuts
from mammosae_plugin.visualization.tables import Estimate, PValue, estimate

_PLACE, _LESIONS = "in its boxes", "lesions found (CPM)"
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
    alpha = float(results["config"].get("analysis", {}).get("confounders", {}).get("alpha", 0.05))
    groups = results.get("groups", [])
    unit = EvaluationUnit.named(results["data"]["unit"]).plural
    return {
        "verdicts": [_counted(pair, own) for pair, own in of_pairs.items()],
        "table": _table(first, results, alpha),
        "order": _order(max(map(len, of_pairs.values())), n_best(results)),
        "n_tests": max(int(row["n_tests"] or 0) for row in rows),
        "shortcuts": [{**row, "title": f"{row['model']}, {readable(row['concept'])}"} for row in shortcuts(results)],
        "has_lesions": any(np.isfinite(number(row.get("cpm"))) for row in rows),
        "groups": table_view(without_empty(pd.DataFrame([_group(row, unit) for row in groups])), n_labels=4),
        "min_patients": results["config"].get("analysis", {}).get("min_patients", 10),
        "alpha": f"{alpha:g}",
    }


def _table(first: dict[tuple[str, str], list[Row]], results: Results, alpha: float) -> TableView | None:
    of_pairs, printed = list(first.values()), n_best(results)
    told = pd.DataFrame([_told(row, alpha) for own in of_pairs for row in own], dtype=object)
    view = table_view(without_empty(told, [_PLACE, _LESIONS]), n_labels=3)
    if view is not None:
        verdict, goes = (view.column(name) for name in ("Verdict", "Goes with"))
        rows = iter(view.rows)
        for own in of_pairs:
            said_once = bool(_of_all(own))
            for row, cells in zip(own, rows, strict=False):
                why = "" if said_once else typeset(row["reason"])
                cells[verdict] = replace(cells[verdict], below=why)
                if row["covariate"] and number(row["covariate_q"]) < alpha:
                    how = f"r {Estimate(number(row['covariate_r']), signed=True)}, q {_q(row, 'covariate_q')}"
                    cells[goes] = replace(cells[goes], below=how)
    places = [place for own in of_pairs for place in range(len(own))]
    further = frozenset(row for row, place in enumerate(places) if place >= printed)
    names = [
        name_cell(known, row["latent"])
        for pair, own in first.items()
        for known in [names_of_pair(results, *pair)]
        for row in own
    ]
    return view and named_column(replace(view, further=further), names, "Latent")


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


def _of_all(rows: list[Row]) -> str:
    """The reason for which no latent of a classifier has a verdict, where it is the same for all; else nothing."""
    reasons = {row["reason"] for row in rows}
    is_same = len(rows) > 1 and len(reasons) == 1 and all(row["verdict"] == _WORDS[-1] for row in rows)
    return str(reasons.pop() or "") if is_same else ""


def _counted(pair: tuple[str, str], rows: list[Row]) -> str:
    """A sentence: how many latents of each verdict, or why there is none."""
    counts = Counter(row["verdict"] for row in rows)
    words = ", ".join(f"{counts[word]} {word}" for word in _WORDS if counts[word])
    fire = f"{counted(len(rows), 'latent')} {'fires' if len(rows) == 1 else 'fire'}"
    if why := _of_all(rows):
        fire, words = f"{fire}, all of them unclear", typeset(why)
    power = number(rows[0]["detectable_auroc"])
    found = f"; of one latent an AUROC from {power:.2f} on is found with 80 % power" if power == power else ""
    patients = (
        f"{counted(int(rows[0]['n_patients_with']), 'test patient')} with the finding, "
        f"{rows[0]['n_patients_without']:,} without"
    )
    return f"{pair[0]}, {readable(pair[1])}: {fire}: {words} ({patients}{found})."


def _q(row: Row, name: str) -> PValue:
    return PValue(number(row[name]))


def _told(row: Row, alpha: float) -> Row:
    is_known = np.isfinite(number(row["covariate_q"]))
    none = "nothing recorded" if is_known else None
    return {
        "model": row["model"],
        "concept": row["concept"],
        "latent": row["latent"],
        "verdict": row["verdict"],
        "AUROC": estimate(row, "auroc"),
        "q": _q(row, "auroc_q"),
        "reliance": estimate(row, "reliance"),
        "effect on the logit": estimate(row, "effect"),
        _PLACE: estimate(row, "place"),
        _LESIONS: estimate(row, "cpm"),
        "goes with": row["covariate"] if row["covariate"] and number(row["covariate_q"]) < alpha else none,
        "given the covariates, q": _q(row, "given_q"),
    }


def _group(row: Row, unit: str) -> Row:
    return {
        "model": row["model"],
        "concept": row["concept"],
        "by": row["by"] or "all",
        "group": row["group"] or "all",
        unit: row["n_rows"],
        "with the finding": row["n_positive"],
        "patients with": row.get("n_positive_patients"),
        "without": row.get("n_negative_patients"),
        "AUROC": estimate(row, "auroc"),
        "of the others": Estimate(number(row["rest_auroc"])),
        "difference": Estimate(number(row["difference"]), signed=True),
        "q": _q(row, "q"),
        "of its groups": "lowest" if row["worst"] else None,
    }
