"""Whether a latent stands for the concept, for what surrounds it, or for a shortcut, and how well groups are served.

A classifier that rests on something that goes with the finding in the training images, and not on the finding, fails
where the two part. The verdict is a rule (`verdict_of`) whose every number stands beside it.
"""

__all__ = [
    "CONFOUNDED", "confounders", "group_performance", "OUTSIDE", "SHORTCUT", "verdict_of", "VERDICTS",
]  # fmt: skip

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import chi2, norm, rankdata

from mammosae_plugin.analysis.codes import as_groups
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.covariates import (
    Covariates,
    covariate_columns,
    design_matrix,
    images_of_units,
    known_values,
)
from mammosae_plugin.analysis.evidence import latent_evidence
from mammosae_plugin.analysis.intervention import Passes
from mammosae_plugin.analysis.reconstruction import reconstruction_quality
from mammosae_plugin.analysis.roles import FOLLOWS, LEAST_EXPLAINED, MATTERS, SEPARATES
from mammosae_plugin.analysis.spatial import cell_shares, energy_share_of
from mammosae_plugin.arguments import between, checked_arguments, entries, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.auroc_columns import delong_columns
from mammosae_plugin.measures.statistics import (
    MIN_PATIENTS,
    Resamples,
    require_two_classes,
    settled,
    settled_columns,
)
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.names import counted
from mammosae_plugin.schema.results import CONCEPT, UNCLEAR

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

CONTEXT, SHORTCUT = "context", "shortcut"
VERDICTS = (CONCEPT, CONTEXT, SHORTCUT, UNCLEAR)
"""What a latent may be called."""
OUTSIDE = 0.5
"""Share of its activation in the breast below which a latent lies outside."""
EXPLAINED = 0.5
"""Share of a latent's log-odds that must go with the covariates before they are said to explain it."""

CONFOUNDED = (
    *("latent", "verdict", "reason"),
    *("auroc", "auroc_low", "auroc_high", "auroc_q", "statistic"),
    *("auroc_training", "auroc_training_low", "auroc_training_high", "auroc_training_q", "drop_p"),
    *("reliance", "reliance_low", "reliance_high", "effect", "effect_low", "effect_high"),
    *("inside", "inside_chance", "place", "place_low", "place_high", "in_breast", "in_breast_chance"),
    *("covariate", "covariate_kind", "covariate_level", "covariate_r", "covariate_q"),
    *("log_odds", "log_odds_given", "explained", "likelihood_ratio", "design_effect", "given_p", "given_q"),
    *("given_reason", "n_rows", "n_positive", "n_patients_with", "n_patients_without", "n_patients_boxed"),
    *("n_firing_with", "n_firing_without", "detectable_auroc"),
)
"""The columns of `confounders`, in order."""

Breast = Callable[[int], NDArray[Any] | None]
"""From a row of `table.images` to (H, W), True inside the breast; None where that is not known."""


