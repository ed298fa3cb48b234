"""The connected regions of a heatmap above a threshold, from runs of pixels in a row: no pixel below costs anything."""

__all__ = ["pixels_above", "Regions", "regions_of"]

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

_SAMPLED, _BELOW = 10_000, 0.01  # values by which a bound just below a percentile is guessed, and how far below


@dataclass(frozen=True)
class Regions:
    """Regions that are connected through edges and corners, in the order of their first pixel.

    Attributes:
        boxes: (n, 4) int64 xyxy; right and lower ends lie one pixel past the region.
        maxima: (n,) float64, of the pixels' values.
        sums: (n,) float64.
        areas: (n,) int64, pixels.
        labels: (m,) int64, the region of each of the pixels.
    """

    boxes: NDArray[np.int64]
    maxima: NDArray[np.float64]
    sums: NDArray[np.float64]
    areas: NDArray[np.int64]
    labels: NDArray[np.int64]


def regions_of(pixels: NDArray[np.int64], values: NDArray[np.floating], width: int) -> Regions:
    """The regions that some pixels of an image form.

    Args:
        pixels: (m,) at least one, rising: row times width plus column.
        values: (m,) of these pixels.
        width: of the image.
    """
    rows, columns = np.divmod(pixels, width)
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(pixels) != 1) | (columns[1:] == 0)]))
    lengths = np.diff(np.concatenate([starts, [len(pixels)]]))
    row, left = rows[starts], columns[starts]
    right = left + lengths
    # A run touches those of the next row that reach from one pixel left of it to one right; rows lie two apart on one
    # line, so that none is taken for its neighbour's.
    wide = width + 2
    first = np.searchsorted(row * wide + right, (row + 1) * wide + left)
    after = np.searchsorted(row * wide + left, (row + 1) * wide + right, side="right")
    touching = np.maximum(after - first, 0)
    ends = np.cumsum(touching)
    below = np.arange(ends[-1]) + np.repeat(first - ends + touching, touching)
    above = np.repeat(np.arange(len(starts)), touching)
    graph = sparse.csr_array((np.ones(len(above), np.int8), (above, below)), shape=(len(starts),) * 2)
    found = connected_components(graph, directed=False)[1]
    by_first = np.argsort(np.unique(found, return_index=True)[1])
    of_run = np.argsort(by_first)[found]
    order = np.argsort(of_run, kind="stable")
    begins = np.searchsorted(of_run[order], np.arange(len(by_first)))
    boxes = np.stack(
        [
            np.minimum.reduceat(left[order], begins),
            np.minimum.reduceat(row[order], begins),
            np.maximum.reduceat(right[order], begins),
            np.maximum.reduceat(row[order], begins) + 1,
        ],
        axis=1,
    )
    return Regions(
        boxes,
        np.maximum.reduceat(np.maximum.reduceat(values, starts)[order], begins).astype(np.float64),
        np.add.reduceat(np.add.reduceat(values, starts, dtype=np.float64)[order], begins),
        np.add.reduceat(lengths[order], begins),
        np.repeat(of_run, lengths),
    )


def pixels_above(
    values: NDArray[np.floating], *, percentile: float, relative: float | None, error: float
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """The pixels of a map that lie above a percentile of its pixels, or a share of its maximum, and their values.

    Args:
        values: (n,) of the whole map.
        percentile: as `numpy.percentile` with linear interpolation.
        relative: the share instead.
        error: share of the maximum by which a pixel must clear the threshold.

    Returns:
        (m,) pixels, rising, and (m,) values; none of a map without a positive value.
    """
    if relative is not None:
        maximum = float(values.max())
        pixels = np.flatnonzero(values > relative * maximum + error * maximum) if maximum > 0 else np.empty(0, np.int64)
        return pixels, values[pixels]
    # The interpolated percentile lies between two neighbouring order statistics, and below the upper one. So a pixel is
    # strictly above it exactly when it is strictly above the lower one, than which n_higher pixels are no lower.
    n_higher = len(values) - 1 - int(np.floor(percentile / 100 * (len(values) - 1)))
    sample = values[:: max(1, len(values) // _SAMPLED)]
    guess = int(max(0.0, percentile / 100 - _BELOW) * (len(sample) - 1))
    bound = np.partition(sample, guess)[guess]
    pixels = np.flatnonzero(values > bound)
    if len(pixels) <= n_higher:  # the order statistic is no higher than the guess: most maps are mostly zero
        bound = min(bound, values.min())
        pixels = np.flatnonzero(values > bound)
    own = values[pixels]
    maximum = float(own.max(initial=bound))
    if maximum <= 0:
        return pixels[:0], own[:0]
    place = len(own) - 1 - n_higher
    lower = bound if place < 0 else np.partition(own, place)[place]
    is_above = own > float(lower) + error * maximum
    return pixels[is_above], own[is_above]
