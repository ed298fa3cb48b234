"""What images can be named after: labels, levels of words and thirds of numbers that a latents table knows of them."""

__all__ = ["attributes_and_columns", "attributes_of"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mammosae_plugin.analysis.covariates import covariate_columns, known_values
from mammosae_plugin.analysis.table_arrays import image_labels, split_rows
from mammosae_plugin.datasets.concepts import PRESENT
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_MOST_LEVELS = 6  # of a number that is looked at value by value


def attributes_of(
    table: "LatentTable", labels: Sequence[str] | None, metadata: Sequence[str] | None, split: str
) -> pd.DataFrame:
    """Attributes of all images of a table: a column for each, 1 where an image has it, 0 where not, NaN where unknown.

    A finding is an attribute; of a concept with other classes each class is, `density=C`. Of words each level is
    (`view=MLO`), of numbers with up to six values each value, of others the lowest and the highest third in the split.

    Args:
        table: the latents table.
        labels: names of concepts or of columns of 0 and 1; None: all concepts.
        metadata: names of columns of `table.images`; None: those that `confounders` takes for covariates.
        split: whose images thirds are of.

    Raises:
        InputError: a name that there is not, or nothing to name by.
    """
    return attributes_and_columns(table, labels, metadata, split)[0]


def attributes_and_columns(
    table: "LatentTable", labels: Sequence[str] | None, metadata: Sequence[str] | None, split: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """`attributes_of`, and of each that is no label the column of which it is a value."""
    found: dict[str, Any] = {}
    column_of: dict[str, str] = {}
    if labels is None and table.vocabulary or labels:
        of_labels = image_labels(table, labels)
        for name in of_labels.columns:
            concept = table.vocabulary.get(name)
            if concept is None or concept.classes[1] == PRESENT:
                found[str(name)] = of_labels[name]
            else:  # of two classes that both have a name, such as the side, each is one
                for number, word in enumerate(concept.classes):
                    found[f"{name}={word}"] = of_labels[name] if number else 1 - of_labels[name]
    columns = covariate_columns(table, "", None if metadata is None else list(metadata))
    rows = split_rows(table, split)
    for name in columns:
        if name in table.vocabulary and metadata is None:
            continue
        levels = _levels(name, known_values(table.images[name]), rows)
        found |= levels
        column_of |= dict.fromkeys(levels, name)
    if not found:
        raise InputError(
            f"{table.folder} has no label and no metadata to name latents by; encode with labels, or name them by texts"
        )
    return pd.DataFrame(found), column_of


def _levels(name: str, values: "pd.Series[Any]", rows: Any) -> dict[str, Any]:
    known, there = values.dropna(), values.notna()
    if not pd.api.types.is_numeric_dtype(values):
        words = values.astype(str)
        names = sorted(known.astype(str).unique())
        return {f"{name}={word}": (words == word).astype(float).where(there) for word in names}
    levels = sorted(known.unique())
    if set(levels) <= {0, 1}:
        return {name: values.astype(float)}
    if len(levels) <= _MOST_LEVELS:
        return {f"{name}={level:g}": (values == level).astype(float).where(there) for level in levels}
    own = values.iloc[rows].dropna()
    if own.empty:
        return {}
    low, high = np.quantile(own, (1 / 3, 2 / 3))
    return {
        f"{name} up to {low:.4g}": (values <= low).astype(float).where(there),
        f"{name} from {high:.4g}": (values >= high).astype(float).where(there),
    }
