"""What datasets of images and of slices have alike: choosing among them, by the table `images`."""

__all__ = ["Selectable"]

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Self

from mammosae_plugin.arguments import entries, text
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.errors import InputError


class Selectable:
    """A dataset with a table `images`, a row per image."""

    images: pd.DataFrame

    @property
    def about(self) -> DatasetAbout:
        """What the images are, whose they are, and whether they may be passed on."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its images are")

    @property
    def name(self) -> str:
        """Short name of the data, for file names and metadata."""
        return self.about.name

    def select(
        self, *, split: str | None = None, image_ids: Iterable[str] | None = None, exclude: Iterable[str] = ()
    ) -> Self:
        """The dataset with fewer images, in unchanged order.

        Args:
            split: keep this split only.
            image_ids: keep these images only.
            exclude: drop these images.

        Raises:
            InputError: an unknown split or image id, or nothing is left.
        """
        keep = np.ones(len(self.images), dtype=bool)
        if split is not None:
            text(split, "split")
            keep &= (self.images["split"] == split).to_numpy(dtype=bool)
            if not keep.any():
                raise InputError(f"no image has split {split!r}; there are {sorted(set(self.images['split']))}")
        if image_ids is not None:
            keep &= self._is_among(image_ids)
        keep &= ~self._is_among(exclude)
        if not keep.any():
            raise InputError("the selection leaves no image")
        return self._subset(keep)

    def _is_among(self, image_ids: Iterable[str]) -> npt.NDArray[np.bool_]:
        wanted = {image_ids} if isinstance(image_ids, str) else set(map(str, entries(image_ids, "image ids")))
        unknown = sorted(wanted - set(self._ids))
        if unknown:
            raise InputError(f"{len(unknown)} image ids are not in the dataset, such as {unknown[0]!r}")
        return self.images["image_id"].isin(wanted).to_numpy(dtype=bool)

    def _subset(self, keep: npt.NDArray[np.bool_]) -> Self:
        """The dataset with the images (n_images,) that are kept."""
        raise NotImplementedError

    @cached_property
    def _ids(self) -> list[str]:
        return [str(image_id) for image_id in self.images["image_id"]]
