"""What a mapping says of a table: images with labels and covariates, findings with boxes. No image is opened."""

__all__ = ["Annotations", "checked_annotations", "MISSING", "read_annotations", "table_name"]

import glob
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, describe
from mammosae_plugin.datasets.box_columns import boxes_of_table
from mammosae_plugin.datasets.concepts import Concept, nearest_names
from mammosae_plugin.datasets.dicom_columns import find_files, read_columns
from mammosae_plugin.datasets.label_columns import MISSING, LabelColumns
from mammosae_plugin.datasets.mapped_table import MappedTable
from mammosae_plugin.datasets.mapping import RESERVED, ImageMapping, TextColumn, columns_of, filled, reader
from mammosae_plugin.datasets.splits import SPLITS, TEST, TRAINING, make_split, read_split, split_word
from mammosae_plugin.datasets.table_files import read_tables
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)

_SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
_DEFAULT_SHARES = {TRAINING: 0.8, TEST: 0.2}


@dataclass(frozen=True)
class Annotations:
    """A table, understood.

    Attributes:
        mapping: how it was read.
        root: the data's folder.
        images: one row per image, in the table's order: image_id, patient_id, split, then exam_id, laterality and view
            where the mapping names them, covariates (numbers as float64 with NaN, categories as text with ""), the
            class number of every label (-1 where it is missing), and `file`, relative to root.
        findings: one row per finding: image_id, the class numbers (-1 where the row does not tell the label), xmin,
            ymin, xmax, ymax (float64, xyxy with the first pixel 0, in the pixels that `mapping.boxes.pixels` says; NaN
            without a box), `mask`, a file relative to root or "", and `line`, that of the table.
        concepts: what the labels are of.
        sizes: (n_findings, 2) height and width of the original image where the mapping names their columns (NaN where
            they are not known), else None.
    """

    mapping: ImageMapping
    root: Path
    images: pd.DataFrame
    findings: pd.DataFrame
    concepts: tuple[Concept, ...]
    sizes: npt.NDArray[np.float64] | None = None

    @property
    def missing(self) -> dict[str, int]:
        """Of how many images each label is missing."""
        return {one.name: int((self.images[one.name] == MISSING).sum()) for one in self.concepts}


def read_annotations(mapping: ImageMapping, root: Path) -> Annotations:
    """Read what a mapping says of a table.

    Raises:
        DatasetError: the table is missing or wrong; the message lists everything that is wrong, with line numbers.
        InputError: a reader that is not known, or a package that is not installed.
    """
    annotations, problems = checked_annotations(mapping, root)
    if problems:
        raise DatasetError(f"{table_name(mapping)}: " + "; ".join(problems))
    return annotations


def table_name(mapping: ImageMapping) -> str:
    """What messages call the table."""
    return ", ".join(Path(name).name for name in mapping.table) or f"the table of the reader {mapping.reader}"


def checked_annotations(mapping: ImageMapping, root: Path) -> tuple[Annotations, list[str]]:
    """The same, and what is wrong with it, so that other problems can be told with these.

    Raises:
        DatasetError: the table cannot be read, lacks columns or has no rows.
    """
    table, files = _table(mapping, root)
    reading = _Reading(mapping, root, table, files)
    found = Annotations(mapping, root, reading.images, reading.findings, reading.concepts, reading.sizes)
    return found, reading.problems


