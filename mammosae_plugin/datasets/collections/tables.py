"""What the readers of collections have alike."""

__all__ = ["below", "first_folder", "said", "text_table", "whole_numbers"]

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from mammosae_plugin.datasets.base import DatasetError
from mammosae_plugin.datasets.concepts import nearest_names
from mammosae_plugin.datasets.table_checks import MISSING_TEXT
from mammosae_plugin.datasets.table_files import read_table


def first_folder(root: Path, names: Sequence[str], file: str) -> Path:
    """The first of `root` and its subfolders of these names that holds `file`; `root` where none does."""
    return next((place for place in (root, *(root / name for name in names)) if (place / file).is_file()), root)


def text_table(file: Path, columns: Collection[str], *, also: Collection[str] = ()) -> pd.DataFrame:
    """A table of a collection as text, with the columns `also` empty where it lacks them.

    Raises:
        DatasetError: It is missing, or lacks one of `columns`; the nearest names are told.
    """
    table = read_table(file, (*columns, *also))
    there = [str(name) for name in table.columns]
    if missing := [name + nearest_names(name, there) for name in columns if name not in there]:
        what = "1 column is" if len(missing) == 1 else f"{len(missing)} columns are"
        raise DatasetError(f"{file.name}: {what} missing: {', '.join(missing)}; is this the file as distributed?")
    return table.assign(**{name: "" for name in also if name not in table.columns})


def below(root: Path, file: Path | str) -> str:
    """A file's path below `root`, with slashes."""
    return Path(file).relative_to(root).as_posix()


def said(text: "pd.Series[str]") -> "pd.Series[bool]":
    """Which cells say something."""
    return ~text.str.lower().isin(MISSING_TEXT)


def whole_numbers(text: "pd.Series[str]") -> "pd.Series[str]":
    """Whole numbers as text, without the .0 that programs write where some are missing."""
    return text.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
