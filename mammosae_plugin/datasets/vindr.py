"""VinDr-Mammo in the form in which Mammo-CLIP's users have it: one CSV with a row per finding, and 8-bit PNG images."""

__all__ = [
    "ANNOTATION_FILE", "CONCEPTS", "IMAGE_FOLDER", "older_vocabulary", "VINDR", "VINDR_CONCEPTS", "VinDrMammo",
    "VinDrSettings",
]  # fmt: skip

import ast
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from scipy.stats import mannwhitneyu

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.arguments import between
from mammosae_plugin.datasets.about import PHANTOM_ID, PHANTOMS, VINDR_MAMMO, DatasetAbout
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, MammogramDataset, Unit, describe
from mammosae_plugin.datasets.box_forms import EXCHANGED_CORNERS, Form, best, forms
from mammosae_plugin.datasets.boxes import (
    LOOKS_CUT,
    Boxes,
    Originals,
    UnmendableBoxes,
    are_shares,
    changes,
    few,
    fit_by_originals,
    looks_cut_by_the_author,
    mend,
    most_left_out,
    report_other_pixels,
)
from mammosae_plugin.datasets.concepts import Concept, Vocabulary, nearest_names
from mammosae_plugin.datasets.csv_files import plain_name, read_csv
from mammosae_plugin.datasets.image_files import checked_size, find_images, size_of
from mammosae_plugin.datasets.mapping import register_reader
from mammosae_plugin.datasets.preprocessing import as_8_bit, read_png
from mammosae_plugin.datasets.registry import DatasetKind, DataSettings
from mammosae_plugin.datasets.suspects import box_scores
from mammosae_plugin.datasets.table_checks import SPLITS, Marks, TableChecks, any_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path

logger = logging.getLogger(__name__)

ANNOTATION_FILE = "vindr_detection_v1_folds.csv"
IMAGE_FOLDER = "images_png"
CONCEPTS: tuple[str, ...] = (
    "Architectural_Distortion",
    "Asymmetry",
    "Focal_Asymmetry",
    "Global_Asymmetry",
    "Mass",
    "Nipple_Retraction",
    "Skin_Retraction",
    "Skin_Thickening",
    "Suspicious_Calcification",
    "Suspicious_Lymph_Node",
)
"""The ten findings, under the names of their 0/1 columns in the annotation file."""
VINDR_CONCEPTS: tuple[Concept, ...] = (
    *(Concept(name, boxes=True) for name in CONCEPTS),
    Concept("density", "graded", ("A", "B", "C", "D")),
    Concept("birads", "graded", ("1", "2", "3", "4", "5")),
)
"""All that VinDr-Mammo's images are labelled with."""
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
_OPTIONAL = (*BOX_COLUMNS, "width", "height", "breast_density", "finding_categories")
_OF_DEVICES = (
    "machine",
    "marker",
)  # columns that phantoms may have, and that are kept where all rows of an image agree
_INVERTED = "inverted or without area"
_SURE = 1e-4  # p-value for boxes, read in another way, that fit their own images better than they do others
_N_LOOKED_AT = 64  # boxes whose images are read to find out how they were written


