"""The published numbers of the Mammo-SAE paper beside a study's own, for runs in the paper's setting.

`paper_results.json` holds what the paper and its released result files state: Table 1 with all metrics, Table 2, and
the released part of Figure 2 (finetuned model, suspicious calcification, latents activated).
"""

__all__ = ["compare_figure_2", "compare_table_1", "compare_table_2", "paper_concepts", "paper_results"]

import json
import math
from importlib import resources
from typing import Any

import pandas as pd

from mammosae_plugin.schema.results import Results, Row, number, pairs, reconstruction_row
from mammosae_plugin.visualization.tables import Estimate

_METRICS = {
    "auroc": "aucroc",
    "average_precision": "auprc",
    "precision": "precision",
    "recall": "recall",
    "f1": "f1",
}
_VARIANTS = {"without_sae": "without SAE", "with_sae": "with SAE"}


def paper_results() -> dict[str, Any]:
    """The content of the package's `paper_results.json`."""
    text = resources.files("mammosae_plugin.report").joinpath("paper_results.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def paper_concepts() -> list[str]:
    """The concepts of the paper's Table 1."""
    return list(dict.fromkeys(key.split()[0].rpartition("_")[0] for key in paper_results()["table_1_classification"]))


def compare_table_1(results: Results) -> pd.DataFrame:
    """Ours, the paper's and the difference (ours minus the paper's) for every model and variant that both have."""
    published = paper_results()["table_1_classification"]
    rows: list[Row] = []
    for model, concept in pairs(results):
        for variant, words in _VARIANTS.items():
            theirs = published.get(f"{concept}_{model} {words}")
            ours = reconstruction_row(results, model, concept, variant)
            if theirs and ours:
                numbers = {metric: (number(ours.get(metric)), float(theirs[key])) for metric, key in _METRICS.items()}
                rows += _three({"model": model, "concept": concept, "variant": words}, numbers)
    return pd.DataFrame(rows, columns=["model", "concept", "variant", "source", *_METRICS])


def compare_table_2(results: Results) -> pd.DataFrame:
    """Localization by rank beside the paper's, for rows at its threshold (95th percentile) and IoU (0.25)."""
    published = paper_results()["table_2_localization_map_by_rank"]
    threshold = f"percentile {published['threshold_percentile']}"
    n_ranks = max(len(values) for values in published["rows"].values())
    rows: list[Row] = []
    for model, concept in pairs(results):
        theirs = published["rows"].get(f"{concept} {model}")
        ours = {
            row["rank"]: number(row["average_precision"])
            for row in results["localization"]
            if (row["model"], row["concept"], row["threshold"]) == (model, concept, threshold)
            and row["iou_threshold"] == published["IoU"]
        }
        if theirs and ours:
            numbers = {f"rank_{rank}": (ours.get(rank, math.nan), value) for rank, value in enumerate(theirs, start=1)}
            rows += _three({"model": model, "concept": concept}, numbers)
    return pd.DataFrame(rows, columns=["model", "concept", "source", *(f"rank_{r}" for r in range(1, n_ranks + 1))])


def compare_figure_2(results: Results) -> pd.DataFrame:
    """AUROC with only the k best latents per class, beside the released points of Figure 2.

    The released file counts the latents of both classes together (`topk`), so its k per class is half of that.
    """
    points = paper_results()["figure_2_topk_activated_suspicious_calcification_finetuned"]
    theirs = {point["topk"] // 2: float(point["aucroc"]) for point in points}
    ours = {
        row["k"]: number(row["auroc"])
        for row in results["interventions"]
        if (row["model"], row["concept"], row["mode"]) == ("finetuned", "Suspicious_Calcification", "activate")
        and not row["error_term"]
    }
    rows = [{"k": k} | _versus(ours[k], value) for k, value in theirs.items() if k in ours]
    return pd.DataFrame(rows, columns=["k", "ours", "paper", "difference"])


def _versus(ours: float, theirs: float) -> dict[str, Estimate]:
    return {"ours": Estimate(ours), "paper": Estimate(theirs), "difference": Estimate(ours - theirs, signed=True)}


def _three(key: Row, numbers: dict[str, tuple[float, float]]) -> list[Row]:
    cells = {name: _versus(*values) for name, values in numbers.items()}
    return [
        key | {"source": source} | {name: cell[source] for name, cell in cells.items()}
        for source in ("ours", "paper", "difference")
    ]
