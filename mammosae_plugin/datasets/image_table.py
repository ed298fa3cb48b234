"""Images of any source: PNG or DICOM files and a table that a mapping describes."""

__all__ = ["IMAGE_TABLE", "ImageTable", "ImageTableSettings", "load_images"]

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from typing_extensions import Self

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.arguments import between, one_of
from mammosae_plugin.datasets.about import PHANTOMS, DatasetAbout
from mammosae_plugin.datasets.annotations import MISSING, Annotations, checked_annotations, table_name
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, Item, MammogramDataset, Unit, describe
from mammosae_plugin.datasets.boxes import (
    Marks,
    Originals,
    UnmendableBoxes,
    are_shares,
    changes,
    few,
    in_shares,
    most_left_out,
    report_other_pixels,
)
from mammosae_plugin.datasets.image_files import checked_size, find_images
from mammosae_plugin.datasets.mapping import RESERVED, ImageMapping, load_mapping, read_mapping
from mammosae_plugin.datasets.mask_files import boxes_of_mask
from mammosae_plugin.datasets.originals import is_original, mask_of, original_size, read_original
from mammosae_plugin.datasets.preparation import Transform, letterbox
from mammosae_plugin.datasets.registry import DatasetKind, DataSettings
from mammosae_plugin.datasets.table_checks import any_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.progress import progress

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | Mapping[str, Any] | ImageMapping
"""What `load_mapping` takes."""
_NAMED = ("`image`", "`image`")  # what names folders and files, in messages about those that are not there
_N_PROBED = 8  # originals that are opened to see whether the table is right about their sizes
_POLICIES = ("drop_few", "refuse", "drop_and_list")


