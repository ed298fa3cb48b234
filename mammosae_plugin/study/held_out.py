"""Repairs judged on patients who had no part in the choice: chosen on one half of them, measured on the other."""

__all__ = ["held_out_change"]

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.latents import LatentTable
from mammosae_plugin.measures.statistics import Resamples, classification_metrics, spread_interval

_ASIDE = "set aside"  # the split of images that a choice must not see


def held_out_change(
    table: LatentTable,
    concept: str,
    choose: Callable[[LatentTable], Sequence[int]],
    repaired: Callable[[Sequence[int]], NDArray[np.float64]],
    *,
    split: str,
    unit: str,
    n_bootstrap: int,
    min_patients: int,
    seed: int,
) -> dict[str, Any]:
    """The change of AUROC by a repair whose latents are chosen anew on each half of the patients, for the other half.

    Patients with the finding and without are halved at random, each of the two by itself. What is chosen on one half is
    measured on the other, both ways, and the change is the mean of the two; where nothing is chosen it is 0.

    Args:
        table: the latents table.
        concept: the finding.
        choose: gives the latents from a table whose split holds one half of the patients alone.
        repaired: the logits (n_images, 1) of all images without some latents.
        split: the split that is halved.
        unit: as for `LatentTable.rows`.
        n_bootstrap: resamples of the patients of each half.
        min_patients: patients of either class that each half needs for an interval.
        seed: of the halves and the resamples.

    Returns:
        held_out_change with _low and _high (95 %, over patients), held_out_first and held_out_second: the latents
        chosen on each half; and held_out_reason, why the change is not known.
    """
    rows = table.rows(concept, split=split, unit=unit)
    names, of_row = np.unique(rows.patient_ids.astype(str), return_inverse=True)
    with_finding = np.isin(np.arange(len(names)), of_row[rows.labels > 0])
    half = np.zeros(len(names), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for one in (True, False):
        half[generator.permutation(np.flatnonzero(with_finding == one))[1::2]] = 1
    chosen = [[int(one) for one in choose(_without(table, split, names[half != number]))] for number in (0, 1)]
    found: dict[str, Any] = {"held_out_first": chosen[0], "held_out_second": chosen[1], "held_out_reason": ""}
    changes, samples, fewest = [], [], []
    for number, latents in enumerate(chosen):
        own = half[of_row] != number
        labels, patients = rows.labels[own], rows.patient_ids[own]
        if len(np.unique(labels)) < 2:
            return {**found, "held_out_reason": "half of the patients are of one class"}
        resamples = Resamples(labels, patients, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
        stages = [rows.logits(logits)[own] for logits in (table.logits(concept), repaired(latents))]
        before, after = (classification_metrics(one, labels)["auroc"] for one in stages)
        drawn_before, drawn_after = (resamples.metrics(one)["auroc"] for one in stages)
        changes.append(after - before)
        samples.append(drawn_after - drawn_before)
        fewest.append(int(resamples.patients_per_class.min()))
    low, high = spread_interval(np.mean(samples, axis=0)) if min(fewest) >= min_patients else (np.nan, np.nan)
    found |= {"held_out_change": float(np.mean(changes)), "held_out_change_low": low, "held_out_change_high": high}
    return found


def _without(table: LatentTable, split: str, patients: NDArray[np.str_]) -> LatentTable:
    """The same table in which images of some patients belong to no split."""
    part = copy.copy(table)
    images = table.images.copy()
    aside = (images["split"] == split) & images["patient_id"].astype(str).isin(patients.tolist())
    images.loc[aside, "split"] = _ASIDE
    part.images = images
    return part
