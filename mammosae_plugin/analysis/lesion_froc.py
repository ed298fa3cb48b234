"""FROC of many maps at once, from their peaks, with intervals from resampled patients: arrays alone, no table.

A lesion is found at a threshold if the best of the peaks in it is above; peaks outside every lesion are false. So a
lesion is found at f false positives per image exactly if no more than f times the images false peaks are as high as its
best one. Counting those by patient, once for each lesion, makes every resample of patients a matrix product.
"""

__all__ = ["Detections", "Operating", "pointing_hits", "sensitivities"]

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.analysis.lesion_truth import Lesions
from mammosae_plugin.latents.peaks import Peaks

_ROUNDING = 1e-9  # of a product of false positives per image and images


@dataclass(frozen=True)
class Detections:
    """The peaks of maps in the images of `Lesions`, strongest first.

    Attributes:
        cells: (n_images, n_maps, n) int32, -1 where a map has no further peak.
        values: (n_images, n_maps, n) float32, -inf there.
    """

    cells: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, peaks: Peaks, image_rows: NDArray[np.int64], n_maps: int) -> "Detections":
        """From the peaks of a table."""
        place = np.searchsorted(image_rows, peaks.image_rows)
        own = place < len(image_rows)
        own[own] = image_rows[place[own]] == peaks.image_rows[own]
        image, columns = place[own], peaks.columns[own]
        entry = image * n_maps + columns
        order = np.argsort(entry, kind="stable")  # within an entry they come by falling value
        ordered = entry[order]
        rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        n = int(rank.max(initial=-1)) + 1
        cells = np.full((len(image_rows) * n_maps, max(n, 1)), -1, dtype=np.int32)
        values = np.full(cells.shape, -np.inf, dtype=np.float32)
        cells[ordered, rank], values[ordered, rank] = peaks.cells[own][order], peaks.values[own][order]
        shape = (len(image_rows), n_maps, -1)
        return cls(cells.reshape(shape), values.reshape(shape))

    def best_in(self, image: int, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(n, n_maps) the highest peak of an image in each of some regions (n, h * w); -inf where none lies there."""
        cells, values = self.cells[image], self.values[image]
        found: NDArray[np.float32] = np.where(inside[:, cells], values, -np.inf).max(axis=2)
        return found  # cell -1 is the last one's, but its value is -inf

    def false_values(self, lesions: Lesions) -> NDArray[np.float32]:
        """`values`, with -inf for every peak in a lesion."""
        found = self.values.copy()
        for image in lesions.boxed:
            hit = np.any(lesions.inside[lesions.of_image(image)], axis=0)[self.cells[image]]
            found[image][hit] = -np.inf
        return found

    def best(self, lesions: Lesions) -> NDArray[np.float32]:
        """(n_lesions, n_maps) the highest peak in each lesion."""
        found = [self.best_in(image, lesions.inside[lesions.of_image(image)]) for image in lesions.boxed]
        return np.concatenate(found)


@dataclass(frozen=True)
class Operating:
    """Where the thresholds of a FROC come from: false peaks in some images, of all of them or of the healthy ones.

    Attributes:
        patient_of_image: (n_images,) numbers of patients, from 0.
        counts: (n_images,) whether an image counts.
        limits: (n_limits,) false positives per image.
    """

    patient_of_image: NDArray[np.int64]
    counts: NDArray[np.bool_]
    limits: NDArray[np.float64]

    @cached_property
    def n_images_of_patient(self) -> NDArray[np.float64]:
        """(n_patients,) images that count."""
        n_patients = int(self.patient_of_image.max()) + 1
        return np.bincount(self.patient_of_image[self.counts], minlength=n_patients).astype(np.float64)

    @property
    def n_images(self) -> int:
        """Images that count."""
        return int(self.counts.sum())

    def thresholds(self, false_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n_limits,) of false peaks (n_images, n) of one map: found is what is above; -inf where all may come."""
        values = false_values[self.counts]
        falling = np.sort(values[values > -np.inf])[::-1]
        allowed = np.floor(self.limits * self.n_images + _ROUNDING).astype(np.int64)
        found = np.full(len(allowed), -np.inf, dtype=np.float32)
        limited = allowed < len(falling)
        found[limited] = falling[allowed[limited]]
        return found

    def as_high(self, levels: NDArray[np.float32], false_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n_patients, n_levels) false peaks of one map, by patient, that are as high as levels, rising."""
        chosen = (false_values > -np.inf) & self.counts[:, None]
        rank = np.searchsorted(levels, false_values[chosen], side="right")  # so many levels it reaches
        patient = np.broadcast_to(self.patient_of_image[:, None], chosen.shape)[chosen]
        n_patients, width = len(self.n_images_of_patient), len(levels) + 1
        counts = np.bincount(patient * width + rank, minlength=n_patients * width).reshape(n_patients, width)
        reached = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
        return reached[:, 1:].astype(np.float32)


def sensitivities(
    best: NDArray[np.float32],
    false_values: NDArray[np.float32],
    patient_of_target: NDArray[np.int64],
    operating: Operating,
    draws: NDArray[np.float32],
) -> NDArray[np.float64]:
    """The sensitivity of one map at each limit in each draw of patients.

    Args:
        best: (n_targets,) highest peak in each lesion, or each breast; -inf without one.
        false_values: (n_images, n) of `Detections.false_values`.
        patient_of_target: (n_targets,).
        operating: what false positives are counted in.
        draws: (n_draws, n_patients) how often each patient counts; ones for the sample itself.

    Returns:
        (n_draws, n_limits); NaN for a draw without a target, or without an image that counts.
    """
    levels, level = np.unique(best[best > -np.inf], return_inverse=True)
    reached = draws @ operating.as_high(levels, false_values)  # (n_draws, n_levels), falling along levels
    n_images = draws.astype(np.float64) @ operating.n_images_of_patient
    weights = np.zeros((len(operating.n_images_of_patient), len(levels) + 1), dtype=np.float32)
    np.add.at(weights, (patient_of_target[best > -np.inf], level), 1)
    # The share of targets at or above each level; above the last one there is none.
    above = np.cumsum((draws @ weights)[:, ::-1], axis=1)[:, ::-1].astype(np.float64)
    targets = draws.astype(np.float64) @ np.bincount(patient_of_target, minlength=draws.shape[1])
    found = np.empty((len(draws), len(operating.limits)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for place, limit in enumerate(operating.limits):
            allowed = np.floor(limit * n_images + _ROUNDING)
            first = (reached > allowed[:, None]).sum(axis=1)  # the lowest level that lets no more through
            found[:, place] = np.take_along_axis(above, first[:, None], axis=1)[:, 0] / targets
    found[n_images == 0] = np.nan
    return found


def pointing_hits(detections: Detections, image: int, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n, n_maps) whether the highest peak of an image lies in each of some regions (n, h * w)."""
    found: NDArray[np.bool_] = inside[:, detections.cells[image, :, 0]] & (detections.values[image, :, 0] > -np.inf)
    return found
