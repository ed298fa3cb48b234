"""The boxes of a table's heatmaps: how a heatmap is cut, and each made once, whichever concept asks for it."""

__all__ = [
    "BOX_SCORES", "BoxesWithScores", "BoxScore", "Contours", "Cut", "MapBoxes", "MapKind", "Threshold", "upsampled",
]  # fmt: skip

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.data import Dataset

from mammosae_plugin.analysis.regions import pixels_above, regions_of
from mammosae_plugin.arguments import between, one_of, whole
from mammosae_plugin.jobs import run_jobs
from mammosae_plugin.shapes import LatentMaps

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

BoxScore = Literal["maximum", "mean", "sum", "area"]
BOX_SCORES: tuple[BoxScore, ...] = get_args(BoxScore)
"""What a box can be scored by: the maximum, mean or sum of the heatmap over its region's pixels, or their number."""

Contours = Literal["all", "outer"]
"""Which regions get a box: all, or, as in the release, those that no other region encloses."""

# Of the largest value of a heatmap: what interpolation in float32 can add or take away. A pixel must clear the
# threshold by more than that, or a map that is constant to rounding would have regions.
_INTERPOLATION_ERROR = 2.0**-20

# Fewer heatmaps than this are done before a process is started or a progress bar would be read.
_FEW = 200

BoxesWithScores: TypeAlias = NDArray[np.float32]
"""(n, 8): xyxy, and the scores under every rule of `BOX_SCORES`, in its order."""

MapKind: TypeAlias = tuple[Literal["latent", "channel", "grad_cam"], str]
"""What maps are of, and of Grad-CAM whose; the other kinds have an empty name."""


@dataclass(frozen=True)
class Threshold:
    """Where a heatmap is cut: at a percentile of its pixels, or, if `relative` is given, at that share of its maximum.

    Attributes:
        percentile: from 0 and below 100, which nothing lies above.
        relative: share of the maximum, above 0 and below 1, or None.

    Raises:
        InputError: either is outside its range, or no number.
    """

    percentile: float = 95.0
    relative: float | None = None

    def __post_init__(self) -> None:
        between(self.percentile, "percentile", 0, 100, with_high=False)
        if self.relative is not None:
            between(self.relative, "relative", 0, 1, with_low=False, with_high=False)

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.relative is None else f"relative {self.relative:g}"


