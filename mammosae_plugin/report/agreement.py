"""The report's section on views and sides: whether the latents that are drawn say the same of the other image."""

__all__ = ["agreement_section"]

from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.report.views import name_cell, named_column, names_of_pair, table_view, without_empty
from mammosae_plugin.schema.names import counted, readable
from mammosae_plugin.schema.results import Results, Row, n_best, number
from mammosae_plugin.visualization.tables import Estimate, PValue, estimate

_CALLED = 0.05  # false discovery rate


def agreement_section(results: Results) -> dict[str, Any] | None:
    """What the template shows of agreement between views and sides.

    Returns:
        None where the study was not asked for it (`analysis.views: null`) or is of an earlier version; `missing`, a
        line, where it has none; else `names` of the comparisons, sentences in `said`, a `table` of the latents that
        are drawn, where anything can be told of one, and `n`, how much stands behind it.
    """
    settings = results["config"].get("analysis", {}).get("views")
    rows = results.get("views", [])
    if not rows and not settings:
        return None
    if not rows:
        return {
            "missing": "Agreement between views and sides was not examined: the data do not say laterality and view of "
            "the test images, or no patient has two of them to hold together."
        }
    one, other = settings["views"] if settings else ("CC", "MLO")
    names = {"views": f"{one} and {other} of one breast", "sides": "left and right in one view"}
    drawn = {
        (row["model"], row["concept"]): row["latents"][: n_best(results)]
        for row in results["rankings"]
        if row["class"] == 1
    }
    of_pairs = {pair: {row["latent"]: row for row in rows if (row["model"], row["concept"]) == pair} for pair in drawn}
    chosen = [own[latent] for pair, own in of_pairs.items() for latent in drawn[pair] if latent in own]
    is_told = any(np.isfinite(number(row[name])) for row in chosen for name in names)
    told = [_told(row, names) for row in chosen if is_told]
    n_pairs, n_patients = (max((int(row[f"{name}_{of}"] or 0) for row in rows for name in names), default=0)
                           for of in ("pairs", "patients"))  # fmt: skip
    view = table_view(without_empty(pd.DataFrame(told, dtype=object)), n_labels=3)
    called = [name_cell(names_of_pair(results, row["model"], row["concept"]), row["latent"]) for row in chosen]
    return {
        "missing": "",
        "names": names,
        "called": f"{_CALLED:g}",
        "said": [_counted(model, own, names) for model, own in _of_models(of_pairs).items()],
        "table": view and named_column(view, called, "Latent"),
        "n": f"n = {counted(n_pairs, 'pair')} of test images of {counted(n_patients, 'patient')} at most",
    }


def _of_models(of_pairs: dict[tuple[str, str], dict[int, Row]]) -> dict[str, list[Row]]:
    """The latents of every table once: the findings of a model may share one."""
    tables: dict[str, list[tuple[str, list[Row]]]] = {}
    for (model, concept), own in of_pairs.items():
        rows = [{**row, "concept": None} for row in own.values()]
        if rows and all(rows != other for _, other in tables.setdefault(model, [])):
            tables[model].append((concept, rows))
    return {
        f"{model}, {readable(concept)}" if len(own) > 1 else model: rows
        for model, own in tables.items()
        for concept, rows in own
    }


def _counted(model: str, rows: list[Row], names: dict[str, str]) -> str:
    """A sentence: how many latents agree."""
    parts = []
    for name, words in names.items():
        scored = [row for row in rows if number(row[name]) == number(row[name])]
        called = sum(number(row[f"{name}_q"]) < _CALLED for row in scored)
        n_pairs, n_patients = (max((int(row[f"{name}_{of}"] or 0) for row in rows), default=0)
                               for of in ("pairs", "patients"))  # fmt: skip
        behind = f"{counted(n_pairs, 'pair')} of images of {counted(n_patients, 'patient')}"
        how_many = f"{called} of {counted(len(scored), 'latent')}" if scored else "of no latent can it be told"
        parts.append(f"{words}: {how_many} ({behind if n_pairs else 'there are no such pairs'})")
    return f"{model}: {'; '.join(parts)}."


def _told(row: Row, names: dict[str, str]) -> Row:
    told: Row = {"model": row["model"], "concept": row["concept"], "latent": row["latent"]}
    for name, words in names.items():
        told[words] = estimate(row, name)
        told[f"{name}: other patients"] = Estimate(number(row[f"{name}_chance"]))
        told[f"{name}: q"] = PValue(number(row[f"{name}_q"]))
    return {**told, "own breast alone": estimate(row, "own_breast"), "not told": row.get("reason") or None}
