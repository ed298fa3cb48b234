"""What every mammogram dataset here shares: two tables (images, findings), items for the network, selection."""

__all__ = ["Batch", "BOX_COLUMNS", "collate", "DatasetError", "describe", "Item", "MammogramDataset", "Unit"]

import copy
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from typing_extensions import NotRequired

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, Preprocessing
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.concepts import Concept, Kind, Vocabulary
from mammosae_plugin.datasets.preprocessing import as_8_bit, read_png
from mammosae_plugin.datasets.selection import Selectable
from mammosae_plugin.errors import InputError

Unit = Literal["image", "finding_row"]
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
_CHANGES = ("dropped", "mended", "clipped")
_CACHED = (
    *("_content", "_ids", "_finding_image_rows", "_rows_by_image", "_label_table", "_presence_table", "_box_table"),
)
_Self = TypeVar("_Self", bound="MammogramDataset")


class DatasetError(InputError):
    """The annotation file or the image folder is wrong; the one-line message lists every problem found."""


class Item(TypedDict):
    """One item of a dataset.

    `image` is float32 (3, H, W), preprocessed. `labels` maps every concept to a class number (in unit "image" a finding
    is 1 when any row of the image has it, in unit "finding_row" when this row has it). `boxes` maps every finding to
    float32 (n, 4), xyxy in pixels of `image`, of the image or of this row, as the unit says. A label that is missing is
    -1. `covariates`, of datasets that have some, are numbers (NaN where missing) or text.
    """

    image: torch.Tensor
    image_id: str
    patient_id: str
    split: str
    labels: dict[str, int]
    boxes: dict[str, torch.Tensor]
    covariates: NotRequired[dict[str, float | str]]


class Batch(TypedDict):
    """Items put together by `collate`: images stacked to (B, 3, H, W), every other field a list of B entries."""

    image: torch.Tensor
    image_id: list[str]
    patient_id: list[str]
    split: list[str]
    labels: list[dict[str, int]]
    boxes: list[dict[str, torch.Tensor]]
    covariates: NotRequired[list[dict[str, float | str]]]


def collate(items: Sequence[Item]) -> Batch:
    """`collate_fn` for a DataLoader: images differ in their number of boxes, so only the images are stacked."""
    batch: Batch = {
        "image": torch.stack([item["image"] for item in items]),
        "image_id": [item["image_id"] for item in items],
        "patient_id": [item["patient_id"] for item in items],
        "split": [item["split"] for item in items],
        "labels": [item["labels"] for item in items],
        "boxes": [item["boxes"] for item in items],
    }
    if items and "covariates" in items[0]:
        batch["covariates"] = [item["covariates"] for item in items]
    return batch


