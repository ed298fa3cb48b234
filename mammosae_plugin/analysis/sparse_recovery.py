"""How few latents recover what a probe on the dense layer tells (SAIL, arXiv 2603.23794, section on recovery)."""

__all__ = ["LEAST_DENSE", "recovery_thresholds"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mammosae_plugin.arguments import entries, flag, numbers
from mammosae_plugin.errors import InputError

LEAST_DENSE = 0.55
"""AUROC of the dense probe up to which there is too little above chance to be recovered."""
_ROUNDING = 1e-12  # of a share; an AUROC of 0.7 has half of what one of 0.9 has above chance


def recovery_thresholds(
    n_features: ArrayLike,
    aucs: ArrayLike,
    dense_auc: float,
    *,
    thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
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
    wanted = numbers(entries(thresholds, "thresholds"), "thresholds")
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
