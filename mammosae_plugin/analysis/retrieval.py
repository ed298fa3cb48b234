"""Images that are like one: by its strongest latents (SAIL's fingerprints), by all of them, or by latents as words."""

__all__ = [
    "ALL", "fingerprints", "first_of_each", "LatentIndex", "Method", "METHODS", "nearest_ids", "retrieve",
    "retrieve_of", "row_of_image", "rows_of_split", "VectorIndex",
]  # fmt: skip

import difflib
import heapq
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes, as_groups
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.table_arrays import image_statistic, split_rows
from mammosae_plugin.arguments import as_array, checked_arguments, index, one_of, shown, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import settled

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Method = Literal["fingerprint", "cosine", "bm25"]
ALL = "all"
"""Images of every split."""
METHODS = ("fingerprint", "cosine", "bm25")
_K1, _B = 1.5, 0.75  # of BM25, as bm25s and Lucene-like libraries have them
_QUERIES, _ROWS = 32, 4096  # dense vectors compared at once


class LatentIndex:
    """Codes that images are looked up in; what does not depend on the query is computed once.

    Args:
        codes: (N, D) array or scipy.sparse.
        many: for many queries, for which the codes are stored by latent as well.
    """

    def __init__(self, codes: Any, *, many: bool = False) -> None:
        """Take the codes."""
        given: Any = codes.T if (is_sparse := bool(sparse.issparse(codes))) else codes
        checked = as_codes(given)  # by column: of what was turned over, by row
        self.rows: sparse.csr_array = sparse.csr_array(checked.T if is_sparse else checked)
        self.n_images = self.rows.shape[0]
        self.columns: Any = sparse.csc_array(self.rows) if many else self.rows
        self._many = many

    @cached_property
    def _always(self) -> NDArray[np.bool_]:
        n_positive = np.bincount(self.rows.indices[self.rows.data > 0], minlength=self.rows.shape[1])
        found: NDArray[np.bool_] = n_positive == self.n_images
        return found

    @cached_property
    def _lengths(self) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.sqrt(np.asarray((self.rows * self.rows).sum(axis=1)).ravel())
        return found

    @cached_property
    def _words(self) -> tuple[sparse.csr_array, Any, NDArray[np.float64]]:
        """Latents as words: how often each is in each image, what each is worth there, and how rare it is."""
        words = self.rows.copy()
        words.data = np.maximum(words.data, 0)
        words.eliminate_zeros()
        words.data = words.data / (words.data.mean() if len(words.data) else 1)
        frequency = np.bincount(words.indices, minlength=words.shape[1])
        rarity = np.log1p((self.n_images - frequency + 0.5) / (frequency + 0.5))
        lengths = np.asarray(words.sum(axis=1)).ravel()
        own = _K1 * (1 - _B + _B * lengths / (lengths.mean() or 1))
        worth = words.copy()
        worth.data = words.data * (_K1 + 1) / (words.data + np.repeat(own, np.diff(words.indptr)))
        return words, sparse.csc_array(worth) if self._many else worth, rarity

    def fingerprint(self, query: int, k: int) -> NDArray[np.int64]:
        """The query's strongest latents, at most `k` and strongest first, without those above 0 in every image."""
        columns, values = _of_row(self.rows, query)
        usable = (values > 0) & ~self._always[columns]
        columns, values = columns[usable], values[usable]
        return columns[np.lexsort((columns, -values))[:k]]

    def likeness(self, query: int, method: Method, k: int) -> NDArray[np.float64]:
        """How like the query every image is, (N,), as `retrieve_of` says.

        Raises:
            InputError: The query has no latent to go by.
        """
        if method == "fingerprint":
            return self._by_fingerprint(query, k)
        if method == "bm25":
            words, worth, rarity = self._words
            columns, often = _of_row(words, query)
            if not len(columns):
                raise InputError(f"image {query} has no latent above 0: nothing to go by")
            return np.asarray(worth[:, columns] @ (often * rarity[columns]))
        columns, values = _of_row(self.rows, query)
        if not len(columns):
            raise InputError(f"image {query} has no active latent: nothing to go by")
        return _cosines(np.asarray(self.columns[:, columns] @ values), self._lengths, float(self._lengths[query]))

    def likenesses(
        self, queries: Sequence[int], method: Method, k: int
    ) -> Iterator[tuple[int, NDArray[np.float64] | None]]:
        """Every query with its likeness to every image, None where it has no latent to go by."""
        for query in queries:
            try:
                yield query, self.likeness(query, method, k)
            except InputError:
                yield query, None

    def _by_fingerprint(self, query: int, k: int) -> NDArray[np.float64]:
        chosen = self.fingerprint(query, k)
        if not len(chosen):
            raise InputError(
                f"image {query} has no latent above 0 that is not above 0 in every image: nothing to go by"
            )
        part, values = self.columns[:, chosen], self.rows[[query]][:, chosen].toarray().ravel()
        if len(chosen) == 1:
            alone: NDArray[np.float64] = 1 / (1 + np.abs(part.toarray().ravel() - values))
            return alone
        lengths = np.sqrt(np.asarray((part * part).sum(axis=1)).ravel())
        return _cosines(np.asarray(part @ values), lengths, float(np.linalg.norm(values)))


