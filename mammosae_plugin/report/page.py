"""Writes what a study found at a layer as pages: a short first one, and one of every concept."""

__all__ = ["render_pages", "write_report"]

import os
from pathlib import Path

from mammosae_plugin.files import local_path, write_text
from mammosae_plugin.report.concept_page import concept_page
from mammosae_plugin.report.first_page import first_page
from mammosae_plugin.schema.names import FIGURES_FOLDER, REPORT_FILE, concept_page_name
from mammosae_plugin.schema.results import Results, concepts


def write_report(results: Results, results_folder: str | os.PathLike[str]) -> Path:
    """Write `<results_folder>/report.html` and `concepts/<concept>.html`; returns the path of the first page.

    The pages show the figures that lie in the folder, and load nothing else: no network and no server. Patients' images
    are left out unless the study's config asks for them (`report: {include_images: true}`). What the results lack is
    said in a sentence. The same findings give the same bytes.
    """
    folder = local_path(results_folder)
    for name, text in render_pages(results, folder / FIGURES_FOLDER).items():
        write_text(folder / name, text)
    return folder / REPORT_FILE


def render_pages(results: Results, figures_folder: Path) -> dict[str, str]:
    """The pages as HTML, by their path in the results folder, with the figures found in `figures_folder`."""
    own = {concept_page_name(concept): concept_page(results, concept, figures_folder) for concept in concepts(results)}
    return {REPORT_FILE: first_page(results, figures_folder), **own}
