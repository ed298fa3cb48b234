"""Data frames as the report's template shows them: cells with an interval below, repeated labels set back."""

__all__ = [
    "Cell", "encoder_title", "glance_view", "name_cell", "named_column", "names_of_pair", "rankings_view",
    "roles_obstacles", "roles_view", "shared_latents", "sweep_view", "table_view", "TableView", "typeset",
    "whole_numbers", "without_empty",
]  # fmt: skip

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mammosae_plugin.report.summary import Finding
from mammosae_plugin.schema.names import MINUS, readable
from mammosae_plugin.schema.names_of_latents import names_of_encoder, told_score
from mammosae_plugin.schema.results import (
    NEAR_ZERO,
    UNCLEAR,
    Results,
    Row,
    class_names,
    frame,
    has_boxes,
    n_best,
    number,
    pairs,
)
from mammosae_plugin.visualization.tables import (
    MISSING,
    Estimate,
    cell_text,
    heading,
    is_numeric,
    table_roles,
)


@dataclass(frozen=True)
class Cell:
    """One cell: its text, smaller text below it, how it is set, where it leads, and what it is sorted by (or None)."""

    text: str
    below: str = ""
    strong: bool = False
    repeated: bool = False
    value: float | str | None = None
    link: str = ""


@dataclass(frozen=True)
class TableView:
    """A table ready to print.

    Attributes:
        headings: (text, whether the column is numeric) per column.
        rows: cells per row.
        starts: per row, whether a new group begins (a rule is drawn above it).
        further: the rows that are left out in print.
    """

    headings: list[tuple[str, bool]]
    rows: list[list[Cell]]
    starts: list[bool]
    further: frozenset[int] = frozenset()

    @property
    def long(self) -> bool:
        """Too long to be kept on one printed page."""
        return len(self.rows) > 12

    @property
    def wide(self) -> bool:
        """Too wide for a printed page that stands upright."""
        return len(self.headings) > 10

    def has(self, heading: str) -> bool:
        """Whether there is a column of this heading."""
        return any(text == heading for text, _ in self.headings)

    def column(self, heading: str) -> int:
        """The place of a column, by its heading."""
        return [text for text, _ in self.headings].index(heading)


def table_view(table: pd.DataFrame, *, n_labels: int = 0) -> TableView | None:
    """The frame for printing; the first `n_labels` columns are labels, shown once per group. `None` without rows.

    A group is a run of rows that agree in all labels but the last.
    """
    if table.empty:
        return None
    rows: list[list[Cell]] = []
    starts: list[bool] = []
    for record in table.itertuples(index=False, name=None):
        cells = [_cell(column, value) for column, value in zip(table.columns, record, strict=True)]
        same = 0
        while rows and same < n_labels - 1 and cells[same].text == rows[-1][same].text:
            same += 1
        starts.append(bool(rows) and same < n_labels - 1)
        rows.append([replace(cell, repeated=position < same) for position, cell in enumerate(cells)])
    return TableView([(heading(column), is_numeric(table, column)) for column in table.columns], rows, starts)


def typeset(text: str | None) -> str:
    """A reason from the results for reading: negative numbers with a minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text or "")


def without_empty(table: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table without those of the columns (all by default) in which nothing can be told."""

    def is_empty(cell: object) -> bool:
        return cell is None or cell == "" or not math.isfinite(cell.value if isinstance(cell, Estimate) else 0)

    return table.drop(columns=[one for one in columns or table.columns if all(map(is_empty, table[one]))])


def name_cell(names: Mapping[int, Mapping[str, Any]], latent: Any) -> Cell:
    """A latent's name with its score and chance below; empty where it has none.

    Args:
        names: as `schema.names_of_latents.names_of_encoder` gives them.
        latent: its number; None or no number where there is no latent.
    """
    row = names.get(int(latent)) if isinstance(latent, int) else None
    if row is None:
        return Cell("")
    name = readable(str(row["name"]))
    return Cell(name, below=told_score(row), value=name)


