"""VinDr-Mammo in the form in which Mammo-CLIP's users have it: one CSV with a row per finding, and 8-bit PNG images."""

import ast
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, MammogramDataset, Unit, describe
from mammosae_plugin.datasets.concepts import CONCEPTS, nearest_names
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)

ANNOTATION_FILE = "vindr_detection_v1_folds.csv"
IMAGE_FOLDER = "images_png"
SPLITS = ("training", "test")
PHANTOM_ID = "phantom_"
"""How the ids of phantom patients and images begin, and those of no hospital."""
_RESIZED = tuple(f"resized_{column}" for column in BOX_COLUMNS)
_REQUIRED = (
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "breast_birads",
    "split",
    *_RESIZED,
    *CONCEPTS,
    "No_Finding",
    "density",
)
Marks = npt.NDArray[np.bool_]
_MISSING_TEXT = ("", "nan", "none", "null", "na")


class VinDrMammo(MammogramDataset):
    """VinDr-Mammo from `vindr_detection_v1_folds.csv` and `images_png/<patient_id>/<image_id>`.

    Boxes are the file's `resized_*` columns, which are pixels of the prepared image (for the original data 1520 x 912).
    A box that overhangs its image by at most `box_tolerance` of the image's side is clipped and counted
    (`n_clipped_boxes`). The rows of both splits are checked, the images only of the split that is asked for; every
    problem found is named in one error. Whether an image can be read shows when it is read: see `screen_images`.

    Args:
        root: the folder that holds `images_png`.
        annotations: the annotation file, absolute or relative to `root`.
        image_size: (height, width) of every image, and of the network's input.
        split: "training", "test", or None for both.
        unit: "image" (one item per image; a finding is present when any row of the image has it) or "finding_row" (one
            item per row of the annotation file, as the published numbers were computed).
        box_tolerance: the overhang that is clipped, as a share of the image's side; more is an error.

    Raises:
        DatasetError: the file or folder is missing or wrong; the message lists everything that is wrong.
        InputError: an argument is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        annotations: str | os.PathLike[str] = ANNOTATION_FILE,
        image_size: tuple[int, int] = (1520, 912),
        split: str | None = None,
        unit: Unit = "image",
        box_tolerance: float = 0.05,
    ) -> None:
        if split is not None and split not in SPLITS:
            raise InputError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}, or None for both")
        folder = Path(root)
        if not folder.is_dir():
            raise DatasetError(f"the data folder {folder} does not exist or is no folder")
        file = folder / annotations
        table = _read_table(file)
        size = (int(image_size[0]), int(image_size[1]))
        checked = _Checked(table, size, box_tolerance)

        rows = np.ones(len(table), dtype=bool) if split is None else (table["split"] == split).to_numpy(dtype=bool)
        if not rows.any() and not checked.problems:
            checked.problems.append(f"no row has split {split!r}")
        first = rows & ~table["image_id"].duplicated().to_numpy()
        paths = _find_images(folder / IMAGE_FOLDER, table[first], size, checked.problems)
        if checked.problems:
            raise DatasetError(f"{file.name}: " + "; ".join(checked.problems))

        findings = checked.findings[rows].reset_index(drop=True)
        images = table.loc[first, ["image_id", "patient_id", "split", "laterality", "view"]].reset_index(drop=True)
        by_image = findings.groupby("image_id", sort=False)
        graded = by_image[["density", "birads"]].first()
        present = by_image[list(CONCEPTS)].max()
        images = images.join(graded.join(present), on="image_id")
        super().__init__(
            images=images,
            findings=findings,
            concepts=CONCEPTS,
            image_size=size,
            unit=unit,
            paths=paths,
            clipped=checked.clipped[rows],
        )
        if self.n_clipped_boxes:
            logger.info("%d boxes overhang their image and were clipped", self.n_clipped_boxes)
        if self.n_findings_without_box:
            logger.info("%d rows name a finding but have no box", self.n_findings_without_box)

    @property
    def name(self) -> str:
        """`vindr`, or `phantom` where every patient was drawn, which the ids say."""
        drawn = self.images["patient_id"].astype(str).str.startswith(PHANTOM_ID)
        return "phantom" if drawn.all() else "vindr"


def _read_table(file: Path) -> pd.DataFrame:
    """The annotation file with every cell as stripped text, so that ids such as 0012e34 stay what they are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with more fields than the header
            table = pd.read_csv(
                file, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False, encoding="utf-8-sig"
            )
    except FileNotFoundError as error:
        raise DatasetError(f"the annotation file {file} does not exist") from error
    except (
        OSError,
        UnicodeDecodeError,
        pd.errors.ParserError,
        pd.errors.ParserWarning,
        pd.errors.EmptyDataError,
    ) as error:
        raise DatasetError(
            f"the annotation file {file} cannot be read as CSV ({' '.join(str(error).split())})"
        ) from error
    missing = [column for column in _REQUIRED if column not in table.columns]
    if missing:
        listed = ", ".join(column + nearest_names(column, map(str, table.columns)) for column in missing)
        hint = ""
        if any(column in _RESIZED for column in missing) and set(BOX_COLUMNS) <= set(table.columns):
            hint = (
                "; the resized_* boxes are pixels of the prepared images and are not guessed from the original boxes: "
                "prepare the data first"
            )
        raise DatasetError(f"{file.name}: {len(missing)} columns are missing: {listed}{hint}")
    if table.empty:
        raise DatasetError(f"{file.name}: the file has no rows")
    return pd.DataFrame({name: table[name].fillna("").str.strip() for name in table.columns})


