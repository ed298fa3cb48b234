"""Read every image once before a long run, and leave out the bad ones with a written reason."""

__all__ = ["check_suspects", "leave_out_bad", "read_quarantine", "read_suspects", "screen_images"]

import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin import distributed
from mammosae_plugin.adapters.preprocessing import BadImageError, check_contrast
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError
from mammosae_plugin.datasets.preprocessing import as_8_bit, read_png
from mammosae_plugin.datasets.protocol import StudyDataset
from mammosae_plugin.datasets.suspects import (
    ON_BACKGROUND,
    Look,
    look,
    refuse_mirrored,
    suspects,
    warn_of_sides,
    warn_of_weak_boxes,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_text

logger = logging.getLogger(__name__)
_MANY = 8
_NO_BOXES = np.zeros((0, 4))
_SUSPECTS = ["image_id", "suspicion", "detail"]
_Data = TypeVar("_Data", bound=StudyDataset)


def screen_images(
    dataset: _Data,
    quarantine_file: str | os.PathLike[str],
    *,
    max_bad_share: float = 0.01,
    num_workers: int = 0,
    suspects_file: str | os.PathLike[str] | None = None,
    max_suspect_share: float = 0.4,
) -> _Data:
    """Read every image once, list the bad and the suspect ones in CSV files, and return the dataset without the bad.

    Bad is what `preprocess` could not use: missing, unreadable, truncated, wrongly sized, not 8-bit, or constant.
    Suspect is what can be used, but where pixels and annotations do not fit: a bright background around a dark breast,
    a box on the background, the pixels of another image. Where boxes fit the images better when they are mirrored or
    turned, the dataset is refused: that is no matter of single images. Under torchrun all processes make the same call,
    and each reads its share.

    Args:
        dataset: any dataset of this package.
        quarantine_file: the CSV to write of the bad images: image_id, reason, in the dataset's order; it holds the
            header alone when nothing is bad.
        max_bad_share: the largest share of bad images (0 to 1) with which a run may go on.
        num_workers: threads of a process that read at once; 0 reads in the calling thread.
        suspects_file: the same of suspect images: image_id, suspicion, detail; None writes none.
        max_suspect_share: the largest share of suspect images (of those with boxes, where boxes are the matter) with
            which a run may go on.

    Raises:
        DatasetError: more than `max_bad_share` of the images are bad or more than `max_suspect_share` suspect (the
            files are written all the same), or boxes and images are mirrored to each other.
        InputError: an argument is out of range.
    """
    for name, share in (("max_bad_share", max_bad_share), ("max_suspect_share", max_suspect_share)):
        if not 0 <= share <= 1:
            raise InputError(f"{name} is {share}; it must lie between 0 and 1")
    if num_workers < 0:
        raise InputError(f"num_workers is {num_workers}; it must be 0 or more")
    image_ids = [str(image_id) for image_id in dataset.images["image_id"]]
    paths = dataset.image_paths
    boxes, at_skin = _boxes_by_image(dataset)
    others = _boxes_of_another(dataset, boxes)
    pixels_of = getattr(dataset, "pixels", lambda image: read_png(paths[image], dataset.image_size))

    def look_at(image: int) -> str | Look:
        try:
            pixels = pixels_of(image)
            check_contrast(pixels)
        except BadImageError as error:
            return error.reason
        return look(as_8_bit(pixels), boxes.get(image_ids[image], _NO_BOXES), others.get(image_ids[image], _NO_BOXES))

    looks = distributed.spread(  # decoding and arithmetic both release Python's lock
        look_at, range(len(image_ids)), n_threads=num_workers, description="checking images", unit="image"
    )
    bad = [(image_id, found) for image_id, found in zip(image_ids, looks, strict=True) if isinstance(found, str)]
    usable = {image_id: found for image_id, found in zip(image_ids, looks, strict=True) if isinstance(found, Look)}
    side_of = dict(zip(image_ids, dataset.images.get("laterality", ()), strict=False))
    suspicious = pd.DataFrame(suspects(usable, side_of), columns=_SUSPECTS)
    of_pixels = suspicious[suspicious["suspicion"] != ON_BACKGROUND]["suspicion"].value_counts()
    _refuse_placeholders(dataset)
    if not (of_pixels > max_suspect_share * len(image_ids)).any():  # else that is the cause
        refuse_mirrored(usable, side_of, at_skin)
        if distributed.is_main():
            warn_of_weak_boxes(usable, at_skin)
    if distributed.is_main():
        warn_of_sides(usable, side_of)

    def write() -> None:
        if suspects_file is not None:
            _write_csv(suspects_file, _SUSPECTS, suspicious.itertuples(index=False, name=None))
        _write_csv(quarantine_file, ("image_id", "reason"), bad)

    distributed.on_main(write)
    kept = leave_out_bad(dataset, quarantine_file, max_bad_share=max_bad_share)
    check_suspects(dataset, suspicious, max_suspect_share=max_suspect_share, listed_in=suspects_file)
    return kept


def _boxes_by_image(
    dataset: StudyDataset,
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.bool_]]]:
    """By image id: its boxes (n, 4), and which of them mark a finding of the skin or the nipple (n,)."""
    at_skin = sorted(dataset.at_skin.intersection(dataset.concepts))
    boxes, marks = {}, {}
    for image_id, own in dataset.findings.dropna(subset=list(BOX_COLUMNS)).groupby("image_id", sort=False):
        boxes[str(image_id)] = own[list(BOX_COLUMNS)].to_numpy(dtype=np.float64)
        marks[str(image_id)] = np.asarray((own[at_skin] == 1).any(axis=1), dtype=bool)
    return boxes, marks


