"""What a study found at its layers, on disk: the tables of `schema.findings.LAYERS` in `results/findings`."""

__all__ = ["read_layers", "read_table", "write_layers", "write_table"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path
from mammosae_plugin.schema.findings import LAYER_SCHEMAS, LAYERS, OPTIONAL
from mammosae_plugin.schema.results import FORMAT_VERSION, Results, Row

_FACTS = tuple(column for column in LAYERS["study"] if column.name not in ("layer", "primary"))
_ROWS = ("reconstruction", "rankings", "interventions")
_LATER = (
    "evidence",
    "groups",
    "views",
    "explained",
    "pairs",
    "repair",
    "names",
)  # which findings of earlier versions lack


def write_layers(found: Mapping[str, Results], folder: Path) -> None:
    """Write a parquet file per table.

    Args:
        found: What was found, by layer in the study's order.
        folder: Where the files go.

    Raises:
        ValueError: What was found has a column that `schema.findings` does not declare.
    """
    tables: dict[str, list[Row]] = {name: [] for name in LAYERS}
    for layer, results in found.items():
        values = cast(Row, results)
        facts = {one.name: _json(values.get(one.name)) if one.is_json else values.get(one.name) for one in _FACTS}
        primary = values["layer"]["primary"] if "layer" in values else layer
        tables["study"].append({"layer": layer, "primary": primary, **facts})
        for name in (*_ROWS, *_LATER):
            tables[name] += [
                {"layer": layer, **row} for row in (values[name] if name in _ROWS else values.get(name, []))
            ]
        judged = [*({"method": "latent", **row} for row in values["localization"]), *values.get("baselines", [])]
        tables["localization"] += [{"layer": layer, **row} for row in judged]
        tables["lesions"] += [{"layer": layer, **row} for row in values.get("lesions", [])]
        tables["layers"] = values.get("layers", [])  # the same at each
    for name, rows in tables.items():
        if name in _LATER and not any(name in results for results in found.values()):
            continue
        schema = LAYER_SCHEMAS[name]
        if unknown := sorted({column for row in rows for column in row} - set(schema.names)):
            raise ValueError(f"schema.findings declares no column {unknown[0]} of {name}")
        write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")


def read_layers(folder: Path) -> dict[str, Results]:
    """What was found, by layer in the study's order; numbers that could not be computed are None.

    Raises:
        InputError: It is not there, is damaged, or is of another version.
    """
    tables = {
        name: read_table(folder / f"{name}.parquet", schema).to_pylist()
        for name, schema in LAYER_SCHEMAS.items()
        if name not in (*OPTIONAL, *_LATER) or (folder / f"{name}.parquet").exists()
    }
    found = {}
    for facts in tables["study"]:
        layer = facts["layer"]

        def rows(name: str, layer: str = layer) -> list[Row]:
            return [{key: row[key] for key in row if key != "layer"} for row in tables[name] if row["layer"] == layer]

        judged = rows("localization")
        results = {
            "format_version": FORMAT_VERSION,
            **{
                one.name: json.loads(facts[one.name]) if one.is_json else facts[one.name]
                for one in _FACTS
                if facts[one.name] is not None
            },
            **{name: rows(name) for name in (*_ROWS, *_LATER) if name in tables},
            "localization": [_without_method(row) for row in judged if row["method"] == "latent"],
            "baselines": [row for row in judged if row["method"] != "latent"],
            **({"lesions": lesions} if (lesions := rows("lesions") if "lesions" in tables else []) else {}),
        }
        if tables["layers"]:
            results |= {"layer": {"name": layer, "primary": facts["primary"]}, "layers": tables["layers"]}
        found[layer] = cast(Results, results)
    return found


def _without_method(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "method"}


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, allow_nan=False, ensure_ascii=False)


def read_table(file: Path, schema: pa.Schema) -> pa.Table:
    """Read a table of findings.

    Raises:
        InputError: It is not there, is damaged, or has other columns.
    """
    try:
        table = pq.read_table(file)
        if table.schema.names != schema.names:
            raise pa.ArrowInvalid(f"other columns than {', '.join(schema.names)}")
        return table.cast(schema)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{file.parent} does not hold the findings of this study (it was run with an earlier version, or a file is "
            "damaged); run `mammosae study` with its configuration again, which writes them from what it kept"
        ) from error


def write_table(table: pa.Table, file: Path) -> None:
    """Write a table, whole or not at all."""
    with atomic_path(file) as temporary:
        pq.write_table(table, temporary, compression="zstd", store_schema=False)
