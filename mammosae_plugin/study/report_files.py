"""A report and what lies beside it, written when something in it would be different."""

__all__ = ["write_report_files"]

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mammosae_plugin import findings, report, schema, visualization
from mammosae_plugin.files import read_json, sha256_of_file, sha256_of_json, write_json
from mammosae_plugin.own_files import are_untouched, empty_staging, replace_files
from mammosae_plugin.schema.names import REPORT_FILE
from mammosae_plugin.visualization.drawings import Drawings

_DRAWN = ".mammosae-drawn.json"  # what the report, and every figure, in a folder was made from


def write_report_files(folder: Path, made_from: Any, write: Callable[[Path, Drawings], None]) -> Path:
    """Put a report and its figures and tables into a results folder; returns the report's path.

    Where all of them lie there and would be the same again, nothing is written; a figure that would be the same is not
    drawn. Those of an earlier run go. What a user has put there stays, and what they edited is kept under another name.

    Args:
        folder: The results folder.
        made_from: All that the report says, as JSON.
        write: Writes the files into an empty folder, whose figures are drawn by the second argument.
    """
    made = {"results": sha256_of_json(made_from), "code": _code()}
    record = folder / _DRAWN
    before = read_json(record) if record.exists() else {}
    if made.items() <= before.items() and are_untouched(folder):
        return folder / REPORT_FILE
    staged = empty_staging(folder)
    drawings = Drawings(staged, earlier=folder, known=before.get("figures"))
    try:
        write(staged, drawings)
        write_json(staged / _DRAWN, {**made, "figures": drawings.record})
        # What an earlier configuration drew and this one does not must not stay: it may be images of patients.
        replace_files(staged, folder)
    finally:
        shutil.rmtree(staged)
    return folder / REPORT_FILE


def _code() -> str:
    """A digest of what draws and writes: another version of it writes anew."""
    rooms = [Path(str(room.__file__)).parent for room in (findings, report, schema, visualization)]
    files = [file for room in rooms for file in sorted(room.iterdir()) if file.is_file()]
    return sha256_of_json([sha256_of_file(file) for file in files])