def _refuse_placeholders(dataset: StudyDataset) -> None:
    """Refuse boxes of which most are one and the same in many images."""
    boxes = dataset.findings.dropna(subset=list(BOX_COLUMNS)).drop_duplicates(["image_id", *BOX_COLUMNS])
    if len(boxes) < _MANY:
        return
    counts = boxes.groupby(list(BOX_COLUMNS))["image_id"].size()
    if counts.max() > len(boxes) / 2:
        box = ", ".join(f"{value:.6g}" for value in counts.sort_values().reset_index()[list(BOX_COLUMNS)].iloc[-1])
        raise DatasetError(
            f"{counts.max()} of {len(boxes)} boxes are the same ({box}): give the boxes of the findings, or leave the "
            "cells empty"
        )


def _boxes_of_another(
    dataset: StudyDataset, boxes: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """By image id, the boxes of the next image of another patient with boxes, of the same side and view if known."""
    boxed = dataset.images[dataset.images["image_id"].astype(str).isin(list(boxes))]
    others = {}
    alike = [name for name in ("laterality", "view") if name in boxed]
    for _, own in boxed.groupby(alike, sort=False) if alike else [((), boxed)]:
        ids, patients = own["image_id"].astype(str).tolist(), own["patient_id"].tolist()
        for at, image_id in enumerate(ids):
            following = next((n for n in range(at + 1, at + len(ids)) if patients[n % len(ids)] != patients[at]), None)
            if following is not None:
                others[image_id] = boxes[ids[following % len(ids)]]
    return others


def _write_csv(file: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    if Path(file).is_file() and (Path(file).read_bytes().splitlines() or [b""])[0] != ",".join(columns).encode():
        raise InputError(f"{file} is there, and is no list of {columns[0]} and {columns[1]}; name another file")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(file, text.getvalue())


def read_quarantine(quarantine_file: str | os.PathLike[str]) -> pd.DataFrame:
    """The columns image_id and reason of a quarantine file, as text.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _read_list(quarantine_file, ["image_id", "reason"])


def read_suspects(suspects_file: str | os.PathLike[str]) -> pd.DataFrame:
    """The columns image_id, suspicion and detail of a file of suspect images, as text.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _read_list(suspects_file, _SUSPECTS)


def _read_list(file: str | os.PathLike[str], columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)[columns]
    except (OSError, KeyError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"the list of images {file} is missing or damaged; delete it and run again") from error


def leave_out_bad(
    dataset: _Data,
    quarantine_file: str | os.PathLike[str],
    *,
    max_bad_share: float = 0.01,
) -> _Data:
    """The dataset without the images that a quarantine file of it lists.

    Raises:
        DatasetError: the file lists more than `max_bad_share` of the images.
        InputError: the file is damaged, or lists images that the dataset lacks.
    """
    bad = list(read_quarantine(quarantine_file).itertuples(index=False, name=None))
    share = len(bad) / len(dataset.images)
    if share > max_bad_share:
        examples = ", ".join(f"{image_id}: {reason}" for image_id, reason in bad[:3])
        raise DatasetError(
            f"{len(bad)} of {len(dataset.images)} images ({share:.1%}) are bad, more than the {max_bad_share:.1%} "
            f"allowed (such as {examples}); all are listed in {quarantine_file}"
        )
    if not bad:
        return dataset
    logger.warning("%d of %d images are left out, see %s", len(bad), len(dataset.images), quarantine_file)
    return dataset.select(exclude=[image_id for image_id, _ in bad])


def check_suspects(
    dataset: StudyDataset,
    suspicious: pd.DataFrame,
    *,
    max_suspect_share: float = 0.4,
    listed_in: str | os.PathLike[str] | None = None,
) -> None:
    """Log how many images are suspect, of each suspicion.

    Args:
        dataset: the images that were screened.
        suspicious: as `read_suspects` gives it.
        max_suspect_share: the largest share of suspect images (of those with boxes, where boxes are the matter).
        listed_in: the file to point to.

    Raises:
        DatasetError: a suspicion lies on more than `max_suspect_share` of the images.
    """
    n_with_boxes = dataset.findings.dropna(subset=list(BOX_COLUMNS))["image_id"].nunique()
    for suspicion, images in suspicious.groupby("suspicion", sort=False):
        of, n_images = (
            ("images with boxes", n_with_boxes) if suspicion == ON_BACKGROUND else ("images", len(dataset.images))
        )
        listed = f"all are listed in {listed_in}" if listed_in else f"such as {', '.join(images['image_id'][:3])}"
        what = f"{len(images)} of {n_images} {of} are suspect ({suspicion}; {listed})"
        if len(images) > max_suspect_share * n_images:
            raise DatasetError(f"{what}, more than {max_suspect_share:.0%}: pixels and annotations do not fit")
        logger.warning("%s", what)
