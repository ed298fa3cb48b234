"""What a study found as tables, and their three printed forms: CSV for machines, Markdown and LaTeX for people.

Cells that are measured values are `Estimate`s: a number with its interval. CSV keeps all digits and puts the ends of
the interval into columns of their own (`auroc`, `auroc_low`, `auroc_high`); Markdown and LaTeX write
0.951 [0.940, 0.962], with an en dash where there is no value.
"""

__all__ = [
    "cell_text", "escape_latex", "Estimate", "estimate", "heading", "is_numeric", "leader", "METHODS", "MISSING",
    "PValue", "table_1", "table_2", "table_interventions", "table_layers", "table_rankings", "table_roles", "to_csv",
    "to_latex", "to_markdown", "write_table",
]  # fmt: skip

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.files import local_path, write_text
from mammosae_plugin.schema.embeddings import LABELS as LABELS_OF_EMBEDDINGS
from mammosae_plugin.schema.findings import BOX_PRECISIONS, LABELS, METRICS
from mammosae_plugin.schema.names import MINUS, digits, ends, readable
from mammosae_plugin.schema.results import (
    NEAR_ZERO,
    WEAK,
    Results,
    Row,
    n_best,
    number,
    pairs,
    reconstruction_row,
    recovered,
    sae_flaw,
    stated_role,
    sweep_reference,
)

MISSING = "–"
METHODS = {"channel": "raw channel", "grad_cam": "Grad-CAM"}
_LAYER_PLACE = ("model", "concept", "layer")
_LAYER_SHAPE = ("hook_name", "grid", "channels", "latents", "explained_variance", "l0", "dead_share")
_LAYER_SEPARATION = (
    "auroc_without_sae",
    "auroc_with_sae",
    "single_latent",
    "single_latent_auroc",
    "recovered",
    "removal_excess",
)
_LAYER_PRECISIONS = ("best_latent_ap", "best_channel_ap", "gradcam_ap")
_LAYER_LOCALIZATION = ("best_latent", *_LAYER_PRECISIONS)
_VARIANTS = {"without_sae": "without SAE", "with_sae": "with SAE", "difference": "difference"}
_HEADINGS = {
    "positive_patients": "Positive (patients)",
    "undefined_resamples": "Undefined resamples",
    "lowest": "Highest, under the least favourable box score",
    "highest": "Highest, under the most favourable box score",
    "random_auroc": "AUROC, random groups",
    "mass_auroc": "AUROC, random groups of same activation",
    "best_number": "Highest",
    "ablation": "Effect of ablation",
    "ablation_random": "95 % of random groups below",
    "place": "In its boxes, times chance",
    "mean_with": "Mean, with",
    "mean_without": "Mean, without",
    "fires_with": "Fires, with",
    "fires_without": "Fires, without",
}
_LATEX_WIDTH = 95  # characters of a row that fit on a page; a wider table is scaled down
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval, and how it is to be printed.

    Attributes:
        value: the point estimate; NaN prints as an en dash.
        low: lower end of the interval, NaN without one.
        high: upper end of the interval, NaN without one.
        signed: print a plus before positive values, for differences.
        best: it leads what it stands beside (`leader`), printed in bold.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    signed: bool = False
    best: bool = False

    @property
    def point(self) -> str:
        """The value alone, to three digits."""
        return _fixed(self.value, self.signed)

    @property
    def interval(self) -> str:
        """The interval in square brackets, or nothing."""
        if math.isnan(self.low) or math.isnan(self.high):
            return ""
        low, high = ends(self.low, self.high)
        plus = [
            "+" if self.signed and end > 0 and float(text) else "" for end, text in ((self.low, low), (self.high, high))
        ]
        return f"[{plus[0]}{low}, {plus[1]}{high}]"

    def __str__(self) -> str:
        return f"{self.point} {self.interval}".rstrip()