class _Checked:
    """The findings table made from the text of the annotation file, and every problem met on the way."""

    def __init__(self, table: pd.DataFrame, image_size: tuple[int, int], box_tolerance: float) -> None:
        self.problems: list[str] = []
        self._table = table
        self._check_texts()
        findings = pd.DataFrame({"image_id": table["image_id"]})
        findings["density"] = self._whole_numbers(table["density"], "density", range(4))
        birads = table["breast_birads"].str.replace(r"^bi-?rads\s*", "", case=False, regex=True)
        findings["birads"] = self._whole_numbers(birads, "breast_birads", range(1, 6)) - 1
        for concept in CONCEPTS:
            findings[concept] = self._whole_numbers(table[concept], concept, range(2))
        no_finding = self._whole_numbers(table["No_Finding"], "No_Finding", range(2)).astype(bool)
        self._check_labels(findings, no_finding)
        boxes, self.clipped = self._boxes(findings, image_size, box_tolerance)
        findings[list(BOX_COLUMNS)] = boxes
        self.findings = findings

    def _report(self, wrong: Marks, what: str, example: Callable[[int], str] | None = None) -> None:
        """Note `what` with the number of `wrong` rows; examples are line numbers unless `example` is given."""
        rows = np.flatnonzero(wrong)
        if len(rows):
            self.problems.append(describe(len(rows), what, map(example or self._line, rows[:3].tolist())))

    def _line(self, row: int) -> str:
        return f"line {row + 2}"  # as an editor counts the file's lines, the header being line 1

    def _cell(self, column: str) -> Callable[[int], str]:
        return lambda row: f"{self._table[column].iloc[row]!r} in {self._line(row)}"

    def _check_texts(self) -> None:
        table = self._table
        for column in ("patient_id", "image_id"):
            text = table[column]
            self._report((text == "").to_numpy(), f"rows have no {column}")
            unsafe = text.str.contains(r"[/\\]", regex=True) | text.isin([".", ".."])
            self._report(unsafe.to_numpy(), f"rows have a {column} that is no plain file name")
        allowed = {"split": SPLITS, "laterality": ("L", "R"), "view": ("CC", "MLO")}
        for column, values in allowed.items():
            wrong = (~table[column].isin(values)).to_numpy()
            self._report(wrong, f"rows have a {column} other than {', '.join(values)}", self._cell(column))
        content = [column for column in table.columns if not column.startswith("Unnamed:")]  # pandas' own row numbers
        self._report(table.duplicated(subset=content).to_numpy(), "rows repeat an earlier row exactly")
        self._report_groups("patient_id", "split", "patients are in both splits")
        self._report_groups("image_id", "patient_id", "image ids stand under more than one patient")
        for column in ("laterality", "view", "breast_birads", "density"):
            self._report_groups("image_id", column, f"images have rows with different {column}")

    def _report_groups(self, key: str, column: str, what: str) -> None:
        """Note the keys whose rows disagree about `column`."""
        pairs = self._table[[key, column]].drop_duplicates()
        repeated = pairs.loc[pairs[key].duplicated(), key].unique()
        if len(repeated):
            self.problems.append(describe(len(repeated), what, repeated))

    def _whole_numbers(self, text: "pd.Series[str]", column: str, allowed: range) -> npt.NDArray[np.int64]:
        """The column as int64; cells that are no allowed whole number are noted and become the smallest allowed one."""
        values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
        wrong = ~np.isin(values, np.asarray(allowed))
        self._report(wrong, f"{column} values are not {allowed[0]}..{allowed[-1]}", self._cell(column))
        return np.where(wrong, allowed[0], values).astype(np.int64)

    def _check_labels(self, findings: pd.DataFrame, no_finding: Marks) -> None:
        present = findings[list(CONCEPTS)].to_numpy() == 1
        positive = _any_of(present)
        self._report(positive & no_finding, "rows have No_Finding together with a finding")
        self._report(~positive & ~no_finding, "rows have neither a finding nor No_Finding")
        of_image = pd.DataFrame({"id": findings["image_id"], "positive": positive, "none": no_finding})
        mixed = of_image[~(positive & no_finding)].groupby("id", sort=False)[["positive", "none"]].any().all(axis=1)
        if mixed.any():
            what = "images have a No_Finding row beside a finding row"
            self.problems.append(describe(int(mixed.sum()), what, mixed.index[mixed]))
        if "breast_density" in self._table.columns:
            letter = self._table["breast_density"].str.upper().str.extract(r"\b([A-D])$", expand=False)
            other = (letter.notna() & (letter != findings["density"].map(dict(enumerate("ABCD"))))).sum()
            if other:  # the two are read by different people's code; the number is what the classifiers were trained on
                logger.warning("%d rows have a density that disagrees with their breast_density", other)
        if "finding_categories" in self._table.columns:
            codes, texts = pd.factorize(self._table["finding_categories"])
            named = [_categories(str(text)) for text in texts]
            readable = np.array([names is not None for names in named])
            what = "rows have a finding_categories that is no printed list of known findings"
            self._report(~readable[codes], what, self._cell("finding_categories"))
            expected = np.array([[concept in (names or ()) for concept in CONCEPTS] for names in named])
            disagree = readable[codes] & _any_of(expected[codes] != present)
            self._report(disagree, "rows have a finding_categories that disagrees with the 0/1 columns")

    def _boxes(
        self, findings: pd.DataFrame, image_size: tuple[int, int], tolerance: float
    ) -> tuple[npt.NDArray[np.float64], Marks]:
        """Boxes (n, 4) in input pixels, clipped to the image, NaN where a row has none; and which ones were clipped."""
        positive = _any_of(findings[list(CONCEPTS)].to_numpy() == 1)
        resized, empty = self._numbers(_RESIZED, positive)
        boxes = np.where(positive[:, None], resized, np.nan)  # what a row without a finding holds is no box
        incomplete = positive & empty.any(axis=1) & ~empty.all(axis=1)
        self._report(incomplete, "rows have a box with missing corners")
        if set(BOX_COLUMNS) <= set(self._table.columns):
            _, original_empty = self._numbers(BOX_COLUMNS, positive)
            lost = positive & empty.all(axis=1) & ~original_empty.all(axis=1)
            self._report(lost, "rows have an original box but no resized box")

        low, high = boxes[:, :2], boxes[:, 2:]
        side = np.array(image_size[::-1], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            inverted = _any_of(high <= low)
            slack = tolerance * side
            outside = _any_of((low < -slack) | (high > side + slack) | (low >= side) | (high <= 0)) & ~inverted
            overhang = _any_of((low < 0) | (high > side))
        self._report(inverted, "boxes are inverted or have no area")
        height, width = image_size
        self._report(
            outside,
            f"boxes reach more than {tolerance:.0%} of a side beyond the {height} x {width} image "
            "(are the resized_* columns and image_size of the same images?)",
            lambda row: f"{self._line(row)}: {', '.join(f'{value:.6g}' for value in boxes[row])}",
        )
        return np.concatenate([low.clip(0, side), high.clip(0, side)], axis=1), overhang & ~outside & ~inverted

    def _numbers(self, columns: Sequence[str], needed: Marks) -> tuple[npt.NDArray[np.float64], Marks]:
        """The columns as floats (n, n_columns), and which cells are empty; notes unreadable cells of `needed` rows."""
        values = np.full((len(self._table), len(columns)), np.nan)
        empty = np.zeros(values.shape, dtype=bool)
        for at, column in enumerate(columns):
            text = self._table[column]
            empty[:, at] = text.str.lower().isin(_MISSING_TEXT).to_numpy(dtype=bool)
            values[:, at] = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
            wrong = needed & ~empty[:, at] & ~np.isfinite(values[:, at])
            self._report(wrong, f"{column} values are no numbers", self._cell(column))
        return values, empty


def _any_of(marks: Marks) -> Marks:
    """(n, m) -> (n,): whether any mark of the row is set."""
    return np.asarray(marks.any(axis=1), dtype=bool)


def _categories(text: str) -> frozenset[str] | None:
    """The column names that a printed list such as "['Mass', 'Skin Thickening']" means; None if it is no such list."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    columns = {name.strip().replace(" ", "_") for name in names}
    return frozenset(columns) if columns <= {*CONCEPTS, "No_Finding"} else None


def _find_images(
    folder: Path, rows: pd.DataFrame, image_size: tuple[int, int], problems: list[str], n_probed: int = 8
) -> list[str]:
    """The image file of every row; missing files, and images that are all of another size, are noted as problems."""
    if not folder.is_dir():
        problems.append(f"the image folder {folder} does not exist")
        return []
    names: dict[
        str, set[str]
    ] = {}  # one listing per patient is far cheaper than one look-up per image on network disks
    for patient in rows["patient_id"].unique():
        try:
            names[patient] = set(os.listdir(folder / patient))
        except OSError:
            names[patient] = set()
    relative = [(str(patient), str(image)) for patient, image in zip(rows["patient_id"], rows["image_id"], strict=True)]
    missing = [f"{patient}/{image}" for patient, image in relative if image not in names[patient]]
    if missing:
        problems.append(describe(len(missing), f"image files are missing under {folder}", missing))
    prefix = str(folder)
    paths = [os.path.join(prefix, patient, image) for patient, image in relative]
    present = [path for path, (patient, image) in zip(paths, relative, strict=True) if image in names[patient]]
    sizes = (
        {_size_of(present[at]) for at in np.linspace(0, len(present) - 1, n_probed).astype(int)} if present else set()
    )
    sizes.discard(None)
    if len(sizes) == 1 and sizes != {image_size}:
        height, width = cast(tuple[int, int], sizes.pop())
        problems.append(
            f"the images are {height} x {width} pixels (height x width) but image_size is "
            f"{image_size[0]} x {image_size[1]}: set image_size to the size of the prepared images"
        )
    return paths


def _size_of(path: str) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
