"""What linear probes tell from features: every latent by itself, the best k, all of them.

Selection, scaling and regularisation see the training rows of a fold only, and folds keep groups (patients, volumes)
whole. Choosing features before splitting gives AUROC .82 on random labels (a public benchmark does); this gives .5.
"""

__all__ = [
    "ARMS", "BASES", "feature_matrix", "known_labels", "KS", "latent_aurocs", "latent_aurocs_of", "linear_probes",
    "permuted", "probe_of", "Problem", "STRENGTHS", "varies",
]  # fmt: skip

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from mammosae_plugin.analysis.codes import as_codes, as_groups, mean_ranks, settled_codes
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.arguments import checked_arguments, entries, listed_numbers, numbers, one_of, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.permutations import in_random_groups
from mammosae_plugin.measures.statistics import (
    MIN_PATIENTS,
    Resamples,
    auroc_interval,
    settled,
)
from mammosae_plugin.measures.units import EvaluationUnit

if TYPE_CHECKING:
    from mammosae_plugin.latents import EvaluationRows, LatentTable

KS = (1, 2, 5, 10, 20, 50, 100, None)
"""How many features a probe may use; None: all."""
ARMS = ("max_latents", "mean_latents", "codes", "channels", "pca", "kmeans")
"""What probes read: a latent's maximum or mean over positions, which of one vector per image are its code; the layer's
own channels, averaged; their principal components; which of d_sae clusters of them is nearest."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty, one of which validation rows choose."""
_COMPONENTS = 100
_MAX_ITERATIONS = 1000


