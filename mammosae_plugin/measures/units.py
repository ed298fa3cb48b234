"""What a metric counts: images, rows of the annotation file, or breasts, exams and patients, which have several images.

A unit of several images has one label and one score. Every metric takes both from `EvaluationRows`, so that the rules
are here and nowhere else.

- Label: of a binary or graded concept the highest class of the images (a breast with one positive view is positive). A
  missing label could be any class: it makes the unit's missing too, unless an image has the highest class there is.
  Classes without an order must be the same in all images.
- Score: the mean over the unit's images, or the maximum. Of a classifier it is that of the probabilities, as the
  release of Mammo-CLIP evaluates RSNA by patient and side, told as a logit again; of latents that of their values.
- Intervals resample patients, whatever the unit.
"""

__all__ = ["count_units", "EvaluationRows", "EvaluationUnit", "grouped_rows", "UNITS", "UnitScores"]

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logsumexp

from mammosae_plugin.errors import InputError

UnitScores = Literal["mean", "maximum"]
_PLURALS = {"image": "images", "finding_row": "rows", "breast": "breasts", "exam": "exams", "patient": "patients"}
UNITS = tuple(_PLURALS)
"""The names of the units."""
_BY_MAXIMUM = " by maximum"


@dataclass(frozen=True)
class EvaluationUnit:
    """What a metric counts.

    Attributes:
        name: One of `UNITS`.
        scores: How a unit of several images gets one score.
    """

    name: str = "image"
    scores: UnitScores = "mean"

    def __post_init__(self) -> None:
        """Check the names."""
        if self.name not in UNITS:
            raise InputError(
                f"unit is {self.name!r}; it must be one of {', '.join(UNITS)}, where {', '.join(UNITS[2:])} may be "
                f"followed by '{_BY_MAXIMUM}'"
            )
        if self.scores not in get_args(UnitScores):
            raise InputError(f"a unit's score is {self.scores!r}; it must be one of {', '.join(get_args(UnitScores))}")

    @classmethod
    def named(cls, unit: str) -> "EvaluationUnit":
        """The unit of a name such as "image", "breast" or "breast by maximum"."""
        name = unit.removesuffix(_BY_MAXIMUM)
        return cls(name, "maximum") if name != unit and name in UNITS[2:] else cls(unit)

    def __str__(self) -> str:
        """The name from which `named` makes it."""
        return self.name + (_BY_MAXIMUM if self.has_several_images and self.scores == "maximum" else "")

    @property
    def has_several_images(self) -> bool:
        """Whether it is made of images, of which it may have several."""
        return self.name in UNITS[2:]

    @property
    def plural(self) -> str:
        """What several are called."""
        return _PLURALS[self.name]

    @property
    def noun(self) -> str:
        """What has labels and scores: an image, also where it counts several times."""
        return self.name if self.has_several_images else "image"

    @property
    def nouns(self) -> str:
        """Several of them."""
        return self.plural if self.has_several_images else "images"


