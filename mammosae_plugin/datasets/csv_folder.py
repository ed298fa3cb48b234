"""A folder of PNG images and one table of labels, with any concepts: what is needed to study images of one's own."""

__all__ = ["CSV_FOLDER", "CsvFolder", "CsvFolderSettings", "IMAGE_FOLDER", "Labels", "LabelSettings", "TABLE_FILE"]

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from mammosae_plugin.arguments import between
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, MammogramDataset, Unit
from mammosae_plugin.datasets.boxes import Originals, are_shares, changes, report_other_pixels
from mammosae_plugin.datasets.concepts import ABSENT, PRESENT, Concept, Kind, nearest_names
from mammosae_plugin.datasets.csv_files import read_csv
from mammosae_plugin.datasets.image_files import checked_size, find_images
from mammosae_plugin.datasets.registry import DatasetKind, OwnDataSettings
from mammosae_plugin.datasets.table_checks import MISSING_TEXT, SPLITS, TableChecks, any_of
from mammosae_plugin.files import local_path
from mammosae_plugin.validation import Settings

logger = logging.getLogger(__name__)

TABLE_FILE, IMAGE_FOLDER = "images.csv", "images"
_IDS = ("image_id", "patient_id", "split")
_RESERVED = {*_IDS, *BOX_COLUMNS, "image_row"}


class LabelSettings(Settings):
    """What one column of labels means."""

    kind: Kind = Field(
        "binary", description="binary: 0 or 1; graded: more classes, in an order; multiclass: more, without one."
    )
    classes: tuple[str, ...] | None = Field(
        None, description="The names of the classes, in the order of their numbers; graded ones may do without."
    )

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        if self.kind == "multiclass" and self.classes is None:
            raise ValueError("a multiclass label needs the names of its `classes`")
        if self.classes is not None:
            self.concept("label", len(self.classes))
        return self

    def concept(self, name: str, n_classes: int, *, boxes: bool = False) -> Concept:
        """The concept that a column of this name is about, with so many classes where they have no names."""
        unnamed = (ABSENT, PRESENT) if self.kind == "binary" else tuple(map(str, range(n_classes)))
        return Concept(name, self.kind, self.classes or unnamed, boxes=boxes)


def _written_out(label: Any) -> Any:
    """The section that a kind alone, or the names of classes alone, stand for."""
    if isinstance(label, str):
        return {"kind": label}
    if isinstance(label, (list, tuple)):
        return {"kind": "binary" if len(label) == 2 else "multiclass", "classes": label}
    return {} if label is None else label


def _by_name(labels: Any) -> Any:
    return dict.fromkeys(labels, "binary") if isinstance(labels, (list, tuple)) else labels


Labels = Annotated[
    dict[str, Annotated[LabelSettings, BeforeValidator(_written_out)]], BeforeValidator(_by_name), Field(min_length=1)
]


