"""Read every image once before a long run, and leave out the bad ones with a written reason."""

import csv
import io
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pandas as pd
from tqdm import tqdm

from mammosae_plugin.datasets.base import DatasetError, MammogramDataset
from mammosae_plugin.datasets.preprocessing import BadImageError, check_contrast, read_png
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_text

logger = logging.getLogger(__name__)
_Data = TypeVar("_Data", bound=MammogramDataset)


def screen_images(
    dataset: _Data,
    quarantine_file: str | os.PathLike[str],
    *,
    max_bad_share: float = 0.01,
    num_workers: int = 0,
) -> _Data:
    """Read every image once, list the bad ones in a CSV file, and return the dataset without them.

    Bad is what `preprocess` could not use: unreadable, truncated, wrongly sized, not 8-bit, or constant. The file has
    columns image_id and reason, in the dataset's order; it holds the header alone when nothing is bad.

    Args:
        dataset: any dataset of this package.
        quarantine_file: the CSV to write.
        max_bad_share: the largest share of bad images (0 to 1) with which a run may go on.
        num_workers: threads that read at once; 0 reads in the calling thread.

    Raises:
        DatasetError: more than `max_bad_share` of the images are bad (the file is written all the same).
        InputError: an argument is out of range.
    """
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share is {max_bad_share}; it must lie between 0 and 1")
    if num_workers < 0:
        raise InputError(f"num_workers is {num_workers}; it must be 0 or more")
    image_ids = [str(image_id) for image_id in dataset.images["image_id"]]
    reason_of = _reason_reader(dataset.image_size)
    with tqdm(total=len(image_ids), desc="checking images", unit="image", leave=False) as bar:
        reasons: list[str | None] = []
        if num_workers == 0:
            for path in dataset.image_paths:
                reasons.append(reason_of(path))
                bar.update()
        else:
            with ThreadPoolExecutor(num_workers) as pool:  # decoding and arithmetic both release Python's lock
                for reason in pool.map(reason_of, dataset.image_paths):
                    reasons.append(reason)
                    bar.update()
    bad = [(image_id, reason) for image_id, reason in zip(image_ids, reasons, strict=True) if reason is not None]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "reason"])
    writer.writerows(bad)
    write_text(quarantine_file, text.getvalue())
    return leave_out_bad(dataset, quarantine_file, max_bad_share=max_bad_share)


def read_quarantine(quarantine_file: str | os.PathLike[str]) -> pd.DataFrame:
    """The columns image_id and reason of a quarantine file, as text.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return pd.read_csv(quarantine_file, dtype=str, keep_default_na=False)[["image_id", "reason"]]
    except (OSError, KeyError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"the quarantine file {quarantine_file} is damaged; delete it and run again") from error


def leave_out_bad(dataset: _Data, quarantine_file: str | os.PathLike[str], *, max_bad_share: float = 0.01) -> _Data:
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


def _reason_reader(image_size: tuple[int, int]) -> Callable[[Path], str | None]:
    def reason_of(path: Path) -> str | None:
        try:
            check_contrast(read_png(path, image_size))
        except BadImageError as error:
            return error.reason
        return None

    return reason_of
