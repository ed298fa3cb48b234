"""Names from labels and metadata: what a latent's strongest images share, beside what images share by chance."""

__all__ = ["name_by_labels", "name_by_labels_of", "tail_of_share"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import hypergeom
from statsmodels.stats.proportion import proportion_confint

from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic, split_rows, which_table
from mammosae_plugin.arguments import between, checked_arguments, indices, numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.attributes import attributes_and_columns
from mammosae_plugin.interpretation.names import CALLED, COLUMNS, LatentNames
from mammosae_plugin.measures.auroc_columns import delong_columns
from mammosae_plugin.schema.names_of_latents import BY_LABELS

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_CHECK = ("check_auroc", "check_low", "check_high", "check_n", "check_fewest")


def name_by_labels_of(
    codes: Any,
    attributes: pd.DataFrame | Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    n: int = 20,
    min_excess: float = 0.5,
    alpha: float = CALLED,
    top_k: int = 3,
    min_groups: int = 10,
) -> LatentNames:
    """Name latents after what their strongest images share more often than images do by chance.

    Of a latent's images with activation above 0, strongest first and one of each group, the first n are looked at (all,
    if it fires in fewer groups). The score of an attribute is the share of them that have it; chance is the share among
    groups drawn at random, one image of each. p is exact: the chance that as many of n random groups have it
    (`tail_of_share`); q is that after Benjamini and Hochberg over all latents and attributes. The best attribute is the
    one with the smallest p, of equal ones the one with the largest share; it is the name unless q is above alpha or the
    excess (share - chance) / (1 - chance) below `min_excess`.

    Images of which an attribute is unknown do not count for it. If groups differ in how many images they have and an
    attribute goes with that, chance is only nearly right: the strongest image of many is stronger.

    Args:
        codes: (N, D) array or scipy.sparse; only values above 0 count.
        attributes: by name, in columns (N,) of 1 and 0, NaN where it is not known.
        groups: (N,) which images belong together: the patient, the volume.
        n: how many images.
        min_excess: how far from chance to all images a share must be for a name.
        alpha: false discovery rate of names.
        top_k: how many candidates are listed.
        min_groups: latents that fire in fewer groups have no name, and attributes of fewer are not tried.

    Returns:
        `LatentNames` of all D latents. Beside the common columns n_with (images of n that have the attribute), excess,
        n_groups in which the latent fires, and n_fewest, the groups that have the attribute or lack it, whichever are
        fewer.

    Raises:
        InputError: arrays that do not fit, or attributes that are neither 0, 1 nor NaN.

    Example:
        >>> import numpy as np
        >>> mass = np.arange(200) % 4 == 0
        >>> codes = np.random.default_rng(0).random((200, 2)) * np.stack([mass, np.ones(200)], axis=1)
        >>> name_by_labels_of(codes, {"Mass": mass, "dense": np.arange(200) % 3 == 0}, np.arange(200)).told(0)
        'Mass (1.00, 0.84 to 1.00; by chance 0.25; q 1.2e-13)'
    """
    found = as_codes(codes)
    of_row = as_groups(groups, found.shape[0])
    values = _checked(attributes, found.shape[0])
    n, top_k = whole(n, "n", least=2), whole(top_k, "top_k", least=1)
    min_groups = whole(min_groups, "min_groups", least=2)
    alpha, min_excess = between(alpha, "alpha", 0, 1), between(min_excess, "min_excess", 0, 1)
    fewest, left_out = _tried(values, of_row, min_groups)
    tried = list(fewest)
    n_latents, n_tried = found.shape[1], len(tried)
    counts, used = np.zeros((2, n_latents, n_tried))
    p, chance = np.full((n_latents, n_tried), np.nan), np.full(n_tried, np.nan)
    n_groups = strongest_rows(found, of_row, 1)[1]
    known = ~np.isnan(values[tried].to_numpy())
    for pattern in np.unique(known, axis=1).T:
        columns = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        rows = np.flatnonzero(pattern)
        own_groups = as_groups(of_row[rows], len(rows))
        top, _ = strongest_rows(sparse.csc_array(found.tocsr()[rows]), own_groups, n)
        has = values[tried].to_numpy()[np.ix_(rows, columns)] == 1
        m = (top >= 0).sum(axis=1)
        counts[:, columns] = (has[top] & (top >= 0)[:, :, None]).sum(axis=1)
        used[:, columns] = m[:, None]
        of_groups = _group_shares(has, own_groups)
        chance[columns] = of_groups.mean(axis=0)
        for size in np.unique(m[m >= min_groups]):
            at = np.flatnonzero(m == size)
            for column, shares in zip(columns, of_groups.T, strict=True):
                p[at, column] = tail_of_share(shares, int(size))[counts[at, column].astype(np.int64)]
    q = benjamini_hochberg(p.ravel()).reshape(p.shape)
    share = np.divide(counts, used, out=np.full_like(counts, np.nan), where=used > 0)
    order = np.lexsort((-np.nan_to_num(share, nan=-1), p), axis=1)[:, :top_k]
    at = np.arange(n_latents)[:, None]
    listed = pd.DataFrame(
        {
            "latent": np.repeat(np.arange(n_latents), order.shape[1]),
            "rank": np.tile(np.arange(1, order.shape[1] + 1), n_latents),
            "name": np.array(tried, dtype=object)[order.ravel()],
            "score": share[at, order].ravel(),
            "chance": chance[order.ravel()],
            "p": p[at, order].ravel(),
            "q": q[at, order].ravel(),
            "n": used[at, order].ravel().astype(np.int64),
            "n_with": counts[at, order].ravel().astype(np.int64),
        }
    )
    listed = listed[listed["p"].notna()]
    latents = _decided(listed, n_groups, alpha, min_excess, min_groups)
    best = listed[listed["rank"] == 1].set_index("latent")["name"].reindex(range(n_latents))
    latents = latents.assign(n_fewest=best.map(fewest).fillna(0).to_numpy(dtype=np.int64))
    about = {
        "n": n, "min_excess": min_excess, "alpha": alpha, "min_groups": min_groups, "n_images": found.shape[0],
        "n_groups": int(of_row.max(initial=-1)) + 1, "n_tests": int(np.isfinite(p).sum()), "tried": tried,
        "left_out": left_out,
    }  # fmt: skip
    return LatentNames(BY_LABELS, latents, listed.reset_index(drop=True), about)


def _decided(
    listed: pd.DataFrame, n_groups: NDArray[np.int64], alpha: float, min_excess: float, min_groups: int
) -> pd.DataFrame:
    """The row of every latent: its best candidate, and whether that is its name."""
    best = listed[listed["rank"] == 1].set_index("latent").reindex(range(len(n_groups)))
    low, high = proportion_confint(best["n_with"].to_numpy(), best["n"].to_numpy(), method="wilson")
    high = np.maximum(high, best["score"].to_numpy())  # at a share of 1 rounding leaves it below
    excess = (best["score"] - best["chance"]) / (1 - best["chance"])
    reasons = []
    for name, score, chance, q, above, fires in zip(
        best["name"], best["score"], best["chance"], best["q"], excess, n_groups.tolist(), strict=True
    ):
        if fires < min_groups:
            reasons.append(f"fires in too few groups; in {fires}, fewer than {min_groups}")
        elif not isinstance(name, str):
            reasons.append("no attribute could be tried in enough groups")
        elif q > alpha or above < min_excess:
            why = f"q {q:.2g}" if q > alpha else f"an excess of {above:.2f}, below {min_excess:g}"
            reasons.append(f"nothing stands out; nearest is {name} in {score:.2f}, by chance {chance:.2f} ({why})")
        else:
            reasons.append("")
    abstained = np.array([bool(reason) for reason in reasons], dtype=bool)
    frame = pd.DataFrame(
        {
            "latent": range(len(n_groups)),
            "method": BY_LABELS,
            "name": best["name"].where(~abstained, "").to_numpy(dtype=object),
            "score": best["score"].to_numpy(dtype=np.float64),
            "low": low,
            "high": high,
            "chance": best["chance"].to_numpy(dtype=np.float64),
            "p": best["p"].to_numpy(dtype=np.float64),
            "q": best["q"].to_numpy(dtype=np.float64),
            "n": best["n"].fillna(0).to_numpy(dtype=np.int64),
            "abstained": abstained,
            "reason": reasons,
        }
    )[list(COLUMNS)]
    return frame.assign(
        n_with=best["n_with"].fillna(0).to_numpy(dtype=np.int64), excess=excess.to_numpy(), n_groups=n_groups
    )


def tail_of_share(shares: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The chance that at least 0, 1, ... n of n groups drawn at random have an attribute: (n + 1,).

    n different groups are drawn of G, and one image of each, which has the attribute with the group's share. As many
    draws as first one image of every group (how many then have it is Poisson-binomial) and of these n groups
    (hypergeometric).

    Args:
        shares: (G,) share of each group's images that have it.
        n: how many groups are drawn, G at the most.
    """
    total = len(shares)
    different, counts = np.unique(shares, return_counts=True)
    turns = np.exp(2j * np.pi * np.arange(total + 1) / (total + 1))
    spectrum = np.prod((1 - different + different * turns[:, None]) ** counts, axis=1)
    weights = np.clip(np.fft.fft(spectrum).real / (total + 1), 0, None)
    having = np.flatnonzero(weights > 1e-13)  # the transform's rounding
    weights = weights[having] / weights[having].sum()
    exactly = hypergeom.pmf(np.arange(n + 1)[:, None], total, having, n) @ weights
    tails: NDArray[np.float64] = np.cumsum(exactly[::-1])[::-1]
    return np.clip(tails, 0, 1)


def _group_shares(has: NDArray[np.bool_], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """(G, A) share of each group's images that have each attribute."""
    n_groups = int(groups.max(initial=-1)) + 1
    sums = sparse.csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(n_groups, len(groups)))
    of_groups: NDArray[np.float64] = (sums @ has.astype(np.float64)) / np.bincount(groups, minlength=n_groups)[:, None]
    return of_groups


def _checked(attributes: Any, n_rows: int) -> pd.DataFrame:
    found = {}
    for name, column in dict(attributes).items():
        values = numbers(column, f"attribute {name}")
        if values.shape != (n_rows,):
            raise InputError(f"attribute {name} has shape {values.shape}: expected ({n_rows},), one for each image")
        if not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise InputError(f"attribute {name} is something else than 1, 0 or nothing in a row; give those alone")
        found[str(name)] = values
    if not found:
        raise InputError("there is no attribute to name by: give at least one column of 1 and 0")
    return pd.DataFrame(found)


def _tried(values: pd.DataFrame, groups: NDArray[np.int64], min_groups: int) -> tuple[dict[str, int], dict[str, str]]:
    """The attributes that enough groups have and enough lack, with the fewer of these; why the others are left out."""
    tried, left_out = {}, {}
    for name in values.columns:
        column = values[name].to_numpy()
        n_with, n_without = (len(np.unique(groups[column == value])) for value in (1, 0))
        if (fewest := min(n_with, n_without)) >= min_groups:
            tried[str(name)] = fewest
        else:
            left_out[str(name)] = f"{n_with} groups have it and {n_without} lack it, fewer than {min_groups}"
    return tried, left_out


@checked_arguments
def name_by_labels(
    table: "LatentTable",
    labels: Sequence[str] | None = None,
    metadata: Sequence[str] | None = None,
    *,
    latents: ArrayLike | None = None,
    split: str = "training",
    check: str | None = None,
    statistic: str = "max",
    group: str | ArrayLike = "patient_id",
    n: int = 20,
    min_excess: float = 0.5,
    alpha: float = CALLED,
    top_k: int = 3,
    min_groups: int = 10,
) -> LatentNames:
    """Name a table's latents after labels and metadata of their strongest images (`name_by_labels_of` has the rule).

    Names are found in one split and checked in another: the AUROC of the latent for its name there, with DeLong's
    95 % interval over groups. A name whose interval reaches down to 0.5 is taken back.

    Args:
        table: a latents table, of maps or of rows; no network and no image is needed.
        labels: concepts, or columns of 0 and 1, to name by; None: all concepts. A concept with more classes gives an
            attribute for each.
        metadata: other columns of `table.images` to name by; None: all that `confounders` takes for covariates; empty
            for none.
        latents: some latents; None: those that fire in the split.
        split: whose images names are found in.
        check: whose images names are checked in; None: "test" where there is one beside `split`; "none": no check.
        statistic: "max" or "mean" of a latent over positions.
        group: the column of `table.images` that says which images belong together, or this for each image.
        n: as for `name_by_labels_of`, as are min_excess, alpha, top_k and min_groups.

    Returns:
        `LatentNames`, with check_auroc, check_low, check_high, check_n (images) and check_fewest (groups with or
        without, whichever are fewer) beside the columns of `name_by_labels_of`, NaN where no name is checked; and
        column, of which a name is a value, empty where it is of a label.

    Raises:
        InputError: an unknown label, column, split, statistic or group, or nothing to name by.

    Example:
        >>> names = name_by_labels(table)   # doctest: +SKIP
        >>> names.told(3), names.latents[~names.latents["abstained"]]   # doctest: +SKIP
    """
    other = check or ("test" if "test" in table.splits and split != "test" else "none")
    if other == split:
        raise InputError(f"names found in split {split} cannot be checked there: give another split, or check='none'")
    rows = split_rows(table, split)
    chosen = (
        table.live_latents(split) if latents is None else indices(latents, "the latents", table.d_sae, distinct=True)
    )
    values, column_of = attributes_and_columns(table, labels, metadata, split)
    groups, codes = image_groups(table, group), image_statistic(table, statistic)[:, chosen]
    found = name_by_labels_of(
        codes[rows], values.iloc[rows], groups[rows], n=n, min_excess=min_excess, alpha=alpha, top_k=top_k,
        min_groups=min_groups,
    )  # fmt: skip
    named = found.latents.assign(**dict.fromkeys(_CHECK, np.nan))
    if other != "none":
        rows = split_rows(table, other)
        named = _with_check(named, codes[rows], values.iloc[rows], groups[rows], other)
    about = {**which_table(table), "split": split, "check": other, "statistic": statistic}
    columns = [column_of.get(name, "") for name in named["name"]]
    return replace(found, latents=named.assign(column=columns)).of_latents(chosen, about)


def _with_check(
    latents: pd.DataFrame, codes: Any, values: pd.DataFrame, groups: NDArray[Any], split: str
) -> pd.DataFrame:
    """The AUROC of every named latent for its name in images of another split; names that fail are taken back."""
    names, reasons = latents["name"].to_numpy(dtype=object).copy(), latents["reason"].to_numpy(dtype=object).copy()
    told = np.full((len(_CHECK), len(latents)), np.nan)
    for name in sorted({*names} - {""}):
        column = values[name].to_numpy(dtype=np.float64)
        rows = np.flatnonzero(~np.isnan(column))
        if len(np.unique(column[rows])) < 2:
            continue
        places = np.flatnonzero(names == name)
        found = delong_columns(column[rows], codes[rows][:, places], groups[rows])
        fewest = min(len(set(groups[rows][column[rows] == value])) for value in (0, 1))
        told[:3, places] = found.auc, found.low, found.high
        told[3:, places] = np.array([[len(rows)], [fewest]])
        for place in places[~(found.low > 0.5)]:
            auc, low = told[:2, place]
            names[place] = ""
            reasons[place] = f"does not hold in images of split {split}; {name} has AUROC {auc:.2f}, from {low:.2f}"
    columns = dict(zip(_CHECK, told, strict=True))
    return latents.assign(name=names, abstained=reasons != "", reason=reasons, **columns)
