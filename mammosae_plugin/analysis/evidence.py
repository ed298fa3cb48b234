"""Every live latent and what is known of it for one concept, in one table with an interval and a correction for each.

Nothing is chosen here: that ten latents are drawn is a matter of space, and the others are in the table.
"""

__all__ = ["EVIDENCE", "join_lesions", "latent_evidence"]

import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.covariates import Covariates, covariate_associations, strongest_associations
from mammosae_plugin.analysis.effects import effect_sizes_of
from mammosae_plugin.analysis.intervention import Passes, single_ablations
from mammosae_plugin.analysis.roles import places_of
from mammosae_plugin.arguments import checked_arguments, indices, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.auroc_columns import bootstrap_aurocs, delong_columns
from mammosae_plugin.measures.roc import detectable_auroc
from mammosae_plugin.measures.statistics import MIN_PATIENTS, Resamples, require_two_classes
from mammosae_plugin.schema.names import counted

if TYPE_CHECKING:
    from mammosae_plugin.latents import EvaluationRows, LatentTable

logger = logging.getLogger(__name__)

_AUROCS = tuple(
    f"auroc_{statistic}{end}"
    for statistic in ("max", "mean")
    for end in ("", "_low", "_high", "_boot_low", "_boot_high", "_p", "_q")
)
EVIDENCE = (
    *("latent", "mean_with", "mean_without", "standardized_difference", "fires_with", "fires_without", "firing_rate"),
    *_AUROCS,
    *("effect_with", "effect_without", "effect", "effect_low", "effect_high", "effect_share"),
    *("reliance", "reliance_low", "reliance_high", "effect_reason"),
    *("inside", "inside_chance", "place", "place_low", "place_high", "place_reason"),
    *("covariate", "covariate_level", "covariate_r", "covariate_q", "covariate_patients"),
    *("n_firing_with", "n_firing_without", "n_patients_with", "n_patients_without", "n_patients_boxed"),
    *("n_rows", "n_positive", "n_tests", "detectable_auroc", "reason"),
)
"""The columns of `latent_evidence`, in order."""
_EFFECTS = EVIDENCE[EVIDENCE.index("effect_with") : EVIDENCE.index("effect_reason")]


