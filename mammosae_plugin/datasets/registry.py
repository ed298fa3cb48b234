"""The kinds of datasets that a study can open: each has a name, settings of its own, and a reader.

`data.kind` of a study names one. Another is added with `register_dataset`, before the study's configuration is read.
"""

__all__ = [
    "dataset_kind", "dataset_kinds", "DatasetKind", "DataSettings", "LocalPath", "of_its_kind", "open_dataset",
    "OwnDataSettings", "register_dataset",
]  # fmt: skip

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from mammosae_plugin.datasets.about import PHANTOMS, DatasetAbout
from mammosae_plugin.datasets.protocol import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.measures.units import EvaluationUnit, UnitScores
from mammosae_plugin.validation import Settings

LocalPath = Annotated[Path, AfterValidator(local_path)]


class DataSettings(Settings):
    """What every kind of dataset is told; a kind's own settings derive from it."""

    kind: str = Field(
        "vindr",
        description="How the data lie on the disk: vindr, VinDr-Mammo as Mammo-CLIP prepares it; images, PNG "
        "images and any table, as a mapping says (where root holds mapping.yaml this is the default); csv, a folder of "
        "PNG images and a table of labels; total-segmentator and volumes, slices of NIfTI volumes, of which "
        "embeddings are made.",
    )
    root: LocalPath = Field(description="The data's folder; of vindr that which holds images_png.")
    image_size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        (1520, 912), description="Height and width of the images in pixels."
    )
    unit: Literal["image", "finding_row", "breast", "exam", "patient"] = Field(
        "image",
        description="What a metric counts: images, rows of the annotation file as the released code does, or breasts "
        "(images of a patient, or of an exam where exams are known, and a side), exams or patients. Boxes are compared "
        "by image, classifiers and SAEs trained on images, whatever the unit, which chooses a classifier's epoch.",
    )
    unit_scores: UnitScores = Field(
        "mean",
        description="The score of a breast, exam or patient: mean or maximum over its images, of a classifier's "
        "probabilities and of latents' activations.",
    )
    box_tolerance: float = Field(
        0.1,
        ge=0,
        le=1,
        description="A box may reach over its image's edge by this share of the image's side, and is clipped to it.",
    )
    max_bad_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The study stops if more than this share of the images is missing, unreadable or constant.",
    )
    max_suspect_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="The study stops if more than this share of the images seems inverted, or of the images with boxes "
        "seems to have them on the background. Fewer are listed in work/ and kept.",
    )
    phantom: bool = Field(
        False, description="True for generated images: only then may the report show images by default."
    )

    @property
    def evaluation_unit(self) -> EvaluationUnit:
        """What a metric counts, and how it gets its score."""
        return EvaluationUnit(self.unit, self.unit_scores)

    @property
    def about(self) -> DatasetAbout:
        """What the images are: phantoms where `phantom` says so, else what the kind says of its own."""
        return PHANTOMS if self.phantom else self.described

    @property
    def described(self) -> DatasetAbout:
        """What images of this kind are, if they are no phantoms."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its images are")


class OwnDataSettings(DataSettings):
    """What is told of data that nobody knows but their owner."""

    name: str = Field("images", description="The data's short name, for metadata.")
    title: str = Field("images of one's own", description="The data's name for readers.")
    citation: str | None = Field(None, description="How to cite the data.")
    licence: str | None = Field(None, description="The images' licence.")
    restricted: bool = Field(True, description="Whether images and rows per image may not be passed on.")

    @model_validator(mode="after")
    def _terms_fit(self) -> Self:
        if self.name == PHANTOMS.name and not self.phantom:
            raise ValueError(f"name: {PHANTOMS.name} is for generated images; set phantom: true if these are")
        _ = self.described
        return self

    @property
    def described(self) -> DatasetAbout:
        """What the settings say of the images."""
        return DatasetAbout(
            name=self.name,
            title=self.title,
            citation=self.citation,
            licence=self.licence,
            restricted=self.restricted,
            why="they are of patients, and a row per image is data" if self.restricted else "",
        )


@dataclass(frozen=True)
class DatasetKind:
    """One kind of dataset.

    Attributes:
        name: What `data.kind` names it.
        settings: Its section `data` of a study.
        open: From such settings to the dataset, all splits; raises `InputError`, in one line, for what is wrong.
        of_files: Whether every image is a PNG file of its own, which a study of feature maps screens.
    """

    name: str
    settings: type[DataSettings]
    open: Callable[[Any], StudyDataset]
    of_files: bool = True


_OWN = {
    "csv": "csv_folder.CSV_FOLDER",
    "images": "image_table.IMAGE_TABLE",
    "vindr": "vindr.VINDR",
    "total-segmentator": "volume_settings.TOTAL_SEGMENTATOR",
    "volumes": "volume_settings.VOLUMES",
}
"""Where the kinds of this package are, each imported when kinds are asked for."""
_ADDED: dict[str, DatasetKind] = {}


def register_dataset(kind: DatasetKind) -> DatasetKind:
    """Let studies open datasets of this kind.

    Args:
        kind: The kind; its settings' `kind` has its name as the default.

    Returns:
        The same.

    Raises:
        InputError: Another kind has the name, or the settings have another.
    """
    if kind.name in _OWN or _ADDED.get(kind.name, kind) != kind:
        raise InputError(f"there is a kind of dataset named {kind.name!r} already; choose another name")
    if kind.settings.model_fields["kind"].default != kind.name:
        raise InputError(f"the settings of the datasets {kind.name!r} must have kind: str = {kind.name!r}")
    _ADDED[kind.name] = kind
    return kind


def dataset_kinds() -> Mapping[str, DatasetKind]:
    """All kinds by name."""
    own = {}
    for name, place in _OWN.items():
        module, _, attribute = place.partition(".")
        own[name] = getattr(import_module(f"{__package__}.{module}"), attribute)
    return own | _ADDED


def dataset_kind(name: Any) -> DatasetKind:
    """The kind of this name.

    Raises:
        InputError: There is none.
    """
    kinds = dataset_kinds()
    if not isinstance(name, str) or name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"kind must be one of {', '.join(kinds)}, not {name!r}{hint}")
    return kinds[name]


def open_dataset(settings: DataSettings) -> StudyDataset:
    """The dataset that a study's section `data` is about, all splits.

    Raises:
        InputError: Anything that is wrong with it, in one line.
    """
    return dataset_kind(settings.kind).open(settings)


def _likely_kind(section: Mapping[str, Any]) -> str:
    """The kind where none is named: images where the folder holds its own mapping, or the section names one."""
    root = section.get("root")
    if section.keys() & {"source", "mapping"}:
        return "images"
    if isinstance(root, (str, Path)) and root and (local_path(root) / "mapping.yaml").is_file():
        return "images"
    return str(DataSettings.model_fields["kind"].default)


def of_its_kind(section: Any) -> Any:
    """A section `data` checked by the settings of its kind."""
    if not isinstance(section, Mapping):
        return section
    try:
        kind = dataset_kind(section.get("kind", _likely_kind(section)))
    except InputError as error:
        raise ValueError(str(error)) from error
    return kind.settings.model_validate(section)
