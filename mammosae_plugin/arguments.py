"""Checks of the arguments of public functions: the impossible is refused in one line, before anything is computed."""

__all__ = [
    "as_array", "between", "checked_arguments", "class_labels", "entries", "flag", "index", "indices",
    "listed_numbers", "numbers", "one_of", "shown", "text", "whole",
]  # fmt: skip

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST = 80  # characters of a value in a message
_HIGHEST = 2**63 - 1


def whole(value: Any, name: str, *, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`; 5.0 is one, 5.5, True and NaN are not."""
    number = _float(value)
    if number.is_integer() and least <= number <= (_HIGHEST if most is None else most):
        return int(value)
    wanted = f"{least} or more" if most is None else f"{least} to {most}"
    raise InputError(f"{name} is {shown(value)}: give a whole number, {wanted}")


def resampling(n_bootstrap: Any, min_patients: Any, seed: Any) -> tuple[int, int, int]:
    """The checked settings of an interval: resamples, the patients that it needs, and the seed."""
    return (
        whole(n_bootstrap, "n_bootstrap", least=0),
        whole(min_patients, "min_patients", least=1),
        whole(seed, "seed", least=0),
    )


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
    raise InputError(f"{name} is {shown(value)}: give {wanted}")


def one_of(value: Any, name: str, choices: Collection[str]) -> None:
    """Refuse a word that is none of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shown(value)}: choose one of {', '.join(choices)}")


def text(value: Any, name: str) -> None:
    """Refuse what is no text, or empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} is {shown(value)}: give a name, as text")


def flag(value: Any, name: str) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {shown(value)}: give True or False")


def entries(values: Any, name: str) -> list[Any]:
    """The entries of a list, tuple, array or the like; a single value, text and a mapping are none."""
    try:
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError
        return list(values)
    except TypeError as error:
        raise InputError(f"{name} is {shown(values)}: give a list") from error


def as_array(values: Any, name: str) -> NDArray[Any]:
    """An array of any type, also of a tensor on any device; ragged lists and sparse matrices are refused."""
    if hasattr(values, "tocsr"):  # NumPy makes one object of it
        raise InputError(f"{name} are a sparse matrix: give a dense array, such as {name}.toarray()")
    try:
        if hasattr(values, "detach"):  # NumPy has no bfloat16
            values = values.detach().cpu()
            values = (values.double() if values.is_floating_point() else values).numpy()
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not of one regular shape: give an array") from error


def numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Any values as float64; text, ragged lists and complex numbers are refused."""
    try:
        array = as_array(values, name)
        if array.dtype.kind in "USmMc" or (
            array.dtype.kind == "O" and any(isinstance(value, (str, bytes)) for value in array.flat)
        ):
            raise TypeError
        if array.dtype.kind == "O":
            array = np.asarray(array.tolist(), dtype=np.float64)
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not numbers of one regular shape: give an array of numbers") from error


def listed_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """The numbers (n,) of a list, none of them missing."""
    array = numbers(entries(values, name), name)
    if array.ndim != 1 or np.isnan(array).any():
        raise InputError(f"{name} is {shown(values)}: give a list of numbers")
    return array


def index(value: Any, name: str, n: int) -> int:
    """An index into something of length n; a negative one does not count from the end."""
    return whole(value, name, least=0, most=n - 1)


def indices(values: ArrayLike, name: str, n: int, *, distinct: bool = False) -> NDArray[np.int64]:
    """Indices (m,) into something of length n, as int64; negative ones do not count from the end."""
    array = numbers(values, name)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1:
        raise InputError(f"{name} have shape {array.shape}: expected (n,)")
    wrong = ~(np.floor(array) == array) | (array < 0) | (array >= n)
    if as_array(values, name).dtype.kind == "b" or wrong.any():
        held = "true and false" if not wrong.any() else f"{array[wrong][0]:g}"
        raise InputError(f"{name} hold {held}: give whole numbers from 0 to {n - 1}")
    if distinct and len(twice := array[np.setdiff1d(np.arange(array.size), np.unique(array, return_index=True)[1])]):
        raise InputError(f"{name} hold {twice[0]:g} twice: give each once")
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
    """The value as a float, NaN where it is none; truth values, text that spells a number, and arrays are none."""
    is_none = isinstance(value, (bool, np.bool_, str, bytes)) or getattr(value, "ndim", 0) != 0
    try:
        return math.nan if is_none else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def shown(value: Any) -> str:
    """A value in one line of a message."""
    words = " ".join(repr(value).split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _table(value: Any, name: str) -> None:
    if not hasattr(value, "mean_latents"):
        raise InputError(f"{name} is {shown(value)}: give a latents table, LatentTable(folder)")


def _ranking(value: Any, name: str) -> None:
    if not hasattr(value, "indices") or not hasattr(value, "n_class"):
        raise InputError(f"{name} is {shown(value)}: give the RankedLatents that `rank_latents` returns")


def _passes(value: Any, name: str) -> None:
    if value is not None and not callable(getattr(value, "logits", None)):
        raise InputError(f"{name} is {shown(value)}: give a latents.masked_passes.MaskedPasses, or None")


_BY_NAME: Mapping[str, Callable[[Any, str], None]] = MappingProxyType(
    {
        "table": _table,
        "ranking": _ranking,
        "concept": text,
        "split": text,
        "unit": text,
        "head": text,
        "error_term": flag,
        "passes": _passes,
    }
)


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Have the arguments that mean the same in every analysis checked, by their names, before the function runs."""
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        for name in _BY_NAME.keys() & given.keys():
            _BY_NAME[name](given[name], name)
        return function(*args, **kwargs)

    return checked
