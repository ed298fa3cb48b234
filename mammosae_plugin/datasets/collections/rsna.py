"""The RSNA screening mammography challenge."""

__all__ = ["rsna"]

from pathlib import Path

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.collections.tables import text_table, whole_numbers
from mammosae_plugin.datasets.mapping import register_reader
from mammosae_plugin.datasets.splits import TEST, TRAINING, make_split

_RSNA = ("site_id", "patient_id", "image_id", "laterality", "view", "cancer")
_RSNA_ALSO = (
    "age", "biopsy", "invasive", "BIRADS", "implant", "density", "machine_id", "difficult_negative_case", "fold",
)  # fmt: skip
_RSNA_FOLDERS = ("train_images_png", "train_images", "images_png", "images")
_RSNA_NAMES = ("{folder}/{patient}/{image}{ending}", "{folder}/{patient}_{image}{ending}")
_RSNA_TRAINING_FOLDS = ("1", "2")


@register_reader("rsna")
def rsna(root: Path) -> pd.DataFrame:
    """`train_folds.csv`, else `train.csv`; images as they lie there, PNG or DICOM, in a folder per patient or in one.

    With folds the split is the release's: folds 1 and 2 are training, the others test. Without, a fifth of the patients
    is test, drawn so that its share of patients with cancer is that of all.
    """
    names = ("train_folds.csv", "train.csv")
    file = next((root / name for name in names if (root / name).is_file()), root / names[1])
    table = text_table(file, _RSNA, also=_RSNA_ALSO)
    table["image_id"] = table["image_id"].str.replace(r"\.(png|dcm)$", "", regex=True)
    fold = whole_numbers(table["fold"])
    if fold.eq("").all():
        worst = table.groupby("patient_id", sort=False)["cancer"].transform("max")
        drawn = make_split(
            table.assign(worst=worst), by=["patient_id"], stratify=["worst"], shares={TRAINING: 0.8, TEST: 0.2}
        )
        table["split"] = table["patient_id"].map(drawn.set_index("patient_id")["split"])
    else:
        table["split"] = np.where(fold == "", "", np.where(fold.isin(_RSNA_TRAINING_FOLDS), TRAINING, TEST))
    for column in ("implant", "difficult_negative_case"):
        table[column] = table[column].str.lower().replace({"true": "1", "false": "0"})
    for column in ("age", "BIRADS", "cancer", "biopsy", "invasive"):
        table[column] = whole_numbers(table[column])
    table["file"] = _rsna_files(root, table)
    return table


def _rsna_files(root: Path, table: pd.DataFrame) -> list[str]:
    """The images' files, in the form of names that any of the first rows has."""
    forms = [
        name.replace("{folder}", folder).replace("{ending}", ending)
        for folder in _RSNA_FOLDERS
        if (root / folder).is_dir()
        for name in _RSNA_NAMES
        for ending in (".png", ".dcm")
    ]
    usual = "train_images/{patient}/{image}.dcm" if (table["fold"] == "").all() else _RSNA_PREPARED
    rows = list(table[["patient_id", "image_id"]].itertuples(index=False, name=None))

    def there(form: str) -> bool:
        return any((root / form.format(patient=patient, image=image)).is_file() for patient, image in rows[:20])

    form = next(filter(there, forms), usual)
    return [form.format(patient=patient, image=image) for patient, image in rows]


_RSNA_PREPARED = "train_images_png/{patient}/{image}.png"
