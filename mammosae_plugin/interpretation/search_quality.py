"""How well a search by text finds what it should: beside random latents, shuffled names, random images and a model's
own text encoder."""

__all__ = ["EACH", "SEARCH_COLUMNS", "search_scores", "WHOLE"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.adapters.text_towers import TextTower, unit_rows
from mammosae_plugin.analysis.codes import as_groups
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.retrieval import ALL, first_of_each, rows_of_split
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic
from mammosae_plugin.arguments import checked_arguments, flag, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.by_texts import check_layer
from mammosae_plugin.interpretation.name_matching import Matcher, UnansweredError, match_names, named_latents
from mammosae_plugin.interpretation.names import LatentNames
from mammosae_plugin.interpretation.queries import Queries, Query, label_values
from mammosae_plugin.interpretation.text_search import Likeness, ScaledLatents, part_weights, ranked_rows
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, spread_interval
from mammosae_plugin.progress import progress as bar_of

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

WHOLE, EACH = "the whole query", "each label"
"""What `label` says where an image is right if it has all labels of the query; and of the mean over single labels."""
_NAMES, _RANDOM, _SHUFFLED, _IMAGES, _TEXT = (
    "names", "random latents", "shuffled names", "random images", "text encoder",
)  # fmt: skip
_MEASURES = ("precision", "average_precision")
SEARCH_COLUMNS: Mapping[str, str] = {
    "query": "the text; empty in a mean over queries",
    "label": f"what an image needs to be right: one label, or {WHOLE!r}; of means also {EACH!r}, or a column",
    "source": f"what ranks the images: {_NAMES}, {_RANDOM}, {_SHUFFLED}, {_IMAGES}, {_TEXT}",
    "precision": "share of the first n images that are right; of a source that is drawn the mean over draws",
    "precision_low": "lower end of its 95 % interval over groups (of means over queries); of draws their 95 % range",
    "precision_high": "upper end",
    "average_precision": "over the whole ranking, of all groups with a right image; its mean over queries is mAP",
    "average_precision_low": "as for precision",
    "average_precision_high": "upper end",
    "p_random": "share of draws of random latents that are as precise, this one counted",
    "p_shuffled": "the same of shuffled names",
    "n": "how many images are looked at",
    "n_right": "groups with an image that is right",
    "n_groups": "groups with an image of which it is known",
    "n_queries": "queries that are judged",
    "n_answered": "of these, those that match a named latent; the others count as random images do",
    "latents": "the latents that the query matched",
    "reason": "why a row has no numbers or no interval, else empty",
}
"""The columns of `search_scores`."""


@dataclass
class _Judged:
    """One label of a query, or all of them, and what each source scored: (draws, 2), and its resamples (B, 2)."""

    query: Query
    label: str
    column: str
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]
    reason: str
    of_right: NDArray[np.int64]
    n_wrong: int
    n_groups: int
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    resampled: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@checked_arguments
def search_scores(
    table: "LatentTable",
    queries: Queries | Sequence[Query],
    names: LatentNames | Sequence[LatentNames],
    by: Matcher,
    *,
    n: int = 10,
    split: str = ALL,
    statistic: str = "max",
    likeness: Likeness = "strength",
    group: str | ArrayLike = "patient_id",
    n_names: int = 4,
    per_name: int = 3,
    tower: TextTower | None = None,
    embeddings: Embeddings = None,
    n_draws: int = 200,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """How well a search by names finds images that have the labels which queries ask for.

    Of every query the images are ranked as `search_images` ranks them, one of each group, and judged by each of its
    labels and by all of them together. Beside it stand

    - *random latents*: as many, of those that fire in the searched images, in place of the matched ones;
    - *shuffled names*: as many of the named latents, as if names were dealt out anew among them;
    - *random images*: any order, which is the base rate;
    - *text encoder*: the cosine of the query's embedding with the images', without any latent, where `tower` is given.

    Args:
        table: the latents table.
        queries: the queries, as `load_queries` reads them; their meanings of names are used.
        names: names of the table's latents, by one or more methods.
        by: how names are matched.
        n: how many images are looked at.
        split: whose images are searched, or "all".
        statistic: as for `search_images`, as are likeness, group, n_names and per_name.
        likeness: "strength" or "cosine".
        group: what belongs together.
        n_names: names of a query at the most.
        per_name: latents of a name at the most.
        tower: a text encoder in the space of the images.
        embeddings: as for `name_by_texts`, what the tower projects.
        n_draws: draws of everything random.
        n_bootstrap: resamples of groups, and of queries, for 95 % intervals; 0 gives NaN.
        min_patients: right groups and wrong ones, and queries, that an interval needs.
        seed: of draws, resamples and the order of equal images.
        progress: show a bar on stderr.

    Returns:
        A row for each query, label and source, then means over queries: of whole queries, of all single labels, and of
        each column that two queries or more ask of; the columns are those of `SEARCH_COLUMNS`. What cannot be judged
        has a row with the reason. A query that no named latent matches, or to which a model gives no answer that
        counts, is in means as good as random images.

    Raises:
        InputError: no query, no named latent, an unknown split or column, or what matcher and tower refuse.

    Example:
        >>> scores = search_scores(table, load_queries("queries.yaml"), names, ByText())   # doctest: +SKIP
        >>> scores[scores["query"] == ""]   # doctest: +SKIP
    """
    n, n_draws = whole(n, "n", least=1), whole(n_draws, "n_draws", least=1)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    flag(progress, "progress")
    given = queries if isinstance(queries, Queries) else Queries(tuple(queries))
    if not given.queries:
        raise InputError("there is no query to judge the search by; give at least one")
    rows = rows_of_split(table, split)
    groups = as_groups(image_groups(table, group)[rows], len(rows))
    named = named_latents(names, given.meanings)
    codes = image_statistic(table, statistic)[rows]
    scaled = ScaledLatents(codes, likeness)
    pools = {
        _RANDOM: np.flatnonzero(scaled.n_active).astype(np.int64),
        _SHUFFLED: np.unique(named["latent"].to_numpy(dtype=np.int64)),
    }
    texts = None if tower is None else _TextRanks(table, tower, embeddings, rows)
    ranking = _Rankings(groups, n, n_bootstrap, min_patients, seed)
    items: list[_Judged] = []
    matched: dict[str, pd.DataFrame] = {}
    failures: dict[str, str] = {}
    for number, query in enumerate(bar_of(given.queries, description="search", unit="question", shown=progress)):
        own = [_label(table, query, rows, groups, labels) for labels in _labels(query)]
        items += own
        try:
            found = match_names(query.text, named, by, n_names=n_names, per_name=per_name, meanings=given.meanings)
        except UnansweredError as error:
            found, failures[query.text] = named.iloc[:0], str(error)
        matched[query.text] = found
        todo = [one for one in own if not one.reason]
        if not todo:
            continue
        latents, weights = found["latent"].to_numpy(dtype=np.int64), part_weights(found) if len(found) else None
        if weights is not None:
            ranking.judge(todo, _NAMES, [scaled.scores(latents, weights)], [seed, number], resample=True)
            for source, pool in pools.items():
                generator = np.random.default_rng([seed, number, len(source)])
                own_pool = np.union1d(pool, latents)
                drawn = (
                    scaled.scores(generator.choice(own_pool, len(latents), replace=False), weights)
                    for _ in range(n_draws)
                )
                ranking.judge(todo, source, drawn, [seed, number])
        chance = np.zeros(len(rows))
        ranking.judge(todo, _IMAGES, (chance for _ in range(n_draws)), [seed, number, 1])
        if texts is not None:
            ranking.judge(todo, _TEXT, [texts.scores(query.text)], [seed, number], resample=True)
    sources = [_NAMES, _RANDOM, _SHUFFLED, _IMAGES, *([_TEXT] if texts is not None else [])]
    records = [
        _record(item, source, matched[item.query.text], n, min_patients, failures.get(item.query.text, ""))
        for item in items
        for source in sources
        if source == _NAMES or source in item.scores
    ]
    records += _means(items, sources, n, n_bootstrap, min_patients, seed)
    return pd.DataFrame(records, columns=[*SEARCH_COLUMNS])


class _TextRanks:
    """Images ranked by a model's own text encoder."""

    def __init__(self, table: "LatentTable", tower: TextTower, embeddings: Embeddings, rows: NDArray[np.int64]) -> None:
        if embeddings is None:
            check_layer(table)
        self._tower = tower
        self._images = unit_rows(tower.project(dense_rows(table, embeddings, rows).whole()), "image embeddings")

    def scores(self, query: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self._images @ self._tower.embed_texts([query.lower()])[0].astype(np.float64)
        return found


def _labels(query: Query) -> list[list[str]]:
    """All columns together, if there are several, then each."""
    each = [[column] for column in query.labels]
    return [[*query.labels], *each] if len(each) > 1 else each


def _label(
    table: "LatentTable", query: Query, rows: NDArray[np.int64], groups: NDArray[np.int64], columns: list[str]
) -> _Judged:
    has, reasons = np.ones(len(rows)), []
    for column in columns:
        values, reason = label_values(table, column, query.labels[column])
        values = values[rows]
        has = np.where((has == 0) | (values == 0), 0, has * values)  # one that is absent settles it
        reasons += [reason] if reason else []
    known, right = ~np.isnan(has), has == 1
    of_right, n_wrong, n_groups = np.unique(groups[right]), *(len(np.unique(groups[x])) for x in (has == 0, known))
    if not reasons:
        if not right.any():
            reasons = ["no image that is searched has it" if len(columns) == 1 else "no image that is searched has all"]
        elif right[known].all():
            reasons = ["every image has it: any hit is right"]
    is_whole = len(query.labels) == len(columns)
    label = WHOLE if is_whole else query.told(columns[0])
    return _Judged(
        query,
        label,
        "" if len(columns) > 1 else columns[0],
        right,
        known,
        "; ".join(reasons),
        of_right,
        n_wrong,
        n_groups,
    )


class _Rankings:
    """Ranks images by scores, one of each group, and judges the ranking by labels."""

    def __init__(self, groups: NDArray[np.int64], n: int, n_bootstrap: int, min_patients: int, seed: int) -> None:
        self._groups, self._n, self._min_patients = groups, n, min_patients
        self._n_groups = int(groups.max(initial=-1)) + 1
        self._weights = patient_bootstrap(np.arange(self._n_groups), n_bootstrap, seed).astype(np.float64)

    def judge(self, items: Sequence[_Judged], source: str, draws: Any, seed: list[int], resample: bool = False) -> None:
        """Judge what a source scores, of every draw (N,), by each label."""
        generator = np.random.default_rng(seed)
        found: list[list[tuple[float, float]]] = [[] for _ in items]
        for scores in draws:
            order = ranked_rows(scores, generator)
            for item, own in zip(items, found, strict=True):
                kept = order[item.known[order]]
                ranked = kept[first_of_each(self._groups[kept], self._n_groups)]
                right = item.right[ranked]
                own.append(_precisions(right, len(item.of_right), self._n))
                if resample and min(len(item.of_right), item.n_wrong) >= self._min_patients:
                    counts, all_right = (self._weights[:, g] for g in (self._groups[ranked], item.of_right))
                    item.resampled[source] = _resampled(right, counts, all_right.sum(axis=1), self._n)
        for item, own in zip(items, found, strict=True):
            item.scores[source] = np.array(own)


def _precisions(right: NDArray[np.bool_], n_right: int, n: int) -> tuple[float, float]:
    """Precision of the first n of ranked images, and average precision, where n_right groups have a right image."""
    hits = np.flatnonzero(right)
    average = float((np.arange(1, len(hits) + 1) / (hits + 1)).sum() / n_right)
    return float(right[:n].sum() / max(len(right[:n]), 1)), average


def _resampled(
    right: NDArray[np.bool_], weights: NDArray[np.float64], n_right: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """The same, (B, 2), where each of m ranked images counts so often (B, m); NaN where n_right (B,) is 0."""
    found = []
    for block, all_right in zip(
        *(np.array_split(x, max(1, weights.size // 2_000_000)) for x in (weights, n_right)), strict=True
    ):
        until, hits = np.cumsum(block, axis=1), np.cumsum(block * right, axis=1)
        first = np.clip(n - (until - block), 0, block)
        precision = (first * right).sum(axis=1) / np.minimum(n, until[:, -1])
        at = np.divide(hits, until, out=np.zeros_like(hits), where=until > 0)
        average = np.divide(
            (at * block * right).sum(axis=1), all_right, out=np.full(len(at), np.nan), where=all_right > 0
        )
        found.append(np.stack([precision, average], axis=1))
    return np.concatenate(found)


def _share_as_good(draws: NDArray[np.float64], value: float) -> float:
    return float((1 + (draws >= value - 1e-12).sum()) / (1 + len(draws)))


def _record(
    item: _Judged, source: str, matched: pd.DataFrame, n: int, min_patients: int, failure: str
) -> dict[str, Any]:
    scores = item.scores.get(source)
    is_drawn = source in (_RANDOM, _SHUFFLED, _IMAGES)
    answered = bool(len(matched))
    reason = item.reason
    if not reason and scores is None:
        reason = failure or "no named latent matches"
    samples = scores if is_drawn and scores is not None else item.resampled.get(source)
    if not reason and samples is None:
        few = min(len(item.of_right), item.n_wrong)
        reason = f"an interval needs {min_patients} groups that are right and as many that are not: there are {few}"
    record: dict[str, Any] = {"query": item.query.text, "label": item.label, "source": source}
    record |= _numbers(None if scores is None else scores.mean(axis=0), samples)
    if not is_drawn and scores is not None:
        for name, other in (("p_random", _RANDOM), ("p_shuffled", _SHUFFLED)):
            if other in item.scores:
                record[name] = _share_as_good(item.scores[other][:, 0], float(scores[0, 0]))
    latents = " ".join(map(str, matched["latent"])) if source == _NAMES else ""
    about = {"n": n, "n_right": len(item.of_right), "n_groups": item.n_groups, "n_queries": int(not item.reason)}
    return record | about | {"n_answered": int(answered and not item.reason), "latents": latents, "reason": reason}


def _numbers(values: NDArray[np.float64] | None, samples: NDArray[np.float64] | None) -> dict[str, float]:
    record: dict[str, float] = {}
    for place, name in enumerate(_MEASURES):
        record[name] = float("nan") if values is None else float(values[place])
        ends = (float("nan"),) * 2 if samples is None or not len(samples) else spread_interval(samples[:, place])
        record |= dict(zip((f"{name}_low", f"{name}_high"), ends, strict=True))
    return record


def _means(
    items: Sequence[_Judged], sources: Sequence[str], n: int, n_bootstrap: int, min_patients: int, seed: int
) -> list[dict[str, Any]]:
    """Means over queries: of whole queries, of single labels, and of each column that several ask of."""
    known = [item for item in items if not item.reason]
    columns = [item.column for item in known if item.column]
    sets = {WHOLE: [item for item in known if item.label == WHOLE], EACH: [item for item in known if item.column]}
    sets |= {
        column: [item for item in known if item.column == column]
        for column in dict.fromkeys(columns)
        if columns.count(column) > 1
    }
    records = []
    for label, chosen in sets.items():
        of_query = pd.factorize(np.array([item.query.text for item in chosen], dtype=object))[0]
        n_queries = len(np.unique(of_query))
        n_answered = len({item.query.text for item in chosen if _NAMES in item.scores})
        weights = patient_bootstrap(of_query, n_bootstrap, seed).astype(np.float64) if n_queries else np.zeros((0, 0))
        draws = {source: [_drawn(item, source) for item in chosen] for source in sources}
        for source in sources:
            record: dict[str, Any] = {"query": "", "label": label, "source": source}
            reason = "" if chosen else "no query can be judged"
            if chosen:
                values = np.stack([one.mean(axis=0) for one in draws[source]])
                samples = None
                if source in (_RANDOM, _SHUFFLED, _IMAGES):
                    samples = np.stack(draws[source]).mean(axis=0)
                elif n_queries >= min_patients:
                    samples = weights @ values / weights.sum(axis=1, keepdims=True)
                else:
                    reason = f"an interval needs {min_patients} queries: there are {n_queries}"
                record |= _numbers(values.mean(axis=0), samples)
                if source in (_NAMES, _TEXT):
                    for name, other in (("p_random", _RANDOM), ("p_shuffled", _SHUFFLED)):
                        drawn = np.stack(draws[other]).mean(axis=0)[:, 0]
                        record[name] = _share_as_good(drawn, float(values[:, 0].mean()))
            about = {"n": n, "n_queries": n_queries, "n_answered": n_answered, "latents": "", "reason": reason}
            records.append(record | about)
    return records


def _drawn(item: _Judged, source: str) -> NDArray[np.float64]:
    """(draws, 2) of a label; where no named latent matched, of random images."""
    return item.scores.get(source, item.scores[_IMAGES])
