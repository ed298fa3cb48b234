"""The rows of a store as a training reads them: batches to train on, and rows of other patients to judge by."""

__all__ = ["DEAD_ROWS", "EVALUATION_ROWS", "images_held_out", "images_of_held_out_patients", "TrainingRows"]

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.adapters.input_normalization import of_unit_length
from mammosae_plugin.errors import InputError
from mammosae_plugin.shapes import Rows
from mammosae_plugin.training.held_out import hold_out_patients

EVALUATION_ROWS, DEAD_ROWS = 32768, 262144
_OFF_LENGTH = 5e-3  # of rows of length 1 that were stored in 16 bits


class TrainingRows:
    """Rows of a store, with those of some images held out.

    Args:
        store: The rows.
        batch_size: Rows per batch.
        seed: Chooses the order of the rows, and the held-out rows that are looked at.
        validation_images: Numbers of the images held out, in the store's `image_ids`.

    Attributes:
        n_rows: Number of rows to train on.
        kind: What evaluations are made on: "validation", or "training" where nothing is held out.
        validation_images: The images held out.
        are_divided: Whether rows are divided by their lengths as they are read (`divided`).

    Raises:
        InputError: An image that the store lacks, no image left on a side, or a patient on both.
    """

    def __init__(
        self, store: ActivationStore, batch_size: int, seed: int, validation_images: Sequence[int] = ()
    ) -> None:
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.validation_images = sorted({int(image) for image in validation_images})
        self.kind: Literal["validation", "training"] = "validation" if self.validation_images else "training"
        self.n_rows = store.n_rows
        self.are_divided = False
        self._evaluation: torch.Tensor | None = None
        if self.validation_images:
            counts = np.bincount(store.labels()[0], minlength=len(store.image_ids))
            self._training_images = _other_images(store, self.validation_images)
            self.n_rows = int(counts[self._training_images].sum())
            self._evaluation = self._read_held_out(counts)

    def divided(self) -> "TrainingRows":
        """The same rows, each divided by its length."""
        rows = copy.copy(self)
        rows.are_divided = True
        return rows

    def prepared(self, batch: Rows) -> Rows:
        """Rows (b, d_in) of the store as the SAE is to see them."""
        return of_unit_length(batch)[0] if self.are_divided else batch

    def batches(self, start: int = 0, *, part: tuple[int, int] = (0, 1)) -> Iterator[Rows]:
        """An endless stream of (batch_size, d_in) batches of training rows, from batch number `start`.

        Args:
            start: Number of batches to pass over.
            part: Number r of n: give only the r-th of n equal parts of each batch.
        """
        images = self._training_images if self.validation_images else None
        batches = self.store.batches(self.batch_size, seed=self.seed, start=start, images=images, part=part)
        return map(self.prepared, batches)

    def evaluation(self) -> Iterator[Rows]:
        """Batches (b, d_in) to judge by, always the same: held-out rows, else the first training rows."""
        if self._evaluation is not None:
            for start in range(0, len(self._evaluation), self.batch_size):
                yield self.prepared(self._evaluation[start : start + self.batch_size])
        else:
            yield from islice(self.batches(), max(1, min(self.n_rows, EVALUATION_ROWS) // self.batch_size))

    def training_sample(self) -> Iterator[Rows]:
        """Batches (b, d_in) of training rows, all of them or the first many, to see which latents never fire."""
        yield from islice(self.batches(), max(1, min(self.n_rows, DEAD_ROWS) // self.batch_size))

    def require_variation(self) -> None:
        """See that the first batch can be learned from.

        Raises:
            InputError: All its rows are the same.
        """
        rows = next(self.batches())
        if len(rows) > 1 and bool((rows == rows[0]).all()):
            alike = "0 in every channel" if not rows.any() else "the same"
            raise InputError(
                f"{self.store.folder}: all of the first {len(rows)} rows are {alike}, so there is nothing to learn at "
                f"{self.store.manifest['hook_name']}; choose another layer, or look at the network and its weights"
            )

    def require_unit_length(self) -> None:
        """See that the first batch's rows have length 1, as metadata say that they have.

        Raises:
            InputError: They have not.
        """
        lengths = next(self.batches()).float().norm(dim=1)
        if bool(((lengths - 1).abs() > _OFF_LENGTH).any()):
            raise InputError(
                f"the metadata say that rows are divided by their length, but {self.store.folder} has rows of length "
                f"{float(lengths.min()):.3g} to {float(lengths.max()):.3g}; set normalize_activations: unit_l2, "
                "which divides them, or leave input_normalization out"
            )

    def _read_held_out(self, counts: npt.NDArray[np.int64]) -> torch.Tensor:
        """All rows of as many of the images held out, in random order, as give EVALUATION_ROWS rows or the next few."""
        order = np.random.default_rng(self.seed).permutation(self.validation_images)
        enough = int(np.searchsorted(np.cumsum(counts[order]), EVALUATION_ROWS)) + 1
        rows = self.store.rows_of(order[:enough].tolist())
        if not len(rows):
            raise InputError(f"the images held out have no row in {self.store.folder}; hold out others")
        return rows


def images_of_held_out_patients(store: ActivationStore, share: float, seed: int) -> list[int]:
    """The numbers of all images of about `share` of the patients, at least one and not all.

    Raises:
        InputError: The store does not say whose the images are, or has fewer than two patients.
    """
    if share == 0:
        return []
    patients = store.manifest.get("patients")
    if patients is None:
        raise InputError(
            f"{store.folder} does not say whose its images are, so none can be held out by patient; extract again, or "
            "name the images to hold out (validation_images)"
        )
    if len(set(patients)) < 2:
        raise InputError(f"{store.folder} has images of one patient alone; nobody can be held out")
    return [int(image) for image in np.flatnonzero(images_held_out([str(each) for each in patients], share, seed))]


def images_held_out(patients: Sequence[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Whether each image is of one of about `share` of the patients: (n,), by the patient of every image."""
    return hold_out_patients(patients, np.ones((len(patients), 1), dtype=bool), share, seed)


def _other_images(store: ActivationStore, held_out: Sequence[int]) -> list[int]:
    n_images = len(store.image_ids)
    if held_out[0] < 0 or held_out[-1] >= n_images:
        raise InputError(
            f"validation_images are {held_out[0]} to {held_out[-1]}, but {store.folder} has the images 0 to "
            f"{n_images - 1}"
        )
    others = sorted(set(range(n_images)) - set(held_out))
    if not others:
        raise InputError("validation_images are all images of the store; leave some to train on")
    patients = store.manifest.get("patients")
    if patients is not None:
        both = {patients[image] for image in held_out} & {patients[image] for image in others}
        if both:
            one = next(store.image_ids[image] for image in others if patients[image] in both)
            raise InputError(
                f"{len(both)} patients have images held out and images to train on (such as {one}); hold out all "
                "images of a patient or none"
            )
    return others
