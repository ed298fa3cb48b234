"""Codes as plain arrays or sparse matrices, and what their scores share: groups in random order, ranks, top rows."""

__all__ = ["as_codes", "as_groups", "in_random_groups", "mean_ranks", "settled_codes", "strongest_rows"]

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mammosae_plugin.arguments import as_array, numbers
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import settled_columns

_BLOCK = 4_000_000  # stored values whose places are sorted at once


def as_codes(codes: Any, name: str = "codes", *, negative: bool = True) -> sparse.csc_array:
    """Codes (N, D), dense or scipy.sparse, as sparse columns of float64 without stored zeros.

    Raises:
        InputError: not (N, D), not finite, or, where `negative` is false, below 0.
    """
    found: Any
    if sparse.issparse(codes):
        matrix: Any = codes
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
    if array.shape != (n_rows,):
        raise InputError(f"groups have shape {array.shape}: expected ({n_rows},), the group of every row")
    numbered: dict[Any, int] = {}
    for group in array.tolist():
        if group is None or group != group:
            raise InputError("a row has no group: name the patient or volume of every row")
        numbered.setdefault(group, len(numbered))
    return np.array([numbered[group] for group in array.tolist()], dtype=np.int64)


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
    n_latents = codes.shape[1]
    rows = np.full((n_latents, n), -1, dtype=np.int64)
    n_groups = np.zeros(n_latents, dtype=np.int64)
    start = 0
    while start < n_latents:
        stop = max(start + 1, int(np.searchsorted(codes.indptr, codes.indptr[start] + _BLOCK, side="right")) - 1)
        stop = min(stop, n_latents)
        span = slice(codes.indptr[start], codes.indptr[stop])
        latent = np.repeat(np.arange(stop - start), np.diff(codes.indptr[start : stop + 1]))
        row, value = codes.indices[span].astype(np.int64), codes.data[span]
        kept = value > 0
        latent, row, value = latent[kept], row[kept], value[kept]
        order = np.lexsort((row, -value, latent))
        latent, row = latent[order], row[order]
        # The first place of every (latent, group) in this order is the group's strongest row.
        _, first = np.unique(latent * (groups.max(initial=0) + 1) + groups[row], return_index=True)
        first.sort()
        latent, row = latent[first], row[first]
        counts = np.bincount(latent, minlength=stop - start)
        n_groups[start:stop] = counts
        place = np.arange(len(latent)) - np.repeat(np.cumsum(counts) - counts, counts)
        top = place < n
        rows[start + latent[top], place[top]] = row[top]
        start = stop
    return rows, n_groups


def in_random_groups(groups: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """The rows, group after group, the groups in a random order."""
    rows = np.argsort(groups, kind="stable")
    runs = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return np.concatenate([runs[run] for run in generator.permutation(len(runs))])


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
