"""How few latents recover what a probe on the dense layer tells (SAIL, arXiv 2603.23794, section on recovery)."""

__all__ = ["LEAST_DENSE", "RECOVERY_KS", "Recovery", "recovery", "recovery_thresholds", "THRESHOLDS"]

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.analysis.codes import as_codes, as_groups, settled_codes
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.probes import BASES, STRENGTHS, Problem, feature_matrix, permuted, varies
from mammosae_plugin.analysis.table_arrays import image_groups, image_labels, image_statistic, split_rows
from mammosae_plugin.arguments import checked_arguments, entries, flag, listed_numbers, numbers, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, bootstrap_metrics, patient_bootstrap, spread_interval

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

RECOVERY_KS = (1, 2, 5, 10, 20, 50, 100)
"""How many latents a sparse probe may use."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of what the dense probe tells, above chance."""

LEAST_DENSE = 0.55
"""AUROC of the dense probe up to which there is too little above chance to be recovered."""
_SAME = "no latent differs between these images, so that its AUROCs are those of chance"
_ROUNDING = 1e-12  # of a share; an AUROC of 0.7 has half of what one of 0.9 has above chance


def recovery_thresholds(
    n_features: ArrayLike,
    aucs: ArrayLike,
    dense_auc: float,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    chance_corrected: bool = True,
) -> dict[float, int | None]:
    """The smallest number of latents with which a probe reaches a share of the dense probe's AUROC.

    Args:
        n_features: (m,) numbers of latents that were tried, in any order.
        aucs: (m,) AUROC with each; NaN where it is not known.
        dense_auc: that of the dense probe; NaN where it is not known.
        thresholds: the shares.
        chance_corrected: whether the share is (AUROC - 0.5) / (dense - 0.5), defined above `LEAST_DENSE`, or, as SAIL
            has it, AUROC / dense, of which a coin reaches half.

    Returns:
        The number for each threshold; None where it is never reached, or the share is not defined.

    Raises:
        InputError: arrays that do not fit, an AUROC outside 0 to 1, or a number of latents that is not whole.
    """
    flag(chance_corrected, "chance_corrected")
    tried, reached = numbers(n_features, "n_features"), numbers(aucs, "aucs")
    dense = numbers(dense_auc, "dense_auc")
    wanted = listed_numbers(thresholds, "thresholds")
    if tried.ndim != 1 or tried.shape != reached.shape:
        raise InputError(f"n_features {tried.shape} and aucs {reached.shape} do not fit: expected (m,) and (m,)")
    if dense.ndim != 0:
        raise InputError(f"dense_auc has shape {dense.shape}: give one number")
    if (tried != np.floor(tried)).any() or (tried < 0).any() or not np.isfinite(tried).all():
        raise InputError("n_features hold something else than numbers of latents: give whole numbers")
    known = np.append(reached, dense)
    if ((known < 0) | (known > 1)).any():
        raise InputError("an AUROC is outside 0 to 1")
    lowest, least = (0.5, LEAST_DENSE) if chance_corrected else (0.0, 0.0)
    defined = bool(dense > least)
    share = (reached - lowest) / (dense - lowest) if defined else np.full_like(reached, np.nan)
    return {
        float(threshold): int(tried[enough].min()) if (enough := share >= threshold - _ROUNDING).any() else None
        for threshold in wanted
    }


