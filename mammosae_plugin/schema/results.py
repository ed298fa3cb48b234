"""What a study finds at a layer, as figures, tables, the report and the Hub read it, and helpers to look it up.

`schema.findings` declares the columns of its rows. `results.json` is the same for scripts. A number that could not be
computed (one class only, no boxes) is None there and NaN as a `number`. A check that does not apply has `passed` None.
"""

__all__ = [
    "BACKGROUND", "best_row", "class_names", "CONCEPT", "concepts", "FAR_L0", "FORMAT_VERSION", "frame", "has_boxes",
    "layer_names", "leading_latents", "may_show_images", "model_names", "MOST_DEAD", "n_best", "NEAR_ZERO", "number",
    "pairs", "poor_sae", "reconstruction_row", "recovered", "reference_auroc", "repair_command", "Results",
    "role_evidence", "ROLE_NUMBERS", "Row", "run_patients", "sae_flaw", "shortcuts", "stated_role", "sweep_reference",
    "swept_reference", "TRAINED_HERE", "UNCLEAR", "WEAK",
]  # fmt: skip

import math
import shlex
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import pandas as pd

from mammosae_plugin.schema.names import MINUS, digits, file_part

FORMAT_VERSION = 1
TRAINED_HERE = "trained in this study"
"""What results say of where an SAE is from that was neither given as a file nor as a place on the Hub."""
MOST_DEAD = 0.9  # share of latents that never fire above which little of an SAE is in use
NEAR_ZERO = 0.05  # average precision below which boxes are hardly ever met
WEAK = 0.6  # AUROC below which a latent or a classifier does little better than guessing
_LEADING = 6
FAR_L0 = 2  # times as many latents per position as it was trained for, or as few, are far from it

CONCEPT, BACKGROUND, UNCLEAR = "concept", "background", "unclear"
"""What the study's rule may call a latent (`mammosae_plugin.analysis.roles`); readers may call it anything."""
ROLE_NUMBERS = (
    *("n_patients_with", "n_patients_without", "n_firing_with", "n_firing_without"),
    *("mean_with", "mean_without", "fires_with", "fires_without"),
    *("undefined_share", "auroc", "auroc_low", "auroc_high"),
    *("ablation", "ablation_low", "ablation_high", "ablation_share", "ablation_random", "n_random"),
    *("place", "place_low", "place_high", "n_patients_boxed", "place_undefined_share"),
)
"""The numbers behind a role; those of the place are null where the concept has no boxes.

`undefined_share` of the resampled patients lack a class, and `place_undefined_share` have no chance to compare the
place with; the intervals are what the others agree on.
"""
_DECISIVE = ("mean_with", "mean_without", "auroc", "auroc_low", "auroc_high", "ablation", "ablation_random")

Row = dict[str, Any]


class _Optional(TypedDict, total=False):
    checks: list[Row]
    baselines: list[Row]
    lesions: list[Row]
    evidence: list[Row]
    groups: list[Row]
    views: list[Row]
    explained: list[Row]
    pairs: list[Row]
    repair: list[Row]
    names: list[Row]
    n_controls: int
    layer: dict[str, str]
    layers: list[Row]


class Results(_Optional):
    """What was found at a layer; what has no value is absent. `results.json` holds the same, in format version 1.

    `tables` names the folder in `work/latents` of each model and concept's latents table.
    `layers` (a row per layer, model and concept) and `layer` (`name` of the layer that the other parts are about, and
    `primary`, the layer whose report lies at the top) are there when the study has more than one layer.
    """

    format_version: Literal[1]
    title: str
    paper_setting: bool
    data_kind: str
    created: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    data: dict[str, Any]
    models: list[Row]
    tables: list[Row]
    sae: dict[str, Any]
    sae_quality: list[Row]
    reconstruction: list[Row]
    rankings: list[Row]
    interventions: list[Row]
    localization: list[Row]
    named_latents: dict[str, list[Row]]