class ImageTable(MammogramDataset):
    """Images of one size with what a mapping says of them: PNG of 8 or 16 bit, as they are, and originals letterboxed.

    Originals are DICOM files, and PNG files of a mapping that says `preparation: letterbox`. They are fitted into
    `image_size` whenever they are read, aspect kept, and so are their boxes and masks; `prepare_dicom` does it once.

    `images` has image_id, patient_id, split, then exam_id, laterality and view where the mapping names them, the
    covariates, and the class number of every label, -1 where it is missing. `findings` has the labels, -1 where the row
    does not tell one, and the boxes in pixels of these images. An item is as VinDrMammo's, with `covariates` beside.

    Args:
        mapping: how the table is read.
        root: the data's folder.
        image_size: (height, width) of every image; the mapping's unless told otherwise.
        unit: "image" or "finding_row", as for `VinDrMammo`.
        box_tolerance: how far a box may reach over its image, as a share of the side; it is clipped.
        unmendable_boxes: of boxes that are inverted or reach further: "drop_few" leaves them out and lists them
            (`box_changes`) where they are at most 2 % of all, or one of 8 or more; "refuse"; "drop_and_list".
        max_missing_share: the share of image files that may be missing (0 to 1). `screen_images` lists them.
        about: what the images are, in place of what the mapping says.

    Attributes:
        mapping: how the table was read.
        covariates: the columns of `images` that are covariates, laterality and view among them.

    Raises:
        DatasetError: the table, an image folder or a mask is missing or wrong; the message lists everything.
        InputError: an argument is wrong.
    """

    reads_16_bit = True

    def __init__(
        self,
        mapping: ImageMapping,
        root: str | os.PathLike[str],
        *,
        image_size: tuple[int, int] | None = None,
        unit: Unit = "image",
        box_tolerance: float = 0.1,
        unmendable_boxes: UnmendableBoxes = "drop_few",
        max_missing_share: float = 0.0,
        about: DatasetAbout | None = None,
    ) -> None:
        for name, share in (("box_tolerance", box_tolerance), ("max_missing_share", max_missing_share)):
            between(share, name, 0, 1)
        one_of(unmendable_boxes, "unmendable_boxes", _POLICIES)
        size = checked_size(mapping.image_size if image_size is None else image_size)
        self.mapping, folder = load_mapping(mapping, root)
        annotations, problems = checked_annotations(self.mapping, folder)
        files = [os.path.split(file) for file in annotations.images["file"]]
        expected = None if self.mapping.preparation == "letterbox" else size
        paths = find_images(folder, files, expected, problems, max_missing_share, named=_NAMED)
        self._original = np.array([is_original(path, self.mapping) for path in paths], dtype=bool)
        originals = {
            image_id: Path(path)
            for image_id, path, own in zip(annotations.images["image_id"], paths, self._original, strict=False)
            if own
        }
        placed = _Placed(annotations, size, box_tolerance, unmendable_boxes, problems, originals)
        if problems:
            raise DatasetError(f"{table_name(self.mapping)}: " + "; ".join(problems))
        super().__init__(
            images=annotations.images.drop(columns="file"),
            findings=placed.findings,
            concepts=annotations.concepts,
            image_size=size,
            unit=unit,
            paths=paths,
            box_changes=placed.changes,
        )
        self.at_skin = frozenset(self.mapping.at_skin)
        known = {*RESERVED[:4], *self.vocabulary}
        self.covariates = tuple(name for name in self.images.columns if name not in known)
        self._mask_files = placed.masks
        self._mask_root = folder
        self._about = about or self.mapping.about
        self._log()

    def __getitem__(self, index: int) -> Item:
        """Item `index`; see `MammogramDataset`."""
        item = super().__getitem__(index)
        row = self.images.iloc[self._image_row(index)]
        item["covariates"] = {
            name: float(row[name]) if isinstance(row[name], (float, np.floating)) else str(row[name])
            for name in self.covariates
        }
        return item

    def pixels(self, image: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The pixels of an image by its row in `images`; see `MammogramDataset.pixels`."""
        if self._original[image]:
            return read_original(Path(self._paths[image]), self.image_size)
        return super().pixels(image)

    def masks(self, index: int) -> dict[str, npt.NDArray[np.bool_]]:
        """By label the mask (H, W) of item `index`, where there is one: the union of its files.

        Raises:
            BadImageError: a mask cannot be read or is wrongly sized.
        """
        index %= len(self)
        rows = self._rows_by_image[index] if self.unit == "image" else np.array([index])
        frame = None
        if self._original[self._image_row(index)]:
            frame = letterbox(original_size(self.path(index)), self.image_size)
        found: dict[str, npt.NDArray[np.bool_]] = {}
        for row in rows:
            if (file := self._mask_files[row]) == "":
                continue
            mask = mask_of(self._mask_root / file, frame, self.image_size)
            for column, name in enumerate(self.concepts):
                if self._presence_table[row, column]:
                    found[name] = found[name] | mask if name in found else mask
        return found

    @property
    def mask_paths(self) -> list[Path]:
        """The files of masks, each once, in the order of `findings`."""
        return [self._mask_root / file for file in dict.fromkeys(self._mask_files) if file != ""]

    @property
    def about(self) -> DatasetAbout:
        """What the images are, as the mapping or the caller says."""
        return self._about

    @property
    def missing(self) -> dict[str, int]:
        """Of how many images each label is missing."""
        return {name: int((self.images[name] == MISSING).sum()) for name in self.vocabulary}

    def _subset(self, keep: npt.NDArray[np.bool_]) -> Self:
        subset = super()._subset(keep)
        subset._mask_files = self._mask_files[keep[self._finding_image_rows]]
        subset._original = self._original[keep]
        return subset

    @property
    def _identity(self) -> tuple[Any, ...]:
        return (*super()._identity, *(["letterbox"] if self._original.any() else []))

    def _log(self) -> None:
        if n_originals := int(self._original.sum()):
            logger.info(
                "%d images are letterboxed whenever they are read; mammosae prepare does it once",
                n_originals,
            )
        counted = ", ".join(f"{name} of {count}" for name, count in self.missing.items() if count)
        if counted:
            logger.info("labels are missing, and count neither as absent nor as present: %s images", counted)
        for what, count in (("clipped", self.n_clipped_boxes), ("left out", self.n_dropped_boxes)):
            if count:
                logger.warning("%d boxes reach over their image or are wrong and were %s", count, what)


class _Placed:
    """Findings with their boxes in pixels of the images, and what was done to each box."""

    def __init__(
        self,
        annotations: Annotations,
        image_size: tuple[int, int],
        tolerance: float,
        policy: UnmendableBoxes,
        problems: list[str],
        originals: Mapping[str, Path],
    ) -> None:
        self._size, self._problems, self._originals = image_size, problems, originals
        self._bad: dict[str, str] = {}
        self._known: dict[str, Transform] = {}
        self._lines = annotations.findings["line"].to_numpy(dtype=np.int64)
        self._image_ids = annotations.findings["image_id"].to_numpy(dtype=object)
        findings = annotations.findings.drop(columns=["line", "mask"])
        written = findings[list(BOX_COLUMNS)].to_numpy(dtype=np.float64)
        frames = self._frames(annotations, ~np.isnan(written[:, 0]))
        self._check_sizes(annotations.sizes, frames)
        sides = np.array([frame.source[::-1] if frame else image_size[::-1] for frame in frames], dtype=np.float64)
        boxes = self._in_pixels(annotations, written, sides, np.array([frame is None for frame in frames], dtype=bool))
        used, dropped, clipped = self._usable(boxes, sides, tolerance, policy)
        for row, frame in enumerate(frames):
            if frame is not None:
                used[row] = frame.boxes(used[row])[0]
        never = np.zeros(len(boxes), dtype=bool)
        done = changes(self._lines, written, mended=never, clipped=clipped, dropped=dropped)
        findings[list(BOX_COLUMNS)] = used
        at, of_masks = self._of_masks(annotations, boxes)
        self.findings = findings.iloc[at].reset_index(drop=True)
        self.changes = done.iloc[at].reset_index(drop=True)
        from_mask = ~np.isnan(of_masks[:, 0])
        self.findings.loc[from_mask, list(BOX_COLUMNS)] = of_masks[from_mask]
        self.masks = annotations.findings["mask"].to_numpy(dtype=object)[at]
        if self._bad:
            told = [f"{file}: {reason}" for file, reason in self._bad.items()]
            problems.append(describe(len(self._bad), "files of images or masks cannot be used", told))

    def _frames(self, annotations: Annotations, boxed: Marks) -> list[Transform | None]:
        """Of every finding with a box in an original, where the letterboxed image's pixels come from; else None."""
        how = annotations.mapping.boxes
        frames: list[Transform | None] = [None] * len(boxed)
        for row in np.flatnonzero(boxed) if how is not None and how.pixels != "prepared" else ():
            try:
                frames[row] = self._frame_of(int(row), None if annotations.sizes is None else annotations.sizes[row])
            except BadImageError as error:
                self._bad[self._originals[self._image_ids[row]].name] = error.reason
        return frames

    def _frame_of(self, row: int, size: npt.NDArray[np.float64] | None = None) -> Transform | None:
        """Of a finding's original, of a size that is known or that its header says; None where it is none.

        Raises:
            BadImageError: the original cannot be read.
        """
        image_id = self._image_ids[row]
        if image_id not in self._known:
            path = self._originals.get(image_id)
            if path is None:
                return None
            is_told = size is not None and not np.isnan(size).any() and (size >= 1).all()
            known = (int(size[0]), int(size[1])) if size is not None and is_told else original_size(path)
            self._known[image_id] = letterbox(known, self._size)
        return self._known[image_id]

    def _check_sizes(self, sizes: npt.NDArray[np.float64] | None, frames: Sequence[Transform | None]) -> None:
        """Note originals, of a few that are opened, that have another size than the table says."""
        there = [row for row, frame in enumerate(frames) if frame is not None and sizes is not None]
        for row in (there[at] for at in np.unique(np.linspace(0, len(there) - 1, _N_PROBED).astype(int)) if there):
            path, frame = self._originals[self._image_ids[row]], frames[row]
            try:
                found = original_size(path)
            except BadImageError as error:
                self._bad[path.name] = error.reason
                continue
            if frame is not None and found != frame.source:
                said, has = (f"{height} x {width}" for height, width in (frame.source, found))
                self._problems.append(
                    f"boxes.size: line {self._lines[row]} says {said} (height x width), {path.name} has {has}: name "
                    "the columns of the original's height and width, in this order, or leave size out"
                )
                return

    def _report(self, marks: Marks, what: str, advice: str = "") -> None:
        rows = np.flatnonzero(marks)
        if len(rows):
            named = [f"line {self._lines[row]}" for row in rows[:3]]
            self._problems.append(describe(len(rows), what, named, advice))

    def _in_pixels(
        self, annotations: Annotations, boxes: npt.NDArray[np.float64], sides: npt.NDArray[np.float64], as_is: Marks
    ) -> npt.NDArray[np.float64]:
        """Boxes (n, 4) in pixels of the images, of originals (those not `as_is`) in theirs; NaN without one.

        Args:
            annotations: what was read.
            boxes: (n, 4) as written.
            sides: (n, 2) width and height of the images or originals.
            as_is: which are of images that are used as they are.
        """
        how = annotations.mapping.boxes
        if how is None:
            return boxes
        height, width = self._size
        if how.pixels == "shares":
            with np.errstate(invalid="ignore"):
                no_share = any_of(np.abs(boxes - 0.5) > 2)
            self._report(no_share, "boxes are no shares of the image (0 to 1)", "say by boxes.pixels what they are")
            return np.asarray(boxes * np.tile(sides, 2), dtype=np.float64)
        if how.pixels == "original" and annotations.sizes is not None:
            other = as_is & ~np.isnan(boxes[:, 0]) & any_of(annotations.sizes != (height, width))
            self._report(
                other,
                f"boxes are in pixels of original images that are not {height} x {width} as the images are",
                "prepare the images (mammosae prepare), or set boxes.pixels to prepared or shares",
            )
        shares = in_shares(boxes) & ~as_is
        if shares.sum() > (~np.isnan(boxes[:, 0]) & ~as_is).sum() / 2:
            self._report(shares, "boxes are shares of the image (0 to 1)", "set boxes.pixels to shares")
        never = np.full_like(boxes, np.nan)
        of_images = np.where(as_is[:, None], boxes, np.nan)
        found = report_other_pixels(of_images, Originals(never, never[:, :2]), self._size, self._report)
        self._report(found.shares, are_shares(self._size))
        return boxes

    def _usable(
        self, boxes: npt.NDArray[np.float64], side: npt.NDArray[np.float64], tolerance: float, policy: UnmendableBoxes
    ) -> tuple[npt.NDArray[np.float64], dict[str, Marks], Marks]:
        """The boxes within their images of these sides, by reason those left out, and which were clipped."""
        low, high = boxes[:, :2], boxes[:, 2:]
        with np.errstate(invalid="ignore"):
            inverted = any_of(high <= low)
            outside = any_of((low < -tolerance * side) | (high > (1 + tolerance) * side) | (low >= side) | (high <= 0))
            outside &= ~inverted
            clipped = any_of((low < 0) | (high > side)) & ~inverted & ~outside
        n_odd, n_boxes = int((inverted | outside).sum()), int((~np.isnan(boxes[:, 0])).sum())
        at_most = {
            "drop_few": few(n_odd, n_boxes),
            "refuse": n_odd == 0,
            "drop_and_list": n_odd <= most_left_out(n_boxes),
        }
        dropped = {
            "inverted or without area": inverted,
            f"more than {tolerance:.0%} of a side beyond the image": outside,
        }
        if not at_most[policy]:
            beyond = f"boxes reach more than {tolerance:.0%} of a side beyond the {self._named(side)} image"
            self._report(inverted, "boxes are inverted or have no area", "are boxes.form and boxes.columns right?")
            self._report(outside, beyond, "are boxes.pixels and image_size right?")
            dropped = {}
        used = np.concatenate([low.clip(0, side), high.clip(0, side)], axis=1)
        used[inverted | outside] = np.nan
        return used, dropped, clipped

    @staticmethod
    def _named(sides: npt.NDArray[np.float64]) -> str:
        """The size of all images, or of the first of several."""
        width, height = sides[0].astype(int)
        return f"{height} x {width}" if (sides == sides[0]).all() else f"(such as {height} x {width})"

    def _of_masks(
        self, annotations: Annotations, boxes: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """For every finding as it will be, its row now, and its box (n, 4) if that follows from a mask, else NaN."""
        files = annotations.findings["mask"].to_numpy(dtype=object)
        how = annotations.mapping.masks
        drawn = {(self._image_ids[row], self._lines[row]) for row in np.flatnonzero(~np.isnan(boxes[:, 0]))}
        rows: list[int] = []
        found: list[npt.NDArray[np.float64]] = []
        nothing = np.full((1, 4), np.nan)
        bar = progress(files, description="reading masks", unit="mask", delay=2, shown=how is not None)
        for row, file in enumerate(bar):
            parts = nothing
            if file and how is not None and (self._image_ids[row], self._lines[row]) not in drawn:
                try:
                    frame = self._frame_of(row)
                    area = 1.0 if frame is None else frame.area
                    mask = mask_of(annotations.root / file, frame, self._size)
                    parts = boxes_of_mask(mask, max(1, round(how.min_area * area)))
                    if not len(parts):
                        self._bad[file] = "shows nothing"
                except InputError as error:
                    self._bad[file] = getattr(error, "reason", str(error))
            rows += [row] * max(1, len(parts))
            found += list(parts if len(parts) else nothing)
        return np.asarray(rows, dtype=np.intp), np.asarray(found, dtype=np.float64).reshape(-1, 4)


def load_images(
    source: Source,
    root: str | os.PathLike[str] | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    unit: Unit = "image",
    max_missing_share: float = 0.0,
) -> ImageTable:
    """Images, labels, boxes and covariates from any source, as a mapping says.

    ```python
    data = load_images("clinic/prepared")                                      # what `mammosae prepare` wrote
    data = load_images("clinic/mapping.yaml", image_size=(1520, 912))
    data = load_images({"table": "images.csv", "image": "png/{image_id}.png", "labels": {"Cancer": "cancer"}}, "clinic")
    data[0]["labels"], data[0]["boxes"], data[0]["covariates"]
    ```

    Args:
        source: a preset's name (with `root`), a mapping's path or dict, or a prepared folder.
        root: the data's folder; by default that of the mapping's file.
        image_size: (height, width) of the images; the mapping's by default.
        unit: "image" or "finding_row", as for `VinDrMammo`.
        max_missing_share: the share of image files that may be missing (0 to 1).

    Raises:
        DatasetError: the data are wrong; the message lists everything, with line numbers.
        InputError: no such source, or a mapping that is wrong.
    """
    mapping, folder = load_mapping(source, root)
    return ImageTable(mapping, folder, image_size=image_size, unit=unit, max_missing_share=max_missing_share)


class ImageTableSettings(DataSettings):
    """Images and a table of any form, as a mapping says; name, title and licence are the mapping's."""

    kind: str = "images"
    source: str | None = Field(
        None,
        description="A preset's name, or a mapping's YAML file, relative to root or to this file; by default the "
        "mapping.yaml in root, as mammosae prepare writes it.",
    )
    mapping: dict[str, Any] | None = Field(
        None, description="Fields of the mapping (docs/data.md), in place of the source's or, without source, of all."
    )
    unmendable_boxes: UnmendableBoxes = Field(
        "drop_few",
        description="Boxes that are inverted or reach too far over the image: drop_few (2 % of them, or 1 of 8), "
        "drop_and_list (up to a quarter), refuse.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_the_mapping(cls, values: Any) -> Any:
        """Take the image size from the mapping where nothing else is said."""
        if not isinstance(values, Mapping) or not values.get("root") or not isinstance(values["root"], (str, Path)):
            return values
        try:
            found = _mapping_of(values["root"], values.get("source"), values.get("mapping"))
        except InputError as error:
            raise ValueError(str(error)) from error
        return {"image_size": found.image_size, "phantom": found.phantom, **values}

    @property
    def resolved(self) -> ImageMapping:
        """The mapping, with the fields that stand here in place of its own."""
        return _mapping_of(self.root, self.source, self.mapping)

    @property
    def described(self) -> DatasetAbout:
        """What the mapping says of the images."""
        found = self.resolved.about
        return found if found != PHANTOMS or self.phantom else DatasetAbout(name="images", title="images of one's own")


def _mapping_of(root: str | Path, source: Any, fields: Any) -> ImageMapping:
    """The mapping of a section of settings.

    Raises:
        InputError: it is not there, or wrong.
    """
    if fields is not None and not isinstance(fields, Mapping):
        raise InputError("mapping must be a section of settings (name: value)")
    if source is None:
        return read_mapping(
            root if fields is None or (Path(root) / "mapping.yaml").is_file() else fields, fields or {}
        )[0]
    if not isinstance(source, str):
        raise InputError("source must be a preset's name or a path")
    below = Path(root) / source
    return read_mapping(below if below.is_file() else source, fields or {})[0]


def _open(settings: ImageTableSettings) -> ImageTable:
    return ImageTable(
        settings.resolved,
        settings.root,
        image_size=settings.image_size,
        unit="image",
        box_tolerance=settings.box_tolerance,
        unmendable_boxes=settings.unmendable_boxes,
        max_missing_share=settings.max_bad_share,
        about=settings.about,
    )


IMAGE_TABLE = DatasetKind("images", ImageTableSettings, _open)
