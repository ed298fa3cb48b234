"""The report of a layer, and its figures, tables and results beside it."""

__all__ = ["write_layer_report"]

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from mammosae_plugin.files import write_json, write_parquet
from mammosae_plugin.findings.kept import class_means
from mammosae_plugin.findings.leading_latents import strengths, with_neighbours
from mammosae_plugin.findings.notes import results_with_readers
from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.findings.told_latents import explained_with_readers
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.progress import progress
from mammosae_plugin.report import write_report
from mammosae_plugin.schema.names import FIGURE_EXAMPLE, RESULTS_FILE, readable, strengths_name
from mammosae_plugin.schema.results import Results, class_names, may_show_images, shortcuts
from mammosae_plugin.study.explained import explained_panels, with_ids
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.layer import LayerStudy
from mammosae_plugin.study.report_files import write_report_files
from mammosae_plugin.visualization import HeatmapPanels, write_figures, write_tables
from mammosae_plugin.visualization.drawings import Drawings
from mammosae_plugin.visualization.example import Example, example_latent, leading_pair, plot_example
from mammosae_plugin.visualization.explanation import ExplainedPanels, write_explanations
from mammosae_plugin.visualization.strengths import plot_strengths


def _heatmap_panels(layer: LayerStudy) -> Iterator[HeatmapPanels]:
    for pair in progress(layer.study.pairs, description="heatmaps", unit="classifier", delay=2, leave=False):
        table = layer.tables[pair]
        if pair.concept not in table.concepts:
            continue
        with_box = _with_box(table, pair.concept)
        if not with_box:
            continue
        # Drawn at random, the same for every model and layer of a concept: not the images that look best.
        generator = np.random.default_rng([layer.config.seed, crc32(pair.concept.encode())])
        size = min(layer.config.report.n_images, len(with_box))
        chosen = np.sort(generator.choice(with_box, size, replace=False))
        latents = layer.ranking(table, pair.concept).indices[1, : layer.config.analysis.top]
        dataset = layer.study.dataset
        number_of = {image_id: number for number, image_id in enumerate(dataset.images["image_id"])}
        ids = [table.images["image_id"][row] for row in chosen]
        views = [name for name in ("laterality", "view") if name in table.images]
        yield HeatmapPanels(
            model=pair.model,
            concept=pair.concept,
            images=[dataset.gray(number_of[image_id]) for image_id in ids],
            heatmaps=np.stack([table.maps(latents, row) for row in chosen]),
            boxes=[table.boxes(row, pair.concept) for row in chosen],
            latents=[int(latent) for latent in latents],
            activations=table.mean_latents[chosen][:, latents].toarray(),
            titles=[" ".join(map(str, row)) for row in table.images.loc[chosen, views].itertuples(index=False)],
        )


def _with_box(table: LatentTable, concept: str) -> list[int]:
    """The test images with a concept and a box of it, whose maps are kept."""
    rows = table.rows(concept, split=TEST)
    return [int(r) for r, y in zip(rows.image_rows, rows.labels, strict=True) if y and len(table.boxes(r, concept))]


def _explained_panels(layer: LayerStudy) -> Iterator[ExplainedPanels]:
    if len(layer.explained):
        grids = {(pair.model, pair.concept): table.grid for pair, table in layer.tables.items()}
        yield from explained_panels(layer.explained, layer.study.dataset, grids)


def _example(layer: LayerStudy, results: Results) -> Example | None:
    """What the first page's picture shows: of the test images with a box that in which its latent is strongest."""
    pair = leading_pair(results) if may_show_images(results) else None
    chosen = example_latent(results, *pair) if pair else None
    if pair is None or chosen is None:
        return None
    (table,) = [table for of, table in layer.tables.items() if (of.model, of.concept) == pair]
    concept, latent = pair[1], chosen[0]
    with_box = _with_box(table, concept) if concept in table.concepts else []
    if not with_box:
        return None
    row = with_box[int(table.max_latents[with_box][:, [latent]].toarray().argmax())]
    image = layer.study.dataset.select(image_ids=[table.images["image_id"][row]])
    said = f"with {readable(concept).lower()}"
    return Example(image.gray(0), table.maps([latent], row)[0], table.boxes(row, concept), said, latent)


def _draw_strengths(results: Results, found: LayerResults, drawings: Drawings) -> None:
    for one in strengths(found):
        concept, n_class = readable(one.concept), one.counts.shape[1]
        told = class_names(results, one.concept)
        names = [f"{concept}: {name}" for name in told or range(n_class)]
        if n_class == 2 and told in ([], ["absent", "present"]):
            names = [f"without {concept.lower()}", f"with {concept.lower()}"]
        drawings.draw(
            strengths_name(one.model, one.concept),
            plot_strengths,
            *(one.latents, one.largest, one.counts),
            title=f"{one.model}, {concept}: how strongly the leading latents fire",
            class_names=names,
        )


def write_layer_report(layer: LayerStudy, found: LayerResults) -> Path:
    """Write a layer's figures, tables, results.json, class_means.parquet and report; returns the report's path.

    As `write_report_files` does.

    Args:
        layer: The layer, of which figures show a few images.
        found: Its findings.
    """
    results = with_ids(explained_with_readers(results_with_readers(found), found), layer.explained)
    results = with_neighbours(results, found)

    def write(folder: Path, drawings: Drawings) -> None:
        write_figures(results, class_means(found), _heatmap_panels(layer), folder, drawings=drawings)
        write_explanations(results, _explained_panels(layer), drawings)
        _draw_strengths(results, found, drawings)
        if example := _example(layer, results):
            drawings.draw(FIGURE_EXAMPLE, plot_example, example, dpi=160)
        write_tables(results, folder)
        write_parquet(folder / "class_means.parquet", layer.class_means)
        write_json(folder / RESULTS_FILE, {**found.results, "shortcuts": shortcuts(found.results)})
        write_report(results, folder)

    return write_report_files(found.folder, results, write)
