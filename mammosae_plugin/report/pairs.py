"""The report's section on counterfactual pairs: what latents answer to, where, and what that is beside chance."""

__all__ = ["pairs_section"]

import math
from typing import Any

import pandas as pd

from mammosae_plugin.report.views import TableView, encoder_title, name_cell, named_column, table_view, whole_numbers
from mammosae_plugin.schema.names import counted, readable
from mammosae_plugin.schema.names_of_latents import names_of_encoder
from mammosae_plugin.schema.pairs import CHANCES
from mammosae_plugin.schema.results import Results, Row, number
from mammosae_plugin.visualization.tables import Estimate, PValue, estimate

_BEST = "Best latent"
_WORDS = {"mixed": "random mixtures of the latents", "permuted": "exchanged attributes", "untrained": "untrained SAEs"}


def pairs_section(results: Results) -> dict[str, Any] | None:
    """What the template shows of the pairs.

    Returns:
        None where the study has none; else sentences in `said`, the `table` of attributes, and whether there are places
        (`has_places`) and untrained SAEs (`has_untrained`).
    """
    rows = results.get("pairs", [])
    if not rows:
        return None
    least = int(results["config"].get("analysis", {}).get("min_patients", 10))
    by_encoder: dict[str, list[Row]] = {}
    for row in rows:
        by_encoder.setdefault(row["encoder"], []).append(row)
    has_places = any(_is_known(row, "inside") for row in rows)
    has_untrained = any(_is_known(row, "n_selective_untrained") for row in rows)
    settings = results["config"].get("analysis", {}).get("pairs") or {}
    return {
        "few": _few(next(iter(by_encoder.values())), least),
        "said": [_said(encoder, own) for encoder, own in by_encoder.items()],
        "table": _view(rows, _table([_told(row, has_places, has_untrained) for row in rows]), results),
        "has_places": has_places,
        "n": _behind(next(iter(by_encoder.values()))),
        "has_untrained": has_untrained,
        "statistic": {"max": "maximum", "mean": "mean"}[settings.get("statistic", "max")],
        "phantoms": bool((settings.get("data") or {}).get("phantom")),
    }


def _behind(rows: list[Row]) -> str:
    """How much stands behind the table; the pairs are the same for every encoder."""
    return f"n = {counted(sum(row['n_pairs'] for row in rows), 'pair')} of images, of each encoder the same"


def _is_known(row: Row, name: str) -> bool:
    return math.isfinite(number(row.get(name)))


def _few(rows: list[Row], least: int) -> str:
    """What cannot be told by these pairs; empty where everything can be."""
    if len(rows) == 1:
        only = readable(rows[0]["attribute"])
        return f"The pairs differ in one thing alone ({only}): nothing says whether anything else moves a latent."
    few = [f"{readable(row['attribute'])} {row['n_patients']}" for row in rows if row["n_patients"] < least]
    if not few:
        return ""
    which = "Nothing can be told of these pairs" if len(few) == len(rows) else "Nothing is told of some attributes"
    return f"{which}: an interval and a p-value take {least} patients, and there are of {', '.join(few)}."


def _said(encoder: str, rows: list[Row]) -> str:
    """A sentence: how many attributes have a selective latent, of how many pairs, and the chances."""
    scored = [row for row in rows if _is_known(row, "best_selectivity")]
    if not scored:
        return (
            f"{encoder_title(encoder)}: {sum(row['n_pairs'] for row in rows)} pairs, by which no attribute is scored."
        )
    first, n_pairs = scored[0], sum(row["n_pairs"] for row in scored)
    n = f"{sum(row['n_selective'] > 0 for row in scored)} of {len(scored)} attributes have a selective latent"
    numbers = sorted({row["n_patients"] for row in scored})
    patients = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    shares = {end: number(first.get(f"share_{end}")) for end in CHANCES}
    beside = [f"{100 * share:.0f} % with {_WORDS[end]}" for end, share in shares.items() if math.isfinite(share)]
    return (
        f"{encoder_title(encoder)}: {n}, {100 * number(first['share']):.0f} % (by chance {', '.join(beside)}); "
        f"{n_pairs} pairs, {patients} patients for each."
    )


def _table(told: list[Row]) -> pd.DataFrame:
    return whole_numbers(whole_numbers(pd.DataFrame(told), "selective"), "best latent")


def _view(rows: list[Row], table: pd.DataFrame, results: Results) -> TableView | None:
    names = results.get("names", [])
    known = {row["encoder"]: names_of_encoder(names, row["encoder"]) for row in rows}
    view = table_view(table, n_labels=2)
    return view and named_column(view, [name_cell(known[row["encoder"]], row["best_latent"]) for row in rows], _BEST)


def _told(row: Row, has_places: bool, has_untrained: bool) -> Row:
    told: Row = {
        "encoder": encoder_title(row["encoder"]),
        "attribute": readable(row["attribute"]),
        "patients": row["n_patients"],
        "responding": row["n_responding"],
        "selective": row["n_selective"],
        "best latent": row["best_latent"],
        "response": estimate(row, "response"),
        "q": PValue(number(row["q"])),
        "selectivity": estimate(row, "selectivity"),
    }
    if has_places:
        told |= {"in the box": estimate(row, "inside"), "the box's area": Estimate(number(row["inside_chance"]))}
    told["concept score"] = Estimate(number(row["concept_score"]))
    if has_untrained:
        told["of an untrained SAE"] = Estimate(number(row["concept_score_untrained"]))
    return told