def named_column(view: TableView, cells: Sequence[Cell], behind: str) -> TableView:
    """The table with a column of names behind another; as it is where no latent of it has one.

    Args:
        view: the table.
        cells: a name for each row.
        behind: the heading of the other column.
    """
    if not any(cell.text for cell in cells):
        return view
    place = view.column(behind) + 1
    rows = [[*row[:place], cell, *row[place:]] for row, cell in zip(view.rows, cells, strict=True)]
    return replace(view, headings=[*view.headings[:place], ("Name", False), *view.headings[place:]], rows=rows)


def encoder_title(encoder: str) -> str:
    """An encoder's name for readers: "finetuned/Mass" is "finetuned, Mass"."""
    model, _, concepts = encoder.partition("/")
    return f"{model}, {' and '.join(map(readable, concepts.split('+')))}" if concepts else model


def _cell(column: str, value: object) -> Cell:
    if isinstance(value, Estimate):
        known = value.value if math.isfinite(value.value) else None
        return Cell(value.point, below=value.interval, strong=value.best, value=known)
    text = cell_text(column, value)
    return Cell(text, value=None if text == MISSING else value if isinstance(value, int | float) else text)


def roles_view(results: Results) -> TableView | None:
    """The leading latents and their roles, each with its reason, and who said it, below."""
    roles = table_roles(results)
    if not has_boxes(results):
        roles = roles.drop(columns="place")
    view = table_view(roles.drop(columns=["said_by", "reason"]), n_labels=3)
    if view is None:
        return None
    column, once = list(roles.columns).index("role"), {row[:2]: row[2] for row in _reasons_of_all(roles)}
    told = zip(view.rows, roles["model"], roles["concept"], roles["said_by"], roles["reason"], strict=True)
    for cells, model, concept, by, reason in told:
        said = [None if (model, concept) in once else typeset(reason), by and f"said by {by}"]
        cells[column] = replace(cells[column], below="; ".join(str(part) for part in said if part))
    whose = zip(roles["model"], roles["concept"], roles["latent"], strict=True)
    return named_column(view, [name_cell(names_of_pair(results, *pair), latent) for *pair, latent in whose], "Latent")


def roles_obstacles(results: Results) -> list[str]:
    """A sentence for each classifier whose latents are all unclear for the same reason, which the table leaves out."""
    return [
        f"{model}, {readable(concept)}: all are unclear: {typeset(reason)}."
        for model, concept, reason in _reasons_of_all(table_roles(results))
    ]


