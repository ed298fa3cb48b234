"""Everything a study draws and tabulates, in two calls: `write_figures` and `write_tables`."""

__all__ = ["draw_class_means", "HeatmapPanels", "record_figures", "write_figures", "write_tables"]

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from mammosae_plugin.files import local_path, sha256_of_file, write_json, write_text
from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.schema.names import (
    FIGURE_LAYERS,
    FIGURES_RECORD,
    TABLES_FOLDER,
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
    frame,
    may_show_images,
    model_names,
    n_best,
    number,
    pairs,
    stated_role,
    sweep_reference,
)
from mammosae_plugin.visualization.curves import plot_sweeps
from mammosae_plugin.visualization.drawings import Drawings
from mammosae_plugin.visualization.heatmaps import plot_heatmaps
from mammosae_plugin.visualization.layers import plot_layers
from mammosae_plugin.visualization.lesions import plot_froc, table_lesions
from mammosae_plugin.visualization.scatter import plot_class_means
from mammosae_plugin.visualization.style import save_figure
from mammosae_plugin.visualization.tables import (
    table_1,
    table_2,
    table_interventions,
    table_layers,
    table_rankings,
    table_roles,
    to_csv,
    write_table,
)


@dataclass(frozen=True)
class HeatmapPanels:
    """What Figure 3 of one model and concept shows; fields as in `plot_heatmaps`.

    Attributes:
        model: the model's name.
        concept: the concept.
        images: uint8 (H, W) each, of one size.
        heatmaps: (n_images, n_latents, h, w) activations on the feature grid.
        boxes: annotated boxes per image, (n, 4) xyxy in image pixels.
        latents: the latents, best first.
        activations: (n_images, n_latents) mean activation over positions.
        titles: a short caption per image.
    """

    model: str
    concept: str
    images: list[np.ndarray]
    heatmaps: np.ndarray
    boxes: list[np.ndarray]
    latents: list[int]
    activations: np.ndarray
    titles: list[str]


def write_figures(
    results: Results,
    class_means: pd.DataFrame,
    heatmap_panels: Iterable[HeatmapPanels],
    results_folder: str | os.PathLike[str],
    *,
    drawings: Drawings | None = None,
) -> list[Path]:
    """Draw Figures 2, 3 and 4/5 of a study into `<results_folder>/figures`, FROC curves, and layers if it has several.

    The digests of those that show aggregates are kept in `<results_folder>/figures.json`; no other file is published.

    Args:
        results: what was found at a layer.
        class_means: columns model, concept, latent, score_mean_0, score_mean_1, ... (live latents only).
        heatmap_panels: one entry per Figure 3, consumed one at a time (a generator keeps memory small). It is not
            touched at all when the images are patients' and the config does not ask for images.
        results_folder: the study's results folder.
        drawings: of that folder, which may know those of an earlier run; by default every figure is drawn.

    Returns:
        The files written.
    """
    drawings = drawings or Drawings(local_path(results_folder))
    written: list[Path] = []
    if results.get("layers"):
        written.append(drawings.draw(FIGURE_LAYERS, plot_layers, frame(results["layers"]), title="Layers side by side"))
    for concept in concepts(results):
        models = model_names(results, concept)
        references = {model: sweep_reference(results, model, concept) for model in models}
        for error_term in (False, True):
            rows = frame(results["interventions"], concept=concept, error_term=error_term)
            if len(rows):
                kept = "with the SAE's error term" if error_term else "interventions on the best latents"
                figure = drawings.draw(
                    figure_2_name(concept, error_term=error_term),
                    plot_sweeps,
                    rows,
                    models=models,
                    title=f"{readable(concept)}: {kept}",
                    reference_aurocs=references,
                    n_controls=results.get("n_controls"),
                )
                written.append(figure)
        lesions = [row for row in results.get("lesions", []) if row["concept"] == concept]
        if lesions:
            title = f"{readable(concept)}: lesions found on all test images"
            judged = [model for model in models if any(row["model"] == model for row in lesions)]
            written.append(drawings.draw(froc_name(concept), plot_froc, lesions, models=judged, title=title))
    for model, concept in pairs(results):
        rows = class_means[(class_means["model"] == model) & (class_means["concept"] == concept)]
        if len(rows):
            shown, settings = _class_means(results, rows, model, concept)
            written.append(drawings.draw(figure_4_name(model, concept), plot_class_means, *shown, **settings))
    record_figures(written, results_folder)
    if may_show_images(results):
        for panels in heatmap_panels:
            figure = drawings.draw(
                figure_3_name(panels.model, panels.concept),
                plot_heatmaps,
                panels.images,
                panels.heatmaps,
                panels.boxes,
                panels.latents,
                panels.activations,
                titles=panels.titles,
                percentile=results["config"].get("analysis", {}).get("percentile", 95.0),
                title=f"{panels.model}, {readable(panels.concept)}: where the best latents fire",
                dpi=160,
            )
            written.append(figure)
    return written


