"""The page of one concept: its latents, what classifiers do with and without them, and where they fire."""

__all__ = ["concept_page"]

import math
from pathlib import Path
from typing import Any, cast

from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.report.agreement import agreement_section
from mammosae_plugin.report.captions import boxes_behind, figure, n_of, n_of_sweeps, names_said
from mammosae_plugin.report.evidence import evidence_section
from mammosae_plugin.report.explained import explained_section
from mammosae_plugin.report.firing import firing_section
from mammosae_plugin.report.names import names_section
from mammosae_plugin.report.pairs import pairs_section
from mammosae_plugin.report.paper import compare_figure_2, compare_table_2
from mammosae_plugin.report.rendering import render
from mammosae_plugin.report.repair import repair_section
from mammosae_plugin.report.summary import RESTORED, baselines_summary, findings, lesions_summary, summary
from mammosae_plugin.report.views import (
    TableView,
    glance_view,
    rankings_view,
    roles_obstacles,
    roles_view,
    shared_latents,
    sweep_view,
    table_view,
)
from mammosae_plugin.schema.names import (
    REPORT_FILE,
    concept_page_name,
    figure_2_name,
    figure_3_name,
    figure_4_name,
    froc_name,
    readable,
)
from mammosae_plugin.schema.results import (
    Results,
    Row,
    class_names,
    concepts,
    has_boxes,
    may_show_images,
    model_names,
    n_best,
    number,
    pairs,
)
from mammosae_plugin.visualization.lesions import table_lesions
from mammosae_plugin.visualization.tables import table_2

UP = "../"
"""From the page of a concept to the results folder."""
_BY_CONCEPT = (
    *("models", "tables", "sae_quality", "reconstruction", "rankings", "interventions", "localization", "baselines"),
    *("lesions", "evidence", "groups", "views", "explained", "repair", "layers", "neighbours"),
)
_BY_ENCODER = ("names", "pairs")


def concept_page(results: Results, concept: str, figures_folder: Path) -> str:
    """The page as HTML, with the figures found in `figures_folder`."""
    content = _content(of_concept(results, concept), concept, figures_folder)
    others = [
        (concept_page_name(one).partition("/")[2], f"Concept: {readable(one)}")
        for one in concepts(results)
        if one != concept
    ]
    scripts = ("page.js", "sort.js") if content["evidence"] else ("page.js",)
    return render("concept.html.j2", scripts=scripts, others=others, **content)


def of_concept(results: Results, concept: str) -> Results:
    """What was found of one concept alone; of an encoder that serves several, what was found of the encoder."""
    own: Row = {**results}
    for name in _BY_CONCEPT:
        if name in own:
            own[name] = [row for row in own[name] if row["concept"] == concept]
    for name in _BY_ENCODER:
        if name in own:
            own[name] = [row for row in own[name] if _serves(row["encoder"], concept)]
    own["named_latents"] = {pair: rows for pair, rows in own["named_latents"].items() if pair.endswith(f"/{concept}")}
    of_data = [row for row in results["data"]["concepts"] if row["concept"] == concept]
    own["data"] = {**results["data"], "concepts": of_data}
    return cast(Results, own)


def _serves(encoder: str, concept: str) -> bool:
    _, _, shared = encoder.partition("/")
    return not shared or concept in shared.split("+")


def _content(results: Results, concept: str, folder: Path) -> dict[str, Any]:
    paper = results["paper_setting"]
    return {
        "results": results,
        "title": readable(concept),
        "study": results["title"],
        "report": UP + REPORT_FILE,
        "up": UP,
        "layer": results["layer"]["name"] if "layer" in results else "",
        "summary": summary(results),
        "restored": RESTORED,
        "n_test": n_of(results, "test"),
        "n_run": n_of_sweeps(results),
        "n_training": n_of(results, "training"),
        "n_localized": boxes_behind(results),
        "has_boxes": has_boxes(results),
        "glance": glance_view(findings(results), results),
        "top": n_best(results),
        "one_control": results.get("n_controls") == 1,
        "unit": EvaluationUnit.named(results["data"]["unit"]),
        "rankings": _rankings(results),
        "roles": roles_view(results),
        "roles_obstacles": roles_obstacles(results),
        "scores": {row["score"] for row in results["rankings"]},
        "names": names_section(
            results.get("names", []), results["config"], ["encoder"], split="test", where="tables/names.csv"
        ),
        "evidence": evidence_section(results),
        "repair": repair_section(results),
        "agreement": agreement_section(results),
        "answers": pairs_section(results),
        "figures_2": _figures_2(results, concept, folder),
        "sweep": sweep_view(results, error_term=False),
        "sweep_error_term": sweep_view(results, error_term=True),
        "paper_figure_2": table_view(compare_figure_2(results)) if paper else None,
        "figures_4": [_figure_4(results, *pair, folder) for pair in pairs(results)],
        "firing": firing_section(results, folder, up=UP),
        "table_2": _table_2(results),
        "lesions": _lesions(results, concept, folder),
        "table_lesions": table_view(table_lesions(results), n_labels=3),
        "precision_has_intervals": any(
            math.isfinite(number(row.get("average_precision_low"))) for row in results["localization"]
        ),
        "iou_thresholds": sorted({f"{row['iou_threshold']:g}" for row in results["localization"]}),
        "baselines": baselines_summary(results),
        "methods": {row["method"] for row in results.get("baselines", [])},
        "paper_table_2": table_view(compare_table_2(results), n_labels=3) if paper else None,
        "images_shown": may_show_images(results),
        "figures_3": _figures_3(results, folder) if may_show_images(results) else [],
        "explained": explained_section(results, folder, up=UP),
    }


