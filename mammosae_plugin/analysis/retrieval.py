"""Images that are like one: by its strongest latents (SAIL's fingerprints), by all of them, or by latents as words."""

__all__ = ["fingerprint", "Method", "METHODS", "retrieval_scores_of", "retrieve", "retrieve_of"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.metrics import average_precision_score, ndcg_score

from mammosae_plugin.analysis.codes import as_codes, as_groups
from mammosae_plugin.arguments import checked_arguments, entries, index, numbers, one_of, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, spread_interval

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

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


@checked_arguments
def retrieve(
    table: "LatentTable",
    image_id: str,
    *,
    method: Method = "fingerprint",
    k: int = 5,
    n: int = 5,
    statistic: str = "max",
) -> pd.DataFrame:
    """The images of a table that are most like one of them, of other patients (`retrieve_of` has the formulas).

    Args:
        table: the latents table.
        image_id: the image that is asked for.
        method: as for `retrieve_of`.
        k: as for `retrieve_of`.
        n: as for `retrieve_of`.
        statistic: "max" or "mean" of a latent over positions.

    Returns:
        One row per image by falling likeness: image_id, patient_id, split, likeness, shared (the query's `k` strongest
        latents that fire there too, strongest first) and the classes of every concept.

    Raises:
        InputError: an image that the table lacks, and as `retrieve_of`.
    """
    one_of(statistic, "statistic", ("max", "mean"))
    images = table.images
    found = np.flatnonzero((images["image_id"] == image_id).to_numpy())
    if not len(found):
        raise InputError(f"{table.folder} has no image {image_id!r}; its ids are like {images['image_id'].iloc[0]!r}")
    codes = table.max_latents if statistic == "max" else table.mean_latents
    query, patients = int(found[0]), images["patient_id"].to_numpy(dtype=object)
    rows, likeness = retrieve_of(codes, query, patients, method=method, k=k, n=n)
    asked = fingerprint(sparse.csr_array(as_codes(codes)), query, k)
    fires = codes[rows].tocsc()[:, asked].toarray() > 0
    about = images.loc[rows, ["image_id", "patient_id", "split"]].assign(
        likeness=likeness, shared=[asked[own].tolist() for own in fires]
    )
    return pd.concat([about, images.loc[rows, list(table.vocabulary)]], axis=1).reset_index(drop=True)


def retrieval_scores_of(
    codes: Any,
    labels: Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    methods: Sequence[str] = METHODS,
    embeddings: ArrayLike | None = None,
    k: int = 5,
    n: int = 5,
    n_queries: int = 200,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """How often the images that are found share the query's labels, beside what images at random share.

    SAIL judges by cosine in the dense space, which an untrained network wins; this judges by labels. Every query ranks
    one image of each other group; of a label the queries are images that have it, and an image is right if it has it.

    Args:
        codes: (N, D) array or scipy.sparse.
        labels: name -> (N,) 0 or 1, NaN where it is missing: such images are neither asked for nor found.
        groups: (N,) which images belong together; no group is given to its own query.
        methods: some of `METHODS`.
        embeddings: (N, d), the dense vectors; given them, a method "dense" is their cosine.
        k: latents in a fingerprint.
        n: how many images are looked at.
        n_queries: queries of each label, drawn at random where there are more.
        n_bootstrap: resamples of the queries' groups for 95 % intervals; 0 gives NaN.
        min_patients: groups of queries that an interval needs.
        seed: of queries and resamples.

    Returns:
        One row per label and method, "random" last: label, method, precision (share of the first `n` that are right)
        with precision_low and precision_high, recall (of all right ones, the share among the first `n`),
        average_precision (its mean over queries is mAP), ndcg (of the first `n`), n_queries, n_query_groups,
        n_unanswered (queries with no latent to go by, left out) and reason: why a row is NaN, else empty.

    Raises:
        InputError: arrays that do not fit, a method that there is not, or labels that are not 0, 1 or NaN.
    """
    found = sparse.csr_array(as_codes(codes))
    of_row = as_groups(groups, found.shape[0])
    chosen = [str(method) for method in entries(methods, "methods")]
    for method in chosen:
        one_of(method, "methods", METHODS)
    k, n, n_queries = whole(k, "k", least=1), whole(n, "n", least=1), whole(n_queries, "n_queries", least=1)
    n_bootstrap, seed = whole(n_bootstrap, "n_bootstrap", least=0), whole(seed, "seed", least=0)
    min_patients = whole(min_patients, "min_patients", least=1)
    dense = None if embeddings is None else sparse.csr_array(as_codes(embeddings, "embeddings"))
    if dense is not None and dense.shape[0] != found.shape[0]:
        raise InputError(f"embeddings are of {dense.shape[0]} images, codes of {found.shape[0]}: give one for each")
    sources: dict[str, tuple[Any, Any]] = {method: (found, method) for method in chosen}
    if dense is not None:
        sources["dense"] = (dense, "cosine")
    records = []
    for name, given in labels.items():
        values = numbers(given, f"labels of {name}")
        if values.shape != of_row.shape or not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise InputError(f"labels of {name}: expected ({len(of_row)},), 0 or 1 of every image, NaN where missing")
        known = np.flatnonzero(~np.isnan(values))
        right, own = values[known] == 1, of_row[known]
        generator = np.random.default_rng(seed)
        queries = np.flatnonzero(right)
        if len(queries) > n_queries:
            queries = np.sort(generator.choice(queries, n_queries, replace=False))
        for method in (*sources, "random"):
            about: dict[str, Any] = {"label": name, "method": method}
            if not len(queries) or len(np.unique(own)) < 2:
                reason = "no image has this label" if not len(queries) else "all images are of one group"
                records.append({**about, "precision": np.nan, "reason": reason})
                continue
            scores, asked = [], []
            for query in queries.tolist():
                if method == "random":
                    others = np.flatnonzero(own != own[query])
                    order = generator.permutation(others)
                    _, first = np.unique(own[order], return_index=True)
                    rows = order[np.sort(first)]
                else:
                    source, way = sources[method]
                    try:
                        rows, _ = retrieve_of(source[known], query, own, method=way, k=k, n=len(own))
                    except InputError:  # nothing to go by, which is counted
                        continue
                scores.append(_judged(right[rows], n))
                asked.append(own[query])
            record = {
                **about,
                **_summary(np.array(scores).reshape(-1, 4), np.array(asked), n_bootstrap, min_patients, seed),
            }
            records.append({**record, "n_unanswered": len(queries) - len(asked)})
    return pd.DataFrame(records)


def _judged(right: NDArray[np.bool_], n: int) -> tuple[float, float, float, float]:
    """Precision, recall, average precision and nDCG of one ranking; NaN where nothing right is to be found."""
    precision = float(right[:n].mean())
    if not right.any():
        return precision, float("nan"), float("nan"), float("nan")
    places = -np.arange(len(right), dtype=np.float64)
    gain = ndcg_score([right.astype(float)], [places], k=n) if len(right) > 1 else float(right[0])
    return precision, float(right[:n].sum() / right.sum()), float(average_precision_score(right, places)), float(gain)


def _summary(
    scores: NDArray[np.float64], asked: NDArray[np.int64], n_bootstrap: int, min_patients: int, seed: int
) -> dict[str, Any]:
    names = ("precision", "recall", "average_precision", "ndcg")
    n_groups = len(np.unique(asked))
    low = high = float("nan")
    if not len(scores):
        return {
            **dict.fromkeys(names, np.nan),
            "n_queries": 0,
            "n_query_groups": 0,
            "reason": "no query has a latent to go by",
        }
    if n_bootstrap and n_groups >= min_patients:
        weights = patient_bootstrap(asked, n_bootstrap, seed).astype(np.float64)
        low, high = spread_interval(weights @ scores[:, 0] / weights.sum(axis=1))
    known = np.isfinite(scores)
    means = np.divide(
        np.where(known, scores, 0).sum(axis=0), known.sum(axis=0), out=np.full(4, np.nan), where=known.any(axis=0)
    )
    return {
        "precision": means[0],
        "precision_low": low,
        "precision_high": high,
        **dict(zip(names[1:], means[1:].tolist(), strict=True)),
        "n_queries": len(scores),
        "n_query_groups": n_groups,
        "reason": "",
    }
