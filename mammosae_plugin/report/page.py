"""Turns what a study found at a layer into `report.html`."""

__all__ = ["render_report", "write_report"]

import math
import os
import posixpath
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mammosae_plugin.datasets.about import KNOWN, DatasetAbout
from mammosae_plugin.files import local_path, write_text
from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.report.agreement import agreement_section
from mammosae_plugin.report.evidence import evidence_section
from mammosae_plugin.report.explained import explained_section
from mammosae_plugin.report.names import names_section
from mammosae_plugin.report.pairs import pairs_section
from mammosae_plugin.report.paper import compare_figure_2, compare_table_1, compare_table_2, paper_concepts
from mammosae_plugin.report.rendering import figure_source, render
from mammosae_plugin.report.repair import repair_section
from mammosae_plugin.report.summary import (
    RESTORED,
    Finding,
    baselines_summary,
    findings,
    layers_summary,
    lesions_summary,
    summary,
)
from mammosae_plugin.report.views import (
    TableView,
    rankings_view,
    roles_obstacles,
    roles_view,
    shared_latents,
    sweep_view,
    table_view,
)
from mammosae_plugin.schema.libraries import cited, libraries_used, library_title
from mammosae_plugin.schema.names import (
    FIGURE_LAYERS,
    FIGURES_FOLDER,
    MINUS,
    REPORT_FILE,
    figure_2_name,
    figure_3_name,
    figure_4_name,
    froc_name,
    layer_folder,
    readable,
)
from mammosae_plugin.schema.results import (
    NEAR_ZERO,
    Results,
    Row,
    class_names,
    concepts,
    has_boxes,
    layer_names,
    may_show_images,
    model_names,
    n_best,
    number,
    pairs,
)
from mammosae_plugin.visualization.lesions import table_lesions
from mammosae_plugin.visualization.tables import MISSING, Estimate, table_1, table_2, table_layers

_SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def write_report(results: Results, results_folder: str | os.PathLike[str]) -> Path:
    """Write `<results_folder>/report.html` from what was found at a layer and the folder's figures; returns its path.

    The page holds everything that it shows: no network, figures inside, no script but that which sorts the table of
    latents. Patients' images are left out unless the study's config asks for them (`report: {include_images: true}`).
    What the results lack is said in a sentence.
    The same findings give the same bytes.
    """
    folder = local_path(results_folder)
    path = folder / REPORT_FILE
    write_text(path, render_report(results, folder / FIGURES_FOLDER))
    return path


def render_report(results: Results, figures_folder: Path) -> str:
    """The report as HTML, with the figures found in `figures_folder`."""
    return render("template.html.j2", **_content(results, figures_folder))


def _content(results: Results, figures_folder: Path) -> dict[str, Any]:
    found = findings(results)
    counted = EvaluationUnit.named(results["data"]["unit"])
    paper = results["paper_setting"]
    return {
        "results": results,
        "title": results["title"],
        "data": _about(results),
        "summary": summary(results),
        "restored": RESTORED,
        "n_test": _n(results, "test"),
        "n_training": _n(results, "training"),
        "n_localized": _n_boxes(results),
        "has_boxes": has_boxes(results),
        "glance": _glance(found, results),
        "top": n_best(results),
        "one_control": results.get("n_controls") == 1,
        "layers": _layers(results, figures_folder) if results.get("layers") else None,
        "comparison": _comparison_note(results),
        "splits": table_view(pd.DataFrame(results["data"]["splits"]).rename(columns={"n_units": counted.plural})),
        "unit": counted,
        "prevalence": table_view(_prevalence(results), n_labels=2),
        "quarantine": _quarantine(results),
        "boxes": _boxes(results["data"]),
        "models": table_view(_models(results)),
        "sae_training": _sae_training(results["sae"]),
        "quality": table_view(_quality(results)),
        "table_1": table_view(table_1(results), n_labels=3),
        "paper_table_1": table_view(compare_table_1(results), n_labels=4) if paper else None,
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
        "figures_2": _figures_2(results, figures_folder),
        "sweep": sweep_view(results, error_term=False),
        "sweep_error_term": sweep_view(results, error_term=True),
        "paper_figure_2": table_view(compare_figure_2(results)) if paper else None,
        "figures_4": [
            _figure(
                figures_folder,
                figure_4_name(model, concept),
                f"{model}, {readable(concept)}: mean activation of every live latent in both classes",
                _n(results, "training", concept),
            )
            for model, concept in pairs(results)
        ],
        "table_2": _table_2(results),
        "lesions": _lesions(results, figures_folder),
        "table_lesions": table_view(table_lesions(results), n_labels=3),
        "precision_has_intervals": any(
            math.isfinite(number(row.get("average_precision_low"))) for row in results["localization"]
        ),
        "iou_thresholds": sorted({f"{row['iou_threshold']:g}" for row in results["localization"]}),
        "baselines": baselines_summary(results),
        "methods": {row["method"] for row in results.get("baselines", [])},
        "n_boxes": max((row.get("n_boxes", 0) for row in results["localization"]), default=0),
        "paper_table_2": table_view(compare_table_2(results), n_labels=3) if paper else None,
        "images_shown": may_show_images(results),
        "figures_3": _figures_3(results, figures_folder) if may_show_images(results) else [],
        "explained": explained_section(results, figures_folder),
        "networks_cited": cited(libraries_used(results["models"], results["config"])),
        "checks": [
            check
            | {
                "value": _plain(number(check["value"])),
                "criterion": f"{_SIGNS[check['direction']]} {check['threshold']:g}",
            }
            for check in results.get("checks", [])
        ],
        "config": yaml.safe_dump(
            results["config"], sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
        ),
    }


