"""Rows of one vector per image, wherever they lie: an activation store, or files of embeddings; read in order."""

__all__ = [
    "as_sails", "IMAGES", "images_of", "in_lengths", "labelled", "open_rows", "ROW_KEY", "RowSource", "Source",
    "write_embeddings",
]  # fmt: skip

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin import distributed
from mammosae_plugin.activations.embedding_files import EmbeddingFile, Vectors, write_vectors
from mammosae_plugin.activations.store import MANIFEST, ActivationStore
from mammosae_plugin.arguments import entries, shown
from mammosae_plugin.datasets.concepts import Concept, Vocabulary, nearest_names
from mammosae_plugin.datasets.splits import TRAINING, split_word
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_parquet, sha256_of_file, sha256_of_json

logger = logging.getLogger(__name__)

ROW_KEY = ("modality", "image_id", "slice_orientation", "slice_idx")
"""What tells the slices of volumes apart: an image_id is unique only within its modality."""
IMAGES = "images.parquet"  # in a store of embeddings: what is known of each image
_KNOWN = ("image_id", "patient_id", "split")
_BLOCK = 1024
_SOME = 8  # names in a message

Source = ActivationStore | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class RowSource:
    """Rows (n, d) and what is known of each.

    Attributes:
        images: One row per row: image_id (unique), patient_id (what is kept apart and resampled), split, labels.
        vocabulary: The columns of `images` that are labels, as class numbers; -1 where one is missing.
        width: Numbers in a row.
        name: What the rows are of, for messages.
        hook_name: The hook point whose values the rows are; of files the column that they are in.
        image_size: (H, W) of the images; (0, 0) where it is not known.
    """

    def __init__(self, images: pd.DataFrame, vocabulary: Vocabulary) -> None:
        """Take what is known of the rows."""
        self.images, self.vocabulary = images, vocabulary
        self.width, self.name, self.hook_name, self.image_size = 0, "", "", (0, 0)

    @property
    def fingerprint(self) -> str:
        """A digest of the rows."""
        raise NotImplementedError

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[Vectors]:
        """The rows of these numbers, which rise, in order: float32 (n_i, d), a block at a time.

        Raises:
            InputError: A row that is damaged or not finite.
        """
        raise NotImplementedError


class _StoreRows(RowSource):
    def __init__(self, store: ActivationStore, images: pd.DataFrame, vocabulary: Vocabulary) -> None:
        super().__init__(images, vocabulary)
        self.store = store
        self.width, self.name, self.hook_name = store.d_in, str(store.folder), store.hook_name
        size = store.manifest.get("image_size") or (0, 0)
        self.image_size = (int(size[0]), int(size[1]))

    @property
    def fingerprint(self) -> str:
        return sha256_of_json({key: self.store.manifest[key] for key in ("shards", "image_ids")})

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[Vectors]:
        if not len(rows):
            return
        for vectors, image, _ in self.store.shards(first=int(rows[0])):
            first = int(image[0])
            low, high = np.searchsorted(rows, [first, first + len(image)])
            if not (np.arange(first, first + len(image)) == image.numpy()).all():
                raise _several_positions(self.store)
            chosen = vectors[rows[low:high] - first].float().numpy()
            yield from (chosen[start : start + _BLOCK] for start in range(0, len(chosen), _BLOCK))
            if high == len(rows):
                return


class _FileRows(RowSource):
    def __init__(self, files: Sequence[EmbeddingFile], images: pd.DataFrame, vocabulary: Vocabulary) -> None:
        super().__init__(images, vocabulary)
        self.files = files
        self.width, self.hook_name = files[0].width, files[0].column
        self.name = ", ".join(str(file.path) for file in files)

    @cached_property
    def fingerprint(self) -> str:
        return sha256_of_json([file.fingerprint() for file in self.files])

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[Vectors]:
        first = 0
        for file in self.files:
            low, high = np.searchsorted(rows, [first, first + file.n_rows])
            if high > low:
                yield from file.blocks(rows[low:high] - first)
            first += file.n_rows


