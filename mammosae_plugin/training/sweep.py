"""Settings of many SAEs that differ in a few values, and their results side by side."""

__all__ = ["final_metrics_of", "grid"]

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.training.metrics import read_metrics
from mammosae_plugin.training.settings import SAETraining

_COLUMNS = ("of", "rows", "explained_variance", "l0", "dead_share", "slope", "mse")


def grid(base: SAETraining, **values: Sequence[Any]) -> dict[str, SAETraining]:
    """Settings for every combination of values, such as `grid(base, k=[16, 32], seed=[0, 1])`, for `train_saes`.

    SAEs of several seeds read the rows in one order, that of the base.

    Args:
        base: What the others start from.
        **values: The values of each setting that differs.

    Returns:
        The settings by name, such as "k=16,seed=0".

    Raises:
        InputError: No value, or settings that do not go together.
    """
    for name, choices in values.items():
        if name not in SAETraining.model_fields:
            raise InputError(f"SAETraining has no setting {name!r}")
        if not choices:
            raise InputError(f"{name} has no value to try")
    same_order = {} if base.row_seed is not None else {"row_seed": base.seed}
    found = {}
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items())
        try:
            found[name] = SAETraining(**{**base.model_dump(), **same_order, **chosen})
        except ValueError as error:  # pydantic's too
            raise InputError(f"{name}: {' '.join(str(error).split())}") from error
    return found


def final_metrics_of(folder: str | Path) -> pd.DataFrame:
    """The last measures of every SAE that `train_saes` has finished in a folder: a row each, `name` first.

    Raises:
        InputError: There is none.
    """
    records = []
    for file in sorted(local_path(folder).glob("*/metrics.jsonl")):
        last = read_metrics(file)[-1:]
        if last and last[0].get("final"):
            records.append({"name": file.parent.name, **{key: last[0][key] for key in _COLUMNS}})
    if not records:
        raise InputError(f"{folder} holds no finished SAE")
    return pd.DataFrame.from_records(records)