@dataclass(frozen=True)
class Recovery:
    """How few latents recover what the dense layer tells.

    Attributes:
        curves: one row per label and k: label, k, auroc, auroc_permuted (the same procedure with the labels permuted
            between groups), dense_auroc, recovered ((auroc - 0.5) / (dense - 0.5), 0 by chance; NaN up to a dense AUROC
            of `LEAST_DENSE`) with recovered_low and recovered_high (95 %, over groups), recovered_permuted, ratio
            (SAIL's auroc / dense, of which a coin reaches half), and the target's columns.
        targets: one row per label: label, split, rows (a digest of its images and labels), n_rows, n_positive,
            n_groups, n_positive_groups, dense_auroc with dense_low and dense_high, sparse_auroc (of all latents), n_50
            ... n_100 (the smallest k that recovers so many per cent, missing where none does), ratio_n_50 ... likewise
            of SAIL's ratio, counts (whether the dense probe tells the label, so that it counts for the SAE) and
            reason: why it does not, else empty.
        summary: one row per k: k, auroc, recovered with recovered_low and recovered_high, recovered_permuted and
            n_labels, means over the labels that count.
    """

    curves: pd.DataFrame
    targets: pd.DataFrame
    summary: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The curves."""
        return self.curves


@checked_arguments
def recovery(
    table: "LatentTable",
    labels: Sequence[str] | pd.DataFrame | None = None,
    *,
    embeddings: Embeddings = None,
    group: str | ArrayLike = "patient_id",
    split: str = "test",
    statistic: str = "max",
    ks: Sequence[int] = RECOVERY_KS,
    thresholds: Sequence[float] = THRESHOLDS,
    n_folds: int = 5,
    strengths: Sequence[float] = STRENGTHS,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> Recovery:
    """Recovery of every label by k-sparse probes on latents, against the probe on all of the dense layer (SAIL).

    Both probes are `probe_of`'s, on the same folds: features are chosen and scaled, and the penalty is chosen, on a
    fold's training rows. (SAIL chooses latents by the coefficients of a full probe, on the rows that it then scores.)
    Intervals resample the groups, each time the same for both probes and for all labels, and are as much wider as
    `probe_of`'s are.

    Args:
        table: a latents table, of maps or of rows.
        labels: as for `monosemanticity`.
        embeddings: the dense layer, as for `activation_similarity`.
        group: as for `monosemanticity`.
        split: the split whose images are cut into folds.
        statistic: "max" or "mean" of a latent over positions.
        ks: numbers of latents.
        thresholds: shares of which the smallest k is sought.
        n_folds: as for `probe_of`.
        strengths: as for `probe_of`.
        n_bootstrap: resamples; 0 gives no intervals.
        min_patients: groups that each class must have for an interval.
        seed: of folds, resamples and permuted labels.

    Raises:
        InputError: embeddings of other images, or none for a table of rows; an unknown label, group, split or
            statistic.

    Example:
        >>> found = recovery(table, ["Mass"], ks=(1, 5, 20))    # doctest: +SKIP
        >>> found.summary, found.targets                        # doctest: +SKIP
    """
    tried = sorted({whole(k, "ks", least=1) for k in entries(ks, "ks")})
    wanted = listed_numbers(thresholds, "thresholds").tolist()
    n_folds = whole(n_folds, "n_folds", least=2)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    penalties = listed_numbers(strengths, "strengths")
    if not tried or not len(penalties) or not (penalties > 0).all():
        raise InputError("name at least one k and one strength above 0")
    values = image_labels(table, labels)
    image_rows = split_rows(table, split)
    of_row = as_groups(image_groups(table, group)[image_rows], len(image_rows))
    codes = feature_matrix(settled_codes(as_codes(image_statistic(table, statistic)[image_rows])))
    dense = dense_rows(table, embeddings, image_rows).whole()
    resamples = patient_bootstrap(np.arange(int(of_row.max()) + 1), n_bootstrap, seed)
    image_ids = table.images["image_id"].astype(str).to_numpy()[image_rows]
    curves, targets = [], []
    samples: dict[int, list[NDArray[np.float64]]] = {}
    for name in values.columns:
        of_images = values[name].to_numpy()[image_rows]
        known = np.flatnonzero(~np.isnan(of_images))
        positive, groups = of_images[known].astype(np.int64), of_row[known]
        listed = "".join(f"{image}={label};" for image, label in sorted(zip(image_ids[known], positive, strict=True)))
        n_own = [len(np.unique(groups[positive == label])) for label in (0, 1)]
        target: dict[str, Any] = {
            "label": name,
            "split": split,
            "rows": hashlib.sha256(listed.encode()).hexdigest()[:16],
            "n_rows": len(known),
            "n_positive": int(positive.sum()),
            "n_groups": len(np.unique(groups)),
            "n_positive_groups": n_own[1],
        }
        reason = _unfit(positive, n_own)
        if not reason:
            problem = Problem(
                codes[known], positive, groups, min(n_folds, *n_own), penalties.tolist(), BASES["features"], seed
            )
            try:
                found = _curve(problem, dense[known], tried)
            except InputError as error:  # groups that cannot be cut into folds with both classes
                reason = str(error)
        if reason:
            targets.append({**target, "dense_auroc": np.nan, "sparse_auroc": np.nan, "counts": False, "reason": reason})
            continue
        curve, logits = found
        reference, sparse_auroc = float(curve["dense_auroc"].iloc[0]), float(curve["auroc"].iloc[-1])
        ends = np.full((len(curve) + 1, 2), np.nan)
        if n_bootstrap and min(n_own) >= min_patients:
            of_dense, *of_codes = (_resampled(problem, each, resamples[:, groups]) for each in logits)
            ends[0] = spread_interval(of_dense)
            shares = [(each - 0.5) / np.where(of_dense > LEAST_DENSE, of_dense - 0.5, np.nan) for each in of_codes]
            if reference > LEAST_DENSE:
                ends[1:] = [spread_interval(share) for share in shares]
        reason = _uncounted(reference, ends[0], min(n_own), min_patients, n_bootstrap)
        if not reason and n_bootstrap:
            for k, share in zip(curve["k"], shares, strict=True):
                samples.setdefault(k, []).append(share)
        curve.insert(6, "recovered_low", ends[1:, 0])
        curve.insert(7, "recovered_high", ends[1:, 1])
        curve = curve[curve["k"].isin(tried)].assign(**target, counts=not reason)
        curves.append(curve[["label", *(column for column in curve.columns if column != "label")]])
        smallest = {
            f"{mark}n_{100 * share:g}": n
            for mark, corrected in (("", True), ("ratio_", False))
            for share, n in recovery_thresholds(
                curve["k"], curve["auroc"], reference, thresholds=wanted, chance_corrected=corrected
            ).items()
        }
        told = {"dense_auroc": reference, "dense_low": ends[0, 0], "dense_high": ends[0, 1]}
        about = {**target, **told, "sparse_auroc": sparse_auroc, **smallest, "counts": not reason}
        about["reason"] = reason or ("" if varies(problem.features) else _SAME)
        targets.append(about)
    whole_curves = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=["label", "k"])
    return Recovery(whole_curves, pd.DataFrame(targets), _summary(whole_curves, samples))


def _unfit(positive: NDArray[np.int64], n_groups: list[int]) -> str:
    """Why there can be no probe of a label."""
    if not len(positive):
        return "no image of the split has this label"
    if min(n_groups) == 0:
        return f"{'every' if positive.all() else 'no'} image of the split has it"
    if min(n_groups) == 1:
        return "a class has a single group, so that it cannot both teach and test"
    return ""


def _uncounted(dense: float, ends: NDArray[np.float64], fewest: int, min_patients: int, n_bootstrap: int) -> str:
    """Why a label does not count for the SAE."""
    if dense <= LEAST_DENSE:
        return f"the dense probe has an AUROC of {dense:.3f}, at most {LEAST_DENSE}: there is nothing to recover"
    if fewest < min_patients:
        return f"a class has {fewest} groups, fewer than {min_patients}: no interval"
    if n_bootstrap and ends[0] <= 0.5:
        return f"the dense probe cannot be told from chance (AUROC {ends[0]:.3f} to {ends[1]:.3f})"
    return ""


def _curve(problem: Problem, dense: Any, ks: list[int]) -> tuple[pd.DataFrame, list[NDArray[np.float64]]]:
    """AUROC with each k and, last, with all latents; and the held-out logits of the dense probe and of each k."""
    of_dense = replace(problem, features=feature_matrix(dense))
    _, (told,) = of_dense.scores([None])
    reference = of_dense.auroc(told)
    # A k above the number of latents is that of all of them, which come last.
    wanted: list[int | None] = [k for k in ks if k < problem.features.shape[1]]
    sizes, scores = problem.scores([*wanted, None])
    shuffled = permuted(problem.positive, problem.groups, problem.seed)
    fewest = min(len(np.unique(problem.groups[shuffled == label])) for label in (0, 1))
    by_chance = [float("nan")] * len(sizes)
    if fewest >= 2 and wanted:  # of all latents no share is reported
        control = replace(problem, positive=shuffled, n_folds=min(problem.n_folds, fewest))
        with suppress(InputError):  # permuted labels that cannot be cut into folds tell no chance level
            by_chance = [*(control.auroc(score) for score in control.scores(wanted)[1]), float("nan")]
    above = reference - 0.5 if reference > LEAST_DENSE else float("nan")
    records = [
        {
            "k": size,
            "auroc": (auroc := problem.auroc(score)),
            "auroc_permuted": permuted_auroc,
            "dense_auroc": reference,
            "recovered": (auroc - 0.5) / above,
            "recovered_permuted": (permuted_auroc - 0.5) / above,
            "ratio": auroc / reference if reference else float("nan"),
        }
        for size, score, permuted_auroc in zip(sizes, scores, by_chance, strict=True)
    ]
    return pd.DataFrame(records), [told, *scores]


def _resampled(problem: Problem, scores: NDArray[np.float64], weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """AUROC (n_bootstrap,): the mean over the folds that hold both classes in a resample, its spread made `wider`."""
    samples = np.array(
        [
            bootstrap_metrics(scores[rows, None], problem.positive[rows], weights[:, rows])["auroc"]
            for _, rows in problem.folds
        ]
    )
    known = np.isfinite(samples)
    unknown = np.full(samples.shape[1], np.nan)
    means = np.divide(np.where(known, samples, 0).sum(axis=0), known.sum(axis=0), out=unknown, where=known.any(axis=0))
    at = problem.auroc(scores)
    found: NDArray[np.float64] = np.clip(at + problem.wider * (means - at), 0, 1)
    return found


def _summary(curves: pd.DataFrame, samples: dict[int, list[NDArray[np.float64]]]) -> pd.DataFrame:
    records = []
    for k in np.unique(curves["k"].to_numpy(dtype=np.int64)).tolist():
        own = curves[(curves["k"] == k) & curves["counts"]]
        low, high = spread_interval(np.mean(samples[k], axis=0)) if k in samples else (np.nan, np.nan)
        means = {name: float(own[name].mean()) for name in ("auroc", "recovered", "recovered_permuted")}
        records.append({"k": k, **means, "recovered_low": low, "recovered_high": high, "n_labels": len(own)})
    return pd.DataFrame(records)