def _sae_training(sae: dict[str, Any]) -> dict[str, str]:
    """How an SAE was trained, without what was left open; SAELens saves some architectures as another one."""
    training = {name: value for name, value in (sae.get("training") or {}).items() if value is not None}
    trained_as = training.pop("architecture", None)
    first = {"trained_as": trained_as} if trained_as not in (None, sae.get("architecture")) else {}
    return _facts({**first, **training})


def _facts(values: dict[str, Any]) -> dict[str, str]:
    """Settings for reading: names as words, numbers in full, what is nested in one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key}: {text(inner)}" for key, inner in value.items())
        if isinstance(value, list):
            return ", ".join(text(inner) for inner in value)
        return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)

    words = {name: name.replace("_", " ").strip() for name in values}
    return {words[name][:1].upper() + words[name][1:]: text(value) for name, value in values.items()}


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", MINUS) if math.isfinite(value) else MISSING


def _n(results: Results, split: str, concept: str | None = None) -> str:
    """How much stands behind a figure or table: "n = 24 test images of 12 patients, 14 with Mass"."""
    data = results["data"]
    unit = EvaluationUnit.named(data["unit"])
    whole = next((row for row in data["splits"] if row["split"] == split), None)
    if whole is None:
        return ""
    size = whole.get("n_units", whole["n_rows"] if unit.name == "finding_row" else whole["n_images"])
    of = "" if unit.name == "patient" else f" of {whole['n_patients']:,} patients"
    text = f"n = {size:,} {split} {unit.plural}{of}"
    named = [row for row in data["concepts"] if row["split"] == split and concept in (None, row["concept"])]
    with_finding = [f"{row['n_positive']:,} with {readable(row['concept'])}" for row in named]
    return ", ".join([text, *with_finding])


def _n_boxes(results: Results) -> str:
    """The images and boxes of each concept that localization is measured on."""
    found = {row["concept"]: row for row in results["localization"]}
    parts = [
        f"{readable(concept)} {row['n_boxes']:,} boxes in {row['n_images']:,} test images"
        for concept, row in found.items()
        if row.get("n_boxes") and row.get("n_images")
    ]
    return f"n: {'; '.join(parts)}" if parts else ""


def _figure(folder: Path, name: str, alt: str, n: str = "") -> Row:
    """A figure as a data URI; without a file `source` is None and the report says so."""
    return {"name": name, "source": figure_source(folder / name), "alt": alt, "n": n}


def _figures_2(results: Results, folder: Path) -> list[Row]:
    figures = []
    for error_term in (False, True):
        for concept in concepts(results):
            if any(row["concept"] == concept and row["error_term"] == error_term for row in results["interventions"]):
                who = " and ".join(model_names(results, concept))
                how = ", with the SAE's error term" if error_term else ""
                alt = f"{readable(concept)}: AUROC against the number of latents per class, for {who}{how}"
                name, n = figure_2_name(concept, error_term=error_term), _n(results, "test", concept)
                figures.append(_figure(folder, name, alt, n))
    return figures


def _figures_3(results: Results, folder: Path) -> list[Row]:
    """Figure 3 of every model and concept that has one or, having boxes to compare with, should have one."""
    localized = {(row["model"], row["concept"]) for row in results["localization"]}
    figures = [
        (pair, _figure(folder, figure_3_name(*pair), f"{pair[0]}, {readable(pair[1])}: heatmaps of the best latents"))
        for pair in pairs(results)
    ]
    return [figure for pair, figure in figures if figure["source"] or pair in localized]


def _glance(found: list[Finding], results: Results) -> TableView | None:
    top, one_control = n_best(results), results.get("n_controls") == 1
    rows: list[Row] = []
    for finding in found:
        group, best = finding.restoring, finding.best or {}
        best = best if number(best.get("average_precision")) >= NEAR_ZERO else {}
        none = Estimate(math.nan)
        random = group.random if group else none
        if one_control:
            random = Estimate(random.value)
        rows.append(
            {
                "model": finding.model,
                "concept": finding.concept,
                "AUROC without SAE": finding.without,
                "with SAE": finding.with_sae,
                f"recovered by the {top} best": finding.recovered_by_best,
                "restoring k": group.k if group else None,
                "AUROC there": group.auroc if group else none,
                f"random group{'' if one_control else 's'} there": random,
            }
        )
        if has_boxes(results):
            precision = Estimate(number(best.get("average_precision")))
            rows[-1] |= {"latent of the highest AP": best.get("latent"), "its AP": precision}
    return table_view(pd.DataFrame(rows, dtype=object))


def _table_2(results: Results) -> TableView | None:
    """Table 2 without the column of the IoU where all rows have the same, which the caption then says."""
    table = table_2(results)
    if table["iou_threshold"].nunique() == 1:
        return table_view(table.drop(columns="iou_threshold"), n_labels=4)
    return table_view(table, n_labels=5)


def _lesions(results: Results, folder: Path) -> list[Row]:
    """The section on lesions: of each concept a figure, how much stands behind it, and sentences."""
    rows, found = results.get("lesions", []), []
    masked = {one["name"] for one in results["data"].get("vocabulary") or [] if one.get("masks")}
    masked = set() if results["data"]["unit"] == "finding_row" else masked
    for concept in dict.fromkeys(row["concept"] for row in rows):
        own = [row for row in rows if row["concept"] == concept]
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
        fppi = ", ".join(f"{x:g}" for x in first["fppi"])
        alt = f"{readable(concept)}: share of lesions found against false positives per image"
        found.append(
            {"figure": _figure(folder, froc_name(concept), alt, n), "said": lesions_summary(own), "fppi": fppi}
        )
    return found


def _layers(results: Results, folder: Path) -> dict[str, Any]:
    """The section on several layers: where their reports lie, two sentences, a figure, three tables."""
    layer, table = results["layer"], table_layers(results)
    own = layer_folder(layer["name"], layer["primary"])
    links = [
        (name, posixpath.relpath(f"{layer_folder(name, layer['primary'])}/{REPORT_FILE}", own))
        for name in layer_names(results)
        if name != layer["name"]
    ]
    shapes = ["layer", "hook_name", "grid", "channels", "latents"]
    quality = ["explained_variance", "l0", "dead_share"]
    separation = ["auroc_without_sae", "auroc_with_sae", "single_latent", "single_latent_auroc"]
    precisions = ["best_latent", "best_latent_ap", "best_channel_ap", "gradcam_ap"]
    place = ["model", "concept", "layer"]
    localization = table[[*place, *precisions]]
    localization = localization[
        [any(math.isfinite(cell.value) for cell in row[4:]) for row in localization.itertuples(index=False)]
    ]
    return {
        "name": layer["name"],
        "links": links,
        "summary": layers_summary(results),
        "figure": _figure(folder, FIGURE_LAYERS, "AUROC of the best single latent and average precision, by layer"),
        "shapes": table_view(table[shapes].drop_duplicates()),
        "separation": table_view(table[[*place, *quality, *separation, "recovered", "removal_excess"]], n_labels=3),
        "localization": table_view(localization, n_labels=3),
    }


def _comparison_note(results: Results) -> str:
    """Whether, and how, the paper's numbers may be read beside these."""
    if results["paper_setting"]:
        if compare_table_1(results).empty:
            return (
                "The config marks this run as the paper's setting, but no model is named pretrained or finetuned with "
                f"one of the paper's concepts ({', '.join(paper_concepts())}), so there is nothing to compare."
            )
        unit = results["data"]["unit"]
        rows = "The paper evaluates one row per annotated finding (an image with two findings counts twice)" + (
            ", and so does this run."
            if unit == "finding_row"
            else f"; this run's unit is {unit}, so that small differences are expected."
        )
        return f"The config marks this run as the paper's setting: its published numbers stand beside ours. {rows}"
    if results["data_kind"] == "phantom":
        return (
            "The images are generated phantoms. They show that the method runs and how its results look; the numbers "
            "say nothing about patients and are not comparable with the paper's, which are therefore not shown."
        )
    return "The config does not mark this run as the paper's setting, so the paper's numbers are not shown beside ours."


