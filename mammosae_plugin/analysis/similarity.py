"""How alike the images are in which a latent fires: the label-free score of Pach et al. (arXiv 2504.02821)."""

__all__ = ["activation_similarity_of", "PairSimilarity", "pair_similarity"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes
from mammosae_plugin.arguments import as_array, numbers
from mammosae_plugin.errors import InputError

_BLOCK = 1024  # rows of an array
_GATHERED = 4_000_000  # numbers of embeddings that are gathered at once

Blocks = Callable[[], Iterator[tuple[NDArray[np.int64], NDArray[Any]]]]
"""Gives, each time anew, blocks of embeddings: which rows (b,), and these (b, d)."""


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
    vectors = as_array(embeddings, "embeddings")
    if vectors.ndim != 2 or len(vectors) != found.shape[0]:
        raise InputError(f"embeddings have shape {vectors.shape}: expected ({found.shape[0]}, d), one for each image")

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        for start in range(0, len(vectors), _BLOCK):
            part = numbers(vectors[start : start + _BLOCK], "embeddings")
            yield np.arange(start, start + len(part)), part

    return _sums(_scaled(found), blocks).similarity


@dataclass(frozen=True)
class PairSimilarity:
    """The score of every latent and its error.

    Attributes:
        similarity: (D,) as `activation_similarity_of`.
        error: (D,) its standard error over groups.
        chance: mean cosine over all pairs of images.
        excess_error: (D,) standard error of similarity - chance, which rest on the same groups.
        mean_error: standard error of the mean similarity of the latents of interest.
        mean_excess_error: the same of its difference from chance.
    """

    similarity: NDArray[np.float64]
    error: NDArray[np.float64]
    chance: float
    excess_error: NDArray[np.float64]
    mean_error: float
    mean_excess_error: float


def pair_similarity(
    codes: sparse.csc_array, blocks: Blocks, groups: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> PairSimilarity:
    """The label-free score with standard errors by the jackknife over groups, in O(nnz d).

    Leaving out a group takes from the sums over pairs what its images add, which for all latents and groups together
    is one more pass over the embeddings; of pairs within the group, a second-order term, it is taken that they are
    alike. As the changes are known for every latent and group, errors of means over latents and of differences from
    chance cost nothing more.

    Args:
        codes: (N, D) as `as_codes` gives them, 0 or more.
        blocks: the embeddings, read twice.
        groups: (N,) as `as_groups` numbers them.
        chosen: (D,) the latents of interest.

    Raises:
        InputError: an embedding that is zero or not finite.
    """
    scaled = _scaled(codes)
    sums = _sums(scaled, blocks)
    rows = sparse.csr_array(scaled)
    n_images = rows.shape[0]
    together, everything = sums.together.astype(np.float32), sums.everything
    own = np.empty(rows.nnz)  # of every stored activation a_i: E_i . sum_j a_j E_j
    of_all = np.empty(n_images)
    for places, vectors in blocks():
        unit = _unit(vectors)
        of_all[places] = unit @ everything
        part = unit.astype(np.float32)
        lengths = np.diff(rows.indptr)[places]
        at = np.repeat(rows.indptr[places], lengths) + _ramp(lengths)
        row = np.repeat(np.arange(len(places)), lengths)
        step = max(1, _GATHERED // max(unit.shape[1], 1))
        for start in range(0, len(at), step):
            some = slice(start, start + step)
            products = np.einsum("nd,nd->n", part[row[some]], together[rows.indices[at[some]]])
            own[at[some]] = rows.data[at[some]] * products
    n_groups = int(groups.max(initial=-1)) + 1
    key = rows.indices.astype(np.int64) * n_groups + np.repeat(groups, np.diff(rows.indptr))
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))

    def grouped(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over each group's images, of every latent that fires in the group."""
        return np.add.reduceat(values[order], starts) if len(starts) else np.zeros(0)

    along, square, total = grouped(own), grouped(np.square(rows.data)), grouped(rows.data)
    latent, group = np.divmod(key[starts], n_groups)
    within = np.square(total) - square
    without = sums.weights[latent] - 2 * (total * sums.totals[latent] - square) + within
    pairs = (sums.similarity * sums.weights)[latent] - 2 * (along - square) + within
    known = np.isfinite(sums.similarity)
    change = np.zeros(len(latent))
    counts = known[latent] & (without > 1e-12 * sums.weights[latent])
    change[counts] = pairs[counts] / without[counts] - sums.similarity[latent[counts]]
    by_group = sparse.csc_array((change, (group, latent)), shape=(n_groups, rows.shape[1]))

    n_own = np.bincount(groups, minlength=n_groups).astype(np.float64)
    all_pairs, within = n_images * (n_images - 1), n_own * (n_own - 1)
    without = all_pairs - 2 * n_own * (n_images - 1) + within
    pairs = sums.chance * all_pairs - 2 * np.bincount(groups, of_all - 1, minlength=n_groups) + within
    of_chance = np.divide(pairs, without, out=np.full(n_groups, np.nan), where=without > 0) - sums.chance

    few = np.sqrt((n_groups - 1) / n_groups) if n_groups > 1 else np.nan
    unknown = np.where(known, few, np.nan)
    squares: NDArray[np.float64] = np.asarray(by_group.multiply(by_group).sum(axis=0)).ravel()
    excess = squares - 2 * np.asarray(by_group.T @ of_chance) + np.square(of_chance).sum()
    interest = chosen & known
    mean = np.asarray(by_group @ (interest / max(interest.sum(), 1)))
    return PairSimilarity(
        sums.similarity,
        np.sqrt(squares) * unknown,
        sums.chance,
        np.sqrt(np.maximum(excess, 0)) * unknown,
        float(np.linalg.norm(mean) * few),
        float(np.linalg.norm(mean - of_chance) * few),
    )


@dataclass(frozen=True)
class _Sums:
    """Of every latent with activations a: `together` (D, d) sum_i a_i E_i, `totals` sum a, `weights` of all pairs, and
    the score; of all images `everything` (d,) sum_i E_i and `chance`."""

    together: NDArray[np.float64]
    totals: NDArray[np.float64]
    weights: NDArray[np.float64]
    similarity: NDArray[np.float64]
    everything: NDArray[np.float64]
    chance: float


def _sums(scaled: sparse.csc_array, blocks: Blocks) -> _Sums:
    rows = sparse.csr_array(scaled)
    n_images, n_latents = rows.shape
    together, everything = np.zeros((n_latents, 0)), np.zeros(0)
    for places, vectors in blocks():
        unit = _unit(vectors)
        if not together.size:
            together, everything = np.zeros((n_latents, unit.shape[1])), np.zeros(unit.shape[1])
        part = rows[places]
        used = np.unique(part.indices)  # a block holds few of many latents
        together[used] += sparse.csr_array(part[:, used].T) @ unit
        everything += unit.sum(axis=0)
    totals: NDArray[np.float64] = np.asarray(scaled.sum(axis=0), dtype=np.float64).ravel()
    squares = np.asarray(scaled.multiply(scaled).sum(axis=0)).ravel()
    weights = np.square(totals) - squares
    several = (np.diff(scaled.indptr) > 1) & (weights > 0)
    unknown = np.full(n_latents, np.nan)
    between_images = np.square(together).sum(axis=1) - squares
    similarity: NDArray[np.float64] = np.divide(between_images, weights, out=unknown, where=several)
    pairs = n_images * (n_images - 1)
    chance = float((np.square(everything).sum() - n_images) / pairs) if pairs else float("nan")
    return _Sums(together, totals, weights, similarity, everything, chance)


def _scaled(codes: sparse.csc_array) -> sparse.csc_array:
    """Every latent over its largest activation: the score stays, and tiny activations do not underflow."""
    scaled = codes.copy()
    if not codes.nnz:
        return scaled
    largest = np.maximum(np.asarray(abs(codes).max(axis=0).todense()).ravel(), np.finfo(float).tiny)
    scaled.data = codes.data / np.repeat(largest, np.diff(codes.indptr))
    return scaled


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InputError("an embedding is zero or not finite, so that it has no direction: leave that image out")
    unit: NDArray[np.float64] = wide / lengths
    return unit


def _ramp(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ..., length - 1 of each length in turn."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
