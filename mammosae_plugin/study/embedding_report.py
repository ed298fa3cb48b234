"""The report of a study of embeddings, and its figures and tables beside it."""

__all__ = ["write_report_of_embeddings"]

import shutil
from pathlib import Path

from mammosae_plugin.files import write_json, write_text
from mammosae_plugin.findings.embeddings import EmbeddingFindings
from mammosae_plugin.own_files import empty_staging, replace_files
from mammosae_plugin.report.embeddings import render_embedding_report
from mammosae_plugin.schema.embeddings import FIGURES
from mammosae_plugin.schema.names import FIGURES_FOLDER, REPORT_FILE, RESULTS_FILE, TABLES_FOLDER
from mammosae_plugin.visualization import save_figure
from mammosae_plugin.visualization.embeddings import plot_coherence, plot_levels, plot_probes, plot_retrieval
from mammosae_plugin.visualization.tables import to_csv


def write_report_of_embeddings(found: EmbeddingFindings, folder: Path) -> Path:
    """Write figures, tables as CSV, results.json and report.html into the results folder; returns the report's path.

    Those of an earlier run go. What a user has put there stays, and what they edited is kept under another name.

    Args:
        found: What the study found.
        folder: Its results folder.
    """
    staged = empty_staging(folder)
    try:
        figures = staged / FIGURES_FOLDER
        split = found.facts["config"]["analysis"]["split"]
        quality = found.tables["quality"]
        scores = found.tables["monosemanticity"]
        drawn = {
            "levels": plot_levels(quality[quality["split"] == split], title=f"Levels, split {split}"),
            "probes": plot_probes(found.tables["probes"], title="What probes tell"),
            "retrieval": plot_retrieval(found.tables["retrieval"], title="Retrieval: the first images found"),
        }
        if len(scores):
            size = int(scores["n"].min())
            drawn["coherence"] = plot_coherence(scores[scores["n"] == size], title=f"Coherence of {size} images")
        for name, figure in drawn.items():
            save_figure(figure, figures / FIGURES[name][0])
        for name, table in found.tables.items():
            write_text(staged / TABLES_FOLDER / f"{name}.csv", to_csv(table))
        write_json(staged / RESULTS_FILE, dict(found.facts))
        write_text(staged / REPORT_FILE, render_embedding_report(found, figures))
        replace_files(staged, folder)
    finally:
        shutil.rmtree(staged)
    return folder / REPORT_FILE
