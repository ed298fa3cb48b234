"""Whether a latent stands for one thing: by the labels of its strongest images, and by how alike these are.

The score by labels is that of SAIL (arXiv 2603.23794), with a null for every latent; the label-free score is that of
Pach et al. (arXiv 2504.02821).
"""

__all__ = ["activation_similarity_of", "benjamini_hochberg", "monosemanticity_of", "Null"]

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.arguments import as_array, between, entries, numbers, whole
from mammosae_plugin.errors import InputError

_BLOCK = 512  # latents whose images are compared at once
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
    has = _as_labels(labels, found.shape[0])
    of_row = as_groups(groups, found.shape[0])
    sizes = [whole(size, "n", least=2) for size in entries(n, "n")]
    if not sizes:
        raise InputError("n is empty: name how many images are looked at, such as (10, 50)")
    n_draws, seed = whole(n_draws, "n_draws", least=1), whole(seed, "seed", least=0)
    min_groups = whole(min_groups, "min_groups", least=1)
    nulls = {size: _null(null, size, has, of_row, n_draws, seed) for size in sizes}
    top, n_groups = strongest_rows(found, of_row, max(sizes))
    positive = found.copy()
    positive.data = (positive.data > 0).astype(np.int64)
    n_images = np.asarray(positive.sum(axis=0)).ravel().astype(np.int64)
    scored = np.flatnonzero((n_groups >= min_groups) & (n_images < found.shape[0]))
    table = pd.DataFrame({"latent": scored, "n_images": n_images[scored], "n_groups": n_groups[scored]})
    for size in sizes:
        mean, draws = nulls[size]
        coherence, specificity = _of_images(top[scored, :size], has)
        excess = np.maximum(coherence - mean, 0)
        table[f"coherence_{size}"] = coherence
        table[f"null_{size}"] = mean
        table[f"specificity_{size}"] = specificity
        table[f"monosemanticity_{size}"] = excess * specificity
        p = np.full(len(scored), np.nan)
        if draws is not None:
            known = np.isfinite(coherence)
            as_high = len(draws) - np.searchsorted(np.sort(draws), coherence[known] - 1e-12)
            p[known] = (1 + as_high) / (1 + len(draws))
        table[f"p_{size}"] = p
        table[f"q_{size}"] = benjamini_hochberg(p)
    return table


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjusted p-values (n,), by which at most a share q of those called is false; NaN stay, and count for nothing."""
    q = np.full(len(p_values), np.nan)
    known = np.isfinite(p_values)
    if known.any():
        q[known] = false_discovery_control(p_values[known], method="bh")
    return q


def _as_labels(labels: ArrayLike, n_rows: int) -> NDArray[np.bool_]:
    array = as_array(labels, "labels")
    if array.ndim != 2 or len(array) != n_rows or array.shape[1] == 0:
        raise InputError(f"labels have shape {array.shape}: expected ({n_rows}, L), one row for each image")
    if array.dtype.kind != "b":
        values = numbers(labels, "labels")
        if not np.isin(values, (0, 1)).all():
            raise InputError("labels hold something else than true and false: leave out images whose label is missing")
        array = values == 1
    return array


def _null(
    null: Any, size: int, labels: NDArray[np.bool_], groups: NDArray[np.int64], n_draws: int, seed: int
) -> tuple[float, NDArray[np.float64] | None]:
    """The mean coherence of `size` images drawn at random, and that of every draw."""
    if isinstance(null, Mapping):
        if size not in null:
            raise InputError(f"the null has no value for n = {size}; it has {', '.join(map(str, null)) or 'none'}")
        return between(null[size], f"the null of n = {size}", 0, 1), None
    if null not in ("groups", "rows"):
        raise InputError(f"null is {null!r}: choose 'groups' or 'rows', or give a value for each n")
    n_groups = int(groups.max(initial=-1)) + 1
    if size > (n_groups if null == "groups" else len(labels)):
        return float("nan"), None  # then no latent fires in so many groups either
    generator = np.random.default_rng(seed)
    if null == "rows":
        drawn = np.stack([generator.choice(len(labels), size, replace=False) for _ in range(n_draws)])
        draws, _ = _of_images(drawn, labels)
        return round(float(draws.mean()), 6), draws
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=n_groups)
    starts = np.cumsum(counts) - counts
    chosen = np.stack([generator.choice(n_groups, size, replace=False) for _ in range(n_draws)])
    drawn = order[starts[chosen] + generator.integers(0, counts[chosen])]
    draws, _ = _of_images(drawn, labels)
    return float(draws.mean()), draws


def _of_images(rows: NDArray[np.int64], labels: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coherence and specificity (m,) of sets of images (m, n); NaN where a set is not full, which -1 says."""
    coherence, specificity = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    upper = np.triu_indices(rows.shape[1], 1)
    full = np.flatnonzero((rows >= 0).all(axis=1))
    for start in range(0, len(full), _BLOCK):
        block = full[start : start + _BLOCK]
        own = labels[rows[block]].astype(np.float32)  # (b, n, L); counts of up to 2**24 are exact
        sizes = own.sum(axis=2)
        both = np.matmul(own, own.transpose(0, 2, 1))[:, upper[0], upper[1]].astype(np.float64)
        either = (sizes[:, upper[0]] + sizes[:, upper[1]]).astype(np.float64) - both
        coherence[block] = np.divide(both, either, out=np.ones_like(both), where=either > 0).mean(axis=1)
        counts = own.sum(axis=1, dtype=np.float64)
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
        entropy = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)
        if labels.shape[1] > 1:
            specificity[block] = np.where(total[:, 0] > 0, 1 - entropy / np.log(labels.shape[1]), 0)
    return coherence, specificity


