"""Whether findings have the same effects on latents in two studies: slope and correlation of their effect sizes."""

__all__ = ["effect_agreement", "effect_agreement_of", "effect_sizes_of", "EffectAgreement"]

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes, as_groups
from mammosae_plugin.analysis.probes import known_labels
from mammosae_plugin.analysis.table_arrays import image_statistic
from mammosae_plugin.arguments import checked_arguments, indices, numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_DRAWS_AT_ONCE = 4_000_000  # numbers that resamples of pairs may hold at once


@dataclass(frozen=True)
class EffectAgreement:
    """Effect sizes of study A against those of study B.

    Attributes:
        n_latents: pairs of latents; fewer than 3, or effects that are all the same, give NaN.
        slope: of B's effect on A's, by least squares with an intercept; 1 where they are equal. Noise in A's makes it
            smaller, as it does r.
        slope_low: lower end of its 95 % interval.
        slope_high: upper end.
        r: Pearson's correlation. By chance, with latents paired at random, it is 0.
        r_low: lower end of its 95 % interval.
        r_high: upper end.
        p: share of random pairings, with this one of them, whose |r| is as large; NaN without.
    """

    n_latents: int
    slope: float
    slope_low: float
    slope_high: float
    r: float
    r_low: float
    r_high: float
    p: float

    def to_frame(self) -> pd.DataFrame:
        """One row, a column for each attribute."""
        return pd.DataFrame([asdict(self)])


