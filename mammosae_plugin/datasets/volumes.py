"""Slices of volumes as a dataset, whatever folder the volumes come from (`volume_folders`).

A slice has the key (modality, image_id, slice_orientation, slice_idx), since an image_id is unique only within its
modality; the group, which is never cut apart, is the volume (modality, image_id) or the patient where the table says
who that is. Every volume and mask is read once for the index (what lies in which slice, what cannot be used); pictures
are cut when they are asked for, from the one volume that a process holds.
"""

__all__ = ["IMAGENET", "KEY", "NOT_SPLIT", "VolumeSlices"]

import copy
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from torch.utils.data import Dataset

from mammosae_plugin.adapters.preprocessing import IMAGENET, BadImageError, Preprocessing
from mammosae_plugin.arguments import flag, shown, whole
from mammosae_plugin.datasets import slices, splits
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, Item, Unit, describe
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.datasets.selection import Selectable
from mammosae_plugin.datasets.slices import Volume
from mammosae_plugin.datasets.volume_files import (
    VolumeFiles,
    require_nibabel,
)
from mammosae_plugin.datasets.volume_index import Indexed, Source, read_gray, survey
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, read_json, sha256_of_json, write_json, write_text
from mammosae_plugin.jobs import run_jobs
from mammosae_plugin.locks import only_run

logger = logging.getLogger(__name__)

KEY = ("modality", "image_id", "slice_orientation", "slice_idx")
NOT_SPLIT = "all"
_QUARANTINE = ["modality", "image_id", "reason"]
_BOX_CHANGES = ["image_id", "line", "change", "reason", *(f"file_{name}" for name in BOX_COLUMNS), *BOX_COLUMNS]
_Self = TypeVar("_Self", bound="VolumeSlices")


@dataclass
class _Held:
    """The one volume that a process holds."""

    row: int = -1
    gray: Volume = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.uint8))


