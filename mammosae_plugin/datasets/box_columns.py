"""From the text of columns or of JSON to boxes, as a mapping says that they are written."""

__all__ = ["boxes_of_table"]

import ast
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mammosae_plugin.datasets.mapped_table import MappedTable
from mammosae_plugin.datasets.mapping import BoxMapping
from mammosae_plugin.datasets.table_checks import any_of

Array = npt.NDArray[np.float64]
_KEYS = {"xyxy": ("xmin", "ymin", "xmax", "ymax"), "xywh": ("x", "y", "width", "height")}


def boxes_of_table(table: MappedTable, how: BoxMapping) -> dict[int, Array]:
    """The boxes (n, 4), xyxy with the first pixel 0, of every row that has some; what cannot be read is noted."""
    found = _of_columns(table, how.columns, how) if how.columns is not None else _of_json(table, how)
    return {row: _as_corners(boxes, how) for row, boxes in found.items()}


def _as_corners(boxes: Array, how: BoxMapping) -> Array:
    corners = boxes[:, [1, 0, 3, 2]] if how.form == "yxyx" else boxes.copy()
    if how.form == "xywh":
        corners[:, 2:] += corners[:, :2]
    return corners - how.origin


def _of_columns(table: MappedTable, columns: tuple[str, ...], how: BoxMapping) -> dict[int, Array]:
    needed = np.ones(len(table.table), dtype=bool)
    boxes, empty, no_numbers = table.numbers(columns, needed)
    table.report_no_numbers(columns, no_numbers)
    some = any_of(~empty)
    what = "rows have a box with missing sides" if how.form == "xywh" else "rows have a box with missing corners"
    table.report(some & any_of(empty), what)
    whole = some & ~any_of(empty) & ~any_of(no_numbers)
    return {row: boxes[row : row + 1] for row in np.flatnonzero(whole).tolist()}


def _of_json(table: MappedTable, how: BoxMapping) -> dict[int, Array]:
    column = str(how.json_column)
    text = table.meanings(table.table[column], {})
    wrong = np.zeros(len(text), dtype=bool)
    found: dict[int, Array] = {}
    for row in np.flatnonzero((text != "").to_numpy()).tolist():
        boxes = _parsed(text.iloc[row], how)
        wrong[row] = boxes is None
        if boxes is not None and len(boxes):
            found[row] = boxes
    table.report(
        wrong, f"{column} values are no list of boxes of four numbers", lambda row: f"{_short(text.iloc[row])} in "
        f"{table.line(row)}"
    )  # fmt: skip
    return found


def _short(cell: str) -> str:
    return repr(cell if len(cell) <= 60 else f"{cell[:59]}…")


def _parsed(cell: str, how: BoxMapping) -> Array | None:
    """The boxes (n, 4) of one cell as they are written; None where it holds none."""
    value: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and value and _is_number(value[0])):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return None
    boxes = [_four(one, how) for one in value]
    if any(box is None for box in boxes):
        return None
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _four(box: Any, how: BoxMapping) -> list[float] | None:
    """One box in the order of `form`; what names its parts is brought into it."""
    if isinstance(box, Mapping):
        named = next((keys for keys in _KEYS.values() if set(keys) <= box.keys()), None)
        if named is None:
            return None
        box = [box[key] for key in named]
        if not all(map(_is_number, box)):
            return None
        if named == _KEYS["xywh"] and how.form != "xywh":
            box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        elif named == _KEYS["xyxy"] and how.form == "xywh":
            box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        if how.form == "yxyx":
            box = [box[1], box[0], box[3], box[2]]
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    return [float(value) for value in box]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
