"""Whether the latents of a table stand for one thing, by labels and without, and what that comes to for the SAE."""

__all__ = ["activation_similarity", "LatentScores", "monosemanticity"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import norm

from mammosae_plugin.analysis.codes import as_codes, as_groups, settled_codes
from mammosae_plugin.analysis.coherence import (
    CoherenceNull,
    Null,
    benjamini_hochberg,
    coherence_null,
    p_values,
    resampled_monosemanticity,
    score_latents,
)
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.similarity import pair_similarity
from mammosae_plugin.analysis.table_arrays import image_groups, image_labels, image_statistic, split_rows
from mammosae_plugin.arguments import checked_arguments, entries, one_of, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, spread_interval

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_CHANCE_DRAWS = 200  # SAEs of random latents
_BEST = (10, 50)  # how many best latents SAIL's configuration scores are means of
_CALLED = 0.05  # false discovery rate below which a latent is counted as above its null


@dataclass(frozen=True)
class LatentScores:
    """What a score says of every latent of an SAE, and of the SAE.

    Attributes:
        latents: one row per latent, with the score beside its chance level; `reason` says why a value is NaN, else it
            is empty.
        summary: one row per measure of the SAE: measure, value, low, high (95 %, over groups), chance, chance_high
            (what 95 % of SAEs of random latents stay below), n_latents (over which it is taken), n_images, n_groups,
            and reason: why something is NaN, else empty.
        labels: one row per label that was used: label, n_images, n_positive, n_positive_groups and reason: what it
            cannot show; empty of a score without labels.
    """

    latents: pd.DataFrame
    summary: pd.DataFrame
    labels: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The latents."""
        return self.latents

    def value(self, measure: str) -> float:
        """The value of one measure of the SAE.

        Raises:
            InputError: there is no such measure.
        """
        values = dict(zip(self.summary["measure"], self.summary["value"].tolist(), strict=True))
        one_of(measure, "measure", tuple(values))
        return float(values[measure])


@checked_arguments
def monosemanticity(
    table: "LatentTable",
    labels: Sequence[str] | pd.DataFrame | None = None,
    *,
    group: str | ArrayLike = "patient_id",
    n: Sequence[int] = (10, 50),
    statistic: str = "max",
    split: str = "test",
    null: Null | Mapping[int, float] = "groups",
    n_draws: int = 1000,
    n_bootstrap: int = 200,
    min_groups: int = 10,
    seed: int = 0,
) -> LatentScores:
    """SAIL's monosemanticity of every latent and of the SAE, from labels (`monosemanticity_of` has the formulas).

    Images of the split that lack one of the labels are left out. Intervals come from resampling groups: a latent's
    strongest images are chosen anew in each resample, where a group that is drawn twice counts twice and pairs within a
    group are left out, and the null too; the percentiles are moved so that the resamples' mean is the value. Those of
    the SAE are over the latents that are best in all images, so that they do not say how far the best owe their place
    to luck: `chance` does, what as many of as many random latents reach.

    Args:
        table: a latents table, of maps or of rows.
        labels: names of the table's concepts (of one with more than two classes each class is a label) or of columns of
            `table.images` that hold 0 and 1; or a table of such columns, with image_id or a row for each image of the
            latents table, in its order. All concepts by default.
        group: the column of `table.images` that says which images belong together, or this for each image.
        n: numbers of strongest images.
        statistic: "max" or "mean" of a latent over positions; of a table of rows they are the same.
        split: the split whose images are used.
        null: as for `monosemanticity_of`.
        n_draws: draws of the null.
        n_bootstrap: resamples; 0 gives no intervals.
        min_groups: latents that fire in fewer groups are not scored.
        seed: of draws and resamples.

    Returns:
        `LatentScores`. The latents have the columns of `monosemanticity_of` and monosemanticity_N_low and _high; the
        SAE has for each N best10_N and best50_N (mean monosemanticity_N of the 10 and 50 best latents; with N = 10
        SAIL's configuration scores), mean_N (of all that are scored), above_null_N (share of these more coherent than
        the null) and called_N (share with q below 0.05).

    Raises:
        InputError: an unknown label, group, split or statistic; labels that are neither 0, 1 nor missing.

    Example:
        >>> scores = monosemanticity(table, ["Mass", "density"], n=(10,))   # doctest: +SKIP
        >>> scores.value("best10_10"), scores.latents.nlargest(5, "monosemanticity_10")   # doctest: +SKIP
    """
    sizes = sorted({whole(size, "n", least=2) for size in entries(n, "n")})
    if not sizes:
        raise InputError("n is empty: name how many images are looked at, such as (10, 50)")
    n_draws, n_bootstrap = whole(n_draws, "n_draws", least=1), whole(n_bootstrap, "n_bootstrap", least=0)
    min_groups, seed = whole(min_groups, "min_groups", least=1), whole(seed, "seed", least=0)
    values = image_labels(table, labels)
    rows = split_rows(table, split)
    complete = rows[values.iloc[rows].notna().all(axis=1).to_numpy()]
    has = values.iloc[complete].to_numpy(dtype=bool)
    of_row = as_groups(image_groups(table, group)[complete], len(complete))
    codes = settled_codes(as_codes(image_statistic(table, statistic)[complete]))
    nulls = {size: coherence_null(null, size, has, of_row, n_draws, seed) for size in sizes}
    n_listed = {size: size + 4 * int(np.ceil(np.sqrt(size))) for size in sizes}  # a resample leaves some groups out
    scored, top = score_latents(codes, has, of_row, nulls, min_groups, max(n_listed.values()))
    n_groups = int(of_row.max(initial=-1)) + 1
    weights = patient_bootstrap(np.arange(n_groups), n_bootstrap, seed).T.astype(np.float32) if n_groups else None
    summary = []
    for size in sizes:
        name = f"monosemanticity_{size}"
        samples = of_latents = np.full((len(scored), 0), np.nan)
        if weights is not None and n_bootstrap and n_groups >= MIN_PATIENTS and np.isfinite(nulls[size].mean):
            listed = top[:, : n_listed[size]]
            samples, agree = resampled_monosemanticity(listed, has, of_row, nulls[size], size, weights)
            samples[scored[name].isna()] = np.nan
            of_latents = np.where(agree[:, None], np.nan, samples)
        ends = np.array([_interval(*each) for each in zip(of_latents, scored[name], strict=True)]).reshape(-1, 2)
        place = list(scored.columns).index(name) + 1
        scored.insert(place, f"{name}_low", ends[:, 0])
        scored.insert(place + 1, f"{name}_high", ends[:, 1])
        summary += _of_the_sae(scored, samples, nulls[size], size, seed)
    about = {"n_images": len(complete), "n_groups": n_groups}
    few = "no image of the split has every label" if not len(complete) else ""
    few = few or ("the split is of one group" if n_groups == 1 else "")
    found = pd.DataFrame([{**row, **about, "reason": few or row["reason"]} for row in summary])
    latents = pd.DataFrame({"latent": np.arange(codes.shape[1])}).merge(scored, on="latent", how="left")
    positive = sparse.csc_array((codes.data > 0, codes.indices, codes.indptr), shape=codes.shape)
    latents["n_images"] = np.asarray(positive.sum(axis=0)).ravel().astype(np.int64)
    in_group = sparse.csr_array((np.ones(len(complete)), (of_row, np.arange(len(complete)))), (n_groups, len(complete)))
    latents["n_groups"] = np.asarray(((in_group @ positive) > 0).sum(axis=0)).ravel().astype(np.int64)
    latents["reason"] = [
        few or _why(n_own, n_own_groups, len(complete), min_groups, sizes[-1], has.shape[1])
        for n_own, n_own_groups in zip(latents["n_images"].tolist(), latents["n_groups"].tolist(), strict=True)
    ]
    return LatentScores(latents, found, _about_labels(values.iloc[complete], of_row, sizes[0]))


def _of_the_sae(
    scored: pd.DataFrame, samples: NDArray[np.float64], null: CoherenceNull, size: int, seed: int
) -> list[dict[str, Any]]:
    """The measures of one number of images."""
    name = f"monosemanticity_{size}"
    known = np.flatnonzero(scored[name].notna())
    coherent = scored[f"coherence_{size}"].dropna()
    best = scored[name].to_numpy()[known]
    order = known[np.argsort(-best, kind="stable")]
    chance: dict[str, NDArray[np.float64]] = {}
    if len(null.coherence) and len(coherent):
        generator = np.random.default_rng(seed)
        drawn = generator.integers(0, len(null.coherence), (_CHANCE_DRAWS, len(coherent)))
        random = np.sort(null.monosemanticity[drawn], axis=1)[:, ::-1]
        p = p_values(null.coherence, null)
        chance = {
            **{f"best{most}": random[:, :most].mean(axis=1) for most in _BEST},
            "mean": random.mean(axis=1),
            "above_null": (null.coherence[drawn] > null.mean).mean(axis=1),
            "called": np.array([(benjamini_hochberg(p[draw]) < _CALLED).mean() for draw in drawn]),
        }
    unknown = "a single label has no entropy, so that there is no specificity" if len(coherent) else ""
    unknown = unknown or f"no latent fires in {size} groups"

    def row(measure: str, values: NDArray[Any], places: NDArray[np.int64] | None) -> dict[str, Any]:
        low = high = np.nan
        if places is not None and len(places) and samples.shape[1]:
            own = samples[places]
            there = np.isfinite(own)
            counts = there.sum(axis=0)
            low, high = _interval(np.where(there, own, 0).sum(axis=0)[counts > 0] / counts[counts > 0], np.mean(values))
        by_chance = chance.get(measure, np.full(1, np.nan))
        return {
            "measure": f"{measure}_{size}",
            "value": float(np.mean(values)) if len(values) else np.nan,
            "low": low,
            "high": high,
            "chance": float(np.mean(by_chance)),
            "chance_high": float(np.quantile(by_chance, 0.95)),
            "n_latents": len(values),
            "reason": "" if len(values) else unknown,
        }

    return [
        *(row(f"best{most}", scored[name].to_numpy()[order[:most]], order[:most]) for most in _BEST),
        row("mean", best, known),
        row("above_null", (coherent > null.mean).to_numpy() if np.isfinite(null.mean) else np.zeros(0), None),
        row("called", (scored.loc[coherent.index, f"q_{size}"] < _CALLED).to_numpy(), None),
    ]


def _interval(samples: NDArray[np.float64], value: float) -> tuple[float, float]:
    """Of resamples of something from 0 to 1, moved to have its value as their mean.

    Resamples hold fewer different images, which raises specificity, and what is cut off at 0 is raised by any spread.
    """
    if not np.isfinite(samples).any():
        return float("nan"), float("nan")
    low, high = spread_interval(samples - np.nanmean(samples) + value)
    return max(low, 0.0), min(high, 1.0)


def _why(n_images: int, n_groups: int, n_all: int, min_groups: int, most: int, n_labels: int) -> str:
    if n_images == 0:
        return "never above 0 in these images"
    if n_images == n_all:
        return "above 0 in every image"
    if n_groups < min_groups:
        return f"above 0 in {n_groups} groups, fewer than {min_groups}"
    if n_groups < most:
        return f"above 0 in {n_groups} groups, fewer than {most}"
    return "a single label has no entropy" if n_labels == 1 else ""


def _about_labels(values: pd.DataFrame, groups: NDArray[np.int64], least: int) -> pd.DataFrame:
    records = []
    for name in values.columns:
        positive = values[name].to_numpy(dtype=bool)
        n_groups = len(np.unique(groups[positive]))
        few = f"{n_groups} groups have it, fewer than {least}: no {least} images of different groups share it"
        records.append(
            {
                "label": name,
                "n_images": len(values),
                "n_positive": int(positive.sum()),
                "n_positive_groups": n_groups,
                "reason": few if n_groups < least else "",
            }
        )
    return pd.DataFrame(records)


@checked_arguments
def activation_similarity(
    table: "LatentTable",
    embeddings: Embeddings = None,
    *,
    group: str | ArrayLike = "patient_id",
    statistic: str = "max",
    split: str = "test",
    min_groups: int = 10,
) -> LatentScores:
    """The label-free monosemanticity of every latent and of the SAE (`activation_similarity_of` has the formula).

    Only activations above 0 count. Intervals are those of the jackknife over groups (`pair_similarity` says how).
    Embeddings are read twice, a block at a time.

    Args:
        table: a latents table, of maps or of rows.
        embeddings: the dense rows: an array (n_images, d) in the order of `table.images`; an `ActivationStore`, its
            folder, or files of embeddings, whose rows are found by image_id. None takes the layer's own channels,
            averaged over positions, which tables of maps keep.
        group: as for `monosemanticity`.
        statistic: as for `monosemanticity`.
        split: as for `monosemanticity`.
        min_groups: latents that fire in fewer groups have no interval and do not count for the SAE.

    Returns:
        `LatentScores`. Its latents: latent, n_images and n_groups in which it fires, similarity, similarity_low and
        _high, chance (the mean cosine over all pairs of images), p (one-sided, of similarity above chance, normal) and
        q (Benjamini and Hochberg). The SAE: mean (of the latents that count) and excess (that less chance, whose chance
        is 0), with intervals, and called (share with q below 0.05).

    Raises:
        InputError: embeddings of other images, or none for a table of rows; an embedding that is zero or not finite; an
            unknown group, split or statistic.
    """
    min_groups = whole(min_groups, "min_groups", least=2)
    rows = split_rows(table, split)
    of_row = as_groups(image_groups(table, group)[rows], len(rows))
    codes = as_codes(image_statistic(table, statistic)[rows])
    codes.data = np.maximum(codes.data, 0)
    codes.eliminate_zeros()
    n_groups = int(of_row.max()) + 1
    n_images = np.diff(codes.indptr).astype(np.int64)
    in_group = sparse.csr_array((np.ones(len(rows)), (of_row, np.arange(len(rows)))), shape=(n_groups, len(rows)))
    own_groups = np.asarray(((in_group @ codes) > 0).sum(axis=0)).ravel().astype(np.int64)
    counts = own_groups >= min_groups
    found = pair_similarity(codes, dense_rows(table, embeddings, rows).blocks, of_row, counts)
    known = np.isfinite(found.similarity) & counts
    error, excess = (np.where(known, each, np.nan) for each in (found.error, found.excess_error))
    reach = norm.ppf(0.975)
    p = np.full(len(known), np.nan)
    above = known & (excess > 0)
    p[above] = norm.sf((found.similarity - found.chance)[above] / excess[above])
    latents = pd.DataFrame(
        {
            "latent": np.arange(len(known)),
            "n_images": n_images,
            "n_groups": own_groups,
            "similarity": found.similarity,
            "similarity_low": np.maximum(found.similarity - reach * error, -1),
            "similarity_high": np.minimum(found.similarity + reach * error, 1),
            "chance": found.chance,
            "p": p,
            "q": benjamini_hochberg(p),
        }
    )
    few = f"fewer than {min_groups}"
    latents["reason"] = np.select(
        [n_images == 0, n_images == 1, ~counts],
        ["never fires in these images", "fires in one image, which has no pair", "fires in too few groups, " + few],
        "",
    )
    n_known = int(known.sum())
    reason = "" if n_known else f"no latent fires in {min_groups} groups or more (there are {n_groups})"
    mean = float(found.similarity[known].mean()) if n_known else np.nan
    called = float((latents["q"][known] < _CALLED).mean()) if n_known else np.nan
    about = {"n_latents": n_known, "n_images": len(rows), "n_groups": n_groups, "reason": reason}
    summary = [
        _normal("mean", mean, found.mean_error, found.chance, n_known),
        _normal("excess", mean - found.chance, found.mean_excess_error, 0.0, n_known),
        _normal("called", called, np.nan, np.nan, 0),
    ]
    return LatentScores(latents, pd.DataFrame([{**row, **about} for row in summary]), pd.DataFrame())


def _normal(measure: str, value: float, error: float, chance: float, n_known: int) -> dict[str, Any]:
    reach = norm.ppf(0.975) * error if n_known else np.nan
    return {"measure": measure, "value": value, "low": value - reach, "high": value + reach, "chance": chance}
