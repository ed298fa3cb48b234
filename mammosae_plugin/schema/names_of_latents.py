"""The columns of names of latents: of the files of `mammosae name`, and of what a study keeps and publishes of them.

A name never stands without its score, what chance gives, and the method, which `told_name` sees to.
"""

__all__ = [
    "BY_LABELS", "COMMON", "JUDGED", "KEPT_NAMES", "NAMES", "names_of_encoder", "OF_LABELS", "surest", "told_name",
    "told_score", "WRITTEN",
]  # fmt: skip

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from mammosae_plugin.schema.columns import Column, Privacy

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_SHARE = "0 to 1"

BY_LABELS = "labels"
"""The method that looks at labels and metadata of the strongest images."""


def _real(name: str, meaning: str, unit: str = "", label: str = "") -> Column:
    return Column(name, _REAL, meaning, unit, "group", label=label)


def _text(name: str, meaning: str, privacy: Privacy = "public") -> Column:
    return Column(name, _TEXT, meaning, privacy=privacy)


def _ends(name: str, meaning: str, label: str = "") -> Iterator[Column]:
    for end in ("", "_low", "_high"):
        yield _real(f"{name}{end}", f"{meaning}, with its 95 % interval (`_low`, `_high`)", _SHARE, label)


COMMON = (
    Column("latent", _WHOLE, "its number in the SAE, from 0"),
    _text("method", "how it was named: labels, texts, direction, or by a model"),
    _text("name", "what it is called; empty where the method abstains", "group"),
    _real("score", "what the method gives the best candidate, in the unit of the method"),
    _real("low", "lower end of the score's 95 % interval over groups; nothing where the method has none"),
    _real("high", "upper end"),
    _real("chance", "the score that the same candidate has by chance"),
    _real("p", "share of chance that scores as high", _SHARE, "p"),
    _real("q", "p after Benjamini and Hochberg over all that was tried", _SHARE, "q"),
    Column("n", _WHOLE, "images (one of each group) that were looked at; 0 where none is needed", "images", "count"),
    Column("abstained", _FLAG, "whether no name is given", privacy="secret"),
    _text("reason", "why no name is given, in a few words and, behind a semicolon, how near one was", "secret"),
)
"""The columns that names have whatever the method, in order."""
OF_LABELS = (
    Column("n_with", _WHOLE, "by labels: images of these that have it", "images", "secret"),
    _real("excess", "by labels: (score - chance) / (1 - chance)"),
    Column("n_groups", _WHOLE, "by labels: groups in whose images the latent fires", "groups", "secret"),
    _text("column", "by labels: the column of which the name is a value; empty where it is of a label", "secret"),
    Column("n_fewest", _WHOLE, "groups that have the attribute, or lack it, whichever are fewer", "groups", "secret"),
    _real("check_auroc", "by labels: AUROC of the latent for its name in images of another split", _SHARE),
    _real("check_low", "lower end of its 95 % interval over groups", _SHARE),
    _real("check_high", "upper end", _SHARE),
    Column("check_n", _WHOLE, "images there of which it is known", "images", "secret"),
    Column("check_fewest", _WHOLE, "groups there that have it, or lack it, whichever are fewer", "groups", "secret"),
)
"""What names by labels have beside them."""
WRITTEN = (
    _text("model", "the model that wrote it"),
    _text("prompt_version", "of what that model was asked"),
)
"""What names that a model wrote have beside them."""
JUDGED = (
    _text("judge", "who judged it: a model, a text encoder or labels; and whether it made the names itself"),
    *_ends("detection", "balanced accuracy in telling images in which the latent fires from others; 0.5 by chance"),
    _real("detection_p", "share of all choices of firing images in which the same answers score as high", _SHARE),
    _real("detection_q", "that after Benjamini and Hochberg over the judged names", _SHARE),
    _real("detection_hard", "the same among images that look alike", _SHARE),
    _real("detection_shuffled", "the same with the names of other latents", _SHARE),
    *_ends("intruder", "share of sets of images in which the one that does not belong was found; 0.2 by chance"),
    _real("ranking_1", "share of images for which the name was put first among five; 0.2 by chance", _SHARE),
    _real("ranking_2", "the same, first or second; 0.4 by chance", _SHARE),
    Column("n_failed", _WHOLE, "answers that could not be read, which count as wrong", "answers"),
)
"""What a judge says of a name."""
KEPT_NAMES = (*COMMON, *OF_LABELS, *WRITTEN, *JUDGED)
"""All that a study keeps of names."""
NAMES = tuple(column for column in KEPT_NAMES if column.privacy != "secret")
"""What it publishes, of latents that have one."""


def told_score(row: Mapping[str, Any]) -> str:
    """How a name was found, its score and chance: "labels 0.95, chance 0.25"; "" where there is no name.

    Args:
        row: of the columns of `COMMON`.
    """
    if not row.get("name"):
        return ""
    score, chance = _number(row.get("score")), _number(row.get("chance"))
    return f"{row['method']} {score:.2f}, chance {'not known' if math.isnan(chance) else f'{chance:.2f}'}"


def told_name(row: Mapping[str, Any]) -> str:
    """A name with that: "Mass (labels 0.95, chance 0.25)"; "" where there is none."""
    return f"{row['name']} ({told_score(row)})" if row.get("name") else ""


def names_of_encoder(rows: Iterable[Mapping[str, Any]], model: str, concept: str = "") -> dict[int, Mapping[str, Any]]:
    """By latent the surest name of each that has one, of the encoder of a model's classifier of a concept.

    Args:
        rows: of `KEPT_NAMES` behind `encoder`: a model, or model/concept where each classifier has its own.
        model: the model; an encoder's own name will do.
        concept: the concept.
    """
    own = [
        row
        for row in rows
        if row["encoder"] == model
        or (row["encoder"].startswith(f"{model}/") and concept in row["encoder"].removeprefix(f"{model}/").split("+"))
    ]
    return {int(row["latent"]): row for row in reversed(surest(own))}


def surest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those with a name, surest first: by q, then how far the score lies above chance."""

    def doubt(row: Mapping[str, Any]) -> tuple[float, float]:
        q, excess = _number(row.get("q")), _number(row.get("score")) - _number(row.get("chance"))
        return 1.0 if math.isnan(q) else q, 0.0 if math.isnan(excess) else -excess

    return sorted((row for row in rows if row.get("name")), key=doubt)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
