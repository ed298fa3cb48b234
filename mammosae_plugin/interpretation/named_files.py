"""Names that `mammosae name -o FOLDER` wrote, read back, and held against the table that they are for."""

__all__ = ["check_names", "read_names"]

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from mammosae_plugin.analysis.table_arrays import which_table
from mammosae_plugin.arguments import shown
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json
from mammosae_plugin.interpretation.names import COLUMNS, LatentNames
from mammosae_plugin.schema.names_of_latents import KEPT_NAMES

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

NAMES = "names.json"
_TEXT = tuple(column.name for column in KEPT_NAMES if column.dtype == pa.string())
_REAL = tuple(column.name for column in KEPT_NAMES if column.dtype == pa.float64())


def read_names(folder: str | Path) -> LatentNames:
    """The names in a folder that `LatentNames.write` wrote.

    Raises:
        InputError: no such folder, no names.json in it, or one that is damaged.
    """
    place = local_path(folder)
    file = place / NAMES if place.is_dir() else place
    if file.name != NAMES or not file.is_file():
        raise InputError(f"{place} holds no {NAMES}; give the folder that `mammosae name TABLE -o FOLDER` wrote")
    found: Any = read_json(file)
    try:
        latents = _frame(found["latents"], list(COLUMNS))
        candidates = _frame(found["candidates"], [])
        latents = latents.astype({"latent": "int64", "abstained": bool})
        for name in latents.columns:
            if name in _TEXT:
                latents[name] = latents[name].fillna("").astype(str)
            elif name in _REAL:
                latents[name] = pd.to_numeric(latents[name]).astype("float64")
        return LatentNames(str(found["method"]), latents, candidates, dict(found["about"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is no file of names ({shown(str(error))}); write it again with `mammosae name`"
        ) from error


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    if len(rows) and (lacking := [name for name in columns if name not in frame.columns]):
        raise KeyError(f"it lacks {', '.join(lacking)}")
    return frame if len(rows) else pd.DataFrame(columns=columns)


def check_names(names: LatentNames, table: "LatentTable", where: str | Path) -> None:
    """See that names are of a table's SAE, or, where they do not say of which, of a table of that name.

    Raises:
        InputError: they are of another SAE or table, or name a latent that the table lacks.
    """
    own, said = which_table(table), names.about
    if own["sae"] and said.get("sae"):
        if own["sae"] != said["sae"]:
            raise InputError(
                f"{where} holds names of another SAE's latents, those of the table {said.get('table')}; name the "
                f"latents of {own['table']}"
            )
    elif said.get("table") and said["table"] != own["table"]:
        raise InputError(
            f"{where} holds names of the table {said['table']}, and this is {own['table']}; name its latents"
        )
    highest = int(names.latents["latent"].max()) if len(names.latents) else -1
    if highest >= table.d_sae:
        raise InputError(
            f"{where} names latent {highest}, and {own['table']} has {table.d_sae}; name the latents of this table"
        )