def upsampled(values: NDArray[np.float32], into: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map interpolated into the memory of a heatmap, which it fills."""
    # `torch.nn.functional.interpolate`, but into NumPy's memory: torch's own aligned allocations of this size fragment
    # the heap of older glibc (before 2.38), by gigabytes over a thousand heatmaps.
    batch, out = torch.from_numpy(values.copy())[None, None], torch.from_numpy(into)[None, None]
    torch.ops.aten.upsample_bilinear2d.out(batch, list(into.shape), False, out=out)
    return into


@dataclass(frozen=True)
class Cut:
    """How boxes are made of a heatmap: cut at a threshold, small ones and perhaps enclosed ones dropped."""

    threshold: Threshold
    min_area: float
    contours: Contours

    def __post_init__(self) -> None:
        between(self.min_area, "min_area", 0, np.inf)
        one_of(self.contours, "contours", get_args(Contours))

    def boxes(self, values: NDArray[np.floating]) -> BoxesWithScores:
        """The boxes of a heatmap (H, W)."""
        cut = self.threshold
        pixels, own = pixels_above(
            values.ravel(), percentile=cut.percentile, relative=cut.relative, error=_INTERPOLATION_ERROR
        )
        if len(pixels) == 0:
            return np.empty((0, 4 + len(BOX_SCORES)), np.float32)
        found = regions_of(pixels, own, values.shape[1])
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        shown = sides.prod(axis=1) >= self.min_area
        if self.contours == "outer":
            shown &= _outermost(pixels, found.labels, values.shape)
        scores = (found.maxima, found.sums / found.areas, found.sums, found.areas)
        columns: BoxesWithScores = np.column_stack([found.boxes, *scores])[shown].astype(np.float32)
        return columns


def _outermost(pixels: NDArray[np.int64], labels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which regions border on the outside: holes are what edges, not corners, do not join to it."""
    above = np.zeros(shape, dtype=np.bool_)
    above.ravel()[pixels] = True
    outside = ~ndimage.binary_fill_holes(above)
    bordering: NDArray[np.bool_] = ndimage.binary_dilation(outside, border_value=1)
    shown = np.zeros(labels.max() + 1, dtype=np.bool_)
    shown[labels[bordering.ravel()[pixels]]] = True
    return shown


class MapBoxes:
    """The boxes of one table's heatmaps, kept by image, map and cut: no heatmap is made twice, whoever asks for it.

    Classifiers on one encoder share a table, and often share latents and images too. Hand one of these to `localize`,
    `localize_thresholds` and `localize_baselines` of several concepts; it holds about 150 bytes for each heatmap and
    cut, and 32 for each box.

    Args:
        table: a latents table with maps.
        num_workers: processes that make boxes, each of images of its own, and no more than there are cores; 0 makes
            them in this process. The boxes are the same.

    Attributes:
        table: the table.

    Example:
        boxes = MapBoxes(table, num_workers=4)
        for concept in table.concepts:
            localize(table, best[concept], concept, boxes=boxes)
    """

    def __init__(self, table: "LatentTable", *, num_workers: int = 0) -> None:
        self.table, self._num_workers = table, whole(num_workers, "num_workers", least=0)
        self._kept: dict[tuple[MapKind, int, int, Cut], BoxesWithScores] = {}

    def of(
        self, kind: MapKind, numbers: Sequence[int], image_rows: Iterable[int], cuts: Sequence[Cut], description: str
    ) -> dict[tuple[int, Cut], list[BoxesWithScores]]:
        """The boxes of maps in images, made where they are not kept yet.

        Args:
            kind: what the maps are of.
            numbers: of latents or channels; -1 of Grad-CAM.
            image_rows: rows of the table's images.
            cuts: how the heatmaps are cut; each is enlarged once for all that it lacks.
            description: of what they are for, for the progress bar.

        Returns:
            By number and cut the boxes of each image, in the order of `image_rows`.

        Raises:
            InputError: a map that the table lacks.
        """
        rows = list(image_rows)
        lacking = [
            (row, [number for number in numbers if any((kind, row, number, cut) not in self._kept for cut in cuts)])
            for row in rows
        ]
        wanted = [(row, missing) for row, missing in lacking if missing]
        is_quick = sum(len(missing) for _, missing in wanted) < _FEW
        work = _Making(self.table, kind, wanted, cuts)
        workers = 0 if is_quick else self._num_workers
        made = run_jobs(work, workers, description, unit="image", shown=not is_quick)
        for (row, missing), found in zip(wanted, made, strict=True):
            of_maps = zip(((number, cut) for number in missing for cut in cuts), found, strict=True)
            self._kept.update({(kind, row, number, cut): boxes for (number, cut), boxes in of_maps})
        return {
            (number, cut): [self._kept[kind, row, number, cut] for row in rows] for number in numbers for cut in cuts
        }


class _Making(Dataset[list[BoxesWithScores]]):
    """The boxes of some maps of each of some images: of each map under every cut."""

    def __init__(
        self, table: "LatentTable", kind: MapKind, wanted: Sequence[tuple[int, list[int]]], cuts: Sequence[Cut]
    ) -> None:
        self.table, self.kind, self.wanted, self.cuts = table, kind, wanted, cuts
        self.memory = np.empty(table.image_size, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, at: int) -> list[BoxesWithScores]:
        found = []
        for values in self._maps(*self.wanted[at]):
            # Interpolation makes nothing positive of a map that is zero everywhere.
            whole_map = upsampled(values.astype(np.float32), self.memory) if values.any() else values
            found += [cut.boxes(whole_map) for cut in self.cuts]
        return found

    def _maps(self, row: int, numbers: list[int]) -> LatentMaps:
        name, head = self.kind
        if name == "grad_cam":
            return self.table.gradcam(head, row)[None]
        return self.table.maps(numbers, row) if name == "latent" else self.table.channel_maps(numbers, row)
