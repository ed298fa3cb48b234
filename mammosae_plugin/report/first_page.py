"""The first page of a layer's report: a picture, five sentences, three figures, and what is of the whole study."""

__all__ = ["first_page"]

import math
import posixpath
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.datasets.about import KNOWN, DatasetAbout
from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.report.captions import boxes_behind, figure, n_of, names_said, per_image
from mammosae_plugin.report.headline import headline
from mammosae_plugin.report.paper import compare_table_1, paper_concepts
from mammosae_plugin.report.rendering import config_text, install_command, render
from mammosae_plugin.report.summary import RESTORED, Finding, findings, layers_summary, summary, warnings
from mammosae_plugin.report.views import TableView, glance_view, table_view
from mammosae_plugin.schema.libraries import cited, libraries_used, library_title
from mammosae_plugin.schema.names import (
    FIGURE_EXAMPLE,
    FIGURE_LAYERS,
    MINUS,
    REPORT_FILE,
    concept_page_name,
    counted,
    figure_2_name,
    figure_4_name,
    froc_name,
    layer_folder,
    readable,
)
from mammosae_plugin.schema.results import (
    Results,
    Row,
    concepts,
    has_boxes,
    layer_names,
    may_show_images,
    n_best,
    number,
)
from mammosae_plugin.visualization.example import example_latent, leading_pair
from mammosae_plugin.visualization.tables import MISSING, Estimate, table_1, table_layers

_SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def first_page(results: Results, figures_folder: Path) -> str:
    """The page as HTML, with the figures found in `figures_folder`."""
    return render("first.html.j2", scripts=("page.js",), **_content(results, figures_folder))


def _content(results: Results, folder: Path) -> dict[str, Any]:
    found = findings(results)
    counted_by = EvaluationUnit.named(results["data"]["unit"])
    glance = glance_view(found, results)
    paper, shown = results["paper_setting"], _telling(results, folder)
    return {
        "results": results,
        "title": results["title"],
        "data": _about(results),
        "warnings": warnings(results, found),
        "headline": headline(results, n_of(results, "test")) or summary(results)[:5],
        "summary": summary(results),
        "shown": shown[:1],
        "figures": shown[1:4],
        "restored": RESTORED,
        "n_test": n_of(results, "test"),
        "n_images": per_image(results, "test"),
        "n_localized": boxes_behind(results),
        "n_all": counted(sum(row["n_images"] for row in results["data"]["splits"]), "image"),
        "has_boxes": has_boxes(results),
        "glance": glance and _linked(glance, found),
        "pages": [(readable(concept), concept_page_name(concept)) for concept in concepts(results)],
        "top": n_best(results),
        "one_control": results.get("n_controls") == 1,
        "layers": _layers(results, folder) if results.get("layers") else None,
        "comparison": _comparison_note(results),
        "splits": table_view(pd.DataFrame(results["data"]["splits"]).rename(columns={"n_units": counted_by.plural})),
        "unit": counted_by,
        "prevalence": table_view(_prevalence(results), n_labels=2),
        "quarantine": _quarantine(results),
        "boxes": _boxes(results["data"]),
        "models": table_view(_models(results)),
        "sae_training": _sae_training(results["sae"]),
        "quality": table_view(_quality(results)),
        "table_1": table_view(table_1(results), n_labels=3),
        "paper_table_1": table_view(compare_table_1(results), n_labels=4) if paper else None,
        "networks_cited": cited(libraries_used(results["models"], results["config"])),
        "checks": [
            check
            | {
                "value": _plain(number(check["value"])),
                "criterion": f"{_SIGNS[check['direction']]} {check['threshold']:g}",
            }
            for check in results.get("checks", [])
        ],
        "install": install_command(results["provenance"]["packages"]),
        "config": config_text(results["config"]),
    }


def _telling(results: Results, folder: Path) -> list[Row]:
    """The figures that tell most of the classifier that the five sentences are about, first the one that tells it best.

    An image stands first where images may be shown; then what few latents do, what lesions are found, the layers, and
    the class means. Of each the caption, and whether it is wide.
    """
    pair = leading_pair(results)
    if pair is None:
        return []
    model, concept = pair
    name, test = f"{model}, {readable(concept)}", n_of(results, "test", concept)
    chosen = example_latent(results, model, concept) if may_show_images(results) else None
    found = []
    if chosen:
        latent, how = chosen
        boxed = max(
            (row.get("n_images") or 0 for row in results["localization"] if row["concept"] == concept), default=0
        )
        n = f"n = {boxed:,} test images with a box to choose from" if boxed else test
        caption = (
            f"{name}: the test image in which latent {latent} ({how}) is strongest, so that others look weaker. Left "
            "the image, in the middle where the latent fires (the brighter, the more), right what lies round its "
            f"peak, outlined at half of its maximum; red: the annotators’ boxes. {n}."
            f"{names_said(results, model, concept, [latent])}"
        )
        found.append((FIGURE_EXAMPLE, caption, f"{name}: where latent {latent} fires in one image"))
    random = "the one random group" if results.get("n_controls") == 1 else "the random groups, smallest to largest"
    lesions = next((row for row in results.get("lesions", []) if row["concept"] == concept), None)
    n_lesions = f"n = {lesions['n_images']:,} test images, {lesions['n_lesions']:,} lesions" if lesions else ""
    found += [
        (
            figure_2_name(concept),
            f"How few latents are enough, and what is left without them: AUROC by latents per class. Bands: 95 % "
            f"intervals over patients; grey: {random}. {test}.",
            f"{readable(concept)}: AUROC against the number of latents per class",
        ),
        (
            froc_name(concept),
            "Lesions found by the peaks of latents’ maps against false positives per image, with the 95 % interval of "
            f"the best latent and, dotted, what it finds by chance. {n_lesions}.",
            f"{readable(concept)}: share of lesions found against false positives per image",
        ),
        (
            FIGURE_LAYERS,
            "The layers side by side: AUROC of the best single latent with its 95 % interval over patients, and the "
            f"best average precision of boxes. {n_of(results, 'test')}.",
            "AUROC of the best single latent and average precision, by layer",
        ),
        (
            figure_4_name(model, concept),
            f"{name}: mean activation of every live latent in both classes; on the dashed line it fires equally in "
            f"both. {n_of(results, 'training', concept)}.",
            f"{name}: mean activation of every live latent in both classes",
        ),
    ]
    shown = [{**figure(folder, file, alt), "caption": caption} for file, caption, alt in found]
    return [one for one in shown if one["source"]]


def _linked(view: TableView, found: list[Finding]) -> TableView:
    """The table with a link from every concept to its page."""
    at = view.column("Concept")
    for cells, finding in zip(view.rows, found, strict=True):
        cells[at] = replace(cells[at], link=concept_page_name(finding.concept))
    return view


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
        "figure": figure(folder, FIGURE_LAYERS, "AUROC of the best single latent and average precision, by layer"),
        "n": counted(len(layer_names(results)), "layer"),
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
