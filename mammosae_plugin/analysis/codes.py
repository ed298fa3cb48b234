"""Codes as plain arrays or sparse matrices, and what their scores share: groups, ranks, top rows."""

__all__ = ["as_codes", "as_groups", "mean_ranks", "settled_codes", "strongest_rows"]

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from mammosae_plugin.arguments import as_array, numbers
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import settled_columns

_BLOCK = 4_000_000  # stored values that are looked at at once
_PADDED = 2_000_000  # places of a table of latents, some of them empty


def as_codes(codes: Any, name: str = "codes", *, negative: bool = True) -> sparse.csc_array:
    """Codes (N, D), dense or scipy.sparse, as sparse columns of float64 without stored zeros.

    Raises:
        InputError: not (N, D), not finite, or, where `negative` is false, below 0.
    """
    found: Any
    if sparse.issparse(codes):
        matrix: Any = codes
        if matrix.dtype.kind not in "fiub":
            raise InputError(f"{name} are {matrix.dtype}: give numbers")
        found = sparse.csc_array(matrix.astype(np.float64), copy=True)
        found.sum_duplicates()
    else:
        array = numbers(codes, name)
        if array.ndim != 2:
            raise InputError(f"{name} have shape {array.shape}: expected (N, D), one row for each image")
        found = sparse.csc_array(array)
    if not np.isfinite(found.data).all():
        raise InputError(f"{name} hold a value that is not finite")
    found.eliminate_zeros()
    if not negative and (found.data < 0).any():
        raise InputError(f"{name} hold {found.data.min():g}: give activations of 0 or more")
    columns: sparse.csc_array = found
    return columns


def settled_codes(codes: sparse.csc_array) -> sparse.csc_array:
    """Codes (N, D) of a float32 network, where values of a latent that differ by rounding are equal."""
    columns = np.split(codes.data, codes.indptr[1:-1])
    values = np.concatenate([settled_columns(column[:, None]).ravel() for column in columns])
    return sparse.csc_array((values, codes.indices, codes.indptr), shape=codes.shape)


def as_groups(groups: Any, n_rows: int) -> NDArray[np.int64]:
    """The group of each row (n_rows,), numbered in the order in which groups first occur.

    Raises:
        InputError: another number of them, or one that is missing.
    """
    array = as_array(groups, "groups")
    if array.dtype.kind in "US" and not hasattr(groups, "dtype"):
        array = np.array(list(groups), dtype=object)  # in a list of text NumPy makes text of NaN
    if array.shape != (n_rows,):
        raise InputError(f"groups have shape {array.shape}: expected ({n_rows},), the group of every row")
    if pd.isna(array).any():
        raise InputError("a row has no group: name the patient or volume of every row")
    numbered: dict[Any, int] = {}
    try:
        found = [numbered.setdefault(group, len(numbered)) for group in array.tolist()]
    except TypeError as error:  # lists, which are in no dictionary
        raise InputError("groups hold something else than text and numbers: name the patient of every row") from error
    return np.array(found, dtype=np.int64)


