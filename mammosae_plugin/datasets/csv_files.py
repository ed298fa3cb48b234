"""Read a CSV file as text, and say in one line what it is where it is none."""

__all__ = ["plain_name", "read_csv"]

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from mammosae_plugin.datasets.base import DatasetError
from mammosae_plugin.file_kinds import kind_of

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ":": "colons", " ": "spaces"}
_READ = (";", "\t", "|")
_BLANKS = " \t\r\n\u00a0\u200b\u200e\u2060\ufeff"
_NUMBERED = r"\s*(\.\d+|\(\d+\)|[ _-]copy)$"  # how programs rename a column that is there already
_SAVE_AS = "save it as CSV with commas between the cells, points in the numbers and UTF-8 text"


def read_csv(file: Path, columns: Collection[str], *, any_separator: bool = False) -> pd.DataFrame:
    """A CSV file with every cell as stripped text, so that ids such as 0012e34 stay what they are.

    Args:
        file: the file.
        columns: some of the columns that it should have, from which another separator is told.
        any_separator: read semicolons, tabs or bars between the cells too, instead of refusing them.

    Returns:
        One row per row of the file; the index is the number of its (last) line, the header's being 1.

    Raises:
        DatasetError: the file is missing, is no CSV (the message says what it is), names a column twice, or has rows of
            another length than its header.
    """
    text = _text(file)
    header, *rows = _rows(text, file, columns, any_separator)
    names = [name.strip(_BLANKS) for name in header[1]]
    if len(names) == 1 and "," in names[0]:
        raise DatasetError(f"{file.name}: each line stands in quotation marks as a whole; {_SAVE_AS}")
    plain = {plain_name(name) for name in columns}
    if columns and not set(columns) & set(names) and len(plain & set(map(plain_name, names))) <= len(names) / 2:
        raise DatasetError(
            f"{file.name}: line {header[0]} is no header: it names none of the columns "
            f"{', '.join(sorted(columns)[:3])}, ...; {_SAVE_AS}"
        )
    _refuse_named_twice(names, columns, file)
    for line, cells in rows:
        if [cell.strip(_BLANKS) for cell in cells] == names:
            raise DatasetError(f"{file.name}: line {line} repeats the header; were two files put together?")
    other = [(line, cells) for line, cells in rows if len(cells) != len(names)]
    for separator, name in _SEPARATORS.items() if other else ():
        try:
            n_cells = {line: len(cells) for line, cells in _split(text, separator)}
        except csv.Error:
            continue
        if all(n_cells.get(line) == len(names) for line, _ in other):
            raise DatasetError(
                f"{file.name}: the header has commas between its names, line {other[0][0]} has {name} ({separator!r}) "
                f"between its cells: {_SAVE_AS}"
            )
    if len(other) == len(rows) > 1 and len({len(cells) for _, cells in rows}) == 1:
        raise DatasetError(
            f"{file.name}: every row has {len(rows[0][1])} cells, the header {len(names)}; does a column lack its "
            "name, or do the rows end in a comma?"
        )
    for line, cells in other:
        raise DatasetError(
            f"{file.name}: line {line} has {len(cells)} cells, the header {len(names)}; is the file cut off, or a "
            "quotation mark missing?"
        )
    if not rows:
        raise DatasetError(f"{file.name}: the file has no rows")
    named = [name or f"Unnamed: {at}" for at, name in enumerate(names)]  # row numbers of another program
    table = pd.DataFrame([cells for _, cells in rows], columns=named, index=[line for line, _ in rows], dtype=str)
    table = pd.DataFrame({name: column.str.strip(_BLANKS) for name, column in table.items()})
    filled = table.to_numpy()[table.to_numpy() != ""]
    if len(filled) and all(len(cell) > 1 and cell[0] == cell[-1] == "'" for cell in filled):
        raise DatasetError(f"{file.name}: the cells stand in single quotation marks: {_SAVE_AS}")
    return table


def plain_name(name: str) -> str:
    """A column's name without what programs change in it: case, blanks, underscores."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _refuse_named_twice(names: Sequence[str], columns: Collection[str], file: Path) -> None:
    """Refuse columns of one name; of those that are read, also names that differ in case, blanks or a number behind."""
    wanted = {plain_name(column): column for column in columns}

    def meant(name: str) -> str:
        plain = plain_name(re.sub(_NUMBERED, "", name))
        return wanted.get(plain, name)

    for name, count in Counter(meant(name) for name in names if name).items():
        if count == 1:
            continue
        places = [(at, other) for at, other in enumerate(names, start=1) if other and meant(other) == name]
        written = sorted({other for _, other in places} - {name})
        also = f", also written {', '.join(map(repr, written))}" if written else ""
        listed = ", ".join(str(at) for at, _ in places)
        raise DatasetError(
            f"{file.name}: columns are named twice: {name} (columns {listed}{also}); remove or rename all but one of "
            "each"
        )


def _text(file: Path) -> str:
    try:
        content, kind = file.read_bytes(), kind_of(file)
    except FileNotFoundError as error:
        raise DatasetError(f"the annotation file {file} does not exist") from error
    except OSError as error:
        raise DatasetError(f"the annotation file {file} cannot be read: {error.strerror or error}") from error
    if kind is not None:
        raise DatasetError(f"the annotation file {file} is {kind}, not a CSV: {_SAVE_AS}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"the annotation file {file} is no UTF-8 text (line {line}): {_SAVE_AS}") from error
    if "\0" in text:
        raise DatasetError(f"the annotation file {file} holds zero bytes and is no CSV: {_SAVE_AS}")
    text = text.strip("\ufeff\x1a")
    if not text.strip():
        raise DatasetError(f"the annotation file {file} is empty")
    return text


def _rows(text: str, file: Path, columns: Collection[str], any_separator: bool) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line; the header first."""
    if text.lower().startswith("sep="):
        raise DatasetError(f"{file.name} begins with the line {text.splitlines()[0]!r} of a spreadsheet: {_SAVE_AS}")
    first = text.lstrip().splitlines()[0]
    found = {separator: len(set(columns) & set(_cells(first, separator))) for separator in (",", *_SEPARATORS)}
    best = max(found, key=lambda separator: found[separator])
    if any_separator and not found[best]:  # the columns have other names: what cuts the header into most cells
        best = max((",", *_READ), key=first.count)
        found[best] += first.count(best) > first.count(",")
    if found[best] > found[","]:
        second = next(iter(text.lstrip().splitlines()[1:]), "")
        if len(_cells(second, best)) == 1 and len(next(csv.reader([second]), [])) == len(_cells(first, best)):
            raise DatasetError(
                f"{file.name}: the header has {_SEPARATORS[best]} ({best!r}) between its names, the rows have commas: "
                "write commas in the header too"
            )
        if not (any_separator and best in _READ):
            raise DatasetError(
                f"{file.name} has {_SEPARATORS[best]} ({best!r}) as separators between its cells: {_SAVE_AS}"
            )
    else:
        best = ","
    try:
        return _split(text, best)
    except csv.Error as error:
        raise DatasetError(f"{file.name}: {error} is no row of a CSV; {_SAVE_AS}") from error


def _split(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The rows as `_rows` gives them; the error of a row that is none names its line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip(_BLANKS) for cell in cells)]
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}") from error


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip().strip('"').strip() for cell in line.split(separator)]
