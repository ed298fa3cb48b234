"""What must not get out of this machine, and what is known of the data behind an upload."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path


class PrivacyError(InputError):
    """Something in a staged folder must not get out. The message names file, rule and remedy, never the secret."""


@dataclass(frozen=True)
class PrivacyContext:
    """What must not get out, and what is known of the data behind an upload.

    Attributes:
        private_values: ids of patients, images, studies and series; none may occur in any staged byte.
        datasets: names of the datasets behind the upload: "vindr", "rsna", "phantom", or a name of the user's own.
        min_group: statistics of fewer images or patients than this must be null.
        licence: the licence, named by whoever publishes, under which rows per image of a restricted dataset may go out.
        allowed: texts that look private, and that a person has seen and lets out.
    """

    private_values: frozenset[str] = field(default=frozenset(), repr=False)
    datasets: tuple[str, ...] = ()
    min_group: int = 5
    licence: str | None = None
    allowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_group < 1:
            raise InputError(f"min_group is {self.min_group}; it must be 1 or more")

    def allows(self, text: str) -> bool:
        """Whether a person has let a text out, alone or as part of a longer one."""
        return any(_folded(text) in _folded(one) for one in self.allowed)

    @classmethod
    def of_dataset(cls, dataset: Any, *, min_group: int = 5, licence: str | None = None) -> "PrivacyContext":
        """The context of a `MammogramDataset`: its ids and the names of its files."""
        values: set[str] = set()
        for table in (dataset.images, dataset.findings):
            values |= _ids_of(table)
        for path in dataset.image_paths:
            values |= {path.name, path.stem}
        patients = [str(patient) for patient in dataset.images["patient_id"]]
        return cls(frozenset(values), (_dataset_name(dataset.name, patients),), min_group, licence)

    @classmethod
    def of_study(
        cls, study: str | os.PathLike[str] | Any, *, min_group: int = 5, licence: str | None = None
    ) -> "PrivacyContext":
        """The context of a study: every id in its latents tables and its quarantine.

        Args:
            study: A study's folder, or an object whose `output` or `folder` is one.
            min_group: As in the class.
            licence: As in the class.

        Raises:
            PrivacyError: The folder holds no latents table, so that the ids that must stay are unknown.
        """
        where = local_path(getattr(study, "output", None) or getattr(study, "folder", None) or study)
        tables = sorted((where / "work" / "latents").glob("*/*/images.parquet"))
        if not tables:
            raise PrivacyError(
                f"{where} holds no latents table in work/latents, so the ids that must not get out are unknown; run "
                "the study again, or keep its work folder until it is published"
            )
        values: set[str] = set()
        patients: list[str] = []
        for file in tables:
            table = pd.read_parquet(file)
            values |= _ids_of(table)
            patients += [str(patient) for patient in table["patient_id"]]
        for file in sorted((where / "work").glob("quarantine-*.csv")):
            values |= _ids_of(pd.read_csv(file, dtype=str))
        return cls(frozenset(values), (_dataset_name("vindr", patients),), min_group, licence)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _ids_of(table: pd.DataFrame) -> set[str]:
    columns = [column for column in table.columns if str(column).endswith("_id")]
    values = {str(value) for column in columns for value in table[column].dropna().unique()}
    return values | {Path(value).stem for value in values if value.endswith((".png", ".dcm", ".dicom", ".jpg"))}


def _dataset_name(name: str, patients: Sequence[str]) -> str:
    """Phantoms are read by VinDr's reader; their ids, which no hospital gives, say that they are drawn."""
    return "phantom" if patients and all(patient.startswith("phantom_") for patient in patients) else name
