"""What an SAE's latents are as a set: how often they fire, how many say the same, how alike their images are.

Redundancy and clarity are those of SemanticLens (Dreyer et al., 2025, arXiv 2501.05398), each beside chance.
"""

__all__ = [
    "clarity", "clarity_of", "code_redundancy_of", "decoder_redundancy_of", "firing_density", "firing_density_of",
    "FiringDensity", "redundancy", "Redundancy",
]  # fmt: skip

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.probes import none_scored
from mammosae_plugin.analysis.table_arrays import image_statistic, split_rows
from mammosae_plugin.arguments import between, checked_arguments, numbers, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.permutations import in_random_order
from mammosae_plugin.measures.reconstruction import density_histogram
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_CLARITY = ("clarity", "clarity_low", "clarity_high", "null", "p", "q")
_BLOCK = 512  # latents that are held against all others at once: 512 x 16,384 float64 are 67 MB


# Redundancy


@dataclass(frozen=True)
class Redundancy:
    """How like its nearest other latent each latent is.

    Attributes:
        latents: one row per latent that has a direction, or varies: latent, nearest, likeness (cosine or correlation);
            of codes also likeness_low and likeness_high, the 95 % interval over groups with the pair held.
        threshold: the likeness above which a latent counts as redundant.
        chance_mean: `mean` by chance (`decoder_redundancy_of` and `code_redundancy_of` say which); NaN without draws.
        chance_share: `share` likewise.
    """

    latents: pd.DataFrame
    threshold: float
    chance_mean: float
    chance_share: float

    @property
    def mean(self) -> float:
        """Mean likeness to the nearest other latent, which is SemanticLens's redundancy; NaN of fewer than two."""
        return float(self.latents["likeness"].mean())

    @property
    def share(self) -> float:
        """Share of the latents whose nearest is more alike than the threshold; NaN of fewer than two."""
        return _share_above(self.latents["likeness"].to_numpy(), self.threshold)

    def to_frame(self) -> pd.DataFrame:
        """The latents."""
        return self.latents

    def __str__(self) -> str:
        return (
            f"{len(self.latents)} latents: nearest other {self.mean:.3f} (by chance {self.chance_mean:.3f}), "
            f"{self.share:.1%} above {self.threshold:g} (by chance {self.chance_share:.1%})"
        )


def _share_above(likeness: NDArray[np.float64], threshold: float) -> float:
    return float((likeness > threshold).mean()) if len(likeness) else float("nan")


def decoder_redundancy_of(decoder: ArrayLike, *, threshold: float = 0.9, n_draws: int = 1, seed: int = 0) -> Redundancy:
    """Cosine of each decoder row with its nearest other row.

    Chance: as many random directions with the same second moments as the rows (a decoder that lies in a few dimensions
    has near neighbours whatever it learnt).

    Args:
        decoder: (D, d), a latent's direction per row, of any length; rows of zeros are left out.
        threshold: the cosine above which a latent counts as redundant.
        n_draws: draws of random directions; each costs as much as the score.
        seed: of the draws.

    Returns:
        Likeness is the cosine. Memory is a block of 512 latents against all.

    Raises:
        InputError: no (D, d) array, or not finite.

    Example:
        >>> import numpy as np
        >>> found = decoder_redundancy_of(np.vstack([np.eye(4), np.eye(4)[:1] * 3]))
        >>> found.latents["nearest"].tolist()[::4], round(found.share, 3)
        ([4, 0], 0.4)
    """
    rows = numbers(decoder, "decoder")
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError(f"decoder has shape {rows.shape}: expected (D, d), finite, a latent's direction per row")
    threshold = between(threshold, "threshold", -1, 1)
    n_draws, seed = whole(n_draws, "n_draws", least=0), whole(seed, "seed", least=0)
    lengths = np.linalg.norm(rows, axis=1)
    kept = np.flatnonzero(lengths > 0)
    unit = (rows[kept] / lengths[kept, None]).astype(np.float32)
    nearest, likeness = _nearest_direction(unit)
    drawn = [
        _nearest_direction(alike_at_random(unit, seed=(seed, number)))[1]
        for number in range(n_draws if len(kept) > 1 else 0)
    ]
    return _redundancy(kept, nearest, likeness, drawn, threshold)


