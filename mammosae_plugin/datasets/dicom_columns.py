"""Columns of a table that are read from the headers of DICOM files, and files that are found by them."""

__all__ = ["FILE_COLUMN", "find_files", "read_columns"]

import logging
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import pandas as pd

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.dicom import read_tags
from mammosae_plugin.datasets.mapping import DicomMapping
from mammosae_plugin.progress import progress

logger = logging.getLogger(__name__)

FILE_COLUMN = "dicom_file"
_SOON = 2.0  # seconds without a bar


def read_columns(files: Sequence[str], how: DicomMapping, root: Path) -> pd.DataFrame:
    """What the headers of files say, as text; "" of files whose header cannot be read, which are told.

    Args:
        files: Paths relative to root, one per row; several rows may have the same.
        how: Which columns.
        root: The data's folder.

    Raises:
        DatasetError: Not one of them is a DICOM file.
        InputError: A keyword or tag is not in DICOM's dictionary, or pydicom is not installed.
    """
    keywords = list(how.columns.values())
    nothing = dict.fromkeys(keywords, "")
    known: dict[str, dict[str, str]] = {}
    bad: list[str] = []
    for file in progress(dict.fromkeys(files), description="reading headers", unit="file", delay=_SOON):
        try:
            known[file] = read_tags(root / file, keywords)
        except BadImageError as error:
            known[file] = nothing
            bad.append(f"{file}: {error.reason}")
    if bad:
        what = describe(len(bad), f"of {len(known)} files have no DICOM header", bad)
        if len(bad) == len(known):
            raise DatasetError(f"{what}; `dicom` reads those of the image files")
        logger.warning("%s: what the mapping takes from headers is missing there", what)
    return pd.DataFrame(
        {column: [known[file][keyword] for file in files] for column, keyword in how.columns.items()}, dtype=object
    )


def find_files(table: pd.DataFrame, how: DicomMapping, root: Path) -> pd.DataFrame:
    """The table with the columns that it lacks, and `dicom_file`, from the files whose headers say what its rows say.

    Args:
        table: Every cell as text.
        how: Which columns, and where the files lie.
        root: The data's folder.

    Returns:
        As many rows; "" where no file fits.

    Raises:
        DatasetError: There are no files, no column is in both, or several files fit a row.
        InputError: As `read_columns`.
    """
    keys = [column for column in how.columns if column in table.columns]
    if not keys:
        named = ", ".join(how.columns)
        raise DatasetError(f"dicom.files: the table has none of the columns {named}, by which files could be found")
    files = sorted(path for path in glob(str(how.files), root_dir=root, recursive=True) if (root / path).is_file())
    if not files:
        raise DatasetError(f"dicom.files: no file fits {how.files} under {root}")
    headers = read_columns(files, how, root).assign(**{FILE_COLUMN: files})
    headers = headers[(headers[keys] != "").all(axis=1)]
    wanted = headers.merge(table[keys].drop_duplicates(), on=keys)
    if len(twice := wanted[wanted.duplicated(keys, keep=False)]):
        told = [" and ".join(group[FILE_COLUMN].head(2)) for _, group in twice.groupby(keys, sort=False)]
        advice = f"name more columns that the table has too (it has {', '.join(map(str, table.columns[:8]))})"
        what = f"values of {', '.join(keys)} have several files"
        raise DatasetError(f"dicom.files: {describe(len(told), what, told, advice)}")
    found = table.reset_index(drop=True).merge(wanted, on=keys, how="left").fillna("")
    return found.set_axis(table.index)