def _table(mapping: ImageMapping, root: Path) -> tuple[pd.DataFrame, Sequence[str]]:
    """The rows that are kept, and the file of each; refused where columns are missing."""
    named = mapping.columns()
    files: list[str] = []
    if mapping.reader is not None:
        table = reader(mapping.reader)(root)
        if isinstance(table.index, pd.RangeIndex) and table.index.start == 0:
            table = table.set_axis(table.index + 2)
    else:
        table, files = read_tables(root, mapping.table, named)
    if mapping.dicom is not None and mapping.dicom.files is not None:
        table = find_files(table, mapping.dicom, root)
    of_headers = mapping.dicom.columns if mapping.dicom is not None else ()
    if missing := [column for column in named if column not in table.columns and column not in of_headers]:
        there = [str(name) for name in table.columns]
        unsaid = _NO_SPLIT if "split" in missing and "split" not in mapping.model_fields_set else ""
        listed = ", ".join(f"{name} ({named[name]}){nearest_names(name, there)}" for name in missing) + unsaid
        what = f"{len(missing)} columns are missing" if len(missing) > 1 else "a column is missing"
        raise DatasetError(f"{table_name(mapping)}: {what} that the mapping names: {listed}")
    kept = np.ones(len(table), dtype=bool)
    for column, cells in mapping.keep.items():
        kept &= table[column].isin(cells).to_numpy(dtype=bool)
    if not kept.any():
        raise DatasetError(f"{table_name(mapping)}: no row is left" + (" that `keep` keeps" if len(table) else ""))
    return table[kept], [file for file, keep in zip(files, kept, strict=True) if keep] if files else ()


