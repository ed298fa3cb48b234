"""What the SAE costs: the classifier's metrics with and without it (Table 1), and the quality of the reconstruction."""

__all__ = ["auroc_cost", "reconstruction_metrics", "reconstruction_quality", "ReconstructionQuality"]

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mammosae_plugin.arguments import checked_arguments
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.reconstruction import explained_variance
from mammosae_plugin.measures.statistics import (
    METRICS,
    MIN_PATIENTS,
    Resamples,
    classification_metrics,
    require_two_classes,
    settled,
)

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable


@checked_arguments
def reconstruction_metrics(
    table: "LatentTable",
    concept: str,
    *,
    split: str = "test",
    unit: str = "image",
    n_bootstrap: int = 1000,
    seed: int = 0,
    min_patients: int = MIN_PATIENTS,
) -> pd.DataFrame:
    """The classifier's metrics without the SAE, with it, and their difference, as in Table 1 of the paper.

    Args:
        table: the latents table.
        concept: a concept that has a head; its head is evaluated.
        split: the split evaluated.
        unit: "image", "finding_row" to evaluate the rows of the annotation file as the published numbers do, or any
            other of `LatentTable.rows`: of a breast, exam or patient the mean, or maximum, of its images' probabilities
            is judged.
        n_bootstrap: number of patient-level resamples for the 95 % intervals; 0 gives NaN.
        seed: seed of the resamples.
        min_patients: patients that every class must have for an interval; with fewer the ends are NaN.

    Returns:
        Three rows, `variant` without_sae, with_sae and difference (with minus without, its interval from the same
        resamples); columns variant, the counts of `statistics.Resamples.counts`, then for every metric m the columns m,
        m_low, m_high. Logits that differ by no more than rounding (`latents.table.logit_error`) tie.

    Raises:
        InputError: fewer than two classes in the split, or a concept that the table lacks.
    """
    rows = table.rows(concept, split=split, unit=unit)
    require_two_classes(rows.labels, concept=concept, split=split)
    resamples = Resamples(rows.labels, rows.patient_ids, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
    error = logit_error(table, concept)
    without, with_sae = (
        settled(rows.logits(logits), error) for logits in (table.logits(concept), table.logits_with_sae(concept))
    )
    points = [classification_metrics(logits, rows.labels) for logits in (without, with_sae)]
    samples = [resamples.metrics(logits) for logits in (without, with_sae)]
    points.append({name: points[1][name] - points[0][name] for name in METRICS})
    samples.append({name: samples[1][name] - samples[0][name] for name in METRICS})

    unchanged = len(samples[0]["auroc"]) > 0 and np.array_equal(
        without, with_sae
    )  # then the difference is 0 for certain
    counts = resamples.counts(binary=without.shape[1] == 1)
    records = []
    for variant, point, sample in zip(("without_sae", "with_sae", "difference"), points, samples, strict=True):
        record: dict[str, object] = {"variant": variant, **counts}
        for name in METRICS:
            record[name] = point[name]
            auroc = name == "auroc" and variant != "difference" and without.shape[1] == 1
            ends = (
                (0.0, 0.0) if variant == "difference" and unchanged else resamples.interval(sample[name], auroc=auroc)
            )
            record[f"{name}_low"], record[f"{name}_high"] = ends
        records.append(record)
    return pd.DataFrame.from_records(records)


@checked_arguments
def auroc_cost(table: "LatentTable", concept: str, *, split: str = "test", unit: str = "image") -> float:
    """How much AUROC the classifier loses with the SAE in its place: without it minus with it.

    Raises:
        InputError: as `reconstruction_metrics`, whose arguments these are.
    """
    metrics = reconstruction_metrics(table, concept, split=split, unit=unit, n_bootstrap=0).set_index("variant")
    return -float(metrics["auroc"]["difference"])


@dataclass(frozen=True)
class ReconstructionQuality:
    """How well an SAE reconstructs the feature map of a split, and how many latents it uses there.

    Attributes:
        split: the split measured, which is the window in which a latent that never fires counts as dead.
        explained_variance: 1 - (sum of squared errors) / (sum of squared deviations from the mean of each feature);
            NaN when the features do not vary.
        mse: squared error, mean over positions and features.
        l0: active latents per position.
        n_live: latents that fire at any position of the split.
        n_dead: those that fire at none.
        dead_share: their share of all latents.
        n_positions: positions measured.
        n_images: images measured.
    """

    split: str
    explained_variance: float
    mse: float
    l0: float
    n_live: int
    n_dead: int
    dead_share: float
    n_positions: int
    n_images: int

    def to_frame(self) -> pd.DataFrame:
        """One row, a column for each attribute."""
        return pd.DataFrame([asdict(self)])


@checked_arguments
def reconstruction_quality(table: "LatentTable", split: str) -> ReconstructionQuality:
    """How well the SAE reconstructs the feature map of a split, and how many latents it uses.

    Args:
        table: the latents table.
        split: the split measured.

    Raises:
        InputError: the table has no image of the split.
    """
    n_images = int((table.images["split"] == split).sum())
    if n_images == 0:
        splits = ", ".join(sorted(set(table.images["split"])))
        raise InputError(f"the table has no image of split '{split}': choose one of {splits}")
    sums = table.reconstruction_sums(split)
    n_positions = int(sums["n_positions"])
    squared_error = float(np.sum(sums["sse"]))
    variation = float(np.sum(sums["sum_sq"] - np.square(sums["sum"]) / n_positions))
    explained = explained_variance(squared_error, variation)
    n_live = len(table.live_latents(split))
    n_dead = table.d_sae - n_live
    return ReconstructionQuality(
        split=split,
        explained_variance=float("nan") if explained is None else explained,
        mse=squared_error / (n_positions * len(sums["sse"])),
        l0=float(sums["l0"]) / n_positions,
        n_live=n_live,
        n_dead=n_dead,
        dead_share=n_dead / table.d_sae,
        n_positions=n_positions,
        n_images=n_images,
    )
