"""What readers say of single latents, for whoever shows them beside an image."""

__all__ = ["explained_with_readers", "notes_on"]

from collections.abc import Collection
from typing import cast

from mammosae_plugin.findings.notes import Note, read_notes
from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.schema.results import Results, stated_role


def notes_on(layer: LayerResults, model: str, concept: str, latents: Collection[int]) -> dict[int, list[str]]:
    """The notes on some latents of a classifier by latent, each a line with its author; withdrawn ones do not count."""
    encoder = next(one.name for one in layer.encoders.values() if one.model == model and concept in one.concepts)
    found: dict[int, list[str]] = {}
    for note in read_notes(layer.study_folder):
        if note.latent in latents and _is_of(note, layer, encoder, concept):
            said = " ".join(filter(None, [f"[{note.label}]" if note.label else "", note.text]))
            found.setdefault(note.latent, []).append(f"{said} ({note.author})")
    return found


def _is_of(note: Note, layer: LayerResults, encoder: str, concept: str) -> bool:
    return (
        not note.withdrawn
        and note.layer == layer.name
        and note.sae == layer.sae_tensors
        and note.encoder in (None, encoder)
        and note.concept in (None, concept)
    )


def explained_with_readers(results: Results, layer: LayerResults) -> Results:
    """The results, whose explained images have readers' names and notes beside their latents.

    Args:
        results: of the layer, whose named latents are what readers say (`results_with_readers`).
        layer: the layer.
    """
    images = []
    for image in results.get("explained", []):
        model, concept = image["model"], image["concept"]
        named = results["named_latents"].get(f"{model}/{concept}", [])
        roles = {row["latent"]: stated_role(row) for row in named}
        notes = notes_on(layer, model, concept, {row["latent"] for row in image["latents"]})
        latents = [
            {**row, "role": roles.get(row["latent"], row["role"]), "notes": notes.get(row["latent"], [])}
            for row in image["latents"]
        ]
        images.append({**image, "latents": latents})
    return cast(Results, {**results, **({"explained": images} if images else {})})