def number(value: Any) -> float:
    """A number of the results as float; `None` (null in the file) is NaN."""
    return math.nan if value is None else float(value)


def frame(rows: list[Row], **equal: Any) -> pd.DataFrame:
    """The rows whose columns have the given values, as a data frame in which null in a numeric column is NaN."""
    chosen = [row for row in rows if all(row.get(key) == value for key, value in equal.items())]
    table = pd.DataFrame(chosen)
    for column in table.columns:
        if table[column].map(lambda cell: cell is None or isinstance(cell, int | float)).all() and not (
            table[column].map(lambda cell: isinstance(cell, bool)).any()
        ):
            table[column] = pd.to_numeric(table[column])
    return table


def pairs(results: Results) -> list[tuple[str, str]]:
    """(model, concept) of every model of the study, in the order in which the study lists them."""
    return list(dict.fromkeys((row["name"], row["concept"]) for row in results["models"]))


def concepts(results: Results) -> list[str]:
    """The concepts of the study's models, in order, each once."""
    return list(dict.fromkeys(concept for _, concept in pairs(results)))


def class_names(results: Results, concept: str) -> list[str]:
    """The names of a concept's classes, in the order of their numbers; empty where the results say none."""
    told: list[Row] = results["data"].get("vocabulary") or []
    return next((list(row["classes"]) for row in told if row["name"] == concept), [])


def model_names(results: Results, concept: str) -> list[str]:
    """The models that predict `concept`, in order."""
    return [name for name, of in pairs(results) if of == concept]


def n_best(results: Results) -> int:
    """How many of the best latents the study looks at: `analysis.top` of its config."""
    analysis = results["config"].get("analysis")
    return int(analysis.get("top", 10)) if isinstance(analysis, dict) else 10


def leading_latents(results: Results, model: str, concept: str) -> list[int]:
    """The latents of a classifier that a page tells most of: the first of those that the study looks at closely."""
    return [int(row["latent"]) for row in results["named_latents"].get(f"{model}/{concept}", [])][:_LEADING]


def run_patients(results: Results) -> tuple[int, int] | None:
    """On the images of how many test patients an inner layer was intervened on, of how many; None: of all."""
    n = results["config"].get("analysis", {}).get("inner_patients")
    test = sum(one["n_patients"] for one in results["data"]["splits"] if one["split"] == "test")
    is_inner = any(model.get("readout") == "network" for model in results["models"])
    return (n, test) if n is not None and is_inner and n < test else None


def best_row(rows: list[Row]) -> Row | None:
    """The row of the highest average precision above 0, the first of equal ones; None without one.

    With several thresholds or IoUs the first of them stands for the study.
    """
    chosen = [row for row in rows if all(row[key] == rows[0][key] for key in ("threshold", "iou_threshold"))]
    chosen = [row for row in chosen if number(row["average_precision"]) > 0]
    return max(chosen, key=lambda row: (number(row["average_precision"]), -row["rank"]), default=None)


def layer_names(results: Results) -> list[str]:
    """The layers of a study of several, in order, each once; empty for a study of one layer."""
    return list(dict.fromkeys(row["layer"] for row in results.get("layers", [])))


def reconstruction_row(results: Results, model: str, concept: str, variant: str) -> Row:
    """The metrics of one model and concept without the SAE, with it, or their difference; empty when there are none."""
    for row in results["reconstruction"]:
        if (row["model"], row["concept"], row["variant"]) == (model, concept, variant):
            return row
    return {}


def reference_auroc(results: Results, model: str, concept: str) -> float:
    """AUROC of the unmodified model (without the SAE), or NaN."""
    return number(reconstruction_row(results, model, concept, "without_sae").get("auroc"))


def sweep_reference(results: Results, model: str, concept: str) -> float:
    """AUROC of the unmodified model on the images on which one model's latents are kept and silenced, or NaN."""
    rows = [row for row in results["interventions"] if (row["model"], row["concept"]) == (model, concept)]
    return swept_reference(rows, reconstruction_row(results, model, concept, "without_sae"))