class CsvFolder(MammogramDataset):
    """Images from a table and `images/<image_id>`, 8-bit PNG all of one size, prepared as the network takes them.

    The table has a row per image, or several where an image has several boxes, and the columns image_id (the ending
    .png may be left out), patient_id, split ("training" or "test"), one per label, and where there are boxes xmin,
    ymin, xmax, ymax in pixels of the images. A box is of those labels of two classes that are 1 in its row; an image
    has such a label if any of its rows has it. What else is the same in all rows of an image (view, age, machine, ...)
    is kept in `images`. laterality (L, R) and view, where they are there, say which images are alike. Every problem
    found is named in one error.

    Args:
        root: the folder of the table and the images.
        labels: the columns of labels: their names alone, which are then 0 or 1; or by name "binary", "graded" (whole
            numbers from 0), the names of the classes, or a `LabelSettings`.
        table: the table, absolute or relative to `root`.
        images: the folder of the images, absolute or relative to `root`.
        image_size: (height, width) of every image, and of the network's input.
        unit: "image" or "finding_row", as for `VinDrMammo`.
        box_tolerance: how far a box may reach over its image, as a share of the side; it is clipped.
        max_missing_share: the share of image files that may be missing (0 to 1). `screen_images` lists them.
        about: what the images are; unless told otherwise, images that may not be passed on.

    Raises:
        DatasetError: the table or folder is missing or wrong; the message lists everything that is wrong.
        InputError: an argument is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        labels: Sequence[str] | Mapping[str, Any],
        *,
        table: str | os.PathLike[str] = TABLE_FILE,
        images: str | os.PathLike[str] = IMAGE_FOLDER,
        image_size: tuple[int, int] = (1520, 912),
        unit: Unit = "image",
        box_tolerance: float = 0.1,
        max_missing_share: float = 0.0,
        about: DatasetAbout | None = None,
    ) -> None:
        meanings = _OnlyLabels(labels=labels).labels
        for name, share in (("box_tolerance", box_tolerance), ("max_missing_share", max_missing_share)):
            between(share, name, 0, 1)
        size = checked_size(image_size)
        folder = local_path(root)
        if not folder.is_dir():
            raise DatasetError(f"the data folder {folder} does not exist or is no folder")
        file = folder / local_path(table)
        checked = _Checked(_read_table(file, meanings), meanings, size, box_tolerance)
        rows, first = checked.table, ~checked.table["image_id"].duplicated().to_numpy()
        paths = find_images(
            folder / local_path(images),
            [("", name) for name in rows.loc[first, "image_id"]],
            size,
            checked.problems,
            max_missing_share,
        )
        if checked.problems:
            raise DatasetError(f"{file.name}: " + "; ".join(checked.problems))
        by_image = rows[first].reset_index(drop=True)[[*_IDS, *checked.covariates]]
        labelled = checked.findings.groupby("image_id", sort=False)[list(meanings)].max()
        super().__init__(
            images=by_image.join(labelled, on="image_id"),
            findings=checked.findings,
            concepts=checked.concepts,
            image_size=size,
            unit=unit,
            paths=paths,
            box_changes=checked.box_changes,
        )
        self._about = about or DatasetAbout(name="images", title="images of one's own")
        if self.n_clipped_boxes:
            logger.info("%d boxes overhang their image and were clipped", self.n_clipped_boxes)

    @property
    def about(self) -> DatasetAbout:
        """What the images are, as it was told."""
        return self._about


class _OnlyLabels(Settings):
    labels: Labels


def _read_table(file: Path, labels: Mapping[str, LabelSettings]) -> pd.DataFrame:
    """The table with every cell as text, and the ending of image ids; the index is the number of its line."""
    table = read_csv(file, (*_IDS, *labels, *BOX_COLUMNS))
    if reserved := [name for name in labels if name in _RESERVED]:
        raise DatasetError(f"{file.name}: {', '.join(reserved)} cannot be a label; name the columns of labels")
    missing = [name for name in (*_IDS, *labels) if name not in table.columns]
    if boxes := [name for name in BOX_COLUMNS if name in table.columns]:
        missing += [name for name in BOX_COLUMNS if name not in boxes]
    if missing:
        there = [str(name) for name in table.columns]
        listed = ", ".join(name + nearest_names(name, there) for name in missing)
        raise DatasetError(f"{file.name}: {len(missing)} columns are missing: {listed}")
    bare = ~table["image_id"].str.lower().str.endswith(".png") & (table["image_id"] != "")
    table["image_id"] += np.where(bare, ".png", "")
    return table


class _Checked(TableChecks):
    """The tables of labels and boxes made from the text of the table, and every problem met on the way."""

    def __init__(
        self, table: pd.DataFrame, labels: Mapping[str, LabelSettings], image_size: tuple[int, int], tolerance: float
    ) -> None:
        super().__init__(table)
        self.check_ids()
        self.check_values("split", SPLITS)
        self.report(self.table.duplicated().to_numpy(), "rows repeat an earlier row exactly", advice="delete them")
        self.check_patients()
        self.check_groups("image_id", "split", "images have rows with different split", "give them the same")
        self.findings = pd.DataFrame({"image_id": self.table["image_id"]})
        self.concepts: list[Concept] = []
        for name, label in labels.items():
            self.findings[name], n_classes = self._classes(name, label)
            self.concepts.append(label.concept(name, n_classes))
            if label.kind != "binary":
                self.check_groups("image_id", name, f"images have rows with different {name}", "give them the same")
        boxes = self._boxes(image_size)
        self.findings[list(BOX_COLUMNS)], self.box_changes = self._usable(boxes, image_size, tolerance)
        has_box = self.findings["xmin"].notna()
        self.concepts = [
            labels[one.name].concept(
                one.name, one.n_classes, boxes=one.is_binary and bool((has_box & (self.findings[one.name] == 1)).any())
            )
            for one in self.concepts
        ]
        others = [name for name in self.table.columns if name not in (*_IDS, *labels, *BOX_COLUMNS)]
        alike = self.table.groupby("image_id", sort=False)[others].nunique().max() if others else pd.Series(dtype=int)
        self.covariates = [name for name in others if alike[name] == 1]
        for name in self.covariates:
            self.table[name] = _typed(self.table[name])

    def _classes(self, name: str, label: LabelSettings) -> tuple[npt.NDArray[np.int64], int]:
        """The class number of every row, and how many classes there are."""
        text = self.table[name]
        empty = text.str.lower().isin(MISSING_TEXT).to_numpy(dtype=bool) & ~text.isin(label.classes or ()).to_numpy()
        self.report(empty, f"rows have no {name}", advice="fill it in, or leave the images out")
        if label.classes is not None:
            numbers = {**{str(n): n for n in range(len(label.classes))}, **{c: n for n, c in enumerate(label.classes)}}
            found = text.map(numbers)
            wrong = found.isna().to_numpy() & ~empty
            advice = f"write {', '.join(label.classes[:-1])} or {label.classes[-1]}"
            self.report(wrong, f"{name} values are no class", self.cell(name), advice)
            return np.asarray(found.fillna(0).to_numpy(), dtype=np.int64), len(label.classes)
        if label.kind == "binary":
            return self.whole_numbers(text.where(~empty, "0"), name, range(2)), 2
        values = pd.to_numeric(text, errors="coerce")
        most = max(2, int(values[np.isfinite(values)].max())) if np.isfinite(values).any() else 2
        return self.whole_numbers(text.where(~empty, "0"), name, range(min(most, 99) + 1)), most + 1

    def _boxes(self, image_size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Boxes (n, 4) as the table has them, NaN where a row has none."""
        n = len(self.table)
        if not set(BOX_COLUMNS) <= set(self.table.columns):
            return np.full((n, 4), np.nan)
        boxes, empty, no_numbers = self.numbers(BOX_COLUMNS, np.ones(n, dtype=bool))
        self.report_no_numbers(BOX_COLUMNS, no_numbers)
        some = any_of(~empty)
        self.report(some & any_of(empty), "rows have a box with missing corners")
        binary = [concept.name for concept in self.concepts if concept.is_binary]
        nothing = ~any_of((self.findings[binary] == 1).to_numpy())
        self.report(some & nothing, "rows have a box but no label that is 1", advice="say what it is a box of")
        unknown = np.full((n, 4), np.nan)
        found = report_other_pixels(boxes, Originals(unknown, unknown[:, :2]), image_size, self.report)
        self.report(found.shares, are_shares(image_size))
        return boxes

    def _usable(
        self, boxes: npt.NDArray[np.float64], image_size: tuple[int, int], tolerance: float
    ) -> tuple[npt.NDArray[np.float64], pd.DataFrame]:
        """Boxes (n, 4) in their images; and what was done to each."""
        side = np.array(image_size[::-1], dtype=np.float64)
        low, high = boxes[:, :2], boxes[:, 2:]
        with np.errstate(invalid="ignore"):
            inverted = any_of(high <= low)
            outside = any_of((low < -tolerance * side) | (high > (1 + tolerance) * side) | (low >= side) | (high <= 0))
            clipped = any_of((low < 0) | (high > side))
        self.report(inverted, "boxes are inverted or have no area", advice="write xmin < xmax and ymin < ymax")
        height, width = image_size
        beyond = f"boxes reach more than {tolerance:.0%} of a side beyond the {height} x {width} image"
        self.report(outside & ~inverted, beyond)
        used = np.concatenate([low.clip(0, side), high.clip(0, side)], axis=1)
        never = np.zeros(len(boxes), dtype=bool)
        return used, changes(self.lines, boxes, mended=never, clipped=clipped, dropped={})


