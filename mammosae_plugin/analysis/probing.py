"""Class-level probing: how active each latent is in the images of each class, and which latents stand out.

Everything reads the latents table; no image and no network is touched.
"""

__all__ = [
    "best_single_latent", "class_mean_latents", "rank_channels", "rank_latents", "RankedLatents", "Score",
    "SingleLatent",
]  # fmt: skip

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import rankdata

from mammosae_plugin.arguments import checked_arguments, numbers, one_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import (
    MIN_PATIENTS,
    NETWORK_ERROR,
    Resamples,
    ranking_metrics,
    require_two_classes,
    settled,
    settled_columns,
)

if TYPE_CHECKING:
    from mammosae_plugin.latents import EvaluationRows, LatentTable

Score = Literal["mean", "centered_mean", "overall_mean"]

# Images whose mean latents are widened to float64 together, so that memory does not grow with the data set.
_IMAGES_PER_BLOCK = 2048
# Latents ranked together: 128 columns of 16,000 float64 ranks are 16 MB.
_LATENTS_PER_BLOCK = 128


@dataclass(frozen=True)
class RankedLatents:
    """The latents (or channels) of every class, best first.

    Attributes:
        indices: (n_class, d_sae) int64, latent indices by falling score; equal scores by rising index.
        scores: (n_class, d_sae) float64, the scores in that order.

    Raises:
        InputError: shapes that differ, or a class that does not name every latent once.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        latents, scores = numbers(self.indices, "a ranking's indices"), numbers(self.scores, "a ranking's scores")
        if latents.ndim != 2 or scores.shape != latents.shape:
            raise InputError(
                f"a ranking has indices {latents.shape} and scores {scores.shape}: expected (n_class, d_sae) twice"
            )
        if not (np.sort(latents, axis=1) == np.arange(latents.shape[1])).all():
            raise InputError(f"a ranking must name each of the latents 0 to {latents.shape[1] - 1} once per class")
        object.__setattr__(self, "indices", latents.astype(np.int64))
        object.__setattr__(self, "scores", scores)

    @property
    def n_class(self) -> int:
        """Number of classes."""
        return int(self.indices.shape[0])

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.indices.shape[1])

    def to_frame(self) -> pd.DataFrame:
        """A row per class and latent, best first: class, rank (from 1), latent, score."""
        classes, ranks = np.repeat(np.arange(self.n_class), self.d_sae), np.tile(np.arange(self.d_sae), self.n_class)
        latents, scores = self.indices.ravel(), self.scores.ravel()
        return pd.DataFrame({"class": classes, "rank": ranks + 1, "latent": latents, "score": scores})


@checked_arguments
def class_mean_latents(
    table: "LatentTable",
    concept: str,
    *,
    split: str = "training",
    unit: str = "image",
    score: Score = "mean",
) -> NDArray[np.float64]:
    """The class scores of every latent.

    `mean` is Equation 2 of the paper (Nakka, Mammo-SAE, arXiv 2507.15227): the mean of the latent over all positions of
    all images of the class. Every image has the same number of positions, so this is the mean over images of the
    per-image mean. `centered_mean` subtracts the mean over all images of the split, as the published ranking files do;
    weighted by the classes' image counts it sums to 0 for every latent, and what is left of a latent that is equally
    active in all classes, to rounding, is 0. `overall_mean` is the mean over all images of the split whatever their
    class, the same for every class: the class-agnostic ranking.

    Args:
        table: the latents table.
        concept: a finding, or "density" or "birads".
        split: the split whose images are averaged.
        unit: "image", "finding_row" to count an image once per row of the annotation file, or any other of
            `LatentTable.rows`: of a breast, exam or patient the mean, or the maximum, over its images counts once.
        score: "mean", "centered_mean" or "overall_mean".

    Returns:
        (n_class, d_sae) float64, in units of the latents' activation.

    Raises:
        InputError: an unknown score, or a class that no image of the split has (but for "overall_mean").
    """
    return _class_means(table, table.mean_latents, concept, split, unit, score)


@checked_arguments
def rank_channels(
    table: "LatentTable",
    concept: str,
    *,
    split: str = "training",
    unit: str = "image",
    score: Score = "centered_mean",
) -> RankedLatents:
    """The channels of the layer itself, ranked as latents are: a baseline that needs no SAE.

    Args:
        table: the latents table.
        concept: a finding, or "density" or "birads".
        split: as for `class_mean_latents`.
        unit: as for `class_mean_latents`.
        score: as for `class_mean_latents`, of the channels' means over positions.

    Returns:
        The ranking; its width is the number of channels.

    Raises:
        InputError: as `class_mean_latents`.
    """
    return rank_latents(_class_means(table, table.mean_channels, concept, split, unit, score))


def _class_means(
    table: "LatentTable",
    image_means: csr_array | NDArray[np.float32],
    concept: str,
    split: str,
    unit: str,
    score: Score,
) -> NDArray[np.float64]:
    """Class scores (n_class, width) of per-image means (n_images, width)."""
    one_of(score, "score", get_args(Score))
    rows = table.rows(concept, split=split, unit=unit)
    classes = np.asarray(table.classes(concept))
    belongs = rows.labels[:, None] == classes
    n_rows = belongs.sum(axis=0)
    for label in classes[n_rows == 0] if score != "overall_mean" else ():
        raise InputError(
            f"split '{split}' has no image of class {label} of '{concept}' among {len(rows.labels)} rows: "
            "its means are undefined, choose another split or concept"
        )
    if rows.adds_up:
        images, image_of_row = np.unique(rows.image_rows, return_inverse=True)
        counts = np.zeros((len(images), len(classes)))
        np.add.at(counts, image_of_row, rows.weights[:, None] * rows.of_rows(belongs))
    else:  # the mean of units' maxima
        image_means, images, counts = rows.values(image_means), np.arange(len(belongs)), belongs.astype(np.float64)

    sums = np.zeros((image_means.shape[1], len(classes)))
    for start in range(0, len(images), _IMAGES_PER_BLOCK):
        block = slice(start, start + _IMAGES_PER_BLOCK)
        sums += image_means[images[block]].astype(np.float64).T @ counts[block]
    overall: NDArray[np.float64] = sums.sum(axis=1) / n_rows.sum()
    if score == "overall_mean":
        return np.tile(overall, (len(classes), 1))
    means: NDArray[np.float64] = sums.T / n_rows[:, None]
    if score == "mean":
        return means
    centered = means - overall
    centered[np.abs(centered) <= NETWORK_ERROR * np.abs(means)] = 0.0  # what rounding left of equal means
    return centered


def rank_latents(class_scores: NDArray[np.floating]) -> RankedLatents:
    """Sort the latents of every class by falling score; equal scores by rising index.

    Args:
        class_scores: (n_class, d_sae), such as `class_mean_latents` gives.

    Raises:
        InputError: not two-dimensional, no number, or a score is NaN.
    """
    scores = numbers(class_scores, "class scores")
    if scores.ndim != 2:
        raise InputError(f"class scores have shape {scores.shape}: expected (n_class, d_sae)")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} class scores are NaN: they cannot be ranked")
    finite = np.nan_to_num(scores)  # an infinite score ranks first or last
    levels = np.array([settled(row) for row in finite]).reshape(finite.shape)
    indices = np.argsort(-levels, axis=1, kind="stable").astype(np.int64)
    return RankedLatents(indices=indices, scores=np.take_along_axis(scores, indices, axis=1))


@dataclass(frozen=True)
class SingleLatent:
    """A latent as a classifier of one number: chosen on the training split, judged on the test split.

    Attributes:
        concept: what it tells.
        latent: its index.
        statistic: an image's score: its "max" or "mean" over positions.
        unit: what counts as a row of the test split, as for `LatentTable.rows`.
        auroc_training: AUROC of class 1 on the training split, by which it was chosen.
        auroc: AUROC on the test split.
        interval: 95 % interval of that from resampled patients, low and high; NaN where there is none.
        counts: what the interval rests on, the counts of `statistics.Resamples.counts`.
    """

    concept: str
    latent: int
    statistic: Literal["max", "mean"]
    unit: str
    auroc_training: float
    auroc: float
    interval: tuple[float, float]
    counts: dict[str, float]

    def to_frame(self) -> pd.DataFrame:
        """One row: latent, auroc_training, auroc, auroc_low, auroc_high, and the counts."""
        low, high = self.interval
        row: dict[str, Any] = {"latent": self.latent, "auroc_training": self.auroc_training, "auroc": self.auroc}
        return pd.DataFrame([{**row, "auroc_low": low, "auroc_high": high, **self.counts}])


@checked_arguments
def best_single_latent(
    table: "LatentTable",
    concept: str,
    *,
    statistic: Literal["max", "mean"] = "max",
    unit: str = "image",
    n_bootstrap: int = 1000,
    seed: int = 0,
    min_patients: int = MIN_PATIENTS,
) -> SingleLatent:
    """The one latent that alone tells the images with a finding from those without: a classifier of one number.

    The score of an image is the latent's maximum (or mean) over positions. The latent is chosen on the training split,
    among those that fire there, by the AUROC of class 1 (equal ones: the lower index), and judged on the test split.

    Args:
        table: the latents table, with the splits "training" and "test".
        concept: a finding.
        statistic: "max" or "mean" over positions.
        unit: as for `LatentTable.rows`; a breast, exam or patient has the mean, or maximum, of its images' scores.
        n_bootstrap: patient-level resamples for the 95 % interval; 0 gives NaN.
        seed: seed of the resamples.
        min_patients: patients that either class must have for an interval; with fewer its ends are NaN.

    Activations that differ by no more than rounding tie.

    Raises:
        InputError: an unknown statistic, a concept with more than two classes, a split without one of the classes, or a
            table in whose training split nothing fires.
    """
    one_of(statistic, "statistic", ("max", "mean"))
    if len(table.classes(concept)) != 2:
        raise InputError(f"'{concept}' has {len(table.classes(concept))} classes: a single latent can only tell two")
    values = (table.max_latents if statistic == "max" else table.mean_latents).tocsc()
    training, test = (table.rows(concept, split=split, unit=unit) for split in ("training", "test"))
    for rows, split in ((training, "training"), (test, "test")):
        require_two_classes(rows.labels, concept=concept, split=split)
    live = table.live_latents("training")
    if len(live) == 0:
        raise InputError("no latent fires in the training split, so that none can be chosen: train another SAE")
    aurocs = np.concatenate(
        [
            _column_aurocs(values[:, live[start : start + _LATENTS_PER_BLOCK]].toarray(), training)
            for start in range(0, len(live), _LATENTS_PER_BLOCK)
        ]
    )
    chosen = int(aurocs.argmax())
    scores = settled_columns(test.values(values[:, [live[chosen]]].toarray()))
    resamples = Resamples(test.labels, test.patient_ids, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
    return SingleLatent(
        concept=concept,
        latent=int(live[chosen]),
        statistic=statistic,
        unit=unit,
        auroc_training=float(aurocs[chosen]),
        auroc=ranking_metrics(scores, test.labels).auroc,
        interval=resamples.interval(resamples.metrics(scores)["auroc"], auroc=True),
        counts=resamples.counts(binary=True),
    )


def _column_aurocs(scores: NDArray[np.float32], rows: "EvaluationRows") -> NDArray[np.float64]:
    """The AUROC of class 1 by every column of (n_images, n): the rank-sum form, ties counted one half."""
    positive = rows.labels == 1
    n_positive, n_negative = positive.sum(), (~positive).sum()
    ranks = rankdata(settled_columns(rows.values(scores)), axis=0)
    aurocs: NDArray[np.float64] = (ranks[positive].sum(axis=0) - n_positive * (n_positive + 1) / 2) / (
        n_positive * n_negative
    )
    return aurocs
