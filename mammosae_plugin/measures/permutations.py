"""Tests by permuting labels between groups, and what many tests at once say together."""

__all__ = ["in_random_groups", "in_random_order", "permutation_test", "PermutationTest", "permuted_labels"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import as_array, flag, numbers, whole
from mammosae_plugin.errors import InputError

_ROUNDING = 1e-9  # relative; a permutation that gives the same statistic counts as reaching it


def in_random_groups(groups: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """The rows, group after group, the groups in a random order and the rows of each too.

    Of labels that differ within every group in the same way, such as the view, the order of groups alone says nothing.
    """
    rows = np.argsort(groups, kind="stable")
    runs = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return np.concatenate([generator.permutation(runs[run]) for run in generator.permutation(len(runs))])


def in_random_order(groups: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """(N,) the row that takes the place of each, groups kept together."""
    order = np.empty(len(groups), dtype=np.int64)
    order[np.argsort(groups, kind="stable")] = in_random_groups(groups, generator)
    return order


def permuted_labels(labels: ArrayLike, groups: ArrayLike, *, n_permutations: int, seed: int = 0) -> NDArray[np.float64]:
    """Labels permuted between groups: groups are put into a random order and take the labels in the order of the rows.

    So images of one group keep like labels, as far as groups are of like size.

    Args:
        labels: (n,) numbers.
        groups: (n,) which rows belong together, such as the patient.
        n_permutations: how often.
        seed: of the orders.

    Returns:
        (n, 1 + n_permutations) float64; the first column are the labels themselves.

    Raises:
        InputError: labels and groups that do not fit, or a group that is missing.
    """
    values, of_row = numbers(labels, "labels"), as_array(groups, "groups")
    if values.ndim != 1 or of_row.shape != values.shape or pd.isna(of_row).any():
        raise InputError(f"labels {values.shape} and groups {of_row.shape} do not fit: expected (n,), none missing")
    numbered = np.asarray(pd.factorize(of_row)[0], dtype=np.int64)
    n_permutations, seed = whole(n_permutations, "n_permutations", least=0), whole(seed, "seed", least=0)
    generator, in_order = np.random.default_rng(seed), values[np.argsort(numbered, kind="stable")]
    found = np.empty((len(values), 1 + n_permutations))
    found[:, 0] = values
    for column in range(1, 1 + n_permutations):
        found[in_random_groups(numbered, generator), column] = in_order
    return found


@dataclass(frozen=True)
class PermutationTest:
    """What permuted labels say of m statistics.

    Attributes:
        value: (m,) of the labels themselves.
        p_value: (m,) the share of the orders, with the labels' own as one of them, that reach it; NaN where it is NaN.
        p_family: (m,) the share in which any of the m reaches it, which holds for all of them together where they are
            on one scale.
    """

    value: NDArray[np.float64]
    p_value: NDArray[np.float64]
    p_family: NDArray[np.float64]


def permutation_test(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    center: float = 0.0,
    two_sided: bool = True,
    n_permutations: int = 999,
    seed: int = 0,
) -> PermutationTest:
    """Whether labels go with something more than labels that are permuted between groups do.

    Args:
        statistic: from labels (n, B) of B orders to (m, B) values; called once, for all orders.
        labels: (n,) numbers.
        groups: (n,) which rows belong together.
        center: what the statistic is by chance: distances from it are compared.
        two_sided: whether values below count as those above.
        n_permutations: how often.
        seed: of the orders.

    Raises:
        InputError: arrays that do not fit, or a statistic that is not (m, B).

    Example:
        >>> import numpy as np
        >>> labels = np.repeat([0, 1], 20)
        >>> found = permutation_test(lambda y: np.arange(40.0)[None] @ (y - y.mean(axis=0)), labels, np.arange(40))
        >>> found.p_value.tolist()
        [0.001]
    """
    flag(two_sided, "two_sided")
    orders = permuted_labels(labels, groups, n_permutations=n_permutations, seed=seed)
    values = np.asarray(statistic(orders), dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != orders.shape[1]:
        raise InputError(f"the statistic has shape {values.shape}: expected (m, {orders.shape[1]}), one for each order")
    away = np.abs(values - center) if two_sided else values - center
    reach = away[:, :1] - _ROUNDING * np.abs(away[:, :1])
    known = ~np.isnan(values[:, 0])
    share = (1 + (away[:, 1:] >= reach).sum(axis=1)) / orders.shape[1]
    farthest = np.fmax.reduce(away[known, 1:], axis=0) if known.any() else np.zeros(orders.shape[1] - 1)
    family = (1 + (farthest >= reach).sum(axis=1)) / orders.shape[1]
    return PermutationTest(values[:, 0], np.where(known, share, np.nan), np.where(known, family, np.nan))