def record_figures(paths: Iterable[Path], results_folder: str | os.PathLike[str]) -> None:
    """Keep the digests of figures that were just drawn, in place of those of earlier ones."""
    write_json(local_path(results_folder) / FIGURES_RECORD, {path.name: sha256_of_file(path) for path in paths})


def draw_class_means(
    results: Results, class_means: pd.DataFrame, model: str, concept: str, path: str | os.PathLike[str]
) -> None:
    """Draw Figure 4 of one model and concept.

    Args:
        results: as for `write_figures`.
        class_means: as for `write_figures`, of this model and concept and the latents that are to be shown.
        model: the model's name.
        concept: the concept.
        path: where the figure goes.
    """
    shown, settings = _class_means(results, class_means, model, concept)
    save_figure(plot_class_means(*shown, **settings), path)


def _class_means(
    results: Results, rows: pd.DataFrame, model: str, concept: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `plot_class_means`."""
    # A concept of many classes (density, BI-RADS) has a score per class: the outermost two stand against each other.
    last = max(
        int(column.removeprefix("score_mean_"))
        for column in rows.columns
        if column.startswith("score_mean_") and rows[column].notna().any()
    )
    named = results["named_latents"].get(f"{model}/{concept}", [])
    marked = [(row["latent"], stated_role(row), number(row.get("auroc"))) for row in named]
    live = set(rows["latent"])
    words, told = readable(concept), class_names(results, concept)
    counted = EvaluationUnit.named(results["data"]["unit"]).nouns
    names = (f"{counted} without {words.lower()}", f"{counted} with {words.lower()}")
    if told and told != ["absent", "present"]:
        names = (f"{words}: {told[0]}", f"{words}: {told[-1]}")
    elif last > 1:
        names = (f"class 0 of {words.lower()}", f"class {last} of {words.lower()}")
    shown = (
        rows["score_mean_0"].to_numpy(),
        rows[f"score_mean_{last}"].to_numpy(),
        rows["latent"].to_numpy(),
        [(latent, role, auroc) for latent, role, auroc in marked if latent in live],
    )
    return shown, {"title": f"{model}, {words}: class means", "class_names": names}


def write_tables(results: Results, results_folder: str | os.PathLike[str]) -> list[Path]:
    """Write Tables 1 and 2, rankings, interventions and layers into `<results_folder>/tables`, each in three forms."""
    folder = local_path(results_folder) / TABLES_FOLDER
    found = "each of the best latents" + (", raw channels and Grad-CAM" if results.get("baselines") else "")
    tables = (
        (
            table_1(results),
            "table_1",
            "Classification on the test split without and with the SAE (95 % intervals; none where a class has too few "
            "patients, or where all resamples agree on 0 or 1, or on no difference).",
        ),
        (table_2(results), "table_2", f"Localization: average precision of boxes from {found}."),
        (
            table_lesions(results),
            "lesions",
            "Lesions found by the peaks of maps, against false positives on all test images: CPM is the mean "
            "sensitivity over the numbers of false positives per image, chance what the same peaks find of other "
            "patients' lesions.",
        ),
        (table_rankings(results), "rankings", f"The {n_best(results)} best latents of every class."),
        (
            table_roles(results),
            "roles",
            "The leading latents with the finding: their roles and the evidence.",
        ),
        (table_interventions(results), "interventions", "Interventions on groups of latents (Figure 2 in numbers)."),
        (
            table_layers(results),
            "layers",
            "The layers side by side: the SAE, separation and localization on test images.",
        ),
    )
    written = [
        path for table, name, caption in tables if len(table) for path in write_table(table, folder, name, caption)
    ]
    every = {name: cast(Row, results).get(name) for name in ("names", "evidence", "groups", "views", "pairs")}
    for name, part in (("repair", "performance"), ("repair_froc", "froc")):
        about = ("model", "concept", "scale", "kind")
        every[name] = [
            {**{key: row[key] for key in about}, "latents": " ".join(map(str, row["latents"])), **one}
            for row in results.get("repair", [])
            for one in row[part] or []
        ]
    for name, rows in every.items():
        if rows:  # hundreds: for machines alone
            written.append(folder / f"{name}.csv")
            write_text(written[-1], to_csv(pd.DataFrame(rows)))
    return written
