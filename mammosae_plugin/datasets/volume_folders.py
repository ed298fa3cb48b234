"""Where volumes lie: TotalSegmentator's CT and MRI, and any folder of NIfTI volumes with masks and a table."""

__all__ = ["TOTALSEGMENTATOR", "TotalSegmentator", "VolumeFolder"]

import logging
import os
from collections.abc import Sequence

import pandas as pd

from mammosae_plugin.arguments import shown
from mammosae_plugin.datasets import slices
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.slices import Levels, Slicing
from mammosae_plugin.datasets.volume_files import VolumeFiles, find_volumes, read_table
from mammosae_plugin.datasets.volume_index import Source
from mammosae_plugin.datasets.volumes import VolumeSlices
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path

logger = logging.getLogger(__name__)

TOTALSEGMENTATOR = DatasetAbout(
    name="totalsegmentator",
    title="TotalSegmentator",
    citation="J. Wasserthal et al. TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images. "
    "Radiology: Artificial Intelligence, 2023, doi:10.1148/ryai.230024; T. Akinci D'Antonoli et al. TotalSegmentator "
    "MRI: Robust Sequence-independent Segmentation of Multiple Anatomic Structures in MRI. Radiology 314(2), 2025.",
    licence="as stated on the page of each part on Zenodo",
    url="https://github.com/wasserth/TotalSegmentator",
    why="its parts are passed on under licences of their own, and a row per image is data",
    licence_words=("cc", "by"),
)


class TotalSegmentator(VolumeSlices):
    """TotalSegmentator's CT dataset (v2), its MRI dataset (v2), or both: slices with the organs in them.

    CT: cubes of voxels only, the Hounsfield window of the study type, slices along all three axes. MRI: slices along
    the axis with the fewest voxels, resampled in plane to the smaller spacing, clipped to percentiles 1 and 99 of the
    values above 0.

    ```python
    data = TotalSegmentator(ct="CT_Dataset_v201", mri="MRI_Dataset_v200", index="index", num_workers=8)
    data.quarantine  # which volumes are left out, and why
    data = data.with_split("totalseg_split_index.csv")
    training = data.select(split="training")
    ```

    Args:
        ct: the folder with `s0000/ct.nii.gz`, `s0000/segmentations/<organ>.nii.gz`, ... and `meta.csv`.
        mri: the same with `s0000/mri.nii.gz`.
        axes: the axes along which CT is cut.
        levels: grey levels by the "window" (of MRI its percentiles) or, as in the released code, by the range that each
            "volume" has within it.
        image_size, trim, keep_blank, index, num_workers: as for `VolumeSlices`.
        about: what the images are, where other volumes lie in this layout.

    Raises:
        InputError: an argument is wrong, or nibabel is not installed.
        DatasetError: a folder or table is missing or wrong, or no volume can be used.
    """

    def __init__(
        self,
        ct: str | os.PathLike[str] | None = None,
        mri: str | os.PathLike[str] | None = None,
        *,
        axes: Sequence[str] = slices.AXES,
        levels: Levels = "window",
        image_size: int | tuple[int, int] = 1024,
        trim: bool = True,
        keep_blank: bool = False,
        index: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
        about: DatasetAbout = TOTALSEGMENTATOR,
    ) -> None:
        slicing = {
            "ct": Slicing(axes=tuple(axes), levels=levels),
            "mri": Slicing(axes="shortest", window=None, levels=levels, spacing="in_plane"),
        }
        picture = {"ct": "{orientation}_slice_{index:04d}.png", "mri": "slice_{index:04d}.png"}
        sources = []
        for modality, folder in (("ct", ct), ("mri", mri)):
            if folder is None:
                continue
            root = local_path(folder)
            if not root.is_dir():
                raise DatasetError(f"the folder {root} does not exist or is no folder")
            other = "mri" if modality == "ct" else "ct"
            if not any(root.glob(f"*/{modality}.nii.gz")):
                hint = f"; it holds {other}.nii.gz: give it as {other}=" if any(root.glob(f"*/{other}.nii.gz")) else ""
                raise DatasetError(f"{root} holds no s0000/{modality}.nii.gz or the like{hint}")
            files = find_volumes(root, modality, f"{{id}}/{modality}.nii.gz", "{id}/segmentations/{label}.nii.gz")
            where = f"total_seg_{modality}/{{image_id}}/{picture[modality]}"
            table = read_table(root / "meta.csv", "image_id")
            _tell_missing(table, files)
            sources.append(Source(files, slicing[modality], table, picture=where))
        if not sources:
            raise InputError("give the folder of TotalSegmentator's CT as ct, that of its MRI as mri, or both")
        super().__init__(
            sources,
            image_size=image_size,
            trim=trim,
            keep_blank=keep_blank,
            index=index,
            num_workers=num_workers,
            about=about,
        )


