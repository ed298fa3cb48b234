"""How well retrieval finds images of the same label: beside random images, dense vectors and an untrained SAE."""

__all__ = ["judged", "KS", "MEASURES", "retrieval_scores", "retrieval_scores_of"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.analysis.codes import as_groups
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.retrieval import METHODS, LatentIndex, VectorIndex, first_of_each, rows_of_split
from mammosae_plugin.analysis.table_arrays import image_groups, image_labels, image_statistic
from mammosae_plugin.arguments import checked_arguments, entries, flag, numbers, one_of, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, settled, spread_interval
from mammosae_plugin.progress import progress as bar_of

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

KS = (1, 2, 5, 10, 20, 50)
MEASURES = ("precision", "recall", "average_precision", "ndcg")
_DRAWS = 5  # random rankings of every query, whose mean is taken
_MOST_VALUES = 20  # of a column that is no concept


_Name = tuple[str, str, int]  # of an arm: source, method, k


@dataclass(frozen=True)
class _Arm:
    """One way to rank images: of which codes or vectors, by which method, with how many latents (0: all)."""

    source: str
    method: str
    k: int
    index: Any


@dataclass(frozen=True)
class _Label:
    """Which images have a label, of which it is known, and which are asked for."""

    name: str
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]
    queries: NDArray[np.int64]
    reason: str