def open_rows(
    source: Source,
    *,
    column: str | None = None,
    images: pd.DataFrame | None = None,
    vocabulary: Vocabulary | None = None,
    concepts: Sequence[str | Concept] | None = None,
    split: str = TRAINING,
) -> RowSource:
    """Rows of one vector per image.

    Args:
        source: An activation store of one position per image, or its folder; a file of embeddings, several (of one
            split each), or a folder with them.
        column: Of files, the column with the vectors.
        images: What is known of the images, by image_id, instead of what lies beside the rows.
        vocabulary: What `images` are labelled with, as class numbers.
        concepts: Which columns are labels: names, or concepts. By default of files every column that holds 0 and 1
            alone.
        split: The split of rows of which nothing says another.

    Raises:
        InputError: Not such rows, files of several widths, an image that is there twice, or a table that lacks images.
    """
    if isinstance(source, (str, os.PathLike)) and (local_path(source) / MANIFEST).exists():
        source = ActivationStore(local_path(source))
    if isinstance(source, ActivationStore):
        store = source
        if store.n_rows != len(store.image_ids):
            raise _several_positions(store)
        return _StoreRows(
            store, *images_of(store, images=images, vocabulary=vocabulary, concepts=concepts, split=split)
        )
    files = [EmbeddingFile(path, column) for path in _paths(source)]
    for file in files:
        if (file.width, file.column) != (files[0].width, files[0].column):
            raise InputError(
                f"{file.path} has {file.column} of {file.width} numbers, {files[0].path} has {files[0].column} of "
                f"{files[0].width}; give files of one model"
            )
    known = pd.concat([_named(file, split) for file in files], ignore_index=True)
    twice = known.duplicated(["image_id", "split"])
    if twice.any():
        raise InputError(
            f"image {known['image_id'].iloc[int(twice.argmax())]} is twice in {files[0].path} or the files beside it; "
            "every row of a split needs an image_id of its own"
        )
    if (shared := known["image_id"].duplicated()).any():
        logger.warning(
            "%d images are in more than one split, the first %s: what is judged on one of these splits has seen them",
            *(int(shared.sum()), known["image_id"].iloc[int(shared.argmax())]),
        )
    found = _table(known, images, files[0].path, known["image_id"].tolist())
    return _FileRows(files, *labelled(found, vocabulary, concepts))


def in_lengths(rows: RowSource, wanted: Sequence[npt.NDArray[np.int64]]) -> Iterator[Vectors]:
    """The rows of each of several lists of numbers, which all together rise, from one pass: float32 (len, d) each."""
    blocks = rows.blocks(np.concatenate(wanted)) if wanted else iter(())
    left = np.zeros((0, rows.width), dtype=np.float32)
    for chosen in wanted:
        pieces, n_there = [left], len(left)
        while n_there < len(chosen):
            pieces.append(next(blocks))
            n_there += len(pieces[-1])
            distributed.check()
        joined = np.concatenate(pieces)
        left = joined[len(chosen) :]
        yield joined[: len(chosen)]


def images_of(
    store: ActivationStore,
    *,
    images: pd.DataFrame | None = None,
    vocabulary: Vocabulary | None = None,
    concepts: Sequence[str | Concept] | None = None,
    split: str = TRAINING,
) -> tuple[pd.DataFrame, Vocabulary]:
    """What is known of the images of any store, in its order, and which of it are labels; arguments as `open_rows`."""
    known, told = _beside(store, split)
    found = _table(known, images, store.folder, list(store.image_ids))
    if images is None and concepts is None:
        return found, told
    return labelled(found, vocabulary, concepts, told if images is None else Vocabulary([]))


def write_embeddings(source: Source, folder: str | os.PathLike[str], name: str = "embeddings") -> list[Path]:
    """Write the rows of a store, or of other files, as SAIL's files of embeddings, one per split; streaming.

    Args:
        source: As for `open_rows`.
        folder: Where the files go: `<name>_train.parquet`, `<name>_valid.parquet`, `<name>_test.parquet`.
        name: How their names begin.

    Returns:
        The files.

    Raises:
        InputError: As `open_rows`.
    """
    rows = open_rows(source)
    words, files = {"training": "train", "validation": "valid"}, []
    for split in sorted(rows.images["split"].unique()):
        numbers = np.flatnonzero((rows.images["split"] == split).to_numpy())
        files.append(local_path(folder) / f"{name}_{words.get(split, split)}.parquet")
        write_vectors(files[-1], as_sails(rows.images.iloc[numbers]), rows.blocks(numbers))
    return files