def _figures_2(results: Results, concept: str, folder: Path) -> list[Row]:
    figures = []
    for error_term in (False, True):
        if any(row["error_term"] == error_term for row in results["interventions"]):
            who = " and ".join(model_names(results, concept))
            how = ", with the SAE's error term" if error_term else ""
            alt = f"{readable(concept)}: AUROC against the number of latents per class, for {who}{how}"
            name = figure_2_name(concept, error_term=error_term)
            figures.append({**figure(folder, name, alt, n_of_sweeps(results), up=UP), "error_term": error_term})
    return figures


def _best(results: Results, model: str) -> list[int]:
    """The best latents of the class with the finding, by the first score of the study."""
    ranked = next((row for row in results["rankings"] if row["model"] == model and row["class"] == 1), None)
    return [int(latent) for latent in ranked["latents"][: n_best(results)]] if ranked else []


def _figures_3(results: Results, folder: Path) -> list[Row]:
    """Figure 3 of every model that has one or, having boxes to compare with, should have one."""
    localized = {row["model"]: row.get("n_images") for row in results["localization"]}
    shown = int((results["config"].get("report") or {}).get("n_images", 4))
    figures = []
    for model, concept in pairs(results):
        alt = f"{model}, {readable(concept)}: heatmaps of the best latents"
        of = localized.get(model)
        n = f"n = {min(shown, of or shown)} images drawn at random of {of or 'all'} test images with a box"
        one = figure(folder, figure_3_name(model, concept), alt, n, up=UP)
        one["names"] = names_said(results, model, concept, _best(results, model))
        if one["source"] or model in localized:
            figures.append(one)
    return figures


def _figure_4(results: Results, model: str, concept: str, folder: Path) -> Row:
    alt = f"{model}, {readable(concept)}: mean activation of every live latent in both classes"
    named = results["named_latents"].get(f"{model}/{concept}", [])
    one = figure(folder, figure_4_name(model, concept), alt, n_of(results, "training"), up=UP)
    return {**one, "names": names_said(results, model, concept, [int(row["latent"]) for row in named])}


def _table_2(results: Results) -> TableView | None:
    """Table 2 without the column of the IoU where all rows have the same, which the caption then says."""
    table = table_2(results)
    if table["iou_threshold"].nunique() == 1:
        return table_view(table.drop(columns="iou_threshold"), n_labels=4)
    return table_view(table, n_labels=5)


def _lesions(results: Results, concept: str, folder: Path) -> Row | None:
    """The section on lesions: a figure, how much stands behind it, and sentences; None without lesions."""
    own = results.get("lesions", [])
    if not own:
        return None
    masked = {one["name"] for one in results["data"].get("vocabulary") or [] if one.get("masks")}
    masked = set() if results["data"]["unit"] == "finding_row" else masked
    first = own[0]
    n = (
        f"n = {first['n_images']:,} test images of {first['n_patients']:,} patients, "
        f"{first['n_healthy']:,} healthy; "
        f"{first['n_lesions']:,} lesions in {first['n_lesion_images']:,} images of "
        f"{first['n_lesion_patients']:,} patients"
    )
    if first["n_unlocated"]:
        n += f"; {first['n_unlocated']:,} images with the finding but no box were left out"
    n += f"; a lesion is {'a connected part of a mask' if concept in masked else 'a box'}"
    if first["n_reachable"] < first["n_lesions"]:
        n += f"; the centre of a position lies in {first['n_reachable']:,} of them, others cannot be found"
    alt = f"{readable(concept)}: share of lesions found against false positives per image"
    names = [
        f" {model}.{said}"
        for model in dict.fromkeys(row["model"] for row in own)
        if (said := names_said(results, model, concept, _judged(own, model)))
    ]
    return {
        "figure": figure(folder, froc_name(concept), alt, n, up=UP),
        "names": "".join(names),
        "said": lesions_summary(own),
        "n": f"n = {first['n_images']:,} test images, {first['n_lesions']:,} lesions",
        "fppi": ", ".join(f"{x:g}" for x in first["fppi"]),
    }


def _judged(rows: list[Row], model: str) -> list[int]:
    return [int(row["latent"]) for row in rows if row["model"] == model and row["method"] == "latent"]


def _rankings(results: Results) -> list[Row]:
    scores = list(dict.fromkeys(row["score"] for row in results["rankings"]))
    views = [
        {
            "title": f"{model}, {readable(concept)}" + (f", score {score}" if len(scores) > 1 else ""),
            "table": rankings_view(results, model, concept, score),
            "shared": shared_latents(results, model, concept, score),
            "classes": "both" if len(class_names(results, concept)) in (0, 2) else "all",
        }
        for score in scores
        for model, concept in pairs(results)
    ]
    return [view for view in views if view["table"] is not None]
