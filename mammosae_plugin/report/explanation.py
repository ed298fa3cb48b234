"""Why a classifier gives an image its logit, as a page and as text."""

__all__ = ["explanation_page", "explanation_text", "MUCH_ERROR", "Told"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from mammosae_plugin.report.rendering import figure_source, render
from mammosae_plugin.report.views import Cell, TableView, name_cell, named_column
from mammosae_plugin.schema.names import counted, digits, readable, signed
from mammosae_plugin.schema.names_of_latents import told_name
from mammosae_plugin.version import __version__

MUCH_ERROR = 0.25
"""Share of a logit, less the bias, from which the SAE's error is pointed out."""


class Explained(Protocol):
    """What is told: an `analysis.Explanation`."""

    @property
    def logit(self) -> float:
        """What the network gives."""

    @property
    def bias(self) -> float:
        """Of an image without any latent."""

    @property
    def error(self) -> float:
        """What the SAE does not reconstruct."""

    @property
    def latents(self) -> pd.DataFrame:
        """Those that fire, with what they add."""

    @property
    def neighbours(self) -> pd.DataFrame:
        """Training images with the same latents."""

    @property
    def usual_likeness(self) -> float:
        """How like it those are that were searched, on average."""

    @property
    def n_firing(self) -> int:
        """How many latents fire."""

    def strongest(self, n: int, *, sign: int) -> pd.DataFrame:
        """Those that speak most for or against."""


@dataclass(frozen=True)
class Told:
    """What the study and its readers say of the latents that are shown.

    Attributes:
        top: how many for and against are shown.
        roles: by latent, as the study's rule or its readers name it.
        verdicts: by latent, the verdict of its evidence and why.
        notes: by latent, what readers wrote.
        names: by latent, the row of its surest name (`schema.names_of_latents`).
    """

    top: int
    roles: Mapping[int, str]
    verdicts: Mapping[int, tuple[str, str]]
    notes: Mapping[int, Sequence[str]]
    names: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, latent: int) -> dict[str, Any]:
        """latent, name (with its score), role, verdict, reason, notes; None where nothing is known."""
        verdict, reason = self.verdicts.get(latent, ("", ""))
        said = {"role": self.roles.get(latent), "verdict": verdict or None, "reason": reason or None}
        name = told_name(self.names.get(latent, {})) or None
        return {"latent": latent, "name": name, **said, "notes": list(self.notes.get(latent, ()))}

    def caption(self, latent: int, contribution: float) -> str:
        """Two lines under a map."""
        said = self.roles.get(latent) or (self.verdicts[latent][0] if latent in self.verdicts else "")
        return f"latent {latent}\n{_number(contribution)}" + (f" · {said}" if said else "")


def _rows(found: Explained, told: Told) -> list[tuple[str, "pd.Series[Any] | None", float]]:
    shown = [(f"latent {int(row['latent'])}", row, float(row["contribution"])) for _, row in _shown(found, told)]
    rest = float(found.latents["contribution"].sum()) - sum(value for _, _, value in shown)
    others = found.n_firing - len(shown)
    return [
        *shown,
        (counted(others, "other latent"), None, rest),
        ("error: what the SAE does not reconstruct", None, found.error),
        ("bias: an image without any latent", None, found.bias),
    ]


def _shown(found: Explained, told: Told) -> list[tuple[Any, "pd.Series[Any]"]]:
    return [one for sign in (1, -1) for one in found.strongest(told.top, sign=sign).iterrows()]


def explanation_text(about: Mapping[str, Any], found: Explained, told: Told) -> str:
    """For a terminal."""
    lines = [_lead(about, found), *([about["prepared"]] if about["prepared"] else []), ""]
    cells = [["", "contribution", "usual", "role", "verdict"]]
    for name, row, value in _rows(found, told):
        latent = -1 if row is None else int(row["latent"])
        usual = "" if row is None else _number(float(row["usual"]))
        verdict = told.verdicts[latent][0] if latent in told.verdicts else ""
        cells.append([name, _number(value), usual, told.roles.get(latent, ""), verdict])
    cells.append(["logit", _number(found.logit), "", "", ""])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    names = [(latent, told_name(told.names.get(latent, {}))) for latent, _ in _said(found, told)]
    lines += ["", "called:"] if any(name for _, name in names) else []
    lines += [f"  latent {latent}: {name}" for latent, name in names if name]
    reasons = [f"  latent {latent}: {one}" for latent, said in _said(found, told) for one in said]
    lines += ["", "said of them:", *reasons] if reasons else []
    if len(found.neighbours):
        lines += ["", f"training images of other patients with the same latents ({_chance(found)}):"]
        lines += [f"  {row['image_id']}  {row['likeness']:.3f}" for _, row in found.neighbours.iterrows()]
    return "\n".join(lines)


