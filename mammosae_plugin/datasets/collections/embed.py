"""EMBED, open data."""

__all__ = ["embed"]

import ast
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.base import DatasetError
from mammosae_plugin.datasets.collections.tables import first_folder, said, text_table, whole_numbers
from mammosae_plugin.datasets.mapping import register_reader
from mammosae_plugin.datasets.table_checks import MISSING_TEXT

logger = logging.getLogger(__name__)

_CLINICAL = ("empi_anon", "acc_anon", "side", "asses", "tissueden", "massshape", "calcfind", "path_severity")
_CLINICAL_ALSO = ("massmargin", "massdens", "calcdistri", "calcnumber", "age_at_study")
_METADATA_OF_FILES = (
    "empi_anon",
    "acc_anon",
    "anon_dicom_path",
    "ImageLateralityFinal",
    "ViewPosition",
    "FinalImageType",
)
_METADATA_ALSO = ("spot_mag", "ROI_coords", "DCM_ROI_coords", "match_level", "Rows", "Columns", "ManufacturerModelName")
_IMAGE_TYPES = {"2d": "2D", "cview": "cview"}
_ASSESSMENTS = {"N": 1, "B": 2, "P": 3, "S": 4, "M": 5, "K": 6}
_SHAPES = {"mass": "GROX", "lymph_node": "NY", "asymmetry": "SBFV", "distortion": "AQ"}
_KINDS = (*_SHAPES, "calcification")
_ROI = ("ymin", "xmin", "ymax", "xmax")


@register_reader("embed")
def embed(root: Path) -> pd.DataFrame:
    """The findings of EMBED's clinical table at the files of its metadata, joined by exam AND side.

    A finding of side B, or of none, is one of both breasts. 2D images and synthetic ones (`cview`) are kept,
    tomosynthesis is not. An image has a row per finding of its side, without a box, and a row per region of interest.
    The tables do not say which finding a region is: where those of the side are of one kind it is that, else unknown.
    Regions are those of the DICOM files (`DCM_ROI_coords`) where the table has them apart; `ROI_coords` may be those of
    mirrored PNG files.
    """
    folder = first_folder(root, ["tables"], "EMBED_OpenData_metadata.csv")
    sides = _embed_sides(text_table(folder / "EMBED_OpenData_clinical.csv", _CLINICAL, also=_CLINICAL_ALSO))
    files = text_table(folder / "EMBED_OpenData_metadata.csv", _METADATA_OF_FILES, also=_METADATA_ALSO)
    files["image_type"] = files["FinalImageType"].str.lower().str.replace("-", "").map(_IMAGE_TYPES)
    kept = files[files["image_type"].notna()].reset_index(drop=True)
    if kept.empty:
        raise DatasetError("EMBED_OpenData_metadata.csv: no file has the FinalImageType 2D or cview")
    if len(kept) < len(files):
        logger.info("%d files of EMBED are neither 2D nor cview and are left out", len(files) - len(kept))
    kept["side"] = kept["ImageLateralityFinal"].str[:1].str.upper()
    kept["file"] = [_embed_file(root, path) for path in kept["anon_dicom_path"]]
    kept["image_id"] = kept["file"].str.extract(r"([^/]*?)(?:\.dcm)?$", expand=False)
    kept["spot_mag"] = np.where(said(kept["spot_mag"]) & ~kept["spot_mag"].isin(["0", "0.0"]), "1", "0")
    regions = kept["DCM_ROI_coords"].where(said(kept["DCM_ROI_coords"]), kept["ROI_coords"])
    kept["regions"] = pd.Series(map(_regions, regions), index=kept.index, dtype=object)
    kept["image"] = kept.index
    of_findings = kept.merge(sides, on=["acc_anon", "side"], how="left").fillna("")
    of_regions = kept.explode("regions").dropna(subset="regions")
    kinds = sides.groupby(["acc_anon", "side"])[list(_KINDS)].max()
    of_image = sides.drop_duplicates(["acc_anon", "side"]).drop(columns=list(_KINDS))
    of_regions = of_regions.merge(of_image, on=["acc_anon", "side"], how="left").fillna("")
    present = kinds.reindex(pd.MultiIndex.from_frame(of_regions[["acc_anon", "side"]])).to_numpy() == "1"
    alone = present.sum(axis=1, keepdims=True) == 1
    told = of_regions[["finding"]].to_numpy() != ""  # whether anything is known of the breast
    of_regions[list(_KINDS)] = np.where(told & ~present, "0", np.where(alone & present, "1", ""))
    corners = np.array(of_regions["regions"].tolist(), dtype=float).reshape(-1, 4)
    of_regions[list(_ROI)] = [[format(value, ".10g") for value in box] for box in corners]
    of_regions["finding"] = "1"
    rows = pd.concat([of_findings, of_regions]).sort_values("image", kind="stable", ignore_index=True)
    rows[list(_ROI)] = rows[list(_ROI)].fillna("")
    return rows.drop(columns=["image", "regions"]).drop_duplicates()