def effect_agreement_of(
    effects_a: ArrayLike, effects_b: ArrayLike, *, n_bootstrap: int = 1000, n_permutations: int = 1000, seed: int = 0
) -> EffectAgreement:
    """Slope and correlation of effect sizes of matched latents.

    The interval is a bootstrap over pairs of latents: it says how much rests on single latents, not what other patients
    would give, for which `effect_agreement` resamples these.

    Args:
        effects_a: (n,) effect sizes in study A, NaN where there is none; such pairs are left out.
        effects_b: (n,) of the matching latents in study B.
        n_bootstrap: resamples of pairs; 0 gives no interval.
        n_permutations: random pairings for p; 0 gives none.
        seed: of both.

    Raises:
        InputError: arrays that do not fit.

    Example:
        >>> found = effect_agreement_of([0.0, 1, 2, 3], [1.0, 3, 5, 7], n_bootstrap=0)
        >>> found.slope, found.r
        (2.0, 1.0)
    """
    a, b = numbers(effects_a, "effects_a"), numbers(effects_b, "effects_b")
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"effects have shapes {a.shape} and {b.shape}: expected (n,) twice, of matched latents")
    n_bootstrap, seed = whole(n_bootstrap, "n_bootstrap", least=0), whole(seed, "seed", least=0)
    n_permutations = whole(n_permutations, "n_permutations", least=0)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    slope, r = (float(one[0]) for one in _line(a[None], b[None]))
    if np.isnan(r):
        return EffectAgreement(len(a), *[float("nan")] * 7)
    generator = np.random.default_rng(seed)
    most = max(1, _DRAWS_AT_ONCE // len(a))
    slopes, drawn, as_large = [], [], 0
    for start in range(0, n_bootstrap, most):
        chosen = generator.integers(len(a), size=(min(most, n_bootstrap - start), len(a)))
        of_slope, of_r = _line(a[chosen], b[chosen])
        slopes.append(of_slope)
        drawn.append(of_r)
    for start in range(0, n_permutations, most):
        shuffled = generator.permuted(np.broadcast_to(b, (min(most, n_permutations - start), len(b))), axis=1)
        as_large += int((np.abs(_line(a[None], shuffled)[1]) >= abs(r) - 1e-12).sum())
    p = (1 + as_large) / (1 + n_permutations) if n_permutations else float("nan")
    return EffectAgreement(len(a), slope, *_ends(slopes), r, *_ends(drawn), p)


def _ends(drawn: list[NDArray[np.float64]]) -> tuple[float, float]:
    values = np.concatenate(drawn) if drawn else np.zeros(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _line(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope and correlation of each row (m, n) of b on that of a; NaN of fewer than 3 or of the same numbers."""
    if a.shape[1] < 3:
        return np.full(len(b), np.nan), np.full(len(b), np.nan)
    from_a, from_b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    both = (from_a * from_b).sum(axis=1)
    of_a, of_b = np.square(from_a).sum(axis=1), np.square(from_b).sum(axis=1)
    # What is left of equal numbers is rounding.
    of_a = np.where(of_a > 1e-20 * np.square(a).sum(axis=1), of_a, np.nan)
    of_b = np.where(of_b > 1e-20 * np.square(b).sum(axis=1), of_b, np.nan)
    return np.where(np.isnan(of_b), np.nan, both / of_a), np.clip(both / np.sqrt(of_a * of_b), -1, 1)


def effect_sizes_of(codes: Any, labels: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """The standardized difference of every latent between images with a label and without (Cohen's d).

    The difference of the means over the pooled standard deviation within both, which has no unit: it is comparable
    between SAEs of other scales.

    Args:
        codes: (N, D) array or scipy.sparse.
        labels: (N,) 0 or 1, NaN where it is missing; such images count for nothing.
        weights: (N, B) how often each image counts in each of B resamples; None: once.

    Returns:
        (D,), or (B, D) of resamples; NaN where a latent does not vary within the classes.

    Raises:
        InputError: arrays that do not fit, labels that are not 0, 1 or NaN, or of one class only.
    """
    found = as_codes(codes)
    known, positive = known_labels(labels, found.shape[0])
    own = sparse.csc_array(found[known])
    counts = np.ones((len(known), 1)) if weights is None else numbers(weights, "weights")[known]
    squares = own.multiply(own)
    sums, variances = [], np.zeros((counts.shape[1], found.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        for label in (0, 1):
            of_class = counts * (positive == label)[:, None]
            n = of_class.sum(axis=0)[:, None]
            mean = np.asarray(own.T @ of_class).T / n
            square = np.asarray(squares.T @ of_class).T
            left = square - n * mean**2
            variances += np.where(left > 1e-12 * square, left, 0)
            sums.append(mean)
        total = counts.sum(axis=0)[:, None]
        spread = np.sqrt(variances / (total - 2))
        effects = np.where(spread > 0, (sums[1] - sums[0]) / spread, np.nan)
    return effects[0] if weights is None else effects


@checked_arguments
def effect_agreement(
    table_a: "LatentTable",
    table_b: "LatentTable",
    concept: str,
    *,
    pairs: ArrayLike | None = None,
    split: str = "test",
    unit: str = "image",
    statistic: str = "mean",
    n_bootstrap: int = 200,
    n_permutations: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether a concept has the same effects on latents in two tables, of two cohorts or two SAEs.

    Args:
        table_a: a latents table.
        table_b: another, of the same images or others.
        concept: one that both have; of one with more than two classes each against the rest.
        pairs: (n, 2) latents of A and B that match, such as `replication(a, b).pairs[["latent_a", "latent_b"]]`, or
            those of `match_latents`; None: latents of the same number, which are the same under one SAE only.
        split: the split whose images are looked at.
        unit: what is looked at, as for `LatentTable.rows`; a breast, exam or patient has the mean, or maximum, of its
            images' statistics.
        statistic: "mean" or "max" over positions.
        n_bootstrap: resamples of the patients of both tables for the intervals; 0 gives NaN. Resamples are noisier than
            the sample, which lowers r and slope, so that intervals are moved to have the value as their mean.
        n_permutations: as for `effect_agreement_of`.
        min_patients: patients that each class must have in each table for an interval.
        seed: of resamples and pairings.

    Returns:
        One row per label: concept, label and the attributes of `EffectAgreement`; effects are `effect_sizes_of`.

    Raises:
        InputError: an unknown concept, split or statistic; tables of different SAEs without pairs; latents that there
            are not; a class without which nothing can be told apart.
    """
    if pairs is None:
        kinds = [table.provenance["inputs"]["sae"] for table in (table_a, table_b)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"{table_a.folder} and {table_b.folder} are of different SAEs, so that equal latent numbers mean "
                "different latents: give pairs=, such as those of replication(a, b)"
            )
        matched = np.tile(np.arange(table_a.d_sae)[:, None], 2)
    else:
        matched = np.asarray(pairs)
        if matched.ndim != 2 or matched.shape[1] != 2:
            raise InputError(f"pairs have shape {matched.shape}: expected (n, 2), latents of A and of B")
    classes = table_a.classes(concept)
    if classes != table_b.classes(concept):
        raise InputError(f"{concept} has {len(classes)} classes in one table and another number in the other")
    records = []
    for label in classes[1:] if len(classes) == 2 else classes:
        sizes, resampled, few = [], [], []
        for place, table in enumerate((table_a, table_b)):
            rows = table.rows(concept, split=split, unit=unit)
            latents = indices(matched[:, place], "the latents of pairs", table.d_sae)
            codes = rows.values(image_statistic(table, statistic))[:, latents]
            positive = (rows.labels == label).astype(np.int64)
            sizes.append(effect_sizes_of(codes, positive))
            groups = as_groups(rows.patient_ids, len(positive))
            few.append(min(len(np.unique(groups[positive == one])) for one in (0, 1)))
            weights = patient_bootstrap(groups, n_bootstrap, seed + place).T
            resampled.append(effect_sizes_of(codes, positive, weights=weights) if n_bootstrap else np.zeros((0, 0)))
        found = asdict(effect_agreement_of(*sizes, n_bootstrap=0, n_permutations=n_permutations, seed=seed))
        if n_bootstrap and min(few) >= min_patients and np.isfinite(found["r"]):
            drawn: list[list[float]] = [[], []]
            for a, b in zip(*resampled, strict=True):
                known = np.isfinite(a) & np.isfinite(b)
                for values, value in zip(drawn, _line(a[None, known], b[None, known]), strict=True):
                    values.append(float(value[0]))
            for name, values in zip(("slope", "r"), drawn, strict=True):
                low, high = _ends([np.array(values)])
                moved = found[name] - float(np.nanmean(values))
                found[f"{name}_low"], found[f"{name}_high"] = low + moved, high + moved
            found["r_low"], found["r_high"] = max(found["r_low"], -1.0), min(found["r_high"], 1.0)
        records.append({"concept": concept, "label": label, **found})
    return pd.DataFrame(records)