def retrieval_scores_of(
    codes: Any,
    labels: Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    methods: Sequence[str] = METHODS,
    embeddings: ArrayLike | None = None,
    untrained: Any = None,
    k: int | Sequence[int] = 5,
    n: int = 5,
    n_queries: int = 200,
    n_bootstrap: int = 1000,
    n_draws: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """How often the images that are found share the query's labels, beside what images at random share.

    SAIL judges by cosine in the dense space, which an untrained network wins; this judges by labels. Every query ranks
    one image of each other group; of a label the queries are images that have it, and an image is right if it has it.
    Images that are equally like the query stand in a random order, which is its own and the same for all methods: in
    the order of the rows, those of one kind often lie together.

    Args:
        codes: (N, D) array or scipy.sparse.
        labels: name -> (N,) 0 or 1, NaN where it is missing: such images are neither asked for nor found.
        groups: (N,) which images belong together; no group is given to its own query.
        methods: some of `METHODS`.
        embeddings: (N, d), the dense vectors; given them, "dense" is their cosine and "dense_fingerprint" that of the
            query's k largest coordinates.
        untrained: (N, E), the codes of an untrained SAE, to which the same is done.
        k: latents in a fingerprint; several give a row each.
        n: how many images are looked at.
        n_queries: queries of each label, drawn at random where there are more.
        n_bootstrap: resamples of the queries' groups for 95 % intervals; 0 gives NaN.
        n_draws: times that labels are dealt out anew to groups for p; 0 gives NaN.
        min_patients: groups of queries that an interval needs.
        seed: of queries, of the order of equal images, of random images and of resamples.
        progress: show a bar on stderr.

    Returns:
        One row per label and way of ranking, "random" (the mean of 5 random rankings of every query) last: label;
        source ("latents", "untrained", "dense", "random"); method; k (0 where all latents count); n; precision (share
        of the first `n` that are right), recall (of all right ones, the share among the first `n`), average_precision
        (its mean over queries is mAP), ndcg (of the first `n`), each with _low and _high; over_random, the difference
        in precision on the same queries, with its interval, and over_untrained, from the same method and k there;
        dense_cosine (SAIL's measure: mean cosine of the dense vectors of the query and the first `n`); n_queries,
        n_query_groups, n_unanswered (queries with no latent to go by, left out); reason: why a row or its intervals
        are NaN or mean little, else empty; and p, the share of draws in which labels dealt out anew to groups give
        such a precision: intervals are over those who ask, p also allows for a few images that many of them find.

    Raises:
        InputError: arrays that do not fit, a method that there is not, or labels that are not 0, 1 or NaN.

    Example:
        >>> import numpy as np
        >>> finding = np.arange(40) % 2
        >>> found = retrieval_scores_of(np.stack([finding, 1 - finding], axis=1), {"finding": finding}, np.arange(40))
        >>> found["precision"].tolist()[:3]
        [1.0, 1.0, 1.0]
    """
    found = LatentIndex(codes, many=True)
    of_row = as_groups(groups, found.n_images)
    for method in (chosen := [str(method) for method in entries(methods, "methods")]):
        one_of(method, "methods", METHODS)
    if not isinstance(labels, Mapping):
        raise InputError("labels are no mapping: give {name: 0 or 1 of every image}")
    ks = [whole(one, "k", least=1) for one in (entries(k, "k") if np.ndim(k) else [k])]
    n, n_queries = whole(n, "n", least=1), whole(n_queries, "n_queries", least=1)
    n_draws = whole(n_draws, "n_draws", least=0)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    flag(progress, "progress")
    dense = None if embeddings is None else VectorIndex(embeddings, found.n_images)
    arms = _arms("latents", found, chosen, ks)
    if untrained is not None:
        other = LatentIndex(untrained, many=True)
        if other.n_images != found.n_images:
            raise InputError(f"the untrained codes are of {other.n_images} images, codes of {found.n_images}")
        arms += _arms("untrained", other, chosen, ks)
    if dense is not None:
        arms += [_Arm("dense", "dense", 0, dense), *(_Arm("dense", "dense_fingerprint", one, dense) for one in ks)]
    arms.append(_Arm("random", "random", 0, None))
    asked = [_label(name, given, of_row, n_queries, seed) for name, given in labels.items()]
    judge = _Judge(asked, of_row, n, dense, seed)
    scores: dict[_Name, list[NDArray[np.float64]]] = {}
    firsts: dict[_Name, list[NDArray[np.int64]]] = {}
    for arm in bar_of(arms, description="retrieval", unit="way", shown=progress):
        name = (arm.source, arm.method, arm.k)
        scores[name], firsts[name] = judge.scores(arm)
    records = []
    for number, label in enumerate(asked):
        weights = np.zeros((0, len(label.queries)))
        if n_bootstrap and len(label.queries):
            weights = patient_bootstrap(of_row[label.queries], n_bootstrap, seed).astype(np.float64)
        p_values = judge.p_values(label, {name: first[number] for name, first in firsts.items()}, n_draws)
        n_others = len(np.unique(of_row[label.known])) - 1
        few = f"{n_others} other groups are fewer than the {n} images looked at" if n_others < n else ""
        for arm in arms:
            own = scores[(arm.source, arm.method, arm.k)][number]
            chance = scores[("random", "random", 0)][number]
            controls = {"over_random": chance[:, 0] if arm.index is not None else np.full(len(own), np.nan)}
            if untrained is not None:
                beside = scores.get(("untrained", arm.method, arm.k)) if arm.source == "latents" else None
                controls["over_untrained"] = np.full(len(own), np.nan) if beside is None else beside[number][:, 0]
            about = {"label": label.name, "source": arm.source, "method": arm.method, "k": arm.k, "n": n}
            groups_asked = of_row[label.queries]
            summary = _summary(own, controls, groups_asked, weights, min_patients, label.reason, few)
            p = p_values[arm.source, arm.method, arm.k] if arm.index is not None else np.nan
            records.append({**about, **summary, "p": p})
    return pd.DataFrame(records)


def _arms(source: str, found: LatentIndex, methods: Sequence[str], ks: Sequence[int]) -> list[_Arm]:
    return [_Arm(source, method, k, found) for method in methods for k in (ks if method == "fingerprint" else (0,))]


def _label(name: str, given: ArrayLike, of_row: NDArray[np.int64], n_queries: int, seed: int) -> _Label:
    values = numbers(given, f"labels of {name}")
    if values.shape != of_row.shape or not np.isin(values[~np.isnan(values)], (0, 1)).all():
        raise InputError(f"labels of {name}: expected ({len(of_row)},), 0 or 1 of every image, NaN where missing")
    known, right = ~np.isnan(values), values == 1
    reason = ""
    if not right.any():
        reason = "no image has this label"
    elif len(np.unique(of_row[known])) < 2:
        reason = "all images are of one group"
    elif len(np.unique(of_row[right])) < 2:
        reason = "only one group has this label: there is nothing right to find"
    elif right[known].all():
        reason = "every image has this label: any hit is right"
    queries = np.flatnonzero(right) if not reason else np.zeros(0, dtype=np.int64)
    if len(queries) > n_queries:
        queries = np.sort(np.random.default_rng(seed).choice(queries, n_queries, replace=False))
    return _Label(str(name), right, known, queries, reason)


class _Judge:
    """Ranks all images for every query once, and judges the ranking by each label that the query is asked for."""

    def __init__(
        self, labels: Sequence[_Label], of_row: NDArray[np.int64], n: int, dense: VectorIndex | None, seed: int
    ) -> None:
        self.labels, self.of_row, self.n, self.dense, self.seed = labels, of_row, n, dense, seed
        self.n_groups = int(of_row.max(initial=-1)) + 1
        self.asked_by: dict[int, list[tuple[int, int]]] = {}
        for number, label in enumerate(labels):
            for place, query in enumerate(label.queries.tolist()):
                self.asked_by.setdefault(query, []).append((number, place))
        self.queries = sorted(self.asked_by)

    def scores(self, arm: _Arm) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
        """Of each label the measures and the dense cosine of every query, (n_queries, 5), NaN of one unanswered.

        And the first `n` images that it finds, (n_queries, n), -1 where there are fewer.
        """
        found = [np.full((len(label.queries), 5), np.nan) for label in self.labels]
        first = [np.full((len(label.queries), self.n), -1, dtype=np.int64) for label in self.labels]
        for query, orders in self._orders(arm):
            for number, place in self.asked_by[query]:
                label = self.labels[number]
                rankings = [self._ranking(order[label.known[order]]) for order in orders]
                found[number][place] = np.mean([self._judged(query, rows, label) for rows in rankings], axis=0)
                first[number][place, : len(rankings[0])] = rankings[0][: self.n]
        return found, first

    def p_values(self, label: _Label, firsts: Mapping[_Name, NDArray[np.int64]], n_draws: int) -> dict[_Name, float]:
        """How often the same images are as often right when each has a label of another group, one group's of one."""
        as_often = {name: 0 for name, first in firsts.items() if n_draws and (first >= 0).any()}
        known = np.flatnonzero(label.known)
        known = known[np.argsort(self.of_row[known], kind="stable")]
        _, start, group, size = np.unique(
            self.of_row[known], return_index=True, return_inverse=True, return_counts=True
        )
        least = {name: _precision(label.right, firsts[name]) - 1e-12 for name in as_often}
        generator = np.random.default_rng([self.seed, 2])
        for _ in range(n_draws if as_often else 0):
            other = generator.permutation(len(start))[group]
            dealt = np.zeros(len(label.right), dtype=bool)
            dealt[known] = label.right[known[start[other] + generator.integers(size[other])]]
            for name in as_often:
                as_often[name] += _precision(dealt, firsts[name]) >= least[name]
        return {name: (1 + as_often[name]) / (1 + n_draws) if name in as_often else float("nan") for name in firsts}

    def _orders(self, arm: _Arm) -> Iterator[tuple[int, list[NDArray[np.int64]]]]:
        """Of every query the images of other groups, the most alike first; several random orders."""
        if arm.index is None:
            generator = np.random.default_rng([self.seed, 1])
            for query in self.queries:
                orders = [generator.permutation(len(self.of_row)) for _ in range(_DRAWS)]
                yield query, [order[self.of_row[order] != self.of_row[query]] for order in orders]
            return
        for query, likeness in arm.index.likenesses(self.queries, arm.method, arm.k):
            if likeness is not None:
                others = np.flatnonzero(self.of_row != self.of_row[query])
                others = np.random.default_rng([self.seed, query]).permutation(others)
                yield query, [others[np.argsort(-settled(likeness)[others], kind="stable")]]

    def _ranking(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The best image of each group."""
        return order[first_of_each(self.of_row[order], self.n_groups)]

    def _judged(self, query: int, rows: NDArray[np.int64], label: _Label) -> tuple[float, ...]:
        cosine = float("nan")
        if self.dense is not None and len(rows):
            cosine = float(self.dense.cosines(query, rows[: self.n]).mean())
        return (*judged(label.right[rows], self.n), cosine)


def _precision(right: NDArray[np.bool_], first: NDArray[np.int64]) -> float:
    """The mean over queries of the share of the images that they found first, (n_queries, n), that are right."""
    there = first >= 0
    n_first = there.sum(axis=1)
    asked = n_first > 0
    return float(((right[first] & there).sum(axis=1)[asked] / n_first[asked]).mean())


def judged(right: NDArray[np.bool_], n: int) -> tuple[float, float, float, float]:
    """Precision, recall, average precision and nDCG of one ranking; NaN where nothing right is to be found.

    Args:
        right: (m,) whether each image is right, the first first.
        n: how many are looked at; average precision looks at all.
    """
    if not right.any():
        return 0.0, float("nan"), float("nan"), float("nan")
    hits = np.flatnonzero(right)
    discounts = 1 / np.log2(np.arange(min(n, len(right))) + 2)
    n_found = int(right[:n].sum())
    return (
        n_found / len(right[:n]),
        n_found / len(hits),
        float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1))),
        float(discounts[right[:n]].sum() / discounts[: len(hits)].sum()),
    )


def _summary(
    scores: NDArray[np.float64],
    controls: Mapping[str, NDArray[np.float64]],
    groups: NDArray[np.int64],
    weights: NDArray[np.float64],
    min_patients: int,
    reason: str,
    few: str,
) -> dict[str, Any]:
    answered = np.isfinite(scores[:, 0])
    n_groups = len(np.unique(groups[answered]))
    if not reason and not answered.any():
        reason = "no query has a latent to go by"
    elif not reason:
        reason = few
        if n_groups < min_patients:
            reason = f"queries are of {n_groups} groups: an interval needs {min_patients}" + (f"; {few}" if few else "")
            weights = weights[:0]
    names = [*MEASURES, *controls]
    values = np.stack([*scores[:, :4].T, *(scores[:, 0] - beside for beside in controls.values())], axis=1)
    known = np.isfinite(values)
    values = np.where(known, values, 0)
    counts, sums = weights @ known, weights @ values
    resampled = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    record: dict[str, Any] = {}
    for column, name in enumerate(names):
        mean = values[:, column].sum() / n_known if (n_known := known[:, column].sum()) else np.nan
        low, high = spread_interval(resampled[:, column])
        record |= {name: float(mean), f"{name}_low": low, f"{name}_high": high}
    cosines = scores[np.isfinite(scores[:, 4]), 4]
    return {
        **record,
        "dense_cosine": float(cosines.mean()) if len(cosines) else np.nan,
        "n_queries": int(answered.sum()),
        "n_query_groups": n_groups,
        "n_unanswered": int(len(answered) - answered.sum()),
        "reason": reason,
    }


@checked_arguments
def retrieval_scores(
    table: "LatentTable",
    labels: Sequence[str] | pd.DataFrame | None = None,
    *,
    group: str | ArrayLike = "patient_id",
    split: str = "test",
    methods: Sequence[str] = METHODS,
    ks: Sequence[int] = KS,
    n: int = 10,
    statistic: str = "max",
    embeddings: Embeddings = None,
    untrained: "LatentTable | None" = None,
    n_queries: int = 200,
    n_bootstrap: int = 1000,
    n_draws: int = 200,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """How often the images that a table finds share the query's labels, for fingerprints of several sizes and all else.

    Args:
        table: the latents table.
        labels: some of the table's concepts, all by default; other columns of its images, of 0 and 1 or of at most 20
            words, such as view or modality; or a data frame as for `monosemanticity`. Of what has more than two classes
            each is asked for by itself.
        group: the column of the images that says what belongs together, or a value for each image.
        split: the split whose images ask and are found, or "all".
        methods: as for `retrieval_scores_of`.
        ks: numbers of latents in a fingerprint.
        n: how many images are looked at.
        statistic: "max" or "mean" of a latent over positions.
        embeddings: the dense vectors of the table's images: an array (n_images, d), a store or files. By default the
            mean channels of a table of maps; without those of a table of rows there are no dense rows.
        untrained: the table of an untrained SAE on the same images.
        n_queries: as for `retrieval_scores_of`.
        n_bootstrap: as for `retrieval_scores_of`.
        n_draws: as for `retrieval_scores_of`.
        min_patients: as for `retrieval_scores_of`.
        seed: as for `retrieval_scores_of`.
        progress: show a bar on stderr.

    Returns:
        The rows of `retrieval_scores_of`; a label is called `name`, or `name=class` where there are more than two.

    Raises:
        InputError: an unknown label, group or split, tables of other images, and as `retrieval_scores_of`.

    Example:
        >>> scores = retrieval_scores(table, untrained=other)  # doctest: +SKIP
        >>> plot_k_sweep(scores)                               # doctest: +SKIP
    """
    rows = rows_of_split(table, split)
    given = _labels(table, labels).iloc[rows]
    other = None
    if untrained is not None:
        other = image_statistic(untrained, statistic)[_same_images(table, untrained, rows)]
    vectors = None
    if embeddings is not None or not getattr(table, "is_of_rows", False):
        vectors = dense_rows(table, embeddings, rows).whole()
    return retrieval_scores_of(
        image_statistic(table, statistic)[rows],
        {str(name): given[name].to_numpy() for name in given},
        image_groups(table, group)[rows],
        methods=methods,
        embeddings=vectors,
        untrained=other,
        k=ks,
        n=n,
        n_queries=n_queries,
        n_bootstrap=n_bootstrap,
        n_draws=n_draws,
        min_patients=min_patients,
        seed=seed,
        progress=progress,
    )


def _labels(table: "LatentTable", labels: Sequence[str] | pd.DataFrame | None) -> pd.DataFrame:
    """As `image_labels`; of a column of words a label for each."""
    if labels is None or isinstance(labels, pd.DataFrame):
        return image_labels(table, labels)
    found = []
    for name in [str(one) for one in entries(labels, "labels")]:
        column = table.images.get(name)
        if column is None or name in table.vocabulary or column.dtype.kind in "iufb":
            found.append(image_labels(table, [name]))
            continue
        words = sorted(column.dropna().unique(), key=str)
        if not 2 <= len(words) <= _MOST_VALUES:
            raise InputError(f"the column {name!r} has {len(words)} values; a label has 2 to {_MOST_VALUES}")
        found.append(
            pd.DataFrame({f"{name}={word}": (column == word).astype(float).where(column.notna()) for word in words})
        )
    return pd.concat(found, axis=1) if found else image_labels(table, [])


def _same_images(table: "LatentTable", other: "LatentTable", rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the same images, in the same splits, in another table."""
    keys = [list(zip(one.images["split"], one.images["image_id"], strict=True)) for one in (table, other)]
    place = {key: row for row, key in enumerate(keys[1])}
    found = [place.get(keys[0][row]) for row in rows.tolist()]
    if (lacking := found.count(None)) > 0:
        lost = keys[0][rows[found.index(None)]][1]
        raise InputError(
            f"{other.folder} lacks {lacking} of the {len(rows)} images ({lost}); encode the same images with the "
            "untrained SAE"
        )
    return np.array(found, dtype=np.int64)