class VinDrMammo(MammogramDataset):
    """VinDr-Mammo from `vindr_detection_v1_folds.csv` and `images_png/<patient_id>/<image_id>`.

    Boxes are the file's `resized_*` columns, which are pixels of the prepared image (for the original data 1520 x 912).
    In the file as its author published it some boxes are cut or inverted: they are mended from the file's own columns
    and counted (`n_mended_boxes`; docs/data.md has the formula). A box that overhangs its image by at most
    `box_tolerance` of the image's side is clipped and counted (`n_clipped_boxes`). `box_changes` lists both. The rows
    of both splits are checked, the images only of the split that is asked for; every problem found is named in one
    error. Whether an image can be read, and fits its boxes, shows when it is read: see `screen_images`.

    `images` has laterality, view, machine and marker where the file has them, density (0..3 for A..D), birads (0..4 for
    the categories 1..5), then a 0/1 column per finding; `findings` has density, birads and the findings' columns.

    Args:
        root: the folder that holds `images_png`.
        annotations: the annotation file, absolute or relative to `root`.
        image_size: (height, width) of every image, and of the network's input.
        split: "training", "test", or None for both.
        unit: "image" (one item per image; a finding is present when any row of the image has it) or "finding_row" (one
            item per row of the annotation file, as the published numbers were computed).
        box_tolerance: the overhang that is clipped, as a share of the image's side; what reaches further is unmendable.
        boxes: "mended", or "as_published": the file's own numbers, neither mended nor clipped, as the published Table 2
            was computed. Inverted boxes are then dropped and listed.
        unmendable_boxes: of boxes that are inverted and cannot be mended, reach further than `box_tolerance`, lack a
            corner or are shares of the image: "drop_few" leaves them out and lists them (`n_dropped_boxes`,
            `box_changes`; the finding stays, without a box) where they are at most 2 % of all boxes, or one of 8
            or more, and refuses the file where they are more; "refuse" refuses it for one; "drop_and_list" for more
            than a quarter.
        max_missing_share: the share of image files that may be missing (0 to 1). `screen_images` lists them.

    Raises:
        DatasetError: the file or folder is missing or wrong; the message lists everything that is wrong.
        InputError: an argument is wrong.
    """

    at_skin = frozenset({"Nipple_Retraction", "Skin_Retraction", "Skin_Thickening"})

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        annotations: str | os.PathLike[str] = ANNOTATION_FILE,
        image_size: tuple[int, int] = (1520, 912),
        split: str | None = None,
        unit: Unit = "image",
        box_tolerance: float = 0.1,
        boxes: Boxes = "mended",
        unmendable_boxes: UnmendableBoxes = "drop_few",
        max_missing_share: float = 0.0,
    ) -> None:
        if split is not None and split not in SPLITS:
            raise InputError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}, or None for both")
        for name, value, known in (("boxes", boxes, Boxes), ("unmendable_boxes", unmendable_boxes, UnmendableBoxes)):
            if value not in get_args(known):
                raise InputError(f"{name} is {value!r}; it must be {' or '.join(get_args(known))}")
        for name, share in (("box_tolerance", box_tolerance), ("max_missing_share", max_missing_share)):
            between(share, name, 0, 1)
        size = checked_size(image_size)
        folder = local_path(root)
        if not folder.is_dir():
            raise DatasetError(f"the data folder {folder} does not exist or is no folder")
        file = folder / local_path(annotations)
        table = _read_table(file)
        checked = _Checked(table, size, box_tolerance, boxes, unmendable_boxes)

        rows = np.ones(len(table), dtype=bool) if split is None else (table["split"] == split).to_numpy(dtype=bool)
        if not rows.any() and not checked.problems:
            checked.problems.append(f"no row has split {split!r}")
        first = rows & ~table["image_id"].duplicated().to_numpy()
        relative = list(table.loc[first, ["patient_id", "image_id"]].itertuples(index=False, name=None))
        paths = find_images(folder / IMAGE_FOLDER, relative, size, checked.problems, max_missing_share)
        if checked.wrong_boxes is not None:
            form = _likely_form(checked, folder / IMAGE_FOLDER, table, size)
            if form is not None:
                checked.problems.append(f"the boxes fit better {form.text}")
        if checked.problems:
            raise DatasetError(f"{file.name}: " + "; ".join(checked.problems))

        findings = checked.findings[rows].reset_index(drop=True)
        by_id = table.groupby("image_id")
        devices = [name for name in _OF_DEVICES if name in table.columns and (by_id[name].nunique() <= 1).all()]
        kept = ["image_id", "patient_id", "split", "laterality", "view", *devices]
        images = table.loc[first, kept].reset_index(drop=True)
        for column in devices:
            values = pd.to_numeric(images[column], errors="coerce")
            images[column] = images[column] if values.isna().any() else values
        by_image = findings.groupby("image_id", sort=False)
        graded = by_image[["density", "birads"]].first()
        present = by_image[list(CONCEPTS)].max()
        images = images.join(graded.join(present), on="image_id")
        super().__init__(
            images=images,
            findings=findings,
            concepts=VINDR_CONCEPTS,
            image_size=size,
            unit=unit,
            paths=paths,
            box_changes=checked.box_changes[rows],
        )
        self._log_boxes()

    @property
    def _identity(self) -> tuple[Any, ...]:
        """As ever, so that what was made from these images stays theirs; all else follows from the name."""
        return (self.name, tuple(self.image_size), self.concepts)

    def _log_boxes(self) -> None:
        if self.n_mended_boxes:
            logger.warning(
                "%d boxes mended, which the annotation file has inverted (%d) or cut at an edge (%d)",
                self.n_mended_boxes,
                self.n_inverted_boxes,
                self.n_mended_boxes - self.n_inverted_boxes,
            )
        if self.n_dropped_boxes:
            listed = self._box_changes.query("dropped")["reason"].value_counts().sort_index()
            reasons = ", ".join(f"{count} {reason}" for reason, count in listed.items())
            logger.warning("%d boxes dropped: %s", self.n_dropped_boxes, reasons)
        if self.n_clipped_boxes:
            logger.info("%d boxes overhang their image and were clipped", self.n_clipped_boxes)
        if self.n_findings_without_box and self.findings["xmin"].isna().all():
            logger.warning("no finding has a box: nothing can be located")
        elif self.n_findings_without_box:
            logger.info("%d rows name a finding but have no box", self.n_findings_without_box)

    @property
    def about(self) -> DatasetAbout:
        """VinDr-Mammo (name `vindr`), or phantoms (`phantom`) where every patient was drawn, which the ids say."""
        drawn = self.images["patient_id"].astype(str).str.startswith(PHANTOM_ID)
        return PHANTOMS if drawn.all() else VINDR_MAMMO