class MammogramDataset(Selectable, Dataset[Item]):
    """Mammograms with labels and boxes; the readers of file formats derive from it.

    Attributes:
        images: one row per image; columns image_id, patient_id, split, what else the reader knows of images, then the
            class number of every concept. No paths.
        findings: one row per row of the annotation file; columns image_id, the class number of every concept, xmin,
            ymin, xmax, ymax in pixels of the network's input (NaN without a box).
        vocabulary: every concept that images are labelled with, by name.
        concepts: the names of the findings: concepts that are absent or present, and may have boxes.
        at_skin: the findings whose boxes lie half outside of the breast, by rights.
        image_size: (H, W) of every image.
        unit: "image" (one item per image) or "finding_row" (one item per annotation row, as the released code
            evaluates).
        preprocessing: how the pixels of an item become its image; Mammo-CLIP's, unless `with_preprocessing` said other.
    """

    images: pd.DataFrame
    findings: pd.DataFrame
    vocabulary: Vocabulary
    concepts: tuple[str, ...]
    at_skin: frozenset[str] = frozenset()
    image_size: tuple[int, int]
    unit: Unit
    preprocessing: Preprocessing = MAMMO_CLIP
    reads_16_bit: bool = False
    """Whether 16-bit grayscale files are read, in place of being refused."""

    def __init__(
        self,
        *,
        images: pd.DataFrame,
        findings: pd.DataFrame,
        concepts: Iterable[Concept],
        image_size: tuple[int, int],
        unit: Unit,
        paths: Sequence[str],
        box_changes: pd.DataFrame,
    ) -> None:
        if unit not in ("image", "finding_row"):
            raise InputError(f"unit is {unit!r}; it must be 'image' or 'finding_row'")
        self.images = images.reset_index(drop=True)
        self.findings = findings.reset_index(drop=True)
        self.vocabulary = Vocabulary(concepts)
        self.concepts = self.vocabulary.binary
        self.image_size = image_size
        self.unit = unit
        self._paths = np.asarray(paths, dtype=object)
        self._box_changes = box_changes.reset_index(drop=True)

    # -- items -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.images) if self.unit == "image" else len(self.findings)

    def __getitem__(self, index: int) -> Item:
        """Item `index` (see `Item`).

        Raises:
            BadImageError: its image cannot be read, is wrongly sized or constant.
        """
        image_row = self._image_row(index)
        image_id = self._ids[image_row]
        labels, boxes = self._labels_and_boxes(index)
        return {
            "image": self.preprocessing(self.pixels(image_row), image_id),
            "image_id": image_id,
            "patient_id": str(self.images.at[image_row, "patient_id"]),
            "split": str(self.images.at[image_row, "split"]),
            "labels": labels,
            "boxes": boxes,
        }

    def path(self, index: int) -> Path:
        """The image file of item `index`."""
        return Path(self._paths[self._image_row(index)])

    @property
    def image_paths(self) -> list[Path]:
        """The image files, one per row of `images`."""
        return [Path(path) for path in self._paths]

    def pixels(self, image: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The pixels of an image by its row in `images`: (H, W), or (H, W, 3) of a colour file.

        Raises:
            BadImageError: the image cannot be read or is wrongly sized.
        """
        return read_png(self._paths[image], self.image_size, deep=self.reads_16_bit)

    def gray(self, index: int) -> npt.NDArray[np.uint8]:
        """The image of item `index` for display: uint8 (H, W), as stored (16-bit ones over their own range).

        Raises:
            BadImageError: the image cannot be read or is wrongly sized.
        """
        pixels = as_8_bit(self.pixels(self._image_row(index)))
        return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))

    def with_preprocessing(self: _Self, preprocessing: Preprocessing) -> _Self:
        """The same images as another network wants them."""
        same = copy.copy(self)
        same.preprocessing = preprocessing
        return same

    def with_classes(self: _Self, groups: Mapping[str, Sequence[Sequence[str]]]) -> _Self:
        """The same images with the classes of concepts put together; what is of no group has no label, -1.

        Args:
            groups: by concept, the classes that make up each new one; a group of two bears both their names. Two groups
                make a binary concept, which the second one is the presence of.
        """
        same = copy.copy(self)
        for cached in _CACHED:
            same.__dict__.pop(cached, None)
        concepts = dict(self.vocabulary)
        for name, classes in groups.items():
            old = self.vocabulary.named(name)
            number = {label: row for row, group in enumerate(classes) for label in group}
            new = np.array([number.get(label, -1) for label in old.classes] + [-1], dtype=np.int64)  # -1 stays -1
            kind: Kind = "binary" if len(classes) == 2 else old.kind
            concepts[name] = Concept(name, kind, tuple(" or ".join(group) for group in classes))
            for table in ("images", "findings"):
                frame = getattr(same, table)
                setattr(same, table, frame.assign(**{name: new[frame[name].fillna(-1).to_numpy(dtype=np.int64)]}))
        same.vocabulary = Vocabulary(concepts.values())
        same.concepts = tuple(name for name in same.vocabulary.binary if name in self.concepts)  # what may have boxes
        return same

    # -- selection ---------------------------------------------------------------------------------------------------

    def _subset(self: _Self, keep: npt.NDArray[np.bool_]) -> _Self:
        rows = keep[self._finding_image_rows]
        subset = copy.copy(self)
        for cached in _CACHED:
            subset.__dict__.pop(cached, None)
        subset.images = self.images[keep].reset_index(drop=True)
        subset.findings = self.findings[rows].reset_index(drop=True)
        subset._paths = self._paths[keep]
        subset._box_changes = self._box_changes[rows].reset_index(drop=True)
        return subset

    @property
    def about(self) -> DatasetAbout:
        """What the images are, whose they are, and whether they may be passed on; else the class."""
        own = type(self).__name__
        return DatasetAbout(name=own.lower(), title=own)

    # -- facts about the whole ---------------------------------------------------------------------------------------

    @property
    def n_clipped_boxes(self) -> int:
        """How many boxes overhung their image a little and were clipped to it."""
        return int(self._box_changes["clipped"].sum())

    @property
    def n_mended_boxes(self) -> int:
        """How many boxes were mended because the annotation file has them wrong."""
        return int(self._box_changes["mended"].sum())

    @property
    def n_inverted_boxes(self) -> int:
        """How many of the mended boxes end before they begin in the annotation file."""
        return int((self._box_changes["mended"] & self._box_changes["inverted"]).sum())

    @property
    def n_dropped_boxes(self) -> int:
        """How many boxes were left out because they cannot be right; their findings are kept, without a box."""
        return int(self._box_changes["dropped"].sum())

    @property
    def box_changes(self) -> pd.DataFrame:
        """The boxes that are not as in the annotation file, one per row.

        Columns: image_id, line (of the file, from 1), change ("mended", "clipped" or "dropped"), reason, file_xmin,
        file_ymin, file_xmax, file_ymax (as in the file), xmin, ymin, xmax, ymax (as used; NaN where dropped).
        """
        change = np.select([self._box_changes[name] for name in _CHANGES], _CHANGES, default="")
        table: pd.DataFrame = self._box_changes.drop(columns=["inverted", *_CHANGES])
        table.insert(0, "image_id", self.findings["image_id"])
        table.insert(2, "change", change)
        table = table.join(self.findings[list(BOX_COLUMNS)])
        changed: pd.DataFrame = table[change != ""].reset_index(drop=True)
        return changed

    @property
    def n_findings_without_box(self) -> int:
        """How many annotation rows name a finding but draw no box."""
        positive = self._presence_table.any(axis=1)
        return int((positive & self.findings["xmin"].isna().to_numpy()).sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the network is shown: both tables, the image size, the byte count of every image file, and
        the preprocessing.

        It does not depend on where the files lie, on the unit, or on the annotation file's layout. Of somebody's
        subclass that makes its items itself it also holds three of them: what it does to images is not known otherwise.
        """
        parts = [self._content, self.preprocessing.fingerprint]
        maker = next(kind for kind in type(self).__mro__ if "__getitem__" in vars(kind))
        if maker.__module__.partition(".")[0] != __name__.partition(".")[0]:
            for index in sorted({0, len(self) // 2, len(self) - 1} & set(range(len(self)))):
                parts.append(hashlib.sha256(self[index]["image"].contiguous().numpy().tobytes()).hexdigest())
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def _identity(self) -> tuple[Any, ...]:
        """What the fingerprint holds beside tables and files."""
        return (self.name, tuple(self.image_size), self.vocabulary.to_json())

    @cached_property
    def _content(self) -> str:
        digest = hashlib.sha256(repr(self._identity).encode())
        for table in (self.images, self.findings):
            digest.update(table.to_csv(index=False, lineterminator="\n").encode())
        for path in self._paths:
            try:
                size = os.stat(path).st_size
            except OSError:
                size = -1
            digest.update(f"{size}\n".encode())
        return digest.hexdigest()

    # -- tables in the form that items need --------------------------------------------------------------------------

    @cached_property
    def _finding_image_rows(self) -> npt.NDArray[np.intp]:
        rows = pd.Index(self.images["image_id"]).get_indexer(self.findings["image_id"])
        return np.asarray(rows, dtype=np.intp)

    @cached_property
    def _rows_by_image(self) -> list[npt.NDArray[np.intp]]:
        order = np.argsort(self._finding_image_rows, kind="stable")
        starts = np.searchsorted(self._finding_image_rows[order], np.arange(1, len(self.images)))
        return np.split(order, starts)

    @cached_property
    def _label_table(self) -> npt.NDArray[np.int64]:
        table = self.images if self.unit == "image" else self.findings
        return table[list(self.vocabulary)].to_numpy(dtype=np.int64)

    @cached_property
    def _presence_table(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.findings[list(self.concepts)].to_numpy() == 1, dtype=bool)

    @cached_property
    def _box_table(self) -> npt.NDArray[np.float32]:
        return self.findings[list(BOX_COLUMNS)].to_numpy(dtype=np.float32)

    def _image_row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} items")
        index %= len(self)
        return index if self.unit == "image" else int(self._finding_image_rows[index])

    def _labels_and_boxes(self, index: int) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
        index %= len(self)
        labels = dict(zip(self.vocabulary, self._label_table[index].tolist(), strict=True))
        rows = self._rows_by_image[index] if self.unit == "image" else np.array([index])
        has_box = ~np.isnan(self._box_table[rows, 0])
        boxed = rows[has_box]
        boxes = {
            concept: torch.from_numpy(self._box_table[boxed[self._presence_table[boxed, column]]])
            for column, concept in enumerate(self.concepts)
        }
        return labels, boxes


def describe(count: int, what: str, examples: Iterable[Any], advice: str = "") -> str:
    """A problem as "3 rows ... (such as a, b, c): advice"; at most three examples are shown."""
    shown = [str(example) for example in examples][:3]
    said = _of_one(what) if count == 1 else what
    return f"{count} {said}" + (f" (such as {', '.join(shown)})" if shown else "") + (f": {advice}" if advice else "")


def _of_one(what: str) -> str:
    """What is said of several things, said of one: its first noun, and the verbs before a bracket or colon."""
    said, *rest = re.split(r"(?=[(:;])", what, maxsplit=1)
    if not re.match(r"of \d", said):  # one "of 5 files"
        said = re.sub(
            r"\b(row|patient|image id|image|file|value|boxe|volume|mask|group)s\b",
            lambda one: _ONE.get(one[1], one[1]),
            said,
            count=1,
        )
    return re.sub(
        r"\b(are shares|no numbers|are|have|cover|lie|reach|repeat|stand)\b", lambda one: _ONE[one[1]], said
    ) + "".join(rest)


_ONE = {
    "boxe": "box",
    "are shares": "is in shares",
    "no numbers": "no number",
    "are": "is",
    "have": "has",
    "cover": "covers",
    "lie": "lies",
    "reach": "reaches",
    "repeat": "repeats",
    "stand": "stands",
}
