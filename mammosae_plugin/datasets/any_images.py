"""Any images as a dataset that can be studied: a tensor, a dataset of torch, of torchvision or of Hugging Face.

What is found of a source (`image_sources`) becomes the two tables; what nothing says (ids, patients, labels, boxes,
splits) is made or missing, and `AnyImages.made` says which.
"""

__all__ = ["AnyImages", "as_images", "for_network", "made_of"]

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from typing_extensions import Self

from mammosae_plugin.adapters.preprocessing import Preprocessing, own_preprocessing
from mammosae_plugin.arguments import entries
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import BOX_COLUMNS, Item, MammogramDataset, describe
from mammosae_plugin.datasets.concepts import Concept
from mammosae_plugin.datasets.exams import ExamImages, by_exam
from mammosae_plugin.datasets.image_sources import Found, as_pixels, find, is_8_bit, labels_of
from mammosae_plugin.datasets.protocol import StudyDataset, is_study_dataset
from mammosae_plugin.datasets.splits import TEST, make_split, split_word
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)

_IDS = ("image_id", "patient_id", "split")
_TRANSFORM = "as_images(images, transform=...)"


@dataclass(frozen=True)
class _AsGiven(Preprocessing):
    """Of images that are the network's input already; or, with `how` None, of pixels of which nothing says how."""

    mean: float = 0.0
    std: float = 1.0
    scale: Any = "full_range"
    how: str | None = None

    def __call__(self, array: npt.NDArray[Any], name: str = "") -> torch.Tensor:  # noqa: ARG002
        raise InputError(
            f"nothing says how pixels become the network's input: state it, {_TRANSFORM}, or give a Preprocessing, "
            "as_images(images).with_preprocessing(IMAGENET)"
        )

    def describe(self) -> dict[str, Any]:
        """It in plain JSON."""
        return {"read_as": "given", "steps": [self.how], "mean": None, "std": None, "resize": None}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of how it is said to be made."""
        return hashlib.sha256(str(self.how).encode()).hexdigest()


_UNSAID = _AsGiven()


class AnyImages(MammogramDataset):
    """Images from anywhere, with the parts that a study needs; `as_images` makes it.

    Attributes:
        images: image_id, patient_id, split, what else is known of images (covariates), the class number of every label.
        findings: the same ids and labels, a row per box, and one with empty boxes for an image without any.
        made: what nothing said of the images and was made or is missing, in words by what it is; and the transform.
        is_input: whether images are the network's input as the source or the transform gives them, and no pixels.
    """

    made: dict[str, str]

    def __init__(
        self,
        found: Found,
        *,
        images: pd.DataFrame,
        findings: pd.DataFrame,
        concepts: Sequence[Concept],
        transform: Callable[[Any], Any] | None,
        about: DatasetAbout,
        made: Mapping[str, str],
    ) -> None:
        """Take what was found; the first image says how large all are."""
        self._found, self._rows, self._transform, self._about = found, np.arange(len(images)), transform, about
        self.made = dict(made)
        known = {*_IDS, *(concept.name for concept in concepts)}
        self.covariates = tuple(name for name in images.columns if name not in known)
        first = self._given(0, images["image_id"][0])
        self._shape = tuple(first.shape)
        unchanged = {"inverted": False, "dropped": False, "mended": False, "clipped": False}
        none = pd.DataFrame({"line": range(len(findings)), "reason": "", **unchanged})
        super().__init__(
            images=images,
            findings=findings,
            concepts=concepts,
            image_size=(int(first.shape[-2]), int(first.shape[-1])) if isinstance(first, torch.Tensor)
            else (int(first.shape[0]), int(first.shape[1])),
            unit="image",
            paths=list(found.paths or images["image_id"]),
            box_changes=none.assign(**{f"file_{name}": np.nan for name in BOX_COLUMNS}),
        )  # fmt: skip
        self._has_boxes = bool(findings["xmin"].notna().any())
        self.is_input = isinstance(first, torch.Tensor)
        self.preprocessing = _AsGiven(how=self._how) if self.is_input else _UNSAID
        again = self._given(0, images["image_id"][0])
        if _digest(first) != _digest(again):
            raise InputError(
                f"image {images['image_id'][0]} is another each time it is read: take what is random out of its "
                "transform (extract_activations has augmentation= for that)"
            )

    @property
    def _how(self) -> str:
        return "as given" if self._transform is None else f"transform: {said_of(self._transform)}"

    def _given(self, row: int, image_id: str) -> torch.Tensor | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """What the source and the transform make of an image: float32 (C, H, W), or pixels."""
        value = self._found.read(int(self._rows[row]))
        if self._transform is not None:
            value = self._transform(value)
        return as_pixels(value, image_id) if is_8_bit(value) else _as_input(value, image_id)

    def __getitem__(self, index: int) -> Item:
        """Item `index`; see `MammogramDataset`.

        Raises:
            InputError: its image is no image, has another size than the first, or nothing says how its pixels become
                the network's input.
        """
        row = self._image_row(index)
        image_id = self._ids[row]
        given = self._given(row, image_id)
        resized = not isinstance(given, torch.Tensor) and self.preprocessing.size is not None and not self._has_boxes
        if isinstance(given, torch.Tensor) != self.is_input:
            raise InputError(f"image {image_id} is {_said(given)}, and the first is not of that kind; {_ALIKE}")
        if tuple(given.shape) != self._shape and not resized:
            raise InputError(f"image {image_id} is {_said(given)}, the first is {self._shape}; {_ALIKE}")
        labels, boxes = self._labels_and_boxes(index)
        of_image = self.images.iloc[row]
        item: Item = {
            "image": given if isinstance(given, torch.Tensor) else self.preprocessing(given, image_id),
            "image_id": image_id,
            "patient_id": str(of_image["patient_id"]),
            "split": str(of_image["split"]),
            "labels": labels,
            "boxes": boxes,
        }
        if self.covariates:
            item["covariates"] = {
                name: of_image[name] if isinstance(of_image[name], str) else float(of_image[name])
                for name in self.covariates
            }
        return item

    def pixels(self, image: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The pixels of an image by its row in `images`: (H, W), or (H, W, 3); of a tensor over its own range."""
        given = self._given(image, self._ids[image])
        if not isinstance(given, torch.Tensor):
            return given
        gray = given.mean(0).numpy()
        low, high = float(gray.min()), float(gray.max())
        return np.round((gray - low) * (255 / ((high - low) or 1))).astype(np.uint8)

    def with_preprocessing(self, preprocessing: Preprocessing) -> Self:
        """The same images as another network wants them; images that are a network's input already stay as they are."""
        return self if self.is_input else super().with_preprocessing(preprocessing)

    @property
    def about(self) -> DatasetAbout:
        """What the images are called; nothing is known of whose they are."""
        return self._about

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tables, of what every image of the source holds, and of three images as the network's input.

        The three tell another transform from one of the same name.
        """
        parts = [self._content, self.preprocessing.fingerprint, self._how]
        if self.preprocessing != _UNSAID:
            parts += [_digest(self[row]["image"]) for row in sorted({0, len(self) // 2, len(self) - 1})]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def _identity(self) -> tuple[Any, ...]:
        of_images = hashlib.sha256(" ".join(self._found.digests[int(row)] for row in self._rows).encode()).hexdigest()
        return (*super()._identity, of_images)

    def _subset(self, keep: npt.NDArray[np.bool_]) -> Self:
        subset = super()._subset(keep)
        subset._rows = self._rows[keep]
        return subset


_ALIKE = f"give images of one size and kind, or a transform that makes them so: {_TRANSFORM}"


def as_images(
    source: Any,
    *,
    transform: Callable[[Any], Any] | None = None,
    labels: Mapping[str, Any] | Sequence[str] | None = None,
    ids: Sequence[Any] | str | None = None,
    groups: Sequence[Any] | str | None = None,
    split: Sequence[Any] | Mapping[str, float] | str | None = None,
    boxes: Mapping[str, Sequence[Any]] | None = None,
    covariates: Mapping[str, Sequence[Any]] | None = None,
    image: str | None = None,
    name: str = "images",
) -> AnyImages:
    """Images from anywhere as a dataset that can be extracted, encoded and studied.

    Items may be images, pairs (image, label, ...), or dicts; of a dict, `image_id`, `patient_id`, `split`, `labels`
    (by name) and `boxes` (by label) are read where they are there, and other numbers and words are covariates. Labels
    of an ImageFolder and ClassLabels of Hugging Face are concepts by themselves.

    Args:
        source: A tensor or array of images (N, C, H, W) or exams (N, V, C, H, W), a list, a dataset of torch with a
            length (ImageFolder, Subset, ...), a DataLoader, whose dataset is taken in its own order, or a dataset of
            Hugging Face with an Image column.
        transform: Called with every image (a PIL image, tensor or array, as the source has it); gives the network's
            input, float (C, H, W), or pixels again. A processor of transformers is one. Without it, floats are the
            network's input as they are, and pixels (PIL images, uint8) go through the network's own preprocessing.
        labels: By name a label of every image (class numbers, words, or missing: -1, NaN, None); or which columns of
            the source are labels.
        ids: An id for every image, or the column that has it; else those of the source, else positions.
        groups: Whose image it is, in the same way; else every image is its own patient.
        split: "training", "validation" or "test" of every image, a column, one word for all, or shares such as
            {"training": 0.8, "test": 0.2}, drawn by patient and always the same. Without it all are "test", which most
            analyses read.
        boxes: By label the boxes of every image, float (n, 4) xyxy in pixels of the network's input. An image with a
            box has the label.
        covariates: By name a number or word of every image.
        image: The column, or key of a dict, with the image, where it is not the only one.
        name: The short name, for metadata.

    Raises:
        InputError: A source without length or positions, images that are none, labels that fit no image, or a
            transform that is random.

    Example:
        >>> images = as_images(torch.rand(8, 3, 32, 32), labels={"bright": [0, 1] * 4}, name="noise")
        >>> images.concepts, len(images), images[1]["labels"]
        (('bright',), 8, {'bright': 1})
    """
    if transform is not None and not callable(transform):
        raise InputError(f"transform is a {type(transform).__name__}: give something that is called with an image")
    found = find(source, image)
    if not len(found.table):
        raise InputError("there is no image: the source is empty")
    table = found.table.assign(**{key: _column(found, values, key) for key, values in (covariates or {}).items()})
    made = {"order": found.said} if found.said else {}
    table = table.assign(**_named(found, "image_id", ids, made), **_named(found, "patient_id", groups, made))
    if found.n_views > 1:
        made["exams"] = f"{found.n_views} views of each"
    if "patient_id" not in table:
        table["patient_id"], made["patients"] = table["image_id"], "each image its own"
    if (twice := table["image_id"][table["image_id"].duplicated()]).size:
        raise InputError(describe(len(twice), "image ids repeat", twice, "give every image its own, ids=[...]"))
    columns, concepts, table = _labelled(found, table, labels)
    findings, concepts = _with_boxes(table["image_id"].tolist(), boxes or found.boxes, columns, concepts)
    if not concepts:
        made["labels"] = "none"
    table["split"] = _splits(found, table, split, made)
    others = [key for key in table if key not in (*_IDS, *concepts)]
    images = pd.concat([table[list(_IDS)], table[others], pd.DataFrame(columns)], axis=1)
    made["transform"] = "none" if transform is None else said_of(transform)
    result = AnyImages(
        found,
        images=images,
        findings=findings,
        concepts=list(concepts.values()),
        transform=transform,
        about=DatasetAbout(name=name, title=f"images of {found.kind}"),
        made=made,
    )
    logger.info(
        "%s of %s: %s", describe(len(images), "images", ()), found.kind, "; ".join(f"{a}: {b}" for a, b in made.items())
    )
    return result


def for_network(source: Any, network: Any, n_views: int = 1) -> StudyDataset:
    """The dataset that a verb was given, or one of whatever else it was given, its pixels as the network wants them.

    Args:
        source: A dataset that can be studied, or a source for `as_images`.
        network: The module that will read the images; its own preprocessing is that of its attribute `preprocessing`,
            or of timm's `default_cfg`.
        n_views: Images of an exam that pass it together: of several, the images come exam by exam (`by_exam`).

    Raises:
        InputError: It is neither, exams are incomplete, or nothing says how its pixels become the network's input.
    """
    dataset: StudyDataset = source if is_study_dataset(source) else as_images(source)
    if n_views > 1 and getattr(dataset, "n_views", 1) != n_views:
        dataset = by_exam(dataset, n_views)
    if dataset.preprocessing is not _UNSAID:
        return dataset
    own = own_preprocessing(network)
    if own is None:
        raise InputError(
            f"the images are pixels, and {type(network).__name__} does not say how it wants them: state it, "
            f"{_TRANSFORM}"
        )
    logger.info("images go through the network's own preprocessing: %s", own.describe())
    return dataset.with_preprocessing(own)


def made_of(dataset: StudyDataset) -> dict[str, Any]:
    """What settings say of a dataset of `AnyImages`: what was made and what is missing; nothing of another."""
    inside: Any = dataset.dataset if isinstance(dataset, ExamImages) else dataset
    return {"dataset_made": inside.made} if isinstance(inside, AnyImages) else {}


def said_of(transform: Any) -> str:
    """A transform in words: a function's name, else how it is written, without addresses in memory."""
    name = getattr(transform, "__qualname__", None)
    words = str(name) if name and not isinstance(transform, type) else repr(transform)
    return " ".join(word for word in words.split() if not word.startswith("0x"))


