"""Shares with their intervals: of right answers, of two kinds of images told apart, of means over several subjects."""

__all__ = ["balanced_accuracy", "balanced_interval", "mean_interval", "p_of_telling_apart", "wilson"]

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from statsmodels.stats.proportion import proportion_confint

from mammosae_plugin.arguments import numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import interval

_RESAMPLES = 2000
_ROUNDING = 1e-9


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share: (low, high); NaN twice of none.

    Args:
        successes: how many of n. A mean of n shares times n gives an interval that is too wide, if anything.
        n: how many.
        level: of confidence.
    """
    if n == 0:
        return float("nan"), float("nan")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return max(0.0, float(low)), max(min(1.0, float(high)), successes / n)  # rounding leaves 1 below itself


def balanced_accuracy(found: int, n_firing: int, passed: int, n_other: int) -> float:
    """The mean of the shares of firing images that were found, and of others that were passed over; chance is 0.5."""
    return (found / n_firing + passed / n_other) / 2


def balanced_interval(found: int, n_firing: int, passed: int, n_other: int) -> tuple[float, float]:
    """Its 95 % interval from Wilson's of both shares, where every image is of another patient.

    The distances of both ends to both shares are added in squares: Newcombe, "Interval estimation for the difference
    between independent proportions", Statistics in Medicine 17 (1998), 873-890, method 10, for a sum.
    """
    shares = np.array([found / n_firing, passed / n_other])
    ends = np.array([wilson(found, n_firing), wilson(passed, n_other)])
    low, high = shares.sum() + np.array([-1, 1]) * np.linalg.norm(ends - shares[:, None], axis=0)
    return max(0.0, float(low) / 2), min(1.0, float(high) / 2)


def p_of_telling_apart(n_yes: int, n_no: int, n_failed: int, n_firing: int, score: float) -> float:
    """The share of all ways to choose which images fire in which the same answers have as high a balanced accuracy.

    Exact, for answers that were given without knowing which images fire. An image without an answer counts as wrong
    whichever it is.

    Args:
        n_yes: images of which the answer was that they fire.
        n_no: images of which it was that they do not.
        n_failed: images without an answer.
        n_firing: how many of all these fire; the rest does not.
        score: the balanced accuracy.
    """
    n_other = n_yes + n_no + n_failed - n_firing
    found = np.arange(n_yes + 1)[:, None]
    missed = np.arange(n_no + 1)
    rest = n_firing - found - missed
    log_ways = _log_choose(n_yes, found) + _log_choose(n_no, missed) + _log_choose(n_failed, rest)
    reached = (found / n_firing + (n_no - missed) / n_other) / 2 >= score - _ROUNDING
    ways = np.exp(log_ways - _log_choose(n_yes + n_no + n_failed, np.array(n_firing)))
    return min(1.0, float(ways[reached].sum()))


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    possible = (k >= 0) & (k <= n)
    inside = np.clip(k, 0, n)
    logs = gammaln(n + 1) - gammaln(inside + 1) - gammaln(n - inside + 1)
    return np.where(possible, logs, -np.inf)


def mean_interval(shares: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean of shares (n,) over n subjects, by resampling subjects.

    Where all are equal, so that no resample differs, it is Wilson's with n; NaN twice of none.

    Args:
        shares: from 0 to 1; for differences of shares, -1 to 1, resampling alone is used.
        seed: of the resamples.

    Raises:
        InputError: not (n,), or missing values.
    """
    values = numbers(shares, "shares")
    if values.ndim != 1 or np.isnan(values).any():
        raise InputError(f"shares have shape {values.shape}: expected (n,), without missing values")
    if len(values) == 0:
        return float("nan"), float("nan")
    if np.ptp(values) == 0 and 0 <= values[0] <= 1:
        return wilson(float(values.sum()), len(values))
    generator = np.random.default_rng(whole(seed, "seed", least=0))
    return interval(values[generator.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1))