def _embed_sides(clinical: pd.DataFrame) -> pd.DataFrame:
    """A row per finding and breast that it is of, with kinds as 1 or 0, and what is known of the breast as a whole."""
    has = {name: clinical["massshape"].isin(list(shapes)) for name, shapes in _SHAPES.items()}
    has["mass"] |= clinical["massmargin"].isin(list("DUMIS")) | clinical["massdens"].isin(list("+-="))
    counted = pd.to_numeric(clinical["calcnumber"], errors="coerce").fillna(0) > 0
    has["calcification"] = said(clinical["calcfind"]) | said(clinical["calcdistri"]) | counted
    rows = clinical.assign(**{name: np.where(marks, "1", "0") for name, marks in has.items()})
    rows["finding"] = np.where(np.logical_or.reduce([*has.values(), said(clinical["massshape"])]), "1", "0")
    side = rows["side"].str.upper()
    both = ~side.isin(["L", "R"])
    rows = pd.concat([rows[~both].assign(side=side[~both]), *(rows[both].assign(side=one) for one in "LR")])
    breast = [rows["acc_anon"], rows["side"]]
    assessed = rows["asses"].str.upper()
    worst = assessed.map(_ASSESSMENTS).groupby(breast).transform("max")
    rows["birads"] = worst.map(lambda number: format(number, "g"), na_action="ignore").fillna("")
    recalled = (assessed == "A").groupby(breast).transform("any")
    rows["recalled"] = np.where(recalled, "1", np.where(worst.notna(), "0", ""))
    severity = pd.to_numeric(rows["path_severity"], errors="coerce").groupby(breast).transform("min")
    rows["severity"] = severity.map(lambda number: format(number, "g"), na_action="ignore").fillna("")
    clear = severity.notna() | worst.le(2)
    rows["cancer"] = np.where(severity.le(1), "1", np.where(clear, "0", ""))
    rows["density"] = whole_numbers(rows["tissueden"]).where(lambda text: text.isin(list("1234")), "")
    of_exam = ["density", "age_at_study"]
    rows[of_exam] = rows.groupby("acc_anon")[of_exam].transform("max")
    kept = ["acc_anon", "side", *_KINDS, "finding", "birads", "recalled", "severity", "cancer", *of_exam]
    found: pd.DataFrame = rows[kept].sort_index(kind="stable")
    return found


def _embed_file(root: Path, path: str) -> str:
    """Where a file lies below the collection's folder, from its path on the machine of those who wrote the table."""
    plain = path.replace("\\", "/")
    start = plain.find("cohort_")
    if start < 0 or (not plain.startswith("/") and (root / plain).is_file()):
        return plain.lstrip("/")
    return f"images/{plain[start:]}"


def _regions(text: str) -> list[tuple[float, ...]]:
    """The boxes (ymin, xmin, ymax, xmax) that a printed list holds."""
    try:
        found = ast.literal_eval(text) if text.lower() not in MISSING_TEXT else []
        return [tuple(map(float, box)) for box in found if len(box) == 4]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DatasetError(f"EMBED_OpenData_metadata.csv: ROI_coords {text!r} is no list of boxes") from error