@dataclass(frozen=True)
class PValue(Estimate):
    """A p-value, or one that is corrected (q): below 0.001 that is said, and no 0.000."""

    @property
    def point(self) -> str:
        """The value to three digits."""
        return "< 0.001" if self.value < 0.0005 else super().point


def _fixed(value: float, signed: bool = False) -> str:
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.3f}"
    if float(text) == 0:
        return "0.000"
    return text.replace("-", MINUS) if value < 0 else f"+{text}" if signed else text


def cell_text(column: str, cell: Any) -> str:
    """A cell as people read it: three digits, an en dash for a missing value, concepts without underscores."""
    if isinstance(cell, Estimate):
        return str(cell)
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:g}" if column == "iou_threshold" else digits(cell)
    return readable(str(cell)) if column == "concept" else str(cell)


def heading(column: str) -> str:
    """A column's heading for people: "average_precision" is "AP", "rank_1" is "Rank 1"."""
    words = column.replace("_", " ")
    return (
        _HEADINGS.get(column) or LABELS.get(column) or LABELS_OF_EMBEDDINGS.get(column) or words[:1].upper() + words[1:]
    )


def is_numeric(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column holds nothing but numbers and missing values (and is therefore set flush right)."""
    cells = [cell for cell in frame[column] if cell is not None]
    return all(isinstance(c, Estimate | int | float) and not isinstance(c, bool) for c in cells)


def to_csv(frame: pd.DataFrame) -> str:
    """The frame as CSV with full precision; an `Estimate` with intervals takes three columns."""
    intervals = {c: any(isinstance(cell, Estimate) and cell.interval for cell in frame[c]) for c in frame.columns}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for c in frame.columns for name in ((c, f"{c}_low", f"{c}_high") if intervals[c] else (c,))])
    for record in frame.itertuples(index=False, name=None):
        cells: list[str] = []
        for column, cell in zip(frame.columns, record, strict=True):
            estimate = cell if isinstance(cell, Estimate) else None
            cells.append(_exact(estimate.value if estimate else cell))
            if intervals[column]:
                cells += [_exact(estimate.low if estimate else None), _exact(estimate.high if estimate else None)]
        writer.writerow(cells)
    return stream.getvalue()


def _exact(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return repr(float(cell)) if isinstance(cell, float) else str(cell)


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    """The frame as a Markdown table under its caption; the best value of a row is in bold."""

    def text(column: str, cell: Any) -> str:
        plain = cell_text(column, cell).replace("|", "\\|").replace("\n", " ")
        return f"**{plain}**" if isinstance(cell, Estimate) and cell.best else plain

    rows = [[heading(c).replace("|", "\\|") for c in frame.columns]]
    rows.append(["---:" if is_numeric(frame, c) else ":---" for c in frame.columns])
    for record in frame.itertuples(index=False, name=None):
        rows.append([text(c, cell) for c, cell in zip(frame.columns, record, strict=True)])
    return f"{caption}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def to_latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """The frame as a LaTeX table float (package booktabs), numbers flush right, special characters escaped.

    A table wider than a page is scaled to the text width (package graphicx).
    """

    def text(column: str, cell: Any) -> str:
        plain = escape_latex(cell_text(column, cell))
        return rf"\textbf{{{plain}}}" if isinstance(cell, Estimate) and cell.best else plain

    align = "".join("r" if is_numeric(frame, c) else "l" for c in frame.columns)
    rows = [" & ".join(escape_latex(heading(c)) for c in frame.columns) + r" \\"]
    for record in frame.itertuples(index=False, name=None):
        rows.append(" & ".join(text(c, cell) for c, cell in zip(frame.columns, record, strict=True)) + r" \\")
    columns = [[heading(c), *(cell_text(c, cell) for cell in frame[c])] for c in frame.columns]
    wide = sum(max(map(len, column)) + 2 for column in columns) > _LATEX_WIDTH
    lines = [
        r"% needs \usepackage{booktabs}" + (r" and \usepackage{graphicx}" if wide else ""),
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{tab:{label}}}",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX would interpret written so that it prints."""
    return "".join(_LATEX.get(character, character) for character in text)


def write_table(frame: pd.DataFrame, folder: str | os.PathLike[str], name: str, caption: str) -> list[Path]:
    """Write `<name>.csv`, `<name>.md` and `<name>.tex` into `folder`; returns the three paths."""
    texts = {".csv": to_csv(frame), ".md": to_markdown(frame, caption), ".tex": to_latex(frame, caption, name)}
    paths = []
    for suffix, text in texts.items():
        paths.append(local_path(folder) / f"{name}{suffix}")
        write_text(paths[-1], text)
    return paths


def estimate(row: Row, name: str, *, signed: bool = False) -> Estimate:
    """The value `name` of a row of results with its interval `<name>_low`, `<name>_high`."""
    return Estimate(number(row.get(name)), number(row.get(f"{name}_low")), number(row.get(f"{name}_high")), signed)


def table_1(results: Results) -> pd.DataFrame:
    """Table 1 of the paper: every model without the SAE, with it, and the paired difference (with minus without).

    `positive_patients` (rows and, in brackets, patients) and `undefined_resamples` say what the intervals rest on.
    """
    rows: list[Row] = []
    for model, concept in pairs(results):
        for variant, words in _VARIANTS.items():
            row = reconstruction_row(results, model, concept, variant)
            if row:
                signed = variant == "difference"
                values = {metric: estimate(row, metric, signed=signed) for metric in METRICS}
                rows.append({"model": model, "concept": concept, "variant": words, **_behind(row), **values})
    known = any(row.get("undefined_share") is not None for row in results["reconstruction"])
    behind = list(_behind({})) if known else []
    return pd.DataFrame(rows, columns=["model", "concept", "variant", *behind, *METRICS])


def _behind(row: Row) -> Row:
    """What the intervals of a row of results rest on; `undefined_share` of its resamples lacked a class."""
    positive, patients, undefined = (row.get(name) for name in ("n_positive", "n_positive_patients", "undefined_share"))
    return {
        "positive_patients": None if positive is None or patients is None else f"{positive:g} ({patients:g})",
        "undefined_resamples": None if undefined is None else f"{100 * undefined:.1f} %",
    }


def table_2(results: Results) -> pd.DataFrame:
    """Table 2 of the paper: average precision of boxes from each of the best latents, beside the baselines.

    One row per model, concept, threshold, IoU and method (latent, raw channel, Grad-CAM); columns rank_1, rank_2, ...
    hold the average precision of the latent or channel of that rank, `best_number` the index of the highest one,
    `lowest` and `highest` its average precision under the least and the most favourable score of a box. A cell is
    marked where it leads (`leader`) all methods and ranks of a model, concept, threshold and IoU.
    """
    methods = [("latent", row) for row in results["localization"]]
    methods += [(METHODS[row["method"]], row) for row in results.get("baselines", [])]
    groups: dict[tuple[str, str, str, float], dict[str, dict[int, Row]]] = {}
    for method, row in methods:
        key = (row["model"], row["concept"], row["threshold"], float(row["iou_threshold"]))
        groups.setdefault(key, {}).setdefault(method, {})[row["rank"]] = row
    ranks = range(1, max((row["rank"] for _, row in methods), default=0) + 1)
    order = {pair: position for position, pair in enumerate(pairs(results))}
    rows: list[Row] = []
    for key in sorted(groups, key=lambda key: order.get(key[:2], len(order))):
        highest = {
            method: max(by_rank.values(), key=lambda row: (_precision(row), -row["rank"]))
            for method, by_rank in groups[key].items()
        }
        cells = [row for by_rank in groups[key].values() for row in by_rank.values()]
        first = leader([estimate(row, "average_precision") for row in cells], at_least=NEAR_ZERO)
        winner = None if first is None else cells[first]
        for method, by_rank in groups[key].items():
            own = highest[method]
            rows.append(
                dict(zip(("model", "concept", "threshold", "iou_threshold"), key, strict=True))
                | {"method": method}
                | {f"rank_{r}": _ranked(by_rank.get(r), winner) for r in ranks}
                | {"best_number": own["latent"] if own["latent"] >= 0 and _precision(own) >= NEAR_ZERO else None}
                | _over_box_scores(own)
            )
    columns = ["model", "concept", "threshold", "iou_threshold", "method", *(f"rank_{r}" for r in ranks), "best_number"]
    columns += ["lowest", "highest"] if any("lowest" in row for row in rows) else []
    return pd.DataFrame(rows, columns=columns, dtype=object)  # or a missing latent would turn the others into floats


def _over_box_scores(row: Row) -> Row:
    """The range of a row's average precision over the rules by which boxes can be scored; empty without them."""
    values = [number(row.get(column.name)) for column in BOX_PRECISIONS]
    known = not all(map(math.isnan, values))
    return {"lowest": Estimate(min(values)), "highest": Estimate(max(values))} if known else {}


def _precision(row: Row) -> float:
    """For finding the best: a value that could not be computed is the worst."""
    value = number(row["average_precision"])
    return -1.0 if math.isnan(value) else value


def leader(estimates: Sequence[Estimate], *, at_least: float) -> int | None:
    """Which of several values may be called the best; None where none may.

    It is at least `at_least`, and its interval lies above the intervals of all others that are known. Without
    intervals, or with nothing to compare with, nothing is the best.
    """
    known = [i for i, one in enumerate(estimates) if math.isfinite(one.value)]
    if len(known) < 2:
        return None
    first = max(known, key=lambda i: estimates[i].value)
    clear = all(estimates[first].low > estimates[i].high for i in known if i != first)
    return first if clear and estimates[first].value >= at_least else None


def _ranked(row: Row | None, winner: Row | None) -> Estimate | None:
    """A cell of Table 2; None where a method has no such rank."""
    if row is None:
        return None
    return replace(estimate(row, "average_precision"), best=row is winner)


def table_layers(results: Results) -> pd.DataFrame:
    """The layers of a study side by side, a row per model, concept and layer.

    The AUROC of a single latent is marked at the layer that leads (`leader`). The latents of an SAE that does not work
    (`sae_flaw`) are never marked.
    """
    rows: list[Row] = []
    for model, concept in pairs(results):
        own = [row for row in results.get("layers", []) if (row["model"], row["concept"]) == (model, concept)]
        usable = [row for row in own if not sae_flaw(row)]
        first = leader([estimate(row, "single_latent_auroc") for row in usable], at_least=WEAK)
        separating = None if first is None else usable[first]
        for row in own:
            single = estimate(row, "single_latent_auroc")
            rows.append(
                {"model": model, "concept": concept}
                | {key: row[key] for key in ("layer", "hook_name")}
                | {"grid": f"{row['grid'][0]} × {row['grid'][1]}", "channels": row["d_in"], "latents": row["d_sae"]}
                | {
                    key: Estimate(number(row[key]))
                    for key in ("explained_variance", "dead_share", "auroc_without_sae", "auroc_with_sae")
                }
                | {"l0": number(row["l0"])}
                | {"single_latent": row["single_latent"]}
                | {"single_latent_auroc": replace(single, best=row is separating)}
                | {"recovered": Estimate(number(row["recovered"]))}
                | {"removal_excess": Estimate(number(row["removal_excess"]), signed=True)}
                | {"best_latent": row["best_latent"]}
                | {name: Estimate(number(row[name])) for name in _LAYER_PRECISIONS}
            )
    columns = [*_LAYER_PLACE, *_LAYER_SHAPE, *_LAYER_SEPARATION, *_LAYER_LOCALIZATION]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def table_rankings(results: Results) -> pd.DataFrame:
    """The best latents of every class, as many as the study looks at: a row per model, concept, score, class, rank."""
    rows: list[Row] = []
    for ranking in results["rankings"]:
        test_means = ranking.get("test_mean_activation") or []
        for position, latent in enumerate(ranking["latents"][: n_best(results)]):
            rows.append(
                {
                    "model": ranking["model"],
                    "concept": ranking["concept"],
                    "score": ranking["score"],
                    "class": str(ranking["class"]),
                    "rank": position + 1,
                    "latent": latent,
                    "class_score": number(_at(ranking["scores"], position)),
                    "test_mean_activation": number(_at(test_means, position)),
                }
            )
    columns = ["model", "concept", "score", "class", "rank", "latent", "class_score", "test_mean_activation"]
    return pd.DataFrame(rows, columns=columns)


def table_roles(results: Results) -> pd.DataFrame:
    """What the named latents are, and the numbers behind it: a row per model, concept and latent.

    `undefined_resamples` is the share that lacked a class, then that in which the place could be compared with nothing.
    """
    rows: list[Row] = []
    for pair, named in results["named_latents"].items():
        model, _, concept = pair.rpartition("/")
        for one in named:
            rows.append(
                {"model": model, "concept": concept, "latent": one["latent"], "role": stated_role(one)}
                | {name: estimate(one, name) for name in ("auroc", "ablation", "place")}
                | {"ablation_random": number(one.get("ablation_random"))}
                | {name: number(one.get(name)) for name in _OF_CLASSES}
                | {"n_patients": _patients(one), "undefined_resamples": _undefined(one)}
                | {"said_by": one.get("by"), "reason": one.get("reason")}
            )
    columns = ["model", "concept", "latent", "role", "auroc", *_OF_CLASSES, "ablation", "ablation_random", "place"]
    behind = ["n_patients", "undefined_resamples", "said_by", "reason"]
    return pd.DataFrame(rows, columns=[*columns, *behind], dtype=object)


_OF_CLASSES = ("mean_with", "mean_without", "fires_with", "fires_without")


def _patients(named: Row) -> str | None:
    counts = [named.get(f"n_patients_{name}") for name in ("with", "without")]
    return None if None in counts else f"{counts[0]:g} + {counts[1]:g}"


def _undefined(named: Row) -> str | None:
    shares = [number(named.get(name)) for name in ("undefined_share", "place_undefined_share")]
    return ", ".join(f"{100 * share:.1f} %" for share in shares if math.isfinite(share)) or None


def _at(values: list[Any], position: int) -> Any:
    return values[position] if position < len(values) else None


def table_interventions(results: Results) -> pd.DataFrame:
    """Figure 2 in numbers: one row per model, concept, error term, mode and k, with random groups beside each group.

    The intervals of `random_auroc` and `mass_auroc` are the smallest and largest AUROC of the random groups.
    """
    rows: list[Row] = []
    for row in results["interventions"]:
        reference = sweep_reference(results, row["model"], row["concept"])
        rows.append(
            {key: row[key] for key in ("model", "concept", "error_term", "mode", "k", "n_latents")}
            | {metric: estimate(row, metric) for metric in METRICS}
            | {"auroc_recovered": Estimate(recovered(number(row["auroc"]), reference))}
            | {
                f"{kind}_auroc": Estimate(
                    number(row.get(f"{kind}_auroc_mean")),
                    number(row.get(f"{kind}_auroc_low")),
                    number(row.get(f"{kind}_auroc_high")),
                )
                for kind in ("random", "mass")
            }
        )
    columns = ["model", "concept", "error_term", "mode", "k", "n_latents", *METRICS]
    return pd.DataFrame(rows, columns=[*columns, "auroc_recovered", "random_auroc", "mass_auroc"])
