"""AUROCs of many scores of the same rows at once, with DeLong's errors, those of clustered rows, and resamples."""

__all__ = ["AurocColumns", "bootstrap_aurocs", "delong_columns"]

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import norm, rankdata

from mammosae_plugin.arguments import as_array, between, class_labels, numbers
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import checked_multiplicities, separation_bound, settled_columns
from mammosae_plugin.progress import progress

_COLUMNS_PER_BLOCK = 64  # of 4,000 rows: 2 MB, about the size of a cache
_RESAMPLES_PER_BLOCK = 128
_ROUNDING = 1e-12  # of a mean of shares


@dataclass(frozen=True)
class AurocColumns:
    """AUROCs of m scores, (m,) float64 each.

    Attributes:
        auc: The values; 0.5 where a score is the same in every row.
        standard_error: DeLong's, or of clustered rows Obuchowski's; NaN with one row (group) in a class.
        low: Lower end of the 95 % interval, auc ± 1.96 standard errors cut to [0, 1]; at an AUROC of 1 or 0 it is that
            of `separation_bound` for as many rows (groups).
        high: Upper end.
        p_value: Two-sided, of an AUROC of 0.5 by the standard normal, in units of that error or of the one that labels
            at random have, whichever is larger (`delong_columns`); where the classes are separated without fault, and
            no group has both, 2 / C(m + n, m), the share of orders of m and n rows (groups) that do so; NaN where the
            error is unknown.
    """

    auc: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p_value: NDArray[np.float64]

    def to_frame(self) -> pd.DataFrame:
        """One row per score."""
        return pd.DataFrame(vars(self))


def delong_columns(
    labels: ArrayLike, scores: Any, groups: ArrayLike | None = None, *, level: float = 0.95
) -> AurocColumns:
    """`delong` of every column, and where rows come in groups, with what rows of one group share.

    With V10 of a positive row the share of negative rows below it, V01 of a negative one the share of positive rows
    above it, m positive and n negative rows, the variance of the AUROC A is var(V10) / m + var(V01) / n (DeLong et al.,
    Biometrics 44, 1988). Of groups such as patients the sums of V10 - A and V01 - A over a group take the rows' place,
    and their product counts where a group has rows of both classes (Obuchowski, Biometrics 53, 1997); with one row in
    each group the two are the same.

    That error vanishes towards an AUROC of 1 or 0, so that by chance some of many scores with few positive rows would
    look sure. Labels dealt out at random give the variance sum((r - mean r)^2) / (m n N (N - 1)) of N ranks r, ties
    averaged (that of Mann and Whitney's U), which is times, where rows come in groups and it is above 1, the sum over
    groups of squared sums of (label - m / N)(r - mean r) over the sum of squares.

    Args:
        labels: (n,) 0 or 1.
        scores: (n, m) array or scipy.sparse, higher for class 1. Columns count as the activations of a float32
            network: values of a column that differ by no more than its rounding tie.
        groups: (n,) which rows belong together, such as the patient; None: every row is by itself.
        level: of the interval.

    Raises:
        InputError: labels other than 0 and 1, a class without a row, scores that are not (n, m) and finite, or groups
            that are not (n,).

    Example:
        >>> delong_columns([0, 0, 1, 1], [[0.1], [0.4], [0.35], [0.8]]).auc.tolist()
        [0.75]
    """
    positive = _classes(labels)
    level = between(level, "the interval's level", 0, 1, with_low=False, with_high=False)
    columns = _as_columns(scores, len(positive))
    of_row = np.arange(len(positive)) if groups is None else _numbered(groups, len(positive))
    m, n = int(positive.sum()), int((~positive).sum())
    n_groups = int(of_row.max()) + 1
    sums = sparse.csr_array((np.ones(len(of_row)), (of_row, np.arange(len(of_row)))), shape=(n_groups, len(of_row)))
    with_positive, with_negative = (len(np.unique(of_row[own])) for own in (positive, ~positive))
    aucs, variances, by_chance = [], [], []
    for block in _blocks(columns):
        ranks, own = rankdata(block, axis=0), rankdata(block[positive], axis=0)
        share = np.zeros_like(block)
        share[positive] = (ranks[positive] - own) / n
        share[~positive] = 1 - (ranks[~positive] - rankdata(block[~positive], axis=0)) / m
        auc = share[positive].mean(axis=0)
        away = share - auc
        with np.errstate(invalid="ignore", divide="ignore"):
            above = sums[:, positive] @ away[positive] / m
            below = sums[:, ~positive] @ away[~positive] / n
            variance = _spread(above, with_positive) + _spread(below, with_negative)
            if n_groups > 1:
                variance = variance + 2 * n_groups / (n_groups - 1) * (above * below).sum(axis=0)
        aucs.append(auc)
        variances.append(variance)
        by_chance.append(_chance_variance(ranks - ranks.mean(axis=0), positive, sums))
    auc, variance, chance = (np.concatenate(one) if one else np.zeros(0) for one in (aucs, variances, by_chance))
    # A negative one is rounding, or of groups that hold both classes and outweigh everything: then it is not known.
    error = np.sqrt(np.where(variance >= -1e-12, np.maximum(variance, 0), np.nan))
    reach = float(norm.ppf((1 + level) / 2)) * error
    low, high = np.maximum(auc - reach, 0), np.minimum(auc + reach, 1)
    larger = np.maximum(error, np.sqrt(chance))
    p = 2 * norm.sf(np.divide(np.abs(auc - 0.5), larger, out=np.full_like(auc, np.nan), where=larger > _ROUNDING))
    p[(np.abs(auc - 0.5) < _ROUNDING) & (error < _ROUNDING)] = 1.0
    bound = separation_bound(with_positive, with_negative, level)
    perfect, inverted = auc > 1 - _ROUNDING, auc < _ROUNDING
    auc[perfect], auc[inverted] = 1, 0
    low[perfect], high[perfect], low[inverted], high[inverted] = bound, 1, 0, 1 - bound
    if with_positive + with_negative == n_groups:
        p[perfect | inverted] = min(1.0, 2 / comb(n_groups, with_positive))
    return AurocColumns(auc, error, low, high, p)