def latent_aurocs_of(
    codes: Any, labels: ArrayLike, groups: ArrayLike, *, n_permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """AUROC of every latent alone, beside what the best of so many latents reaches by chance.

    Args:
        codes: (N, D) array or scipy.sparse: a latent's maximum or mean over each image.
        labels: (N,) 0 or 1, NaN where it is missing; such rows are left out.
        groups: (N,) which images belong together. Labels are permuted between groups: groups are put into a random
            order and take the labels in the order of the rows, so that images of one group keep like labels.
        n_permutations: how often.
        seed: of the permutations.

    Returns:
        One row per latent that is not the same in every row: latent, auroc (ties count one half), p (two-sided, by
        Student's t of the spread that the permutations have), q (Benjamini and Hochberg over these latents), p_family
        (share of the permutations, with the true labels as one of them, in which any latent is as many spreads from
        0.5) and, the same in every row, best_by_chance: the 95th percentile over the permutations of the farthest AUROC
        of any latent, as a value above 0.5; and reason: why what rests on permutations is NaN, else empty. Where all
        latents are the same in every row, one row of NaN for each, with that reason.

    Raises:
        InputError: arrays that do not fit, labels that are not 0, 1 or NaN, or of one class only.

    Example:
        >>> import numpy as np
        >>> labels = np.repeat([0, 1], 20)
        >>> latent_aurocs_of(labels[:, None] * 2.0, labels, np.arange(40)).loc[0, "auroc"]
        1.0
    """
    found = as_codes(codes)
    known, positive = known_labels(labels, found.shape[0])
    of_row = as_groups(groups, found.shape[0])[known]
    n_permutations, seed = whole(n_permutations, "n_permutations", least=1), whole(seed, "seed", least=0)
    ranks, base, varies = mean_ranks(sparse.csc_array(found[known]))
    if not varies.any():
        return none_scored(found.shape[1], _AUROCS, "it is the same in every row that has a label")
    order = np.argsort(of_row, kind="stable")
    generator = np.random.default_rng(seed)
    weights = np.empty((len(positive), 1 + n_permutations))
    weights[:, 0] = positive
    for column in range(1, weights.shape[1]):
        weights[in_random_groups(of_row, generator), column] = positive[order]
    n_positive = positive.sum()
    sums = (ranks.T @ weights)[varies] + base[varies, None] * n_positive
    aurocs = (sums - n_positive * (n_positive + 1) / 2) / (n_positive * (len(positive) - n_positive))
    away = np.abs(aurocs - 0.5)
    # A spread in which an AUROC has a part bounds how many spreads it is away, so that either all have one or none.
    squares = np.square(away)
    by_chance, of_all = np.sqrt(squares[:, 1:].mean(axis=1)), np.sqrt(squares.mean(axis=1))
    z = np.divide(away, of_all[:, None], out=np.zeros_like(away), where=by_chance[:, None] > 0)
    own = np.divide(away[:, 0], by_chance, out=np.zeros(len(away)), where=by_chance > 0)
    alone = len(np.unique(of_row)) < 2
    if alone:  # labels of one group change places with nothing
        own[:], z[:], away[:, 1:] = np.nan, np.nan, np.nan
    p = 2 * student.sf(own, n_permutations)
    farthest = np.sort(z[:, 1:].max(axis=0, initial=0))
    as_far = n_permutations - np.searchsorted(farthest, z[:, 0] - 1e-9)
    return pd.DataFrame(
        {
            "latent": np.flatnonzero(varies),
            "auroc": aurocs[:, 0],
            "p": p,
            "q": benjamini_hochberg(p),
            "p_family": np.nan if alone else (1 + as_far) / (1 + n_permutations),
            "best_by_chance": np.nan if alone else 0.5 + np.quantile(away[:, 1:].max(axis=0, initial=0), 0.95),
            "reason": "all rows are of one group, so that chance is not known" if alone else "",
        }
    )


_AUROCS = ("auroc", "p", "q", "p_family", "best_by_chance")


def none_scored(n_latents: int, columns: Sequence[str], reason: str) -> pd.DataFrame:
    """A row for each latent where none can be scored: latent, columns of NaN, and the reason."""
    frame = pd.DataFrame({"latent": np.arange(n_latents), **dict.fromkeys(columns, np.nan)})
    return frame.assign(reason=reason)


def known_labels(labels: ArrayLike, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that have a label, and 0 or 1 of each.

    Raises:
        InputError: labels that do not fit, that are not 0, 1 or NaN, or of one class only.
    """
    values = numbers(labels, "labels")
    if values.shape != (n_rows,):
        raise InputError(f"labels have shape {values.shape}: expected ({n_rows},), 0 or 1 of every row, NaN if missing")
    known = np.flatnonzero(~np.isnan(values))
    if not np.isin(values[known], (0, 1)).all():
        raise InputError("labels hold something else than 0, 1 and NaN (missing): give one class against the rest")
    positive = values[known].astype(np.int64)
    if len(np.unique(positive)) < 2:
        raise InputError(f"labels hold one class only ({len(known)} rows have a label): there is nothing to tell apart")
    return known, positive


Basis = Callable[[Any, Any], tuple[Any, Any]]
"""From training and held-out rows of a fold to the features of both, fitted on the first."""


def _as_they_are(training: Any, held_out: Any) -> tuple[Any, Any]:
    return training, held_out


def _components(training: Any, held_out: Any) -> tuple[Any, Any]:
    given: tuple[Any, Any] = (training, held_out)
    dense = [rows.toarray() if hasattr(rows, "toarray") else rows for rows in given]
    pca = PCA(min(_COMPONENTS, *dense[0].shape), random_state=0).fit(dense[0])
    return pca.transform(dense[0]), pca.transform(dense[1])


def _clusters(training: Any, held_out: Any, n: int | None = None) -> tuple[Any, Any]:
    most = training.shape[0] // 2
    means = MiniBatchKMeans(min(n or training.shape[1], most), random_state=0, n_init=1).fit(training)
    every = np.eye(means.n_clusters)
    return (sparse.csr_array(every[means.predict(training)]), sparse.csr_array(every[means.predict(held_out)]))


BASES: dict[str, Basis] = {"features": _as_they_are, "pca": _components, "kmeans": _clusters}


def probe_of(
    features: Any,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    ks: Sequence[int | None] = KS,
    basis: str = "features",
    n_clusters: int | None = None,
    n_folds: int = 5,
    strengths: Sequence[float] = STRENGTHS,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    permute: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Logistic probes on the k features that differ most between the classes, judged on groups that they never saw.

    Folds keep groups whole and the classes balanced. Of the training rows of a fold: a fifth of the groups chooses the
    strength of the L2 penalty (by log loss); then features are chosen by their standardized mean difference, divided by
    their standard deviation, and fitted. AUROC is that of each fold's held-out rows, averaged over folds, since scores
    of different folds' models do not compare.

    Args:
        features: (N, F) array or scipy.sparse: codes, channels, embeddings.
        labels: (N,) 0 or 1, NaN where it is missing; such rows are left out.
        groups: (N,) which images belong together.
        ks: how many features each probe may use; None: all. A k above F is all of them.
        basis: "features"; "pca": 100 principal components of the training rows; "kmeans": which cluster of the training
            rows is nearest, one-hot.
        n_clusters: of "kmeans", half the training rows at the most; None: F.
        n_folds: folds, fewer where a class has fewer groups.
        strengths: inverse penalties to choose from.
        n_bootstrap: resamples of groups for the 95 % interval; 0 gives NaN.
        min_patients: groups that each class must have for an interval.
        permute: whether to do it all again with permuted labels, which takes as long as the rest.
        seed: of folds, resamples and permuted labels.

    Returns:
        One row per k: k (the number that was used), auroc, auroc_low, auroc_high, chance (0.5), auroc_permuted (the
        same procedure with the labels permuted between groups; NaN without `permute`), calibration_slope (of the label
        on the held-out logit within folds; 1 is right, below 1 overconfident), n_rows, n_positive, n_groups,
        n_positive_groups, and reason: why the AUROC or its interval is NaN, or says nothing, else empty.

    Raises:
        InputError: arrays that do not fit, labels that are not 0, 1 or NaN, or of one class only, a k that is no count.

    Example:
        >>> import numpy as np
        >>> labels = np.repeat([0, 1], 50)
        >>> found = probe_of(labels[:, None] + np.zeros((100, 3)), labels, np.arange(100), ks=(1,), n_bootstrap=0)
        >>> found.loc[0, "auroc"]
        1.0
    """
    matrix = feature_matrix(features)
    known, positive = known_labels(labels, matrix.shape[0])
    of_row = as_groups(groups, matrix.shape[0])[known]
    one_of(basis, "basis", tuple(BASES))
    chosen = BASES[basis]
    if basis == "kmeans" and n_clusters is not None:
        chosen = partial(_clusters, n=whole(n_clusters, "n_clusters", least=1))
    wanted = [None if k is None else whole(k, "ks", least=1) for k in entries(ks, "ks")]
    penalties = listed_numbers(strengths, "strengths")
    if not wanted or not len(penalties) or not (penalties > 0).all():
        raise InputError("name at least one k and one strength above 0")
    n_folds = whole(n_folds, "n_folds", least=2)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    few = min(len(np.unique(of_row[positive == label])) for label in (0, 1))
    counts = {
        "n_rows": len(positive),
        "n_positive": int(positive.sum()),
        "n_groups": len(np.unique(of_row)),
        "n_positive_groups": len(np.unique(of_row[positive == 1])),
    }
    problem = Problem(matrix[known], positive, of_row, min(n_folds, few), penalties.tolist(), chosen, seed)
    reason = "a class has a single group, so that it cannot both teach and test" if few < 2 else problem.no_folds
    if reason:
        unknown = dict.fromkeys(("auroc", "auroc_low", "auroc_high", "auroc_permuted", "calibration_slope"), np.nan)
        return pd.DataFrame([{"k": k, **unknown, "chance": 0.5, **counts, "reason": reason} for k in wanted])
    sizes, scores = problem.scores(wanted)
    shuffled = permuted(positive, of_row, seed)
    permuted_few = min(len(np.unique(of_row[shuffled == label])) for label in (0, 1))
    control = replace(problem, positive=shuffled, n_folds=min(n_folds, permuted_few))
    controls = np.full(len(wanted), np.nan)
    if permute and permuted_few >= 2 and not control.no_folds:
        controls = np.array([control.auroc(score) for score in control.scores(wanted)[1]])
    same = not varies(problem.features)
    reason = f"intervals need {min_patients} groups of either class" if few < min_patients and n_bootstrap else ""
    reason = "no feature varies, so that all rows score alike" if same else reason
    records = []
    for size, score, control_auroc in zip(sizes, scores, controls, strict=True):
        bounded = n_bootstrap and few >= min_patients and not same
        low, high = problem.interval(score, n_bootstrap) if bounded else (np.nan, np.nan)
        records.append(
            {
                "k": size,
                "auroc": problem.auroc(score),
                "auroc_low": low,
                "auroc_high": high,
                "chance": 0.5,
                "auroc_permuted": control_auroc,
                "calibration_slope": np.nan if same else problem.slope(score),
                **counts,
                "reason": reason,
            }
        )
    return pd.DataFrame(records)


def varies(features: Any) -> bool:
    """Whether any feature (a column) is not the same in every row."""
    low, high = (getattr(features, name)(axis=0) for name in ("min", "max"))
    return bool((low != high).sum())


def feature_matrix(features: Any) -> Any:
    """Features (N, F), finite, as an array or, if they are sparse, as a csr_array.

    Raises:
        InputError: another shape, or a value that is not finite.
    """
    if sparse.issparse(features):
        return sparse.csr_array(as_codes(features, "features"))
    array = numbers(features, "features")
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"features have shape {array.shape}: expected (N, F), one row for each image")
    if not np.isfinite(array).all():
        raise InputError("features hold a value that is not finite")
    return array


def permuted(positive: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Labels (N,) permuted between groups: groups in a random order take them in the order of the rows."""
    shuffled = np.empty_like(positive)
    shuffled[in_random_groups(groups, np.random.default_rng(seed))] = positive[np.argsort(groups, kind="stable")]
    return shuffled


@dataclass(frozen=True)
class Problem:
    """What is told from what, and how it is cut into folds."""

    features: Any
    positive: NDArray[np.int64]
    groups: NDArray[np.int64]
    n_folds: int
    strengths: list[float]
    basis: Basis
    seed: int

    @cached_property
    def folds(self) -> "Folds":
        """Training and held-out rows of each fold."""
        return _cut(self.positive, self.groups, self.n_folds, self.seed)

    @cached_property
    def no_folds(self) -> str:
        """Why the groups cannot be cut into folds that hold both classes each; empty where they can."""
        try:
            _ = self.folds
        except InputError as error:
            return str(error)
        return ""

    def scores(self, ks: Sequence[int | None]) -> tuple[list[int], list[NDArray[np.float64]]]:
        """For each k the number of features that were used, and the held-out logit (N,) of every row."""
        scores = [np.zeros(len(self.positive)) for _ in ks]
        sizes = [0] * len(ks)
        for training, held_out in self.folds:
            y, groups = self.positive[training], self.groups[training]
            known, asked = self.basis(self.features[training], self.features[held_out])
            few = min(len(np.unique(groups[y == label])) for label in (0, 1))
            chooses = few >= 2 and len(self.strengths) > 1
            inner = _cut(y, groups, min(5, few), self.seed)[0] if chooses else None
            order = _by_difference(known, y)
            inner_order = _by_difference(known[inner[0]], y[inner[0]]) if inner else order
            for place, k in enumerate(ks):
                chosen = order if k is None else order[:k]
                sizes[place] = len(chosen)
                strength = self.strengths[len(self.strengths) // 2]
                if inner:
                    first, second = inner
                    columns = inner_order[: len(chosen)]
                    losses = [
                        _log_loss(
                            _logits(known[first][:, columns], y[first], known[second][:, columns], each), y[second]
                        )
                        for each in self.strengths
                    ]
                    strength = self.strengths[int(np.argmin(losses))]
                scores[place][held_out] = _logits(known[:, chosen], y, asked[:, chosen], strength)
        return sizes, scores

    def auroc(self, scores: NDArray[np.float64]) -> float:
        """The mean over folds."""
        return float(np.mean([_auroc(self.positive[rows], scores[rows]) for _, rows in self.folds]))

    @property
    def wider(self) -> float:
        """How much wider an interval of `auroc` is than its resamples, for what the folds' training rows share.

        Models of K folds are fitted on overlapping rows, so that their mean varies more than that of K independent
        ones: by 1 + K / (K - 1) in variance (Nadeau and Bengio, 2003). Without it 75 % of the intervals of a probe on
        random labels held 0.5, with it 95 %.
        """
        return math.sqrt(1 + len(self.folds) / (len(self.folds) - 1))

    def interval(self, scores: NDArray[np.float64], n_bootstrap: int) -> tuple[float, float]:
        """Of `auroc`, by resampling the groups of each fold."""
        samples = []
        for fold, (_, rows) in enumerate(self.folds):
            resamples = Resamples(
                self.positive[rows], self.groups[rows], n_bootstrap=n_bootstrap, seed=self.seed + fold, min_patients=1
            )
            samples.append(resamples.metrics(scores[rows, None])["auroc"])
        n_negative, n_positive = (len(np.unique(self.groups[self.positive == label])) for label in (0, 1))
        low, high = auroc_interval(np.mean(samples, axis=0), n_positive, n_negative)
        at = self.auroc(scores)
        return max(at - self.wider * (at - low), 0.0), min(at + self.wider * (high - at), 1.0)

    def slope(self, scores: NDArray[np.float64]) -> float:
        """Of the label on the held-out logit, each fold with its own intercept; NaN where a threshold tells all."""
        if self.auroc(scores) in (0.0, 1.0) or not np.ptp(scores):
            return float("nan")
        fold = np.zeros((len(scores), len(self.folds)))
        for number, (_, rows) in enumerate(self.folds):
            fold[rows, number] = 1
        fitted = LogisticRegression(C=np.inf, fit_intercept=False, max_iter=_MAX_ITERATIONS)
        return float(fitted.fit(np.column_stack([scores, fold]), self.positive).coef_[0, 0])


def _auroc(y: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """By ranks, ties counting one half; scikit-learn's checks of its arguments take ten times as long."""
    n_positive = int(y.sum())
    above = rankdata(scores)[y == 1].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (len(y) - n_positive)))


Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _cut(y: NDArray[np.int64], groups: NDArray[np.int64], n_folds: int, seed: int) -> Folds:
    """Folds with both classes on either side, which `StratifiedGroupKFold` does not promise."""
    return _kept_cut(y.tobytes(), groups.tobytes(), n_folds, seed)