def swept_reference(sweep: list[Row], whole: Row) -> float:
    """`sweep_reference` from rows.

    Args:
        sweep: The rows of interventions of one model and concept. Where they are of a sample of patients, the row tells
            it in which nothing is silenced and the SAE's error is added back; NaN without one.
        whole: Their row of reconstruction without the SAE.
    """
    if all(row.get("n_patients") in (None, whole.get("n_patients")) for row in sweep):
        return number(whole.get("auroc"))
    untouched = (row for row in sweep if row["error_term"] and row["mode"] == "deactivate" and row["k"] == 0)
    return next((number(row["auroc"]) for row in untouched), math.nan)


def recovered(auroc: float, reference: float) -> float:
    """Share of the AUROC above chance that is left: (AUROC - 0.5) / (AUROC of the unmodified model - 0.5).

    NaN when the unmodified model is itself no better than chance.
    """
    return (auroc - 0.5) / (reference - 0.5) if reference > 0.5 else math.nan


def sae_flaw(row: Row, trained_l0: float | None = None) -> str:
    """Why claims about an SAE's latents mean little, from a row of its quality; empty when nothing speaks against them.

    Args:
        row: explained_variance, l0 and dead_share, as far as they are known.
        trained_l0: latents per position for which it was trained; by default the row's own `trained_l0`.
    """
    dead = number(row.get("dead_share"))
    flaws = [poor] if (poor := poor_sae(row, trained_l0)) else []
    if dead > MOST_DEAD:
        flaws.append(f"{math.floor(1000 * dead) / 10:g} % of the latents never fire")
    return ", ".join(flaws)


def poor_sae(row: Row, trained_l0: float | None = None) -> str:
    """Why an SAE should not be published, in the words of its measures; empty when nothing speaks against it.

    An explained variance below 0 means that the mean would copy the features better than the SAE does; an L0 of more
    than twice, or less than half, of what it was trained for means that it does not do what it was trained to do.
    """
    explained, l0 = number(row.get("explained_variance")), number(row.get("l0"))
    trained = number(row.get("trained_l0") if trained_l0 is None else trained_l0)
    flaws = [f"explained variance {explained:.3f}".replace("-", MINUS)] if explained < 0 else []
    if trained > 0 and not trained / FAR_L0 <= l0 <= trained * FAR_L0 and math.isfinite(l0):
        flaws.append(f"L0 {digits(l0)}, trained for {digits(trained)}")
    return ", ".join(flaws)


def stated_role(named: Row) -> str:
    """The role of a named latent; `unclear` for a role of the rule whose numbers are not there."""
    if named.get("by") or all(math.isfinite(number(named.get(name))) for name in _DECISIVE):
        return str(named["role"])
    return UNCLEAR


def role_evidence(named: Row) -> str:
    """The numbers behind a named latent's role, and who gave it, in one line."""
    parts = [f"said by {named['by']}"] if named.get("by") else []
    if math.isfinite(number(named.get("auroc"))):
        parts.append(f"AUROC {_with_interval(named, 'auroc')}")
    if math.isfinite(number(named.get("mean_with"))):
        means = [digits(number(named[f"mean_{name}"])) for name in ("with", "without")]
        parts.append(f"mean {means[0]} with and {means[1]} without")
    if math.isfinite(number(named.get("fires_with"))):
        fires = [f"{100 * number(named[f'fires_{name}']):.0f} %" for name in ("with", "without")]
        parts.append(f"fires in {fires[0]} with and {fires[1]} without")
    if math.isfinite(number(named.get("ablation"))):
        random, n = number(named.get("ablation_random")), int(number(named.get("n_random")))
        beside = f", 95 % of {n} random groups below {digits(random)}" if math.isfinite(random) else ""
        parts.append(f"ablation {_with_interval(named, 'ablation')}{beside}")
    if math.isfinite(number(named.get("place"))):
        parts.append(f"{_with_interval(named, 'place')} times as much in the boxes as by chance")
    if math.isfinite(number(named.get("n_patients_with"))):
        parts.append(f"{int(named['n_patients_with'])} patients with, {int(named['n_patients_without'])} without")
    for name, lacked in (("undefined_share", "a class"), ("place_undefined_share", "boxes of others to compare with")):
        if math.isfinite(number(named.get(name))):
            parts.append(f"{100 * number(named[name]):.1f} % of resamples lacked {lacked}")
    return "; ".join(parts) or "no numbers"


