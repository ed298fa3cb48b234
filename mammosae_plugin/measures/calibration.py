"""Whether a classifier's probabilities are what happens: slope, expected error, Brier score."""

__all__ = ["Calibration", "calibration"]

import warnings
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from statsmodels.tools.sm_exceptions import PerfectSeparationError

from mammosae_plugin.arguments import class_labels, numbers, whole
from mammosae_plugin.errors import InputError

_UNKNOWN = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happens.

    Attributes:
        slope: of the label on the logit, by logistic regression with an intercept (Cox, 1958): 1 where logits are as
            large as they should be, below where they are too large; NaN where a threshold tells the classes apart.
        slope_interval: 95 %, with errors clustered by group; NaN with fewer than 10 groups.
        excess: mean probability less the share that is positive.
        ece: expected calibration error: over bins of equally many rows, by rising probability, the mean difference in
            amount of mean probability and share, weighted by rows. It is above 0 by chance alone where rows are few.
        brier: mean squared difference of probability and label.
    """

    slope: float
    slope_interval: tuple[float, float]
    excess: float
    ece: float
    brier: float


def calibration(
    labels: ArrayLike, logits: ArrayLike, groups: ArrayLike | None = None, *, n_bins: int = 10
) -> Calibration:
    """Calibration of a binary classifier.

    Args:
        labels: (n,) 0 and 1.
        logits: (n,) log odds.
        groups: (n,) what belongs together, such as patients; every row by itself where not given.
        n_bins: bins of the expected calibration error.

    Raises:
        InputError: shapes that do not fit, no row, or logits that are not finite.
    """
    found, scores = class_labels(labels, n_class=2), numbers(logits, "logits")
    n_bins = whole(n_bins, "n_bins", least=1)
    if scores.shape != found.shape or not len(scores) or not np.isfinite(scores).all():
        raise InputError(
            f"logits {scores.shape} and labels {found.shape} do not fit: expected (n,) finite numbers each"
        )
    of_row = (
        np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    )
    if of_row.shape != found.shape:
        raise InputError(f"{len(of_row)} rows have a group, but {len(found)} a label: give the group of every row")
    probability = expit(scores)
    bins = np.array_split(np.argsort(scores, kind="stable"), min(n_bins, len(scores)))
    ece = sum(len(rows) * abs(probability[rows].mean() - found[rows].mean()) for rows in bins) / len(scores)
    slope, interval = _slope(found, scores, of_row)
    return Calibration(
        slope,
        interval,
        excess=float(probability.mean() - found.mean()),
        ece=float(ece),
        brier=float(np.square(probability - found).mean()),
    )


def _slope(
    labels: NDArray[np.int64], logits: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, tuple[float, float]]:
    positive, negative = logits[labels == 1], logits[labels == 0]
    spread = float(logits.std())
    if not (len(positive) and len(negative) and spread > 0):
        return float("nan"), _UNKNOWN
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return float("nan"), _UNKNOWN
    design = sm.add_constant((logits - logits.mean()) / spread)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: the figures below are not finite then
        try:
            fitted = sm.Logit(labels, design).fit(disp=0, cov_type="cluster", cov_kwds={"groups": groups})
        except (PerfectSeparationError, np.linalg.LinAlgError):
            return float("nan"), _UNKNOWN
    slope, error = float(fitted.params[1]) / spread, float(fitted.bse[1]) / spread
    if not fitted.mle_retvals["converged"] or not np.isfinite([slope, error]).all():
        return float("nan"), _UNKNOWN
    few = len(np.unique(groups)) < 10
    return slope, _UNKNOWN if few else (slope - 1.959964 * error, slope + 1.959964 * error)
