"""What lies in which slice of every volume, and which volumes cannot be used: read once, kept as a file per volume."""

__all__ = ["Indexed", "read_gray", "Source", "survey"]

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch.utils.data import Dataset

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets import slices
from mammosae_plugin.datasets.slices import Slicing, Volume, Window
from mammosae_plugin.datasets.volume_files import VolumeFiles, read_volume
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_json, write_json
from mammosae_plugin.jobs import run_jobs
from mammosae_plugin.locks import only_run

logger = logging.getLogger(__name__)

_INDEX_VERSION = 1


@dataclass(frozen=True)
class Source:
    """The volumes of one modality.

    Attributes:
        files: Their files; all of one modality.
        slicing: How they become pictures.
        table: What is known of them, indexed by image_id; None where nothing is.
        patient: The column of the table that names the patient; None where a volume is a group by itself.
        picture: What the files of a volume's slices are called when they are written (`write_png`).
    """

    files: Sequence[VolumeFiles]
    slicing: Slicing
    table: pd.DataFrame | None = None
    patient: str | None = None
    picture: str = "{modality}/{image_id}/{orientation}_slice_{index:04d}.png"

    @property
    def labels(self) -> list[str]:
        """Every label that some volume has a mask of, sorted."""
        return sorted({label for one in self.files for label in one.masks})

    def known_of(self, image_id: str) -> dict[str, Any]:
        """The row of the table of a volume; empty where there is none."""
        if self.table is None or image_id not in self.table.index:
            return {}
        return {str(name): value for name, value in self.table.loc[image_id].items() if pd.notna(value)}


Indexed = tuple[Source, VolumeFiles, dict[str, Any]]


def survey(jobs: Sequence[tuple[Source, VolumeFiles]], folder: Path | None, num_workers: int) -> list[Indexed]:
    """What is known of every volume, read from the index or from the volume itself."""
    keys = [_key(source, files) for source, files in jobs]
    found = [_recorded(folder, files, key) for (_, files), key in zip(jobs, keys, strict=True)]
    missing = [at for at, record in enumerate(found) if record is None]
    reading = _Reading([(*jobs[at], keys[at]) for at in missing], folder)
    if missing and folder is not None:
        with only_run(folder):
            records = list(run_jobs(reading, num_workers, "index volumes", unit="volume"))
    else:
        records = list(run_jobs(reading, num_workers, "index volumes", unit="volume"))
    for at, record in zip(missing, records, strict=True):
        found[at] = record
    return [(source, files, record) for (source, files), record in zip(jobs, found, strict=True) if record is not None]


def _key(source: Source, files: VolumeFiles) -> dict[str, Any]:
    """All that a volume's record depends on; the digest of the settings, and sizes and times of its files."""
    settings = {**source.slicing.to_json(), "version": _INDEX_VERSION}
    if source.slicing.window == slices.STUDY_TYPE:
        settings[slices.STUDY_TYPE] = str(source.known_of(files.image_id).get(slices.STUDY_TYPE))
    stats = [_stat(path) for path in (files.image, *files.masks.values())]
    return {
        "settings": sha256_of_json(settings),
        "sizes": [size for size, _ in stats],
        "times": [time for _, time in stats],
        "labels": list(files.masks),
    }


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _file(folder: Path, files: VolumeFiles) -> Path:
    return folder / files.modality / f"{files.image_id}.json"


def _recorded(folder: Path | None, files: VolumeFiles, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a volume in the index; None where there is none of these files and settings."""
    if folder is None or not _file(folder, files).exists():
        return None
    try:
        record: Any = read_json(_file(folder, files))
    except InputError:
        logger.warning("%s is damaged; the volume is read again", _file(folder, files))
        return None
    is_same = isinstance(record, dict) and all(record.get(name) == value for name, value in key.items())
    return record if is_same else None


class _Reading(Dataset[dict[str, Any]]):
    """The records of volumes that the index lacks."""

    def __init__(self, jobs: Sequence[tuple[Source, VolumeFiles, dict[str, Any]]], folder: Path | None) -> None:
        self.jobs, self.folder = jobs, folder

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, at: int) -> dict[str, Any]:
        source, files, key = self.jobs[at]
        record = {**key, **_look(source, files)}
        if self.folder is not None and record["problem"] is None:  # what is wrong may be put right, or pass
            write_json(_file(self.folder, files), record)
        return record


def read_gray(source: Source, files: VolumeFiles) -> tuple[Volume, tuple[int, ...], tuple[float, float, float]]:
    """A volume as uint8, its shape as stored, and the edges of its voxels in mm."""
    slicing, window = source.slicing, source.slicing.window
    if window == slices.STUDY_TYPE:
        window = slices.window_of(source.known_of(files.image_id).get(slices.STUDY_TYPE))
    values, spacing = read_volume(files.image, canonical=slicing.canonical)
    assert not isinstance(window, str)
    chosen: Window | None = window
    return slices.gray_volume(values, spacing, slicing, chosen), values.shape, spacing


def _look(source: Source, files: VolumeFiles) -> dict[str, Any]:
    """What a volume is: "problem", or "shape", "axes" with the runs of its blank slices and labels, "mended"."""
    try:
        gray, stored, spacing = read_gray(source, files)
        axes = source.slicing.axes_of(gray.shape)
        found: dict[str, Any] = {
            "problem": None,
            "shape": list(gray.shape),
            "axes": {axis: {"n": gray.shape[slices.AXES.index(axis)], "labels": {}} for axis in axes},
            "mended": [],
        }
        for axis in axes:
            found["axes"][axis]["blank"] = _runs(slices.blank(gray, axis))
        del gray
        for label, path in files.masks.items():
            mask = read_volume(path, canonical=source.slicing.canonical)[0]
            if mask.shape != stored and slices.is_half_depth(mask.shape, stored):
                mask = slices.deepened(mask, stored[2])
                found["mended"].append(label)
            if mask.shape != stored:
                sizes = [" x ".join(map(str, shape)) for shape in (mask.shape, stored)]
                return {"problem": f"its mask of {label} is {sizes[0]} voxels, not {sizes[1]}"}
            there = mask > source.slicing.mask_above
            if there.any():
                there = slices.resampled(there, spacing, source.slicing, nearest=True)
                for axis in axes:
                    found["axes"][axis]["labels"][label] = _runs(slices.presence(there, axis))
        return found
    except BadImageError as error:
        return {"problem": error.reason}


def _runs(marks: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Where marks stand, as [first, behind the last] of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [list(pair) for pair in edges.reshape(-1, 2).tolist()]