def strongest_rows(
    codes: sparse.csc_array, groups: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every latent the rows where it is strongest, one of each group.

    Args:
        codes: (N, D) as `as_codes` gives them; only values above 0 count.
        groups: (N,) as `as_groups` numbers them.
        n: how many rows at the most.

    Returns:
        (D, n) rows by falling activation (equal ones in their order), -1 where a latent fires in fewer groups; and (D,)
        in how many groups each fires.
    """
    n_rows, n_latents = codes.shape
    rows = np.full((n_latents, n), -1, dtype=np.int64)
    n_groups = np.zeros(n_latents, dtype=np.int64)
    order = np.argsort(groups, kind="stable")  # groups in one piece, so that their strongest rows need no sorting
    if n_rows and (np.diff(order) < 0).any():
        codes = sparse.csc_array(sparse.csr_array(codes)[order])
    codes.sort_indices()
    start = 0
    while start < n_latents:
        stop = max(start + 1, int(np.searchsorted(codes.indptr, codes.indptr[start] + _BLOCK, side="right")) - 1)
        stop = min(stop, n_latents)
        span = slice(codes.indptr[start], codes.indptr[stop])
        latent = np.repeat(np.arange(stop - start), np.diff(codes.indptr[start : stop + 1]))
        row, value = order[codes.indices[span]], codes.data[span]
        if not (kept := value > 0).all():
            latent, row, value = latent[kept], row[kept], value[kept]
        if len(value):
            first = _strongest_of_groups(latent, groups[row], value)
            latent, row, value = latent[first], row[first], value[first]
        n_groups[start:stop] = np.bincount(latent, minlength=stop - start)
        _strongest(row, value, n_groups[start:stop], rows[start:stop])
        start = stop
    return rows, n_groups


def mean_ranks(codes: sparse.csc_array) -> tuple[sparse.csc_array, NDArray[np.float64], NDArray[np.bool_]]:
    """Mean ranks of every column as base (D,), the rank of its zeros, plus what stored values differ from it (N, D);
    and whether a column holds more than one value."""
    n_rows, n_latents = codes.shape
    column = np.repeat(np.arange(n_latents), np.diff(codes.indptr))
    order = np.lexsort((codes.data, column))
    values, of = codes.data[order], column[order]
    n_zero = n_rows - np.diff(codes.indptr)
    n_below = np.bincount(of[values < 0], minlength=n_latents)
    place = np.arange(len(values)) - np.asarray(codes.indptr[:-1])[of] + np.where(values > 0, n_zero[of], 0)
    new = np.ones(len(values), dtype=bool)
    new[1:] = (np.diff(values) != 0) | (np.diff(of) != 0)
    tie = np.cumsum(new) - 1
    mean_place = np.bincount(tie, place, minlength=int(new.sum())) / np.maximum(np.bincount(tie), 1)
    base = n_below + (n_zero + 1) / 2
    difference = np.empty(len(values))
    difference[order] = mean_place[tie] + 1 - base[of]
    n_values = np.bincount(of[new], minlength=n_latents) + (n_zero > 0)
    ranks: sparse.csc_array = sparse.csc_array((difference, codes.indices, codes.indptr), shape=codes.shape)
    return ranks, base, n_values > 1


def _strongest_of_groups(
    latent: NDArray[np.int64], group: NDArray[np.int64], value: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Of entries sorted by latent and group the place of the largest of each, the first of equal ones."""
    new = np.ones(len(value), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (latent[1:] != latent[:-1])
    starts = np.flatnonzero(new)
    if len(starts) == len(value):
        return starts
    run = np.cumsum(new) - 1
    places = np.flatnonzero(value == np.maximum.reduceat(value, starts)[run])
    run = run[places]
    first = np.ones(len(places), dtype=bool)
    first[1:] = run[1:] != run[:-1]
    return places[first]


def _strongest(
    row: NDArray[np.int64], value: NDArray[np.float64], counts: NDArray[np.int64], rows: NDArray[np.int64]
) -> None:
    """Fill `rows` (D, n) with those of the largest values of every latent, equal ones by rising row.

    Args:
        row: of each entry; entries are sorted by latent.
        value: of each entry.
        counts: (D,) entries of each latent.
        rows: (D, n), filled from the left.
    """
    n = rows.shape[1]
    starts = np.cumsum(counts) - counts
    by_count = np.argsort(counts, kind="stable")[np.searchsorted(np.sort(counts), 1) :]
    begun = 0
    while begun < len(by_count):  # latents of like counts, so that a table of them has few empty places
        least = counts[by_count[begun]]
        some = by_count[
            begun : max(begun + 1, int(np.searchsorted(counts[by_count], max(1.2 * least, n), side="right")))
        ]
        some = some[: max(1, _PADDED // int(counts[some[-1]]))]
        begun += len(some)
        place = np.arange(int(counts[some[-1]]))
        at = starts[some][:, None] + np.minimum(place, counts[some][:, None] - 1)
        values = np.where(place < counts[some][:, None], value[at], -np.inf)
        if len(place) > n:
            # Whatever equals the n-th largest value may be among the n, so that all of these are looked at.
            bound = -np.partition(-values, n - 1, axis=1)[:, n - 1]
            candidates = values >= bound[:, None]
            width = int(candidates.sum(axis=1).max())
            chosen = np.argsort(~candidates, axis=1, kind="stable")[:, :width]
            values = np.where(
                np.take_along_axis(candidates, chosen, axis=1), np.take_along_axis(values, chosen, 1), -np.inf
            )
            at = np.take_along_axis(at, chosen, axis=1)
        own = row[at]
        by_row = np.argsort(own, axis=1, kind="stable")
        own, values = np.take_along_axis(own, by_row, axis=1), np.take_along_axis(values, by_row, axis=1)
        top = np.argsort(-values, axis=1, kind="stable")[:, :n]
        found = np.where(np.isfinite(np.take_along_axis(values, top, axis=1)), np.take_along_axis(own, top, axis=1), -1)
        rows[some, : found.shape[1]] = found