def _as_input(value: Any, image_id: str) -> torch.Tensor:
    """The network's input (C, H, W) float32 of what a source or transform gives."""
    if isinstance(value, Mapping):  # of a processor of transformers
        value = value.get("pixel_values")
        value = value[0] if isinstance(value, Sequence) and len(value) == 1 else value
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        raise InputError(f"image {image_id} is a {type(value).__name__}: give a PIL image, a tensor or an array")
    if value.dim() == 4 and len(value) == 1:
        value = value[0]
    if value.dim() != 3 or not value.is_floating_point():
        raise InputError(
            f"image {image_id} is {_said(value)}: give floats (C, H, W), the network's input, or uint8 pixels"
        )
    image: torch.Tensor = value.detach().to("cpu", torch.float32).contiguous()
    return image


def _said(value: torch.Tensor | npt.NDArray[Any]) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _digest(value: torch.Tensor | npt.NDArray[Any]) -> str:
    array = value.numpy() if isinstance(value, torch.Tensor) else value
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _column(found: Found, values: Any, what: str) -> "pd.Series[Any]":
    """One value per image: those given, or those of a column of the source."""
    if isinstance(values, str):
        if values not in found.table:
            there = ", ".join(map(str, found.table)) or "none"
            raise InputError(f"{what}: {found.kind} has no column {values!r} (there are: {there})")
        return found.table[values]
    values = values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else entries(values, what)
    if len(values) * found.n_views == len(found.table):  # one for each exam
        values = [one for one in values for _ in range(found.n_views)]
    if len(values) != len(found.table):
        raise InputError(f"{what} has {len(values)} values for {len(found.table)} images: give one for each")
    return pd.Series(values)