def _about(results: Results) -> Row:
    """What the images are; results of earlier versions name nothing but a collection that we know."""
    found: Row | None = results["data"].get("about")
    return found or asdict(KNOWN.get(results["data_kind"]) or DatasetAbout(results["data_kind"], results["data_kind"]))


def _prevalence(results: Results) -> pd.DataFrame:
    unit = EvaluationUnit.named(results["data"]["unit"]).plural
    rows = [
        {
            "concept": row["concept"],
            "split": row["split"],
            unit: row["n_images"],
            "positive": row["n_positive"],
            "positive patients": row.get("n_positive_patients"),
            "share": f"{100 * row['n_positive'] / row['n_images']:.1f} %" if row["n_images"] else None,
            "boxes": row.get("n_boxes"),
            "no label": row.get("n_missing"),
        }
        for row in results["data"]["concepts"]
    ]
    frame = pd.DataFrame(rows)
    return frame if frame["no label"].notna().any() else frame.drop(columns="no label")


def _quarantine(results: Results) -> list[tuple[str, int]]:
    """(reason, count) of images left out, from rows per image or per reason; identifiers of images never appear."""
    counts: Counter[str] = Counter()
    for row in results["data"]["quarantine"]:
        reason, image_id = str(row.get("reason", "no reason given")), row.get("image_id")
        counts[reason.replace(str(image_id), "the image") if image_id else reason] += int(row.get("n", 1))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _boxes(data: Row) -> list[str]:
    """What was done to the annotated boxes, in sentences."""
    mended, inverted, dropped, clipped = (
        data.get(f"n_{what}_boxes", 0) for what in ("mended", "inverted", "dropped", "clipped")
    )
    said = []
    if data.get("boxes") == "as_published":
        said.append("The boxes are the annotation file's own, neither mended nor clipped (as_published).")
    if mended:
        said.append(
            f"{mended} boxes mended, which the annotation file has inverted ({inverted}) or cut at an edge "
            f"({mended - inverted})."
        )
    if dropped:
        said.append(f"{dropped} boxes dropped, which cannot be right; their findings count, without a box.")
    if clipped:
        said.append(f"{clipped} annotated boxes reached over the image's edge and were clipped to it.")
    return [*said, "The study's work folder lists them."] if mended or dropped else said


