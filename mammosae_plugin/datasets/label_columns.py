"""From the text of columns to class numbers, as the labels of a mapping say; what is not told is missing."""

__all__ = ["LabelColumns", "MISSING"]

import ast
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin.datasets.concepts import Concept, nearest_names
from mammosae_plugin.datasets.mapped_table import MappedTable
from mammosae_plugin.datasets.mapping import LabelMapping
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)

MISSING = -1
Classes = npt.NDArray[np.int64]
_TRUTH = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}
_MOST_CLASSES = 1000
_SIDE_BY_SIDE = re.compile(r"""(['"])\s+(['"])""")  # entries as numpy prints them, which Python would join


class LabelColumns:
    """The labels of every row.

    Attributes:
        of_rows: by name the class numbers (n_rows,), -1 where the row does not tell it.
        concepts: what they are of.
        binary: the names of those with two classes.
        located: (n_rows, n_binary) whether a row has the label, and boxes in it are the label's.
    """

    def __init__(self, table: MappedTable) -> None:
        self._table, self._labels = table, table.mapping.labels
        self.of_rows: dict[str, Classes] = {}
        self.concepts: list[Concept] = []
        plain = {name: label for name, label in self._labels.items() if label.any_of is None}
        classes = {name: self._classes(name, label) for name, label in plain.items()}
        for name, label in self._labels.items():
            if label.any_of is not None:
                parts = [
                    self.of_rows[one] if one in plain else self._truth(table.table[one], one, None)
                    for one in label.any_of
                ]
                self.of_rows[name] = np.max(parts, axis=0)
                some_missing = (np.asarray(parts) == MISSING).any(axis=0)
                self.of_rows[name][(self.of_rows[name] == 0) & some_missing] = MISSING
        self.of_rows = {name: self.of_rows[name] for name in self._labels}
        for name, label in self._labels.items():
            try:
                self.concepts.append(label.concept(name, classes.get(name) or ("absent", "present")))
            except InputError as error:
                table.problems.append(str(error))
        self.binary = tuple(name for name, label in self._labels.items() if label.concept_kind == "binary")
        of_binary = [self.of_rows[name] == 1 for name in self.binary]
        self._present = np.stack(of_binary, axis=1) if of_binary else np.zeros((len(table.table), 0), dtype=bool)
        self.located = self._present & np.array([self._labels[name].located for name in self.binary], dtype=bool)

    def names_at(self, row: int, *, located: bool = True) -> list[str]:
        """The labels of two classes that a row has; those that have places, or all."""
        marks = (self.located if located else self._present)[row]
        return [self.binary[at] for at in np.flatnonzero(marks)]

    def of_images(self, by_image: npt.NDArray[np.intp], images: pd.DataFrame) -> pd.DataFrame:
        """The images with the class number of every label; rows of one image that disagree are noted.

        What an image has but one of its rows does not tell is filled in there, of labels that all rows share.

        Args:
            by_image: (n_rows,) the number of each row's image.
            images: one row per image, with image_id.
        """
        found = images.copy()
        rows_are_findings = self._table.mapping.boxes is not None or self._table.mapping.masks is not None
        for name, label in self._labels.items():
            of_rows = pd.Series(self.of_rows[name]).groupby(by_image)
            highest = np.array(of_rows.max(), dtype=np.int64)
            is_finding = label.concept_kind == "binary" and bool(
                rows_are_findings or label.contains or label.positive or label.any_of
            )
            if label.rows == "highest" or (label.rows is None and is_finding):
                if label.concept_kind == "binary":  # absent only where every row says so
                    highest[(highest == 0) & (of_rows.min().to_numpy() == MISSING)] = MISSING
            else:
                known = pd.Series([("" if one == MISSING else str(one)) for one in self.of_rows[name].tolist()])
                advice = f"give them the same, or set labels.{name}.rows: highest"
                what = f"images have rows with different {name}"
                self._table.apart(images["image_id"].iloc[by_image], known, what, advice)
                self.of_rows[name] = highest[by_image]
            found[name] = highest
        return found

    # -- cells ------------------------------------------------------------------------------------------------------

    def _classes(self, name: str, label: LabelMapping) -> tuple[str, ...] | None:
        """Read one column; the names of its classes where it has more than two or the mapping gives them."""
        pattern = label.column or name
        named = [
            word for words in (label.classes, label.positive, label.negative, label.contains) for word in words or ()
        ]
        text = self._table.meanings(self._table.cells(pattern), label.values, named)
        kind, classes = label.concept_kind, label.classes
        if label.empty is not None and kind != "binary":
            text = text.where(text != "", label.empty)
        if label.contains is not None:
            found = self._containing(text, name, label.contains, pattern)
        elif label.positive is not None:
            found = self._positive(text, name, label, pattern)
        elif kind == "binary":
            found = self._truth(text, name, classes)
        elif classes is None and kind == "graded":
            found, classes = self._grades(text, name)
        else:
            classes = classes or _distinct(text)
            found = self._named(text, name, classes)
        if label.empty is not None and kind == "binary":
            found = np.where((text == "").to_numpy(), label.class_number(label.empty), found)
        self.of_rows[name] = np.asarray(found, dtype=np.int64)
        return classes

    def _truth(self, text: "pd.Series[str]", name: str, classes: tuple[str, ...] | None) -> Classes:
        text = self._table.meanings(text, {}, classes or ())
        known = {**_TRUTH, **{one: number for number, one in enumerate(classes or ("absent", "present"))}}
        advice = f"write {classes[0]} or {classes[1]}" if classes else "write 1 and 0, or say which are `positive`"
        return self._looked_up(text, name, lambda cell: known.get(cell, known.get(_plain(cell).lower())), advice)

    def _named(self, text: "pd.Series[str]", name: str, classes: tuple[str, ...]) -> Classes:
        known = {one: number for number, one in enumerate(classes)}
        if not any(one.isdecimal() for one in classes):
            known |= {str(number): number for number in range(len(classes))}
        advice = f"write {', '.join(classes[:-1])} or {classes[-1]}, or say by `values` what it means"
        return self._looked_up(text, name, lambda cell: known.get(cell, known.get(_plain(cell))), advice)

    def _grades(self, text: "pd.Series[str]", name: str) -> tuple[Classes, tuple[str, ...]]:
        def grade(cell: str) -> int | None:
            plain = _plain(cell)
            return int(plain) if plain.isdecimal() and int(plain) < _MOST_CLASSES else None

        found = self._looked_up(text, name, grade, "write whole numbers from 0, or name the `classes`")
        return found, tuple(map(str, range(max(3, int(found.max(initial=0)) + 1))))

    def _positive(self, text: "pd.Series[str]", name: str, label: LabelMapping, pattern: str) -> Classes:
        positive, negative = label.positive or (), label.negative
        self._warn_of_nothing(name, "positive", positive, set(text), pattern)
        if negative is None:
            return np.where((text == "").to_numpy(), MISSING, text.isin(positive).to_numpy()).astype(np.int64)
        known = {**dict.fromkeys(negative, 0), **dict.fromkeys(positive, 1)}
        return self._looked_up(text, name, known.get, "name it in positive, negative or `missing`")

    def _containing(self, text: "pd.Series[str]", name: str, wanted: tuple[str, ...], pattern: str) -> Classes:
        codes, texts = pd.factorize(text)
        listed = [_listed(str(one)) for one in texts]
        unreadable = np.array([one is None for one in listed], dtype=bool)
        what = f"rows have a {name} that is no printed list"
        self._table.report(unreadable[codes], what, lambda row: f"{text.iloc[row]!r} in {self._table.line(row)}")
        self._warn_of_nothing(name, "contains", wanted, {entry for one in listed for entry in one or ()}, pattern)
        has = np.array([bool(set(wanted) & set(one or ())) for one in listed], dtype=np.int64)
        return np.where((text == "").to_numpy(), MISSING, has[codes])

    def _looked_up(self, text: "pd.Series[str]", name: str, look: Callable[[str], int | None], advice: str) -> Classes:
        codes, texts = pd.factorize(text)
        numbers = [MISSING if one == "" else look(str(one)) for one in texts]
        wrong = np.array([number is None for number in numbers], dtype=bool)[codes]
        self._table.report(
            wrong, f"{name} values are no class", lambda row: f"{text.iloc[row]!r} in {self._table.line(row)}", advice
        )
        return np.array([MISSING if number is None else number for number in numbers], dtype=np.int64)[codes]

    def _warn_of_nothing(self, name: str, field: str, wanted: tuple[str, ...], there: set[str], pattern: str) -> None:
        for one in wanted:
            if one not in there:
                logger.warning(
                    "labels.%s.%s: no cell of %s has %r%s", name, field, pattern, one, nearest_names(one, there)
                )

    def concept(self, name: str, **places: bool) -> Concept:
        """The concept of two classes with its boxes and masks."""
        label = self._labels[name]
        return label.concept(name, label.classes or ("absent", "present"), **places)


def _plain(cell: str) -> str:
    """A whole number as programs write it that take it for a fraction: 1 for 1.0."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", cell)


def _distinct(text: "pd.Series[str]") -> tuple[str, ...]:
    """The values of a column in order, of numbers in that of numbers."""
    values = sorted(set(text) - {""})
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
    return tuple(pd.Series(values, dtype=object)[numbers.argsort()] if numbers.notna().all() else values)


def _listed(cell: str) -> list[str] | None:
    """The entries of a printed list such as "['Mass', 'Calcification']", or of names between ; | and commas."""
    if cell[:1] not in ("[", "(", "{"):
        return [entry.strip() for entry in re.split(r"[;|,]", cell)] if cell else []
    value: Any = None
    cell = _SIDE_BY_SIDE.sub(r"\1, \2", cell)
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(cell)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(entry, (str, int, float)) for entry in value):
        return None
    return [str(entry).strip() for entry in value]
