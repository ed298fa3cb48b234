"""Classification metrics and their patient-level bootstrap.

The images of one patient resemble each other, so intervals come from resampling patients, not images. A resample is
a row of multiplicities (how often each evaluation row counts), which makes every bootstrapped metric a weighted
metric: the rows are sorted once, and all resamples are evaluated together from cumulative weights.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from mammosae_plugin.errors import InputError

METRICS = ("auroc", "average_precision", "precision", "recall", "f1", "accuracy")
"""The names of the metrics, in the order of every table."""

# Resamples evaluated together: at 4,000 rows one block of weights is 4 MB, about the size of a cache.
_RESAMPLES_PER_BLOCK = 128


def require_two_classes(labels: NDArray[np.int64], *, concept: str, split: str) -> None:
    """Raise `InputError` unless the labels of a concept in a split hold at least two classes.

    Args:
        labels: class of every evaluation row, (n,).
        concept: name used in the message.
        split: name used in the message.
    """
    present = np.unique(labels)
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
    """
    if n_bootstrap < 0:
        raise InputError(f"n_bootstrap is {n_bootstrap}: give 0 or more resamples")
    patients, patient_of_row = np.unique(np.asarray(patient_ids), return_inverse=True)
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
    defined AUROC or recall; all its metrics are NaN, and `interval` leaves it out.

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
    if multiplicities.ndim != 2 or multiplicities.shape[1] != len(labels):
        raise InputError(f"multiplicities have shape {multiplicities.shape}: expected (n_bootstrap, {len(labels)})")
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


def ranking_metrics(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """AUROC and average precision alone: the values of `classification_metrics`, many times faster.

    Meant for the hundreds of control groups of a sweep; NaN where only one class occurs.
    """
    logits, labels = _checked(logits, labels)
    classes, scores, _ = _decisions(logits, labels)
    ones = np.ones((len(labels), 1))
    ranked = np.array([_Ranking(scores[:, c], labels == c).metrics(ones) for c in classes])
    auroc, precision = ranked[:, :, 0].mean(axis=0)
    return float(auroc), float(precision)


def interval(samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples.

    Args:
        samples: (n_bootstrap,) values; NaN are left out.
        level: share of the samples inside, between 0 and 1.

    Returns:
        (low, high); NaN twice when no sample is left.
    """
    if not 0 < level < 1:
        raise InputError(f"the interval's level is {level}: give a share between 0 and 1, such as 0.95")
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.shape[1] == 0:
        raise InputError(f"logits {logits.shape} and labels {labels.shape} do not fit: expected (n, n_out) and (n,)")
    if not np.isfinite(logits).all():
        raise InputError(f"{int((~np.isfinite(logits)).any(axis=1).sum())} rows have a logit that is not finite")
    n_class = max(2, logits.shape[1])
    if labels.size and (labels.min() < 0 or labels.max() >= n_class):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}, but the classifier has the classes 0 to {n_class - 1}"
        )
    return logits, labels