@checked_arguments
def latent_evidence(
    table: "LatentTable",
    concept: str,
    *,
    label: int = 1,
    split: str = "test",
    unit: str = "image",
    covariates: Covariates = None,
    passes: Passes | None = None,
    masked: Sequence[int] = (),
    n_bootstrap: int = 200,
    n_permutations: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
    patients: Collection[str] | None = None,
) -> pd.DataFrame:
    """What every latent that fires says of a concept, what the classifier makes of it, where it lies, what else it is.

    Args:
        table: a latents table, of maps or of rows.
        concept: one of its concepts.
        label: the class that is told from all others.
        split: the split whose images are examined; latents that fire in none of them have no row.
        unit: as for `LatentTable.rows`; a unit has the mean, or maximum, of its images' activations.
        covariates: as for `confounders`.
        passes: at an inner layer what runs the rest of the network, as for `intervene`.
        masked: at an inner layer the latents that are removed one by one with `passes`.
        n_bootstrap: resamples of patients; 0 leaves the intervals that need them NaN.
        n_permutations: as for `covariate_associations`.
        min_patients: patients that each class must have for intervals and p-values.
        seed: of resamples and permutations.
        patients: those of the split's patients from whose images `masked` are removed with `passes`, such as a sample
            where passes are dear; None means all.

    Returns:
        One row per latent, in their order, with the columns of `EVIDENCE`:

        - mean_with, mean_without: its mean over positions in units of the class and others, in the SAE's unit;
          standardized_difference (`effect_sizes_of`); fires_with, fires_without, firing_rate: share of the units.
        - auroc_max, auroc_mean: of its maximum and mean over positions; _low, _high: DeLong's 95 % interval with
          patients as groups; _boot_low, _boot_high: that of resampled patients; _p: two-sided, of 0.5; _q: after
          Benjamini and Hochberg over the n_tests latents of the column.
        - effect_with, effect_without: what the logit of the class loses on average when the latent is removed; effect:
          their difference, how much nearer the classes come, with the interval of resampled patients; effect_share: of
          the whole distance. reliance: the covariance of what the latent adds to the logit with the logit, as a share
          of the logit's variance; over all latents and the error term the shares sum to 1. Exact at the final map; at
          an inner layer known of `masked` alone; effect_reason says why one is NaN.
        - inside: the share of the activation in test images that lies in their own boxes; inside_chance: in those of
          other patients' images of the same side and view; place: their ratio, 1 by chance, with the interval of
          resampled patients; place_reason: why it is NaN.
        - covariate, covariate_level, _r, _q, _patients: what else it goes with most (`covariate_associations`).
        - n_firing_with, n_firing_without: patients in whose units of either class it fires; n_patients_with,
          n_patients_without, n_patients_boxed: of how many; n_rows, n_positive: units; detectable_auroc: the smallest
          AUROC of a single latent that so few patients find with 80 % power, at the level that the correction may ask
          for (Bonferroni); reason: why intervals and p-values are NaN.

    Raises:
        InputError: an unknown concept, split, unit or covariate, a class that the split lacks, or `masked` without
            `passes`.
    """
    n_bootstrap, seed = whole(n_bootstrap, "n_bootstrap", least=0), whole(seed, "seed", least=0)
    label = whole(label, "label", least=0, most=len(table.classes(concept)) - 1)
    rows = table.rows(concept, split=split, unit=unit)
    require_two_classes(rows.labels, concept=concept, split=split)
    present = rows.labels == label
    if present.all() or not present.any():
        raise InputError(
            f"split '{split}' has no image {'outside' if present.any() else 'of'} class {label} of {concept}"
        )
    latents = table.live_latents(split)
    resamples = Resamples(
        present.astype(int), rows.patient_ids, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients
    )
    fewest, which = min(zip(resamples.patients_per_class.tolist(), ("without", "with"), strict=True))
    whom = f"{which} the finding" if len(table.classes(concept)) == 2 else f"{which} class {label}"
    few = f"only {counted(fewest, 'patient')} {whom}, fewer than {min_patients}"
    reason = "" if fewest >= min_patients else few
    own = as_codes(rows.values(table.mean_latents[:, latents]))
    columns: dict[str, Any] = {"latent": latents, **_activity(own, present, rows)}
    for statistic in ("max", "mean"):
        values = own if statistic == "mean" or _is_of_rows(table) else rows.values(table.max_latents[:, latents])
        columns |= _aurocs(f"auroc_{statistic}", present, values, rows, resamples, known=not reason)
    columns |= _effects(table, concept, label, latents, rows, resamples, passes, masked, patients, seed)
    columns |= _places(table, latents, concept, split, resamples, seed) if label == 1 else _no_place("of class 1 alone")
    found = pd.DataFrame(columns, index=range(len(latents)))
    related = covariate_associations(
        table, concept, covariates=covariates, latents=latents, split=split, unit=unit, n_permutations=n_permutations,
        seed=seed,
    )  # fmt: skip
    found = found.join(strongest_associations(related, latents))
    n_negative, n_positive = resamples.patients_per_class.tolist()
    found = found.assign(
        n_patients_with=n_positive,
        n_patients_without=n_negative,
        n_rows=len(present),
        n_positive=int(present.sum()),
        n_tests=len(latents),
        detectable_auroc=detectable_auroc(n_positive, n_negative, n_tests=max(1, len(latents))),
        reason=reason,
    )
    return found[list(EVIDENCE)]


_OF_LESIONS = {
    "all_cpm": "cpm",
    "all_cpm_low": "cpm_low",
    "all_cpm_high": "cpm_high",
    "all_cpm_chance": "cpm_chance",
    "p_adjusted": "cpm_q",
}