class VolumeSlices(Selectable, Dataset[Item]):
    """Slices of volumes with what lies in them; `TotalSegmentator` and `VolumeFolder` are such.

    It has the parts that extraction and encoding need of a dataset (`StudyDataset`).

    Attributes:
        images: one row per slice, volume by volume: image_id ("ct/s0000/x/0012"), patient_id (the group, "ct/s0000"),
            split, modality, volume (the image_id within the modality), slice_orientation, slice_idx, the columns of the
            tables, then 0 or 1 for every label, empty (NA) where the modality has no masks of it.
        findings: the same ids and labels, with empty boxes.
        volumes: one row per volume that can be used: modality, image_id and the columns of the tables.
        quarantine: the volumes that cannot: modality, image_id, reason.
        left_out: how many slices were left out: "blank" (one grey level), "outside" (before the first or behind the
            last slice with any label).
        mended: masks of half as many slices as their volume, which were stretched: modality, image_id, label.
        vocabulary: the labels that all modalities have, each absent or present.
        image_size: (H, W) of every picture.
        preprocessing: how a picture becomes its image; ImageNet's mean and std, unless `with_preprocessing` said other.
    """

    images: pd.DataFrame
    findings: pd.DataFrame
    unit: Unit = "image"
    at_skin: frozenset[str] = frozenset()
    preprocessing: Preprocessing = IMAGENET

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        image_size: int | tuple[int, int] = 1024,
        trim: bool = True,
        keep_blank: bool = False,
        index: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
        about: DatasetAbout,
    ) -> None:
        """Read every volume once, or what the index has of it.

        Args:
            sources: the volumes, a source per modality.
            image_size: edge of the square pictures in pixels, or it twice.
            trim: keep only the slices from the first to the last with any label, of every volume and axis that has
                labels at all.
            keep_blank: keep slices of one grey level, which networks are not shown (their items raise).
            index: a folder in which the index is kept, a file per volume: killed, it continues, and a second run reads
                it. None keeps nothing.
            num_workers: processes that read volumes for the index.
            about: what the images are.

        Raises:
            InputError: an argument is wrong, or nibabel is not installed.
            DatasetError: no volume can be used.
        """
        require_nibabel()
        self._side = _side(image_size)
        self.image_size = (self._side, self._side)
        flag(trim, "trim")
        flag(keep_blank, "keep_blank")
        whole(num_workers, "num_workers", least=0)
        self._about, self._sources, self._held = about, tuple(sources), _Held()
        modalities = [source.files[0].modality for source in sources]
        if not modalities or len(set(modalities)) < len(modalities):
            raise InputError("give the volumes of every modality once")
        self._survey = survey(
            [(source, one) for source in sources for one in source.files],
            None if index is None else local_path(index),
            num_workers,
        )
        self._tabulate(trim, keep_blank)
        if index is not None and not _holds(local_path(index) / "quarantine.csv", self.quarantine):
            write_text(local_path(index) / "quarantine.csv", self.quarantine.to_csv(index=False, lineterminator="\n"))

    # -- from the index to the tables --------------------------------------------------------------------------------

    def _tabulate(self, trim: bool, keep_blank: bool) -> None:
        """Make the tables from what is known of every volume."""
        labels = {source.files[0].modality: source.labels for source in self._sources}
        every = sorted({label for own in labels.values() for label in own})
        usable: list[Indexed] = []
        quarantined, mended = [], []
        kept: list[tuple[int, str, npt.NDArray[np.intp]]] = []
        presences: list[npt.NDArray[np.int8]] = []
        self.left_out = {"blank": 0, "outside": 0}
        for source, files, found in self._survey:
            reason = found["problem"] or _lacking(files, labels[files.modality])
            rows = []
            for axis, cut in found.get("axes", {}).items() if reason is None else ():
                there = _presence(cut, labels[files.modality])
                wanted = np.ones(cut["n"], dtype=bool)
                if trim and files.masks:
                    wanted = slices.first_to_last(there)
                    self.left_out["outside"] += int((~wanted).sum())
                if not keep_blank:
                    is_blank = _unrolled(cut["blank"], cut["n"])
                    self.left_out["blank"] += int((wanted & is_blank).sum())
                    wanted &= ~is_blank
                rows.append((axis, np.flatnonzero(wanted), there[wanted]))
            if reason is None and not any(len(slices_kept) for _, slices_kept, _ in rows):
                reason = "no slice of it has a label and more than one grey level"
            if reason is not None:
                quarantined.append((files.modality, files.image_id, reason))
                continue
            for axis, slices_kept, there in rows:
                kept.append((len(usable), axis, slices_kept))
                all_labels = np.full((len(there), len(every)), -1, dtype=np.int8)
                all_labels[:, [every.index(label) for label in labels[files.modality]]] = there
                presences.append(all_labels)
            usable.append((source, files, found))
            mended += [(files.modality, files.image_id, label) for label in found["mended"]]
        self.quarantine = pd.DataFrame(quarantined, columns=_QUARANTINE)
        self.mended = pd.DataFrame(mended, columns=["modality", "image_id", "label"])
        if quarantined:
            what = describe(len(quarantined), "volumes cannot be used", [f"{m}/{i}: {r}" for m, i, r in quarantined])
            if not usable:
                raise DatasetError(f"{what}; no other volume is there")
            logger.warning("%s; see `quarantine`", what)
        self._usable = usable
        self.volumes = _volumes(usable)
        self._volume_row = np.concatenate([np.full(len(which), row) for row, _, which in kept]).astype(np.int32)
        self._labels = every
        self._present = np.concatenate(presences)
        shared = [label for label in every if all(label in own for own in labels.values())]
        self.vocabulary = Vocabulary(Concept(label, masks=True) for label in shared)
        axis_of = np.concatenate([np.repeat(axis, len(which)) for _, axis, which in kept])
        slice_of = np.concatenate([which for _, _, which in kept])
        self._make_tables(axis_of, slice_of)

    def _make_tables(self, axis_of: npt.NDArray[np.str_], slice_of: npt.NDArray[np.intp]) -> None:
        known = self.volumes.iloc[self._volume_row].reset_index(drop=True)
        groups = [
            f"{files.modality}/{source.known_of(files.image_id).get(source.patient or '', files.image_id)}"
            for source, files, _ in self._usable
        ]
        keys = [files.key for _, files, _ in self._usable]
        named = zip(self._volume_row, axis_of, slice_of, strict=True)
        reserved = {"image_id", "patient_id", "split", "modality", "volume", "slice_orientation", "slice_idx"}
        columns = {
            "image_id": [f"{keys[row]}/{axis}/{at:04d}" for row, axis, at in named],
            "patient_id": [groups[row] for row in self._volume_row],
            "split": NOT_SPLIT,
            "modality": known["modality"],
            "volume": known["image_id"],
            "slice_orientation": axis_of,
            "slice_idx": slice_of.astype(np.int64),
            **{str(name): known[name] for name in known.columns if name not in reserved},
        }
        labels: dict[str, Any] = {}
        for at, label in enumerate(self._labels):
            if label in columns:
                raise DatasetError(f"{label!r} is a mask and a column of a table: rename one of them")
            own = self._present[:, at]
            labels[label] = own if label in self.vocabulary else pd.arrays.IntegerArray(own, own < 0)
        self.images = pd.DataFrame({**columns, **labels})
        shared = list(self.vocabulary)
        self.findings = self.images[["image_id", *shared]].copy()
        for corner in BOX_COLUMNS:
            self.findings[corner] = np.nan

    def metadata(self, folder: str | os.PathLike[str] = "", *, missing_label: int | None = None) -> pd.DataFrame:
        """One row per slice with the columns of SAIL's files of embeddings.

        The columns of the tables (the dataset's own `split` too), image_id (that within the modality), slice_idx,
        slice_orientation and image_path, sorted by name; then modality; then the labels, sorted.

        Args:
            folder: what image_path begins with: the folder of `write_png`.
            missing_label: what to write of a label that the modality has no masks of: SAIL writes 0; None leaves it
                empty.
        """
        known = self.volumes.iloc[self._volume_row].reset_index(drop=True)
        own = known.drop(columns="modality")
        own["slice_idx"] = self.images["slice_idx"].to_numpy()
        own["slice_orientation"] = self.images["slice_orientation"].to_numpy()
        own["image_path"] = [os.path.join(folder, name) for name in self._pictures]
        own = own[sorted(own.columns)]
        own["modality"] = known["modality"]
        labels = self.images[self._labels]
        if missing_label is not None:
            labels = labels.fillna(whole(missing_label, "missing_label", least=-1, most=1)).astype(np.int64)
        return pd.concat([own, labels], axis=1)

    # -- items -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Item `index`: its picture as the network takes it (3, H, W), its labels, no boxes.

        Raises:
            BadImageError: the volume has changed since it was indexed and cannot be read, or the slice is blank.
        """
        row = self._row(index)
        image_id = self._ids[row]
        present = self._present[row]
        return {
            "image": self.preprocessing(self.gray(row), image_id),
            "image_id": image_id,
            "patient_id": str(self.images.at[row, "patient_id"]),
            "split": str(self.images.at[row, "split"]),
            "labels": {label: int(present[at]) for label, at in self._shared.items()},
            "boxes": {},
        }

    def gray(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of item `index`: uint8 (H, W).

        Raises:
            BadImageError: the volume has changed since it was indexed and cannot be read.
        """
        row = self._row(index)
        axis, at = self._places[row]
        return slices.picture(self._gray_volume(int(self._volume_row[row])), axis, at, self._side)

    def _gray_volume(self, row: int) -> Volume:
        if self._held.row != row:
            source, files, found = self._usable[row]
            self._held = _Held()  # the old volume is let go before the next one is read
            try:
                gray = read_gray(source, files)[0]
            except BadImageError as error:
                raise BadImageError(f"volume {files.key}: {error.reason}", error.reason) from error
            if list(gray.shape) != found["shape"]:
                reason = "it has changed since it was indexed; open the dataset again"
                raise BadImageError(f"volume {files.key}: {reason}", reason)
            self._held = _Held(row, gray)
        return self._held.gray

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": _Held()}  # a worker process reads its own volume

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} items")
        return int(index) % len(self)

    @property
    def image_paths(self) -> list[Path]:
        """The file of every slice's volume, one per row of `images`."""
        return [self._usable[row][1].image for row in self._volume_row]

    def batches(self, batch_size: int, num_workers: int) -> list[list[int]]:
        """Batches of items for a `DataLoader(dataset, batch_sampler=..., num_workers=...)` of so many workers.

        A DataLoader gives batch i to worker i % num_workers. These come in such an order that each worker gets its own
        volumes, one after the other, and so reads each once; only near the end some are read by several workers. With
        one worker or none the order is that of the dataset. Every item is in one batch.

        Raises:
            InputError: a number is out of range.
        """
        size, workers = whole(batch_size, "batch_size", least=1), max(1, whole(num_workers, "num_workers", least=0))
        of_volume = [np.flatnonzero(self._volume_row == row) for row in np.unique(self._volume_row)]
        queues: list[list[int]] = [[] for _ in range(workers)]
        for own in sorted(of_volume, key=len, reverse=True) if workers > 1 else of_volume:
            min(queues, key=len).extend(own.tolist())
        cut = [[queue[at : at + size] for at in range(0, len(queue), size)] for queue in queues]
        batches = []
        while any(cut):
            for at in range(workers):
                queue = cut[at] or max(cut, key=len)  # who has nothing left helps who has most, from the end
                if queue:
                    batches.append(queue.pop(0) if queue is cut[at] else queue.pop())
        return batches

    # -- selection ---------------------------------------------------------------------------------------------------

    def _subset(self: _Self, keep: npt.NDArray[np.bool_]) -> _Self:
        subset = copy.copy(self)
        for cached in ("_ids", "_content", "_pictures", "_places"):
            subset.__dict__.pop(cached, None)
        subset.images = self.images[keep].reset_index(drop=True)
        subset.findings = self.findings[keep].reset_index(drop=True)
        subset._volume_row, subset._present, subset._held = self._volume_row[keep], self._present[keep], _Held()
        return subset

    def with_split(self: _Self, split: str | os.PathLike[str] | pd.DataFrame) -> _Self:
        """The slices of the volumes that a split names, with its words in `images`.

        Args:
            split: a split file, or its rows as `datasets.splits` makes and reads them: modality, image_id, split. A
                split that leaves out the modality goes with volumes of one modality.

        Raises:
            InputError: it is no split, or names none of the volumes.
        """
        known = split if isinstance(split, pd.DataFrame) else splits.read_split(split)
        by = [name for name in ("modality", "image_id") if name in known.columns]
        several = self.volumes["modality"].nunique() > 1
        if "image_id" not in by or (several and "modality" not in by):
            raise InputError("the split must name volumes by modality and image_id")
        own = self.volumes[by].merge(splits.checked_split(known, by), on=by, how="left")["split"]
        of_slices = own.iloc[self._volume_row].reset_index(drop=True)
        if not of_slices.notna().any():
            raise InputError("the split names none of the volumes: is it that of another dataset?")
        if n_missing := int(own.isna().sum()):
            logger.warning("%d of %d volumes are not in the split and are left out", n_missing, len(own))
        found = self._subset(of_slices.notna().to_numpy(dtype=bool))
        found.images["split"] = of_slices.dropna().to_numpy(dtype=object)
        return found

    def with_preprocessing(self: _Self, preprocessing: Preprocessing) -> _Self:
        """The same slices as another network wants them."""
        same = copy.copy(self)
        same.preprocessing, same._held = preprocessing, _Held()
        return same

    # -- as files ----------------------------------------------------------------------------------------------------

    def write_png(self, folder: str | os.PathLike[str], *, num_workers: int = 0) -> pd.DataFrame:
        """Write every slice as an 8-bit grayscale PNG, and `metadata.parquet`; killed, it continues.

        Args:
            folder: a new folder, or one that this dataset was written to before.
            num_workers: processes that cut and write, a volume at a time each.

        Returns:
            `metadata(folder)`.

        Raises:
            InputError: the folder holds something else, or another run is at work in it.
            BadImageError: a volume has changed since it was indexed and cannot be read.
        """
        whole(num_workers, "num_workers", least=0)
        out = local_path(folder)
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; name a folder")
        plan = {"pictures": self._content, "n_pictures": len(self)}
        with only_run(out):
            there = read_json(out / "plan.json") if (out / "plan.json").exists() else None
            if there is None and any(not path.name.startswith(".") for path in out.iterdir()):
                raise InputError(f"{out} holds other files; name a new folder for the slices")
            if there is not None and there != plan:
                raise InputError(f"{out} holds the slices of other volumes or settings; name another folder")
            write_json(out / "plan.json", plan)
            missing = np.array([not (out / name).exists() for name in self._pictures], dtype=bool)
            rows = np.unique(self._volume_row[missing])
            jobs = [np.flatnonzero(missing & (self._volume_row == row)) for row in rows]
            run_jobs(_Writing(self, out, jobs), num_workers, "write slices", unit="volume")
            table = self.metadata(out)
            with atomic_path(out / "metadata.parquet") as temporary:
                table.to_parquet(temporary, index=False)
        return table

    @cached_property
    def _pictures(self) -> list[str]:
        """The relative path of every slice's PNG."""
        patterns = [source.picture for source, _, _ in self._usable]
        return [
            patterns[row].format(modality=modality, image_id=image_id, orientation=axis, index=at)
            for row, modality, image_id, axis, at in zip(
                self._volume_row,
                self.images["modality"],
                self.images["volume"],
                self.images["slice_orientation"],
                self.images["slice_idx"],
                strict=True,
            )
        ]

    # -- facts about the whole ---------------------------------------------------------------------------------------

    @property
    def about(self) -> DatasetAbout:
        """What the images are, whose they are, and whether they may be passed on."""
        return self._about

    @property
    def concepts(self) -> tuple[str, ...]:
        """The labels that all modalities have."""
        return self.vocabulary.binary

    @property
    def n_clipped_boxes(self) -> int:
        """There are no boxes."""
        return 0

    n_mended_boxes = n_inverted_boxes = n_dropped_boxes = n_clipped_boxes

    @property
    def box_changes(self) -> pd.DataFrame:
        """There are no boxes: no rows."""
        return pd.DataFrame(columns=_BOX_CHANGES)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the network is shown: the slices and their splits and labels, the byte count of every file,
        the settings of the cut, and the preprocessing. It does not depend on where the files lie.
        """
        return hashlib.sha256(f"{self._content} {self.preprocessing.fingerprint}".encode()).hexdigest()

    @cached_property
    def _content(self) -> str:
        volumes = [
            [files.key, found["sizes"], found["settings"]]
            for files, found in ((self._usable[row][1:]) for row in np.unique(self._volume_row))
        ]
        digest = hashlib.sha256(sha256_of_json([self.name, self._side, self._labels, volumes]).encode())
        for column in ("image_id", "patient_id", "split"):
            digest.update("\n".join(map(str, self.images[column])).encode())
        digest.update(np.ascontiguousarray(self._present).tobytes())
        return digest.hexdigest()

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        """Axis and number of every slice."""
        return list(zip(self.images["slice_orientation"], self.images["slice_idx"].tolist(), strict=True))

    @cached_property
    def _shared(self) -> dict[str, int]:
        """The place in `_present` of every label that all modalities have."""
        return {label: at for at, label in enumerate(self._labels) if label in self.vocabulary}


class _Writing(Dataset[int]):
    """The pictures that a folder lacks, by volume."""

    def __init__(self, data: VolumeSlices, folder: Path, jobs: Sequence[npt.NDArray[np.intp]]) -> None:
        self.data, self.folder, self.jobs = data, folder, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, at: int) -> int:
        for row in self.jobs[at].tolist():
            with atomic_path(self.folder / self.data._pictures[row]) as temporary:
                Image.fromarray(self.data.gray(row)).save(temporary)
        return len(self.jobs[at])


def _unrolled(runs: Sequence[Sequence[int]], n: int) -> npt.NDArray[np.bool_]:
    marks = np.zeros(n, dtype=bool)
    for first, behind in runs:
        marks[first:behind] = True
    return marks


def _presence(cut: Mapping[str, Any], labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which labels lie in which slices: (n, labels)."""
    there = np.zeros((cut["n"], len(labels)), dtype=bool)
    for at, label in enumerate(labels):
        there[:, at] = _unrolled(cut["labels"].get(label, []), cut["n"])
    return there


