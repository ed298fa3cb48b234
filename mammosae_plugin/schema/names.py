"""Names of the files that a study writes and the report reads; how concepts and numbers are written for readers."""

__all__ = [
    "concept_page_name", "counted", "digits", "ends", "explained_name", "FIGURE_EXAMPLE", "figure_2_name",
    "figure_3_name", "figure_4_name", "FIGURE_LAYERS", "FIGURES_FOLDER", "FIGURES_RECORD", "file_part",
    "FINDINGS_FOLDER", "froc_name", "layer_folder", "LAYERS_FOLDER", "MINUS", "readable", "REPORT_FILE",
    "RESULTS_FILE", "signed", "strengths_name", "TABLES_FOLDER",
]  # fmt: skip

import re
from hashlib import sha256

FIGURES_FOLDER = "figures"
TABLES_FOLDER = "tables"
FINDINGS_FOLDER = "findings"
FIGURES_RECORD = "figures.json"
"""In the results folder: the SHA-256 of every figure of aggregates, as it was when it was drawn."""
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"
LAYERS_FOLDER = "layers"
FIGURE_LAYERS = "layers.png"
FIGURE_EXAMPLE = "example.png"
"""The image in which a telling latent is strongest; drawn only where images may be shown, and never published."""

_LONGEST_PART = 100  # characters; names of files have 255 bytes, and two parts and words of ours stand in one

MINUS = "−"  # the typographic minus sign, as wide as a plus


def file_part(name: str) -> str:
    """`name` with everything but letters, digits, dot, underscore and minus replaced by a minus.

    Of a name that no file system would take only the beginning is left, with a digest that tells it from others.
    """
    part = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return (
        part if len(part) <= _LONGEST_PART else f"{part[: _LONGEST_PART - 9]}-{sha256(name.encode()).hexdigest()[:8]}"
    )


def figure_2_name(concept: str, *, error_term: bool = False) -> str:
    """File of Figure 2: AUROC against k for all models of one concept."""
    return f"figure_2_{file_part(concept)}{'_error_term' if error_term else ''}.png"


def figure_3_name(model: str, concept: str) -> str:
    """File of Figure 3: heatmaps of the best latents over images."""
    return f"figure_3_{file_part(model)}_{file_part(concept)}.png"


def figure_4_name(model: str, concept: str) -> str:
    """File of Figures 4 and 5: mean activation of every live latent in one class against the other."""
    return f"figure_4_{file_part(model)}_{file_part(concept)}.png"


def froc_name(concept: str) -> str:
    """File of the FROC curves of all models of one concept."""
    return f"froc_{file_part(concept)}.png"


def strengths_name(model: str, concept: str) -> str:
    """File of the histograms of the leading latents by class."""
    return f"strengths_{file_part(model)}_{file_part(concept)}.png"


def explained_name(model: str, concept: str, rule: str, place: int) -> str:
    """File of the figure of an image whose logit is taken apart; by the rule that chose it, not by its id."""
    return f"explained_{file_part(model)}_{file_part(concept)}_{rule}_{place}.png"


def concept_page_name(concept: str) -> str:
    """The page of one concept, relative to the folder of the report that it belongs to."""
    return f"concepts/{file_part(concept)}.html"


def layer_folder(layer: str, primary: str) -> str:
    """Folder of a layer's report, relative to the study's results folder; that of the primary layer is "."."""
    return "." if layer == primary else f"{LAYERS_FOLDER}/{file_part(layer)}"


def readable(name: str) -> str:
    """A concept's name for readers: "Suspicious_Calcification" becomes "Suspicious calcification"."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:].lower() if "_" in name else words


def counted(n: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 patient", "1,200 patients"; `plural` where that is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def digits(value: float) -> str:
    """A number to three significant digits, trailing zeros kept; thousands and more as whole numbers."""
    text = f"{value:,.0f}" if value == 0 or abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", MINUS)


def signed(value: float) -> str:
    """A number with its sign, to three decimals; what rounds to nothing has no sign."""
    text = f"{value:+.3f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def ends(low: float, high: float) -> tuple[str, str]:
    """The ends of an interval to three decimals, or to as many as tell them apart: of 0.99957 and 1 not 1.000 twice."""
    pairs = [tuple(_decimal(end, decimals) for end in (low, high)) for decimals in range(3, 7)]
    first, second = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    return first, second


def _decimal(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS if float(text) else "")