class _Reading(MappedTable):
    """The tables of images and findings made from the text of a table, and every problem met on the way."""

    def __init__(self, mapping: ImageMapping, root: Path, table: pd.DataFrame, files: Sequence[str]) -> None:
        super().__init__(table, mapping, files)
        self.root = root
        self.report(self.table.duplicated().to_numpy(), "rows repeat an earlier row exactly", advice="delete them")
        self.table = raw = self._with_headers()
        own = self._own_columns()
        self.labels = LabelColumns(self)
        self.concepts: tuple[Concept, ...] = ()
        self.table = own  # whose columns bear our names
        self.check_ids()
        covariates = self._covariates(raw)
        of_image = self._of_images(own, covariates)
        by_image = own["image_id"].map({name: at for at, name in enumerate(of_image["image_id"])}).to_numpy()
        self.by_image = np.asarray(by_image, dtype=np.intp)
        images = self.labels.of_images(self.by_image, of_image)
        self._split(raw, images)
        self.apart(own["image_id"], own["patient_id"], "image ids stand under more than one patient", _OWN_ID)
        self._files_of_images(raw, images)
        self.table = raw
        self.findings, boxed, masked = self._findings(own)
        self.concepts = tuple(
            one if not one.is_binary else self.labels.concept(one.name, boxes=boxed[one.name], masks=masked[one.name])
            for one in self.labels.concepts
        )
        used = (images["split"] != "").to_numpy(dtype=bool)
        self.images = images[used].reset_index(drop=True)
        kept = used[self.findings.pop("image").to_numpy()]
        sizes = self._sizes()
        self.sizes = None if sizes is None else sizes[self.findings["row"].to_numpy()[kept]]
        self.findings = self.findings[kept].drop(columns="row").reset_index(drop=True)

    # -- columns -------------------------------------------------------------------------------------------------------

    def _own_columns(self, wanted: Collection[str] = RESERVED) -> pd.DataFrame:
        """What rows are of, in columns with our names."""
        found = {}
        for name in (name for name in RESERVED if name in wanted):
            column = getattr(self.mapping, name)
            if name == "split":
                found[name] = pd.Series("", index=self.table.index, dtype=object)
            elif isinstance(column, TextColumn):
                text = self.meanings(self.cells(column.column), column.values)
                found[name] = text.map(lambda cell: _SIDES.get(cell.lower(), cell)) if name == "laterality" else text
            elif column is not None:
                found[name] = self.cells(column)
        return pd.DataFrame(found, index=self.table.index)

    def _with_headers(self) -> pd.DataFrame:
        """The table, with the columns that `dicom` reads from the headers of its image files."""
        how, table = self.mapping.dicom, self.table
        if how is None or how.files is not None:
            return table
        if twice := [column for column in how.columns if column in table.columns]:
            raise DatasetError(f"dicom: the table has {', '.join(twice)} itself; name what the headers say otherwise")
        pattern = self.mapping.image
        try:
            own = self._own_columns(columns_of(pattern)) if "{" in pattern else table[:0]
            both = pd.concat([own, table[table.columns.difference(own.columns, sort=False)]], axis=1)
            files = self.cells(pattern, table if "{" not in pattern else both).map(_as_path)
        except KeyError as error:
            what = "image needs what `dicom` reads from the headers of these very files"
            raise DatasetError(f"{what}; let image name columns of the table, or give dicom.files") from error
        if any(sign in pattern for sign in "*?"):
            places = _Places(self.root)
            files = files.map(lambda file: next(iter(places.fitting(file)), file))
        headers = read_columns(files.tolist(), how, self.root).set_axis(table.index)
        return pd.concat([table, headers], axis=1)

    # -- images --------------------------------------------------------------------------------------------------------

    def _of_images(self, own: pd.DataFrame, covariates: pd.DataFrame) -> pd.DataFrame:
        """One row per image: ids, side, view and covariates, which its rows must agree on."""
        for name in ("exam_id", "laterality", "view"):
            if name in own.columns:
                self.alike(own["image_id"], own[name], name)
        if self.mapping.covariates != "all":
            for name in self.mapping.covariates:
                self.alike(own["image_id"], covariates[name], name)
        both = own.join(covariates)
        first = both.where(both != "").groupby("image_id", sort=False, dropna=False).first().reset_index()
        of_image: pd.DataFrame = first[list(both.columns)].fillna("").astype(object)
        for name in map(str, covariates.columns):
            of_image[name] = self._typed(name, of_image[name], both[name])
        return of_image

    def _covariates(self, raw: pd.DataFrame) -> pd.DataFrame:
        """The text of every covariate, by row."""
        declared = self.mapping.covariates
        if declared != "all":
            columns = {
                name: self.meanings(self.cells(one.column or name, raw), one.values) for name, one in declared.items()
            }
            return pd.DataFrame(columns, index=raw.index)
        used = {*self.mapping.columns(), *self.mapping.labels, *BOX_COLUMNS, *self.table.columns}
        others = [name for name in raw.columns if name not in used]
        per_image = raw.groupby(self.table["image_id"], sort=False)
        alike = [name for name in others if int(per_image[name].nunique().max()) == 1]
        return pd.DataFrame({name: self.meanings(raw[name], {}) for name in alike}, index=raw.index)

    def _typed(self, name: str, text: "pd.Series[Any]", of_rows: "pd.Series[Any]") -> "pd.Series[Any]":
        """Numbers as float64, NaN where nothing stands; categories as text."""
        declared = None if self.mapping.covariates == "all" else self.mapping.covariates[name].kind
        values = pd.to_numeric(text, errors="coerce").astype(np.float64)
        rows = pd.to_numeric(of_rows, errors="coerce")
        no_number = ((of_rows != "") & ~np.isfinite(rows)).to_numpy(dtype=bool)

        def cell(row: int) -> str:
            return f"{of_rows.iloc[row]!r} in {self.line(row)}"

        if declared == "number":
            hint = "write 12.5 where a spreadsheet wrote 12,5, or tell by `values` or `missing` what they mean"
            self.report(no_number, f"{name} values are no numbers", cell, hint)
            return values
        if declared == "category" or (of_rows == "").all():
            return text
        if no_number.any():
            n_said = int((of_rows != "").sum())
            commas = of_rows[no_number].str.fullmatch(r"-?\d*,\d+").any()
            if commas or no_number.sum() <= n_said / 10:
                examples = [cell(row) for row in np.flatnonzero(no_number)[:3]]
                what = describe(int(no_number.sum()), f"of {n_said} {name} values are no numbers", examples)
                hint = "; write 12.5 where a spreadsheet wrote 12,5" if commas else ""
                logger.warning("%s: taken as a category; declare it as number or category%s", what, hint)
            return text
        return values

    def _split(self, raw: pd.DataFrame, images: pd.DataFrame) -> None:
        """The split of every image, by column, file or draw; "" where a file does not name it."""
        split = self.mapping.split
        if split.column is not None:
            by_cell = {cell: split_word(part) for part, cells in split.values.items() for cell in cells}
            text = self.cells(split.column, raw)
            self.table = self.table.assign(split=text)
            found = text.map(lambda cell: by_cell.get(cell, "") if by_cell else _split_or_nothing(cell))
            advice = f"write {', '.join(by_cell or SPLITS)}, or say by split.values what they mean"
            self.report((found == "").to_numpy(), "rows have a split that is not known", self.cell("split"), advice)
            self.table = self.table.assign(split=found)
            known = pd.DataFrame({"image_id": self.table["image_id"], "split": found})[(found != "").to_numpy()]
            self.alike(known["image_id"], known["split"], "split")
            images["split"] = images["image_id"].map(known.drop_duplicates("image_id").set_index("image_id")["split"])
            images["split"] = images["split"].fillna(TRAINING)  # of those with a problem
        else:
            try:
                self._given(raw, images) if split.file is not None else self._drawn(raw, images)
            except InputError as error:
                self.problems.append(f"split: {error}")
                images["split"] = TRAINING
        of_rows = images["split"].iloc[self.by_image]
        self.apart(self.table["patient_id"], of_rows, "patients are in more than one split", _ONE_SPLIT)

    def _given(self, raw: pd.DataFrame, images: pd.DataFrame) -> None:
        file = str(self.mapping.split.file)
        given = read_split(self.root / file)
        keys = [name for name in given.columns if name != "split"]
        known = self._texts(raw, images, keys, f"the split file {file}")
        parts = dict(zip(given[keys].itertuples(index=False, name=None), given["split"], strict=True))
        images["split"] = [parts.get(row, "") for row in known.itertuples(index=False, name=None)]
        left_out = images.loc[images["split"] == "", "image_id"]
        if len(left_out) == len(images):
            raise InputError(
                f"the split file {file} names none of the images by {', '.join(keys)} (it has "
                f"{'/'.join(given[keys].iloc[0])}, the table {'/'.join(known.iloc[0])})"
            )
        if len(left_out):
            logger.warning("%d of %d images are left out: %s does not name them", len(left_out), len(images), file)

    def _drawn(self, raw: pd.DataFrame, images: pd.DataFrame) -> None:
        make = self.mapping.split.make
        assert make is not None  # one of the three, as the mapping has seen to
        columns = list(dict.fromkeys([*make.by, *make.stratify, *make.held_out]))
        known = self._texts(raw, images, columns, "split.make")
        for name in set(make.stratify) & set(self.mapping.labels):  # of the group: its highest, where it is known
            groups = images[name].groupby([known[column] for column in make.by]).transform("max")
            known[name] = groups.where(groups != MISSING).astype(object)
        for name in set(make.stratify) - set(self.mapping.labels):
            known[name] = known[name].where(known[name] != "")
        shares = make.shares or ({TRAINING: 1.0} if make.held_out else _DEFAULT_SHARES)
        drawn = make_split(
            known, by=make.by, stratify=make.stratify, held_out=make.held_out, shares=shares, seed=make.seed
        )
        parts = dict(zip(drawn[list(make.by)].itertuples(index=False, name=None), drawn["split"], strict=True))
        images["split"] = [parts[row] for row in known[list(make.by)].itertuples(index=False, name=None)]

    def _texts(self, raw: pd.DataFrame, images: pd.DataFrame, names: Sequence[str], what: str) -> pd.DataFrame:
        """Columns of images, by our names or by the table's, as text."""
        first = np.unique(self.by_image, return_index=True)[1]
        found = {}
        for name in names:
            if name in self.table.columns or (name not in raw.columns and name in images.columns):
                found[name] = images[name].map(str)
            elif name in raw.columns:
                self.alike(self.table["image_id"], raw[name], name)
                found[name] = raw[name].iloc[first].reset_index(drop=True)
            else:
                there = [*map(str, images.columns), *map(str, raw.columns)]
                raise InputError(f"{what} names {name!r}, which the table lacks{nearest_names(name, there)}")
        return pd.DataFrame(found)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _files_of_images(self, raw: pd.DataFrame, images: pd.DataFrame) -> None:
        own = self.table  # ids hide columns of the table that bear the same names
        self.both = pd.concat([own, raw[raw.columns.difference(own.columns, sort=False)]], axis=1)
        pattern = self.mapping.image
        text = self.cells(pattern, raw if "{" not in pattern else self.both).map(_as_path)
        self.report((text == "").to_numpy(), "rows name no image file", advice="fill it in, or leave the rows out")
        self.alike(own["image_id"], text, "image files")
        found = text.iloc[np.unique(self.by_image, return_index=True)[1]].reset_index(drop=True)
        if any(sign in pattern for sign in "*?"):
            places = _Places(self.root)
            several = [(file, places.fitting(file)) for file in found]
            if odd := [file for file, there in several if len(there) > 1]:
                self.problems.append(describe(len(odd), "images have several files", odd, "make the pattern narrower"))
            found = pd.Series([there[0] if there else file for file, there in several], dtype=object)
        images["file"] = found
        if len(twice := images.loc[images["file"].duplicated() & (images["file"] != ""), "file"].unique()):
            self.problems.append(
                describe(len(twice), "image files stand under more than one image_id", twice, "give each one id")
            )

    def _masks(self) -> dict[int, list[tuple[str, tuple[str, ...]]]]:
        """By row its masks: a file, and the labels that it is of. A file of several rows of an image comes once."""
        if self.mapping.masks is None:
            return {}
        pattern, places = self.mapping.masks.image, _Places(self.root)
        is_column = "{" not in pattern
        per_label = "label" in columns_of(pattern)
        found: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
        at: dict[tuple[int, str], tuple[int, int]] = {}
        lost: list[str] = []
        cells = self.table[pattern].to_numpy(dtype=object) if is_column else None
        records = None if is_column else self.both.to_dict("records")
        for row in np.flatnonzero(self.labels.located.any(axis=1)).tolist():
            of = tuple(self.labels.names_at(row))
            for label in of if per_label else ("",):
                names = (label,) if per_label else of
                if cells is not None:
                    listed = [_as_path(one) for one in str(cells[row]).split(";") if one.strip()]
                    files = [one for one in listed if places.fitting(glob.escape(one))]
                    lost += [f"{one} in {self.line(row)}" for one in listed if one not in files]
                else:
                    assert records is not None
                    escaped = {str(name): glob.escape(str(value)) for name, value in records[row].items()}
                    files = places.fitting(_as_path(filled(pattern, {**escaped, "label": glob.escape(label)})))
                for file in files:
                    key = (int(self.by_image[row]), file)
                    if key not in at:
                        at[key] = row, len(found.setdefault(row, []))
                        found[row].append((file, names))
                    else:
                        first, place = at[key]
                        known = found[first][place][1]
                        found[first][place] = file, (*known, *(name for name in names if name not in known))
        if not found and not lost and self.labels.located.any():
            logger.warning("masks: no file under %s fits %s, so no finding has a mask", self.root, pattern)
        if lost:
            self.problems.append(describe(len(lost), f"mask files are missing under {self.root}", lost))
        return found

    # -- findings ------------------------------------------------------------------------------------------------------

    def _findings(self, own: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, bool], dict[str, bool]]:
        """One row per finding, and which labels have boxes and masks.

        A row of the table is a row here; where it has several boxes or masks, one for each. What is 1 in the row and
        has no place (a label that is not located) is then told by a row of its own, and by these not.
        """
        boxes = boxes_of_table(self, self.mapping.boxes) if self.mapping.boxes is not None else {}
        masks = self._masks()
        names = list(self.labels.binary)
        rows: list[int] = []
        told: list[Collection[str] | None] = []
        places: list[npt.NDArray[np.float64]] = []
        files: list[str] = []
        nowhere = np.full(4, np.nan)
        boxed, masked, n_of_nothing = dict.fromkeys(names, False), dict.fromkeys(names, False), 0

        def add(row: int, tells: Collection[str] | None, box: npt.NDArray[np.float64] | None, mask: str) -> None:
            rows.append(row)
            told.append(tells)
            places.append(nowhere if box is None else box)
            files.append(mask)

        for row in range(len(own)):
            located = self.labels.names_at(row) if row in boxes or row in masks else ()
            tells: set[str] = set()
            for box, mask in zip_longest(boxes.get(row, ()) if located else (), masks.get(row, ())):
                of = located if mask is None else mask[1]
                add(row, of, box, "" if mask is None else mask[0])
                tells.update(of)
                for name in of:
                    boxed[name] |= True
                    masked[name] |= mask is not None
            n_of_nothing += 0 if located else len(boxes.get(row, ()))
            rest = set(self.labels.names_at(row, located=False)) - tells
            if not tells or rest:
                add(row, rest if tells else None, None, "")
        if n_of_nothing:
            logger.info("%d boxes are of none of the labels and are left out", n_of_nothing)
        at = np.asarray(rows, dtype=np.intp)
        found = pd.DataFrame(
            {"row": at, "image": self.by_image[at], "image_id": own["image_id"].to_numpy(dtype=object)[at]}
        )
        for name, values in self.labels.of_rows.items():
            found[name] = values[at]
        for number, own_labels in enumerate(told):
            for name in names if own_labels is not None else ():
                if name in (own_labels or ()):
                    found.at[number, name] = 1
                elif found.at[number, name] == 1:
                    found.at[number, name] = MISSING
        found[list(BOX_COLUMNS)] = np.stack(places)
        found["mask"], found["line"] = files, self.lines[at]
        return found, boxed, masked

    def _sizes(self) -> npt.NDArray[np.float64] | None:
        """(n_rows, 2) height and width of the original image."""
        if self.mapping.boxes is None or self.mapping.boxes.size is None:
            return None
        values, _, no_numbers = self.numbers(self.mapping.boxes.size, np.ones(len(self.table), dtype=bool))
        self.report_no_numbers(self.mapping.boxes.size, no_numbers)
        return values


