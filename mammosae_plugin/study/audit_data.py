"""What an audit reads beside the SAE: rows, which images are trained on and scored, labels, boxes, tissue."""

__all__ = ["AuditData", "ImagePlaces", "labels_in"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.analysis.hierarchies import nested_classes
from mammosae_plugin.analysis.score_card import AuditSettings, one_against_rest
from mammosae_plugin.analysis.spatial import box_region, cell_shares
from mammosae_plugin.datasets.concepts import Vocabulary
from mammosae_plugin.datasets.protocol import StudyDataset
from mammosae_plugin.datasets.splits import TEST, TRAINING, split_word
from mammosae_plugin.datasets.suspects import tissue_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_parquet, sha256_of_json
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.image_codes import MAP_IMAGES, ImageRows
from mammosae_plugin.latents.table import BOX_COLUMNS

_SAMPLE_ROWS = 16384  # by which thresholds are set and components found


@dataclass(frozen=True)
class ImagePlaces:
    """Where in the images something lies.

    Attributes:
        findings: Boxes: image_id, xmin, ymin, xmax, ymax; NaN without one.
        image_size: (H, W) of the images whose pixels these are.
        gray: Of an image_id its pixels (H, W), uint8; None where images are not at hand.
    """

    findings: pd.DataFrame
    image_size: tuple[int, int]
    gray: Callable[[str], npt.NDArray[np.uint8]] | None = None

    @classmethod
    def of_dataset(cls, dataset: StudyDataset) -> "ImagePlaces":
        """Those of a study's dataset."""
        return cls(dataset.findings, dataset.image_size, lambda one: dataset.select(image_ids=[one]).gray(0))

    @classmethod
    def of_table(cls, table: LatentTable) -> "ImagePlaces | None":
        """Those of a latents table; None of a table of rows, which has no boxes."""
        return None if table.is_of_rows else cls(table.findings, table.image_size)

    @cached_property
    def boxes(self) -> dict[str, npt.NDArray[np.float64]]:
        """By image_id its boxes (n, 4)."""
        known = self.findings.dropna(subset=list(BOX_COLUMNS))
        return {
            str(image_id): some[list(BOX_COLUMNS)].to_numpy(dtype=np.float64)
            for image_id, some in known.groupby("image_id")
        }


class AuditData:
    """The rows of an audit: which images are trained on, which are scored, and their labels."""

    def __init__(
        self,
        store: ActivationStore,
        images: pd.DataFrame,
        vocabulary: Vocabulary,
        group: str,
        split: str | None,
        settings: AuditSettings,
        places: ImagePlaces | None = None,
    ) -> None:
        """Choose the images, and take their labels."""
        self.store, self.settings, self.places = store, settings, places
        if group not in images.columns:
            raise InputError(
                f"there is no column {group!r} to group images by; there are {', '.join(map(str, images.columns))}"
            )
        if (unknown := images[group].isna()).any():
            first = images["image_id"][unknown].iloc[0]
            raise InputError(f"{int(unknown.sum())} images have no {group} (first {first}): say whose every image is")
        splits = images["split"].astype(str).to_numpy()
        there = sorted(set(splits))
        if split is not None and split not in there:
            raise InputError(f"no image is of split {split!r}; there are {', '.join(there)}")
        self.split = split if split is not None else (TEST if TEST in there else None)
        self.training = np.flatnonzero(splits == TRAINING) if TRAINING in there else np.arange(len(splits))
        usable = np.flatnonzero(splits == self.split) if self.split is not None else np.arange(len(splits))
        groups = images[group].astype(str).to_numpy()
        self.images = _drawn(usable, groups, settings)
        self.groups = pd.factorize(groups[self.images])[0].astype(np.int64)
        self.labels: dict[str, npt.NDArray[np.float64]] = {}
        self.nested: dict[str, npt.NDArray[np.float64]] = {}
        for name, concept in vocabulary.items():
            values = images[name].to_numpy()[self.images]
            self.labels |= one_against_rest(name, concept.classes, values)
            self.nested |= nested_classes(concept, values)

    @cached_property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) where every image has the rows of its whole map."""
        grid = (self.store.manifest.get("layout") or {}).get("grid")
        n_images = len(self.store.image_ids)
        if not grid or grid[0] * grid[1] == 1 or self.store.n_rows != n_images * grid[0] * grid[1]:
            return None
        return int(grid[0]), int(grid[1])

    @cached_property
    def map_images(self) -> list[int]:
        """Of which images maps are kept: the first, and the first that have a box; () where there are no maps."""
        if self.grid is None:
            return []
        boxes = {} if self.places is None else self.places.boxes
        with_box = [number for number, one in enumerate(self.images) if self.store.image_ids[one] in boxes]
        return sorted({*range(min(MAP_IMAGES, len(self.images))), *with_box[:MAP_IMAGES]})

    @cached_property
    def regions(self) -> dict[str, dict[int, npt.NDArray[np.float64]]]:
        """By score, of images with maps: the share of each position that lies inside boxes, or is tissue."""
        found: dict[str, dict[int, npt.NDArray[np.float64]]] = {"breast_energy": {}, "box_energy": {}}
        if self.places is None or self.grid is None:
            return {}
        for number in self.map_images:
            image_id = str(self.store.image_ids[self.images[number]])
            if image_id in self.places.boxes:
                region = box_region(self.places.boxes[image_id], self.places.image_size)
                found["box_energy"][number] = cell_shares(region, self.grid)
            tissue = None if self.places.gray is None else tissue_of(self.places.gray(image_id))
            if tissue is not None:
                found["breast_energy"][number] = cell_shares(tissue, self.grid)
        return {name: some for name, some in found.items() if some}

    @property
    def reasons(self) -> dict[str, str]:
        """Why there are no regions of a kind although images are known."""
        if self.places is None or self.grid is None:
            return {}
        none = {"box_energy": "no image that is scored has a box"}
        if self.places.gray is not None:
            none["breast_energy"] = "none of the images with maps shows a background"
        return {name: why for name, why in none.items() if name not in self.regions}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the rows."""
        return sha256_of_json({key: self.store.manifest[key] for key in ("shards", "image_ids")})

    @cached_property
    def sample(self) -> torch.Tensor:
        """(n, d) rows of training images, drawn at random."""
        of_image = self.store.labels()[0]
        rows = np.flatnonzero(np.isin(of_image, self.training))
        if len(rows) > _SAMPLE_ROWS:
            rows = np.sort(np.random.default_rng(self.settings.seed).choice(rows, _SAMPLE_ROWS, replace=False))
        return self.store.take(rows)

    @cached_property
    def n_training_rows(self) -> int:
        """Rows of training images."""
        return int(np.isin(self.store.labels()[0], self.training).sum())

    def rows(self) -> Iterator[ImageRows]:
        """The rows of the images that are scored, shard by shard, with their places among these images."""
        place = np.full(len(self.store.image_ids), -1, dtype=np.int64)
        place[self.images] = np.arange(len(self.images))
        for vectors, image, _ in self.store.shards():
            there = place[image.numpy()]
            kept = np.flatnonzero(there >= 0)
            if len(kept):
                yield vectors[kept].float(), there[kept]

    @property
    def vectors(self) -> npt.NDArray[np.float64]:
        """(n_images, d): the mean of the rows of each image that is scored."""
        return self._pooled[0]

    @property
    def channels(self) -> npt.NDArray[np.float64] | None:
        """(n_images, d): each channel's maximum over the rows of an image; None where every image has one row."""
        return self._pooled[1]

    @cached_property
    def _pooled(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
        shape = (len(self.images), self.store.d_in)
        sums, largest, counts = np.zeros(shape), np.full(shape, -np.inf), np.zeros(shape[0], dtype=np.int64)
        for vectors, image in self.rows():
            order = np.argsort(image, kind="stable")
            values = vectors.numpy()[order].astype(np.float64)
            own, first = np.unique(image[order], return_index=True)
            sums[own] += np.add.reduceat(values, first, axis=0)
            largest[own] = np.maximum(largest[own], np.maximum.reduceat(values, first, axis=0))
            counts += np.bincount(image, minlength=shape[0])
        return sums / np.maximum(counts, 1)[:, None], largest if counts.max(initial=0) > 1 else None


def _drawn(usable: npt.NDArray[np.int64], groups: npt.NDArray[Any], settings: AuditSettings) -> npt.NDArray[np.int64]:
    """All of these images, or those of as many whole groups as make `most_images`."""
    if len(usable) <= settings.most_images:
        return usable
    own = groups[usable]
    order = np.random.default_rng(settings.seed).permutation(np.unique(own))
    counts = pd.Series(own).value_counts().loc[order].cumsum()
    chosen = order[: max(1, int((counts <= settings.most_images).sum()))]
    return usable[np.isin(own, chosen)]


def labels_in(path: Path) -> pd.DataFrame:
    """A table of labels, with the splits in our words."""
    if not path.exists():
        raise InputError(f"{path} does not exist; give a table with image_id and a column for each label")
    try:
        known = read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error
    for name in ("image_id", "patient_id"):
        if name in known.columns:
            known[name] = known[name].astype(str)
    if "split" in known.columns:
        words = {word: split_word(word) for word in known["split"].unique()}
        known["split"] = known["split"].map(words)
    return known
