"""The one rule about small groups: nothing is published from which the activations of a few patients could be told.

A class mean is a sum over images, and sums can be subtracted: "all images" minus "images without a mass" is "images
with a mass". So a sum of a latent is shown only if, between it and every other sum that is shown (and no sum at all),
the latent fires in no patient or in at least `min_group` of those that count differently in the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

Mask = NDArray[np.bool_]
Weights = NDArray[np.int64]
"""(n_images,): how often each image counts in a sum; 0 for images outside it."""


def is_few(n_patients: Any, min_group: int) -> Any:
    """Whether there are some patients, but fewer than `min_group`: of nobody there is nothing to tell."""
    return (n_patients > 0) & (n_patients < min_group)


class Firing:
    """In which patients' images latents fire.

    Args:
        activations: (n_images, d_sae) with an entry where a latent fires.
        patients: (n_images,) whose each image is.
    """

    def __init__(self, activations: Any, patients: Sequence[Any] | NDArray[Any]) -> None:
        found = activations.tocsr()
        self.d_sae = int(found.shape[1])
        self._fires = csr_array((np.ones(len(found.data)), found.indices, found.indptr), shape=found.shape)
        self._patients = pd.factorize(np.asarray(patients, dtype=object))[0]

    def n_patients(self, images: Mask) -> NDArray[np.int64]:
        """(d_sae,) patients in whose chosen images each latent fires."""
        rows = np.flatnonzero(images)
        of_patient = csr_array(
            (np.ones(len(rows)), (self._patients[rows], np.arange(len(rows)))),
            shape=(int(self._patients.max(initial=-1)) + 1, len(rows)),
        )
        return np.bincount((of_patient @ self._fires[rows]).indices, minlength=self.d_sae)

    def n_silent_patients(self) -> NDArray[np.int64]:
        """(d_sae,) patients with an image in which the latent does not fire."""
        n_images = np.bincount(self._patients)
        by_patient = csr_array(
            (np.ones(len(self._patients)), (self._patients, np.arange(len(self._patients)))),
            shape=(len(n_images), len(self._patients)),
        )
        firing = (by_patient @ self._fires).tocoo()
        always = firing.col[firing.data == n_images[firing.row]]
        return np.asarray(len(n_images) - np.bincount(always, minlength=self.d_sae))


def hidden_latents(firing: Firing, sums: Mapping[str, Sequence[Weights]], min_group: int) -> dict[str, Mask]:
    """Of which latents each of several published statistics must be hidden.

    Args:
        firing: In whom latents fire.
        sums: By the name of a statistic, the sums over images that it shows, or from which it can be computed: of class
            means those of the classes. Their total counts as shown too. Of two that would give a few patients away by
            subtraction, the one that is named later is hidden.
        min_group: The fewest patients of whom something may be shown.

    Returns:
        Name -> (d_sae,) bool.
    """
    known: dict[bytes, Mask] = {}

    def few(difference: Weights) -> Mask:
        images = difference != 0
        key = images.tobytes()
        if key not in known:
            known[key] = np.asarray(is_few(firing.n_patients(images), min_group))
        return known[key]

    shown: list[tuple[Weights, Mask]] = []
    hidden: dict[str, Mask] = {}
    for name, parts in sums.items():
        own = list(_distinct([*parts, np.sum(parts, axis=0)]))
        mask = np.zeros(firing.d_sae, dtype=np.bool_)
        for part in own:
            mask |= few(part)
        for one, other in combinations(own, 2):
            mask |= few(one - other)
        for part in own:
            for other, without in shown:
                mask |= few(part - other) & ~without
        shown += [(part, mask) for part in own]
        hidden[name] = mask
    return hidden


def _distinct(weights: Sequence[Weights]) -> Iterator[Weights]:
    yield from {one.tobytes(): one for one in weights}.values()


def rare_rows(groups: Sequence[Any], signs: Sequence[Any], min_group: int) -> Mask:
    """Which rows would single out their patient by what stands in them.

    Args:
        groups: (n,) whose each row is.
        signs: (n,) what is shown of each row, hashable; a patient is told by all of theirs together.
        min_group: How many patients must look the same.

    Returns:
        (n,) bool: rows of patients whom fewer than `min_group` - 1 others resemble.
    """
    of_patient: dict[Any, list[Any]] = {}
    for group, sign in zip(groups, signs, strict=True):
        of_patient.setdefault(group, []).append(sign)
    looks = {group: tuple(sorted(own)) for group, own in of_patient.items()}
    counts = pd.Series(list(looks.values()), dtype=object).value_counts()
    return np.array([counts[looks[group]] < min_group for group in groups], dtype=np.bool_)
