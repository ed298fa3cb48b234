"""Whether a latent stands for one thing, by the labels of its strongest images: SAIL's score (arXiv 2603.23794)."""

__all__ = [
    "as_labels", "benjamini_hochberg", "CoherenceNull", "coherence_null", "monosemanticity_of", "Null", "p_values",
    "resampled_monosemanticity", "score_latents",
]  # fmt: skip

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import false_discovery_control

from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.arguments import as_array, between, entries, numbers, shown, whole
from mammosae_plugin.errors import InputError

_BLOCK = 64  # latents whose images are compared at once; they fit into a cache
_RESAMPLED = 8_000_000  # weights or label counts of resamples held at once
Null = Literal["groups", "rows"]


def monosemanticity_of(
    codes: Any,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    n: Sequence[int] = (10, 50),
    null: Null | Mapping[int, float] = "groups",
    n_draws: int = 100,
    seed: int = 0,
    min_groups: int = 10,
) -> pd.DataFrame:
    """Coherence, specificity and monosemanticity of every latent, from the labels of its strongest images (SAIL).

    Of a latent's images with activation above 0, strongest first and one of each group, the first N are looked at:

    - *coherence*: mean Jaccard index of the label sets of all pairs (two empty sets: 1);
    - *specificity*: 1 - H / ln L, with H the entropy in nats of the share of each of the L labels among all labels of
      the N images; 0 where none has a label;
    - *monosemanticity*: max(0, coherence - null) * specificity, where the null is the mean coherence of N images drawn
      at random.

    Args:
        codes: (N, D) array or scipy.sparse; only values above 0 count.
        labels: (N, L) true where an image has a label.
        groups: (N,) which images belong together: the patient, the volume.
        n: the numbers of images.
        null: "groups" draws N groups and one image of each, as the strongest images are of different groups; "rows"
            draws N images whatever their groups, as SAIL does (numpy's default_rng(seed) started anew for each N, the
            mean rounded to 6 decimals); a mapping from N to the null's value uses that.
        n_draws: draws of a null.
        seed: of the draws.
        min_groups: latents that fire in fewer groups are not scored, nor are those that fire in every image.

    Returns:
        One row per scored latent: latent, n_images and n_groups in which it fires, and for each N coherence_N, null_N,
        specificity_N, monosemanticity_N, p_N (share of the draws, with this latent as one of them, whose coherence is
        as high; NaN for a null that was given) and q_N (Benjamini and Hochberg over the latents). NaN where it fires in
        fewer than N groups; specificity and monosemanticity are NaN with a single label, which has no entropy.

    Raises:
        InputError: arrays that do not fit, labels that are neither true nor false, fewer groups than N for the null.

    Example:
        >>> import numpy as np
        >>> labels = np.eye(2, dtype=bool)[np.repeat([0, 1], 20)]
        >>> codes = np.where(labels[:, :1], np.linspace(1, 2, 40)[:, None], 0)
        >>> monosemanticity_of(codes, labels, np.arange(40), n=(10,)).loc[0, "coherence_10"]
        1.0
    """
    found = as_codes(codes)
    has = as_labels(labels, found.shape[0])
    of_row = as_groups(groups, found.shape[0])
    sizes = [whole(size, "n", least=2) for size in entries(n, "n")]
    if not sizes:
        raise InputError("n is empty: name how many images are looked at, such as (10, 50)")
    n_draws, seed = whole(n_draws, "n_draws", least=1), whole(seed, "seed", least=0)
    min_groups = whole(min_groups, "min_groups", least=1)
    nulls = {size: coherence_null(null, size, has, of_row, n_draws, seed) for size in sizes}
    return score_latents(found, has, of_row, nulls, min_groups)[0]


@dataclass(frozen=True)
class CoherenceNull:
    """What images drawn at random have.

    Attributes:
        mean: their mean coherence; NaN where there are too few images or groups to draw from.
        coherence: (n_draws,) that of every draw; empty for a value that was given.
        specificity: (n_draws,) likewise.
        drawn: (n_draws, n) rows of every draw.
    """

    mean: float
    coherence: NDArray[np.float64]
    specificity: NDArray[np.float64]
    drawn: NDArray[np.int64]

    @property
    def monosemanticity(self) -> NDArray[np.float64]:
        """(n_draws,) that of every draw."""
        return np.maximum(self.coherence - self.mean, 0) * self.specificity


