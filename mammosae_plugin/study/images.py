"""The images of a study: opened, told by their content, and screened, each once; what was found is kept."""

__all__ = ["StudyImages", "TEST", "TRAINING"]

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin import distributed
from mammosae_plugin.datasets import (
    StudyDataset,
    check_suspects,
    leave_out_bad,
    open_dataset,
    read_quarantine,
    read_suspects,
    screen_images,
)
from mammosae_plugin.datasets.content import content_of, file_stats_of
from mammosae_plugin.datasets.registry import DataSettings
from mammosae_plugin.datasets.volumes import VolumeSlices
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_text

TRAINING, TEST = "training", "test"


class StudyImages:
    """The images of a study.

    Args:
        data: What the study's configuration says of them.
        work: The folder for what is found of them.
        num_workers: Processes that read images.
    """

    def __init__(self, data: DataSettings, work: Path, num_workers: int) -> None:
        self.data, self.work, self.num_workers = data, work, num_workers

    @cached_property
    def all_images(self) -> StudyDataset:
        """All images, those in quarantine too."""
        return open_dataset(self.data)

    @cached_property
    def file_stats(self) -> str:
        """A digest that changes when a file of an image or mask is replaced or the annotations change."""
        return file_stats_of(self.all_images)

    @cached_property
    def content(self) -> str:
        """A digest of the annotations and of every byte of every image and mask; results are kept under it."""
        return content_of(self.all_images, self.work, self.file_stats)

    def _list_file(self, name: str) -> Path:
        return self.work / f"{name}-{self.file_stats}.csv"

    @cached_property
    def dataset(self) -> StudyDataset:
        """The images without those in quarantine, each read once to find out."""
        images, data = self.all_images, self.data
        if isinstance(images, VolumeSlices):
            return images  # which were read when they were opened, and are without those that cannot be used
        quarantine, listed = self._list_file("quarantine"), self._list_file("suspects")
        if len(changes := images.box_changes):
            as_text = changes.to_csv(index=False, lineterminator="\n")
            distributed.on_main(partial(write_text, self._list_file("boxes"), as_text))
        if distributed.on_main(lambda: quarantine.exists() and listed.exists()):
            kept = leave_out_bad(images, quarantine, max_bad_share=data.max_bad_share)
            suspects = read_suspects(listed)
            check_suspects(images, suspects, max_suspect_share=data.max_suspect_share, listed_in=listed)
            return kept
        return screen_images(
            images,
            quarantine,
            max_bad_share=data.max_bad_share,
            num_workers=self.num_workers,
            suspects_file=listed,
            max_suspect_share=data.max_suspect_share,
        )

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """image_id and reason of every image that was left out."""
        if isinstance(self.dataset, VolumeSlices):
            return self.dataset.quarantine[["image_id", "reason"]]
        return read_quarantine(self._list_file("quarantine"))

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """image_id, suspicion and detail of every image that does not seem to fit its annotations."""
        _ = self.dataset
        return read_suspects(self._list_file("suspects"))

    @property
    def boxes(self) -> dict[str, Any]:
        """Which boxes the study uses, and how many are not as in the annotation file."""
        images = self.all_images
        return {
            "boxes": getattr(self.data, "boxes", "as_annotated"),
            "n_mended_boxes": images.n_mended_boxes,
            "n_inverted_boxes": images.n_inverted_boxes,
            "n_dropped_boxes": images.n_dropped_boxes,
            "n_clipped_boxes": images.n_clipped_boxes,
        }

    def split(self, split: str) -> StudyDataset:
        """The images of one split, without those in quarantine."""
        part = self.dataset.select(split=split)
        if len(part) == 0:
            raise InputError(f"{self.data.root} has no image in the split {split!r}; the study needs training and test")
        return part
