"""What can be found in a mammogram: VinDr-Mammo's ten findings, breast density and the BI-RADS category."""

import difflib
from collections.abc import Iterable

from mammosae_plugin.arguments import text
from mammosae_plugin.errors import InputError

CONCEPTS: tuple[str, ...] = (
    "Architectural_Distortion",
    "Asymmetry",
    "Focal_Asymmetry",
    "Global_Asymmetry",
    "Mass",
    "Nipple_Retraction",
    "Skin_Retraction",
    "Skin_Thickening",
    "Suspicious_Calcification",
    "Suspicious_Lymph_Node",
)
"""The ten findings, under the names of their 0/1 columns in the annotation file."""

GRADED_CONCEPTS: dict[str, int] = {"density": 4, "birads": 5}
"""Concepts with more than two classes, and how many (ACR density a-d, BI-RADS 1-5); class ids count from 0."""


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A clause such as " (nearest: Mass, Asymmetry)" for an error message; empty when nothing is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower().replace(" ", "_"), by_lower, n=3, cutoff=0.5)
    return f" (nearest: {', '.join(by_lower[match] for match in close)})" if close else ""


def n_classes_of(concept: str) -> int:
    """The number of classes of a concept: 2 for a finding (absent, present), 4 for density, 5 for birads.

    Raises:
        InputError: the concept is unknown; the message names the nearest known ones.
    """
    text(concept, "the concept")
    if concept in GRADED_CONCEPTS:
        return GRADED_CONCEPTS[concept]
    if concept in CONCEPTS:
        return 2
    known = (*CONCEPTS, *GRADED_CONCEPTS)
    hint = nearest_names(concept, known) or f" (known: {', '.join(known)})"
    raise InputError(f"{concept!r} is not a known concept{hint}")