def score_latents(
    codes: sparse.csc_array,
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    nulls: Mapping[int, CoherenceNull],
    min_groups: int,
    n_listed: int = 0,
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The rows of `monosemanticity_of`, and of each scored latent its strongest rows, as `strongest_rows` gives them.

    Args:
        codes: (N, D) as `as_codes` gives them.
        labels: (N, L).
        groups: (N,) as `as_groups` numbers them.
        nulls: of each number of images.
        min_groups: as for `monosemanticity_of`.
        n_listed: how many strongest rows to list, if more than are looked at.
    """
    top, n_groups = strongest_rows(codes, groups, max(*nulls, n_listed))
    column = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
    n_images = np.bincount(column[codes.data > 0], minlength=codes.shape[1])
    scored = np.flatnonzero((n_groups >= min_groups) & (n_images < codes.shape[0]))
    table = pd.DataFrame({"latent": scored, "n_images": n_images[scored], "n_groups": n_groups[scored]})
    for size, null in nulls.items():
        coherence, specificity = _of_images(top[scored, :size], labels)
        table[f"coherence_{size}"] = coherence
        table[f"null_{size}"] = null.mean
        table[f"specificity_{size}"] = specificity
        table[f"monosemanticity_{size}"] = np.maximum(coherence - null.mean, 0) * specificity
        table[f"p_{size}"] = p = p_values(coherence, null)
        table[f"q_{size}"] = benjamini_hochberg(p)
    return table, top[scored]


def p_values(coherence: NDArray[np.float64], null: CoherenceNull) -> NDArray[np.float64]:
    """Share of the draws (m,), with the latent as one of them, whose coherence is as high; NaN without draws."""
    p = np.full(len(coherence), np.nan)
    known = np.isfinite(coherence)
    draws = np.sort(null.coherence)
    if len(draws):
        p[known] = (1 + len(draws) - np.searchsorted(draws, coherence[known] - 1e-12)) / (1 + len(draws))
    return p


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjusted p-values (n,), by which at most a share q of those called is false; NaN stay, and count for nothing."""
    q = np.full(len(p_values), np.nan)
    known = np.isfinite(p_values)
    if known.any():
        q[known] = false_discovery_control(p_values[known], method="bh")
    return q


def as_labels(labels: ArrayLike, n_rows: int) -> NDArray[np.bool_]:
    """Labels (N, L) as true and false.

    Raises:
        InputError: another shape, or something else than true and false.
    """
    array = as_array(labels, "labels")
    if array.ndim != 2 or len(array) != n_rows or array.shape[1] == 0:
        raise InputError(f"labels have shape {array.shape}: expected ({n_rows}, L), one row for each image")
    if array.dtype.kind != "b":
        values = numbers(labels, "labels")
        if not np.isin(values, (0, 1)).all():
            raise InputError("labels hold something else than true and false: leave out images whose label is missing")
        array = values == 1
    return array


def coherence_null(
    null: Any, size: int, labels: NDArray[np.bool_], groups: NDArray[np.int64], n_draws: int, seed: int
) -> CoherenceNull:
    """What `size` images drawn at random have; the arguments are those of `monosemanticity_of`.

    Raises:
        InputError: no such null, or one that has no value for this number of images.
    """
    if isinstance(null, Mapping):
        if size not in null:
            raise InputError(f"the null has no value for n = {size}; it has {', '.join(map(str, null)) or 'none'}")
        return _null_of(between(null[size], f"the null of n = {size}", 0, 1))
    if not isinstance(null, str) or null not in ("groups", "rows"):
        raise InputError(f"null is {shown(null)}: choose 'groups' or 'rows', or give a value for each n")
    n_groups = int(groups.max(initial=-1)) + 1
    if size > (n_groups if null == "groups" else len(labels)):
        return _null_of(float("nan"))  # then no latent fires in so many groups either
    generator = np.random.default_rng(seed)
    if null == "rows":
        drawn = np.stack([generator.choice(len(labels), size, replace=False) for _ in range(n_draws)])
    else:
        order = np.argsort(groups, kind="stable")
        counts = np.bincount(groups, minlength=n_groups)
        starts = np.cumsum(counts) - counts
        chosen = np.stack([generator.choice(n_groups, size, replace=False) for _ in range(n_draws)])
        drawn = order[starts[chosen] + generator.integers(0, counts[chosen])]
    coherence, specificity = _of_images(drawn, labels)
    mean = float(coherence.mean())
    return CoherenceNull(round(mean, 6) if null == "rows" else mean, coherence, specificity, drawn)


def _null_of(mean: float) -> CoherenceNull:
    return CoherenceNull(mean, np.zeros(0), np.zeros(0), np.zeros((0, 0), dtype=np.int64))


def _of_images(rows: NDArray[np.int64], labels: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coherence and specificity (m,) of sets of images (m, n); NaN where a set is not full, which -1 says."""
    coherence, specificity = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    n = rows.shape[1]
    full = np.flatnonzero((rows >= 0).all(axis=1))
    for start in range(0, len(full), _BLOCK):
        block = full[start : start + _BLOCK]
        own = labels[rows[block]].astype(np.float32)  # (b, n, L); counts of up to 2**24 are exact
        sizes = own.sum(axis=2)
        both = np.matmul(own, own.transpose(0, 2, 1))
        either = sizes[:, :, None] + sizes[:, None] - both
        both[either == 0] = either[either == 0] = 1  # two empty sets
        # Every pair twice, and every image with itself, which is 1.
        coherence[block] = (np.divide(both, either, dtype=np.float64).sum(axis=(1, 2)) - n) / (n * (n - 1))
        specificity[block] = _specificity(own.sum(axis=1, dtype=np.float64))
    return coherence, specificity


def resampled_monosemanticity(
    top: NDArray[np.int64],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    null: CoherenceNull,
    size: int,
    weights: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Monosemanticity of latents in resamples of the groups, whose null is resampled with them.

    A group that a resample holds w times counts as w of the `size` strongest images. Pairs within a group are left out:
    an image is always like itself, which says nothing of the latent.

    Args:
        top: (m, l) strongest rows, one of each group, -1 where there are no more; more than `size` of them, as a
            resample leaves groups out.
        labels: (N, L).
        groups: (N,) as `as_groups` numbers them.
        null: of `size` images.
        size: number of images.
        weights: (n_groups, n_bootstrap) how often a resample holds a group.

    Returns:
        (m, n_bootstrap), NaN where a resample holds less than half of `size` images, or one group only; and (m,)
        whether the coherence of all resamples is the same, so that they do not tell how sure it is.
    """
    by_chance = np.full(weights.shape[1], null.mean)
    if len(null.drawn):
        alike, pairs = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for rows in _blocks_of(null.drawn, labels, weights):
            _, of_draw, n_pairs, _ = _weighed(rows, labels, groups, weights, None)
            alike, pairs = alike + of_draw.sum(axis=0), pairs + n_pairs.sum(axis=0)
        by_chance = np.divide(alike, pairs, out=by_chance, where=pairs > 0)
    found, agree = [np.zeros((0, weights.shape[1]))], [np.zeros(0, dtype=bool)]
    for rows in _blocks_of(top, labels, weights):
        n_held, alike, pairs, counts = _weighed(rows, labels, groups, weights, size)
        known = (n_held >= size / 2) & (pairs > 0)
        coherence = np.where(known, alike / np.where(known, pairs, 1), np.nan)
        found.append(np.maximum(coherence - by_chance, 0) * _specificity(counts))
        agree.append(np.where(known, coherence, -1).max(axis=1) - np.where(known, coherence, 2).min(axis=1) < 1e-6)
    return np.concatenate(found), np.concatenate(agree)


def _blocks_of(
    rows: NDArray[np.int64], labels: NDArray[np.bool_], weights: NDArray[np.float32]
) -> Iterator[NDArray[np.int64]]:
    block = max(1, _RESAMPLED // (weights.shape[1] * max(rows.shape[1], labels.shape[1], 1)))
    for start in range(0, len(rows), block):
        yield rows[start : start + block]


def _weighed(
    rows: NDArray[np.int64],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    weights: NDArray[np.float32],
    size: int | None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of sets of images (b, l) in every resample, the first `size` of them: how many there are, the sum of Jaccard
    indices over pairs, the number of pairs, each (b, n_bootstrap), and label counts (b, n_bootstrap, L)."""
    there = rows >= 0
    rows = np.maximum(rows, 0)
    own = labels[rows].astype(np.float32) * there[:, :, None]
    both = np.matmul(own, own.transpose(0, 2, 1))
    sizes = own.sum(axis=2)
    either = sizes[:, :, None] + sizes[:, None] - both
    alike = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    alike[:, np.arange(rows.shape[1]), np.arange(rows.shape[1])] = 0
    held = (weights[groups[rows]] * there[:, :, None]).transpose(0, 2, 1)  # (b, n_bootstrap, l)
    if size is not None:
        before = held.cumsum(axis=2) - held
        held = np.clip(size - before, 0, held)
    n_held = held.sum(axis=2)
    pairs = np.square(n_held) - np.square(held).sum(axis=2)
    return n_held, (np.matmul(held, alike) * held).sum(axis=2), pairs, np.matmul(held, own)


def _specificity(counts: NDArray[Any]) -> NDArray[Any]:
    """1 - H / ln L of label counts (..., L); 0 without any label, NaN with a single one."""
    if counts.shape[-1] < 2:
        return np.full(counts.shape[:-1], np.nan)
    total = counts.sum(axis=-1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    entropy = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=-1)
    found: NDArray[Any] = np.where(total[..., 0] > 0, 1 - entropy / np.log(counts.shape[-1]), 0)
    return found
