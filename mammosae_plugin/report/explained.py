"""The report's section on single images whose logit is taken apart, latent by latent."""

__all__ = ["explained_section"]

import math
import shlex
from pathlib import Path
from typing import Any

from mammosae_plugin.report.captions import figure
from mammosae_plugin.report.explanation import MUCH_ERROR
from mammosae_plugin.report.views import Cell, TableView, name_cell, named_column, names_of_pair, typeset
from mammosae_plugin.schema.explained import RULES
from mammosae_plugin.schema.names import counted, digits, explained_name, file_part, readable, signed
from mammosae_plugin.schema.results import Results, Row, may_show_images, number
from mammosae_plugin.visualization.tables import MISSING

_AGREEMENT = 1e-4
_KINDS = {
    (RULES[0], True): "hit",
    (RULES[0], False): "nearest to a hit, but below 0",
    (RULES[1], True): "false alarm",
    (RULES[1], False): "nearest to a false alarm, but below 0",
}


def explained_section(results: Results, figures_folder: Path, *, up: str = "") -> dict[str, Any] | None:
    """What the template shows of the explained images; None where the results have none.

    Args:
        results: what was found at a layer.
        figures_folder: where figures lie.
        up: the way from the page to the results folder.

    Returns:
        images: of each title, lead, figure (name, source, alt; None where images are not shown), table, notes (latent
        and lines) and command; has_figures.
    """
    rows = results.get("explained", [])
    if not rows:
        return None
    return {
        "images": [_image(row, results, figures_folder, up) for row in rows],
        "has_figures": may_show_images(results),
        "agreement": f"{_AGREEMENT:g}",
    }


def _image(row: Row, results: Results, folder: Path, up: str) -> Row:
    name = f"{row['model']}, {readable(row['concept'])}"
    kind = _KINDS[row["rule"], number(row["logit"]) > 0]
    file = explained_name(row["model"], row["concept"], row["rule"], row["place"])
    alt = f"{name}, {kind}: where the latents fire that move the logit most"
    layer = ["--layer", results["layer"]["name"]] if "layer" in results else []
    named = file_part(f"{row['model']}_{row['concept']}_{row['rule']}_{row['place']}")
    image = row.get("image_id") or f"{row['rule']}:{row['place']}"
    command = ["mammosae", "explain", image, "--study", "study.yaml", "--model", row["model"], "--concept"]
    return {
        "title": f"{name}: {kind}",
        "lead": _lead(row),
        "figure": figure(folder, file, alt, up=up),
        "table": _view(row, results),
        "notes": [(one["latent"], lines) for one in row["latents"] if (lines := _said(one))],
        "command": shlex.join([*command, row["concept"], *layer, "-o", f"explained_{named}"]),
    }


def _said(latent: Row) -> list[str]:
    verdict = [f"verdict {latent['verdict']}: {typeset(latent['reason'])}"] if latent.get("reason") else []
    return [*(verdict if latent["verdict"] != "unclear" else []), *latent.get("notes", [])]


def _lead(row: Row) -> str:
    """Which image it is and why, what its logit is, and whether the sum was right."""
    whom = "with the finding" if row["rule"] == RULES[0] else "without the finding"
    of = f"the {counted(row['n_images'], 'test image')} {whom}"
    place = "" if row["place"] == 1 else f" but {row['place'] - 1}, each of another patient"
    which = f"of {of} that of the highest logit{place}"
    image = f"Image {row['image_id']}, {which}" if row.get("image_id") else which[0].upper() + which[1:]
    logit, gap = number(row["logit"]), number(row["gap"])
    probability = 1 / (1 + math.exp(-min(max(logit, -700), 700)))
    off = f"{_signed(logit - gap)}, {abs(gap):.0e} from it" if gap else f"it, {_signed(logit)}, exactly"
    much = abs(number(row["error"])) > MUCH_ERROR * abs(logit - number(row["bias"]))
    part = f" Of it {_signed(number(row['error']))} is what the SAE does not reconstruct: latents tell only a part."
    rounding = "" if abs(gap) <= _AGREEMENT else ", which is rounding of the large numbers that it is made of"
    return (
        f"{image}. Its logit is {_signed(logit)} (probability {probability:.3f} by the "
        f"classifier); {counted(row['n_firing'], 'latent')}, bias and error add up to {off}{rounding}."
        f"{part if much else ''}"
    )


def _view(row: Row, results: Results) -> TableView:
    headings = [("Part", False), ("Contribution", True), ("Usual", True), ("Mean", True), ("Maximum", True)]
    headings += [("Role", False), ("Verdict", False)]
    rows = [
        [
            Cell(f"latent {one['latent']}"),
            *(Cell(_signed(number(one[name]))) for name in ("contribution", "usual")),
            *(Cell(digits(number(one[name]))) for name in ("mean", "maximum")),
            *(Cell(one[name] or MISSING) for name in ("role", "verdict")),
        ]
        for one in row["latents"]
    ]
    n_others = int(row["n_firing"]) - len(rows)
    rest = [
        (counted(n_others, "other latent"), row["others"]),
        ("error: what the SAE does not reconstruct", row["error"]),
        ("bias: an image without any latent", row["bias"]),
    ]
    starts = [False] * len(rows) + [True, False, False, True]
    rows += [[Cell(words), Cell(_signed(number(value))), *[Cell("")] * 5] for words, value in rest]
    rows.append([Cell("logit", strong=True), Cell(_signed(number(row["logit"])), strong=True), *[Cell("")] * 5])
    names = names_of_pair(results, row["model"], row["concept"])
    named = [name_cell(names, one["latent"]) for one in row["latents"]]
    view = TableView(headings, rows, starts)
    return named_column(view, [*named, *[Cell("")] * (len(rows) - len(named))], "Part")


def _signed(value: float) -> str:
    return MISSING if math.isnan(value) else signed(value)