@dataclass(frozen=True)
class EvaluationRows:
    """What a metric is computed over: units with a known label, and the images that they are made of.

    Attributes:
        image_rows: (n_rows,) int64, rows of `LatentTable.images`; an image repeats under unit "finding_row".
        labels: (n_units,) int64, the class of each unit.
        patient_ids: (n_units,) the patient of each, for resampling by patient.
        unit_of_row: (n_rows,) int64, rising: the unit of each row; None where every row is a unit of its own.
        scores: How a unit of several rows gets one score.
    """

    image_rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    patient_ids: NDArray[Any]
    unit_of_row: NDArray[np.int64] | None = None
    scores: UnitScores = "mean"

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """(n_units,) the first row of each unit."""
        assert self.unit_of_row is not None
        return np.flatnonzero(np.diff(self.unit_of_row, prepend=-1))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_units,) how many rows each unit has."""
        if self.unit_of_row is None:
            return np.ones(len(self.labels), dtype=np.int64)
        return np.bincount(self.unit_of_row, minlength=len(self.labels))

    @property
    def adds_up(self) -> bool:
        """Whether a unit's value is a weighted sum of its images' values, with the weights of `weights`."""
        return self.unit_of_row is None or self.scores == "mean"

    @property
    def weights(self) -> NDArray[np.float64]:
        """(n_rows,) how much each row counts in the mean of its unit."""
        return 1.0 / self.of_rows(self.sizes)

    def of_rows(self, of_units: NDArray[Any]) -> NDArray[Any]:
        """(n_rows, ...) what is known of units (n_units, ...), for each of their rows."""
        return of_units if self.unit_of_row is None else of_units[self.unit_of_row]

    def images_of(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The image rows of the chosen units (n_units,)."""
        found: NDArray[np.int64] = self.image_rows[self.of_rows(chosen)]
        return found

    def of_patients(self, patients: Collection[Any] | None) -> "EvaluationRows":
        """The units of some patients; all of them where None is given."""
        if patients is None:
            return self
        chosen = np.isin(self.patient_ids.astype(str), [str(patient) for patient in patients])
        in_chosen = self.of_rows(chosen)
        return EvaluationRows(
            image_rows=self.image_rows[in_chosen],
            labels=self.labels[chosen],
            patient_ids=self.patient_ids[chosen],
            unit_of_row=None if self.unit_of_row is None else (np.cumsum(chosen) - 1)[self.unit_of_row[in_chosen]],
            scores=self.scores,
        )

    def values(self, of_images: Any) -> Any:
        """(n_units, ...) what is known of images (n_images, ...), dense or sparse, as mean or maximum of each unit."""
        return self.reduced(of_images[self.image_rows])

    def logits(self, of_images: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_units, ..., n_out) logits of images (n_images, ..., n_out), combined as probabilities."""
        return self.reduced_logits(of_images[self.image_rows])

    def reduced(self, of_rows: Any) -> Any:
        """`values` of rows (n_rows, ...)."""
        return self.mean(of_rows) if self.adds_up else self._maximum(of_rows)

    def reduced_logits(self, of_rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """`logits` of rows (n_rows, ..., n_out).

        One output is a binary concept's, whose probability is its sigmoid; several are classes, with their softmax.
        The mean of probabilities moves no further than its logits do, so that their rounding error stays a bound.
        """
        if self.unit_of_row is None:
            return of_rows
        found: NDArray[np.float64]
        if of_rows.shape[-1] == 1 and self.scores == "maximum":
            found = np.maximum.reduceat(of_rows, self._starts, axis=0)
        elif of_rows.shape[-1] == 1:
            present, absent = (-np.logaddexp(0, sign * of_rows) for sign in (-1, 1))
            found = self._log_sums(present) - self._log_sums(absent)
        else:
            logs = of_rows - logsumexp(of_rows, axis=-1, keepdims=True)
            summed = self._log_sums(logs)
            found = np.maximum.reduceat(logs, self._starts, axis=0) if self.scores == "maximum" else summed
        alone = self.sizes == 1
        found[alone] = of_rows[self._starts[alone]]  # to the last bit
        return found

    def _log_sums(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.logaddexp.reduceat(logs, self._starts, axis=0)
        return found

    def mean(self, of_rows: Any) -> Any:
        """(n_units, ...) the mean of rows (n_rows, ...), however scores are made: for what adds up, as ablations do."""
        if self.unit_of_row is None:
            return of_rows
        shares = sparse.csr_array(
            (self.weights, np.arange(len(self.image_rows)), np.append(self._starts, len(self.image_rows))),
            shape=(len(self.labels), len(self.image_rows)),
        )
        if _is_sparse(of_rows):
            return sparse.csr_array(shares @ of_rows.astype(np.float64))
        flat = np.asarray(of_rows, dtype=np.float64).reshape(len(of_rows), -1)
        return (shares @ flat).reshape(len(self.labels), *of_rows.shape[1:])

    def _maximum(self, of_rows: Any) -> Any:
        if not _is_sparse(of_rows):
            return np.maximum.reduceat(np.asarray(of_rows, dtype=np.float64), self._starts, axis=0)
        assert self.unit_of_row is not None
        entries, width = of_rows.tocoo(), of_rows.shape[1]
        place = self.unit_of_row[entries.row] * width + entries.col
        order = np.argsort(place, kind="stable")
        starts = np.flatnonzero(np.diff(place[order], prepend=-1))
        of_entries = place[order][starts]
        highest = np.maximum.reduceat(entries.data[order].astype(np.float64), starts) if len(starts) else np.zeros(0)
        # Where an image has no entry, it has 0.
        somewhere_zero = np.diff(np.append(starts, len(order))) < self.sizes[of_entries // width]
        highest[somewhere_zero] = np.maximum(highest[somewhere_zero], 0)
        shape = (len(self.labels), width)
        return sparse.csr_array((highest, (of_entries // width, of_entries % width)), shape=shape)


def _is_sparse(values: Any) -> bool:
    return bool(sparse.issparse(values))


def grouped_rows(
    images: pd.DataFrame, concept: Any, *, chosen: NDArray[np.bool_], unit: EvaluationUnit, where: str
) -> EvaluationRows:
    """The rows of a unit that is made of several images.

    Args:
        images: One row per image: patient_id, a column of class numbers named like the concept, and exam_id and
            laterality where they are known.
        concept: A `datasets.Concept`.
        chosen: (n_images,) the images that count, such as those of a split.
        unit: Breast: images of one patient and side, and of one exam where exams are known. Exam: of one patient and
            exam. Patient: of one patient.
        where: Whose images these are, for messages.

    Returns:
        Units in the order of their first images. All chosen images of a unit are rows of it, those without a label too.

    Raises:
        InputError: A column is not there or not filled, or images of one unit have different classes of a concept
            whose classes have no order.
    """
    image_rows = np.flatnonzero(chosen)
    own = images.iloc[image_rows]
    codes = own.groupby(_columns(own, unit, where), sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(codes, kind="stable")
    image_rows, unit_of_row = image_rows[order], codes[order]
    starts = np.flatnonzero(np.diff(unit_of_row, prepend=-1))
    classes = np.nan_to_num(own[concept.name].to_numpy(dtype=np.float64)[order], nan=-1)
    if not len(starts):
        return EvaluationRows(image_rows, np.zeros(0, np.int64), np.zeros(0, object), image_rows, unit.scores)
    highest = np.maximum.reduceat(classes, starts)
    has_missing = np.minimum.reduceat(classes, starts) < 0
    surely = highest == concept.n_classes - 1
    if concept.kind == "multiclass":
        lowest = np.minimum.reduceat(np.where(classes < 0, np.inf, classes), starts)
        if n_torn := int(((lowest < highest) & (highest >= 0)).sum()):
            raise InputError(
                f"{where}: of {n_torn} {unit.name if n_torn == 1 else unit.plural} the images have different classes "
                f"of {concept.name!r}, which have no order; use unit image"
            )
        surely[:] = False
    labels = np.where(has_missing & ~surely, -1, highest).astype(np.int64)
    kept = labels >= 0
    in_kept = kept[unit_of_row]
    return EvaluationRows(
        image_rows=image_rows[in_kept],
        labels=labels[kept],
        patient_ids=images["patient_id"].to_numpy(dtype=object)[image_rows[starts]][kept],
        unit_of_row=(np.cumsum(kept) - 1)[unit_of_row[in_kept]],
        scores=unit.scores,
    )


def count_units(images: pd.DataFrame, unit: EvaluationUnit, where: str) -> int:
    """How many units of several images there are, those without a label too.

    Raises:
        InputError: A column that the unit needs is not there, or not filled.
    """
    return int(images.groupby(_columns(images, unit, where), dropna=False).ngroups)


def _columns(images: pd.DataFrame, unit: EvaluationUnit, where: str) -> list[str]:
    """The columns whose values say which images belong together."""
    needed = {"breast": ["laterality"], "exam": ["exam_id"], "patient": []}[unit.name]
    lacking = {name: _lacking(images, name) for name in ("exam_id", "laterality")}
    if unit.name == "breast" and not lacking["exam_id"].all():
        needed = ["exam_id", *needed]
    for name in needed:
        if name not in images or lacking[name].all():
            other = "image or patient" if unit.name == "breast" else "patient, where each has one exam, breast or image"
            raise InputError(f"{where} knows no {name} of its images, which unit {unit.name} needs; use unit {other}")
        if n := int(lacking[name].sum()):
            raise InputError(f"{where} knows no {name} of {n} of {len(images)} images, which unit {unit.name} needs")
    return ["patient_id", *needed]


def _lacking(images: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    if name not in images:
        return np.ones(len(images), dtype=np.bool_)
    return np.asarray(images[name].isna() | (images[name].astype(str).str.strip() == ""))
