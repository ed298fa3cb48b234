"""The report of a study of embeddings, and its figures and tables beside it."""

__all__ = ["write_report_of_embeddings"]

from pathlib import Path

from mammosae_plugin.files import write_json, write_text
from mammosae_plugin.findings.embeddings import EmbeddingFindings
from mammosae_plugin.report.embeddings import write_embedding_report
from mammosae_plugin.schema.embeddings import FIGURES
from mammosae_plugin.schema.names import RESULTS_FILE, TABLES_FOLDER
from mammosae_plugin.study.report_files import write_report_files
from mammosae_plugin.visualization.drawings import Drawings
from mammosae_plugin.visualization.embeddings import plot_coherence, plot_levels, plot_probes, plot_retrieval
from mammosae_plugin.visualization.tables import to_csv


def write_report_of_embeddings(found: EmbeddingFindings, folder: Path) -> Path:
    """Write figures, tables as CSV, results.json and report.html into the results folder; returns the report's path.

    As `write_report_files` does.

    Args:
        found: What the study found.
        folder: Its results folder.
    """
    tables = {f"{name}.csv": to_csv(table) for name, table in found.tables.items()}

    def write(staged: Path, drawings: Drawings) -> None:
        split = found.facts["config"]["analysis"]["split"]
        quality, scores = found.tables["quality"], found.tables["monosemanticity"]
        names = {name: file for name, (file, _) in FIGURES.items()}
        own = quality[quality["split"] == split]
        drawings.draw(names["levels"], plot_levels, own, title=f"Levels, split {split}")
        drawings.draw(names["probes"], plot_probes, found.tables["probes"], title="What probes tell")
        retrieval = found.tables["retrieval"]
        drawings.draw(names["retrieval"], plot_retrieval, retrieval, title="Retrieval: the first images found")
        if len(scores):
            size = int(scores["n"].min())
            title = f"Coherence of {size} images"
            drawings.draw(names["coherence"], plot_coherence, scores[scores["n"] == size], title=title)
        for name, table in tables.items():
            write_text(staged / TABLES_FOLDER / name, table)
        write_json(staged / RESULTS_FILE, dict(found.facts))
        write_embedding_report(found, staged)

    return write_report_files(folder, [dict(found.facts), tables], write)