def _typed(text: "pd.Series[str]") -> "pd.Series[Any]":
    """A covariate as numbers, where every cell that says something is one."""
    missing = text.str.lower().isin(MISSING_TEXT)
    numbers = pd.to_numeric(text.where(~missing), errors="coerce")
    return numbers if numbers[~missing].notna().all() and not missing.all() else text


class CsvFolderSettings(OwnDataSettings):
    """A folder of PNG images and a table of labels."""

    kind: str = "csv"
    labels: Labels = Field(
        description="The table's columns of labels: a list of those that are 0 or 1, or by name binary, graded (whole "
        "numbers from 0) or the names of the classes.",
    )
    table: str = Field(
        TABLE_FILE,
        description="The table, relative to root or absolute; one row per image or box, with image_id, patient_id, "
        "split (training, test), the labels and, where there are boxes, xmin, ymin, xmax, ymax.",
    )
    images: str = Field(IMAGE_FOLDER, description="The folder of the images, relative to root or absolute.")


def _open(settings: CsvFolderSettings) -> CsvFolder:
    return CsvFolder(
        settings.root,
        settings.labels,
        table=settings.table,
        images=settings.images,
        image_size=settings.image_size,
        box_tolerance=settings.box_tolerance,
        max_missing_share=settings.max_bad_share,
        about=settings.about,
    )


CSV_FOLDER = DatasetKind("csv", CsvFolderSettings, _open)