def _named(found: Found, column: str, given: Any, made: dict[str, str]) -> dict[str, Any]:
    """The ids of images or patients as text, where they are known or, of images, are made."""
    if given is not None or column in found.table:
        values = _column(found, column if given is None else given, column)
        if values.isna().any():
            raise InputError(describe(int(values.isna().sum()), "images have no id", (), f"see {column}"))
        return {column: values.map(str)}
    if column != "image_id":
        return {}
    made["ids"] = "by position"
    return {column: [f"{row:06d}" for row in range(len(found.table))]}


def _labelled(
    found: Found, table: pd.DataFrame, labels: Any
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Concept], pd.DataFrame]:
    """Class numbers by label, the concepts, and the table without these columns."""
    if labels is None:
        wanted: dict[str, Any] = {key: key for key in found.classes if key in table}
    elif isinstance(labels, Mapping):
        wanted = dict(labels)
    else:
        wanted = {key: key for key in entries(labels, "labels")}
    numbers, concepts = {}, {}
    for key, values in wanted.items():
        if key in (*_IDS, *BOX_COLUMNS):
            raise InputError(f"a label is called {key!r}, which is a column of its own in tables: call it otherwise")
        classes = found.classes.get(values if isinstance(values, str) else key)
        column = _column(found, values, f"labels[{key!r}]")
        if (made := labels_of(key, column, classes)) is None:
            if labels is not None:
                raise InputError(f"labels[{key!r}] has one value alone, which tells no image from another")
            continue
        numbers[key], concepts[key] = made
    used = {values if isinstance(values, str) else key for key, values in wanted.items()} & set(table) - set(_IDS)
    return numbers, concepts, table.drop(columns=sorted(used | (set(wanted) & set(table))))


