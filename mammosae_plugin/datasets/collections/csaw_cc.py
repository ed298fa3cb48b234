"""CSAW-CC."""

__all__ = ["csaw_cc"]

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.collections.tables import below, text_table
from mammosae_plugin.datasets.mapping import register_reader

logger = logging.getLogger(__name__)

_CSAW_FILE = "CSAW-CC_breast_cancer_screening_data.csv"
_CSAW = ("anon_patientid", "anon_filename", "x_case")
_OF_CANCER = ("x_cancer_laterality", "rad_timing")
_CSAW_ALSO = (
    "exam_year", "x_age", "x_type", "x_lymphnode_met", "rad_recall",
    "imagelaterality", "viewposition", "libra_breastarea", "libra_densearea", "libra_percentdensity",
)  # fmt: skip
_CSAW_NAME = r"^(?P<patient>.+?)_(?P<date>\d{8})_(?P<side>[LR])_(?P<view>CC|MLO)_(?P<n>\d+)"


@register_reader("csaw-cc")
def csaw_cc(root: Path) -> pd.DataFrame:
    """The table and the masks of CSAW-CC; side, view and exam of an image follow from its name.

    Of a woman with cancer (`x_case`) the breast of `x_cancer_laterality` has it where `rad_timing` is 1 (found at this
    exam) or 2 (found between it and the next), or a mask shows it; an exam before these (3) says neither.
    """
    found = sorted(root.glob("*.csv"))
    file = root / _CSAW_FILE
    if not file.is_file() and len(found) == 1:
        file = found[0]
    table = text_table(file, _CSAW, also=(*_OF_CANCER, *_CSAW_ALSO))
    for column in _OF_CANCER:
        if (table[column] == "").all():
            logger.warning("%s says nothing under %s: cancer is known only of images with a mask", file.name, column)
    stem = table["anon_filename"].str.replace(r"\.(dcm|png|dicom)$", "", regex=True)
    parts = stem.str.extract(_CSAW_NAME)
    if (wrong := parts["patient"].isna()).any():
        what = "images have a name other than <patient>_<date>_<L or R>_<CC or MLO>_<n>"
        raise DatasetError(f"{file.name}: {describe(int(wrong.sum()), what, table.loc[wrong, 'anon_filename'])}")
    table = table.assign(
        image_id=stem,
        laterality=parts["side"],
        view=parts["view"],
        exam_id=table["anon_patientid"] + "_" + table["exam_year"].where(table["exam_year"] != "", parts["n"]),
    )
    side = table["x_cancer_laterality"].str[:1].str.upper()
    timing = table["rad_timing"].str.replace(r"\.0$", "", regex=True)
    case = table["x_case"].str.replace(r"\.0$", "", regex=True) == "1"
    its_breast = case & (side == table["laterality"])
    places = {
        path.name: below(root, path) for path in root.rglob("*") if path.suffix.lower() in (".dcm", ".png", ".dicom")
    }
    by_stem = {Path(name).stem: place for name, place in sorted(places.items())}
    table["file"] = [by_stem.get(name, f"images/{name}.dcm") for name in stem]
    table["mask"] = [by_stem.get(f"{name}_mask", "") for name in stem]
    unknown = case & (side == "")
    said = np.where(table["mask"] != "", "1", np.where(its_breast & timing.isin(["1", "2"]), "1", ""))
    table["cancer"] = np.where(its_breast | unknown, said, "0")
    table["timing"] = np.where(its_breast, timing, np.where(unknown, "", "0"))
    return table
