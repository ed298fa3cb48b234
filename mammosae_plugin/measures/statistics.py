"""Classification metrics and their patient-level bootstrap.

The images of one patient resemble each other, so intervals come from resampling patients, not images. A resample is
a row of multiplicities (how often each evaluation row counts), which makes every bootstrapped metric a weighted
metric: the rows are sorted once, and all resamples are evaluated together from cumulative weights.

Scores are ranked after `settled` has made those equal that differ by no more than rounding.
"""

__all__ = [
    "auroc_interval", "bootstrap_metrics", "checked_multiplicities", "classification_metrics", "interval", "METRICS",
    "MIN_PATIENTS", "NETWORK_ERROR", "patient_bootstrap", "ranking_metrics", "RankingMetrics", "require_two_classes",
    "Resamples", "separation_bound", "settled", "settled_columns", "spread_interval",
]  # fmt: skip

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from mammosae_plugin.arguments import as_array, between, checked_arguments, class_labels, entries, numbers, whole
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    pass

METRICS = ("auroc", "average_precision", "precision", "recall", "f1", "accuracy")
"""The names of the metrics, in the order of every table."""

MIN_PATIENTS = 10
"""Patients of every class from which on an interval is given, unless a caller asks for another number.

With fewer, a percentile interval covers too seldom: AUROCs of 0.75 and 0.9 beside 190 patients without the finding were
covered by the 95 % interval in 91 % and 87 % of 400 simulations with 10 positive patients, in 85 % and 75 % with 5, and
in 54 % of either with 2, where 13 % of the resamples hold no positive patient at all.
"""

NETWORK_ERROR = 2.0**-18
"""Rounding error of what a float32 network computes, relative to the largest value that goes in (4e-6)."""

_FLOAT64_ERROR = 2.0**-40  # of sums of thousands of float64 terms, relative to the sum (1e-12)

# Resamples evaluated together: at 4,000 rows one block of weights is 4 MB, about the size of a cache.
_RESAMPLES_PER_BLOCK = 128


def settled(scores: ArrayLike, error: float = 0.0) -> NDArray[np.float64]:
    """Scores in which those that differ by no more than rounding are equal, so that they tie instead of being ranked.

    The same image gives other last digits in another batch, and sums in another order. Scores within `error` of 0
    become 0. Of the others of either sign, from the lowest up, all that lie within the error of it become equal to it,
    then all within the error of the next one that is left: no group is wider than the error, however many scores lie
    close together.

    Args:
        scores: of any shape, finite; compared with each other as a whole.
        error: how far rounding can move a score, in its units. A relative error of 2**-40, that of sums in float64, is
            always allowed for.

    Returns:
        float64 of the same shape, each within the error of what was given, in the same order.

    Raises:
        InputError: scores that are not finite, or an error that is not.
    """
    values, error = numbers(scores, "scores"), between(error, "error", 0, np.inf)
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} scores are not finite: they cannot be ranked")
    if values.size == 0:
        return values
    values = np.where(np.abs(values) <= error, 0.0, values)
    order = np.argsort(values, axis=None)
    ordered = values.ravel()[order]
    reach = error + _FLOAT64_ERROR * np.abs(ordered)
    separate = (np.diff(ordered) > np.maximum(reach[:-1], reach[1:])) | (np.diff(np.sign(ordered)) != 0)
    starts = np.concatenate([[0], np.flatnonzero(separate) + 1])
    stops = np.append(starts[1:], len(ordered))
    groups = starts.tolist()
    wide = ordered[stops - 1] > ordered[starts] + reach[starts]  # chains of close scores, to be cut
    for start, stop in zip(starts[wide].tolist(), stops[wide].tolist(), strict=True):
        while ordered[stop - 1] > (end := ordered[start] + reach[start]):
            start += int(np.searchsorted(ordered[start:stop], end, side="right"))
            groups.append(start)
    first = np.zeros(len(ordered), dtype=np.int64)
    first[groups] = groups
    result = np.empty(len(ordered))
    result[order] = ordered[np.maximum.accumulate(first)]
    return result.reshape(values.shape)