def _with_boxes(
    ids: Sequence[str],
    boxes: Mapping[str, Sequence[Any]],
    columns: dict[str, npt.NDArray[np.int64]],
    concepts: dict[str, Concept],
) -> tuple[pd.DataFrame, dict[str, Concept]]:
    """The rows of findings, one per box; an image with a box has its label."""
    rows: list[tuple[int, str | None, npt.NDArray[np.float32]]] = []
    for key, given in boxes.items():
        if len(given) != len(ids):
            raise InputError(f"boxes[{key!r}] has {len(given)} entries for {len(ids)} images: give one for each")
        if key in concepts and not concepts[key].is_binary:
            raise InputError(f"boxes[{key!r}]: {key} has {concepts[key].n_classes} classes; boxes are of two")
        concepts[key] = replace(concepts.get(key, Concept(key)), boxes=True)
        present = columns.setdefault(key, np.zeros(len(ids), dtype=np.int64))
        for row, one in enumerate(given):
            found = np.asarray([] if one is None else one, dtype=np.float32).reshape(-1, 4)
            if not (np.isfinite(found).all() and (found[:, :2] < found[:, 2:]).all()):
                raise InputError(f"boxes[{key!r}] of image {ids[row]} are none: give x and y of two corners, rising")
            if len(found) and columns[key][row] != 1:
                present[row] = 1
            rows += [(row, key, box) for box in found]
    boxed = {row for row, _, _ in rows}
    empty = np.full(4, np.nan, dtype=np.float32)
    rows += [(row, None, empty) for row in range(len(ids)) if row not in boxed]
    rows.sort(key=lambda one: one[0])
    order = [row for row, _, _ in rows]
    table: dict[str, Any] = {"image_id": [ids[row] for row in order]}
    for key, values in columns.items():
        table[key] = values[order]
        if concepts[key].boxes:  # a box is of its own label alone
            others = np.array([of not in (None, key) for _, of, _ in rows])
            table[key] = np.where(others & (table[key] == 1), 0, table[key])
    of_boxes = pd.DataFrame(np.stack([box for _, _, box in rows]), columns=list(BOX_COLUMNS))
    return pd.concat([pd.DataFrame(table), of_boxes], axis=1), concepts


def _splits(found: Found, table: pd.DataFrame, split: Any, made: dict[str, str]) -> "pd.Series[Any]":
    """The split of every image."""
    if isinstance(split, Mapping):
        drawn = make_split(table[["patient_id"]], by=["patient_id"], shares=dict(split)).set_index("patient_id")[
            "split"
        ]
        made["splits"] = "drawn by patient, seed 42"
        return table["patient_id"].map(drawn)
    if split is None and "split" not in found.table:
        made["splits"] = f"all {TEST}"
        return pd.Series(TEST, index=table.index)
    if isinstance(split, str) and split not in found.table:
        return pd.Series(split_word(split), index=table.index)
    return _column(found, "split" if split is None else split, "split").map(split_word)