def activation_similarity_of(codes: Any, embeddings: ArrayLike) -> NDArray[np.float64]:
    """The label-free monosemanticity of every latent: how alike the images are in which it fires (Pach et al., 2025).

    The mean cosine of the embeddings of all pairs of images, weighted by the product of the latent's activations. With
    a (N,) the activations and E (N, d) unit embeddings it is (|E^T a|^2 - sum a^2) / ((sum a)^2 - sum a^2), which takes
    O(nnz d) instead of O(N^2 d). Chance is the mean cosine over all pairs, which depends on the embedding:
    `activation_similarity_of(np.ones((N, 1)), embeddings)`.

    Args:
        codes: (N, D) array or scipy.sparse, 0 or more.
        embeddings: (N, d), of any length above 0.

    Returns:
        (D,) float64, from -1 to 1; NaN where a latent fires in fewer than two images.

    Raises:
        InputError: arrays that do not fit, negative activations, an embedding that is zero or not finite.
    """
    found = as_codes(codes, negative=False)
    vectors = numbers(embeddings, "embeddings")
    if vectors.ndim != 2 or len(vectors) != found.shape[0]:
        raise InputError(f"embeddings have shape {vectors.shape}: expected ({found.shape[0]}, d), one for each image")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InputError("an embedding is zero or not finite, so that it has no direction: leave that image out")
    # The score does not change with the scale of a latent; without it tiny activations would underflow.
    largest = np.maximum(np.asarray(abs(found).max(axis=0).todense()).ravel(), np.finfo(float).tiny)
    scaled = found.copy()
    scaled.data = found.data / np.repeat(largest, np.diff(found.indptr))
    sums = np.asarray(scaled.sum(axis=0)).ravel()
    squares = np.asarray(scaled.multiply(scaled).sum(axis=0)).ravel()
    together = scaled.T @ (vectors / lengths)
    between_images = np.square(together).sum(axis=1) - squares
    weights = np.square(sums) - squares
    several = np.diff(found.indptr) > 1
    unknown = np.full(len(sums), np.nan)
    score: NDArray[np.float64] = np.divide(between_images, weights, out=unknown, where=several & (weights > 0))
    return score