def _with_interval(named: Row, name: str) -> str:
    value, low, high = (number(named.get(f"{name}{end}")) for end in ("", "_low", "_high"))
    text = f"{value:.2f}" if name == "auroc" else digits(value)
    if not math.isfinite(low) or not math.isfinite(high):
        return text
    ends = [f"{end:.2f}" if name == "auroc" else digits(end) for end in (low, high)]
    return f"{text} [{ends[0]}, {ends[1]}]"


def shortcuts(results: Results) -> list[Row]:
    """The latents of each classifier whose verdict is `shortcut`, with the commands that look into it.

    Returns:
        A row per model and concept with such latents: model, concept, latents (those on which the classifier rests most
        first), repair (the command that removes them) and explain (the one that takes an image's logit apart, with
        IMAGE for the image; None at an inner layer, where there is no such sum). The study's configuration is called
        study.yaml in both.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in results.get("evidence", []):
        if row["verdict"] == "shortcut":
            found.setdefault((row["model"], row["concept"]), []).append(row)
    readouts = {(row["name"], row["concept"]): row.get("readout") for row in results["models"]}
    rows: list[Row] = []
    for (model, concept), own in found.items():
        own.sort(key=lambda row: -abs(number(row["reliance"])))
        latents = [int(row["latent"]) for row in own]
        explain = ["explain", "IMAGE", "--study", "study.yaml", *_of_pair(results, model, concept)]
        explain += ["-o", f"explained_{file_part(f'{model}_{concept}')}"]
        rows.append(
            {
                "model": model,
                "concept": concept,
                "latents": latents,
                "repair": repair_command(results, model, concept, latents),
                "explain": shlex.join(["mammosae", *explain]) if readouts.get((model, concept)) == "linear" else None,
            }
        )
    return rows


def repair_command(
    results: Results,
    model: str,
    concept: str,
    latents: list[int],
    *,
    scale: float = 0,
    kind: str = "exact",
    groups: Sequence[str] = (),
    froc: bool = False,
) -> str:
    """The command that repairs a classifier of a study, whose configuration is called study.yaml in it."""
    parts = ["mammosae", "repair", "study.yaml", *_of_pair(results, model, concept)]
    parts += ["--latents", ",".join(map(str, latents))]
    parts += ["--scale", f"{scale:g}"] if scale else []
    parts += ["--kind", kind] if kind != "exact" else []
    parts += [part for group in groups for part in ("--group", group)]
    parts += ["--froc"] if froc else []
    return shlex.join([*parts, "-o", f"repaired_{file_part(f'{model}_{concept}')}.safetensors"])


def _of_pair(results: Results, model: str, concept: str) -> list[str]:
    """The options that say which classifier of a study."""
    layer = ["--layer", results["layer"]["name"]] if "layer" in results else []
    return ["--model", model, "--concept", concept, *layer]


def has_boxes(results: Results) -> bool:
    """Whether a test image has an annotated box of a concept; what earlier versions wrote does not always say."""
    of_test = [row.get("n_boxes") for row in results["data"]["concepts"] if row["split"] == "test"]
    return bool(results["localization"]) or not of_test or any(count != 0 for count in of_test)


def may_show_images(results: Results) -> bool:
    """Whether figures may hold mammograms: always for phantoms, for patients' images only when the config asks for it.

    The switch is `report: {include_images: true}` in the study's config.
    """
    if results["data_kind"] == "phantom":
        return True
    report = results["config"].get("report")
    return isinstance(report, dict) and report.get("include_images") is True
