"""Notes by readers from a table, many at once."""

__all__ = ["add_notes"]

import re
from collections.abc import Sequence
from pathlib import Path

from mammosae_plugin.arguments import shown
from mammosae_plugin.datasets.table_files import read_table
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.findings.notes import Note, keep_notes, new_note
from mammosae_plugin.findings.study_folder import StudyFolder

_COLUMNS = ("latent", "text", "author", "label", "layer", "encoder", "concept", "confidence")


def add_notes(
    study_folder: str | Path, table: str | Path, *, author: str = "", allow: Sequence[str] = ()
) -> list[Note]:
    """Add the notes of a table to a study: all of them, or none where one is wrong.

    Args:
        study_folder: The study's output folder.
        table: A CSV, parquet or xlsx file with the column latent, and those of text, author, label, layer, encoder,
            concept and confidence that are needed; an empty cell is as if it were not given.
        author: Who says it where a row names nobody.
        allow: As for `add_note`.

    Returns:
        The notes that are new, in the order of the table: what a reader has said already is not added again.

    Raises:
        InputError: As `add_note`, with the line of the table; a table that cannot be read, or with other columns.
        PrivacyError: As `add_note`.

    Example:
        >>> add_notes("study", "notes.csv", author="AB")   # doctest: +SKIP
    """
    study, file = StudyFolder(study_folder), local_path(table)
    rows = read_table(file, _COLUMNS)
    wanted = f"a table of notes has latent, and what is needed of {', '.join(_COLUMNS[1:])}"
    if "latent" not in rows.columns:
        raise InputError(f"{file.name} has no column latent; {wanted}")
    if others := [name for name in rows.columns if name not in _COLUMNS]:
        raise InputError(f"{file.name} has the column {shown(others[0])}; {wanted}")
    notes = []
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        given = {str(name): str(value) for name, value in row.items() if value}
        try:
            numbers = {name: _whole(given.pop(name), name) for name in ("latent", "confidence") if name in given}
            if "latent" not in numbers:
                raise InputError("latent is empty; give its number")
            said = {"text": "", "author": author, **given}
            notes.append(new_note(study, allow=allow, **said, **numbers))  # type: ignore[arg-type]
        except InputError as error:
            raise type(error)(f"{file.name}, line {line}: {error}; no note was added") from error
    return keep_notes(study, notes)


def _whole(value: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise InputError(f"{name} is {shown(value)}; give a whole number")
    return int(value)
