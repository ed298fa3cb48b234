"""What a study of embeddings found, on disk: the tables of `schema.embeddings.TABLES` in `results/findings`."""

__all__ = ["EmbeddingFindings", "is_embedding_study", "read_embedding_findings", "write_embedding_findings"]

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.layers import read_table, write_table
from mammosae_plugin.own_files import empty_staging, replace_files
from mammosae_plugin.provenance import plain
from mammosae_plugin.schema.embeddings import KIND, SCHEMAS, TABLES
from mammosae_plugin.schema.names import FINDINGS_FOLDER

_MARK = "quality.parquet"  # which studies of maps have not
_LATER = "names"  # which studies of earlier versions have not


@dataclass(frozen=True)
class EmbeddingFindings:
    """What a study of embeddings found.

    Attributes:
        facts: What the table `study` says: title, config, provenance, data, models, saes, created.
        tables: The others by name (`schema.embeddings.TABLES`).
    """

    facts: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


def is_embedding_study(results_folder: Path) -> bool:
    """Whether the results in a folder are of a study of embeddings."""
    return (results_folder / FINDINGS_FOLDER / _MARK).exists()


def write_embedding_findings(
    facts: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], results_folder: Path
) -> EmbeddingFindings:
    """Write what was found, all of it or nothing, and read it back.

    Raises:
        ValueError: A table has a column that `schema.embeddings` does not declare.
    """
    folder = results_folder / FINDINGS_FOLDER
    staged = empty_staging(folder)
    try:
        told = {one.name: json.dumps(plain(facts[one.name])) if one.is_json else KIND for one in TABLES["study"]}
        write_table(pa.Table.from_pylist([told], schema=SCHEMAS["study"]), staged / "study.parquet")
        for name, schema in SCHEMAS.items():
            if name == "study":
                continue
            frame = tables[name]
            if unknown := sorted(set(frame.columns) - set(schema.names)):
                raise ValueError(f"schema.embeddings declares no column {unknown[0]} of {name}")
            complete = frame.reindex(columns=schema.names)
            write_table(pa.Table.from_pandas(complete, schema=schema, preserve_index=False), staged / f"{name}.parquet")
        replace_files(staged, folder)
    finally:
        shutil.rmtree(staged)
    return read_embedding_findings(results_folder)


def read_embedding_findings(results_folder: Path) -> EmbeddingFindings:
    """What was found; numbers that could not be computed are NaN.

    Raises:
        InputError: It is not there, is damaged, or is of another kind.
    """
    folder = results_folder / FINDINGS_FOLDER
    if not is_embedding_study(results_folder):
        raise InputError(f"{results_folder} holds no results of a study of embeddings; run `mammosae study` first")
    tables = {
        name: read_table(file, schema) if (file := folder / f"{name}.parquet").exists() or name != _LATER
        else schema.empty_table() for name, schema in SCHEMAS.items()
    }  # fmt: skip
    (told,) = tables.pop("study").to_pylist()
    facts = {one.name: json.loads(told[one.name]) if one.is_json else told[one.name] for one in TABLES["study"]}
    return EmbeddingFindings(facts, {name: table.to_pandas() for name, table in tables.items()})
