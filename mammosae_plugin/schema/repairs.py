"""The columns of what a study's repairs did: a row per classifier, with performance and FROC before and after.

None of it is published with the findings: it tells of files that lie on this machine.
"""

__all__ = ["FROC_COLUMNS", "PERFORMANCE_COLUMNS", "REPAIR_COLUMNS"]

from collections.abc import Iterator

import pyarrow as pa

from mammosae_plugin.schema.columns import Column

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_STRUCTS = pa.null()  # its type is that of its fields
_SHARE = "0 to 1"


def _text(name: str, meaning: str) -> Column:
    return Column(name, _TEXT, meaning, privacy="secret")


def _count(name: str, meaning: str, unit: str) -> Column:
    return Column(name, _WHOLE, meaning, unit, "secret")


def _real(name: str, meaning: str, unit: str = "") -> Column:
    return Column(name, _REAL, meaning, unit, "secret")


def _ends(name: str, meaning: str, unit: str = "") -> Iterator[Column]:
    for end in ("", "_low", "_high"):
        yield _real(f"{name}{end}", f"{meaning}, with its 95 % interval over patients (`_low`, `_high`)", unit)


_STAGE = _text("stage", "before, after, or exact: of a linear repair what the exact one would have given")
PERFORMANCE_COLUMNS = (
    _text("group", "all, or column=value of a group of test images"),
    _STAGE,
    _count("n_rows", "its test images, or what else the study's unit is", "the study's unit"),
    _count("n_positive", "those with the finding", "the study's unit"),
    _count("n_patients", "their patients", "patients"),
    _count("fewest_patients", "patients of the class that has the fewest", "patients"),
    *_ends("auroc", "area under the ROC curve", _SHARE),
    *_ends("auroc_change", "that less the one before, on the same resamples of patients"),
    *_ends("calibration_slope", "slope of the label on the logit; 1 is calibrated"),
    _real("calibration_excess", "mean probability less the share of positives"),
    _real("ece", "mean distance of probabilities from what happens, over ten bins", _SHARE),
    _real("brier", "mean squared distance of probabilities from labels", _SHARE),
    _text("reason", "why a number is missing"),
)
"""A row per group and stage, as `Repair.performance`."""
_CHANCE = "the same of lesions of other patients, in images of the same side and view"
FROC_COLUMNS = (
    _STAGE,
    _real("fppi", "false positives per image"),
    *_ends("sensitivity", "share of lesions that peaks of the logit's map find", _SHARE),
    _real("sensitivity_chance", _CHANCE, _SHARE),
    *_ends("cpm", "mean of the sensitivities", _SHARE),
    _real("cpm_chance", _CHANCE, _SHARE),
    _real("p", "share of draws of such lesions, or the own, with as high a CPM", _SHARE),
    *_ends("cpm_change", "that less the CPM before, on the same resamples of patients"),
    _count("n_images", "test images that were looked at", "images"),
    _count("n_lesions", "annotated lesions", "lesions"),
    _count("n_lesion_patients", "patients with lesions", "patients"),
)
"""A row per stage and number of false positives per image, as `Repair.froc`."""
REPAIR_COLUMNS = (
    Column("latents", pa.list_(_WHOLE), "the latents that were scaled", privacy="secret"),
    _text("chosen", "by what: their verdict (shortcut), or the settings"),
    _real("scale", "what they are multiplied by; 0 removes them"),
    _text("kind", "exact, or linear: in the head alone"),
    _text("reason", "why nothing was repaired; empty where it was"),
    _text("file", "the repaired classifier, from the study's output folder"),
    _text("sha256", "of that file"),
    Column("groups", pa.list_(_TEXT), "columns by which performance is told apart", privacy="secret"),
    Column(
        "performance",
        _STRUCTS,
        "AUROC and calibration, before and after: the fields below",
        privacy="secret",
        fields=PERFORMANCE_COLUMNS,
    ),
    Column("froc", _STRUCTS, "FROC, before and after: the fields below", privacy="secret", fields=FROC_COLUMNS),
    _text("froc_reason", "why FROC is not told"),
    _real("difference_largest", "of a linear repair: largest distance from the exact one", "logit"),
    _real("difference_root_mean_square", "the same, root mean square", "logit"),
    _real("difference_of_the_repair", "how far the exact one moves logits, root mean square", "logit"),
    *_ends("held_out_change", "change of AUROC, latents chosen anew on each half of the patients for the other half"),
    Column("held_out_first", pa.list_(_WHOLE), "latents chosen on the first half", privacy="secret"),
    Column("held_out_second", pa.list_(_WHOLE), "latents chosen on the second half", privacy="secret"),
    _text("held_out_reason", "why that change is not known"),
    Column("notes", pa.list_(_TEXT), "what is to be known beside the numbers", privacy="secret"),
)
"""Of each classifier, behind layer, model and concept."""
