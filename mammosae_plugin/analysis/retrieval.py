"""Images that are like one: by its strongest latents (SAIL's fingerprints), by all of them, or by latents as words."""

__all__ = ["fingerprint", "Method", "METHODS", "retrieve_of"]

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes, as_groups
from mammosae_plugin.arguments import index, one_of, whole
from mammosae_plugin.errors import InputError

Method = Literal["fingerprint", "cosine", "bm25"]
METHODS = ("fingerprint", "cosine", "bm25")
_K1, _B = 1.5, 0.75  # of BM25, as bm25s and Lucene-like libraries have them


def retrieve_of(
    codes: Any, query: int, groups: ArrayLike, *, method: Method = "fingerprint", k: int = 5, n: int = 5
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The images that are most like one of them.

    - "fingerprint": the query's `k` strongest latents above 0, without those above 0 in every image; cosine over these
      latents alone, and with a single one 1 / (1 + |difference|). A query with fewer has a shorter fingerprint.
    - "cosine": over all latents.
    - "bm25": latents as words, as often in an image as their activation (over the mean of all above 0) says;
      Robertson's weights with k1 1.5, b 0.75 and the length of an image the sum of its words; the query's words count
      as often as they are in it.

    Args:
        codes: (N, D) array or scipy.sparse.
        query: the row of the image that is asked for.
        groups: (N,) which images belong together. The query's own group is left out, and of another only its best image
            is given.
        method: how likeness is measured.
        k: latents in a fingerprint.
        n: how many images to give; fewer where there are fewer groups.

    Returns:
        rows (n,) by falling likeness (equal ones in their order), and the likeness (n,) of each.

    Raises:
        InputError: arrays that do not fit, a query that is no row or has no latent to go by, no other group.
    """
    found = sparse.csr_array(as_codes(codes))
    one_of(method, "method", METHODS)
    query, k, n = index(query, "query", found.shape[0]), whole(k, "k", least=1), whole(n, "n", least=1)
    of_row = as_groups(groups, found.shape[0])
    others = np.flatnonzero(of_row != of_row[query])
    if not len(others):
        raise InputError("every row is of the query's own group: there is no other image to give")
    likeness = {"fingerprint": _fingerprint, "cosine": _cosine, "bm25": _bm25}[method](found, query, k)
    order = others[np.argsort(-likeness[others], kind="stable")]
    _, first = np.unique(of_row[order], return_index=True)
    rows = order[np.sort(first)][:n]
    return rows, likeness[rows]


def fingerprint(codes: sparse.csr_array, query: int, k: int) -> NDArray[np.int64]:
    """The query's strongest latents, at most `k`, without those above 0 in every image."""
    own = codes[[query]].tocoo()
    columns, values = own.col, own.data
    positive = codes.copy()
    positive.data = (positive.data > 0).astype(np.int64)
    always = np.asarray(positive.sum(axis=0)).ravel() == codes.shape[0]
    usable = (values > 0) & ~always[columns]
    columns, values = columns[usable], values[usable]
    order = np.lexsort((columns, -values))[:k]
    if not len(order):
        raise InputError(f"image {query} has no latent above 0 that is not above 0 in every image: nothing to go by")
    chosen: NDArray[np.int64] = columns[order].astype(np.int64)
    return chosen


def _fingerprint(codes: sparse.csr_array, query: int, k: int) -> NDArray[np.float64]:
    part = codes[:, fingerprint(codes, query, k)].toarray()
    if part.shape[1] == 1:
        alone: NDArray[np.float64] = 1 / (1 + np.abs(part[:, 0] - part[query, 0]))
        return alone
    return _cosines(part @ part[query], np.linalg.norm(part, axis=1), query)


def _cosine(codes: sparse.csr_array, query: int, _: int) -> NDArray[np.float64]:
    lengths = np.sqrt(np.asarray(codes.multiply(codes).sum(axis=1)).ravel())
    if lengths[query] == 0:
        raise InputError(f"image {query} has no active latent: nothing to go by")
    return _cosines(np.asarray(codes @ codes[[query]].toarray().ravel()), lengths, query)


def _cosines(products: NDArray[np.float64], lengths: NDArray[np.float64], query: int) -> NDArray[np.float64]:
    both = lengths * lengths[query]
    cosines: NDArray[np.float64] = np.divide(products, both, out=np.zeros(len(products)), where=both > 0)
    return cosines


def _bm25(codes: sparse.csr_array, query: int, _: int) -> NDArray[np.float64]:
    words = codes.copy()
    words.data = np.maximum(words.data, 0)
    words.eliminate_zeros()
    if not len(words[[query]].data):
        raise InputError(f"image {query} has no latent above 0: nothing to go by")
    words.data = words.data / words.data.mean()
    n_images = codes.shape[0]
    frequency = np.bincount(words.indices, minlength=codes.shape[1])
    rarity = np.log1p((n_images - frequency + 0.5) / (frequency + 0.5))
    lengths = np.asarray(words.sum(axis=1)).ravel()
    asked = words[[query]].toarray().ravel() * rarity
    own = _K1 * (1 - _B + _B * lengths / lengths.mean())
    weighted = words.copy()
    weighted.data = words.data * (_K1 + 1) / (words.data + np.repeat(own, np.diff(words.indptr)))
    return np.asarray(weighted @ asked)
