"""AUROC with its standard error, and the difference of two on the same rows, by DeLong, DeLong and Clarke-Pearson."""

__all__ = ["DeLong", "delong", "DeLongDifference", "detectable_auroc", "hanley_mcneil_error"]

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from mammosae_plugin.arguments import between, class_labels, numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import separation_bound, settled


@dataclass(frozen=True)
class DeLong:
    """An AUROC.

    Attributes:
        auc: the value.
        standard_error: by DeLong; 0 where the classes are separated without fault, and NaN with one row in a class.
        interval: 95 %, auc ± 1.96 standard errors cut to [0, 1]; of an AUROC of 1 `separation_bound` and 1 (of 0 the
            other way round), because rows that all say the same do not tell how sure that is.
    """

    auc: float
    standard_error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class DeLongDifference:
    """The difference of two AUROCs of the same rows.

    Attributes:
        difference: the first less the other.
        standard_error: of the difference, with the covariance of the two.
        p_value: two-sided, of a difference of 0; 1 where the two order all pairs alike, NaN where the standard error
            is 0 or unknown and the difference is not 0.
    """

    difference: float
    standard_error: float
    p_value: float


@overload
def delong(labels: ArrayLike, scores: ArrayLike, other: None = None) -> DeLong: ...
@overload
def delong(labels: ArrayLike, scores: ArrayLike, other: ArrayLike) -> DeLongDifference: ...
def delong(labels: ArrayLike, scores: ArrayLike, other: ArrayLike | None = None) -> DeLong | DeLongDifference:
    """AUROC of scores, or the difference of the AUROCs of two scores of the same rows.

    Rows count as independent: where a patient has several, resample patients instead (`Resamples`). Ranks as in Sun and
    Xu (IEEE Signal Processing Letters 21, 2014): O(n log n). Scores that differ by no more than rounding tie.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher for class 1.
        other: (n,) scores to compare with, or None.

    Raises:
        InputError: labels other than 0 and 1, a class without a row, or scores that are not (n,) and finite.

    Example:
        >>> round(delong([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).auc, 2)
        0.75
    """
    positive = class_labels(labels, n_class=2) == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        raise InputError(f"{m} rows are of class 1 and {n} of class 0: an AUROC needs a row of each")
    parts = [
        _placements(positive, given, name)
        for given, name in ((scores, "scores"), (other, "other scores"))
        if given is not None
    ]
    aucs = [float(of_positive.mean()) for of_positive, _ in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = _covariance([of_positive for of_positive, _ in parts]) / m
        covariance = covariance + _covariance([of_negative for _, of_negative in parts]) / n
    if other is None:
        error = math.sqrt(max(float(covariance[0, 0]), 0)) if np.isfinite(covariance[0, 0]) else math.nan
        return DeLong(aucs[0], error, _interval(aucs[0], error, m, n))
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = math.sqrt(max(variance, 0)) if math.isfinite(variance) else math.nan
    difference = aucs[0] - aucs[1]
    if error > 0:
        return DeLongDifference(difference, error, float(2 * norm.sf(abs(difference) / error)))
    return DeLongDifference(difference, error, 1.0 if difference == 0 else math.nan)


def _placements(
    positive: NDArray[np.bool_], given: ArrayLike, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of every positive row the share of negative ones below it, and of every negative one the share above it."""
    scores = numbers(given, name)
    if scores.shape != positive.shape or not np.isfinite(scores).all():
        raise InputError(f"{name} have shape {scores.shape}: expected {positive.shape}, one finite number for each row")
    scores = settled(scores)
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores)
    of_positive = (ranks[positive] - rankdata(scores[positive])) / n
    of_negative = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    return of_positive, of_negative


def _covariance(placements: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    if len(placements[0]) < 2:
        return np.full((len(placements), len(placements)), np.nan)
    return np.atleast_2d(np.cov(np.stack(placements)))


def _interval(auc: float, error: float, m: int, n: int) -> tuple[float, float]:
    if auc == 1:
        return separation_bound(m, n), 1.0
    if auc == 0:
        return 0.0, 1 - separation_bound(m, n)
    reach = float(norm.ppf(0.975)) * error
    return max(auc - reach, 0.0), min(auc + reach, 1.0)


def hanley_mcneil_error(auc: float, n_positive: int, n_negative: int) -> float:
    """The standard error that an AUROC can be expected to have (Hanley and McNeil, Radiology 143, 1982).

    With Q1 = A / (2 - A) and Q2 = 2 A^2 / (1 + A) its square is
    (A (1 - A) + (m - 1) (Q1 - A^2) + (n - 1) (Q2 - A^2)) / (m n).

    Args:
        auc: the AUROC A, 0 to 1.
        n_positive: m rows of class 1; where rows come in groups, groups.
        n_negative: n rows of class 0.

    Raises:
        InputError: an AUROC outside 0 to 1, or a class without a row.
    """
    a = between(auc, "auc", 0, 1)
    m, n = whole(n_positive, "n_positive", least=1), whole(n_negative, "n_negative", least=1)
    first, second = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
    return math.sqrt((a * (1 - a) + (m - 1) * first + (n - 1) * second) / (m * n))


def detectable_auroc(
    n_positive: int, n_negative: int, *, power: float = 0.8, alpha: float = 0.05, n_tests: int = 1
) -> float:
    """The smallest AUROC above 0.5 that so few rows find, with a two-sided test of 0.5.

    The A with A - 0.5 = z(1 - alpha / 2 / n_tests) SE(0.5) + z(power) SE(A), of `hanley_mcneil_error`. What lies nearer
    to 0.5 is missed more often than not finding it would say: of few positives that nothing was found says little. It
    is on the safe side: of 10 positive rows or many tests the power there is up to 0.86 where 0.8 was asked for.

    Args:
        n_positive: rows of class 1; where rows come in groups, groups, which is on the safe side.
        n_negative: rows of class 0.
        power: share of the samples in which it is found.
        alpha: of the test.
        n_tests: how many tests share alpha (Bonferroni).

    Returns:
        The AUROC; NaN where not even 1 would be found.

    Raises:
        InputError: a number out of range.

    Example:
        >>> round(detectable_auroc(20, 200), 2)
        0.68
    """
    power, alpha = (
        between(value, name, 0, 1, with_low=False, with_high=False)
        for value, name in ((power, "power"), (alpha, "alpha"))
    )
    z = float(norm.isf(alpha / 2 / whole(n_tests, "n_tests", least=1)))
    reach = z * hanley_mcneil_error(0.5, n_positive, n_negative)

    def surplus(a: float) -> float:
        return a - 0.5 - reach - float(norm.ppf(power)) * hanley_mcneil_error(a, n_positive, n_negative)

    if surplus(1.0) <= 0:
        return math.nan
    lowest = 0.5 if surplus(0.5) < 0 else 0.0
    return float(brentq(surplus, lowest, 1.0))
