"""The one rule about small groups: nothing is published from which the activations of a few patients could be told.

A class mean is a sum over images, and sums can be subtracted: "all images" minus "images without a mass" is "images
with a mass". So a sum of a latent is shown only if, between it and every other sum that is shown (and no sum at all),
the latent fires in no patient or in at least `min_group` of those that count differently in the two.
"""

__all__ = ["Differences", "Firing", "is_few", "Mask", "NOTHING", "rare_rows", "Weights"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

Mask = NDArray[np.bool_]
Weights = NDArray[np.int64 | np.float64]
"""(n_images,): how often, or for what share of a unit, each image counts in a sum; 0 for images outside it."""


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


NOTHING = ""
"""What a sum that is told alone is told beside."""


@dataclass(frozen=True)
class Differences:
    """In how many patients' images latents fire, of those by which any two published sums differ.

    With these alone, and no image at hand, `hidden` says for any smallest group what must not be told.

    Attributes:
        d_sae: Number of latents.
        sums: By the name of a statistic, the names of the sums that it shows, or from which it can be computed.
        patients: (one sum, a later one) -> (d_sae,) patients; the first is `NOTHING` for those of a sum told alone.
    """

    d_sae: int
    sums: Mapping[str, Sequence[str]]
    patients: Mapping[tuple[str, str], NDArray[np.int64]]

    @classmethod
    def of(cls, firing: Firing, sums: Mapping[str, Sequence[Weights]]) -> "Differences":
        """Count them.

        Args:
            firing: In whom latents fire.
            sums: By the name of a statistic its sums: of class means those of the classes. Their total counts as shown
                too.
        """
        weights = {
            f"{name}/{number}": one
            for name, parts in sums.items()
            for number, one in enumerate(_distinct([*parts, np.sum(parts, axis=0)]))
        }
        known: dict[bytes, NDArray[np.int64]] = {}

        def count(images: Mask) -> NDArray[np.int64]:
            key = images.tobytes()
            if key not in known:
                known[key] = firing.n_patients(images)
            return known[key]

        pairs = combinations({NOTHING: 0, **weights}.items(), 2)
        patients = {(one, other): count(np.asarray(a != b)) for (one, a), (other, b) in pairs}
        return cls(firing.d_sae, _by_statistic(weights), patients)

    @classmethod
    def read(cls, d_sae: int, patients: Mapping[tuple[str, str], NDArray[Any]]) -> "Differences":
        """From `patients`, in their order."""
        return cls(d_sae, _by_statistic(other for one, other in patients if one == NOTHING), patients)

    def hidden(self, min_group: int) -> dict[str, Mask]:
        """Of which latents each statistic must be hidden: name -> (d_sae,) bool.

        Of two that would give a few patients away by subtraction, the one that is named later is hidden.

        Args:
            min_group: The fewest patients of whom something may be shown.
        """

        def few(one: str, other: str) -> Mask:
            return np.asarray(is_few(self.patients[one, other], min_group))

        shown: list[tuple[str, Mask]] = []
        hidden: dict[str, Mask] = {}
        for name, own in self.sums.items():
            mask = np.zeros(self.d_sae, dtype=np.bool_)
            for one, other in combinations((NOTHING, *own), 2):
                mask |= few(one, other)
            for part in own:
                for other, without in shown:
                    mask |= few(other, part) & ~without
            shown += [(part, mask) for part in own]
            hidden[name] = mask
        return hidden


def _by_statistic(sums: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in sums:
        found.setdefault(one.rpartition("/")[0], []).append(one)
    return found


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
