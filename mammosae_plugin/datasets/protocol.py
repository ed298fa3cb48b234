"""What a study needs of a dataset: an object that has these parts can be extracted, encoded, trained on, studied."""

__all__ = ["is_study_dataset", "PARTS", "require_study_dataset", "StudyDataset"]

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Self, TypeIs

from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import Item, Unit
from mammosae_plugin.datasets.concepts import Vocabulary
from mammosae_plugin.errors import InputError


class StudyDataset(Protocol):
    """Images with labels, and boxes where there are any.

    Attributes:
        images: One row per image: image_id, patient_id, split ("training" or "test"), a column with the class number of
            every concept, and what else is known of images; laterality and view, where they are there, say which images
            are alike.
        findings: One row per row of the annotations: image_id, the same columns of concepts, xmin, ymin, xmax, ymax in
            pixels of the network's input (NaN without a box).
        image_size: (H, W) of every image.
        unit: What is an item, an image or a row of `findings`.
        preprocessing: How the pixels of an item become its image.
    """

    images: pd.DataFrame
    findings: pd.DataFrame
    image_size: tuple[int, int]
    unit: Unit
    preprocessing: Preprocessing

    @property
    def vocabulary(self) -> Vocabulary:
        """What images are labelled with."""
        ...

    @property
    def concepts(self) -> tuple[str, ...]:
        """The names of the concepts with two classes."""
        ...

    @property
    def at_skin(self) -> frozenset[str]:
        """Those of them whose boxes lie half outside of the breast, by rights."""
        ...

    @property
    def about(self) -> DatasetAbout:
        """What the images are, whose they are, and whether they may be passed on."""
        ...

    @property
    def name(self) -> str:
        """The short name, for metadata and file names."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of what the network is shown and of the labels."""
        ...

    @property
    def image_paths(self) -> list[Path]:
        """The image files, one per row of `images`."""
        ...

    @property
    def box_changes(self) -> pd.DataFrame:
        """The boxes that are not as in the annotations, one per row; see `MammogramDataset.box_changes`."""
        ...

    @property
    def n_mended_boxes(self) -> int:
        """How many boxes were mended."""
        ...

    @property
    def n_inverted_boxes(self) -> int:
        """How many of them were inverted."""
        ...

    @property
    def n_dropped_boxes(self) -> int:
        """How many boxes were left out."""
        ...

    @property
    def n_clipped_boxes(self) -> int:
        """How many boxes were clipped to their image."""
        ...

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def __getitem__(self, index: int) -> Item:
        """Item `index`, with its image as the network takes it."""
        ...

    def gray(self, index: int) -> npt.NDArray[np.uint8]:
        """The image of item `index` for display: uint8 (H, W)."""
        ...

    def with_preprocessing(self, preprocessing: Preprocessing) -> Self:
        """The same images as another network wants them."""
        ...

    def select(
        self, *, split: str | None = None, image_ids: Iterable[str] | None = None, exclude: Iterable[str] = ()
    ) -> Self:
        """The dataset with fewer images, in unchanged order."""
        ...


PARTS = sorted({*StudyDataset.__annotations__, *(name for name in vars(StudyDataset) if not name.startswith("_"))})


def is_study_dataset(value: Any) -> TypeIs[StudyDataset]:
    """Whether an object has all parts; none of them is computed."""
    return all(inspect.getattr_static(value, name, None) is not None for name in (*PARTS, "__len__", "__getitem__"))


def require_study_dataset(value: Any) -> None:
    """Refuse what is no dataset that can be studied.

    Raises:
        InputError: It lacks a part.
    """
    if not is_study_dataset(value):
        raise InputError(f"the dataset is a {type(value).__name__}: give images, such as VinDrMammo(root)")
