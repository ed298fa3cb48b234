"""The report's section on all latents: verdicts, the latents that matter most, and performance by group."""

__all__ = ["evidence_section"]

from collections import Counter
from typing import Any

import pandas as pd

from mammosae_plugin.report.views import table_view
from mammosae_plugin.schema.names import readable
from mammosae_plugin.schema.results import Results, Row, n_best, number, shortcuts
from mammosae_plugin.visualization.tables import Estimate, estimate

_WORDS = ("concept", "context", "shortcut", "unclear")


def evidence_section(results: Results) -> dict[str, Any] | None:
    """What the template shows of the evidence; None where the study has none, as those of earlier versions."""
    rows = results.get("evidence", [])
    if not rows:
        return None
    pairs = list(dict.fromkeys((row["model"], row["concept"]) for row in rows))
    of_pairs = {pair: [row for row in rows if (row["model"], row["concept"]) == pair] for pair in pairs}
    first = [
        row
        for own in of_pairs.values()
        for row in sorted(own, key=lambda row: (_WORDS.index(row["verdict"]) == 3, -_size(row)))[: n_best(results)]
    ]
    return {
        "verdicts": [_counted(pair, own) for pair, own in of_pairs.items()],
        "table": table_view(pd.DataFrame([_told(row) for row in first]), n_labels=3),
        "n_tests": max(int(row["n_tests"] or 0) for row in rows),
        "shortcuts": [{**row, "title": f"{row['model']}, {readable(row['concept'])}"} for row in shortcuts(results)],
        "groups": table_view(pd.DataFrame([_group(row) for row in results.get("groups", [])]), n_labels=4),
        "alpha": f"{results['config'].get('analysis', {}).get('confounders', {}).get('alpha', 0.05):g}",
    }


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
        "in its boxes": estimate(row, "place"),
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
