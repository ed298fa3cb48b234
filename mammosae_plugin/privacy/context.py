"""What must not get out of this machine, and what is known of the data behind an upload."""

__all__ = ["PrivacyContext", "PrivacyError", "PRIVATE_FILE"]

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.datasets.about import KNOWN, DatasetAbout
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, read_json


class PrivacyError(InputError):
    """Something in a staged folder must not get out. The message names file, rule and remedy, never the secret."""


PRIVATE_FILE = "private.json"
"""In a study's folder, beside its results: what must not get out with them, and whose data they are from."""


@dataclass(frozen=True)
class PrivacyContext:
    """What must not get out, and what is known of the data behind an upload.

    Attributes:
        private_values: ids of patients, images, studies and series; none may occur in any staged byte.
        datasets: names of the datasets behind the upload, of those in `datasets.about.KNOWN` or of the user's own.
        min_group: statistics of fewer images or patients than this must be null.
        licence: the licence, named by whoever publishes, under which rows per image of a restricted dataset may go out.
        allowed: texts that look private, and that a person has seen and lets out.
        about: what datasets say of themselves, where that is known beyond their names.
        concepts: names of the concepts in the data: their words are ordinary ones, and nobody's name.
        pictures: whether whoever publishes asked for pictures of single images to go out.
    """

    private_values: frozenset[str] = field(default=frozenset(), repr=False)
    datasets: tuple[str, ...] = ()
    min_group: int = 5
    licence: str | None = None
    allowed: tuple[str, ...] = ()
    about: tuple[DatasetAbout, ...] = ()
    concepts: frozenset[str] = frozenset()
    pictures: bool = False

    def __post_init__(self) -> None:
        if self.min_group < 1:
            raise InputError(f"min_group is {self.min_group}; it must be 1 or more")

    def allows(self, text: str) -> bool:
        """Whether a person has let a text out, alone or as part of a longer one."""
        return any(_folded(text) in _folded(one) for one in self.allowed)

    @property
    def restricted(self) -> tuple[DatasetAbout, ...]:
        """Of the datasets those whose rows per image may not be passed on, or only under a licence."""
        return tuple(one for one in self._named.values() if one is not None and one.restricted)

    @property
    def _named(self) -> dict[str, DatasetAbout | None]:
        known = KNOWN | {one.name: one for one in self.about}
        return {name.lower(): known.get(name.lower()) for name in self.datasets}

    @property
    def why_no_pictures(self) -> str | None:
        """Why pictures of single images may not leave, in a clause; None where they may.

        This alone decides it, for whoever draws them and for the guard: by what the datasets say of themselves, which
        no licence that somebody names overrides, and by whether they were asked for.
        """
        if self.restricted:
            one = self.restricted[0]
            return f"images of {one.title} may not be passed on: {one.why or 'its owner has not allowed that'}"
        if not self._named or None in self._named.values():
            return "whose images they are is not known here"
        return None if self.pictures else "pictures were not asked for (--examples)"

    @property
    def citations(self) -> list[str]:
        """How to cite the datasets of which this package does not know it itself."""
        return [one.citation for one in self.about if one.citation and one.name not in KNOWN]

    @classmethod
    def of_dataset(cls, dataset: Any, *, min_group: int = 5, licence: str | None = None) -> "PrivacyContext":
        """The context of a `MammogramDataset`: its ids and the names of its files, and what it says of itself."""
        values: set[str] = set()
        for table in (dataset.images, dataset.findings):
            values |= _ids_of(table)
        for path in dataset.image_paths:
            values |= {path.name, path.stem}
        about: DatasetAbout = dataset.about
        concepts = frozenset(dataset.vocabulary)
        return cls(frozenset(values), (about.name,), min_group, licence, about=(about,), concepts=concepts)

    @classmethod
    def of_study(
        cls, study: str | os.PathLike[str] | Any, *, min_group: int = 5, licence: str | None = None
    ) -> "PrivacyContext":
        """The context of a study: every id of its dataset, and what the dataset says of itself.

        Of a study that an earlier version ran, the ids in its latents tables and its quarantine.

        Args:
            study: A study's folder, or an object whose `output` or `folder` is one.
            min_group: As in the class.
            licence: As in the class.

        Raises:
            PrivacyError: The folder does not say which ids must stay.
        """
        where = local_path(getattr(study, "output", None) or getattr(study, "folder", None) or study)
        if (where / PRIVATE_FILE).is_file():
            return _read(where / PRIVATE_FILE, min_group, licence)
        tables = sorted((where / "work" / "latents").glob("*/*/images.parquet"))
        if not tables:
            raise PrivacyError(
                f"{where} holds neither {PRIVATE_FILE} nor a latents table in work/latents, so the ids that must not "
                "get out are unknown; run the study again"
            )
        values: set[str] = set()
        for file in tables:
            values |= _ids_of(pd.read_parquet(file))
        for file in sorted((where / "work").glob("quarantine-*.csv")):
            values |= _ids_of(pd.read_csv(file, dtype=str))
        results = where / "results" / "results.json"
        found = read_json(results) if results.is_file() else {}
        named = (str(found["data_kind"]),) if "data_kind" in found else ()
        about = (_about(found["data"]["about"]),) if "about" in found.get("data", {}) else ()
        concepts = frozenset(str(row["concept"]) for row in found.get("models", []))
        return cls(frozenset(values), named, min_group, licence, about=about, concepts=concepts)

    def keep(self, study_folder: str | os.PathLike[str]) -> None:
        """Write what `of_study` reads into a study's folder, readable for its owner only."""
        (about,) = self.about
        concepts, values = sorted(self.concepts), sorted(self.private_values)
        kept = {"dataset": dataclasses.asdict(about), "concepts": concepts, "values": values}
        with atomic_path(local_path(study_folder) / PRIVATE_FILE) as temporary:
            temporary.chmod(0o600)
            temporary.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(file: Path, min_group: int, licence: str | None) -> PrivacyContext:
    found = read_json(file)
    try:
        about = _about(found["dataset"])
        values, concepts = (frozenset(str(one) for one in found[name]) for name in ("values", "concepts"))
    except (KeyError, TypeError) as error:
        raise PrivacyError(
            f"{file} is damaged, so the ids that must not get out are unknown; run the study again"
        ) from error
    return PrivacyContext(values, (about.name,), min_group, licence, about=(about,), concepts=concepts)


def _about(said: dict[str, Any]) -> DatasetAbout:
    return DatasetAbout(**{**said, "licence_words": tuple(said["licence_words"])})


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _ids_of(table: pd.DataFrame) -> set[str]:
    columns = [column for column in table.columns if str(column).endswith("_id")]
    values = {str(value) for column in columns for value in table[column].dropna().unique()}
    return values | {Path(value).stem for value in values if value.endswith((".png", ".dcm", ".dicom", ".jpg"))}
