"""Class-level probing: how active each latent is in the images of each class, and which latents stand out.

Everything reads the mean latents of the latents table; no image and no network is touched.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Score = Literal["mean", "centered_mean"]

# Images whose mean latents are widened to float64 together, so that memory does not grow with the data set.
_IMAGES_PER_BLOCK = 2048

# A latent in the top of both classes is background if its weaker class mean is at least this share of the stronger.
_SIMILAR_SHARE = 0.5


@dataclass(frozen=True)
class RankedLatents:
    """The latents of every class, best first.

    Attributes:
        indices: (n_class, d_sae) int64, latent indices by falling score; equal scores by rising index.
        scores: (n_class, d_sae) float64, the scores in that order.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def n_class(self) -> int:
        """Number of classes."""
        return int(self.indices.shape[0])

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.indices.shape[1])


def class_mean_latents(
    table: "LatentTable",
    concept: str,
    *,
    split: str = "training",
    unit: str = "image",
    score: Score = "mean",
) -> NDArray[np.float64]:
    """The class scores of every latent.

    `mean` is Equation 2 of the paper (Nakka, Mammo-SAE, arXiv 2507.15227): the mean of the latent over all positions
    of all images of the class. Every image has the same number of positions, so this is the mean over images of the
    per-image mean. `centered_mean` subtracts the mean over all images of the split, as the published ranking files
    do; weighted by the classes' image counts it sums to 0 for every latent.

    Args:
        table: the latents table.
        concept: a finding, or "density" or "birads".
        split: the split whose images are averaged.
        unit: "image", or "finding_row" to count an image once per row of the annotation file.
        score: "mean" or "centered_mean".

    Returns:
        (n_class, d_sae) float64, in units of the latents' activation.

    Raises:
        InputError: an unknown score, or a class that no image of the split has.
    """
    if score not in ("mean", "centered_mean"):
        raise InputError(f"score '{score}' is unknown: choose 'mean' or 'centered_mean'")
    rows = table.rows(concept, split=split, unit=unit)
    classes = np.asarray(table.classes(concept))
    belongs = rows.labels[:, None] == classes
    n_rows = belongs.sum(axis=0)
    for label in classes[n_rows == 0]:
        raise InputError(
            f"split '{split}' has no image of class {label} of '{concept}' among {len(rows.labels)} rows: "
            "its mean latents are undefined, choose another split or concept"
        )
    images, image_of_row = np.unique(rows.image_rows, return_inverse=True)
    counts = np.zeros((len(images), len(classes)))
    np.add.at(counts, image_of_row, belongs)

    sums = np.zeros((table.d_sae, len(classes)))
    for start in range(0, len(images), _IMAGES_PER_BLOCK):
        block = slice(start, start + _IMAGES_PER_BLOCK)
        sums += table.mean_latents[images[block]].astype(np.float64).T @ counts[block]
    means: NDArray[np.float64] = sums.T / n_rows[:, None]
    if score == "mean":
        return means
    overall: NDArray[np.float64] = sums.sum(axis=1) / counts.sum()
    return means - overall


def rank_latents(class_scores: NDArray[np.floating]) -> RankedLatents:
    """Sort the latents of every class by falling score; equal scores by rising index.

    Args:
        class_scores: (n_class, d_sae), such as `class_mean_latents` gives.

    Raises:
        InputError: not two-dimensional, or a score is NaN.
    """
    scores = np.asarray(class_scores, dtype=np.float64)
    if scores.ndim != 2:
        raise InputError(f"class scores have shape {scores.shape}: expected (n_class, d_sae)")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} class scores are NaN: they cannot be ranked")
    indices = np.argsort(-scores, axis=1, kind="stable").astype(np.int64)
    return RankedLatents(indices=indices, scores=np.take_along_axis(scores, indices, axis=1))


def latent_roles(
    class_means: NDArray[np.float64], ranking: RankedLatents, *, top: int = 10
) -> list[tuple[int, Literal["concept", "background"]]]:
    """Name the best latents of class 1 as latents of the concept or of the background.

    The paper tells latents that answer to the concept (13867 for calcification) from latents that are active in both
    classes (15699). The rule here: a latent is `background` if it is among the `top` latents of both classes by class
    mean and the smaller of its two class means is at least half the larger; every other one is `concept`.

    Args:
        class_means: (2, d_sae), the score `mean` of a binary concept.
        ranking: the ranking (by any score) whose best latents of class 1 are named.
        top: how many latents are named.

    Returns:
        (latent, role) in the ranking's order. Latents that never fire in class 1 are left out.
    """
    means = np.asarray(class_means, dtype=np.float64)
    if means.shape != (2, ranking.d_sae) or ranking.n_class != 2:
        raise InputError(f"roles need two classes of {ranking.d_sae} latents, but the class means are {means.shape}")
    by_mean = rank_latents(means).indices[:, :top]
    in_both_tops = set(by_mean[0].tolist()) & set(by_mean[1].tolist())
    roles: list[tuple[int, Literal["concept", "background"]]] = []
    for latent in ranking.indices[1, :top].tolist():
        absent, present = means[:, latent]
        if present <= 0:
            continue
        similar = min(absent, present) >= _SIMILAR_SHARE * max(absent, present)
        roles.append((latent, "background" if similar and latent in in_both_tops else "concept"))
    return roles
