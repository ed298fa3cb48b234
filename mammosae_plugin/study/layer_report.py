"""The report of a layer, and its figures, tables and results beside it."""

__all__ = ["write_layer_report"]

import shutil
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from mammosae_plugin import findings, report, schema, visualization
from mammosae_plugin.files import read_json, sha256_of_file, sha256_of_json, write_json, write_parquet
from mammosae_plugin.findings.kept import class_means
from mammosae_plugin.findings.notes import results_with_readers
from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.findings.told_latents import explained_with_readers
from mammosae_plugin.own_files import are_untouched, empty_staging, replace_files
from mammosae_plugin.report import write_report
from mammosae_plugin.schema.names import REPORT_FILE, RESULTS_FILE
from mammosae_plugin.schema.results import shortcuts
from mammosae_plugin.study.explained import explained_panels, with_ids
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.layer import LayerStudy
from mammosae_plugin.visualization import HeatmapPanels, write_figures, write_tables
from mammosae_plugin.visualization.explanation import ExplainedPanels, write_explanations

_DRAWN = ".mammosae-drawn.json"  # what the figures, tables and the report in a folder were made from


def _heatmap_panels(layer: LayerStudy) -> Iterator[HeatmapPanels]:
    for pair in layer.study.pairs:
        table = layer.tables[pair]
        if pair.concept not in table.concepts:
            continue
        rows = table.rows(pair.concept, split=TEST)
        with_box = [
            int(r) for r, y in zip(rows.image_rows, rows.labels, strict=True) if y and len(table.boxes(r, pair.concept))
        ]
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


def _explained_panels(layer: LayerStudy) -> Iterator[ExplainedPanels]:
    if len(layer.explained):
        grids = {(pair.model, pair.concept): table.grid for pair, table in layer.tables.items()}
        yield from explained_panels(layer.explained, layer.study.dataset, grids)


def write_layer_report(layer: LayerStudy, found: LayerResults) -> Path:
    """Write a layer's figures, tables, results.json, class_means.parquet and report.html; returns the report's path.

    Where all of them lie there and would be the same again, nothing is drawn. Those of an earlier run go. What a user
    has put there stays, and what they edited is kept under another name.

    Args:
        layer: The layer, of which figures show a few images.
        found: Its findings.
    """
    results = with_ids(explained_with_readers(results_with_readers(found), found), layer.explained)
    folder = found.folder
    drawn_from = {"results": sha256_of_json(results), "code": _code()}
    if (folder / _DRAWN).exists() and read_json(folder / _DRAWN) == drawn_from and are_untouched(folder):
        return folder / REPORT_FILE
    staged = empty_staging(folder)
    try:
        write_figures(results, class_means(found), _heatmap_panels(layer), staged)
        write_explanations(results, _explained_panels(layer), staged)
        write_tables(results, staged)
        write_parquet(staged / "class_means.parquet", layer.class_means)
        write_json(staged / RESULTS_FILE, {**found.results, "shortcuts": shortcuts(found.results)})
        write_report(results, staged)
        write_json(staged / _DRAWN, drawn_from)
        # What an earlier configuration drew and this one does not must not stay: it may be images of patients.
        replace_files(staged, folder)
    finally:
        shutil.rmtree(staged)
    return folder / REPORT_FILE


def _code() -> str:
    """A digest of what draws and writes: another version of it draws anew."""
    rooms = [Path(str(room.__file__)).parent for room in (findings, report, schema, visualization)]
    files = [file for room in rooms for file in sorted(room.iterdir()) if file.is_file()]
    return sha256_of_json([sha256_of_file(file) for file in files])
