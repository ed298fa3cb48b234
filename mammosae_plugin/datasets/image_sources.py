"""What a source of images has: how an image is read, what is known of each, a digest of what each holds.

A source is a tensor, a list, a dataset of torch or torchvision, a DataLoader or a dataset of Hugging Face. Kinds whose
tables can be read without their images (ImageFolder, Hugging Face) are; of others every item is read once.
"""

__all__ = ["as_pixels", "find", "Found", "is_8_bit", "labels_of"]

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_convert,
)
from torch.utils.data import default_collate as torch_collate

from mammosae_plugin.arguments import shown
from mammosae_plugin.datasets.concepts import Concept
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_IMAGE_KEYS = ("image", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels")
_SCALARS = ("string", "int", "uint", "float", "bool")  # of Hugging Face's features
_SIDES = (1, 3)  # channels of pixels
_KINDS = (torch.Tensor, np.ndarray, Image.Image)


@dataclass
class Found:
    """What a source has.

    Attributes:
        kind: What it is, for messages.
        read: Gives the image of a row: a PIL image, tensor or array.
        table: A row per image: what is known of it (labels as they stand, ids, covariates); maybe no column.
        digests: Of what every image of the source holds.
        classes: By column that is a label, the names of its classes, or None where they are read off its values.
        boxes: By label the boxes of every image.
        paths: The files, where there are such.
        said: What is to be said of the order; empty without.
        n_views: Images of an exam, where the source has exams: rows are exam by exam.
    """

    kind: str
    read: Callable[[int], Any]
    table: pd.DataFrame
    digests: Sequence[str]
    classes: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    boxes: dict[str, list[Any]] = field(default_factory=dict)
    paths: list[str] | None = None
    said: str = ""
    n_views: int = 1


def find(source: Any, image: str | None = None) -> Found:
    """What a source has.

    Args:
        source: See the module.
        image: The column, or key of a dict, with the image.

    Raises:
        InputError: It has no length or no positions, or no image is found in its items.
    """
    if isinstance(source, DataLoader):
        return _of_loader(source, image)
    kind = type(source).__name__
    if isinstance(source, Mapping) and not _is_hugging_face(source):
        some = ", ".join(map(str, list(source)[:3]))
        raise InputError(
            f"a {kind} holds several things ({some}): give one of them, such as images[{next(iter(source), '')!r}]"
        )
    if isinstance(source, (torch.Tensor, np.ndarray)):
        if source.ndim == 5:
            return _of_items(_Exams(source, image, int(source.shape[1])), "image", kind)
        if source.ndim not in (3, 4) or (source.ndim == 3 and not _is_pixel_type(source)):
            raise InputError(
                f"the images are a {kind} of shape {tuple(source.shape)}: give (N, C, H, W), with [None] for a "
                "single one"
            )
        digests = [_digest(source[row]) for row in range(len(source))]
        return Found(f"a {kind}", source.__getitem__, pd.DataFrame(index=range(len(source))), digests)
    if isinstance(source, IterableDataset) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        how = "list(images.take(1000))" if hasattr(source, "take") else "list(itertools.islice(images, 1000))"
        raise InputError(
            f"a {kind} has no length or no positions, by which images get ids: put as many into a list as memory "
            f"holds, as_images({how})"
        )
    if isinstance(source, (str, bytes, os.PathLike)):
        raise InputError(f"the images are {shown(source)}: open them first, such as load_images(mapping, folder)")
    if _is_hugging_face(source) and source.format["type"] != "custom":
        return _of_hugging_face(source, image)
    if all(hasattr(source, name) for name in ("samples", "classes", "loader", "targets")):
        return _of_folder(source)
    return _of_items(source, image, kind)


def _of_loader(loader: "DataLoader[Any]", image: str | None) -> Found:
    """A loader's dataset in its own order; what the loader makes of single items is kept."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(sampler) is BatchSampler:  # as a loader makes it; another may choose as it likes
        sampler = sampler.sampler
    if isinstance(loader.dataset, IterableDataset):
        return find(loader.dataset, image)
    if not isinstance(sampler, (SequentialSampler, RandomSampler)) or (
        getattr(sampler, "replacement", False) or len(sampler) != len(cast("Sized", loader.dataset))
    ):
        raise InputError(
            f"the DataLoader chooses its images by a {type(sampler).__name__}, in an order that is not the dataset's: "
            "give the dataset, or torch.utils.data.Subset(dataset, indices)"
        )
    source: Any = loader.dataset
    if loader.collate_fn not in (torch_collate, default_convert):
        source = _Collated(source, loader.collate_fn)
    found = find(source, image)
    found.kind = f"a DataLoader of {found.kind}"
    if isinstance(sampler, RandomSampler):
        found.said = "the dataset's own, the loader's shuffling left aside"
    return found


@dataclass
class _Collated:
    """Items as a loader's own `collate_fn` makes them, of batches of one."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return _first(self.collate([self.dataset[row]]))


def _first(batch: Any) -> Any:
    """The one item of a batch of one."""
    if isinstance(batch, Mapping):
        return {key: _first(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_first(value) for value in batch)
    return batch[0] if isinstance(batch, (torch.Tensor, np.ndarray, list)) and len(batch) == 1 else batch


def _of_folder(source: Any) -> Found:
    """torchvision's ImageFolder: files, each in the folder of its class."""
    paths = [str(path) for path, _ in source.samples]
    root = Path(source.root)
    names = [Path(path).relative_to(root).as_posix() if root in Path(path).parents else path for path in paths]
    transform = f" {source.transform!r}" if getattr(source, "transform", None) is not None else ""
    return Found(
        f"a {type(source).__name__}",
        partial(_image_at, source, None),
        pd.DataFrame({"label": list(source.targets), "image_id": names}),
        [f"{name} {os.stat(path).st_size}{transform}" for name, path in zip(names, paths, strict=True)],
        classes={"label": tuple(source.classes)},
        paths=paths,
    )


def _is_hugging_face(source: Any) -> bool:
    return type(source).__module__.partition(".")[0] == "datasets" and hasattr(source, "features")


def _of_hugging_face(source: Any, image: str | None) -> Found:
    """A `datasets.Dataset`: its columns without decoding images, whose bytes are digested as they are."""
    features = source.features
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    kind = "a Hugging Face dataset"
    if image is None and len(images) == 1:
        image = images[0]
    if image is None or image not in images:
        have = f"its Image columns are {', '.join(images)}" if images else f"it has none, only {', '.join(features)}"
        raise InputError(f"{kind} needs one Image column to read: {have}; name it, image='...', or cast_column it")
    plain = source.with_format(None)
    table: dict[str, Any] = {}
    classes: dict[str, tuple[str, ...] | None] = {}
    for name, feature in features.items():
        names = getattr(feature, "names", None)
        inner = getattr(getattr(feature, "feature", None), "names", None)
        if names is not None:
            table[name], classes[name] = plain[name][:], tuple(names)
        elif inner is not None:  # several labels of one image: each name is one
            lists = plain[name][:]
            for number, word in enumerate(inner):
                table[word], classes[word] = [None if x is None else int(number in x) for x in lists], None
        elif str(getattr(feature, "dtype", "")).startswith(_SCALARS):
            table[name] = plain[name][:]
    raw = plain.select_columns(image).cast_column(image, type(features[image])(decode=False))
    digests = [_digest_of_file(raw[row][image]) for row in range(len(raw))]
    return Found(kind, partial(_hugging_face_image, source.select_columns(image), image),
                 pd.DataFrame(table, index=range(len(source))), digests, classes)  # fmt: skip


def _hugging_face_image(source: Any, image: str, row: int) -> Any:
    return source[row][image]


def _digest_of_file(cell: Mapping[str, Any]) -> str:
    if cell["bytes"] is not None:
        return hashlib.sha256(cell["bytes"]).hexdigest()
    return f"{cell['path']} {os.stat(cell['path']).st_size}" if os.path.exists(str(cell["path"])) else str(cell["path"])


def _of_items(source: Any, image: str | None, kind: str) -> Found:
    """Any other dataset with positions: every item is read once."""
    if len(source) and not isinstance(source, _Exams):
        first = _image_in(source[0], image, 0)
        if _n_axes(first) == 4 and len(first) > 1:
            return _of_items(_Exams(source, image, len(first)), "image", kind)
    logger.info("reading the %d items of a %s once, for their labels and a digest", len(source), kind)
    rows: list[dict[str, Any]] = []
    classes: dict[str, tuple[str, ...] | None] = {}
    boxes: dict[int, Mapping[str, Any]] = {}
    digests, n_labels = [], set[int]()
    for row in range(len(source)):
        item = source[row]
        digests.append(_digest(_image_in(item, image, row)))
        known = _known(item, image)
        if isinstance(found := known.pop("boxes", None), Mapping):
            boxes[row] = found
        elif found is not None:
            raise InputError(
                f"item {row} has boxes of no label ({type(found).__name__}): give them by label, {{label: (n, 4)}}"
            )
        labels = known.pop("", {})
        classes |= dict.fromkeys(labels)
        n_labels.add(sum(name.startswith("label_") for name in labels))
        rows.append({**known, **labels})
    if len(n_labels - {0}) > 1:
        raise InputError(
            f"the labels of items are lists of {' or '.join(map(str, sorted(n_labels)))}: give each item a list of 0 "
            "and 1 of one length, or one class"
        )
    if any(isinstance(row.get("label"), float) and not row["label"].is_integer() for row in rows):
        classes.pop("label", None)  # a measurement: a covariate
    of_boxes = {
        key: [boxes.get(row, {}).get(key) for row in range(len(rows))]
        for key in dict.fromkeys(k for b in boxes.values() for k in b)
    }
    own = getattr(source, "classes", None)
    if isinstance(own, Sequence) and not isinstance(own, str) and "label" in classes:
        classes["label"] = tuple(map(str, own))
    table = pd.DataFrame(rows, index=range(len(rows)))
    n_views = source.n_views if isinstance(source, _Exams) else 1
    return Found(f"a {kind}", partial(_image_at, source, image), table, digests, classes, of_boxes, n_views=n_views)


class _Exams:
    """The images of a source whose items are exams, (V, C, H, W) each; ids and views are in lists of V."""

    def __init__(self, source: Any, image: str | None, n_views: int) -> None:
        self.source, self.image, self.n_views = source, image, n_views

    def __len__(self) -> int:
        return len(self.source) * self.n_views

    def __getitem__(self, row: int) -> dict[str, Any]:
        exam, view = divmod(row, self.n_views)
        item = self.source[exam]
        images = _image_in(item, self.image, exam)
        if _n_axes(images) != 4 or len(images) != self.n_views:
            raise InputError(f"exam {exam} is {tuple(images.shape)}: give {self.n_views} views of each, (V, C, H, W)")
        known = _known(item, self.image)
        of_views = item if isinstance(item, Mapping) else {}
        ids, views = of_views.get("image_ids"), of_views.get("views", range(self.n_views))
        name = str(known.pop("exam_id", known.pop("image_id", f"{exam:06d}")))
        return {
            **{key: value for key, value in known.items() if key not in ("", "boxes")},
            "labels": known[""],
            "image": images[view],
            "image_id": f"{name}_{views[view]}" if ids is None else str(ids[view]),
            "exam_id": name,
            "view": str(views[view]),
            "patient_id": str(known.get("patient_id", name)),
        }


def _image_at(source: Any, image: str | None, row: int) -> Any:
    return _image_in(source[row], image, row)


def _image_in(item: Any, image: str | None, row: int) -> Any:
    """The image of an item."""
    if isinstance(item, Mapping):
        wide = [key for key, value in item.items() if isinstance(value, _KINDS) and _n_axes(value) > 1]
        keys = [key for key in ((image,) if image is not None else _IMAGE_KEYS) if key in item] or wide
        if len(keys) != 1 or (image is not None and image not in item):
            raise InputError(
                f"item {row} has no one image among {', '.join(map(str, item))}: name its key, image='...'"
            )
        return item[keys[0]]
    value = item[0] if isinstance(item, (tuple, list)) and len(item) else item
    if not isinstance(value, _KINDS):
        raise InputError(f"item {row} is a {type(value).__name__}: give an image, a pair (image, label) or a dict")
    return value


def _n_axes(value: Any) -> int:
    return 2 if isinstance(value, Image.Image) else int(value.ndim)


def _known(item: Any, image: str | None) -> dict[str, Any]:
    """What an item says beside its image; its labels under the empty name."""
    if isinstance(item, (tuple, list)):
        rest = item[1] if len(item) > 1 else None
        if isinstance(rest, Mapping):
            return _known(rest, image)
        return {"": _labels("label", rest)}
    if not isinstance(item, Mapping):
        return {"": {}}
    known: dict[str, Any] = {"": {}}
    for key, value in item.items():
        if key == "boxes":
            known[key] = value
        elif key in _LABEL_KEYS:
            known[""] |= (
                {k: _scalar(v) for k, v in value.items()} if isinstance(value, Mapping) else _labels("label", value)
            )
        elif key == "covariates" and isinstance(value, Mapping):
            known |= value
        elif key != image and (scalar := _scalar(value)) is not None:
            known[str(key)] = scalar
    return known


def _labels(name: str, value: Any) -> dict[str, Any]:
    """A number or word as a label, a row of 0 and 1 as one label each."""
    if (scalar := _scalar(value)) is not None:
        return {} if scalar != scalar else {name: scalar}
    row = np.asarray(value) if isinstance(value, (torch.Tensor, np.ndarray, list)) else np.zeros((0, 0))
    if row.ndim == 1 and row.dtype.kind in "iufb" and np.isin(row, (0, 1)).all():
        return {f"{name}_{number}": int(one) for number, one in enumerate(row)}
    return {}


def _scalar(value: Any) -> Any:
    """A number or word; None of anything else."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.item() if value.ndim == 0 else None
    return value if isinstance(value, (str, Real)) else None


def labels_of(
    name: str, values: "pd.Series[Any]", classes: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], Concept] | None:
    """Class numbers (n,), -1 where missing, and the concept, of the values of a label; None of one value alone.

    Args:
        name: The label.
        values: Class numbers, truth values or words.
        classes: The names of its classes; None reads them off the values: absent and present of 0 and 1.

    Raises:
        InputError: Numbers that are no classes.
    """
    missing = values.isna().to_numpy()
    if values[~missing].map(lambda one: isinstance(one, str)).any():
        words = values.where(~missing).map(str, na_action="ignore")
        classes = tuple(sorted(words.dropna().unique())) if classes is None else classes
        numbered = words.map({word: number for number, word in enumerate(classes)})
        unknown = words[numbered.isna().to_numpy() & ~missing]
    else:
        numbered = pd.to_numeric(values.astype(object).where(~missing), errors="coerce")
        n_classes = np.inf if classes is None else len(classes)
        unknown = values[~missing & ~((numbered % 1 == 0) & (numbered >= -1) & (numbered < n_classes)).to_numpy()]
    if len(unknown):
        raise InputError(
            f"the label {name} is {shown(unknown.iloc[0])} in an image: give class numbers from 0, or words"
        )
    numbers = numbered.fillna(-1).to_numpy(dtype=np.float64).astype(np.int64)
    if classes is None:
        most = int(numbers.max(initial=-1))
        classes = ("absent", "present") if most <= 1 else tuple(map(str, range(most + 1)))
    if len(classes) < 2:
        return None
    kind: Any = "binary" if len(classes) == 2 else "multiclass"
    return numbers, Concept(name, kind, tuple(classes))


def _is_pixel_type(value: Any) -> bool:
    return str(value.dtype).removeprefix("torch.") in ("uint8", "uint16")


def is_8_bit(value: Any) -> bool:
    """Whether an image is pixels and no network's input: a PIL image, or whole numbers of 8 or 16 bit."""
    return isinstance(value, Image.Image) or (isinstance(value, (torch.Tensor, np.ndarray)) and _is_pixel_type(value))


def as_pixels(value: Any, image_id: str) -> Pixels:
    """Pixels (H, W) or (H, W, 3), uint8 or uint16, of an image that is such.

    Args:
        value: A PIL image, a tensor (C, H, W) or array (C, H, W), (H, W) or (H, W, C), of 1 or 3 channels.
        image_id: For messages.

    Raises:
        InputError: Another shape, or a PIL image of floats.
    """
    if isinstance(value, Image.Image):
        if value.mode in ("I", "F"):
            raise InputError(
                f"image {image_id} is of PIL's mode {value.mode}, whose range is not known: give a transform"
            )
        if not value.mode.startswith("I;16"):
            value = value if value.mode in ("L", "RGB") else value.convert("L" if value.mode in ("1", "LA") else "RGB")
        array = np.asarray(value)
    else:
        array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.ndim == 3 and array.shape[0] in _SIDES and array.shape[2] not in _SIDES:
            array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != _SIDES[-1]):
        raise InputError(f"image {image_id} is pixels of shape {array.shape}: give (H, W), or 1 or 3 channels")
    return np.ascontiguousarray(array.astype(np.uint8 if array.dtype == np.uint8 else np.uint16, copy=False))


def _digest(value: Any) -> str:
    """SHA-256 of an image as the source has it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        head, data = f"{value.dtype} {tuple(value.shape)}", value.view(torch.uint8) if value.ndim else value
        return hashlib.sha256(head.encode() + np.asarray(data).tobytes()).hexdigest()
    array = np.ascontiguousarray(value)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
