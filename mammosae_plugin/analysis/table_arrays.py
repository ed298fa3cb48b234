"""What plain-array scores need of a latents table: labels, groups and codes of its images."""

__all__ = ["image_groups", "image_labels", "image_statistic", "split_rows", "which_table"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import as_array, entries, one_of, shown
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable


def image_labels(table: "LatentTable", labels: Sequence[str] | pd.DataFrame | None = None) -> pd.DataFrame:
    """Labels of all images of a table: a column for each, 1 where an image has it, 0 where not, NaN where missing.

    Args:
        table: the latents table.
        labels: as for `monosemanticity`.

    Raises:
        InputError: a label that there is not, or that is neither 0, 1 nor missing; no label at all.
    """
    images = table.images
    concepts = table.vocabulary
    if isinstance(labels, pd.DataFrame):
        given = labels
        if "image_id" in labels.columns:
            if labels["image_id"].duplicated().any():
                raise InputError("the table of labels has an image twice: give a row for each image")
            given = labels.set_index("image_id").reindex(images["image_id"])
        elif len(labels) != len(images):
            raise InputError(
                f"the table of labels has {len(labels)} rows and no image_id: expected {len(images)}, one for each "
                "image, in the order of table.images"
            )
        columns = {str(name): given[name] for name in given.columns}
    else:
        columns = {}
        for name in list(concepts) if labels is None else [str(each) for each in entries(labels, "labels")]:
            if name not in images.columns:
                there = ", ".join([*concepts]) or "none"
                raise InputError(f"{table.folder} has no label {name!r}; its concepts are {there}")
            if name in concepts and not concepts[name].is_binary:
                numbered = pd.to_numeric(images[name])
                known = numbered.notna() & (numbered >= 0)
                for number, word in enumerate(concepts[name].classes):
                    columns[f"{name}={word}"] = (numbered == number).astype(float).where(known)
            else:
                columns[name] = images[name]
    if not columns:
        raise InputError(
            f"there is no label to score by: {table.folder} has no concept; name columns of table.images "
            "(labels=, on the command line --label)"
        )
    found = {}
    for name, column in columns.items():
        try:
            values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise InputError(f"the label {name!r} is no number: give 0, 1 or nothing for each image") from error
        values = np.where(values == -1, np.nan, values)  # how tables say that a label is missing
        if (wrong := ~np.isnan(values) & ~np.isin(values, (0, 1))).any():
            raise InputError(
                f"the label {name!r} is {values[wrong][0]:g} in a row: give 0, 1 or nothing for each image"
            )
        found[name] = values
    return pd.DataFrame(found)


def split_rows(table: "LatentTable", split: str) -> NDArray[np.int64]:
    """Rows (n,) of `table.images` that are of a split.

    Raises:
        InputError: there is no such split.
    """
    splits = table.images["split"]
    if not (splits == split).any():
        raise InputError(f"{table.folder} has no split {split!r}; it has {', '.join(map(str, splits.unique()))}")
    return np.flatnonzero((splits == split).to_numpy()).astype(np.int64)


def image_statistic(table: "LatentTable", statistic: str) -> Any:
    """(n_images, d_sae): the maximum or mean of every latent over positions.

    Raises:
        InputError: another statistic.
    """
    one_of(statistic, "statistic", ("max", "mean"))
    return table.max_latents if statistic == "max" else table.mean_latents


def image_groups(table: "LatentTable", group: str | ArrayLike) -> NDArray[Any]:
    """(n_images,): which images belong together, by a column of `table.images` or as it is given.

    Raises:
        InputError: no such column, or another number of images.
    """
    images = table.images
    if isinstance(group, str):
        if group not in images.columns:
            raise InputError(f"{table.folder} has no column {group!r} to group images by; name one, such as patient_id")
        return images[group].to_numpy(dtype=object)
    array = as_array(group, "group")
    if array.shape != (len(images),):
        raise InputError(f"group is {shown(group)}: give a column of table.images, or a value for each of its rows")
    return array.astype(object)


def which_table(table: "LatentTable") -> dict[str, Any]:
    """What tells of a table which it is, for what is made of it: its folder's name, and the SHA-256 of its SAE."""
    inputs = getattr(table, "provenance", {}).get("inputs", {})
    return {"table": getattr(table.folder, "name", table.folder), "sae": inputs.get("sae")}