@register_reader("vindr-mammo-clip")
def mended_rows(root: Path) -> pd.DataFrame:
    """The annotation file's rows with the boxes (xmin, ...) and BI-RADS that `VinDrMammo` gives by default.

    The size of the prepared images, which shows where boxes were cut, is that of the first that is there.
    """
    file = root / ANNOTATION_FILE
    table = _read_table(file)
    ids = table[["patient_id", "image_id"]].itertuples(index=False, name=None)
    sizes = (size_of(str(root / IMAGE_FOLDER / patient / image)) for patient, image in ids)
    size = next((size for size in sizes if size is not None), VinDrSettings.model_fields["image_size"].default)
    checked = _Checked(table, size, 0.1, "mended", "drop_few")
    if checked.problems:
        raise DatasetError(f"{file.name}: " + "; ".join(checked.problems))
    counts = {name: int(checked.box_changes[name].sum()) for name in ("mended", "dropped")}
    if counts["mended"] or counts["dropped"]:
        logger.warning("%(mended)d boxes of %(file)s mended, %(dropped)d dropped", {**counts, "file": file.name})
    boxes = checked.findings[list(BOX_COLUMNS)].copy()
    reasons = checked.box_changes["reason"].str
    listed = checked.box_changes[~checked.box_changes["mended"] & reasons.startswith(("inverted", "more than"))]
    boxes.loc[listed.index] = listed[
        [f"file_{name}" for name in BOX_COLUMNS]
    ].to_numpy()  # which `ImageTable` leaves out likewise, and lists
    boxes = boxes.map(lambda value: "" if np.isnan(value) else repr(float(value)))
    return table.assign(
        birads=(checked.findings["birads"] + 1).astype(str).to_numpy(), **dict(boxes.set_axis(table.index))
    )


def older_vocabulary(findings: Sequence[str]) -> Vocabulary:
    """The concepts of a file written before files described theirs, and named VinDr-Mammo's findings only."""
    return Vocabulary(concept for concept in VINDR_CONCEPTS if concept.name in findings or not concept.is_binary)


def _read_table(file: Path) -> pd.DataFrame:
    """The annotation file with every cell as text; the index is the number of its line."""
    table = read_csv(file, (*_REQUIRED, *_OPTIONAL))
    missing = [column for column in _REQUIRED if column not in table.columns]
    if missing:
        there = {plain_name(str(column)): str(column) for column in table.columns}
        renamed = {column: there[plain_name(column)] for column in missing if plain_name(column) in there}
        listed = ", ".join(
            f"{column} (nearest: {renamed[column]})"
            if column in renamed
            else column + nearest_names(column, map(str, table.columns))
            for column in missing
        )
        hint = f"; {len(renamed)} are there in another spelling (case, blanks): rename them" if renamed else ""
        if any(column in _RESIZED for column in missing) and set(BOX_COLUMNS) <= set(table.columns):
            hint += (
                "; the resized_* boxes are pixels of the prepared images and are not guessed from the original boxes: "
                "prepare the data first"
            )
        raise DatasetError(f"{file.name}: {len(missing)} columns are missing: {listed}{hint}")
    return table