def _models(results: Results) -> pd.DataFrame:
    rows = []
    for row in results["models"]:
        grid = row.get("grid")
        rows.append(
            {
                "model": row["name"],
                "concept": row["concept"],
                "kind": row["kind"],
                "architecture": row["architecture"],
                "library": library_title(row.get("library")),
                "SAE at": row["hook_name"],
                "positions (h × w)": f"{grid[0]} × {grid[1]}" if grid else None,
                "channels": row.get("d_in"),
                "input": _input(row.get("preprocessing")),
            }
        )
    frame = pd.DataFrame(rows)
    unknown = [name for name in ("library", "input") if frame[name].isna().all()]  # in results of before
    return frame.drop(columns=unknown)


def _input(preprocessing: Row | None) -> str | None:
    """How images become a network's input, in a line."""
    if preprocessing is None:
        return None
    size = preprocessing.get("resize")
    steps = [preprocessing["read_as"], *preprocessing["steps"][1:]]
    return ", ".join([*steps, *([f"stretched to {size[0]} × {size[1]}"] if size else [])])


def _quality(results: Results) -> pd.DataFrame:
    rows = [
        {
            "model": row["model"],
            "concept": row["concept"],
            "split": row["split"],
            "explained variance": Estimate(number(row.get("explained_variance"))),
            "L0 per position": number(row.get("l0")),
            "live latents": row.get("n_live"),
            "dead latents": row.get("n_dead"),
            "dead share": Estimate(number(row.get("dead_share"))),
            "AUROC cost": Estimate(number(row.get("auroc_cost"))),
            "positions": row.get("n_positions"),
        }
        for row in results["sae_quality"]
    ]
    return pd.DataFrame(rows)


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
