"""Volumes as kinds of data in a configuration: `total-segmentator` and `volumes`."""

__all__ = ["TOTAL_SEGMENTATOR", "TotalSegmentatorSettings", "VolumeFolderSettings", "VOLUMES", "VolumeSettings"]

from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from mammosae_plugin import distributed
from mammosae_plugin.datasets import slices
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import DatasetError
from mammosae_plugin.datasets.registry import DatasetKind, DataSettings, OwnDataSettings
from mammosae_plugin.datasets.slices import Levels, Slicing, Spacing
from mammosae_plugin.datasets.volume_folders import TOTALSEGMENTATOR, TotalSegmentator, VolumeFolder
from mammosae_plugin.datasets.volumes import VolumeSlices
from mammosae_plugin.errors import InputError

_Slices = TypeVar("_Slices", bound=VolumeSlices)


def _twice(size: Any) -> Any:
    return (size, size) if isinstance(size, int) and not isinstance(size, bool) else size


def _as_list(axes: Any) -> Any:
    return [axes] if isinstance(axes, str) and axes != "shortest" else axes


Edge = Annotated[int, Field(gt=0)]
Axes = Annotated[list[str] | Literal["shortest"], BeforeValidator(_as_list)]


class VolumeSettings(DataSettings):
    """What every kind of volumes is told; each slice is an image."""

    image_size: Annotated[tuple[Edge, Edge], BeforeValidator(_twice)] = Field(
        (1024, 1024), description="Edge of the square pictures in pixels, once or twice."
    )
    max_bad_share: float = Field(
        1.0, ge=0, le=1, description="Refused if more than this share of the volumes cannot be used."
    )
    levels: Levels = Field(
        "window",
        description="Which values become black and white: the bounds of the window (of MRI the percentiles), or, as in "
        "SAIL's released code, the range that each volume has within it.",
    )
    trim: bool = Field(True, description="Keep only the slices from the first to the last with any label.")
    keep_blank: bool = Field(False, description="Keep slices of one grey level, which networks are not shown.")
    split_file: str | None = Field(
        None,
        description="The split of the volumes, relative to root or absolute, as write_split "
        "or SAIL writes it; volumes that it does not name are left out. Without one, all are of the split 'all'.",
    )
    index: str | None = Field(
        None,
        description="A folder, relative to root or absolute, which keeps what lies in which slice, so that volumes are "
        "read once and not at every opening.",
    )
    index_workers: int = Field(0, ge=0, description="Processes that read volumes for the index.")

    @field_validator("unit")
    @classmethod
    def _slices_or_volumes(cls, unit: str) -> str:
        if unit not in ("image", "patient"):
            raise ValueError(
                "volumes have slices and no rows of findings, breasts or exams; leave it out, or count what is kept "
                "apart, the volumes, with patient"
            )
        return unit

    @model_validator(mode="after")
    def _square(self) -> Self:
        height, width = self.image_size
        if height != width:
            raise ValueError(f"image_size: slices are squares, give one edge and not {height} x {width}")
        return self

    def _opened(self, dataset: Callable[..., _Slices], **settings: Any) -> _Slices:
        """The dataset of these settings and those of a kind, split as the file says."""
        common: dict[str, Any] = {
            "image_size": self.image_size,
            "trim": self.trim,
            "keep_blank": self.keep_blank,
            "index": None if self.index is None else self.root / self.index,
            "num_workers": self.index_workers,
            "about": self.about,
            **settings,
        }
        with nullcontext() if self.index is None else distributed.main_first():  # who makes the index for all
            found = dataset(**common)
        n_bad = len(found.quarantine)
        if n_bad > self.max_bad_share * (n_bad + len(found.volumes)):
            _, _, reason = found.quarantine.iloc[0]
            raise DatasetError(
                f"{n_bad} of {n_bad + len(found.volumes)} volumes cannot be used (such as: {reason}), more than "
                f"max_bad_share {self.max_bad_share:g} allows"
            )
        return found if self.split_file is None else found.with_split(self.root / self.split_file)


