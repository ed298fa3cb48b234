"""From scores of terms beside what chance gives to names: the best term of each latent, or none."""

__all__ = ["best_terms", "family_p", "Scored"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.interpretation.names import COLUMNS, LatentNames
from mammosae_plugin.interpretation.terms import Terms

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Scored:
    """Scores of T terms for D latents.

    Attributes:
        score: (D, T).
        chance: (D, T) the score's mean by chance.
        z: (D, T) how many standard deviations of chance lie between; NaN of a latent that was not scored.
        p: (D, T) the share of chance in which any term lies as far above its own mean: it holds for all terms together.
        n: (D,) images that were looked at.
        unscored: (D,) why a latent was not scored; else empty.
    """

    score: NDArray[np.float64]
    chance: NDArray[np.float64]
    z: NDArray[np.float64]
    p: NDArray[np.float64]
    n: NDArray[np.int64]
    unscored: NDArray[Any]


def family_p(z: NDArray[np.float64], highest: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of draws, with this one as one of them, whose highest term (B,) reaches z (m, T)."""
    draws = np.sort(highest)
    reached = len(draws) - np.searchsorted(draws, z - _ROUNDING * np.abs(z))
    shares: NDArray[np.float64] = (1 + reached) / (1 + len(draws))
    return shares


def best_terms(
    method: str,
    scored: Scored,
    terms: Terms,
    *,
    min_excess: float,
    alpha: float,
    top_k: int,
    unit: str,
    about: dict[str, Any],
) -> LatentNames:
    """Names from scores; `low` and `high` are left NaN.

    Args:
        method: how they were named.
        scored: the scores.
        terms: what the T terms are.
        min_excess: what a score must lie above chance for a name.
        alpha: false discovery rate.
        top_k: how many candidates are listed.
        unit: of the score, for reasons.
        about: what was asked.
    """
    names = np.array(terms.names, dtype=object)
    known = scored.unscored == ""
    order = np.argsort(-np.where(known[:, None], scored.z, -np.inf), axis=1, kind="stable")[:, :top_k]
    at = np.arange(len(order))
    best = order[:, 0]
    score, chance = scored.score[at, best], scored.chance[at, best]
    p = np.where(known, scored.p[at, best], np.nan)
    q = benjamini_hochberg(p)
    is_distractor = np.isin(best, range(len(terms.terms), len(names)))
    reasons: list[str] = []
    for latent in at:
        nearest = f"nearest is {names[best[latent]]} with {score[latent]:.2f}{unit}, by chance {chance[latent]:.2f}"
        if not known[latent]:
            reasons.append(str(scored.unscored[latent]))
        elif not q[latent] <= alpha:
            reasons.append(f"nothing stands out; {nearest} (q {q[latent]:.2g})")
        elif score[latent] - chance[latent] < min_excess:
            reasons.append(f"nothing stands out enough; {nearest}, an excess below {min_excess:g}")
        elif is_distractor[latent]:
            reasons.append(f"a distractor fits best; {nearest}")
        else:
            reasons.append("")
    abstained = np.array([reason != "" for reason in reasons], dtype=bool)
    latents = pd.DataFrame(
        {
            "latent": at,
            "method": method,
            "name": np.where(abstained, "", names[best]),
            "score": np.where(known, score, np.nan),
            "low": np.nan,
            "high": np.nan,
            "chance": np.where(known, chance, np.nan),
            "p": p,
            "q": q,
            "n": scored.n,
            "abstained": abstained,
            "reason": reasons,
        }
    )[list(COLUMNS)]
    shown = order[known]
    rows = np.flatnonzero(known)[:, None]
    candidates = pd.DataFrame(
        {
            "latent": np.repeat(rows, shown.shape[1]),
            "rank": np.tile(np.arange(1, shown.shape[1] + 1), len(rows)),
            "name": names[shown.ravel()],
            "score": scored.score[rows, shown].ravel(),
            "chance": scored.chance[rows, shown].ravel(),
            "p": scored.p[rows, shown].ravel(),
            "q": np.where(np.arange(shown.shape[1]) == 0, q[known][:, None], np.nan).ravel(),
        }
    )
    told = {
        "alpha": alpha,
        "min_excess": min_excess,
        "n_terms": len(terms.terms),
        "n_distractors": len(terms.distractors),
        "n_best_is_distractor": int((is_distractor & known & (np.nan_to_num(q, nan=1.0) <= alpha)).sum()),
        "n_tests": int(known.sum()),
    }
    return LatentNames(method, latents, candidates, {**about, **told})