def alike_at_random(directions: NDArray[Any], *, seed: int | Sequence[int] = 0) -> NDArray[np.float32]:
    """As many random unit directions (n, d) with the second moments of these, whatever their rank."""
    rows = np.asarray(directions, dtype=np.float32)
    # A mixture of rows with normal weights has their second moments.
    mixed = np.linalg.qr(rows, mode="r") if len(rows) >= rows.shape[1] else rows
    drawn = np.random.default_rng(seed).standard_normal((len(rows), len(mixed))).astype(np.float32) @ mixed
    lengths = np.linalg.norm(drawn, axis=1, keepdims=True)
    return np.asarray(drawn / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _redundancy(
    kept: NDArray[np.int64],
    nearest: NDArray[np.int64],
    likeness: NDArray[np.float64],
    drawn: list[NDArray[np.float64]],
    threshold: float,
) -> Redundancy:
    some = len(kept) > 1
    columns = {"latent": kept, "nearest": kept[nearest], "likeness": likeness}
    frame = pd.DataFrame({name: column if some else column[:0] for name, column in columns.items()})
    return Redundancy(
        frame,
        threshold,
        chance_mean=float(np.mean(drawn)) if drawn else float("nan"),
        chance_share=_share_above(np.concatenate(drawn), threshold) if drawn else float("nan"),
    )


def _nearest_direction(unit: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    nearest, likeness = np.zeros(len(unit), dtype=np.int64), np.zeros(len(unit))
    for start in range(0, len(unit), _BLOCK):
        cosines = unit[start : start + _BLOCK] @ unit.T
        _take_nearest(cosines, start, nearest, likeness)
    return nearest, np.clip(likeness, -1, 1)


def _take_nearest(block: NDArray[Any], start: int, nearest: NDArray[np.int64], likeness: NDArray[np.float64]) -> None:
    """Keep each row's largest entry but its own; the rows are latents from `start` on."""
    rows = np.arange(len(block))
    block[rows, start + rows] = -np.inf
    nearest[start : start + len(block)] = block.argmax(axis=1)
    likeness[start : start + len(block)] = block.max(axis=1)


def code_redundancy_of(
    codes: Any,
    groups: ArrayLike,
    *,
    threshold: float = 0.9,
    n_draws: int = 1,
    n_bootstrap: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> Redundancy:
    """Pearson's correlation of each latent's codes with those of its nearest other latent.

    Chance: the same with the images of all other latents in another order, whole groups at a time.

    Args:
        codes: (N, D) array or scipy.sparse; latents that are the same in every image are left out.
        groups: (N,) which images belong together.
        threshold: the correlation above which a latent counts as redundant.
        n_draws: random orders for chance; each costs as much as the score.
        n_bootstrap: resamples of groups for the intervals; 0 gives NaN.
        min_patients: groups that an interval needs.
        seed: of orders and resamples.

    Returns:
        Likeness is the correlation. Memory is a block of 512 latents against all.

    Raises:
        InputError: arrays that do not fit, or fewer than 3 images.
    """
    found = as_codes(codes)
    of_row = as_groups(groups, found.shape[0])
    if found.shape[0] < 3:
        raise InputError(f"{found.shape[0]} images are too few for a correlation: give 3 or more")
    threshold, n_draws = between(threshold, "threshold", -1, 1), whole(n_draws, "n_draws", least=0)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    standard = Standard.of(found)
    nearest, likeness = _nearest_codes(standard, standard)
    generator = np.random.default_rng(seed)
    drawn = [
        _nearest_codes(standard, standard.reordered(in_random_order(of_row, generator)))[1]
        for _ in range(n_draws if len(standard.kept) > 1 else 0)
    ]
    result = _redundancy(standard.kept, nearest, likeness, drawn, threshold)
    low, high = np.full((2, len(result.latents)), np.nan)
    if n_bootstrap and len(result.latents) and len(np.unique(of_row)) >= min_patients:
        low, high = _correlation_intervals(standard.codes, nearest, patient_bootstrap(of_row, n_bootstrap, seed))
    result.latents["likeness_low"], result.latents["likeness_high"] = low, high
    return result


@dataclass(frozen=True)
class Standard:
    """Codes that vary, with what makes their sparse products correlations.

    Attributes:
        codes: (N, m), the latents that vary.
        kept: (m,) which they are.
        means: (m,) over images.
        spreads: (m,) the length of each column less its mean.
    """

    codes: sparse.csc_array
    kept: NDArray[np.int64]
    means: NDArray[np.float64]
    spreads: NDArray[np.float64]

    @classmethod
    def of(cls, codes: sparse.csc_array) -> "Standard":
        low, high = (np.asarray(extreme.todense()).ravel() for extreme in (codes.min(axis=0), codes.max(axis=0)))
        kept = np.flatnonzero(high > low)
        own = sparse.csc_array(codes[:, kept])
        means = np.asarray(own.mean(axis=0)).ravel()
        squares = np.asarray(own.multiply(own).sum(axis=0)).ravel()
        return cls(own, kept, means, np.sqrt(np.maximum(squares - own.shape[0] * means**2, 0)))

    def reordered(self, order: NDArray[np.int64]) -> "Standard":
        """With the images in another order (N,)."""
        return Standard(sparse.csc_array(self.codes[order]), self.kept, self.means, self.spreads)

    def correlations(self, other: "Standard") -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Blocks of own latents, each with its first: Pearson's r (b, m of the other), 0 where one hardly varies."""
        for start in range(0, len(self.kept), _BLOCK):
            span = slice(start, start + _BLOCK)
            products = np.asarray((self.codes[:, span].T @ other.codes).todense())
            products -= self.codes.shape[0] * np.outer(self.means[span], other.means)
            scale = np.outer(self.spreads[span], other.spreads)
            yield start, np.clip(np.divide(products, scale, out=np.zeros_like(products), where=scale > 0), -1, 1)


def _nearest_codes(one: Standard, other: Standard) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    nearest, likeness = np.zeros(len(one.kept), dtype=np.int64), np.zeros(len(one.kept))
    for start, block in one.correlations(other):
        _take_nearest(block, start, nearest, likeness)
    return nearest, likeness


def _correlation_intervals(
    codes: sparse.csc_array, partner: NDArray[np.int64], multiplicities: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 2.5th and 97.5th percentile of the correlation of each column with its partner, over resamples (B, N)."""
    weights = multiplicities.astype(np.float64)
    totals = weights.sum(axis=1)[:, None]
    low, high = np.empty(codes.shape[1]), np.empty(codes.shape[1])
    for start in range(0, codes.shape[1], _BLOCK):
        own = sparse.csc_array(codes[:, start : start + _BLOCK])
        other = sparse.csc_array(codes[:, partner[start : start + _BLOCK]])
        sums, others, products, squares, other_squares = (
            np.asarray((one.T @ weights.T).T) / totals
            for one in (own, other, own.multiply(other), own.multiply(own), other.multiply(other))
        )
        variances = np.maximum(squares - sums**2, 0) * np.maximum(other_squares - others**2, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(variances > 0, (products - sums * others) / np.sqrt(variances), np.nan)
            known = ~np.isnan(found).all(axis=0)
        span = slice(start, start + own.shape[1])
        ends = np.full((2, own.shape[1]), np.nan)
        ends[:, known] = np.nanpercentile(found[:, known], [2.5, 97.5], axis=0)
        low[span], high[span] = np.clip(ends, -1, 1)
    return low, high


@checked_arguments
def redundancy(
    table: "LatentTable",
    *,
    split: str = "test",
    statistic: str = "mean",
    threshold: float = 0.9,
    n_draws: int = 1,
    n_bootstrap: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> Redundancy:
    """How many latents of a table say what another says, by their codes (`code_redundancy_of` has the formulas).

    Args:
        table: the latents table.
        split: the split whose images are looked at.
        statistic: "mean" or "max" over positions.
        threshold: as for `code_redundancy_of`.
        n_draws: as for `code_redundancy_of`.
        n_bootstrap: as for `code_redundancy_of`.
        min_patients: as for `code_redundancy_of`.
        seed: as for `code_redundancy_of`.

    Raises:
        InputError: an unknown split or statistic, or fewer than 3 images.
    """
    codes, groups = codes_of_split(table, split, statistic)
    return code_redundancy_of(
        codes,
        groups,
        threshold=threshold,
        n_draws=n_draws,
        n_bootstrap=n_bootstrap,
        min_patients=min_patients,
        seed=seed,
    )


def codes_of_split(table: "LatentTable", split: str, statistic: str) -> tuple[Any, NDArray[Any]]:
    """Codes (n, d_sae) of a split's images and the patient of each."""
    codes, rows = image_statistic(table, statistic), split_rows(table, split)
    return codes[rows], table.images["patient_id"].to_numpy(dtype=object)[rows]


# How often latents fire


@dataclass(frozen=True)
class FiringDensity:
    """How often latents fire.

    Attributes:
        latents: one row per latent: latent, n_images in which it fires, rate (share of the images), rate_low and
            rate_high (95 %, over groups), log10_rate (NaN where it never fires) and kind: "dead" (never), "dense" (more
            often than `dense_above`) or "".
        histogram: latents by log10 of their rate: `log10_edges`, `counts` between them and `never`, as a training's
            figures have it.
        n_images: images looked at, which is the window in which a latent counts as dead.
        dense_above: the rate above which a latent is dense.
        chance_rate: the rate of every latent if each image's firing latents were drawn at random.
        chance_dead_share: the share of the latents that no image would draw then.
    """

    latents: pd.DataFrame
    histogram: dict[str, Any]
    n_images: int
    dense_above: float
    chance_rate: float
    chance_dead_share: float

    @property
    def dead_share(self) -> float:
        """Share of the latents that never fire."""
        return float((self.latents["kind"] == "dead").mean())

    @property
    def dense_share(self) -> float:
        """Share of the latents that fire more often than `dense_above`."""
        return float((self.latents["kind"] == "dense").mean())

    def to_frame(self) -> pd.DataFrame:
        """The latents."""
        return self.latents

    def __str__(self) -> str:
        return (
            f"{len(self.latents)} latents over {self.n_images} images: {self.dead_share:.1%} never fire (drawn at "
            f"random {self.chance_dead_share:.1%}), {self.dense_share:.1%} in more "
            f"than {self.dense_above:.0%} of them"
        )


def firing_density_of(
    codes: Any,
    groups: ArrayLike,
    *,
    dense_above: float = 0.5,
    n_bootstrap: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> FiringDensity:
    """In how many images each latent fires (is not 0), and how many never or nearly always do.

    Args:
        codes: (N, D) array or scipy.sparse.
        groups: (N,) which images belong together.
        dense_above: the rate above which a latent is dense.
        n_bootstrap: resamples of groups for the intervals; 0 gives NaN.
        min_patients: groups that an interval needs.
        seed: of the resamples.

    Raises:
        InputError: arrays that do not fit, no image or no latent.
    """
    found = as_codes(codes)
    n_images, n_latents = found.shape
    of_row = as_groups(groups, n_images)
    if not n_images or not n_latents:
        raise InputError(f"codes have shape {found.shape}: there is nothing that could fire")
    dense_above = between(dense_above, "dense_above", 0, 1)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    counts = np.diff(found.indptr).astype(np.int64)
    rate = counts / n_images
    low, high = np.full((2, n_latents), np.nan)
    if n_bootstrap and len(np.unique(of_row)) >= min_patients:
        weights = patient_bootstrap(of_row, n_bootstrap, seed).T.astype(np.float64)
        fires = sparse.csc_array((np.ones(found.nnz), found.indices, found.indptr), shape=found.shape)
        totals = weights.sum(axis=0)
        for start in range(0, n_latents, _BLOCK):
            rates = np.asarray(fires[:, start : start + _BLOCK].T @ weights) / totals
            low[start : start + _BLOCK], high[start : start + _BLOCK] = np.percentile(rates, [2.5, 97.5], axis=1)
        # What fires in none or all of the images does so in every resample, which tells nothing of others.
        certain = (counts == 0) | (counts == n_images)
        low[certain], high[certain] = np.nan, np.nan
    active = np.bincount(found.indices, minlength=n_images) / n_latents
    with np.errstate(divide="ignore"):
        logarithm = np.where(rate > 0, np.log10(rate), np.nan)
        never = float(np.exp(np.log1p(-active).sum()))
    frame = pd.DataFrame(
        {
            "latent": np.arange(n_latents),
            "n_images": counts,
            "rate": rate,
            "rate_low": low,
            "rate_high": high,
            "log10_rate": logarithm,
            "kind": np.where(counts == 0, "dead", np.where(rate > dense_above, "dense", "")),
        }
    )
    histogram = density_histogram(torch.from_numpy(rate))
    return FiringDensity(frame, histogram, n_images, dense_above, float(active.mean()), never)


@checked_arguments
def firing_density(
    table: "LatentTable",
    *,
    split: str = "test",
    dense_above: float = 0.5,
    n_bootstrap: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> FiringDensity:
    """In how many images of a split each latent of a table fires, at any position (`firing_density_of`).

    Args:
        table: the latents table.
        split: the split whose images are looked at.
        dense_above: as for `firing_density_of`.
        n_bootstrap: as for `firing_density_of`.
        min_patients: as for `firing_density_of`.
        seed: as for `firing_density_of`.

    Raises:
        InputError: an unknown split.
    """
    codes, groups = codes_of_split(table, split, "mean")
    return firing_density_of(
        codes, groups, dense_above=dense_above, n_bootstrap=n_bootstrap, min_patients=min_patients, seed=seed
    )


# Clarity


def clarity_of(
    codes: Any, embeddings: ArrayLike, groups: ArrayLike, *, n: int = 10, n_draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How alike the strongest images of every latent are: the mean cosine of all pairs (SemanticLens's clarity).

    With unit embeddings e_1 .. e_n it is (|sum e|^2 - n) / (n (n - 1)). Unlike `activation_similarity_of` it looks at
    the strongest images alone, one of each group, and does not weight them.

    Args:
        codes: (N, D) array or scipy.sparse; only values above 0 count.
        embeddings: (N, d), of any length above 0; of another network than the SAE's, or the score is circular.
        groups: (N,) which images belong together.
        n: how many images.
        n_draws: draws of n images of different groups, whose clarity is the null.
        seed: of the draws.

    Returns:
        One row per latent that fires in n groups or more: latent, n_groups, clarity (-1 / (n - 1) to 1), clarity_low
        and clarity_high (95 %, by leaving each group out in turn), null (mean of the draws), p (share of the draws,
        with this latent as one of them, whose clarity is as high), q (Benjamini and Hochberg) and reason, which is
        empty. Where no latent fires in n groups, one row of NaN for each but its n_groups, with that reason.

    Raises:
        InputError: arrays that do not fit, an embedding that is zero or not finite, fewer groups than n.

    Example:
        >>> import numpy as np
        >>> embeddings = np.vstack([np.eye(20), np.ones((20, 20))])
        >>> found = clarity_of(np.arange(40.0)[:, None], embeddings, np.arange(40), n=5)
        >>> found[["clarity", "null"]].round(1).to_numpy().tolist()
        [[1.0, 0.4]]
    """
    found = as_codes(codes)
    of_row = as_groups(groups, found.shape[0])
    vectors = numbers(embeddings, "embeddings")
    if vectors.ndim != 2 or len(vectors) != found.shape[0]:
        raise InputError(f"embeddings have shape {vectors.shape}: expected ({found.shape[0]}, d), one for each image")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InputError("an embedding is zero or not finite, so that it has no direction: leave that image out")
    unit = vectors / lengths
    n, n_draws, seed = whole(n, "n", least=3), whole(n_draws, "n_draws", least=1), whole(seed, "seed", least=0)
    n_all = int(of_row.max(initial=-1)) + 1
    if n_all < n:
        raise InputError(f"{n_all} groups are fewer than n = {n}: look at fewer images")
    top, n_groups = strongest_rows(found, of_row, n)
    scored = np.flatnonzero(n_groups >= n)
    if not len(scored):
        none = none_scored(len(n_groups), _CLARITY, f"it fires in fewer than {n} groups")
        return none.assign(n_groups=n_groups)[["latent", "n_groups", *_CLARITY, "reason"]]
    clear, error = _clarity(unit, top[scored])
    generator = np.random.default_rng(seed)
    order, counts = np.argsort(of_row, kind="stable"), np.bincount(of_row, minlength=n_all)
    starts = np.cumsum(counts) - counts
    chosen = np.stack([generator.choice(n_all, n, replace=False) for _ in range(n_draws)])
    draws, _ = _clarity(unit, order[starts[chosen] + generator.integers(0, counts[chosen])])
    p = (1 + n_draws - np.searchsorted(np.sort(draws), clear - 1e-12)) / (1 + n_draws)
    return pd.DataFrame(
        {
            "latent": scored,
            "n_groups": n_groups[scored],
            "clarity": clear,
            "clarity_low": clear - 1.96 * error,
            "clarity_high": np.minimum(clear + 1.96 * error, 1),
            "null": float(draws.mean()),
            "p": p,
            "q": benjamini_hochberg(p),
            "reason": "",
        }
    )


def _clarity(unit: NDArray[np.float64], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean cosine of the pairs of each set of rows (m, n), and its standard error by the jackknife."""
    clear, error = np.empty(len(rows)), np.empty(len(rows))
    n = rows.shape[1]
    for start in range(0, len(rows), _BLOCK):
        own = unit[rows[start : start + _BLOCK]]
        total = own.sum(axis=1)
        pairs = np.square(total).sum(axis=1) - n
        without = (pairs[:, None] - 2 * (np.einsum("bnd,bd->bn", own, total) - 1)) / ((n - 1) * (n - 2))
        span = slice(start, start + len(own))
        clear[span] = pairs / (n * (n - 1))
        error[span] = np.sqrt((n - 1) * without.var(axis=1))
    return clear, error


@checked_arguments
def clarity(
    table: "LatentTable",
    embeddings: Embeddings = None,
    *,
    split: str = "test",
    statistic: str = "max",
    n: int = 10,
    n_draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike the strongest images of every latent of a table are (`clarity_of` has the formula).

    Args:
        table: the latents table.
        embeddings: an array (n_images, d) in the order of `table.images`, an activation store or files of embeddings,
            best of another network; None takes the mean channels of the SAE's own layer, in which the likeness of a
            latent's images is half given.
        split: the split whose images are looked at.
        statistic: "max" or "mean" over positions.
        n: as for `clarity_of`.
        n_draws: as for `clarity_of`.
        seed: as for `clarity_of`.

    Returns:
        The frame of `clarity_of`.

    Raises:
        InputError: as `clarity_of`; an unknown split or statistic; no embeddings, of a table of rows.
    """
    codes, groups = codes_of_split(table, split, statistic)
    vectors = dense_rows(table, embeddings, split_rows(table, split)).whole()
    return clarity_of(codes, vectors, groups, n=n, n_draws=n_draws, seed=seed)
