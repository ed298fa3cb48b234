"""VinDr-Mammo as PhysioNet distributes it."""

__all__ = ["vindr"]

import logging
from pathlib import Path

import pandas as pd

from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.collections.tables import text_table
from mammosae_plugin.datasets.csv_files import read_csv
from mammosae_plugin.datasets.mapping import register_reader

logger = logging.getLogger(__name__)

_VINDR = ("study_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads", "breast_density")
_VINDR_BOX = ("xmin", "ymin", "xmax", "ymax")
_PER_BREAST = ("breast_birads", "breast_density", "split")


@register_reader("vindr")
def vindr(root: Path) -> pd.DataFrame:
    """`finding_annotations.csv`, and what `breast-level_annotations.csv` and `metadata.csv` know beside it."""
    file = root / "finding_annotations.csv"
    table = text_table(file, (*_VINDR, "finding_categories", *_VINDR_BOX, "split"), also=("finding_birads",))
    of_breasts = root / "breast-level_annotations.csv"
    if of_breasts.is_file():
        breasts = text_table(of_breasts, (*_VINDR, "split"))
        both = table.drop_duplicates("image_id").merge(breasts, on="image_id", suffixes=("", "_of_breast"))
        for column in _PER_BREAST:
            other = both.loc[both[column] != both[f"{column}_of_breast"], "image_id"]
            if len(other):
                what = f"images have another {column} in {of_breasts.name} than in {file.name}"
                raise DatasetError(describe(len(other), what, other, "use the two files of one version"))
        without = breasts[~breasts["image_id"].isin(table["image_id"])]
        table = pd.concat([table, without.assign(finding_categories="['No Finding']")]).fillna("")
    return _with_vindr_metadata(table, root / "metadata.csv")


def _with_vindr_metadata(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """With age (years) and machine of each image; empty where the file is not there or names them otherwise."""
    empty = table.assign(age="", machine="")
    if not file.is_file():
        return empty
    metadata = read_csv(file, ("SOP Instance UID", "Patient's Age", "Manufacturer's Model Name"))
    names = {column: metadata.columns[metadata.columns.str.lower() == column.lower()] for column in _METADATA}
    if not len(names["SOP Instance UID"]):
        logger.warning("%s has no column SOP Instance UID: age and machine are not known", file.name)
        return empty
    metadata = metadata.drop_duplicates(names["SOP Instance UID"][0]).set_index(names["SOP Instance UID"][0])
    for target, source in (("age", "Patient's Age"), ("machine", "Manufacturer's Model Name")):
        if len(names[source]):
            found = table["image_id"].map(metadata[names[source][0]]).fillna("")
            empty[target] = found.str.replace(r"^0*(\d+)Y$", r"\1", regex=True) if target == "age" else found
    return empty


_METADATA = ("SOP Instance UID", "Patient's Age", "Manufacturer's Model Name")