def join_lesions(evidence: pd.DataFrame, lesions: pd.DataFrame) -> pd.DataFrame:
    """The evidence on latents, with how many lesions each finds, as far as it was looked for lesions in.

    Args:
        evidence: rows of `latent_evidence` or `confounders`; of several classifiers with columns model and concept.
        lesions: rows of `froc(...).to_frame()` of the same classifiers; may be empty.

    Returns:
        The evidence with further columns: cpm with cpm_low and cpm_high (95 %, over patients), cpm_chance, cpm_q
        (Benjamini and Hochberg over all maps that were judged for the finding), and cpm_reason: why they are NaN.

    Example:
        >>> found = froc(table, [3, 17], "Mass").to_frame()  # doctest: +SKIP
        >>> told = join_lesions(latent_evidence(table, "Mass"), found)  # doctest: +SKIP
        >>> told[told["cpm_q"] < 0.05][["latent", "auroc_max", "cpm"]]  # doctest: +SKIP
    """
    key = [name for name in ("model", "concept") if name in evidence and name in lesions]
    own = lesions[lesions["method"] == "latent"] if len(lesions) else pd.DataFrame(columns=[*key, "latent", "method"])
    judged = own.reindex(columns=[*key, "latent", *_OF_LESIONS]).rename(columns=_OF_LESIONS)
    judged = judged.astype({"latent": np.int64, **dict.fromkeys(_OF_LESIONS.values(), np.float64)})
    found = evidence.merge(judged, on=[*key, "latent"], how="left", indicator=True)
    n_judged = judged.groupby(key).size().to_dict() if key else {}
    reasons = []
    for row in found[[*key, "_merge"]].to_dict("records"):
        place = tuple(row[name] for name in key)
        n = n_judged.get(place if len(key) > 1 else place[0], 0) if key else len(judged)
        few = f"not one of the {n} latents that were looked for lesions in"
        reasons.append("" if row["_merge"] == "both" else few if n else "no map was looked for lesions in")
    found["cpm_reason"] = np.array(reasons, dtype=object)
    return found.drop(columns="_merge")


def _is_of_rows(table: "LatentTable") -> bool:
    return bool(getattr(table, "is_of_rows", False))


def _activity(own: sparse.csc_array, present: NDArray[np.bool_], rows: "EvaluationRows") -> dict[str, Any]:
    """Class means and how many units and patients a latent fires in."""
    fires = own.astype(bool).astype(np.float64)
    patients, of_row = np.unique(rows.patient_ids.astype(str), return_inverse=True)
    found: dict[str, Any] = {}
    for name, chosen in (("with", present), ("without", ~present)):
        weights = chosen / chosen.sum()
        found[f"mean_{name}"] = own.T @ weights
        found[f"fires_{name}"] = fires.T @ weights
        places = (of_row[chosen], np.flatnonzero(chosen))
        of_patients = sparse.csr_array((np.ones(len(places[0])), places), shape=(len(patients), len(present)))
        found[f"n_firing_{name}"] = np.asarray((of_patients @ fires > 0).sum(axis=0)).ravel()
    found["firing_rate"] = np.asarray(fires.mean(axis=0)).ravel()
    found["standardized_difference"] = effect_sizes_of(own, present.astype(int))
    return found


def _aurocs(
    name: str, present: NDArray[np.bool_], values: Any, rows: "EvaluationRows", resamples: Resamples, *, known: bool
) -> dict[str, Any]:
    labels = present.astype(int)
    told = delong_columns(labels, values, rows.patient_ids)
    found = {name: told.auc, f"{name}_low": told.low, f"{name}_high": told.high, f"{name}_p": told.p_value}
    started = time.perf_counter()
    drawn = bootstrap_aurocs(labels, values, resamples.multiplicities)
    logger.info("%d resamples of %d AUROCs: %.1f s", *drawn.shape, time.perf_counter() - started)
    ends = np.array([resamples.interval(column, auroc=True) for column in drawn.T]).reshape(-1, 2)
    found |= {f"{name}_boot_low": ends[:, 0], f"{name}_boot_high": ends[:, 1]}
    if not known:
        found |= {key: np.full(len(told.auc), np.nan) for key in found if key != name}
    return {**found, f"{name}_q": benjamini_hochberg(found[f"{name}_p"])}


