"""CMMD, the Chinese Mammography Database."""

__all__ = ["cmmd"]

from pathlib import Path

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.collections.tables import below, text_table
from mammosae_plugin.datasets.dicom import read_tags
from mammosae_plugin.datasets.mapping import register_reader
from mammosae_plugin.progress import progress

_CMMD_FILE = "CMMD_clinicaldata_revision"
_CMMD = ("ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype")
_CMMD_TAGS = ("PatientID", "ImageLaterality", "ViewPosition", "ViewCodeSequence.CodeMeaning", "ManufacturerModelName")
_CMMD_VIEWS = {"cranio-caudal": "CC", "medio-lateral oblique": "MLO"}


@register_reader("cmmd")
def cmmd(root: Path) -> pd.DataFrame:
    """The DICOM files of CMMD, side and view from their headers, with the table's row of their patient and side."""
    sheet, plain = root / f"{_CMMD_FILE}.xlsx", root / f"{_CMMD_FILE}.csv"
    table = text_table(plain if plain.is_file() and not sheet.is_file() else sheet, _CMMD)
    table = table.rename(columns={"ID1": "patient_id", "Age": "age"})
    table["laterality"] = table["LeftRight"].str[:1].str.upper()
    known = set(table["patient_id"])
    files = []
    paths = sorted(root.rglob("*.dcm"))
    for path in progress(paths, description="reading headers", unit="file", delay=2):
        tags = read_tags(path, _CMMD_TAGS)
        view = tags["ViewPosition"] or tags["ViewCodeSequence.CodeMeaning"]
        patient = tags["PatientID"]
        if patient not in known:  # the folder of the patient, where the header does not say whose it is
            patient = next((part for part in path.relative_to(root).parts if part in known), patient)
        files.append(
            {
                "patient_id": patient,
                "laterality": tags["ImageLaterality"][:1].upper(),
                "view": _CMMD_VIEWS.get(view.lower(), view),
                "machine": tags["ManufacturerModelName"],
                "file": below(root, path),
                "image_id": f"{patient}_{path.stem}",
            }
        )
    if not files:
        raise DatasetError(f"{root} holds no DICOM file, and the sides and views of CMMD are only in their headers")
    images = pd.DataFrame(files)
    again = images.groupby("image_id").cumcount()  # names repeat where a patient has several series
    images["image_id"] += np.where(again > 0, "_" + (again + 1).astype(str), "")
    if len(other := images[~images["patient_id"].isin(known)]):
        raise DatasetError(
            describe(len(other), f"images are of patients whom {_CMMD_FILE} does not name", other["file"])
        )
    age = table.drop_duplicates("patient_id").set_index("patient_id")["age"]
    rows = images.merge(
        table.drop(columns="age").drop_duplicates(), on=["patient_id", "laterality"], how="left"
    ).fillna("")
    rows["abnormality"] = rows["abnormality"].str.lower()
    return rows.assign(age=rows["patient_id"].map(age))