class _Checked(TableChecks):
    """The findings table made from the text of the annotation file, and every problem met on the way."""

    def __init__(
        self,
        table: pd.DataFrame,
        image_size: tuple[int, int],
        box_tolerance: float,
        boxes: Boxes,
        unmendable_boxes: UnmendableBoxes,
    ) -> None:
        super().__init__(table)
        table = self.table
        self.wrong_boxes: npt.NDArray[np.float64] | None = None
        """(n, 4) boxes as in the file, NaN where a row has none, if so many are wrong that they have one cause."""
        self._check_texts()
        findings = pd.DataFrame({"image_id": table["image_id"]})
        findings["density"] = self.whole_numbers(table["density"], "density", range(4), "write 0 to 3 for A to D")
        birads = table["breast_birads"].str.replace(r"^bi-?rads\s*", "", case=False, regex=True)
        findings["birads"] = self.whole_numbers(birads, "breast_birads", range(1, 6)) - 1
        n_problems = len(self.problems)
        for concept in CONCEPTS:
            findings[concept] = self.whole_numbers(table[concept], concept, range(2))
        no_finding = self.whole_numbers(table["No_Finding"], "No_Finding", range(2)).astype(bool)
        if len(self.problems) == n_problems:  # else it would find the same again, under other names
            self._check_labels(findings, no_finding)
        in_file = self._boxes_of_file(findings, image_size, boxes)
        findings[list(BOX_COLUMNS)], self.box_changes = self._usable_boxes(
            in_file, image_size, box_tolerance, boxes, unmendable_boxes
        )
        self.findings = findings

    def _check_texts(self) -> None:
        self.check_ids()
        table = self.table
        for column, values in {"split": SPLITS, "laterality": ("L", "R"), "view": ("CC", "MLO")}.items():
            self.check_values(column, values)
        known = {*_REQUIRED, *_OPTIONAL}  # others that differ in every row only number the rows
        content = table[[name for name in table.columns if name in known or table[name].duplicated().any()]].copy()
        for column in set(_RESIZED + BOX_COLUMNS) & set(content.columns):  # 12.5 and 12.50 are the same
            content[column] = pd.to_numeric(content[column], errors="coerce").astype(object).fillna(content[column])
        self.report(content.duplicated().to_numpy(), "rows repeat an earlier row exactly", advice="delete them")
        self.check_patients()
        for column in ("laterality", "view", "breast_birads", "density"):
            self.check_groups("image_id", column, f"images have rows with different {column}", "give them the same")

    def _check_labels(self, findings: pd.DataFrame, no_finding: Marks) -> None:
        present = findings[list(CONCEPTS)].to_numpy() == 1
        positive = any_of(present)
        self.report(
            positive & no_finding, "rows have No_Finding together with a finding", advice="set one of them to 0"
        )
        self.report(~positive & ~no_finding, "rows have neither a finding nor No_Finding", advice="set one to 1")
        of_image = pd.DataFrame({"id": findings["image_id"], "positive": positive, "none": no_finding})
        mixed = of_image[~(positive & no_finding)].groupby("id", sort=False)[["positive", "none"]].any().all(axis=1)
        if mixed.any():
            what = "images have a No_Finding row beside a finding row"
            self.problems.append(describe(int(mixed.sum()), what, mixed.index[mixed]))
        if "breast_density" in self.table.columns:
            letter = self.table["breast_density"].str.upper().str.extract(r"\b([A-D])$", expand=False)
            other = (letter.notna() & (letter != findings["density"].map(dict(enumerate("ABCD"))))).sum()
            if other:  # the two are read by different people's code; the number is what the classifiers were trained on
                logger.warning("%d rows have a density that disagrees with their breast_density", other)
        if "finding_categories" in self.table.columns:
            codes, texts = pd.factorize(self.table["finding_categories"])
            named = [_categories(str(text)) for text in texts]
            readable = np.array([names is not None for names in named])
            what = "rows have a finding_categories that is no printed list of known findings"
            self.report(~readable[codes], what, self.cell("finding_categories"))
            expected = np.array([[concept in (names or ()) for concept in CONCEPTS] for names in named])
            disagree = readable[codes] & any_of(expected[codes] != present)
            self.report(disagree, "rows have a finding_categories that disagrees with the 0/1 columns")

    def _boxes_of_file(
        self, findings: pd.DataFrame, image_size: tuple[int, int], wanted: Boxes
    ) -> npt.NDArray[np.float64]:
        """Boxes (n, 4) as the file has them, NaN where a row has none; those that are no pixels are noted."""
        positive = any_of(findings[list(CONCEPTS)].to_numpy() == 1)
        resized, empty, no_numbers = self.numbers(_RESIZED, positive)
        boxes = np.where(positive[:, None], resized, np.nan)  # what a row without a finding holds is no box
        incomplete = positive & empty.any(axis=1) & ~empty.all(axis=1)
        corners = sides = np.full_like(boxes, np.nan)
        lost = np.zeros_like(positive)
        if set(BOX_COLUMNS) <= set(self.table.columns):
            corners, original_empty, _ = self.numbers(BOX_COLUMNS, positive)
            lost = positive & empty.all(axis=1) & ~original_empty.all(axis=1)
        if {"width", "height"} <= set(self.table.columns):
            sides = self.numbers(("width", "height"), positive)[0]
        self.originals = Originals(corners, sides[:, :2])
        wrong, shares, cause_is_told = report_other_pixels(
            boxes, self.originals, image_size, self.report, wanted=wanted
        )
        if wrong.any() and not cause_is_told:
            self.wrong_boxes = boxes.copy()

        self._odd: dict[str, tuple[Marks, Callable[[], None]]] = {
            "no numbers": (any_of(no_numbers), lambda: self.report_no_numbers(_RESIZED, no_numbers)),
            "without all corners": self._odd_boxes(incomplete, "rows have a box with missing corners"),
            "lost beside an original box": self._odd_boxes(lost, "rows have an original box but no resized box"),
            "shares of the image instead of pixels": self._odd_boxes(shares, are_shares(image_size)),
        }
        self._as_written = boxes.copy()
        boxes[np.logical_or.reduce([wrong, *(marks for marks, _ in self._odd.values())])] = np.nan
        return boxes

    def _odd_boxes(
        self, marks: Marks, what: str, example: Callable[[int], str] | None = None
    ) -> tuple[Marks, Callable[[], None]]:
        return marks, lambda: self.report(marks, what, example)

    def _usable_boxes(
        self,
        in_file: npt.NDArray[np.float64],
        image_size: tuple[int, int],
        tolerance: float,
        wanted: Boxes,
        unmendable_boxes: UnmendableBoxes,
    ) -> tuple[npt.NDArray[np.float64], pd.DataFrame]:
        """Boxes (n, 4) in input pixels, NaN where a row has none; and what was done to each."""
        boxes, mended = in_file, np.zeros(len(in_file), dtype=bool)
        if wanted == "mended":
            boxes, mended = mend(in_file, self.originals, image_size, tolerance)
        low, high = boxes[:, :2], boxes[:, 2:]
        side = np.array(image_size[::-1], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            inverted = any_of(high <= low)
            slack = tolerance * side
            outside = any_of((low < -slack) | (high > side + slack) | (low >= side) | (high <= 0)) & ~inverted
            overhang = any_of((low < 0) | (high > side)) & ~outside & ~inverted
        height, width = image_size
        beyond = (
            f"boxes reach more than {tolerance:.0%} of a side beyond the {height} x {width} image (are the resized_* "
            "columns and image_size of the same images?)"
        )
        odd = {
            **self._odd,
            _INVERTED: self._odd_boxes(inverted, "boxes are inverted or have no area"),
            f"more than {tolerance:.0%} of a side beyond the image": self._odd_boxes(
                outside, beyond, lambda row: f"{self.line(row)}: {', '.join(f'{value:.6g}' for value in boxes[row])}"
            ),
        }
        dropped = {name: marks for name, (marks, _) in odd.items()}
        always = {_INVERTED: inverted} if wanted == "as_published" else {}
        n_lost = sum(int(marks.sum()) for name, marks in dropped.items() if name not in always)
        n_boxes = int((~np.isnan(in_file[:, 0])).sum() + sum(marks.sum() for marks, _ in self._odd.values()))
        at_most = most_left_out(n_boxes)
        is_tolerable = {
            "drop_few": few(n_lost, n_boxes),
            "refuse": n_lost == 0,
            "drop_and_list": n_lost <= at_most,
        }
        if not is_tolerable[unmendable_boxes]:
            dropped = always
            for name, (_, report) in odd.items():
                if name not in always:
                    report()
            if unmendable_boxes != "drop_and_list" and 0 < n_lost <= at_most:
                them = "it" if n_lost == 1 else "these"
                self.problems.append(
                    f"mend {them} in the file, or go on without {n_lost} of {n_boxes} boxes by "
                    "data.unmendable_boxes: drop_and_list"
                )
            looks_cut = inverted.any() and looks_cut_by_the_author(in_file, self.originals, image_size)
            if looks_cut:
                self.problems.append(LOOKS_CUT)
            are_points = any_of(high == low) & inverted
            n_odd = int((inverted | outside).sum() - are_points.sum())
            if not few(n_odd, n_boxes) and self.wrong_boxes is None and not looks_cut:
                self.wrong_boxes = in_file
        clipped = overhang if wanted == "mended" else np.zeros(len(boxes), dtype=bool)
        used = np.concatenate([low.clip(0, side), high.clip(0, side)], axis=1) if wanted == "mended" else boxes.copy()
        for marks in dropped.values():
            used[marks] = np.nan
        return used, changes(self.lines, self._as_written, mended=mended, clipped=clipped, dropped=dropped)


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


def _likely_form(checked: _Checked, folder: Path, table: pd.DataFrame, image_size: tuple[int, int]) -> Form | None:
    """How the wrong boxes were written, told by the original ones, or else by some images; None if unknown."""
    boxes = cast(npt.NDArray[np.float64], checked.wrong_boxes)
    has_box = np.asarray(~np.isnan(boxes).any(axis=1), dtype=bool)
    form = fit_by_originals(boxes[has_box], checked.originals.of(has_box), image_size)
    if form is not None:
        return form
    ways: Sequence[Form] = forms(image_size)
    if not (boxes[has_box, 2:] <= boxes[has_box, :2]).any(axis=1).mean() > 1 / 2:
        # Exchanged corners invert all boxes; a few are inverted by the author's code (`boxes`) or by another order.
        ways = [way for way in ways if way.order != EXCHANGED_CORNERS]
    rows = np.flatnonzero(has_box)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _N_LOOKED_AT).astype(int))]
    found = []
    for at, row in enumerate(rows):
        try:
            pixels = read_png(folder / table["patient_id"].iloc[row] / table["image_id"].iloc[row], image_size)
        except BadImageError:
            continue
        others = [rows[(at + len(rows) * n // 4) % len(rows)] for n in (1, 2, 3)]
        found.append(box_scores(as_8_bit(pixels), boxes[[row, *others]], ways))
    if not found:
        return None
    own, of_others = np.stack(found)[:, 0], np.concatenate([scores[1:] for scores in found])
    likely = best(own, ways)
    if likely is None or not likely.is_sure:
        return None
    # Boxes that fit no image can also lie better on any breast when read in another way.
    way = ways.index(likely.form)
    p_value = mannwhitneyu(own[:, way], of_others[:, way], alternative="greater").pvalue
    return likely.form if p_value < _SURE else None


class VinDrSettings(DataSettings):
    """VinDr-Mammo as Mammo-CLIP prepares it."""

    kind: str = "vindr"
    annotations: str = Field(
        ANNOTATION_FILE, description="The annotation CSV, relative to root or absolute; one row per finding."
    )
    boxes: Boxes = Field(
        "mended",
        description="mended: boxes that the published file has cut or inverted are mended from its own columns; "
        "as_published: the file's own numbers, inverted boxes dropped, to compare with the paper's Table 2.",
    )
    unmendable_boxes: UnmendableBoxes = Field(
        "drop_few",
        description="Boxes that reach further, or are inverted and cannot be mended. drop_few: go on without them (the "
        "findings stay) and list them in work/, up to 2 % of the boxes, or 1 of 8; drop_and_list: up to a quarter; "
        "refuse: none.",
    )

    @property
    def described(self) -> DatasetAbout:
        """VinDr-Mammo."""
        return VINDR_MAMMO


def _open(settings: VinDrSettings) -> VinDrMammo:
    return VinDrMammo(
        settings.root,
        annotations=settings.annotations,
        image_size=settings.image_size,
        boxes=settings.boxes,
        box_tolerance=settings.box_tolerance,
        unmendable_boxes=settings.unmendable_boxes,
        max_missing_share=settings.max_bad_share,
    )


VINDR = DatasetKind("vindr", VinDrSettings, _open)