class VolumeFolder(VolumeSlices):
    """Any folder of NIfTI volumes, with a mask per label and a table where there are such.

    ```python
    data = VolumeFolder("brains", modality="mri", image="{id}.nii.gz", masks="masks/{id}/{label}.nii.gz",
                        table="brains/people.csv", patient="subject", slicing=Slicing(axes=("z",), window=None))
    ```

    Args:
        root: the folder.
        modality: what the volumes are, such as "ct".
        image: where a volume lies in it, with {id} for its name.
        masks: where the mask of a label lies, with {id} and {label}; None where there are none. A volume that lacks the
            mask of a label that others have is left out, as one whose mask has another shape.
        table: a CSV with a row per volume and a column `id_column`, relative to `root` or absolute; None where there
            is none.
        id_column: the column of its volumes' names.
        patient: the column that names the patient, who is then the group; a volume without is a group by itself.
        slicing: how volumes become pictures. Its window "study_type" needs that column in the table.
        image_size, trim, keep_blank, index, num_workers: as for `VolumeSlices`.
        about: what the images are; unless told otherwise, images that may not be passed on.

    Raises:
        InputError: an argument is wrong, or nibabel is not installed.
        DatasetError: the folder or table is missing or wrong, or no volume can be used.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        modality: str = "ct",
        image: str = "{id}.nii.gz",
        masks: str | None = None,
        table: str | os.PathLike[str] | None = None,
        id_column: str = "image_id",
        patient: str | None = None,
        slicing: Slicing | None = None,
        image_size: int | tuple[int, int] = 1024,
        trim: bool = True,
        keep_blank: bool = False,
        index: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
        about: DatasetAbout | None = None,
    ) -> None:
        if not isinstance(modality, str) or not modality or "/" in modality:
            raise InputError(f"modality is {shown(modality)}: give a word such as 'ct'")
        slicing = slicing or Slicing()
        folder = local_path(root)
        files = find_volumes(folder, modality, image, masks)
        known = None if table is None else read_table(folder / local_path(table), id_column, [patient or id_column])
        needed = [] if slicing.window != slices.STUDY_TYPE else [slices.STUDY_TYPE]
        for column in [*needed, *([] if patient is None else [patient])]:
            if known is None or column not in known.columns:
                hint = "; or give a window (center, width), or None" if column == slices.STUDY_TYPE else ""
                raise DatasetError(f"the table of the volumes must have a column {column!r}{hint}")
        if known is not None:
            _tell_missing(known, files)
        super().__init__(
            [Source(files, slicing, known, patient)],
            image_size=image_size,
            trim=trim,
            keep_blank=keep_blank,
            index=index,
            num_workers=num_workers,
            about=about or DatasetAbout(name="volumes", title="volumes of one's own"),
        )


def _tell_missing(table: pd.DataFrame, files: Sequence[VolumeFiles]) -> None:
    absent = sorted(set(table.index) - {one.image_id for one in files})
    if absent:
        logger.warning("%s", describe(len(absent), "volumes of the table are not there", absent))
