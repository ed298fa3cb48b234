"""How a latent's activation is spread over images: counts by bin and class, and class means with their intervals."""

__all__ = ["ActivationCounts", "class_mean_intervals", "count_activations"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import t as student

from mammosae_plugin.analysis.table_arrays import split_rows
from mammosae_plugin.arguments import checked_arguments, whole
from mammosae_plugin.measures.statistics import MIN_PATIENTS

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_ENTRIES = 2**21  # of a table that are sorted together: 16 MB for each array of them
_UNITS = 2048  # whose means are widened to float64 together


@dataclass(frozen=True)
class ActivationCounts:
    """In how many images the maximum of each latent lies in each bin, by what images are labelled with.

    A patient may have images in several bins and of several signs. So that patients can be added up over bins and
    signs, each counts once: where their strongest image lies; of images in which the latent does not fire (bin 0), at
    the first sign that the patient has, if they have such an image of it. A sum is then no more than the patients
    whose images these are.

    Attributes:
        largest: (d_sae,) the largest maximum of each latent; NaN where it never fires.
        signs: a row per combination of classes: sign, classes (-1: not known), n_images, n_patients (at their first).
        cells: a row per latent, bin and sign with images: latent, bin, sign, n_images, n_patients. Bin b of n holds
            maxima from (b - 1) / n to b / n of the largest, the last with its end, the first with all below.
    """

    largest: NDArray[np.float64]
    signs: pd.DataFrame
    cells: pd.DataFrame


@checked_arguments
def count_activations(
    table: "LatentTable", concepts: Sequence[str], *, split: str = "test", n_bins: int = 16
) -> ActivationCounts:
    """Count images and patients by latent, bin of its maximum over positions, and classes of concepts.

    Args:
        table: a latents table; of rows its values stand for maxima.
        concepts: label columns of its images.
        split: whose images.
        n_bins: equal parts of the range from 0 to a latent's largest maximum.

    Raises:
        InputError: no such split.
    """
    n_bins = whole(n_bins, "n_bins", least=1)
    rows = split_rows(table, split)
    labels = np.stack(
        [
            np.nan_to_num(table.images[name].to_numpy(dtype=np.float64, na_value=np.nan)[rows], nan=-1)
            for name in concepts
        ],
        axis=1,
    ).astype(np.int32)
    classes, sign_of = np.unique(labels, axis=0, return_inverse=True)
    n_signs = len(classes)
    patients = pd.factorize(table.images["patient_id"].to_numpy(dtype=object)[rows].astype(str))[0]
    pairs, pair_of, size_of_pair = np.unique(patients * n_signs + sign_of, return_inverse=True, return_counts=True)
    is_first = np.diff(pairs // n_signs, prepend=-1) > 0  # a patient's first sign
    first_pairs = np.bincount(pairs[is_first] % n_signs, minlength=n_signs)
    of_sign = np.bincount(sign_of, minlength=n_signs)

    codes = sparse.csc_array(table.max_latents[rows])
    largest = np.full(table.d_sae, np.nan)
    found = []
    for latents in _blocks(codes.indptr):
        start, stop = codes.indptr[latents[0]], codes.indptr[latents[-1] + 1]
        images, values = codes.indices[start:stop], codes.data[start:stop].astype(np.float64)
        own = np.repeat(np.arange(len(latents)), np.diff(codes.indptr[latents[0] : latents[-1] + 2]))
        most = np.full(len(latents), -np.inf)
        np.maximum.at(most, own, values)
        largest[latents] = np.where(np.isfinite(most), most, np.nan)
        shares = values / np.where(most > 0, most, 1)[own]
        bins = np.clip((shares * n_bins).astype(np.int64), 0, n_bins - 1) + 1
        cell = (own * (n_bins + 1) + bins) * n_signs + sign_of[images]
        shape = (len(latents), n_bins + 1, n_signs)
        n_images = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
        order = np.lexsort((-values, patients[images], own))
        key = own[order] * (patients.max(initial=0) + 1) + patients[images][order]
        strongest = order[np.diff(key, prepend=-1) > 0]
        n_patients = np.bincount(cell[strongest], minlength=int(np.prod(shape))).reshape(shape)
        n_images[:, 0] = of_sign - n_images.sum(axis=1)
        n_patients[:, 0] = first_pairs - _always_firing(own, pair_of[images], size_of_pair, is_first, pairs, shape)
        places = np.nonzero(n_images)
        counts = n_images[places], n_patients[places]
        found.append(np.stack([latents[0] + places[0], places[1], places[2], *counts], axis=1).astype(np.int32))
    columns = ["latent", "bin", "sign", "n_images", "n_patients"]
    cells = pd.DataFrame(np.concatenate([*found, np.zeros((0, 5), np.int32)]), columns=columns)
    cells = cells[~np.isnan(largest)[cells["latent"]]].reset_index(drop=True)
    signs = pd.DataFrame({"sign": np.arange(n_signs), "classes": list(classes), "n_images": of_sign})
    return ActivationCounts(largest, signs.assign(n_patients=first_pairs), cells)


def _blocks(indptr: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Latents side by side, so many that their entries are about as many as are sorted together."""
    of_block = indptr[:-1] // _ENTRIES + np.arange(len(indptr) - 1) // 1024
    starts = np.flatnonzero(np.diff(of_block, prepend=-1))
    return [np.arange(a, b) for a, b in zip(starts, [*starts[1:], len(indptr) - 1], strict=True)]


def _always_firing(
    own: NDArray[Any],
    pair_of_entry: NDArray[Any],
    size_of_pair: NDArray[Any],
    is_first: NDArray[np.bool_],
    pairs: NDArray[Any],
    shape: tuple[int, int, int],
) -> NDArray[np.int64]:
    """(n_latents, n_signs) patients in all of whose images of their first sign a latent fires."""
    n_latents, _, n_signs = shape
    key, n = np.unique(own.astype(np.int64) * len(pairs) + pair_of_entry, return_counts=True)
    latent, pair = np.divmod(key, len(pairs))
    full = is_first[pair] & (n == size_of_pair[pair])
    place = latent[full] * n_signs + pairs[pair[full]] % n_signs
    return np.bincount(place, minlength=n_latents * n_signs).reshape(n_latents, n_signs)


@checked_arguments
def class_mean_intervals(
    table: "LatentTable", concept: str, *, split: str = "training", unit: str = "image"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % intervals of `class_mean_latents`, with patients as clusters.

    A class mean is a ratio of sums over patients, whose variance is that of the patients' sums less their share of the
    mean (the sandwich of one mean, times P / (P - 1) of P patients); the ends are by Student's t with P - 1 degrees of
    freedom.

    Returns:
        Lower and upper ends, (n_class, d_sae) float64 each; NaN in a class of fewer than `MIN_PATIENTS` patients.

    Raises:
        InputError: as `LatentTable.rows`.
    """
    rows = table.rows(concept, split=split, unit=unit)
    of_units = None if rows.unit_of_row is None else rows.values(table.mean_latents)
    ends = np.full((2, len(table.classes(concept)), table.d_sae), np.nan)
    for place, label in enumerate(table.classes(concept)):
        units = np.flatnonzero(rows.labels == label)
        patients = pd.factorize(rows.patient_ids[units])[0]
        n_patients = int(patients.max(initial=-1)) + 1
        if n_patients < MIN_PATIENTS:
            continue
        order = np.argsort(patients, kind="stable")
        units, patients = units[order], patients[order]
        total, squares, products = (np.zeros(table.d_sae) for _ in range(3))
        starts = np.flatnonzero(np.diff(patients // (_UNITS // 4), prepend=-1))  # all of a patient's in one block
        sizes = np.bincount(patients).astype(np.float64)
        for start, stop in zip(starts, [*starts[1:], len(units)], strict=True):
            own = units[start:stop]
            block = table.mean_latents[rows.image_rows[own]] if of_units is None else of_units[own]
            of_patient, first = patients[start:stop], patients[start]
            shape = (of_patient[-1] - first + 1, len(own))
            sums = sparse.csr_array((np.ones(len(own)), (of_patient - first, np.arange(len(own)))), shape) @ block
            entries = sums.tocoo()
            for into, values in (
                (total, entries.data),
                (squares, np.square(entries.data)),
                (products, entries.data * sizes[first + entries.row]),
            ):
                into += np.bincount(entries.col, weights=values, minlength=table.d_sae)
        mean = total / len(units)
        variance = np.maximum(squares - 2 * mean * products + np.square(mean) * np.square(sizes).sum(), 0)
        variance *= n_patients / (n_patients - 1) / len(units) ** 2
        half = student.ppf(0.975, n_patients - 1) * np.sqrt(variance)
        ends[:, place] = mean - half, mean + half
    return ends[0], ends[1]
