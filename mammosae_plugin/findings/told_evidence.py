"""What of the evidence on latents, and of performance by group, may be told: nothing of a few patients."""

__all__ = ["told_evidence", "told_groups", "told_views"]

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from mammosae_plugin.privacy.small_groups import is_few
from mammosae_plugin.schema.findings import EVIDENCE, names_of

Row = dict[str, Any]

_NAMES = tuple(column.name for column in EVIDENCE)
_RATES = ("fires_with", "fires_without", "firing_rate")
_PLACE = (
    *("inside", "inside_chance", "place", "place_low", "place_high", "in_breast", "in_breast_chance"),
    *("cpm", "cpm_low", "cpm_high", "cpm_chance", "cpm_q"),
)
_COMPARISONS = ("views", "sides", "crossed")
_COVARIATE = tuple(name for name in _NAMES if name.startswith("covariate"))


def told_evidence(row: Mapping[str, Any], *, silent: bool, no_boxes: bool, min_group: int) -> Row:
    """A latent's row without what would tell of fewer than `min_group` patients.

    Args:
        row: of a latent of which nothing else has to be hidden.
        silent: whether there are few patients in whom it does not fire.
        no_boxes: whether few patients have boxes, or it fires in the boxes' images of few.
        min_group: the smallest group.
    """
    hidden: list[str] = []
    for kind in ("with", "without"):
        n, firing = (int(row.get(name) or 0) for name in (f"n_patients_{kind}", f"n_firing_{kind}"))
        silent = silent or bool(is_few(n - firing, min_group))
        if is_few(firing, min_group):  # means of a class are then those of a few
            hidden += names_of("evidence", "group")
    if silent:
        hidden += _RATES
    if no_boxes:
        hidden += [*_PLACE, "n_patients_boxed", "verdict", "reason"]  # the verdict rests on the place
    if is_few(int(row.get("covariate_patients") or 0), min_group):
        hidden += [*_COVARIATE, "verdict", "reason"]
    return {**row, **dict.fromkeys(hidden)}


def told_groups(rows: Sequence[Row], min_group: int) -> Iterator[Row]:
    """The rows of one classifier's groups: all that a covariate makes, or none if one is small.

    What is left of a total when the other groups are taken from it would tell how many a small one has.
    """
    for _, own in groupby(rows, key=lambda row: row["by"]):
        members = list(own)
        if all(_count(row, kind) >= min_group for row in members for kind in ("positive", "negative")):
            yield from members


def told_views(row: Mapping[str, Any], *, min_group: int) -> Row:
    """A latent's agreement without the comparisons that rest on fewer than `min_group` patients.

    Those in whose pairs it fires count, and those in whose pairs it is silent.
    """
    hidden: list[str] = []
    for name in _COMPARISONS:
        n, firing = (int(row.get(f"{name}_{what}") or 0) for what in ("patients", "firing"))
        few_patients = n < min_group
        if few_patients or firing < min_group or is_few(n - firing, min_group):
            hidden += [one for one in names_of("views", "group") if one.startswith(f"{name}_") or one == name]
            hidden += [f"own_breast{end}" for end in ("", "_low", "_high")] if name != "sides" else []
        if few_patients:
            hidden += [f"{name}_pairs", f"{name}_patients"]
    return {**row, **dict.fromkeys(hidden)}


def _count(row: Row, kind: str) -> int:
    return int(row.get(f"n_{kind}_patients") or 0)