def settled_columns(scores: ArrayLike) -> NDArray[np.float64]:
    """What a float32 network says (n, m), such as activations of m latents, each column settled among itself.

    The error of a column is `NETWORK_ERROR` of its largest value.

    Raises:
        InputError: not (n, m), or scores that are not finite.
    """
    values = numbers(scores, "scores")
    if values.ndim != 2:
        raise InputError(f"scores have shape {values.shape}: expected (n, m)")
    columns = [settled(column, NETWORK_ERROR * float(np.abs(column).max(initial=0))) for column in values.T]
    return np.stack(columns, axis=1) if columns else values


@checked_arguments
def require_two_classes(labels: NDArray[np.int64], *, concept: str, split: str) -> None:
    """Raise `InputError` unless the labels of a concept in a split hold at least two classes.

    Args:
        labels: class of every evaluation row, (n,).
        concept: name used in the message.
        split: name used in the message.

    Raises:
        InputError: fewer than two classes, or labels that are no classes.
    """
    present = np.unique(class_labels(labels))
    if len(present) >= 2:
        return
    if len(present) == 0:
        what = f"no image with a label for '{concept}'"
    elif present[0] == 0:
        what = f"no positive image for '{concept}' among {len(labels)} rows"
    else:
        what = f"no image outside class {present[0]} of '{concept}' among {len(labels)} rows"
    raise InputError(f"split '{split}' has {what}: choose a split or a concept in which two classes occur")


