"""Tables of any common form (CSV, parquet, xlsx) with every cell as text."""

__all__ = ["cell_text", "read_table", "read_tables"]

import datetime
import math
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.datasets.base import DatasetError
from mammosae_plugin.datasets.csv_files import read_csv
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path


def read_tables(root: Path, names: Sequence[str], columns: Collection[str]) -> tuple[pd.DataFrame, list[str]]:
    """Several tables below one another, and of every row the file that it is from.

    Raises:
        DatasetError: as `read_table`.
    """
    tables = [read_table(root / local_path(name), columns) for name in names]
    files = [Path(name).name for name, table in zip(names, tables, strict=True) for _ in range(len(table))]
    return (tables[0] if len(tables) == 1 else pd.concat(tables).fillna("")), files


def read_table(file: Path, columns: Collection[str]) -> pd.DataFrame:
    """A CSV file (commas, semicolons, tabs or bars), parquet or xlsx (its first sheet) with every cell as text.

    Args:
        file: the file; the ending says what it is.
        columns: some of the columns that it should have, by which the separator is told.

    Returns:
        One row per row of the file; empty cells are ""; whole numbers are written without a point. The index is the
        number of each row's line (of parquet, as if a header were the first).

    Raises:
        DatasetError: the file is missing, damaged, empty, or something else than its ending says.
        InputError: an xlsx, and openpyxl is not installed.
    """
    suffix = file.suffix.lower()
    if suffix not in (".parquet", ".xlsx"):
        return read_csv(file, columns, any_separator=True)
    if not file.is_file():
        raise DatasetError(f"the table {file} does not exist")
    found = _of_parquet(file) if suffix == ".parquet" else _of_workbook(file)
    if not len(found):
        raise DatasetError(f"{file.name}: the file has no rows")
    if twice := found.columns[found.columns.duplicated()].tolist():
        raise DatasetError(f"{file.name}: columns are named twice: {', '.join(sorted(set(map(str, twice))))}")
    return found


def cell_text(value: Any) -> str:
    """A cell as text: nothing for what is missing, 5 for 5.0, lists as JSON writes them, days as 2020-05-17."""
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(cell_text(one) if not isinstance(one, str) else repr(one) for one in value)}]"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return str(value).strip()


def _of_parquet(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise DatasetError(
            f"{file.name} cannot be read as parquet: {' '.join(str(error).split()).partition('. ')[0][:200]}"
        ) from error
    found = pd.DataFrame({str(name): [cell_text(cell) for cell in table[name]] for name in table.columns}, dtype=str)
    found.index = pd.RangeIndex(2, len(found) + 2)
    return found


def _of_workbook(file: Path) -> pd.DataFrame:
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(
            f"{file.name} is an Excel workbook, for which openpyxl is needed: pip install 'mammosae-plugin[excel]', or "
            "save it as CSV"
        ) from error
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise DatasetError(f"{file.name} cannot be read as an Excel workbook; save it as CSV") from error
    try:
        sheet = book.worksheets[0] if book.worksheets else None
        cells = [[cell_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True)] if sheet else []
    finally:
        book.close()
    lines = [line for line, row in enumerate(cells) if any(row)]
    if not lines:
        raise DatasetError(f"{file.name}: the first sheet is empty")
    header, width = cells[lines[0]], max(map(len, cells))
    named = [(at, name) for at, name in enumerate(header) if name]
    rows = [cells[line] + [""] * (width - len(cells[line])) for line in lines[1:]]
    index = [line + 1 for line in lines[1:]]
    return pd.DataFrame([[row[at] for at, _ in named] for row in rows], columns=[n for _, n in named], index=index)
