"""Splitting: latents of a small SAE that a wider one has in several parts (Bricken et al., 2023)."""

__all__ = ["Splitting", "splitting", "splitting_of"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes, as_groups
from mammosae_plugin.analysis.dictionaries import Standard, codes_of_split
from mammosae_plugin.analysis.matching import shared_images
from mammosae_plugin.analysis.table_arrays import image_statistic
from mammosae_plugin.arguments import between, checked_arguments, one_of, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.permutations import in_random_order
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_MOST_PARTS = 20  # of a latent, the most alike, that are put together


@dataclass(frozen=True)
class Splitting:
    """What became of the latents of a small SAE in a wider one.

    Attributes:
        latents: one row per latent of the small SAE that varies: latent, nearest (the latent of the wide one that goes
            together with it most), correlation (with that one), n_parts, together (multiple correlation with its
            parts), coverage (share of the images where it fires in which a part does) with coverage_low and
            coverage_high (95 %, over groups), coverage_chance (share of all images in which a part fires) and fate:
            "kept" (correlation above `threshold`), else "split" (two parts or more, together above it), else "gone".
        parts: one row per part: latent, part (of the wide SAE), correlation, inside (share of the part's images in
            which the latent fires).
        n_wide: latents of the wide SAE that vary.
        threshold: the correlation from which a latent is the same, alone or put together.
        within: the least share of a part's images in which its latent fires.
        least: the correlation that a part must have with its latent: what 95 % of the latents of the wide SAE do not
            reach with any latent by chance.
        chance_split: the share of split latents with the images of the wide SAE in random order; NaN without draws.
        chance_kept: the share of kept ones likewise.
    """

    latents: pd.DataFrame
    parts: pd.DataFrame
    n_wide: int
    threshold: float
    within: float
    least: float
    chance_split: float
    chance_kept: float

    def share(self, fate: str) -> float:
        """The share of the small SAE's latents that are "kept", "split" or "gone"; NaN without latents."""
        one_of(fate, "fate", ("kept", "split", "gone"))
        return float((self.latents["fate"] == fate).mean())

    def to_frame(self) -> pd.DataFrame:
        """The latents."""
        return self.latents

    def __str__(self) -> str:
        return (
            f"{len(self.latents)} latents in {self.n_wide}: {self.share('kept'):.1%} kept (by chance "
            f"{self.chance_kept:.1%}), {self.share('split'):.1%} split (by chance {self.chance_split:.1%}), "
            f"{self.share('gone'):.1%} gone"
        )


def splitting_of(
    codes_small: Any,
    codes_wide: Any,
    groups: ArrayLike,
    *,
    threshold: float = 0.7,
    within: float = 0.8,
    n_draws: int = 3,
    n_bootstrap: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> Splitting:
    """Match each latent of a wide SAE to the one of a small SAE whose part it is: one to many.

    A wide SAE's latent belongs to the small one's latent with which its codes correlate most, if that one fires in
    nearly all of its images too (`within`) and the correlation is more than chance gives (`least`). The parts of a
    latent are then put together, by least squares, to see whether they are the latent. `replication_of` matches one to
    one, and sees of a split latent one part at the best.

    Args:
        codes_small: (N, D) array or scipy.sparse.
        codes_wide: (N, E) of the same images in the same order.
        groups: (N,) which images belong together.
        threshold: the correlation from which a latent is the same, alone or put together.
        within: the least share of a part's images in which its latent fires.
        n_draws: random orders of the wide SAE's images for chance; each costs as much as the matching.
        n_bootstrap: resamples of groups for the intervals of coverage; 0 gives NaN.
        min_patients: groups that an interval needs.
        seed: of orders and resamples.

    Returns:
        `Splitting`. Memory is a block of 512 latents against all. Without draws `least` is 0.

    Raises:
        InputError: arrays that do not fit, or fewer than 3 images.

    Example:
        >>> import numpy as np
        >>> kinds = np.arange(60) % 6
        >>> wide = np.eye(6)[kinds]
        >>> small = np.column_stack([wide[:, :3].sum(axis=1), wide[:, 3]])  # the first is three in the wide one
        >>> splitting_of(small, wide, np.arange(60)).latents["fate"].tolist()
        ['split', 'kept']
    """
    found = [as_codes(codes_small, "codes_small"), as_codes(codes_wide, "codes_wide")]
    n_images = found[0].shape[0]
    if found[1].shape[0] != n_images:
        raise InputError(f"codes are of {n_images} and {found[1].shape[0]} images: give those of shared images")
    if n_images < 3:
        raise InputError(f"{n_images} images are too few for a correlation: give 3 or more")
    of_row = as_groups(groups, n_images)
    threshold, within = between(threshold, "threshold", 0, 1), between(within, "within", 0, 1)
    n_draws = whole(n_draws, "n_draws", least=0)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    small, wide = (Standard.of(one) for one in found)
    generator = np.random.default_rng(seed)
    shuffled = [wide.reordered(in_random_order(of_row, generator)) for _ in range(n_draws)]
    drawn = [_Pairs.of(small, one) for one in shuffled]
    by_chance = [pairs.of_wide for pairs in drawn if len(pairs.of_wide)]
    least = float(np.quantile(np.concatenate(by_chance), 0.95)) if by_chance else 0.0
    pairs = _Pairs.of(small, wide)
    latents, parts, covered = _fates(small, wide, pairs, threshold, within, least)
    chance = [_fates(small, *one, threshold, within, least)[0]["fate"] for one in zip(shuffled, drawn, strict=True)]
    low, high = np.full((2, len(latents)), np.nan)
    if n_bootstrap and len(latents) and len(np.unique(of_row)) >= min_patients:
        weights = patient_bootstrap(of_row, n_bootstrap, seed).T.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.asarray(covered.T @ weights) / np.asarray(_fires(small.codes).T @ weights)
        some = np.flatnonzero((latents["n_parts"] > 0) & (latents["coverage"] < 1))
        if len(some):
            low[some], high[some] = np.nanpercentile(shares[some], [2.5, 97.5], axis=1)
    latents.insert(len(latents.columns) - 2, "coverage_low", low)
    latents.insert(len(latents.columns) - 2, "coverage_high", high)
    return Splitting(
        latents,
        parts,
        len(wide.kept),
        threshold,
        within,
        least,
        chance_split=float(np.mean([(fates == "split").mean() for fates in chance])) if chance else float("nan"),
        chance_kept=float(np.mean([(fates == "kept").mean() for fates in chance])) if chance else float("nan"),
    )


@dataclass(frozen=True)
class _Pairs:
    """Of each latent that varies the other SAE's that correlates most with it, by place, and how much."""

    small_of: NDArray[np.int64]
    of_wide: NDArray[np.float64]
    wide_of: NDArray[np.int64]
    of_small: NDArray[np.float64]

    @classmethod
    def of(cls, small: Standard, wide: Standard) -> "_Pairs":
        n_small, n_wide = len(small.kept), len(wide.kept)
        small_of, of_wide = np.zeros(n_wide, dtype=np.int64), np.zeros(n_wide if n_small else 0)
        wide_of, of_small = np.zeros(n_small, dtype=np.int64), np.full(n_small, -np.inf)
        for start, block in wide.correlations(small) if n_small else ():
            span = slice(start, start + len(block))
            small_of[span], of_wide[span] = block.argmax(axis=1), block.max(axis=1)
            largest, place = block.max(axis=0), block.argmax(axis=0)
            better = largest > of_small
            of_small[better], wide_of[better] = largest[better], start + place[better]
        return cls(small_of, of_wide, wide_of, of_small)


def _fires(codes: sparse.csc_array) -> sparse.csc_array:
    return sparse.csc_array((np.ones(codes.nnz), codes.indices, codes.indptr), shape=codes.shape)


def _fates(
    small: Standard, wide: Standard, pairs: _Pairs, threshold: float, within: float, least: float
) -> tuple[pd.DataFrame, pd.DataFrame, sparse.csc_array]:
    """`latents` without its intervals, `parts`, and (N, m) where a latent fires and a part does."""
    n_images, n_small = small.codes.shape
    fires, wide_fires = _fires(small.codes), _fires(wide.codes)
    if n_small and len(wide.kept):
        together = wide_fires.multiply(fires[:, pairs.small_of])
        inside = np.asarray(together.sum(axis=0)).ravel() / np.diff(wide_fires.indptr)
        part = np.flatnonzero((inside >= within) & (pairs.of_wide > least))
    else:
        inside, part = np.zeros(0), np.zeros(0, dtype=np.int64)
    of = pairs.small_of[part]
    belongs = sparse.csc_array((np.ones(len(part)), (part, of)), shape=(len(wide.kept), n_small))
    any_part = sparse.csc_array(wide_fires @ belongs)
    any_part.data[:] = 1
    covered = sparse.csc_array(any_part.multiply(fires))
    n_parts = np.bincount(of, minlength=n_small)
    coverage = np.asarray(covered.sum(axis=0)).ravel() / np.maximum(np.diff(fires.indptr), 1)
    joint = np.full(n_small, np.nan)
    order = part[np.argsort(-pairs.of_wide[part], kind="stable")]
    for latent in np.flatnonzero(n_parts > 0).tolist():
        joint[latent] = _multiple_correlation(small, latent, wide, order[pairs.small_of[order] == latent][:_MOST_PARTS])
    kept = pairs.of_small >= threshold
    split = ~kept & (n_parts >= 2) & (np.nan_to_num(joint) >= threshold)
    known = np.isfinite(pairs.of_small)
    latents = pd.DataFrame(
        {
            "latent": small.kept,
            "nearest": pd.array(np.where(known, _places(wide.kept, pairs.wide_of), -1), dtype="Int64"),
            "correlation": np.where(known, pairs.of_small, np.nan),
            "n_parts": n_parts,
            "together": joint,
            "coverage": np.where(n_parts > 0, coverage, np.nan),
            "coverage_chance": np.where(n_parts > 0, np.asarray(any_part.sum(axis=0)).ravel() / n_images, np.nan),
            "fate": np.where(kept, "kept", np.where(split, "split", "gone")),
        }
    )
    latents.loc[~known, "nearest"] = pd.NA
    of_latent = {"latent": small.kept[of], "part": wide.kept[part]}
    parts = pd.DataFrame({**of_latent, "correlation": pairs.of_wide[part], "inside": inside[part]})
    parts = parts.sort_values(["latent", "correlation", "part"], ascending=[True, False, True], ignore_index=True)
    return latents, parts, covered


def _places(kept: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    return kept[places] if len(kept) else np.full(len(places), -1)


def _multiple_correlation(one: Standard, latent: int, other: Standard, parts: NDArray[np.int64]) -> float:
    """Of a latent's codes with the best linear combination of its parts."""
    own, theirs = one.codes[:, [latent]], other.codes[:, parts]
    n_images = own.shape[0]
    means = other.means[parts]
    moments = np.asarray((theirs.T @ theirs).todense()) - n_images * np.outer(means, means)
    shared = np.asarray((theirs.T @ own).todense()).ravel() - n_images * means * one.means[latent]
    explained = shared @ np.linalg.pinv(moments, hermitian=True) @ shared
    return float(np.sqrt(np.clip(explained / one.spreads[latent] ** 2, 0, 1)))


@checked_arguments
def splitting(
    table: "LatentTable",
    wide: "LatentTable | None" = None,
    *,
    level: int | None = None,
    split: str = "test",
    statistic: str = "mean",
    threshold: float = 0.7,
    within: float = 0.8,
    n_draws: int = 3,
    n_bootstrap: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> Splitting:
    """Which latents of a table a wider SAE has in parts, or those that the next level of a nested SAE adds.

    Args:
        table: the latents table of the small SAE, or of a nested one.
        wide: that of a wider SAE of the same images, or some of them; images are matched by their ids. None looks at
            the levels of the nested SAE itself: the latents of a level, and as the wide SAE those that the next adds.
        level: of a nested SAE the number of latents of the level; None takes the first. With `wide`, the small SAE is
            this level of `table`; None takes all of it.
        split: the split whose images are looked at.
        statistic: "mean" or "max" over positions.
        threshold: as for `splitting_of`.
        within: as for `splitting_of`.
        n_draws: as for `splitting_of`.
        n_bootstrap: as for `splitting_of`.
        min_patients: as for `splitting_of`.
        seed: as for `splitting_of`.

    Returns:
        `Splitting`, latents of both by their numbers in the tables.

    Raises:
        InputError: no levels, an unknown level, split or statistic, or tables that share fewer than 3 images.
    """
    if level is not None and level not in table.levels:
        raise InputError(f"{table.folder} has no level of {level} latents; it has {', '.join(map(str, table.levels))}")
    added = 0
    if wide is None:
        place = 0 if level is None else table.levels.index(level)
        if place + 1 >= len(table.levels):
            raise InputError(
                f"{table.folder} has no level above {table.levels[-1]} latents to look for parts in: give the table of "
                "a wider SAE, or a lower level of a nested one"
            )
        codes, groups = codes_of_split(table, split, statistic)
        added, stop = table.levels[place], table.levels[place + 1]
        small, other = codes[:, :added], codes[:, added:stop]
    else:
        rows = shared_images(table, wide, split)
        codes, other = (image_statistic(one, statistic)[own] for one, own in zip((table, wide), rows, strict=True))
        groups = table.images["patient_id"].to_numpy(dtype=object)[rows[0]]
        small = codes if level is None else codes[:, :level]
    found = splitting_of(
        small,
        other,
        groups,
        threshold=threshold,
        within=within,
        n_draws=n_draws,
        n_bootstrap=n_bootstrap,
        min_patients=min_patients,
        seed=seed,
    )
    found.latents["nearest"] += added
    found.parts["part"] += added
    return found
