"""What a repair of a classifier did, as a page and as text."""

__all__ = ["froc_sentences", "performance_text", "repair_page", "repair_section"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mammosae_plugin.report.rendering import render
from mammosae_plugin.report.views import Cell, TableView
from mammosae_plugin.schema.names import MINUS, ends, readable
from mammosae_plugin.schema.results import Results, Row, frame, repair_command
from mammosae_plugin.version import __version__

_STAGES = {"before": "before", "after": "after", "exact": "exact repair"}
_MISSING = "–"


def repair_page(
    about: Mapping[str, Any],
    performance: pd.DataFrame,
    difference: Mapping[str, float],
    notes: Sequence[str],
    unit: str,
    *,
    n_bootstrap: int,
    min_patients: int,
) -> str:
    """The page of a repair.

    Args:
        about: what was done: latents, scale, kind, hook_name, concept, model, split, group.
        performance: as `Repair.performance`.
        difference: as `Repair.difference`.
        notes: as `Repair.notes`.
        unit: what is counted.
        n_bootstrap: resamples of the intervals.
        min_patients: patients of either class that an interval needs.
    """
    latents = ", ".join(map(str, about["latents"]))
    one = len(about["latents"]) == 1
    return render(
        "repair.html.j2",
        title=f"{readable(about['concept'])}: latent{'' if one else 's'} {latents} {_done(about['scale'])}",
        about=about,
        lead=_lead(performance),
        view=_view(performance),
        missing=_missing(performance),
        difference=difference,
        notes=notes,
        unit=unit,
        n_bootstrap=n_bootstrap,
        min_patients=min_patients,
        no_ece_interval=NO_ECE_INTERVAL,
        version=__version__,
    )


def repair_section(results: Results) -> dict[str, Any] | None:
    """What the template of a study's report shows of its repairs.

    Returns:
        None where the study was asked for none (`analysis.repair: null`) or is of an earlier version; else `done`, what
        is told of each classifier that was repaired, and `left`, a sentence on the others.
    """
    rows = results.get("repair", [])
    if not rows:
        return None
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            reasons.setdefault(row["reason"], []).append(_title(row))
    done = [row for row in rows if not row["reason"]]
    return {
        "done": [_repaired(results, row) for row in done],
        "by_verdict": any(row["chosen"] == "verdict" for row in done),
        "left": [
            f"No classifier was repaired: {reason}."
            if len(of) == len(rows)
            else f"Not repaired ({'; '.join(of)}): {reason}."
            for reason, of in reasons.items()
        ],
    }


def _title(row: Row) -> str:
    return f"{row['model']}, {readable(row['concept'])}"


def _repaired(results: Results, row: Row) -> dict[str, Any]:
    performance, froc = frame(row["performance"]), frame(row["froc"])
    numbers = [f"{row[f'difference_{name}']:.3g}" for name in _DIFFERENCES if row["kind"] == "linear"]
    return {
        "title": _title(row),
        "latents": row["latents"],
        "done": _done(row["scale"]),
        "said": _lead(performance),
        "froc": froc_sentences(froc if len(froc) else None),
        "held_out": _held_out(row),
        "froc_reason": row["froc_reason"],
        "linear": dict(zip(_DIFFERENCES, numbers, strict=False)),
        "view": _view(performance),
        "missing": _missing(performance),
        "notes": row["notes"],
        "file": row["file"],
        "sha256": row["sha256"],
        "command": repair_command(
            results,
            row["model"],
            row["concept"],
            row["latents"],
            scale=row["scale"],
            kind=row["kind"],
            groups=row["groups"],
            froc=bool(row["froc"]),
        ),
    }


def _held_out(row: Row) -> str:
    """A sentence on patients who had no part in the choice; empty where nothing is known of them."""
    if row["held_out_reason"]:
        return f"On patients without a part in the choice nothing is known: {row['held_out_reason']}."
    if row["held_out_change"] is None:
        return ""
    ends = [f"held_out_change{end}" for end in ("", "_low", "_high")]
    change = pd.Series({name: math.nan if row[name] is None else row[name] for name in ends})
    halves = [", ".join(map(str, row[f"held_out_{half}"])) or "none" for half in ("first", "second")]
    told = row["held_out_change_low"] is not None
    sure = ": that is what to believe" if told else ", without an interval: too little to say more"
    return (
        f"Chosen anew on each half of the test patients (latents {halves[0]}; {halves[1]}) and measured on the other "
        f"half, the change is {_estimate(change, 'held_out_change', signed=True)}{sure}."
    )


_DIFFERENCES = ("root_mean_square", "largest", "of_the_repair")


def _done(scale: float) -> str:
    return "removed" if scale == 0 else f"multiplied by {scale:g}"


def _lead(performance: pd.DataFrame) -> list[str]:
    of_all = {row["stage"]: row for _, row in performance[performance["group"] == "all"].iterrows()}
    before, after = of_all["before"], of_all["after"]
    if math.isnan(before["auroc"]):
        return ["The split has one class only, so that there is no AUROC."]
    sentences = [
        f"Over all {int(after['n_rows'])} rows of {int(after['n_patients'])} patients AUROC is "
        f"{_estimate(after, 'auroc')} after the repair and {_estimate(before, 'auroc')} before; the change is "
        f"{_estimate(after, 'auroc_change', signed=True)}."
    ]
    if math.isnan(after["auroc_low"]):
        sentences.append(
            f"There is no interval ({int(after['fewest_patients'])} patients of the class that has fewer), so nothing "
            "can be said of other patients."
        )
    for stage in ("before", "after"):
        rows = performance[(performance["stage"] == stage) & (performance["group"] != "all")]
        rows = rows[rows["auroc_low"].notna()]
        if len(rows):
            worst = rows.iloc[int(rows["auroc"].to_numpy().argmin())]
            sentences.append(f"The worst group {stage}: {worst['group']}, AUROC {_estimate(worst, 'auroc')}.")
    if (performance["group"] != "all").any() and not any("worst group" in one for one in sentences):
        sentences.append("No group has enough patients to be called the worst.")
    return sentences


def _view(performance: pd.DataFrame) -> TableView:
    headings = ["Group", "Stage", "Rows", "Positive", "Patients", "AUROC", "Change", "Calibration slope"]
    headings += ["Mean probability less share", "ECE", "Brier"]
    rows, starts = [], []
    for number, (_, row) in enumerate(performance.iterrows()):
        first = number == 0 or row["group"] != performance["group"].iloc[number - 1]
        starts.append(first and number > 0)
        counts = [Cell(str(int(row[name]))) for name in ("n_rows", "n_positive", "n_patients")]
        rows.append(
            [
                Cell(str(row["group"]), repeated=not first),
                Cell(_STAGES[row["stage"]]),
                *counts,
                _cell(row, "auroc"),
                _cell(row, "auroc_change", signed=True),
                _cell(row, "calibration_slope", decimals=2),
                *(Cell(_number(row[name], signed=name == "calibration_excess")) for name in _PLAIN),
            ]
        )
    return TableView([(text, place > 1) for place, text in enumerate(headings)], rows, starts)


def _missing(performance: pd.DataFrame) -> list[str]:
    """What the table does not say of some groups, and why: a sentence for each reason."""
    groups: dict[str, dict[str, None]] = {}
    for row in performance.to_dict("records"):
        for reason in filter(None, str(row["reason"] or "").split("; ")):
            groups.setdefault(reason, {})[str(row["group"])] = None
    return [f"Of {', '.join(of)}: {reason}." for reason, of in groups.items()]


_PLAIN = ("calibration_excess", "ece", "brier")


def performance_text(performance: pd.DataFrame) -> str:
    """The same for a terminal."""
    rows = [["group", "stage", "rows", "positive", "patients", "AUROC", "change", "slope", "ECE", "note"]]
    for _, row in performance.iterrows():
        said = [_estimate(row, "auroc"), _estimate(row, "auroc_change", signed=True)]
        said += [_estimate(row, "calibration_slope", decimals=2), _number(row["ece"]), row["reason"]]
        counts = [str(row[name]) for name in ("n_rows", "n_positive", "n_patients")]
        rows.append([row["group"], row["stage"], *counts, *said])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "in brackets: 95 % intervals over patients; ECE has " + NO_ECE_INTERVAL])