@lru_cache(maxsize=16)  # an audit cuts the same labels for a dozen SAEs
def _kept_cut(labels: bytes, of_row: bytes, n_folds: int, seed: int) -> Folds:
    y, groups = np.frombuffer(labels, dtype=np.int64), np.frombuffer(of_row, dtype=np.int64)
    for attempt in range(100):
        folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed + attempt).split(y, y, groups)
        found = [(first, second) for first, second in folds]
        if all(len(np.unique(y[rows])) == 2 for fold in found for rows in fold):
            return found
    if n_folds > 2:
        return _kept_cut(labels, of_row, n_folds - 1, seed)
    raise InputError("the groups cannot be cut into two parts that hold both classes each: give more groups")


def _by_difference(features: Any, y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Features by falling standardized mean difference between the classes, equal ones by rising index."""
    means, variances = [], []
    for label in (0, 1):
        rows: Any = features[np.flatnonzero(y == label)]
        mean = np.asarray(rows.mean(axis=0)).ravel()
        square = rows * rows
        means.append(mean)
        variances.append(np.maximum(np.asarray(square.mean(axis=0)).ravel() - mean**2, 0))
    spread = np.sqrt((variances[0] + variances[1]) / 2)
    gap = np.abs(means[1] - means[0])
    # A feature that does not vary within the classes tells all if it differs between them, and else nothing.
    difference = np.divide(gap, spread, out=np.where(gap > 0, np.inf, 0.0), where=spread > 0)
    return np.argsort(-settled(np.minimum(difference, 1e9)), kind="stable")


def _logits(training: Any, y: NDArray[np.int64], held_out: Any, strength: float) -> NDArray[np.float64]:
    """Logits of the held-out rows by a model fitted on the others, each feature in units of its own spread there."""
    scaler = StandardScaler(with_mean=not sparse.issparse(training)).fit(training)
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(scaler.transform(training), y)
    found: NDArray[np.float64] = model.decision_function(scaler.transform(held_out))
    return found


def _log_loss(logits: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return float(np.logaddexp(0, np.where(y == 1, -logits, logits)).mean())


@checked_arguments
def linear_probes(
    table: "LatentTable",
    concepts: Sequence[str] | None = None,
    *,
    split: str = "test",
    unit: str = "image",
    arms: Sequence[str] | None = None,
    embeddings: Embeddings = None,
    ks: Sequence[int | None] = KS,
    n_folds: int = 5,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """k-sparse and full logistic probes on latents, beside the same on the dense layer (`probe_of` has the procedure).

    Folds are cut by patient within one split. "test" is the split that neither SAE nor classifier was trained on: on
    training images a fine-tuned network tells its own labels better than it should.

    Args:
        table: the latents table.
        concepts: some of the table's; all by default. Of one with more than two classes each against the rest.
        split: the split whose images are cut into folds.
        unit: what is told apart, as for `LatentTable.rows`; a breast, exam or patient has the mean, or maximum, of its
            images' latents and channels as its features.
        arms: some of `ARMS`; None: all, but of a table of rows "codes" for the latents' two statistics, and what reads
            the dense layer only where `embeddings` are given.
        embeddings: the dense layer: an array (n_images, d) in the order of `table.images`, an activation store or files
            of embeddings; None takes the mean channels that a table of maps keeps.
        ks: as for `probe_of`.
        n_folds: as for `probe_of`.
        n_bootstrap: as for `probe_of`.
        min_patients: as for `probe_of`.
        seed: as for `probe_of`.

    Returns:
        The rows of `probe_of` with concept, label (the class against the rest) and arm before them. A class that no
        image or every image of the split has gives a row without AUROC that says so.

    Raises:
        InputError: an unknown concept, split or arm, or no concept at all.
    """
    chosen = list(table.vocabulary) if concepts is None else [str(each) for each in entries(concepts, "concepts")]
    if not chosen:
        raise InputError(f"{table.folder} has no concept to probe for: encode images with labels, or name concepts")
    if arms is None:
        of_layer = () if table.is_of_rows and embeddings is None else ARMS[3:]
        arms = (*(ARMS[2:3] if table.is_of_rows else ARMS[:2]), *of_layer)
    arms = [str(arm) for arm in entries(arms, "arms")]
    for arm in arms:
        one_of(arm, "arms", ARMS)
    found, counted = [], EvaluationUnit.named(unit).noun
    for concept in chosen:
        rows = table.rows(concept, split=split, unit=unit)
        for label, positive in _against_the_rest(table.classes(concept), rows.labels):
            for arm in arms:
                about = {"concept": concept, "label": label, "arm": arm}
                if positive.all() or not positive.any():
                    reason = f"{'every' if positive.any() else 'no'} {counted} of split '{split}' is of this class"
                    found.append(pd.DataFrame([{**about, "auroc": np.nan, "reason": reason}]))
                    continue
                features, basis = _features(table, arm, embeddings, rows)
                probed = probe_of(
                    features,
                    positive,
                    rows.patient_ids,
                    ks=ks,
                    basis=basis,
                    n_clusters=table.d_sae,
                    n_folds=n_folds,
                    n_bootstrap=n_bootstrap,
                    min_patients=min_patients,
                    seed=seed,
                )
                found.append(pd.concat([pd.DataFrame([about] * len(probed)), probed], axis=1))
    return pd.concat(found, ignore_index=True)


def _features(table: "LatentTable", arm: str, embeddings: Embeddings, rows: "EvaluationRows") -> tuple[Any, str]:
    if arm in ("max_latents", "mean_latents", "codes"):
        return rows.values(table.codes() if arm == "codes" else getattr(table, arm)), "features"
    dense = rows.reduced(dense_rows(table, embeddings, rows.image_rows).whole())
    return dense, "features" if arm == "channels" else arm


def _against_the_rest(classes: tuple[int, ...], labels: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    return [(label, (labels == label).astype(np.int64)) for label in (classes[1:] if len(classes) == 2 else classes)]


@checked_arguments
def latent_aurocs(
    table: "LatentTable",
    concept: str,
    *,
    split: str = "test",
    unit: str = "image",
    n_permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC of every latent's maximum and mean over positions for a concept (`latent_aurocs_of` has the formulas).

    Args:
        table: the latents table.
        concept: one of its concepts; of one with more than two classes each against the rest.
        split: the split whose images are told apart.
        unit: what is told apart, as for `LatentTable.rows`; a breast, exam or patient has the mean, or maximum, of its
            images' activations.
        n_permutations: as for `latent_aurocs_of`.
        seed: as for `latent_aurocs_of`.

    Returns:
        The rows of `latent_aurocs_of` with concept, label (the class against the rest) and statistic ("max", "mean";
        of a table of rows "code") before them. Activations that differ by no more than rounding tie.

    Raises:
        InputError: an unknown concept or split, or a class without which nothing can be told apart.
    """
    rows = table.rows(concept, split=split, unit=unit)
    found = []
    statistics = {"max": table.max_latents, "mean": table.mean_latents}
    for statistic, values in ({"code": table.codes()} if table.is_of_rows else statistics).items():
        codes = settled_codes(as_codes(rows.values(values)))
        for label, positive in _against_the_rest(table.classes(concept), rows.labels):
            scored = latent_aurocs_of(codes, positive, rows.patient_ids, n_permutations=n_permutations, seed=seed)
            about = {"concept": concept, "label": label, "statistic": statistic}
            found.append(pd.DataFrame([about] * len(scored), columns=[*about]).join(scored))
    return pd.concat(found, ignore_index=True)