def as_sails(images: pd.DataFrame) -> pd.DataFrame:
    """A table of images without its split, under SAIL's key where the rows are slices of volumes.

    There, image_id is unique within its modality alone.
    """
    known = images.drop(columns="split").reset_index(drop=True)
    if not {"volume", *ROW_KEY} <= set(known.columns):
        return known
    return known.drop(columns=["image_id", "patient_id"]).rename(columns={"volume": "image_id"})


def _several_positions(store: ActivationStore) -> InputError:
    return InputError(
        f"{store.folder} has {store.n_rows} rows of {len(store.image_ids)} images; rows of one vector per image are "
        "wanted (mammosae embed), tables of maps are made by encode_latents"
    )


def _paths(source: Any) -> list[Path]:
    if not isinstance(source, (str, os.PathLike)):
        paths = [local_path(path) for path in entries(source, "the files of embeddings")]
    elif local_path(source).is_dir():
        folder = local_path(source)
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".parquet", ".npy"))
        if not paths:
            raise InputError(f"{folder} holds no activation store and no .parquet or .npy file; name the embeddings")
    else:
        paths = [local_path(source)]
    if not paths:
        raise InputError("name at least one file of embeddings")
    return paths


def _named(file: EmbeddingFile, split: str) -> pd.DataFrame:
    """What a file knows of its rows, under the names that tables have: image_id, patient_id, split."""
    known = file.metadata()
    if set(ROW_KEY) <= set(known.columns):
        keys = known[[*ROW_KEY]].itertuples(index=False)
        ids = [f"{modality}/{volume}/{axis}/{_place(at)}" for modality, volume, axis, at in keys]
        group = known["modality"].astype(str) + "/" + known["image_id"].astype(str)
        known = known.rename(columns={"image_id": "volume"})
    else:
        ids = [f"{file.path.stem}/{row}" for row in range(file.n_rows)]
        if "image_id" in known.columns:
            ids = known["image_id"].astype(str).tolist()
        group = pd.Series(ids, index=known.index)
    patient = known["patient_id"].astype(str) if "patient_id" in known.columns else group
    # SAIL's files of one split may carry the collection's own column of that name, which is another thing.
    splits = np.array([file.split or split_word(split)] * file.n_rows, dtype=object)
    if file.split is None and "split" in known.columns:
        words = {word: split_word(word) for word in known["split"].unique()}
        splits = known["split"].map(words).to_numpy(dtype=object)
    rest = known.drop(columns=[name for name in _KNOWN if name in known.columns])
    named = pd.DataFrame({"image_id": ids, "patient_id": patient, "split": splits}, index=known.index)
    return pd.concat([named, rest], axis=1)


def _place(value: Any) -> str:
    return f"{int(value):04d}" if isinstance(value, (int, np.integer)) else str(value)


def _beside(store: ActivationStore, split: str) -> tuple[pd.DataFrame, Vocabulary]:
    """What a store knows of its images: the table that `embed` left there, or what its manifest says."""
    said: Mapping[str, Any] | None = store.manifest.get("images_table")
    if said is not None:
        path = store.folder / IMAGES
        if not path.exists() or sha256_of_file(path) != said["sha256"]:
            raise InputError(f"{path} is missing or was changed after it was written; run `mammosae embed` again")
        return read_parquet(path), Vocabulary.of_json(said["vocabulary"])
    splits = store.manifest.get("splits") or []
    known = pd.DataFrame({"image_id": store.image_ids})
    known["patient_id"] = [str(patient) for patient in store.manifest.get("patients", store.image_ids)]
    known["split"] = splits[0] if len(splits) == 1 else split
    return known, Vocabulary([])