@checked_arguments
def confounders(
    table: "LatentTable",
    concept: str,
    *,
    covariates: Covariates = None,
    split: str = "test",
    training: str | None = "training",
    unit: str = "image",
    breast: Breast | None = None,
    passes: Passes | None = None,
    masked: Sequence[int] = (),
    alpha: float = 0.05,
    n_bootstrap: int = 200,
    n_permutations: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
    evidence: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """What every latent that fires stands for: the concept, its context, a shortcut, or nothing certain.

    Args:
        table: a latents table.
        concept: a finding, which has two classes.
        covariates: names of columns of `table.images`, or by name their kind, "patient" or "acquisition"; None: all
            there are (`covariate_columns`), where age, density and implant are of the patient.
        split: the split that is examined.
        training: the split that the classifier was trained on, if the table has it; None: it is not looked at.
        unit: as for `latent_evidence`.
        breast: gives (H, W), True inside the breast, of a row of `table.images`; None: it is not known.
        passes: as for `latent_evidence`.
        masked: as for `latent_evidence`.
        alpha: what q-values are held against.
        n_bootstrap: as for `latent_evidence`.
        n_permutations: as for `latent_evidence`.
        min_patients: as for `latent_evidence`.
        seed: as for `latent_evidence`.
        evidence: what `latent_evidence` gave of the same table, concept, split, unit and covariates, if it is there.

    Returns:
        One row per latent with the columns of `CONFOUNDED`. verdict and reason are by `verdict_of`; then:

        - auroc: of its maximum or mean over positions, whichever is farther from 0.5 (`statistic`), with DeLong's
          interval, patients as groups; auroc_q: of the smaller of the two p-values, doubled, after Benjamini and
          Hochberg. auroc_training likewise of that statistic in the training split; drop_p: one-sided, of its distance
          from 0.5 being no larger there.
        - reliance, effect, inside, place, covariate: as in `latent_evidence`; in_breast: share of the activation in
          images with boxes that lies in the breast, in_breast_chance that of the area.
        - log_odds: of the concept per standard deviation of the rank of the latent's mean, by logistic regression
          alone, log_odds_given with the covariates; explained: 1 less their ratio. likelihood_ratio: twice what the
          latent adds to the log-likelihood given the covariates; design_effect: how much larger its variance is with
          patients as clusters (at least 1), by which the ratio is divided before it is held against chi-square of one
          degree (Rotnitzky and Jewell, Biometrika 77, 1990): given_p, given_q. given_reason: what was not fitted, or
          that it separates the classes.

    Raises:
        InputError: as `latent_evidence`, or a concept that has not two classes.
    """
    if len(table.classes(concept)) != 2:
        raise InputError(
            f"'{concept}' has {len(table.classes(concept))} classes: confounders are told of a finding, which has 2"
        )
    alpha = between(alpha, "alpha", 0, 1, with_low=False)
    kinds = covariate_columns(table, concept, covariates)
    shared: dict[str, Any] = {"split": split, "unit": unit, "seed": seed}
    if evidence is None:
        evidence = latent_evidence(
            table, concept, covariates=covariates, passes=passes, masked=masked, n_bootstrap=n_bootstrap,
            n_permutations=n_permutations, min_patients=min_patients, **shared,
        )  # fmt: skip
    found = evidence.copy()
    latents = found["latent"].to_numpy()
    found["covariate_kind"] = [kinds.get(name, "") for name in found["covariate"]]
    found = found.join(_farther(found))
    known = training is not None and training != split and training in set(table.images["split"])
    found = found.join(_then(table, concept, found, training if known else None, unit, min_patients))
    found = found.join(_given(table, concept, latents, list(kinds), split, unit, bool((found["reason"] == "").all())))
    found = found.join(_in_breast(table, concept, latents, split, breast))
    obstacle = _obstacle(table, split, found)
    has_boxes = bool((found["n_patients_boxed"] > 0).any())
    records: list[dict[str, Any]] = [
        dict(zip(map(str, found), values, strict=True)) for values in found.itertuples(index=False)
    ]
    told = [
        (UNCLEAR, obstacle) if obstacle else verdict_of(row, alpha=alpha, n_live=len(latents), has_boxes=has_boxes)
        for row in records
    ]
    found["verdict"], found["reason"] = [one for one, _ in told], [reason for _, reason in told]
    return found[list(CONFOUNDED)]


def verdict_of(
    row: Mapping[str, Any], *, alpha: float = 0.05, n_live: int = 100, has_boxes: bool = True
) -> tuple[str, str]:
    """The verdict on a latent and the reason for it, from a row of `confounders`.

    A latent *tells* the concept where its AUROC is at least 0.6 or at most 0.4, the interval is on that side of 0.5,
    and q is below alpha. The classifier *rests* on it where its reliance is at least 1 % and at least its equal part
    (one over the latents that fire), with the interval above 0. It lies *in the boxes* where its place is at least 1.5
    with the interval above 1, and *not in the boxes* where the place and the interval's upper end are below 1.5, or
    nothing of it lies there. It is *explained* where given_q is not below alpha, its log-odds shrink by at least half,
    and a covariate goes with it (q below alpha). Then, the first that holds:

    - `shortcut`: the classifier rests on it, and it told the concept in the training split and does so no more (drop_p
      below alpha, AUROC between 0.4 and 0.6), wherever it lies: a latent can be of a marker and of lesions at once, and
      a network that learnt its training images by heart has such latents too. Or
      the classifier rests on it, it does not lie in the boxes or that is not known, it tells the concept, and a
      covariate of the acquisition explains it or less than half of it lies in the breast.
    - `context`: it tells the concept, and covariates explain it, or it does not lie in the boxes.
    - `concept`: it tells the concept (AUROC above 0.5, in the training split too where that is known), still does given
      the covariates where there are any (where that could not be tested it is not called so), lies in the boxes where
      there are boxes, and the classifier rests on it where that is known. With neither boxes nor covariates nothing is
      called so.
    - `unclear`: everything else.
    """
    tells = _tells(row["auroc"], row["auroc_low"], row["auroc_high"], row["auroc_q"], alpha)
    told = _tells(
        *(row["auroc_training"], row["auroc_training_low"], row["auroc_training_high"], row["auroc_training_q"]), alpha
    )
    then_known = np.isfinite(row["auroc_training"])
    rests = row["reliance"] >= max(MATTERS, 1 / max(n_live, 1)) and row["reliance_low"] > 0
    in_boxes = row["place"] >= FOLLOWS and row["place_low"] > 1
    not_in_boxes = row["place"] == 0 or (row["place"] < FOLLOWS and row["place_high"] < FOLLOWS)
    goes_with = f"{row['covariate']} ({row['covariate_kind']})"
    explained = (
        row["given_q"] >= alpha
        and row["explained"] >= EXPLAINED
        and bool(row["covariate"])
        and row["covariate_q"] < alpha
    )
    outside = row["in_breast"] < OUTSIDE
    if not tells and not told:
        return UNCLEAR, "whether it goes with the concept is not certain"
    gone = told and not tells and row["drop_p"] < alpha and 1 - SEPARATES < row["auroc"] < SEPARATES
    if rests and gone:
        mixed = "; part of it lies in the boxes" if in_boxes else ""
        return SHORTCUT, (
            "it went with the concept in the training images only (through something else there, or learnt by heart), "
            f"and the classifier rests on it{mixed}"
        )
    if rests and not in_boxes:
        if tells and explained and row["covariate_kind"] == "acquisition":
            return SHORTCUT, f"the classifier rests on it, and what it says of the concept goes with {goes_with}"
        if tells and outside:
            return SHORTCUT, "the classifier rests on it, and it lies outside the breast"
    if not tells:
        rest = "but the classifier does not rest on it" if gone and not rests else "in the others it is not certain"
        return UNCLEAR, f"it goes with the concept in the training images only, {rest}"
    if explained and not in_boxes:
        return CONTEXT, f"what it says of the concept goes with {goes_with}"
    if not_in_boxes:
        return CONTEXT, "it goes with the concept, but does not lie in the boxes"
    if row["auroc"] < 0.5:
        return UNCLEAR, "it goes with the concept's absence"
    if then_known and not row["auroc_training"] > 0.5:
        return UNCLEAR, "in the training images it does not go with the concept"
    if has_boxes and not in_boxes:
        return UNCLEAR, "it goes with the concept, but its place is not certain"
    untested = row["given_reason"] in _NO_COVARIATES
    if not row["given_q"] < alpha and not (has_boxes and untested):
        why = "given the covariates that is not certain"
        if untested:
            why = "there are neither boxes nor covariates"
        elif not np.isfinite(row["given_q"]):
            why = f"nothing is known of it given the covariates: {row['given_reason']}"
        return UNCLEAR, f"it goes with the concept, but {why}"
    if np.isfinite(row["reliance"]) and not rests:
        return UNCLEAR, "it goes with the concept, but the classifier does not rest on it"
    where = "lies in the boxes" if has_boxes else "there are no boxes"
    return CONCEPT, f"goes with the concept{' beyond the covariates' if row['given_q'] < alpha else ''}, {where}" + (
        ", and the classifier rests on it" if rests else ""
    )


def _tells(auroc: float, low: float, high: float, q: float, alpha: float) -> bool:
    return bool(q < alpha and ((auroc >= SEPARATES and low > 0.5) or (auroc <= 1 - SEPARATES and high < 0.5)))


def _obstacle(table: "LatentTable", split: str, found: pd.DataFrame) -> str:
    """Why nothing can be said of any latent; empty where nothing stands in the way."""
    if len(found) and found["reason"].iloc[0]:
        return str(found["reason"].iloc[0])
    explained = reconstruction_quality(table, split).explained_variance
    if not explained >= LEAST_EXPLAINED:
        return f"the SAE explains {explained:.3f} of the variance, less than {LEAST_EXPLAINED:g}"
    return ""


def _farther(found: pd.DataFrame) -> pd.DataFrame:
    """Of each latent the AUROC that is farther from 0.5, and the q-value of having looked at two."""
    by_max = (found["auroc_max"] - 0.5).abs() > (found["auroc_mean"] - 0.5).abs()
    columns = {
        f"auroc{end}": found[f"auroc_max{end}"].where(by_max, found[f"auroc_mean{end}"])
        for end in ("", "_low", "_high")
    }
    p = np.minimum(1, 2 * found[["auroc_max_p", "auroc_mean_p"]].min(axis=1).to_numpy(dtype=np.float64))
    return pd.DataFrame({**columns, "auroc_q": benjamini_hochberg(p), "statistic": np.where(by_max, "max", "mean")})


def _then(
    table: "LatentTable", concept: str, found: pd.DataFrame, training: str | None, unit: str, min_patients: int
) -> pd.DataFrame:
    """The same latents' AUROCs in the training split, and whether they are nearer to 0.5 now."""
    names = [f"auroc_training{end}" for end in ("", "_low", "_high", "_q")]
    unknown = pd.DataFrame(np.nan, index=found.index, columns=[*names, "drop_p"])
    if training is None:
        return unknown
    rows = table.rows(concept, split=training, unit=unit)
    few = min((len(set(rows.patient_ids[rows.labels == one])) for one in (0, 1)), default=0)
    if few < min_patients:
        return unknown
    latents, by_max = found["latent"].to_numpy(), (found["statistic"] == "max").to_numpy()
    values = sum(
        rows.values(of_images[:, latents]) @ sparse.diags_array(own.astype(np.float64))
        for of_images, own in ((table.max_latents, by_max), (table.mean_latents, ~by_max))
    )
    told = delong_columns(rows.labels, values, rows.patient_ids)
    q = benjamini_hochberg(np.minimum(1, 2 * told.p_value))
    reach = 2 * norm.ppf(0.975)
    error = (found["auroc_high"] - found["auroc_low"]).to_numpy() / reach
    drop = np.abs(told.auc - 0.5) - (found["auroc"] - 0.5).abs().to_numpy()
    spread = np.hypot(np.nan_to_num(told.standard_error), error)
    p = norm.sf(np.divide(drop, spread, out=np.full(len(drop), np.nan), where=spread > 0))
    return pd.DataFrame(
        dict(zip([*names, "drop_p"], (told.auc, told.low, told.high, q, p), strict=True)), index=found.index
    )


_NO_COVARIATES = ("there are no covariates", "the covariates are the same in all these images")
_GIVEN = ("log_odds", "log_odds_given", "explained", "likelihood_ratio", "design_effect", "given_p")


def _given(
    table: "LatentTable",
    concept: str,
    latents: NDArray[np.int64],
    names: list[str],
    split: str,
    unit: str,
    enough: bool,
) -> pd.DataFrame:
    """Logistic regressions of the concept on each latent, alone and given the covariates."""
    found = pd.DataFrame(np.nan, index=range(len(latents)), columns=list(_GIVEN))
    found["given_reason"] = "" if names else _NO_COVARIATES[0]
    found["given_q"] = np.nan
    if not names or not enough or not len(latents):
        return found
    rows = table.rows(concept, split=split, unit=unit)
    labels, groups = rows.labels.astype(np.float64), as_groups(rows.patient_ids, len(rows.labels))
    design = design_matrix(images_of_units(table, rows), names)
    if not design.shape[1]:
        return found.assign(given_reason=_NO_COVARIATES[1])
    base = np.column_stack([np.ones(len(labels)), design.to_numpy()])
    null = _fitted(labels, base)
    if null is None or null.llf > -1e-6 * len(labels):
        return found.assign(
            given_reason="the covariates alone separate the classes, or their regression does not converge"
        )
    intercept = np.ones((len(labels), 1))
    values = rows.values(table.mean_latents[:, latents]).tocsc()
    records = []
    columns = range(len(latents))
    for column in progress(columns, description="beside the covariates", unit="latent", delay=2, leave=False):
        ranks = rankdata(settled_columns(values[:, [column]].toarray())[:, 0])
        if not np.ptp(ranks):
            records.append({"given_reason": "it is the same in all these images"})
            continue
        standard = ((ranks - ranks.mean()) / ranks.std())[:, None]
        alone = _fitted(labels, np.hstack([intercept, standard]))
        both = _fitted(labels, np.hstack([base, standard]), start=np.append(null.params, 0.0))
        if both is None:
            records.append({"given_reason": "with it the regression does not converge"})
            continue
        ratio = max(0.0, 2 * (both.llf - null.llf))
        wide = not both.mle_retvals["converged"] or abs(both.params[-1]) > _LARGEST
        effect = (
            len(labels) / (groups.max() + 1)
            if wide
            else _design_effect(both, np.hstack([base, standard]), labels, groups)
        )
        record = {"likelihood_ratio": ratio, "design_effect": max(1.0, effect), "given_reason": ""}
        record["given_p"] = float(chi2.sf(ratio / record["design_effect"], 1))
        if wide:
            record["given_reason"] = "it separates the classes: log-odds have no finite value"
        else:
            own = alone.params[-1] if alone is not None and alone.mle_retvals["converged"] else np.nan
            record |= {
                "log_odds": own,
                "log_odds_given": both.params[-1],
                "explained": 1 - both.params[-1] / own if own else np.nan,
            }
        records.append(record)
    told = pd.DataFrame.from_records(records).reindex(columns=[*_GIVEN, "given_reason"])
    return told.assign(given_q=benjamini_hochberg(told["given_p"].to_numpy(dtype=np.float64)))


_LARGEST = 15.0  # log-odds per standard deviation beyond which a fit runs off to infinity


def _fitted(labels: NDArray[np.float64], design: NDArray[np.float64], start: Any = None) -> Any:
    """A logistic regression, by Newton's method; None where it cannot be fitted."""
    from statsmodels.discrete.discrete_model import Logit

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            fit = Logit(labels, design).fit(start_params=start, method="newton", maxiter=50, disp=0, skip_hessian=True)
        except (np.linalg.LinAlgError, ValueError):
            return None
        except Exception as error:  # PerfectSeparationError of older versions is no ValueError
            if type(error).__name__ != "PerfectSeparationError":
                raise
            return None
    return fit if np.isfinite(fit.llf) and np.isfinite(fit.params).all() else None


def _design_effect(
    fit: Any, design: NDArray[np.float64], labels: NDArray[np.float64], groups: NDArray[np.int64]
) -> float:
    """How much larger the variance of the last coefficient is where rows of a group are not independent."""
    p = fit.predict()
    bread = np.linalg.pinv((design * (p * (1 - p))[:, None]).T @ design)
    scores = np.zeros((groups.max() + 1, design.shape[1]))
    np.add.at(scores, groups, design * (labels - p)[:, None])
    robust = bread[-1] @ (scores.T @ scores) @ bread[-1]
    return float(robust / bread[-1, -1]) if bread[-1, -1] > 0 else 1.0


def _in_breast(
    table: "LatentTable", concept: str, latents: NDArray[np.int64], split: str, breast: Breast | None
) -> pd.DataFrame:
    """Shares of the activation and of the area that lie in the breast, over images with a box and maps."""
    sums = np.zeros((2, len(latents)))
    n = np.zeros(len(latents))
    if breast is not None and not getattr(table, "is_of_rows", False) and concept in table.concepts:
        rows = table.rows(concept, split=split)
        for row in rows.image_rows[rows.labels == 1].tolist():
            kept = set(table.map_latents(row).tolist())
            at = np.array([place for place, latent in enumerate(latents.tolist()) if latent in kept], dtype=np.int64)
            if not len(at):
                continue
            inside = breast(row)
            if inside is None:
                continue
            region = cell_shares(inside, table.grid)
            share, area = energy_share_of(np.clip(table.maps(latents[at], row), 0, None), region)
            there = np.isfinite(share)
            sums[0, at[there]] += share[there]
            sums[1, at[there]] += area[there]
            n[at[there]] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(n > 0, sums / n, np.nan)
    return pd.DataFrame({"in_breast": means[0], "in_breast_chance": means[1]})


@checked_arguments
def group_performance(
    table: "LatentTable",
    concept: str,
    by: str | Sequence[str] | None = None,
    *,
    split: str = "test",
    unit: str = "image",
    n_bins: int = 4,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a finding is told in each group of images, and in which worst.

    Args:
        table: a latents table with a classifier of the concept.
        concept: a finding.
        by: columns of `table.images`, each of which makes groups: words by level, numbers by quantiles; None: all
            covariates (`covariate_columns`).
        split: the split that is examined.
        unit: as for `LatentTable.rows`; a unit is of the group of its first image.
        n_bins: groups that a number with more values than this is cut into.
        n_bootstrap: resamples of patients for the intervals.
        min_patients: patients of each class below which a group is told, but not scored.
        seed: of the resamples.

    Returns:
        One row for all units (by and group empty) and one per group: by, group, n_rows, n_positive, n_patients,
        n_positive_patients, n_negative_patients, auroc with auroc_low and auroc_high (95 %, over patients), rest_auroc
        of all other units, difference from that, p (two-sided, DeLong's with patients as groups, as if patients were in
        one of the two), q (Benjamini and Hochberg over the groups), worst (whether it is the lowest AUROC of its `by`)
        and reason: why a group is not scored.

    Raises:
        InputError: a concept without a classifier of one output, or a column that there is not.
    """
    logits = table.logits(concept)
    if logits.shape[1] != 1:
        raise InputError(f"'{concept}' has {logits.shape[1]} outputs: groups are scored by a finding's one")
    n_bins = whole(n_bins, "n_bins", least=2)
    names = [by] if isinstance(by, str) else None if by is None else [str(one) for one in entries(by, "by")]
    named = covariate_columns(table, concept, names)
    rows = table.rows(concept, split=split, unit=unit)
    require_two_classes(rows.labels, concept=concept, split=split)
    scores = settled(rows.logits(logits), logit_error(table, concept))
    images = images_of_units(table, rows)

    def about(chosen: NDArray[np.bool_], by: str, group: str) -> dict[str, Any]:
        labels, patients = rows.labels[chosen], rows.patient_ids[chosen]
        counts = [len(set(patients[labels == label])) for label in (1, 0)]
        record: dict[str, Any] = {
            "by": by,
            "group": group,
            "n_rows": int(chosen.sum()),
            "n_positive": int((labels == 1).sum()),
            "n_patients": len(set(patients)),
            "n_positive_patients": counts[0],
            "n_negative_patients": counts[1],
            **dict.fromkeys(("auroc", "auroc_low", "auroc_high", "rest_auroc", "difference", "p"), np.nan),
            "reason": "",
        }
        if min(counts) < min_patients:
            which = "with" if counts[0] <= counts[1] else "without"
            record["reason"] = (
                f"{counted(min(counts), 'patient')} {which} the finding, fewer than {min_patients}: not scored"
            )
            return record
        own = delong_columns(labels, scores[chosen], patients)
        resamples = Resamples(labels, patients, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
        drawn = resamples.metrics(scores[chosen])["auroc"]
        record["auroc"] = float(own.auc[0])
        record["auroc_low"], record["auroc_high"] = resamples.interval(drawn, auroc=True)
        rest = rows.labels[~chosen]
        if by and min(len(set(rows.patient_ids[~chosen][rest == label])) for label in (0, 1)) >= min_patients:
            other = delong_columns(rest, scores[~chosen], rows.patient_ids[~chosen])
            error = float(np.hypot(own.standard_error[0], other.standard_error[0]))
            record |= {"rest_auroc": float(other.auc[0]), "difference": float(own.auc[0] - other.auc[0])}
            record["p"] = float(2 * norm.sf(abs(record["difference"]) / error)) if error > 0 else np.nan
        return record

    records = [about(np.ones(len(images), dtype=bool), "", "")]
    for name in named:
        groups = _group_names(known_values(images[name]), n_bins)
        there = groups.dropna().unique().tolist()
        ordered = [*groups.cat.categories] if isinstance(groups.dtype, pd.CategoricalDtype) else sorted(there)
        records += [about((groups == group).to_numpy(), name, group) for group in ordered if group in there]
    found = pd.DataFrame.from_records(records)
    found["q"] = benjamini_hochberg(found["p"].to_numpy(dtype=np.float64))
    lowest = found.groupby("by")["auroc"].transform("min")
    found["worst"] = (found["auroc"] == lowest) & (found["by"] != "")
    return found[[*(name for name in found if name not in ("q", "worst", "reason")), "q", "worst", "reason"]]


def _group_names(values: pd.Series, n_bins: int) -> pd.Series:
    """The group of each row, sorted by name or number, NaN where its value is missing."""
    if pd.api.types.is_numeric_dtype(values):
        if values.nunique() > n_bins:
            cut = pd.qcut(values, n_bins, duplicates="drop")
            edges = [one.right for one in cut.cat.categories[:-1]]  # not the lowest and highest: those are of patients
            middle = [f"above {low:g} to {high:g}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
            names = [f"up to {edges[0]:g}", *middle, f"above {edges[-1]:g}"] if edges else ["all"]
            return cut.cat.rename_categories(names)
        return values.map(lambda value: f"{value:g}", na_action="ignore").astype(object)
    return values.map(str, na_action="ignore").astype(object)
