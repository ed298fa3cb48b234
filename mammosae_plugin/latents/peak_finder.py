"""Finding the strongest places of maps: their local maxima, small enough to keep of every image.

A peak is a position whose value is above 0 and not below that of any of its up to eight neighbours; positions of the
same value that touch are one peak, whose place is the first of them, row by row. Peaks come by falling value, equal
ones by rising position.
"""

__all__ = ["KeptPeaks", "MOST_PEAKS", "PeakFinder", "peaks_of", "stored"]

import torch
from torch.nn import functional

MOST_PEAKS = 255
"""Peaks of a map that can be kept: their number is stored in a byte."""

_SPARSE = 1 / 5  # share of positions that fire, up to which they are looked at one by one
_NEIGHBOURS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]

KeptPeaks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(m,) columns, rising; positions in the grid, row by row; and values."""


class PeakFinder:
    """The strongest peaks of every column of a map whose positions come some at a time.

    Only a few rows of the grid are held. (Where touching positions of one value lie in several pieces that meet only
    after a whole block of rows, each of the pieces is a peak; such maps are made, not found.)

    Args:
        n: Peaks that are kept of a column.
        width: Positions in a row of the grid.
    """

    def __init__(self, n: int, width: int) -> None:
        self.n, self.width = n, width
        self._held: torch.Tensor | None = None  # rows of the grid from `_first` on, and perhaps a part of one
        self._first = 0
        self._decided = 0
        self._last: torch.Tensor | None = None  # (width, columns) where the last decided row has peaks
        self._found: KeptPeaks | None = None

    def add(self, values: torch.Tensor) -> None:
        """Take the next positions (n, columns), row by row of the grid."""
        held = self._hold(values)
        self._decide(held, self._first + len(held) // self.width - 1)  # a row when the one below it is there

    def found(self, values: torch.Tensor | None = None) -> KeptPeaks:
        """The peaks, after the last positions."""
        assert values is not None or self._held is not None
        held = self._held if values is None else self._hold(values)
        assert held is not None
        self._decide(held, self._first + len(held) // self.width)
        assert self._found is not None
        return self._found

    def _hold(self, values: torch.Tensor) -> torch.Tensor:
        self._held = values if self._held is None else torch.cat([self._held, values])
        return self._held

    def _decide(self, held: torch.Tensor, stop: int) -> None:
        """Find the peaks of the rows of the grid up to `stop`."""
        if stop <= self._decided:
            return
        n_columns = held.shape[1]
        whole = held[: len(held) // self.width * self.width].reshape(-1, self.width, n_columns)
        above = self._decided - self._first  # rows that are only looked at, as are those from `until` on
        until = stop - self._first
        last = torch.zeros((self.width, n_columns), dtype=torch.bool, device=held.device)
        fires = whole[above:until] > 0
        pieces = [] if self._found is None else [self._found]
        if int(torch.count_nonzero(fires)) < _SPARSE * fires.numel():
            lone, joined = self._lone(whole, fires, above, last)
            pieces.append(lone)
        else:
            joined = torch.nonzero(fires.any(0).any(0)).squeeze(1)
        if len(joined) or not pieces:
            pieces.append(self._joined(whole, joined, above, until, last))
        columns, positions, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        self._found = _strongest((columns, positions, values), self.n)
        self._last = last
        # The last decided row stays, because the next one is compared with it.
        self._held = held[(stop - 1 - self._first) * self.width :]
        self._first, self._decided = stop - 1, stop

    def _lone(
        self, whole: torch.Tensor, fires: torch.Tensor, above: int, last: torch.Tensor
    ) -> tuple[KeptPeaks, torch.Tensor]:
        """The peaks of columns none of whose peaks has a neighbour of its own value; and the other columns.

        Only positions that fire are looked at. Peaks of the last row are noted in `last`.
        """
        n_rows, _, n_columns = whole.shape
        row, place, column = torch.nonzero(fires, as_tuple=True)
        row += above
        flat = whole.reshape(-1)
        at = (row * self.width + place) * n_columns + column
        value = flat[at]
        equals = torch.zeros_like(at, dtype=torch.bool)
        for down, right in _NEIGHBOURS:
            inside = (row + down >= 0) & (row + down < n_rows) & (place + right >= 0) & (place + right < self.width)
            other = flat[torch.where(inside, at + (down * self.width + right) * n_columns, at)]
            equals |= inside & (other == value)
            kept = ~inside | (other <= value)
            row, place, column, at, value, equals = (
                part[kept] for part in (row, place, column, at, value, equals)
            )  # fewer are left for the next
        joined = torch.unique(column[equals])
        is_lone = torch.ones(n_columns, dtype=torch.bool, device=whole.device)
        is_lone[joined] = False
        lone = is_lone[column]
        row, place, column, value = row[lone], place[lone], column[lone], value[lone]
        in_last = row == above + len(fires) - 1
        last[place[in_last], column[in_last]] = True
        return (column, (row + self._first) * self.width + place, value.float()), joined

    def _joined(
        self, whole: torch.Tensor, columns: torch.Tensor, above: int, until: int, last: torch.Tensor
    ) -> KeptPeaks:
        """The peaks of some columns, of those that touch the first. Peaks of the last row are noted in `last`."""
        maps = whole[:, :, columns].permute(2, 0, 1)
        is_peak = (maps == _highest_around(maps)) & (maps > 0)
        counted = torch.zeros_like(is_peak)
        if above:
            assert self._last is not None
            is_peak[:, 0] = counted[:, 0] = self._last[:, columns].T
        is_peak[:, until:] = False
        kept = _one_of_each(is_peak, counted)
        last[:, columns] = is_peak[:, until - 1].T
        column, row, place = torch.nonzero(kept, as_tuple=True)
        return columns[column], (row + self._first) * self.width + place, maps[kept].float()


def _highest_around(maps: torch.Tensor) -> torch.Tensor:
    """(k, h, w) the highest of each position of maps and its neighbours."""
    return functional.max_pool2d(maps[:, None], 3, 1, 1)[:, 0]


def _strongest(peaks: KeptPeaks, n: int) -> KeptPeaks:
    """The `n` strongest of each column, columns rising."""
    columns, positions, values = peaks
    order = torch.argsort(positions, stable=True)
    order = order[torch.argsort(values[order], descending=True, stable=True)]
    order = order[torch.argsort(columns[order], stable=True)]
    ordered = columns[order]
    first = torch.searchsorted(ordered, ordered)  # where the column begins
    order = order[torch.arange(len(order), device=order.device) - first < n]
    return columns[order], positions[order], values[order]


def _one_of_each(is_peak: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Of peaks (k, h, w) that touch, the first; none of those that touch one that was counted before."""
    kept = is_peak & ~counted
    height, width = is_peak.shape[1:]
    # Without neighbours that are peaks as well there is nothing to join; few columns have any.
    around = functional.avg_pool2d(is_peak[:, None].float(), 3, 1, 1, divisor_override=1)[:, 0]
    touching = torch.nonzero(((around > 1.5) & is_peak).any(-1).any(-1)).squeeze(1)
    if not len(touching):
        return kept
    own, never = is_peak[touching], float(height * width)
    numbers = torch.arange(height * width, dtype=torch.float64, device=own.device).reshape(1, height, width)
    nowhere = torch.full_like(numbers, never)
    labels = torch.where(own, torch.where(counted[touching], -torch.ones_like(numbers), numbers), nowhere)
    while True:
        lowest = torch.where(own, -_highest_around(-labels), nowhere)
        if torch.equal(lowest, labels):
            break
        labels = lowest
    kept[touching] = own & (labels == numbers)
    return kept


def peaks_of(maps: torch.Tensor, n: int) -> KeptPeaks:
    """The `n` strongest peaks of each of some maps (k, h, w)."""
    return PeakFinder(n, maps.shape[2]).found(maps.flatten(1).T)


def stored(peaks: KeptPeaks, of: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Peaks as tensors of a shard: how many each of the columns `of` (k,), rising, has; and one after the other.

    Every column with a peak is among `of`.
    """
    columns, positions, values = peaks
    counts = torch.searchsorted(columns, of, right=True) - torch.searchsorted(columns, of)
    return {
        f"peaks.{name}.counts": counts.to(torch.uint8),
        f"peaks.{name}.positions": positions.to(torch.int32),
        f"peaks.{name}.values": values,
    }
