"""The paper's claims, asked of a study's results."""

__all__ = ["claims"]

import math
from collections.abc import Mapping
from typing import Any, cast

import pandas as pd

from mammosae_plugin.schema.results import Results, recovered, sweep_reference


def claims(results: Mapping[str, Any], *, top: int) -> list[dict[str, Any]]:
    """The paper's claims as yes-or-no questions about a study's results, each with the value and the bar.

    For every model and concept with two classes: the SAE costs at most 0.02 of AUROC; the `top` best latents of each
    class alone recover at least 95 % of (AUROC - 0.5); removing them costs more than removing as many random live
    latents (the mean over the random groups); at least one of them localizes the concept with an average precision
    above 0.25. A question that cannot be asked, because its value is not defined or because the unmodified classifier
    does no better than chance and the value compares AUROCs with it, is not applicable: `passed` is None.
    """
    checks: list[dict[str, Any]] = []

    def add(name: str, value: float, threshold: float, direction: str, *, applies: bool = True) -> None:
        passed = (
            value >= threshold if direction == ">=" else value <= threshold if direction == "<=" else value > threshold
        )
        checks.append(
            {
                "name": name,
                "value": value,
                "threshold": threshold,
                "direction": direction,
                "passed": bool(passed) if applies and math.isfinite(value) else None,
            }
        )

    localized = pd.DataFrame(results["localization"])
    sweeps = pd.DataFrame(results["interventions"])
    variants = pd.DataFrame(results["reconstruction"])
    classes = {(row["concept"], row["class"]) for row in results["rankings"]}
    for (model, concept), rows in variants.groupby(["model", "concept"], sort=False):
        if sum(one == concept for one, _ in classes) != 2:
            continue
        auroc = dict(zip(rows["variant"], rows["auroc"], strict=True))
        whole = auroc["without_sae"]
        able = whole > 0.5
        reference = sweep_reference(cast(Results, results), str(model), str(concept))
        add(f"{model}/{concept}: AUROC that the SAE costs", whole - auroc["with_sae"], 0.02, "<=", applies=able)
        sweep = sweeps.query("model == @model and concept == @concept and k == @top and not error_term")
        for row in sweep.to_dict("records"):
            if row["mode"] == "activate":
                share = recovered(row["auroc"], reference)
                add(
                    f"{model}/{concept}: share of (AUROC - 0.5) that the {top} best latents per class recover",
                    share,
                    0.95,
                    ">=",
                    applies=able,
                )
            else:
                excess = row["random_auroc_mean"] - row["auroc"]
                add(
                    f"{model}/{concept}: AUROC that removing them costs more than random live latents",
                    excess,
                    0.0,
                    ">",
                    applies=able,
                )
        if len(localized):
            best = localized.query("model == @model and concept == @concept")["average_precision"].max()
            add(f"{model}/{concept}: best average precision of a latent's heatmap", best, 0.25, ">")
    return checks
