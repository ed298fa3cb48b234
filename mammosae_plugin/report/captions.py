"""What captions say: how much stands behind a figure or table, what latents are called, and where the picture lies."""

__all__ = ["boxes_behind", "figure", "n_of", "n_of_sweeps", "names_said", "per_image"]

import struct
from collections.abc import Iterable
from pathlib import Path

from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.report.views import names_of_pair
from mammosae_plugin.schema.names import FIGURES_FOLDER, readable
from mammosae_plugin.schema.names_of_latents import told_name
from mammosae_plugin.schema.results import Results, Row, run_patients

_PNG_SIZE = struct.Struct(">II")


def n_of(results: Results, split: str, concept: str | None = None) -> str:
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


def n_of_sweeps(results: Results) -> str:
    """How much stands behind interventions on one concept: the test split, or the patients that were drawn of it."""
    rows = results["interventions"]
    if not rows or run_patients(results) is None:
        return n_of(results, "test")
    unit = EvaluationUnit.named(results["data"]["unit"])
    of = "" if unit.name == "patient" else f" of {rows[0]['n_patients']:,} patients"
    return (
        f"n = {rows[0]['n_rows']:,} test {unit.plural}{of} that were drawn, "
        f"{rows[0]['n_positive']:,} with {readable(rows[0]['concept'])}"
    )


def per_image(results: Results, split: str) -> str:
    """The images of a split, for what is never counted by another unit: "n = 240 test images of 60 patients"."""
    whole = next((row for row in results["data"]["splits"] if row["split"] == split), None)
    return f"n = {whole['n_images']:,} {split} images of {whole['n_patients']:,} patients" if whole else ""


def boxes_behind(results: Results) -> str:
    """The images and boxes of each concept that localization is measured on."""
    found = {row["concept"]: row for row in results["localization"]}
    known = [(concept, row) for concept, row in found.items() if row.get("n_boxes") and row.get("n_images")]
    parts = [f"{row['n_images']:,} test images with {row['n_boxes']:,} boxes of {readable(c)}" for c, row in known]
    return f"n = {'; '.join(parts)}" if parts else ""


def names_said(results: Results, model: str, concept: str, latents: Iterable[int]) -> str:
    """A sentence: what some latents are called, each with score and chance; "" where none has a name."""
    names = names_of_pair(results, model, concept)
    of: dict[str, list[str]] = {}
    for latent in dict.fromkeys(latents):
        if latent in names:
            words = told_name({**names[latent], "name": readable(str(names[latent]["name"]))})
            of.setdefault(words, []).append(str(latent))
    said = [f"{name}: {'latent' if len(own) == 1 else 'latents'} {', '.join(own)}" for name, own in of.items()]
    return f" Names, which are guesses: {'; '.join(said)}." if said else ""


def figure(folder: Path, name: str, alt: str, n: str = "", *, up: str = "") -> Row:
    """A figure as a file beside the page; without it `source` is None and the report says so.

    Args:
        folder: where figures lie.
        name: of the file.
        alt: what it shows.
        n: how much stands behind it.
        up: the way from the page to the results folder, "../" from a page of a concept.
    """
    size = _size(folder / name)
    source = f"{up}{FIGURES_FOLDER}/{name}" if size else None
    return {"name": name, "source": source, "alt": alt, "n": n, "width": size and size[0], "height": size and size[1]}


def _size(file: Path) -> tuple[int, int] | None:
    """Width and height of a PNG, as its header says; None where there is no file."""
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        width, height = _PNG_SIZE.unpack(opened.read(24)[16:])
    return width, height