def _reasons_of_all(roles: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Model, concept and reason of the classifiers of whose latents none has a role, all for one reason."""
    found = []
    for (model, concept), own in roles.groupby(["model", "concept"], sort=False):
        alike = len(own) > 1 and own["reason"].nunique(dropna=False) == 1 and own["said_by"].isna().all()
        if alike and (own["role"] == UNCLEAR).all() and (reason := own["reason"].iloc[0]):
            found.append((str(model), str(concept), str(reason)))
    return found


def rankings_view(results: Results, model: str, concept: str, score: str) -> TableView | None:
    """The best latents of all classes of one model and concept side by side: rank, then latent and score per class."""
    of_class = [
        row for row in results["rankings"] if (row["model"], row["concept"], row["score"]) == (model, concept, score)
    ]
    if not of_class:
        return None
    names = class_names(results, concept) or (["absent", "present"] if len(of_class) == 2 else [])
    words = {"absent": "without finding", "present": "with finding"}
    headings = [("Rank", True)]
    for place, row in enumerate(of_class):
        name = names[place] if len(names) == len(of_class) else f"class {row['class']}"
        headings += [(f"Latent, {words.get(name, name)}", True), ("Score", True)]
    rows = []
    for position in range(min(n_best(results), max(len(row["latents"]) for row in of_class))):
        cells = [Cell(str(position + 1))]
        for row in of_class:
            if position < len(row["latents"]):
                latent, scores = row["latents"][position], row["scores"]
                score_text = cell_text("score", number(scores[position]) if position < len(scores) else None)
                cells += [Cell(str(latent)), Cell(score_text)]
            else:
                cells += [Cell(MISSING), Cell(MISSING)]
        rows.append(cells)
    view, known = TableView(headings, rows, [False] * len(rows)), names_of_pair(results, model, concept)
    for (title, _), row in zip(headings[1::2], of_class, strict=True):
        best = [*row["latents"], *[None] * len(rows)][: len(rows)]
        view = named_column(view, [name_cell(known, latent) for latent in best], title)
    return view


def names_of_pair(results: Results, model: str, concept: str) -> dict[int, Mapping[str, Any]]:
    """By latent of a classifier's encoder the surest name of each that has one."""
    return names_of_encoder(results.get("names", []), model, concept)


def shared_latents(results: Results, model: str, concept: str, score: str) -> int | None:
    """How many of the best latents are those of every class; `None` with fewer than two classes."""
    best = [
        set(row["latents"][: n_best(results)])
        for row in results["rankings"]
        if (row["model"], row["concept"], row["score"]) == (model, concept, score)
    ]
    return len(set.intersection(*best)) if len(best) > 1 else None


def glance_view(found: list[Finding], results: Results) -> TableView | None:
    """The main numbers of every classifier in a row."""
    top, one_control = n_best(results), results.get("n_controls") == 1
    rows: list[Row] = []
    for finding in found:
        group, best = finding.restoring, finding.best or {}
        best = best if number(best.get("average_precision")) >= NEAR_ZERO else {}
        none = Estimate(math.nan)
        random = group.random if group else none
        if one_control:
            random = Estimate(random.value)
        rows.append(
            {
                "model": finding.model,
                "concept": finding.concept,
                "AUROC without SAE": finding.without,
                "with SAE": finding.with_sae,
                f"recovered by the {top} best": finding.recovered_by_best,
                "restoring k": group.k if group else None,
                "AUROC there": group.auroc if group else none,
                f"random group{'' if one_control else 's'} there": random,
            }
        )
        if has_boxes(results):
            precision = Estimate(number(best.get("average_precision")))
            rows[-1] |= {"latent of the highest AP": best.get("latent"), "its AP": precision}
    return table_view(pd.DataFrame(rows, dtype=object))


def sweep_view(results: Results, *, error_term: bool) -> TableView | None:
    """AUROC by k: for every model, concept and mode a row for the chosen groups and one for the random groups."""
    rows: list[Row] = []
    sweep = frame(results["interventions"], error_term=error_term)
    if sweep.empty:
        return None
    ks = sorted({int(k) for k in sweep["k"]})
    random = "one random group" if results.get("n_controls") == 1 else "random, mean"
    for model, concept in pairs(results):
        for mode in ("activate", "deactivate"):
            chosen = sweep[(sweep["model"] == model) & (sweep["concept"] == concept) & (sweep["mode"] == mode)]
            if chosen.empty:
                continue
            by_k = chosen.set_index("k")
            for label, column in (("best latents", "auroc"), (random, "random_auroc_mean")):
                values = {f"k_{k}": Estimate(float(by_k[column].get(k, math.nan))) for k in ks}
                rows.append({"model": model, "concept": concept, "mode": mode, "group": label} | values)
    view = table_view(pd.DataFrame(rows), n_labels=4)
    if view is None:
        return None
    headings = [*view.headings[:4], *((f"k = {k:,}" if k == 0 else f"{k:,}", True) for k in ks)]
    return replace(view, headings=headings)


def whole_numbers(rows: pd.DataFrame, start: str) -> pd.DataFrame:
    """With whole numbers, or nothing, in the columns whose names begin so."""
    shown = rows.astype(object)
    for name in rows.columns:
        if name.startswith(start):
            whole = [None if pd.isna(value) else int(value) for value in rows[name]]
            shown[name] = pd.Series(whole, index=rows.index, dtype=object)
    return shown
