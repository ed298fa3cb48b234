"""Checks of the arguments of public functions: the impossible is refused in one line, before anything is computed."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.errors import InputError


def whole(value: Any, name: str, *, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`; 5.0 is one, 5.5, True and NaN are not."""
    number = math.nan if isinstance(value, (bool, np.bool_)) else _float(value)
    if number.is_integer() and number >= least and (most is None or number <= most):
        return int(value)
    wanted = f"{least} or more" if most is None else f"{least} to {most}"
    raise InputError(f"{name} is {value!r}: give a whole number, {wanted}")


def between(value: Any, name: str, low: float, high: float, *, with_low: bool = True, with_high: bool = True) -> float:
    """A finite number from `low` to `high`, with or without either end."""
    number = _float(value)
    above = number >= low if with_low else number > low
    below = number <= high if with_high else number < high
    if math.isfinite(number) and above and below:
        return number
    if math.isinf(high):
        wanted = "a finite number" + (
            "" if math.isinf(low) else f", {low:g} or more" if with_low else f" above {low:g}"
        )
    else:
        ends = f"from {low:g} to {high:g}"
        without = [f"{end:g}" for end, kept in ((low, with_low), (high, with_high)) if not kept]
        wanted = f"a number {ends}" + (f", but not {' or '.join(without)}" if without else "")
    raise InputError(f"{name} is {value!r}: give {wanted}")


def one_of(value: Any, name: str, choices: Collection[str]) -> None:
    """Refuse a word that is none of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {value!r}: choose one of {', '.join(choices)}")


def numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Any values as float64; text, ragged lists and complex numbers are refused."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in "USOmMc":
            array = np.asarray(array.tolist(), dtype=np.float64)
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not numbers of one regular shape: give an array of numbers") from error


def indices(values: ArrayLike, name: str, n: int) -> NDArray[np.int64]:
    """Indices (m,) into something of length n, as int64; negative ones do not count from the end."""
    array = numbers(values, name)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1:
        raise InputError(f"{name} have shape {array.shape}: expected (n,)")
    wrong = ~(np.floor(array) == array) | (array < 0) | (array >= n)
    if np.asarray(values).dtype.kind == "b" or wrong.any():
        shown = "true and false" if not wrong.any() else f"{array[wrong][0]:g}"
        raise InputError(f"{name} hold {shown}: give whole numbers from 0 to {n - 1}")
    return array.astype(np.int64)


def class_labels(labels: ArrayLike, name: str = "labels", *, n_class: int | None = None) -> NDArray[np.int64]:
    """Labels (n,) of classes as int64: whole numbers from 0, none missing.

    Raises:
        InputError: not (n,), a label that is missing, not whole, negative, or not below `n_class`.
    """
    array = numbers(labels, name)
    if array.ndim != 1:
        raise InputError(f"{name} have shape {array.shape}: expected (n,), one class for each row")
    n_missing = int(np.isnan(array).sum())
    if n_missing:
        raise InputError(f"{name}: {n_missing} of {len(array)} are missing (NaN): leave those rows out")
    broken = array[~(np.floor(array) == array) | np.isinf(array)]
    if len(broken):
        raise InputError(f"{name} hold {broken[0]:g}: give classes, whole numbers from 0")
    if array.size and (array.min() < 0 or (n_class is not None and array.max() >= n_class)):
        has = (
            f"but the classifier has the classes 0 to {n_class - 1}"
            if n_class is not None
            else "but classes count from 0"
        )
        raise InputError(f"{name} run from {array.min():g} to {array.max():g}, {has}")
    return array.astype(np.int64)


def _float(value: Any) -> float:
    """The value as a float, NaN where it is none; text that spells a number is none."""
    try:
        return math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