class VectorIndex:
    """Dense vectors that many images are looked up in, by cosine.

    Args:
        vectors: (N, d) array, kept in the type that it has.

    Raises:
        InputError: not (N, d), or not finite.
    """

    def __init__(self, vectors: ArrayLike, n_images: int) -> None:
        """Take the vectors."""
        array = as_array(vectors, "embeddings")
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise InputError(f"embeddings are {array.dtype} of shape {array.shape}: expected numbers (N, d)")
        if len(array) != n_images:
            raise InputError(f"embeddings are of {len(array)} images, codes of {n_images}: give one for each")
        self.vectors = array
        lengths = [np.linalg.norm(block.astype(np.float64), axis=1) for block in self._blocks()]
        self.lengths: NDArray[np.float64] = np.concatenate([*lengths, np.zeros(0)])
        if not np.isfinite(self.lengths).all():
            raise InputError("embeddings hold a value that is not finite")

    def _blocks(self) -> Iterator[NDArray[Any]]:
        return (self.vectors[start : start + _ROWS] for start in range(0, len(self.vectors), _ROWS))

    def cosines(self, query: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The cosine (n,) of the query's vector with those of some rows."""
        one = self.vectors[query].astype(np.float64)
        return _cosines(self.vectors[rows].astype(np.float64) @ one, self.lengths[rows], float(self.lengths[query]))

    def likenesses(
        self, queries: Sequence[int], method: str, k: int
    ) -> Iterator[tuple[int, NDArray[np.float64] | None]]:
        """Every query with its cosine to every image, None where its vector is zero.

        Args:
            queries: their rows.
            method: "dense", over the whole vector, or "dense_fingerprint", over the query's `k` largest coordinates,
                whatever their sign.
            k: how many coordinates.
        """
        if method == "dense_fingerprint":
            for query in queries:
                one = self.vectors[query].astype(np.float64)
                chosen = np.argsort(-np.abs(one), kind="stable")[:k]
                part = self.vectors[:, chosen].astype(np.float64)
                found = _cosines(part @ one[chosen], np.linalg.norm(part, axis=1), float(np.linalg.norm(one[chosen])))
                yield query, found if one.any() else None
            return
        for start in range(0, len(queries), _QUERIES):
            asked = list(queries[start : start + _QUERIES])
            ones = self.vectors[asked].astype(np.float64).T
            products = np.concatenate([block.astype(np.float64) @ ones for block in self._blocks()]).T
            for query, product in zip(asked, products, strict=True):
                length = float(self.lengths[query])
                yield query, _cosines(product, self.lengths, length) if length > 0 else None


def _of_row(codes: sparse.csr_array, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    span = slice(codes.indptr[row], codes.indptr[row + 1])
    return codes.indices[span].astype(np.int64), codes.data[span]


def _cosines(products: NDArray[np.float64], lengths: NDArray[np.float64], own: float) -> NDArray[np.float64]:
    both = lengths * own
    cosines: NDArray[np.float64] = np.divide(products, both, out=np.zeros(len(products)), where=both > 0)
    return cosines


def first_of_each(groups: NDArray[np.int64], n_groups: int) -> NDArray[np.int64]:
    """The places, rising, where each group stands for the first time in a list of groups, numbered from 0."""
    first = np.full(n_groups, -1, dtype=np.int64)
    first[groups[::-1]] = np.arange(len(groups))[::-1]  # of several values for one place NumPy keeps the last
    return np.sort(first[first >= 0])


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
    found = LatentIndex(codes)
    one_of(method, "method", METHODS)
    query, k, n = index(query, "query", found.n_images), whole(k, "k", least=1), whole(n, "n", least=1)
    of_row = as_groups(groups, found.n_images)
    _require_others(of_row, query)
    return _best(found.likeness(query, method, k), query, of_row, n)


def _require_others(of_row: NDArray[np.int64], query: int) -> None:
    if (of_row == of_row[query]).all():
        raise InputError("every row is of the query's own group: there is no other image to give")


def _best(
    likeness: NDArray[np.float64], query: int, of_row: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    others = np.flatnonzero(of_row != of_row[query])
    likeness = settled(likeness)
    order = others[np.argsort(-likeness[others], kind="stable")]
    rows = order[first_of_each(of_row[order], int(of_row.max()) + 1)][:n]
    return rows, likeness[rows]


def row_of_image(table: "LatentTable", image: str | int) -> int:
    """The row of an image in a latents table.

    Args:
        table: the latents table.
        image: its image_id; or parts of one between slashes, such as `s0012/x/31` of `ct/s0012/x/0031`, or how it
            begins; or the number of its row, as a number or as `row:31`.

    Raises:
        InputError: no such image, with the nearest ids, or several, with the first of them.
    """
    ids = table.images["image_id"].astype(str).tolist()
    numbered = re.fullmatch(r"row:([0-9]+)", image) if isinstance(image, str) else None
    if numbered or not isinstance(image, str):
        return index(int(numbered[1]) if numbered else image, "the image's row", len(ids))
    rows = [row for row, one in enumerate(ids) if one == image]
    where = "" if rows else ", in part"
    if not rows:
        asked = _parts(image)
        rows = [row for row, one in enumerate(ids) if _holds(_parts(one), asked)] if asked else []
        rows = rows or [row for row, one in enumerate(ids) if image and one.startswith(image)]
    if len(rows) == 1:
        return rows[0]
    if not rows:
        near = nearest_ids(image, ids)
        said = f"the nearest are {', '.join(near)}" if near else f"its ids are like {ids[0]}"
        raise InputError(f"{table.folder} has no image {shown(image)}; {said}")
    splits = table.images["split"]
    some = ", ".join(f"{ids[row]} (row:{row}, {splits[row]})" for row in rows[:3])
    raise InputError(
        f"{shown(image)} names {len(rows)} images of {table.folder}{where}: {some}{', ...' if len(rows) > 3 else ''}; "
        "give the whole id, or the row as row:NUMBER"
    )


def _parts(image_id: str) -> list[str]:
    """The parts of a key; numbers are the same with and without zeros before them."""
    return [part.lstrip("0") or "0" if part.isdecimal() else part for part in image_id.split("/") if part]


def _holds(parts: list[str], asked: list[str]) -> bool:
    size = len(asked)
    return any(parts[start : start + size] == asked for start in range(len(parts) - size + 1))


def nearest_ids(image_id: str, ids: Sequence[str]) -> list[str]:
    """The three ids that are most like one; of many, those that share the most triples of letters are compared."""

    def triples(text: str) -> set[str]:
        return {text[start : start + 3] for start in range(max(len(text) - 2, 1))}

    asked = triples(image_id)
    close = heapq.nlargest(100, dict.fromkeys(ids), key=lambda one: len(asked & triples(one)))
    return difflib.get_close_matches(image_id, close, n=3, cutoff=0.3)


@checked_arguments
def retrieve(
    table: "LatentTable",
    image_id: str | int,
    *,
    method: str = "fingerprint",
    k: int = 5,
    n: int = 5,
    statistic: str = "max",
    split: str = ALL,
    embeddings: Embeddings = None,
) -> pd.DataFrame:
    """The images of a table that are most like one of them, of other patients (`retrieve_of` has the formulas).

    Args:
        table: the latents table, of a map or of one vector per image.
        image_id: the image that is asked for, as for `row_of_image`.
        method: as for `retrieve_of`; or "dense", the cosine of `embeddings`.
        k: as for `retrieve_of`.
        n: as for `retrieve_of`.
        statistic: "max" or "mean" of a latent over positions.
        split: give images of this split only; by default of "all".
        embeddings: of "dense", the vectors of the table's images: an array (n_images, d), a store or files; by default
            the mean channels of a table of maps.

    Returns:
        One row per image by falling likeness: image_id, patient_id, split, likeness, shared (of the query's `k`
        strongest latents those that fire there too, strongest first), activations (theirs in that image), row (its
        number in the table) and the classes of every concept.

    Raises:
        InputError: an image that the table lacks, an unknown split, vectors of other images, and as `retrieve_of`.

    Example:
        >>> retrieve(table, "8269f5971eaca3e5d3772d1796e6bd7a", n=10)  # doctest: +SKIP
    """
    one_of(method, "method", (*METHODS, "dense"))
    k, n = whole(k, "k", least=1), whole(n, "n", least=1)
    images = table.images
    query = row_of_image(table, image_id)
    searched = np.union1d(rows_of_split(table, split), [query])
    codes = image_statistic(table, statistic)
    found = LatentIndex(codes if len(searched) == len(images) else codes[searched])
    place = int(np.searchsorted(searched, query))
    groups = as_groups(images["patient_id"].to_numpy(dtype=object)[searched], len(searched))
    _require_others(groups, place)
    if method != "dense":
        try:
            likeness = found.likeness(place, cast(Method, method), k)
        except InputError as error:
            raise InputError(
                f"image {images['image_id'][query]} has no latent above 0 of its own to go by; ask for another, or by "
                "other means"
            ) from error
    else:
        vectors = dense_rows(table, embeddings, np.arange(len(images))).whole()
        _, cosines = next(VectorIndex(vectors, len(images)).likenesses([query], "dense", k))
        if cosines is None:
            raise InputError(f"the vector of image {images['image_id'][query]} is zero: nothing to go by")
        likeness = cosines[searched]
    places, values = _best(likeness, place, groups, n)
    asked = found.fingerprint(place, k)
    fires = found.rows[places][:, asked].toarray()
    rows = searched[places]
    about = images.loc[rows, ["image_id", "patient_id", "split"]].assign(
        likeness=values,
        shared=[asked[own > 0].tolist() for own in fires],
        activations=[own[own > 0].tolist() for own in fires],
        row=rows,
    )
    return pd.concat([about, images.loc[rows, list(table.vocabulary)]], axis=1).reset_index(drop=True)


@checked_arguments
def fingerprints(
    table: "LatentTable", image_id: str | int, rows: Sequence[int], *, k: int = 5, statistic: str = "max"
) -> pd.DataFrame:
    """The strongest latents of an image, there and in others.

    Args:
        table: the latents table.
        image_id: the image, as for `row_of_image`.
        rows: the rows of the others, such as `row` of `retrieve`.
        k: how many latents.
        statistic: as for `retrieve`.

    Returns:
        One row per image and latent: place (0 is the image itself), row, image_id, latent, activation; the latents
        strongest first.

    Raises:
        InputError: as `retrieve`, or the image has no latent above 0 that is not above 0 in every image.
    """
    query = row_of_image(table, image_id)
    found = LatentIndex(image_statistic(table, statistic))
    latents = found.fingerprint(query, whole(k, "k", least=1))
    if not len(latents):
        raise InputError(f"image {table.images['image_id'][query]} has no latent of its own to show: none is above 0")
    shown_rows = [query, *(index(row, "rows", found.n_images) for row in rows)]
    values = found.rows[shown_rows][:, latents].toarray()
    ids = table.images["image_id"].astype(str).to_numpy()[shown_rows]
    return pd.DataFrame(
        {
            "place": np.repeat(np.arange(len(shown_rows)), len(latents)),
            "row": np.repeat(shown_rows, len(latents)),
            "image_id": np.repeat(ids, len(latents)),
            "latent": np.tile(latents, len(shown_rows)),
            "activation": values.ravel(),
        }
    )


def rows_of_split(table: "LatentTable", split: str) -> NDArray[np.int64]:
    """The rows of a split's images, or of "all".

    Raises:
        InputError: no such split.
    """
    return np.arange(len(table.images)) if split == ALL else split_rows(table, split)
