"""CBIS-DDSM."""

__all__ = ["cbis_ddsm"]

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.collections.tables import below, first_folder, text_table
from mammosae_plugin.datasets.dicom import read_tags
from mammosae_plugin.datasets.mapping import register_reader
from mammosae_plugin.datasets.splits import TEST, TRAINING

logger = logging.getLogger(__name__)

_CBIS_FILES = {
    f"{kind}_case_description_{part}_set.csv": split
    for kind in ("mass", "calc")
    for part, split in (("train", TRAINING), ("test", TEST))
}
_CBIS = (
    "patient_id", "left or right breast", "image view", "abnormality id", "abnormality type", "assessment", "pathology",
    "subtlety", "image file path", "cropped image file path", "ROI mask file path",
)  # fmt: skip
_CBIS_DENSITY = ("breast_density", "breast density")
_CBIS_KIND = {"mass shape": "mass_shape", "mass margins": "mass_margins", "calc type": "calc_type"}
_CBIS_KIND["calc distribution"] = "calc_distribution"
_PATHOLOGIES = ("BENIGN_WITHOUT_CALLBACK", "BENIGN", "MALIGNANT")


@register_reader("cbis-ddsm")
def cbis_ddsm(root: Path) -> pd.DataFrame:
    """The four files of case descriptions of CBIS-DDSM as one table, a row per abnormality, with its mask.

    `worst_pathology` and `highest_assessment` (0, incomplete, being none) are those of the image's abnormalities.
    Patients whom one file calls training and another test, as masses and calcifications were split apart, are training.
    """
    folder = first_folder(root, ["csv", "metadata"], next(iter(_CBIS_FILES)))
    tables = []
    for name, split in _CBIS_FILES.items():
        file = folder / name
        table = text_table(file, _CBIS, also=(*_CBIS_DENSITY, *_CBIS_KIND))
        density = table[_CBIS_DENSITY[0]].where(table[_CBIS_DENSITY[0]] != "", table[_CBIS_DENSITY[1]])
        tables.append(table.rename(columns=_CBIS_KIND).assign(density=density, split=split))
    rows = pd.concat(tables, ignore_index=True)
    paths = rows[["image file path", "cropped image file path", "ROI mask file path"]].apply(
        lambda column: column.str.replace(r"\s+", " ", regex=True).str.strip(" \"'")
    )
    rows["image_id"] = paths["image file path"].str.partition("/")[0]
    in_test = rows.groupby("patient_id")["split"].transform(lambda splits: (splits == TEST).all())
    if n_moved := rows.loc[(rows["split"] == TEST) & ~in_test, "patient_id"].nunique():
        logger.warning(
            "patients both in training and in test files of CBIS-DDSM: %d; all their images are training", n_moved
        )
    rows["split"] = np.where(in_test, TEST, TRAINING)
    rows["laterality"] = rows["left or right breast"].str[:1].str.upper()
    images = {path: _cbis_image(root, path) for path in dict.fromkeys(paths["image file path"])}
    rows["file"] = paths["image file path"].map(images)
    rows["mask"] = [
        _cbis_mask(root, mask, crop, image)
        for mask, crop, image in zip(
            paths["ROI mask file path"], paths["cropped image file path"], rows["file"], strict=True
        )
    ]
    told = rows[list(_CBIS_KIND.values())].itertuples(index=False)
    rows["descriptors"] = [str([word for cell in cells for word in cell.split("-") if word]) for cells in told]
    by_image = rows.groupby("image_id", sort=False)
    worst = rows["pathology"].map({name: at for at, name in enumerate(_PATHOLOGIES)})
    if (unknown := worst.isna()).any():
        examples = map(repr, rows.loc[unknown, "pathology"])
        raise DatasetError(
            describe(int(unknown.sum()), f"rows have a pathology other than {', '.join(_PATHOLOGIES)}", examples)
        )
    rows["worst_pathology"] = worst.groupby(rows["image_id"]).transform("max").map(dict(enumerate(_PATHOLOGIES)))
    assessment = pd.to_numeric(rows["assessment"], errors="coerce")
    highest = assessment.where(assessment > 0).groupby(rows["image_id"]).transform("max")
    rows["highest_assessment"] = highest.map(lambda number: format(number, "g"), na_action="ignore").fillna("")
    rows["subtlety"] = by_image["subtlety"].transform("max")
    rows["density"] = by_image["density"].transform("max").replace("0", "")
    return rows


def _cbis_folder(root: Path, path: str) -> Path | None:
    """The folder that all files of this path's case lie in; None where there is none."""
    case = path.partition("/")[0]
    return next((place / case for place in (root, root / "CBIS-DDSM") if case and (place / case).is_dir()), None)


def _cbis_image(root: Path, path: str) -> str:
    """The file of a whole image: as written, or the only one below its case's folder, however deep."""
    for place in (root, root / "CBIS-DDSM"):
        if (place / path).is_file():
            return below(root, place / path)
    folder = _cbis_folder(root, path)
    found = sorted(folder.rglob("*.dcm")) if folder else []
    return below(root, found[0]) if len(found) == 1 else path


def _cbis_mask(root: Path, mask: str, crop: str, image: str) -> str:
    """The mask of an abnormality, of the files of its case: the one of the image's size, as mask and crop are mixed up.

    Masks are sometimes of another size than the image; of two such files the larger is the mask.
    """
    written = [place / path for path in (mask, crop) for place in (root, root / "CBIS-DDSM") if path]
    found = list(dict.fromkeys(path for path in written if path.is_file()))
    if len(found) < 2:
        folders = [_cbis_folder(root, path) for path in dict.fromkeys((mask, crop))]
        found = sorted({path for folder in folders if folder for path in folder.rglob("*.dcm")}) or found
    if not found:
        return mask
    sizes = {path: _size(path) for path in found}
    whole = _size(root / image) if (root / image).is_file() else (0, 0)
    alike = [path for path, size in sizes.items() if size == whole]
    largest = max(found, key=lambda path: sizes[path][0] * sizes[path][1])
    return below(root, alike[0] if alike else largest)


def _size(file: Path) -> tuple[int, int]:
    tags = read_tags(file, ("Rows", "Columns"))
    return int(tags["Rows"] or 0), int(tags["Columns"] or 0)