def _chance_variance(away: NDArray[np.float64], positive: NDArray[np.bool_], sums: Any) -> NDArray[np.float64]:
    """The variance of the AUROC under labels at random, of ranks less their mean (n, m)."""
    n, m = len(positive), int(positive.sum())
    products = (positive - m / n)[:, None] * away
    alone, together = np.square(products).sum(axis=0), np.square(sums @ products).sum(axis=0)
    shared = np.divide(together, alone, out=np.ones_like(alone), where=alone > 0)
    found: NDArray[np.float64] = np.square(away).sum(axis=0) / (m * (n - m) * n * (n - 1)) * np.maximum(shared, 1)
    return found


def _spread(of_groups: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The variance of a sum over n groups; NaN of a single one."""
    if n < 2:
        return np.full(of_groups.shape[1], np.nan)
    found: NDArray[np.float64] = np.square(of_groups).sum(axis=0) * n / (n - 1)
    return found


def bootstrap_aurocs(labels: ArrayLike, scores: Any, multiplicities: ArrayLike) -> NDArray[np.float64]:
    """The AUROC of every column in many resamples: each column is sorted once, for all of them.

    Equal to `bootstrap_metrics`, which takes one score at a time and gives more than the AUROC.

    Args:
        labels: (n,) 0 or 1.
        scores: (n, m), as for `delong_columns`.
        multiplicities: (n_bootstrap, n), as `patient_bootstrap` gives them.

    Returns:
        (n_bootstrap, m) float64, NaN in resamples that lack a class.

    Raises:
        InputError: arrays that do not fit, or as `delong_columns`.
    """
    positive = _classes(labels)
    columns = _as_columns(scores, len(positive))
    counts = checked_multiplicities(multiplicities, len(positive))
    found = np.empty((len(counts), columns.shape[1]))
    parts = [slice(start, start + _RESAMPLES_PER_BLOCK) for start in range(0, len(counts), _RESAMPLES_PER_BLOCK)]
    weights = [np.ascontiguousarray(counts[part].T, dtype=np.float64) for part in parts]
    negatives = [np.where(positive[:, None], 0.0, one) for one in weights]
    each = (column for block in _blocks(columns) for column in block.T)
    n: int = columns.shape[1]
    bar = progress(each, total=n, description="resamples of AUROCs", unit="latent", delay=2, leave=False)
    for at, column in enumerate(bar):
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
        places = np.flatnonzero(positive[order])
        tie = np.searchsorted(starts, places, side="right") - 1
        first, last = starts[tie], np.append(starts[1:], len(ordered))[tie]
        cuts = np.unique(np.concatenate([[0], first, last, [len(ordered)]]))
        pieces = sparse.csr_array(
            (np.ones(len(ordered)), order, cuts), shape=(len(cuts) - 1, len(ordered))
        )  # what lies between two cuts, summed without moving a weight
        to_first, to_last = np.searchsorted(cuts, first), np.searchsorted(cuts, last)
        for part, weight, negative in zip(parts, weights, negatives, strict=True):
            below = np.zeros((len(cuts), weight.shape[1]))
            np.cumsum(pieces @ negative, axis=0, out=below[1:])
            own = weight[order[places]]
            beaten = (own * (below[to_first] + below[to_last])).sum(axis=0) / 2
            pairs = own.sum(axis=0) * below[-1]
            found[part, at] = np.divide(beaten, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return found


def _classes(labels: ArrayLike) -> NDArray[np.bool_]:
    positive = class_labels(labels, n_class=2) == 1
    if positive.all() or not positive.any():
        raise InputError(
            f"{int(positive.sum())} rows are of class 1 and {int((~positive).sum())} of class 0: an AUROC needs a row "
            "of each"
        )
    return np.asarray(positive)


def _as_columns(scores: Any, n_rows: int) -> Any:
    """Scores as an array, or as sparse columns."""
    found: Any = scores.tocsc().astype(np.float64) if hasattr(scores, "tocsc") else numbers(scores, "scores")
    if found.ndim != 2 or found.shape[0] != n_rows:
        raise InputError(f"scores have shape {found.shape}: expected ({n_rows}, m), a row for each label")
    if broken := int((~np.isfinite(found.data if hasattr(found, "tocsc") else found)).sum()):
        raise InputError(f"scores: {broken} are missing or infinite: leave their rows out")
    return found


def _blocks(columns: Any) -> Iterator[NDArray[np.float64]]:
    """Some columns at a time, dense and settled."""
    for start in range(0, columns.shape[1], _COLUMNS_PER_BLOCK):
        block = columns[:, start : start + _COLUMNS_PER_BLOCK]
        yield settled_columns(block.toarray() if hasattr(block, "toarray") else block)


def _numbered(groups: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    found = as_array(groups, "groups")
    if found.shape != (n_rows,) or pd.isna(found).any():
        raise InputError(f"groups have shape {found.shape}: expected ({n_rows},), the group of every row, none missing")
    return np.asarray(pd.factorize(found)[0], dtype=np.int64)
