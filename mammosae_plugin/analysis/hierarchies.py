"""Absorption: latents that should fire for a finding and do not, while a latent of a finer finding does.

In a hierarchy of findings (malignant calcification -> calcification) an SAE saves activity by leaving the coarse latent
silent wherever a finer one says as much (Chanin et al., 2024, arXiv 2409.14507). Whoever reads the coarse latent then
misses just these images. SAEBench judges it by a probe's direction and decoder rows; here labels judge, so that any
codes will do, and latents are chosen in other groups than those they are judged on.
"""

__all__ = ["absorption", "absorption_of", "implied_hierarchy", "nested_classes", "nested_labels"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.metrics import roc_auc_score

from mammosae_plugin.analysis.codes import as_codes, as_groups, mean_ranks
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.table_arrays import image_statistic, split_rows
from mammosae_plugin.arguments import between, checked_arguments, numbers, resampling, shown, whole
from mammosae_plugin.datasets.concepts import Concept
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.permutations import in_random_groups
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, spread_interval

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_RATES = ("main_auroc", "miss_child", "miss_rest", "absorbed", "chance", "excess", "excess_low", "excess_high", "p")


def absorption_of(
    codes: Any,
    labels: Mapping[str, ArrayLike],
    groups: ArrayLike,
    hierarchy: Mapping[str, str] | None = None,
    *,
    n_main: int = 1,
    n_folds: int = 4,
    n_permutations: int = 100,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """How often the latent of a finding is silent where a finer finding's latent fires, beside chance.

    For a child (finer) and its parent, on folds that keep groups whole: in the other folds are chosen the `n_main`
    latents that best tell the parent (AUROC), and, among the parent's images, the *absorber*, another latent that best
    tells the child. Each fires above the value that tells best there (Youden). In the held-out fold:

    - *miss_child*, *miss_rest*: share of the child's images, and of the parent's others, where no main latent fires;
    - *absorbed*: share of the child's images where none fires and the absorber does;
    - *chance*: what is expected if the main latents miss the child no more often than the rest. It is the larger of
      miss_rest times the share of the child's images where the absorber fires (misses by chance), and the share of the
      parent's other images where none fires and the absorber does (it stands for something else that is missed);
    - *excess*: absorbed minus chance. Above 0: absorption. Near 0: both latents fire, or the main ones miss everywhere.

    Args:
        codes: (N, D) array or scipy.sparse: a latent's maximum over each image, or its code.
        labels: name -> (N,) 0 or 1, NaN where it is missing; a DataFrame will do. Images without one of a pair's labels
            are left out of that pair, as are those of the child without the parent.
        groups: (N,) which images belong together.
        hierarchy: child -> parent; None takes `implied_hierarchy(labels)`.
        n_main: latents of the parent; with more, all of them must be silent for a miss.
        n_folds: folds, fewer where there are fewer groups.
        n_permutations: orders in which the child's labels are permuted between groups of the parent's images.
        n_bootstrap: resamples of groups for the 95 % interval of the excess; 0 gives NaN.
        min_patients: groups that the child and the rest must have for an interval.
        seed: of folds, permutations and resamples.

    Returns:
        One row per pair: child, parent, main (the latent that tells the parent best in all groups), absorber, n_child
        and n_rest (images), n_child_groups, n_rest_groups, n_left_out (images with both labels but the child alone),
        main_auroc (of the main latent for the parent, held-out; near 0.5 there is no latent that could be absorbed),
        miss_child, miss_rest, absorbed, chance, excess, excess_low, excess_high, p (share of the permutations, with the
        true labels as one, whose excess is as high), q (Benjamini and Hochberg over pairs) and reason: why these, or
        the interval, are NaN, else empty.

    Raises:
        InputError: arrays that do not fit, labels that are not 0, 1 or NaN, a hierarchy that names no label or goes in
            a circle, or none that is implied.

    Example:
        >>> import numpy as np
        >>> parent = np.repeat([1.0, 0], 40)
        >>> child = np.where(np.arange(80) < 20, 1.0, 0)
        >>> codes = np.column_stack([parent - child, child])  # the first should fire for the child as well
        >>> found = absorption_of(codes, {"mass": parent, "spiculated": child}, np.arange(80), {"spiculated": "mass"})
        >>> found[["main", "absorber", "absorbed", "chance"]].to_numpy().tolist()
        [[0, 1, 1.0, 0.0]]
    """
    found = sparse.csr_array(as_codes(codes))
    of_row = as_groups(groups, found.shape[0])
    known = {str(name): _zero_or_one(labels[name], str(name), found.shape[0]) for name in labels}
    pairs = _checked_hierarchy(hierarchy, known)
    n_main, n_folds = whole(n_main, "n_main", least=1), whole(n_folds, "n_folds", least=2)
    n_permutations = whole(n_permutations, "n_permutations", least=0)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    records = []
    for child, parent in pairs.items():
        both = ~np.isnan(known[child]) & ~np.isnan(known[parent])
        alone = both & (known[child] == 1) & (known[parent] == 0)
        rows = np.flatnonzero(both & ~alone)
        pair = _Pair(found[rows], known[parent][rows] == 1, known[child][rows] == 1, as_groups(of_row[rows], len(rows)))
        counts = pair.counts()
        record = {"child": child, "parent": parent, **counts, "n_left_out": int(alone.sum())}
        few = min(counts["n_child_groups"], counts["n_rest_groups"], len(np.unique(pair.groups[~pair.parent])))
        reason = ""
        if few < 2:
            reason = "the child, the parent's other images, or those without the parent are of fewer than two groups"
        elif found.shape[1] <= n_main:
            reason = f"{found.shape[1]} latents leave none beside {n_main} of the parent"
        elif not mean_ranks(sparse.csc_array(pair.codes))[2].any():
            reason = "no latent varies between these images"
        if reason:
            records.append({**record, **dict.fromkeys(_RATES, np.nan), "reason": reason})
            continue
        least = min(counts["n_child_groups"], counts["n_rest_groups"])
        scored = pair.scored(n_main, min(n_folds, few), n_permutations, n_bootstrap * (least >= min_patients), seed)
        if n_bootstrap and least < min_patients:
            reason = f"no interval: the child, or the parent's other images, are of {least} groups, not {min_patients}"
        records.append({**record, **scored, "reason": reason})
    columns = ["child", "parent", "main", "absorber", "n_child", "n_rest", "n_child_groups", "n_rest_groups"]
    frame = pd.DataFrame(records, columns=[*columns, "n_left_out", *_RATES, "reason"])
    frame.insert(len(frame.columns) - 1, "q", benjamini_hochberg(frame["p"].to_numpy(dtype=np.float64)))
    return frame.astype({"main": "Int64", "absorber": "Int64"})


def implied_hierarchy(
    labels: Mapping[str, ArrayLike], *, min_share: float = 1.0, min_images: int = 10
) -> dict[str, str]:
    """Which findings are finer ones of others, by their labels: child -> parent.

    A label implies another where every image that has it has the other too, and the other has more images. Of several
    the parent is the one with the fewest images.

    Args:
        labels: name -> (N,) 0 or 1, NaN where it is missing.
        min_share: share of a child's images that must have the parent.
        min_images: images that a child, and a parent beyond its child, must have; few imply something by chance.

    Raises:
        InputError: labels of different lengths, or that are not 0, 1 or NaN.

    Example:
        >>> implied_hierarchy({"mass": [1, 1, 1, 0], "spiculated": [1, 0, 0, 0]}, min_images=1)
        {'spiculated': 'mass'}
    """
    min_share = between(min_share, "min_share", 0, 1, with_low=False)
    min_images = whole(min_images, "min_images", least=1)
    n_rows = len(next(iter(labels.values()))) if len(labels) else 0  # type: ignore[arg-type]
    known = {str(name): _zero_or_one(labels[name], str(name), n_rows) for name in labels}
    found = {}
    for child, of_child in known.items():
        parents = []
        for parent, of_parent in known.items():
            both = ~np.isnan(of_child) & ~np.isnan(of_parent)
            own, others = of_child[both] == 1, of_parent[both] == 1
            n_child, n_more = int(own.sum()), int(others.sum() - own.sum())
            inside = (own & others).sum() >= min_share * n_child
            if parent != child and n_child >= min_images and n_more >= min_images and inside and not others.all():
                parents.append((n_more, parent))
        if parents:
            found[child] = min(parents, key=lambda one: one[0])[1]
    return found


def _zero_or_one(values: ArrayLike, name: str, n_rows: int) -> NDArray[np.float64]:
    array = numbers(values, f"labels of {name}")
    if array.shape != (n_rows,):
        raise InputError(f"labels of {name} have shape {array.shape}: expected ({n_rows},), one for each image")
    if not np.isin(array[~np.isnan(array)], (0, 1)).all():
        raise InputError(f"labels of {name} hold something else than 0, 1 and NaN (missing)")
    return array


def _checked_hierarchy(hierarchy: Mapping[str, str] | None, labels: Mapping[str, Any]) -> dict[str, str]:
    if hierarchy is None:
        found = implied_hierarchy(labels)
        if not found:
            raise InputError(
                f"none of the labels {', '.join(labels) or '(there are none)'} implies another in 10 images or more: "
                "give the hierarchy as {child: parent}"
            )
        return found
    pairs = {str(child): str(parent) for child, parent in hierarchy.items()}
    for name in [*pairs, *pairs.values()]:
        if name not in labels:
            raise InputError(f"the hierarchy names {shown(name)}, which has no labels; there are {', '.join(labels)}")
    for child in pairs:
        at, seen = child, set()
        while at in pairs:
            if at in seen:
                raise InputError(f"the hierarchy goes in a circle through {shown(at)}: name each child's parent once")
            seen.add(at)
            at = pairs[at]
    return pairs


@dataclass(frozen=True)
class _Pair:
    """Images that have the labels of a child and its parent."""

    codes: sparse.csr_array
    parent: NDArray[np.bool_]
    child: NDArray[np.bool_]
    groups: NDArray[np.int64]

    def counts(self) -> dict[str, int]:
        rest = self.parent & ~self.child
        return {
            "n_child": int(self.child.sum()),
            "n_rest": int(rest.sum()),
            "n_child_groups": len(np.unique(self.groups[self.child])),
            "n_rest_groups": len(np.unique(self.groups[rest])),
        }

    def scored(self, n_main: int, n_folds: int, n_permutations: int, n_bootstrap: int, seed: int) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        fold = self._folds(n_folds, generator)
        inside = np.flatnonzero(self.parent)
        truth, of_row = self.child[inside], self.groups[inside]
        drawn = np.empty((len(inside), 1 + n_permutations), dtype=bool)
        drawn[:, 0] = truth
        in_order = truth[np.argsort(of_row, kind="stable")]
        for column in range(1, drawn.shape[1]):
            drawn[in_random_groups(of_row, generator), column] = in_order
        missed, fires = np.zeros(len(inside), dtype=bool), np.zeros(drawn.shape, dtype=bool)
        aurocs = []
        for number in range(n_folds):
            training, held_out = np.flatnonzero(fold != number), fold[inside] == number
            mains = _best(self.codes[training], self.parent[training, None], n_main)[:, 0]
            columns = self.codes[:, mains].toarray()
            least = [_cut(column[training], self.parent[training]) for column in columns.T]
            missed[held_out] = ~(columns[inside[held_out]] > least).any(axis=1)
            own = self.parent[fold == number]
            if 0 < own.sum() < len(own):
                aurocs.append(roc_auc_score(own, columns[fold == number, 0]))
            absorbers = _best(self.codes[inside[~held_out]], drawn[~held_out], 1, without=mains)[0]
            for place, absorber in enumerate(absorbers):
                if drawn[~held_out, place].any():
                    values = self.codes[:, [absorber]].toarray()[inside, 0]
                    fires[held_out, place] = values[held_out] > _cut(values[~held_out], drawn[~held_out, place])
        absorbed, chance = _rates(missed, fires, drawn)
        excess = absorbed - chance
        weights = patient_bootstrap(of_row, n_bootstrap, seed).T
        resampled = np.subtract(*_rates(missed, fires[:, :1], drawn[:, :1], weights))
        low, high = spread_interval(resampled)
        main = _best(self.codes, self.parent[:, None], n_main)[:, 0]
        as_high = int((excess[1:] >= excess[0] - 1e-12).sum())
        return {
            "main": int(main[0]),
            "absorber": int(_best(self.codes[inside], truth[:, None], 1, without=main)[0, 0]),
            "main_auroc": float(np.mean(aurocs)) if aurocs else np.nan,
            "miss_child": float(missed[truth].mean()),
            "miss_rest": float(missed[~truth].mean()),
            "absorbed": float(absorbed[0]),
            "chance": float(chance[0]),
            "excess": float(excess[0]),
            "excess_low": low,
            "excess_high": high,
            "p": (1 + as_high) / (1 + n_permutations) if n_permutations else np.nan,
        }

    def _folds(self, n_folds: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """The fold of each row; groups of the child, then of the rest, then others are dealt out in turn."""
        n_groups = int(self.groups.max()) + 1
        kind = np.zeros(n_groups, dtype=np.int64)
        np.maximum.at(kind, self.groups, self.parent.astype(np.int64) + self.child)
        order = np.lexsort((generator.permutation(n_groups), -kind))
        fold = np.empty(n_groups, dtype=np.int64)
        fold[order] = np.arange(n_groups) % n_folds
        return fold[self.groups]


def _best(
    codes: sparse.csr_array, labels: NDArray[np.bool_], n: int, without: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """(n, B) latents of the highest AUROC for each column of labels (N, B), equal ones by rising index."""
    ranks, base, varies = mean_ranks(sparse.csc_array(codes))
    n_positive = labels.sum(axis=0)
    sums = ranks.T @ labels.astype(np.float64) + base[:, None] * n_positive
    pairs = n_positive * (len(labels) - n_positive)
    above = sums - n_positive * (n_positive + 1) / 2
    aurocs = np.divide(above, pairs, out=np.full(sums.shape, 0.5), where=pairs > 0)
    aurocs[~varies] = -1
    if without is not None:
        aurocs[without] = -2
    order: NDArray[np.int64] = np.argsort(-np.round(aurocs, 12), axis=0, kind="stable")[:n]
    return order


def _cut(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The value above which most is told: the largest true positive rate minus false positive rate (Youden, 1950)."""
    order = np.argsort(-values, kind="stable")
    ordered, hits = values[order], positive[order]
    n_positive = max(int(hits.sum()), 1)
    gain = np.cumsum(hits) / n_positive - np.cumsum(~hits) / max(len(hits) - n_positive, 1)
    ends = np.flatnonzero(np.diff(ordered, append=-np.inf) < 0)
    end = ends[np.argmax(gain[ends])]
    return float(ordered[end + 1]) if end + 1 < len(ordered) else -np.inf


def _rates(
    missed: NDArray[np.bool_],
    fires: NDArray[np.bool_],
    child: NDArray[np.bool_],
    weights: NDArray[np.integer] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`absorbed` and `chance` of each column of fires and child (n, B), or of one column by each of weights (n, W)."""
    w: Any = 1 if weights is None else weights
    n_child, n_rest = (w * child).sum(axis=0), (w * ~child).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        absorbed = (w * (child & fires & missed[:, None])).sum(axis=0) / n_child
        missed_rest = (w * (~child & missed[:, None])).sum(axis=0) / n_rest
        by_chance = missed_rest * (w * (child & fires)).sum(axis=0) / n_child
        elsewhere = (w * (~child & fires & missed[:, None])).sum(axis=0) / n_rest
        return absorbed, np.maximum(by_chance, elsewhere)


def nested_labels(table: "LatentTable", *, split: str = "test") -> pd.DataFrame:
    """Every concept of a table as columns of 0, 1 and NaN (missing) that may lie in each other.

    Args:
        table: the latents table.
        split: the split whose images are taken.

    Returns:
        One row per image of the split, the index their rows in `table.images`. A concept of two classes has its name;
        a graded one a column per class but the lowest, such as "BI-RADS >= 4"; one of other classes a column each, such
        as "orientation = axial".

    Raises:
        InputError: an unknown split.
    """
    rows = split_rows(table, split)
    columns: dict[str, NDArray[np.float64]] = {}
    for name, concept in table.vocabulary.items():
        columns |= nested_classes(concept, table.images[name].to_numpy()[rows])
    if not columns:
        raise InputError(f"{table.folder} has no concept, so that there are no labels to judge by")
    return pd.DataFrame(columns, index=rows)


def nested_classes(concept: Concept, values: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Class numbers (n,) of a concept, -1 where one is missing, as the labels that `nested_labels` names."""
    given = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-1)
    classes, graded = concept.classes, concept.kind == "graded"
    if concept.is_binary:
        found = {concept.name: given == 1}
    elif graded:
        found = {f"{concept.name} >= {classes[number]}": given >= number for number in range(1, len(classes))}
    else:
        found = {f"{concept.name} = {word}": given == number for number, word in enumerate(classes)}
    return {name: np.where(given < 0, np.nan, has) for name, has in found.items()}


@checked_arguments
def absorption(
    table: "LatentTable",
    hierarchy: Mapping[str, str] | None = None,
    *,
    split: str = "test",
    statistic: str = "max",
    n_main: int = 1,
    n_folds: int = 4,
    n_permutations: int = 100,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """Which findings' latents are absorbed by those of finer findings (`absorption_of` has the formulas).

    Args:
        table: the latents table.
        hierarchy: child -> parent, by the names of `nested_labels`: {"birads >= 5": "birads >= 4"}. None
            takes what the labels imply (`implied_hierarchy`); the classes of a graded concept lie in each other.
        split: the split judged.
        statistic: "max" or "mean" over positions.
        n_main: as for `absorption_of`.
        n_folds: as for `absorption_of`.
        n_permutations: as for `absorption_of`.
        n_bootstrap: as for `absorption_of`.
        min_patients: as for `absorption_of`.
        seed: as for `absorption_of`.

    Returns:
        The frame of `absorption_of`.

    Raises:
        InputError: as `absorption_of`; an unknown split or statistic.
    """
    codes = image_statistic(table, statistic)
    labels = nested_labels(table, split=split)
    rows = labels.index.to_numpy()
    return absorption_of(
        codes[rows],
        {str(name): labels[name].to_numpy() for name in labels},
        table.images["patient_id"].to_numpy(dtype=object)[rows],
        hierarchy,
        n_main=n_main,
        n_folds=n_folds,
        n_permutations=n_permutations,
        n_bootstrap=n_bootstrap,
        min_patients=min_patients,
        seed=seed,
    )