def _table(known: pd.DataFrame, images: pd.DataFrame | None, where: Path, ids: list[str]) -> pd.DataFrame:
    """`known`, or the rows of `images` in its order."""
    if images is None:
        return known
    if not isinstance(images, pd.DataFrame) or "image_id" not in images.columns:
        raise InputError(f"images are {shown(images)}: give a table with a column image_id")
    twice = images[images.duplicated("image_id", keep=False)].astype(str).drop_duplicates()
    if (other := twice["image_id"].duplicated()).any():
        raise InputError(
            f"the table of images says two things of image {twice['image_id'].iloc[int(other.argmax())]}; give it one "
            "row for each image"
        )
    given = images.drop_duplicates("image_id")
    given.index = given["image_id"].astype(str)
    missing = [image_id for image_id in ids if image_id not in given.index]
    if missing:
        such = f"; its image_id are such as {given.index[0]}" if len(given) else ""
        raise InputError(f"the table of images lacks {len(missing)} of {where}'s {len(ids)} ({missing[0]}){such}")
    chosen = given.loc[ids].reset_index(drop=True)
    for name in {"patient_id", "split"} & set(chosen.columns):
        if (empty := chosen[name].isna()).any():
            raise InputError(
                f"the table of images has no {name} for {int(empty.sum())} images ({ids[int(empty.argmax())]}); give "
                "every image one, or leave the column out"
            )
    if "split" in chosen.columns:  # of volumes it may be a word of its own, "all"
        chosen["split"] = chosen["split"].map({word: _split_word(word) for word in chosen["split"].unique()})
    fill = {name: known[name].to_numpy() for name in _KNOWN if name not in chosen.columns}
    chosen = chosen.assign(image_id=ids, **fill)
    return chosen[[*_KNOWN, *(name for name in chosen.columns if name not in _KNOWN)]]


def _split_word(word: Any) -> str:
    try:
        return split_word(word)
    except InputError:
        return str(word)


def labelled(
    images: pd.DataFrame,
    vocabulary: Vocabulary | None,
    concepts: Sequence[str | Concept] | None,
    known: Mapping[str, Concept] = MappingProxyType({}),
) -> tuple[pd.DataFrame, Vocabulary]:
    """The table with class numbers in the columns that are labels, and what these are; `known` are such already."""
    if vocabulary is not None:
        return images, vocabulary
    if concepts is None:
        # Of numbers: a 1 for "male" among texts is one column's own affair.
        chosen: list[str | Concept] = [
            name for name in images.columns if name not in _KNOWN and _is_binary(images[name])
        ]
    else:
        chosen = entries(concepts, "concepts")
    found: dict[str, Concept] = {}
    columns = {}
    for concept in chosen:
        name = concept.name if isinstance(concept, Concept) else str(concept)
        if name not in images.columns or name in _KNOWN:
            others = [other for other in images.columns if other not in _KNOWN]
            raise InputError(
                f"there is no column {name!r} for the concept of that name beside the rows"
                f"{nearest_names(name, others)}; what is known of the images is "
                f"{', '.join(others[:_SOME]) or 'nothing'}{f' and {len(others) - _SOME} more' * (len(others) > _SOME)}"
            )
        found[name] = concept if isinstance(concept, Concept) else known.get(name) or _concept(name, images[name])
        columns[name] = _classes(found[name], images[name])
    return pd.DataFrame({name: columns.get(name, images[name]) for name in images.columns}), Vocabulary(found.values())


def _is_binary(values: "pd.Series[Any]") -> bool:
    return values.dtype.kind in "iub" and bool(values.isin([0, 1]).all())


def _concept(name: str, values: "pd.Series[Any]") -> Concept:
    """A column's own values as a concept's classes, in their order; empty cells and -1 are none."""
    there = values.dropna()
    if values.dtype.kind in "iufb":
        there = there[there != -1]
    if set(there.unique()) <= {0, 1}:
        return Concept(name)
    classes = tuple(map(_word, sorted(there.unique())))
    if len(classes) < 2:
        raise InputError(
            f"the column {name!r} says {classes[0]!r} of every image; a concept has two classes or more, or 0 and 1"
        )
    return Concept(name, "binary" if len(classes) == 2 else "multiclass", classes)


def _word(value: Any) -> str:
    """What a class is called: of whole numbers 3, where a column with empty cells has made 3.0 of them."""
    return str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)


def _classes(concept: Concept, values: "pd.Series[Any]") -> npt.NDArray[np.int16]:
    """Class numbers (n,) of a column, -1 where it says nothing."""
    if values.dtype.kind in "iufb":
        if set(values.dropna().unique()) <= {-1, *range(concept.n_classes)}:
            return values.fillna(-1).to_numpy().astype(np.int16)
        values = values.mask(values == -1)
    numbers = {name: number for number, name in enumerate(concept.classes)}
    found = values.map(lambda value: numbers.get(_word(value)) if pd.notna(value) else -1)
    if found.isna().any():
        other = values[found.isna()].iloc[0]
        raise InputError(f"{concept.name} is {shown(other)} in a row; its classes are {', '.join(concept.classes)}")
    return found.to_numpy().astype(np.int16)