def classification_metrics(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Metrics of a classifier, through scikit-learn.

    One logit per row means a binary concept: AUROC, average precision, and at probability 0.5 (logit above 0)
    precision, recall, F1 and accuracy. Several logits mean one class each: predictions by argmax; precision, recall
    and F1 as macro averages; AUROC and average precision as macro averages of each class against the rest. Macro
    averages run over the classes that occur in `labels`. Precision without a positive prediction is 0.

    Args:
        logits: (n, 1) for a binary concept, else (n, n_class).
        labels: (n,) classes, 0 ... n_class - 1 (0 and 1 for a binary concept).

    Returns:
        A value for each name in `METRICS`.

    Raises:
        InputError: shapes that do not fit, logits that are not finite, labels out of range, or only one class.
    """
    logits, labels = _checked(logits, labels)
    if len(np.unique(labels)) < 2:
        raise InputError("the labels hold only one class, but the metrics compare two: choose other evaluation rows")
    classes, scores, predicted = _decisions(logits, labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    return {
        "auroc": float(np.mean([roc_auc_score(labels == c, scores[:, c]) for c in classes])),
        "average_precision": float(np.mean([average_precision_score(labels == c, scores[:, c]) for c in classes])),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "accuracy": float(np.mean(predicted == labels)),
    }


def patient_bootstrap(patient_ids: ArrayLike, n_bootstrap: int, seed: int) -> NDArray[np.int32]:
    """Draw resamples of patients with replacement.

    The draw depends on the set of patients and the seed, not on the order of the rows.

    Args:
        patient_ids: (n_rows,) the patient of every evaluation row.
        n_bootstrap: number of resamples; 0 gives an empty array.
        seed: seed of the draw.

    Returns:
        Multiplicities (n_bootstrap, n_rows): how often each row counts in each resample. All rows of a patient count
        equally often. (The array is stored column by column, which is the order that `bootstrap_metrics` reads.)

    Raises:
        InputError: a number or seed that is no whole number from 0, or a row without a patient.
    """
    n_bootstrap, seed = whole(n_bootstrap, "n_bootstrap", least=0), whole(seed, "seed", least=0)
    patients, patient_of_row = np.unique(_checked_patients(patient_ids), return_inverse=True)
    n_patients = len(patients)
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_patients, n_bootstrap), dtype=np.int32)
    for resample in range(n_bootstrap):
        counts[:, resample] = np.bincount(rng.integers(n_patients, size=n_patients), minlength=n_patients)
    return counts[patient_of_row].T


def bootstrap_metrics(
    logits: NDArray[np.float64], labels: NDArray[np.int64], multiplicities: NDArray[np.integer]
) -> dict[str, NDArray[np.float64]]:
    """The metrics of `classification_metrics` for many resamples at once.

    Equal to scikit-learn's with `sample_weight`, ties included. A resample that lacks a class of the data has no
    defined AUROC or recall; all its metrics are NaN, `interval` leaves it out, and `Resamples` counts it.

    Args:
        logits: (n, n_out), as for `classification_metrics`.
        labels: (n,) classes.
        multiplicities: (n_bootstrap, n) of `patient_bootstrap`.

    Returns:
        For each name in `METRICS` the values (n_bootstrap,).

    Raises:
        InputError: as for `classification_metrics`, or multiplicities of another width.
    """
    logits, labels = _checked(logits, labels)
    multiplicities = checked_multiplicities(multiplicities, len(labels))
    classes, scores, predicted = _decisions(logits, labels)
    rankings = [_Ranking(scores[:, c], labels == c) for c in classes]
    # One row per class and kind of count; a product with the weights then counts all resamples.
    is_class = labels == classes[:, None]
    is_predicted = predicted == classes[:, None]
    counted = np.concatenate([is_class, is_predicted, is_class & is_predicted, (predicted == labels)[None]])
    counts = csr_array(counted.astype(np.float64))

    n_bootstrap = len(multiplicities)
    values = {name: np.empty(n_bootstrap) for name in METRICS}
    for start in range(0, n_bootstrap, _RESAMPLES_PER_BLOCK):
        block = slice(start, min(start + _RESAMPLES_PER_BLOCK, n_bootstrap))
        weights = np.ascontiguousarray(multiplicities[block].T, dtype=np.float64)
        total = weights.sum(axis=0)
        sums = np.asarray(counts @ weights)
        actual, called, hit = np.split(sums[:-1], 3)
        ranked = [ranking.metrics(weights) for ranking in rankings]
        values["auroc"][block] = np.mean([auroc for auroc, _ in ranked], axis=0)
        values["average_precision"][block] = np.mean([precision for _, precision in ranked], axis=0)
        values["precision"][block] = _ratio(hit, called).mean(axis=0)
        values["recall"][block] = _ratio(hit, actual).mean(axis=0)
        values["f1"][block] = _ratio(2 * hit, actual + called).mean(axis=0)
        values["accuracy"][block] = _ratio(sums[-1], total)
        undefined = ((actual == 0) | (actual == total)).any(axis=0)
        for name in METRICS:
            values[name][block][undefined] = np.nan
    return values


class RankingMetrics(NamedTuple):
    """What depends on the order of the rows alone, each the mean over classes."""

    auroc: float
    average_precision: float


def ranking_metrics(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> RankingMetrics:
    """AUROC and average precision alone: the values of `classification_metrics`, many times faster.

    Meant for the hundreds of control groups of a sweep; NaN where only one class occurs.
    """
    logits, labels = _checked(logits, labels)
    classes, scores, _ = _decisions(logits, labels)
    if len(classes) == 0:
        return RankingMetrics(float("nan"), float("nan"))
    ones = np.ones((len(labels), 1))
    ranked = np.array([_Ranking(scores[:, c], labels == c).metrics(ones) for c in classes])
    auroc, precision = ranked[:, :, 0].mean(axis=0)
    return RankingMetrics(float(auroc), float(precision))


def interval(samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples.

    Args:
        samples: (n_bootstrap,) values; NaN are left out.
        level: share of the samples inside, between 0 and 1.

    Returns:
        (low, high); NaN twice when no sample is left.

    Raises:
        InputError: a level outside, or samples that are not (n_bootstrap,).
    """
    level = between(level, "the interval's level", 0, 1, with_low=False, with_high=False)
    samples = numbers(samples, "samples")
    if samples.ndim != 1 or np.isinf(samples).any():
        raise InputError(f"samples have shape {samples.shape}: expected (n_bootstrap,), finite or NaN")
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread_interval(samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """`interval`; NaN twice where the samples agree on a whole number, such as 0 or 1, which no sample could leave.

    Args:
        samples: (n_bootstrap,) values; NaN are left out.
        level: as for `interval`.

    Raises:
        InputError: as `interval`.
    """
    low, high = interval(samples, level)
    agreed = high - low <= _FLOAT64_ERROR and float(np.round(low, 9)).is_integer()
    return (float("nan"), float("nan")) if agreed else (low, high)


def auroc_interval(
    samples: NDArray[np.float64], n_positive: int, n_negative: int, level: float = 0.95
) -> tuple[float, float]:
    """`interval` of AUROCs; where the classes are separated without fault, `separation_bound` and 1.

    Where they are separated the wrong way round, it is 0 and 1 minus the bound.

    Args:
        samples: (n_bootstrap,) AUROCs of a binary concept; NaN are left out.
        n_positive: patients with the finding.
        n_negative: patients without.
        level: as for `interval`.

    Raises:
        InputError: as `interval` and `separation_bound`.
    """
    low, high = interval(samples, level)
    if low == 1:
        return separation_bound(n_positive, n_negative, level), high
    return (low, 1 - separation_bound(n_positive, n_negative, level)) if high == 0 else (low, high)


def separation_bound(n_positive: int, n_negative: int, level: float = 0.95) -> float:
    """The lower end of an interval of an AUROC whose estimate is 1.

    With all positive patients above all negative ones, AUROC is at least P(a positive is not below the lowest one seen)
    times P(a negative is not above the highest one seen). By Wilks (1941) these two shares are distributed as the
    largest of m and of n uniform numbers, whatever the distribution of the scores; the bound is the (1 - level) / 2
    quantile of their product, exp(-s) with P(Exp(m) + Exp(n) > s) = (1 - level) / 2. Where one class is large it is
    that of Clopper and Pearson for m of m, ((1 - level) / 2)^(1 / m).

    Args:
        n_positive: patients with the finding, m.
        n_negative: patients without, n.
        level: of the two-sided interval.

    Raises:
        InputError: a class without a patient, or a level outside 0 to 1.
    """
    m = whole(n_positive, "n_positive", least=1)
    n = whole(n_negative, "n_negative", least=1)
    level = between(level, "the interval's level", 0, 1, with_low=False, with_high=False)

    def tail(s: float) -> float:
        if m == n:
            return (1 + m * s) * math.exp(-m * s)
        return (m * math.exp(-n * s) - n * math.exp(-m * s)) / (m - n)

    return math.exp(-brentq(lambda s: tail(s) - (1 - level) / 2, 0, 100 / ((1 - level) * min(m, n))))


class Resamples:
    """Resamples of the patients of some evaluation rows, and what may be said from them.

    A resample without a patient of each class has no AUROC. Where a class has few patients such resamples are many, and
    what the others agree on is no interval: [1.000, 1.000] of a single positive patient. So the share of undefined
    resamples is counted, and below `min_patients` patients of any class there is no interval.

    Args:
        labels: (n_rows,) classes.
        patient_ids: (n_rows,) the patient of every row.
        n_bootstrap: number of resamples.
        seed: seed of the draw.
        min_patients: patients that every class must have for an interval.

    Attributes:
        multiplicities: as `patient_bootstrap` gives them.
        patients_per_class: (n_class,) patients with a row of each class that occurs, by rising class.
        undefined_share: share of the resamples in which a class is missing; NaN without resamples.

    Raises:
        InputError: labels that are no classes, another number of patients, or a number out of range.
    """

    def __init__(
        self,
        labels: ArrayLike,
        patient_ids: ArrayLike,
        *,
        n_bootstrap: int = 1000,
        seed: int = 0,
        min_patients: int = MIN_PATIENTS,
    ) -> None:
        self.labels = class_labels(labels)
        patients = _checked_patients(patient_ids)
        if patients.shape != self.labels.shape:
            raise InputError(f"{len(self.labels)} rows have a label, but {patients.shape} have a patient")
        self.min_patients = whole(min_patients, "min_patients", least=1)
        self.multiplicities = patient_bootstrap(patients, n_bootstrap, seed)
        self.n_patients = len(np.unique(patients))
        self._classes = np.unique(self.labels)
        self.patients_per_class = np.array([len(np.unique(patients[self.labels == c])) for c in self._classes])
        rows_per_class = self.multiplicities @ (self.labels[:, None] == self._classes)
        missing = (rows_per_class == 0).any(axis=1)
        self.undefined_share = float(missing.mean()) if len(missing) else float("nan")

    def counts(self, *, binary: bool) -> dict[str, float]:
        """What an interval rests on, as columns of a result.

        Returns:
            n_rows, n_positive (rows of class 1), n_patients, n_positive_patients and n_negative_patients (with a row of
            class 1, or 0; the three are NaN unless the concept is binary), fewest_patients (of the class that has the
            fewest) and undefined_share.
        """
        of_class = dict(zip(self._classes.tolist(), self.patients_per_class.tolist(), strict=True))
        return {
            "n_rows": len(self.labels),
            "n_positive": int((self.labels == 1).sum()) if binary else np.nan,
            "n_patients": self.n_patients,
            "n_positive_patients": of_class.get(1, 0) if binary else np.nan,
            "n_negative_patients": of_class.get(0, 0) if binary else np.nan,
            "fewest_patients": int(self.patients_per_class.min()) if len(of_class) > 1 else 0,
            "undefined_share": self.undefined_share,
        }

    def metrics(self, logits: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """`bootstrap_metrics` of these resamples."""
        return bootstrap_metrics(logits, self.labels, self.multiplicities)

    def interval(
        self, samples: NDArray[np.float64], level: float = 0.95, *, auroc: bool = False
    ) -> tuple[float, float]:
        """`interval` of a metric's samples; NaN twice where that would say more than is known.

        That is where a class has fewer than `min_patients` patients, and where the resamples agree on 0 or 1 (or a
        difference of 0): patients who all say the same do not tell how sure that is. AUROCs of a binary concept
        (`auroc`) have the bound of `auroc_interval` there.
        """
        spread = spread_interval(samples, level)
        if not (len(self._classes) > 1 and self.patients_per_class.min() >= self.min_patients):
            return float("nan"), float("nan")
        if auroc and self._classes.tolist() == [0, 1]:
            n_negative, n_positive = self.patients_per_class.tolist()
            return auroc_interval(samples, n_positive, n_negative, level)
        return spread


class _Ranking:
    """One score vector, sorted once, whose AUROC and average precision are wanted under many weightings."""

    def __init__(self, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
        ends = np.concatenate([starts[1:], [len(ordered)]])
        self.positives = np.flatnonzero(positive[self.order])
        tie = np.searchsorted(starts, self.positives, side="right") - 1
        # For every positive row: how many rows, and how many positives, lie above its group of ties, and up to its end.
        self.rows_above, self.rows_to_end = starts[tie], ends[tie]
        self.positives_above = np.searchsorted(self.positives, self.rows_above)
        self.positives_to_end = np.searchsorted(self.positives, self.rows_to_end)

    def metrics(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """AUROC and average precision (n_resamples,) under weights (n_rows, n_resamples)."""
        ordered = weights[self.order]
        own = ordered[self.positives]
        rows = _cumulative(ordered)
        positives = _cumulative(own)
        n_positive, n_negative = positives[-1], rows[-1] - positives[-1]
        rows_to_end, positives_to_end = rows[self.rows_to_end], positives[self.positives_to_end]
        negatives_above = rows[self.rows_above] - positives[self.positives_above]
        negatives_to_end = rows_to_end - positives_to_end
        # A tie between a positive and a negative counts one half.
        beaten = n_negative - (negatives_above + negatives_to_end) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = (own * beaten).sum(axis=0) / (n_positive * n_negative)
            precision = (own * _ratio(positives_to_end, rows_to_end)).sum(axis=0) / n_positive
        return auroc, precision


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cumulative sums over rows with a first row of zeros: (n + 1, n_resamples)."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numerator over denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _decisions(
    logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """The classes to average over, their scores (n, n_class) and the predicted class (n,).

    A multi-class score is the log-odds of the softmax probability: the same order, but without the ties that
    probabilities rounded to 1 would make.
    """
    if logits.shape[1] == 1:
        scores = np.concatenate([-logits, logits], axis=1)
        return np.array([1]), scores, (logits[:, 0] > 0).astype(np.int64)
    # Sorted differences, so that rows with equal odds get equal scores to the last bit and tie.
    margins = [np.sort(np.delete(logits, c, axis=1) - logits[:, [c]], axis=1) for c in range(logits.shape[1])]
    scores = np.stack([-logsumexp(margin, axis=1) for margin in margins], axis=1)
    return np.unique(labels), scores, logits.argmax(axis=1).astype(np.int64)


def _checked(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, settled, and labels that fit them."""
    logits, given = numbers(logits, "logits"), numbers(labels, "labels")
    if logits.ndim != 2 or given.shape != logits.shape[:1] or logits.shape[1] == 0:
        raise InputError(f"logits {logits.shape} and labels {given.shape} do not fit: expected (n, n_out) and (n,)")
    if not np.isfinite(logits).all():
        raise InputError(f"{int((~np.isfinite(logits)).any(axis=1).sum())} rows have a logit that is not finite")
    return settled(logits), class_labels(given, n_class=max(2, logits.shape[1]))


_AN_ID = (str, int, float, np.generic, type(None), type(pd.NA))  # the last two are missing ones


def _checked_patients(patient_ids: ArrayLike) -> NDArray[Any]:
    """Patients (n_rows,), none missing, in a form that sorts."""
    # Of a list with texts in it numpy would make NaN the text "nan".
    if isinstance(patient_ids, np.ndarray) or hasattr(patient_ids, "detach"):
        patients = as_array(patient_ids, "patient ids")
    else:
        patients = np.empty(len(given := entries(patient_ids, "patient ids")), dtype=object)
        patients[:] = given
    if patients.ndim != 1 or not all(isinstance(patient, _AN_ID) for patient in patients):
        raise InputError(f"patient ids have shape {patients.shape}: expected (n_rows,), the patient of every row")
    n_missing = int(pd.isna(patients).sum())
    if n_missing:
        raise InputError(f"{n_missing} rows have no patient id: name the patient of every row")
    return patients.astype(str) if patients.dtype == object else patients


def checked_multiplicities(multiplicities: ArrayLike, n_rows: int) -> NDArray[np.integer]:
    """Multiplicities (n_bootstrap, n_rows), as `patient_bootstrap` gives them.

    Raises:
        InputError: another shape, or no counts.
    """
    array = as_array(multiplicities, "multiplicities")
    if array.ndim != 2 or array.shape[1] != n_rows:
        raise InputError(f"multiplicities have shape {array.shape}: expected (n_bootstrap, {n_rows})")
    if array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise InputError("multiplicities are not counts: give whole numbers from 0, how often each row is drawn")
    return array