def _lacking(files: VolumeFiles, labels: Sequence[str]) -> str | None:
    """Why a volume without some masks cannot be used: what is not labelled is not absent."""
    missing = [label for label in labels if label not in files.masks]
    return describe(len(missing), "masks are missing", missing) if missing else None


def _volumes(usable: Sequence[Indexed]) -> pd.DataFrame:
    """The rows of the tables of the volumes that can be used."""
    parts = []
    for modality in dict.fromkeys(files.modality for _, files, _ in usable):
        own = [(source, files) for source, files, _ in usable if files.modality == modality]
        ids = [files.image_id for _, files in own]
        table, source = pd.DataFrame({"modality": modality, "image_id": ids}), own[0][0]
        if source.table is not None:
            known = source.table.drop(columns=[c for c in ("modality", "image_id") if c in source.table.columns])
            table = table.join(known.reindex(ids).reset_index(drop=True))
        parts.append(table)
    together = pd.concat(parts, ignore_index=True)
    for name in together.columns:  # numbers in one table and text in another: no file takes such a column
        kinds = {
            pd.api.types.is_numeric_dtype(part[name]) for part in parts if name in part and part[name].notna().any()
        }
        if len(kinds) > 1:
            together[name] = together[name].map(str, na_action="ignore")
    return together


def _side(image_size: Any) -> int:
    edges = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)
    if len(edges) != 2 or edges[0] != edges[1]:
        raise InputError(f"image_size is {shown(image_size)}: slices are squares, give one edge in pixels")
    return whole(edges[0], "image_size", least=1)


def _holds(file: Path, table: pd.DataFrame) -> bool:
    """Whether a CSV file holds this table already."""
    return file.exists() and file.read_bytes() == table.to_csv(index=False, lineterminator="\n").encode()
