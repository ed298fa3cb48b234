"""Patients held out of training, chosen by seed so that every class is on both sides where that is possible."""

__all__ = ["hold_out_patients"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def hold_out_patients(
    patient_ids: Sequence[str], has_class: npt.NDArray[np.bool_], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose about `share` of the patients, of each class about as large a part.

    The rarest class is served first, as in iterative stratification (Sechidis et al., ECML PKDD 2011). A class with at
    least two patients gets at least one held out, unless that would take the last one of another class; the last
    patient of a class always stays in training.

    Args:
        patient_ids: The patient of every item, (n,).
        has_class: Whether item i shows class c, (n, n_classes); a class is a value of a concept, of any concept.
        share: Part of the patients to hold out, between 0 and 1.
        seed: Puts the patients into an order; the first that serve are held out. The items' order does not matter.

    Returns:
        Whether item i belongs to a patient held out, (n,); all items of a patient are on the same side.
    """
    patients, owner = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    shows = np.zeros((len(patients), has_class.shape[1]), dtype=bool)
    np.logical_or.at(shows, owner, has_class)
    total = shows.sum(axis=0)
    wanted = np.maximum(np.rint(share * total), 1)
    chance = np.random.default_rng(seed).permutation(len(patients))
    held = np.zeros(len(patients), dtype=bool)
    for kind in np.argsort(total, kind="stable"):
        while (count := shows[held].sum(axis=0))[kind] < wanted[kind]:
            last_of_a_class = (shows & (count >= total - 1)).any(axis=1)
            free = np.flatnonzero(shows[:, kind] & ~held & ~last_of_a_class)
            if not len(free):
                break
            held[free[np.argmin(chance[free])]] = True
    return held[owner]