def _lead(about: Mapping[str, Any], found: Explained) -> str:
    said = f"{about['image']}: the logit of {readable(about['concept'])}, {about['class']}, is {_number(found.logit)}"
    if about["n_outputs"] == 1:
        probability = 1 / (1 + math.exp(-min(max(found.logit, -700), 700)))
        said += f" (probability {probability:.3f} by the classifier)"
    said += f", the sum of what {counted(found.n_firing, 'latent')}, the SAE's error and the bias add."
    if abs(found.error) > MUCH_ERROR * abs(found.logit - found.bias):
        said += f" Of that {_number(found.error)} is what the SAE does not reconstruct: latents tell only a part."
    return said


def explanation_page(about: Mapping[str, Any], found: Explained, told: Told, figures: tuple[Path, Path]) -> str:
    """The page.

    Args:
        about: image, model, concept, layer, hook_name, class, n_outputs, in_study, prepared (what was done to a file
            to make it the network's input, in a sentence; None where nothing was).
        found: the explanation.
        told: what is known of its latents.
        figures: the maps over the prepared image, and over the original, which may not be there.
    """
    return render(
        "explanation.html.j2",
        title=f"{readable(about['concept'])}: why {about['image']} gets {_number(found.logit)}",
        about=about,
        lead=_lead(about, found),
        view=_view(found, told),
        notes=[(latent, said) for latent, said in _said(found, told) if said],
        has_verdicts=bool(told.verdicts),
        has_names=bool(told.names),
        neighbours=_neighbours(found.neighbours),
        chance=_chance(found),
        figure=figure_source(figures[0]),
        original=figure_source(figures[1]),
        top=told.top,
        version=__version__,
    )  # fmt: skip


def _said(found: Explained, told: Told) -> list[tuple[int, list[str]]]:
    """By latent that is shown why its verdict is what it is, and what readers wrote."""
    said = []
    for latent in dict.fromkeys(int(row["latent"]) for _, row in _shown(found, told)):
        verdict, reason = told.verdicts.get(latent, ("", ""))
        said.append((latent, [*([f"{verdict}: {reason}"] if reason else []), *told.notes.get(latent, ())]))
    return said


def _chance(found: Explained) -> str:
    return f"all that were searched: {found.usual_likeness:.3f} on average"


def _view(found: Explained, told: Told) -> TableView:
    headings = [("Part", False), ("Contribution", True), ("Usual", True), ("Mean", True), ("Maximum", True)]
    headings += [("Role", False), ("Verdict", False)]
    rows: list[list[Cell]] = []
    starts: list[bool] = []
    for number, (name, row, value) in enumerate(_rows(found, told)):
        starts.append(number > 0 and row is None and rows[-1][2].text != "")
        if row is None:
            rows.append([Cell(name), Cell(_number(value)), *[Cell("")] * 5])
            continue
        latent = int(row["latent"])
        verdict = told.verdicts.get(latent, ("–", ""))[0]
        numbers = [Cell(_number(float(row["usual"]))), *(Cell(digits(float(row[one]))) for one in ("mean", "maximum"))]
        rows.append([Cell(name), Cell(_number(value)), *numbers, Cell(told.roles.get(latent, "–")), Cell(verdict)])
    rows.append([Cell("logit", strong=True), Cell(_number(found.logit), strong=True), *[Cell("")] * 5])
    named = [name_cell(told.names, int(row["latent"]) if row is not None else None) for _, row, _ in _rows(found, told)]
    return named_column(TableView(headings, rows, [*starts, True]), [*named, Cell("")], "Part")


def _neighbours(frame: pd.DataFrame) -> TableView | None:
    if frame.empty:
        return None
    rows = [
        [Cell(str(row["image_id"])), Cell(f"{row['likeness']:.3f}"), Cell(", ".join(map(str, row["shared"])) or "–")]
        for _, row in frame.iterrows()
    ]
    headings = [("Training image", False), ("Likeness", True), ("Shared latents", False)]
    return TableView(headings, rows, [False] * len(rows))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else signed(value)