def _effects(
    table: "LatentTable",
    concept: str,
    label: int,
    latents: NDArray[np.int64],
    rows: "EvaluationRows",
    resamples: Resamples,
    passes: Passes | None,
    masked: Sequence[int],
    patients: Collection[str] | None,
    seed: int,
) -> dict[str, Any]:
    """What each latent adds to the logit."""
    chosen = indices(masked, "masked", table.d_sae, distinct=True)
    if len(chosen) and passes is None:
        raise InputError("latents in `masked` are removed by `passes`, which are not given; give both or neither")
    columns: dict[str, Any] = {name: np.full(len(latents), np.nan) for name in _EFFECTS}
    columns["effect_reason"] = np.full(len(latents), "", dtype=object)
    if concept not in table.heads:
        columns["effect_reason"][:] = f"the table has no classifier of {concept}"
        return columns
    if table.readout_kind != "linear" and patients is not None:
        rows = rows.of_patients(patients)
        resamples = Resamples(
            (rows.labels == label).astype(int), rows.patient_ids, n_bootstrap=len(resamples.multiplicities), seed=seed,
            min_patients=resamples.min_patients,
        )  # fmt: skip
    logits = table.logits(concept)
    output = 0 if logits.shape[1] == 1 else label
    whole_logit = np.asarray(rows.mean(logits[rows.image_rows]))[:, output]
    if table.readout_kind == "linear":
        at = np.arange(len(latents))
        weight = table.readout(concept).weight[latents, output]
        added: Any = rows.mean(table.mean_latents[:, latents].astype(np.float64)[rows.image_rows])
        added = sparse.csc_array(added @ sparse.diags_array(weight))
    else:
        at = np.flatnonzero(np.isin(latents, chosen))
        columns["effect_reason"][:] = "at an inner layer the network must be run without it: name it in `masked`"
        columns["effect_reason"][at] = ""
        if not len(at):
            return columns
        if logits.shape[1] > 1:
            columns["effect_reason"][:] = "at an inner layer only heads with one output are looked at"
            return columns
        images, image_of_row = np.unique(rows.image_rows, return_inverse=True)
        ablated = single_ablations(
            table, latents[at], head=concept, image_rows=images, n_controls=0, passes=passes
        ).losses
        added = sparse.csc_array(rows.mean(ablated[image_of_row]))
    once = np.ones((1, len(whole_logit)))
    exact = _shares(added, whole_logit, resamples.labels, once)
    for name, values in exact.items():
        columns[name][at] = values[0]
    if len(resamples.multiplicities):
        drawn = _shares(added, whole_logit, resamples.labels, resamples.multiplicities)
        for name in ("effect", "reliance"):
            ends = np.array([resamples.interval(column) for column in drawn[name].T]).reshape(-1, 2)
            columns[f"{name}_low"][at], columns[f"{name}_high"][at] = ends.T
    return columns


def _shares(
    added: sparse.csc_array, logit: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """Effects on class means and shares of the logit's variance, (B, m) each, under weights (B, n)."""
    counts = np.asarray(weights, dtype=np.float64).T
    means, wholes = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for of_class in (labels == 1, labels == 0):
            own = counts * of_class[:, None]
            total = own.sum(axis=0)
            means.append((added.T @ own / total).T)
            wholes.append(logit @ own / total)
        n = counts.sum(axis=0)
        centered = counts * (logit[:, None] - logit @ counts / n)
        variance = (logit[:, None] * centered).sum(axis=0)
        effect, distance = means[0] - means[1], (wholes[0] - wholes[1])[:, None]
        return {
            "effect_with": means[0],
            "effect_without": means[1],
            "effect": effect,
            "effect_share": np.where(np.abs(distance) > 1e-12, effect / distance, np.nan),
            "reliance": np.where(variance > 0, (added.T @ centered) / variance, np.nan).T,
        }


def _no_place(why: str) -> dict[str, Any]:
    return {
        **dict.fromkeys(("inside", "inside_chance", "place", "place_low", "place_high"), np.nan),
        "place_reason": why,
        "n_patients_boxed": 0,
    }


def _places(
    table: "LatentTable", latents: NDArray[np.int64], concept: str, split: str, resamples: Resamples, seed: int
) -> dict[str, Any]:
    """Where every latent lies that has maps."""
    if _is_of_rows(table):
        return _no_place("one vector per image has no place")
    n_bootstrap = len(resamples.multiplicities)
    records = places_of(table, latents, concept, split, n_bootstrap, seed, resamples.min_patients)
    return {name: [record[name] for record in records] for name in _no_place("")}