NO_ECE_INTERVAL = "no interval: it is above 0 by chance alone where rows are few, and resamples add to that"


def froc_sentences(froc: pd.DataFrame | None) -> list[str]:
    """FROC before and after, a sentence each; none where it was not asked for."""
    if froc is None:
        return []
    found = []
    for stage, rows in froc.groupby("stage", sort=False):
        row = rows.iloc[0]
        told = not math.isnan(row["cpm_chance"])
        curve = ", ".join(
            _number(one["sensitivity"])
            + (f" (by chance {_number(one['sensitivity_chance'])})" if told else "")
            + f" at {one['fppi']:g}"
            for _, one in rows.iterrows()
        )
        beside = (
            f" beside {_number(row['cpm_chance'])} by chance (other patients' lesions; p {_number(row['p'])})"
            if told
            else " without chance beside it (no other patient has a lesion in an image of the same side and view)"
        )
        few = " (no interval: too few patients with lesions)" if math.isnan(row["cpm_low"]) else ""
        change = "" if stage == "before" else f", a change of {_estimate(row, 'cpm_change', signed=True)}"
        found.append(
            f"FROC of the logit's map {stage}: {int(row['n_lesions'])} lesions of "
            f"{int(row['n_lesion_patients'])} patients in {int(row['n_images'])} images, CPM "
            f"{_estimate(row, 'cpm')}{few}{beside}{change}; sensitivity {curve} false positives per image"
        )
    return found


def _cell(row: "pd.Series[Any]", name: str, *, decimals: int = 3, signed: bool = False) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    below = "" if math.isnan(low) else "{} to {}".format(*ends(low, high))
    return Cell(_number(row[name], decimals=decimals, signed=signed), below=below)


def _estimate(row: "pd.Series[Any]", name: str, *, decimals: int = 3, signed: bool = False) -> str:
    cell = _cell(row, name, decimals=decimals, signed=signed)
    return f"{cell.text} ({cell.below})" if cell.below else cell.text


def _number(value: float, *, decimals: int = 3, signed: bool = False) -> str:
    if math.isnan(value):
        return _MISSING
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("+-")