class _Places:
    """Which files lie under a folder; every folder is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[str, list[str]] = {}

    def fitting(self, pattern: str) -> list[str]:
        """The files that fit a pattern relative to root, in the order of their names."""
        folder, name = os.path.split(pattern)
        if glob.has_magic(folder) and glob.has_magic(_unescaped(folder)):
            there = glob.glob(pattern, root_dir=self.root)
            return sorted(there)
        folder = _unescaped(folder)
        if folder not in self.listed:
            try:
                self.listed[folder] = sorted(os.listdir(self.root / folder))
            except OSError:
                self.listed[folder] = []
        return [os.path.join(folder, one) for one in self.listed[folder] if fnmatchcase(one, name)]


def _unescaped(pattern: str) -> str:
    """A pattern as `glob.escape` found it."""
    for sign in "*?[":
        pattern = pattern.replace(f"[{sign}]", sign)
    return pattern


def _as_path(text: str) -> str:
    """A path as tables write it: with backslashes, a leading ./ or line breaks."""
    return text.strip().replace("\\", "/").removeprefix("./")


def _split_or_nothing(cell: str) -> str:
    try:
        return split_word(cell)
    except InputError:
        return ""


_NO_SPLIT = "; name the column of the split, or let it be drawn: split: {make: {}}"
_OWN_ID = "give every image an id of its own"
_ONE_SPLIT = "give all rows of a patient the same split"