class TotalSegmentatorSettings(VolumeSettings):
    """TotalSegmentator's CT, its MRI, or both."""

    kind: str = "total-segmentator"
    ct: str | None = Field(
        None,
        description="The folder with s0000/ct.nii.gz, segmentations and meta.csv, relative to root or absolute; "
        "without ct and mri, root is one of the two.",
    )
    mri: str | None = Field(None, description="The same with s0000/mri.nii.gz.")
    axes: Axes = Field(list(slices.AXES), description="The axes along which CT is cut: some of x, y, z.")

    @property
    def described(self) -> DatasetAbout:
        """TotalSegmentator."""
        return TOTALSEGMENTATOR

    @model_validator(mode="after")
    def _axes_fit(self) -> Self:
        if self.axes == "shortest":
            raise ValueError("axes: of CT some of x, y and z; MRI is cut along its shortest axis anyway")
        Slicing(axes=tuple(self.axes))
        return self


class VolumeFolderSettings(VolumeSettings, OwnDataSettings):
    """A folder of NIfTI volumes, with masks and a table where there are such."""

    kind: str = "volumes"
    modality: str = Field("ct", description="What the volumes are, such as ct or mri; a slice's key begins with it.")
    image: str = Field("{id}.nii.gz", description="Where a volume lies under root, with {id} for its name.")
    masks: str | None = Field(
        None, description="Where the mask of a label lies under root, with {id} and {label}; none by default."
    )
    table: str | None = Field(
        None, description="A CSV with a row per volume, relative to root or absolute; none by default."
    )
    id_column: str = Field("image_id", description="The table's column of the volumes' names.")
    patient: str | None = Field(
        None, description="The table's column of patients, who are then the groups; else each volume is one."
    )
    axes: Axes = Field(
        list(slices.AXES), description="The axes along which slices are cut: some of x, y, z; or shortest."
    )
    window: tuple[float, float] | Literal["study_type"] | None = Field(
        "study_type",
        description="[center, width] in Hounsfield units; study_type, by the table's column of that name; or null, "
        "percentiles 1 and 99 of the values above 0, as for MRI.",
    )
    spacing: Spacing = Field(
        "isotropic",
        description="isotropic leaves out volumes whose voxels are no cubes; in_plane resamples slices to the smaller "
        "of their two spacings, which goes with one axis.",
    )
    canonical: bool = Field(
        False, description="Put the voxels in the order right, anterior, superior first, as the file's affine says."
    )
    mask_above: float = Field(0.0, description="Voxels of a mask above this value belong to its label.")
    name: str = Field("volumes", description="The data's short name, for metadata.")
    title: str = Field("volumes of one's own", description="The data's name for readers.")

    @property
    def slicing(self) -> Slicing:
        """How volumes become pictures."""
        axes = self.axes if isinstance(self.axes, str) else tuple(self.axes)
        return Slicing(axes, self.window, self.levels, self.spacing, self.canonical, self.mask_above)

    @model_validator(mode="after")
    def _slicing_fits(self) -> Self:
        _ = self.slicing
        return self


def _open_total_segmentator(settings: TotalSegmentatorSettings) -> TotalSegmentator:
    root = settings.root
    folders = {name: root / place for name in ("ct", "mri") if (place := getattr(settings, name)) is not None}
    if not folders:
        folders = {name: root for name in ("ct", "mri") if any(root.glob(f"*/{name}.nii.gz"))}
    if not folders:
        raise InputError(
            f"{root} holds no s0000/ct.nii.gz or s0000/mri.nii.gz; name the folders below it as ct and mri"
        )
    return settings._opened(TotalSegmentator, **folders, axes=settings.axes, levels=settings.levels)


def _open_volumes(settings: VolumeFolderSettings) -> VolumeFolder:
    return settings._opened(
        VolumeFolder,
        root=settings.root,
        modality=settings.modality,
        image=settings.image,
        masks=settings.masks,
        table=settings.table,
        id_column=settings.id_column,
        patient=settings.patient,
        slicing=settings.slicing,
    )


TOTAL_SEGMENTATOR = DatasetKind("total-segmentator", TotalSegmentatorSettings, _open_total_segmentator, of_files=False)
VOLUMES = DatasetKind("volumes", VolumeFolderSettings, _open_volumes, of_files=False)
