"""INbreast."""

__all__ = ["inbreast"]

import plistlib
import re
from collections.abc import Iterator
from pathlib import Path
from xml.parsers.expat import ExpatError

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, describe
from mammosae_plugin.datasets.collections.tables import below, first_folder, text_table
from mammosae_plugin.datasets.mapping import register_reader

_INBREAST = ("Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads")
_SPELLINGS = {"espiculated region": "spiculated region", "calcifications": "calcification"}
_SPELLINGS |= dict.fromkeys(("assymetry", "asimmetry"), "asymmetry")
_NO_MARK = "no mark"


@register_reader("inbreast")
def inbreast(root: Path) -> pd.DataFrame:
    """`INbreast.csv` with a row per contour of `AllXML`, or one where an image has none.

    Patients' ids are removed from the table; a patient is known by the second part of the names of the DICOM files. A
    mark of one or two points has no area, and no box.
    """
    folder = first_folder(root, ["INbreast Release 1.0", "INbreast"], "INbreast.csv")
    file = folder / "INbreast.csv"
    table = text_table(file, _INBREAST, also=("Patient age",))
    table = table[table["File Name"] != ""]
    table["image_id"] = table["File Name"].str.replace(r"\.0$", "", regex=True)
    files = {path.name.partition("_")[0]: path for path in sorted(folder.rglob("*.dcm"))}
    if not files:
        raise DatasetError(
            f"{folder} holds no DICOM file named <File Name>_<patient>_....dcm, which says whose an image is"
        )
    unknown = table.loc[~table["image_id"].isin(files), "image_id"]
    if len(unknown):
        raise DatasetError(
            f"{file.name}: {describe(len(unknown), 'images have no DICOM file <File Name>_*.dcm', unknown)}"
        )
    found = table["image_id"].map(files)
    table["file"] = [below(root, path) for path in found]
    table["patient_id"] = [path.stem.split("_")[1] if path.stem.count("_") else path.stem for path in found]
    table["exam_id"] = table["patient_id"] + "_" + table["Acquisition date"]
    table["age"] = table["Patient age"].where(table["Patient age"].str.fullmatch(r"\d+"), "")
    table["birads"] = table["Bi-Rads"].str.lower()
    contours = {path.stem: path for path in sorted(folder.rglob("*.xml"))}
    rows = []
    for row in table.to_dict("records"):
        marks = list(_marks(contours[row["image_id"]])) if row["image_id"] in contours else []
        points = dict.fromkeys(mark for mark in marks if mark[1] is None)  # many points of one kind are one row
        for name, box in [*points, *(mark for mark in marks if mark[1] is not None)] or [(_NO_MARK, None)]:
            corners = [format(value, ".10g") for value in box] if box else [""] * 4
            rows.append(row | {"mark": name} | dict(zip(BOX_COLUMNS, corners, strict=True)))
    return pd.DataFrame(rows).astype(str)


def _marks(file: Path) -> Iterator[tuple[str, tuple[float, ...] | None]]:
    """The name of each contour of a file, and the box (xyxy pixels) around it, None where it has no area."""
    try:
        images = plistlib.loads(file.read_bytes(), fmt=plistlib.FMT_XML)["Images"]
        for mark in (mark for image in images for mark in image["ROIs"]):
            points = np.array(
                [[float(number) for number in re.findall(r"-?[\d.]+", point)] for point in mark["Point_px"]]
            )
            name = str(mark.get("Name", "")).strip().lower()
            area = len(points) > 2 and bool((points.max(axis=0) > points.min(axis=0)).all())
            box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist()) if area else None
            yield _SPELLINGS.get(name, name) or "unnamed", box
    except (plistlib.InvalidFileException, ExpatError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{file.name} holds no contours as INbreast writes them (a plist of Images and ROIs)"
        ) from error
