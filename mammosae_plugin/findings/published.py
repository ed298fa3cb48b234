"""Findings of a study in memory, the same from a staged folder, the Hub or the study itself."""

__all__ = ["Findings", "LATENT_KEY"]

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.schema.findings import (
    CONCEPT,
    CONFIGS,
    FORMAT_VERSION,
    JSON_COLUMNS,
    OPTIONAL,
    SCHEMAS,
    parquet_path,
)
from mammosae_plugin.schema.score_card import ScoreCard, study_cards

LATENT_KEY = ["layer", "encoder", "latent"]
_PER_CLASS = {field.name: field.each for field in CONCEPT if field.each}
_PER_CONCEPT = tuple(field.name for field in CONCEPT if not field.each)


@dataclass(frozen=True)
class Findings:
    """A study's findings in memory, the same from a staged folder, a repository on the Hub, or the study itself.

    What was suppressed, or could not be computed, is missing (NaN, or <NA> where the column holds whole numbers).

    Attributes:
        origin: Where they are from, for messages and titles: owner/name[@revision] on the Hub, or the name of a folder
            on this machine.
        latents: One row per layer, encoder and latent: layer, hook_name, encoder, latent, firing_rate,
            max_activation, mean_activation.
        concepts: One row per layer, encoder, latent, concept and class: layer, encoder, latent, concept, class,
            n_images, class_mean, mean_low, mean_high, score, rank, average_precision, ablation_effect. The last two are
            of the concept, and repeat for each class.
        interventions: One row per layer, model, concept, error term, mode and k.
        reconstruction: One row per layer, model, concept and variant.
        localization: One row per layer, model, concept, method, threshold, IoU threshold and rank.
        notes: One row per note and latent: layer, encoder, latent, author, text, label, concept, confidence, created.
        study: What the rows are from: format_version, title, created, data_kind, min_group, layers, concepts, and as
            JSON values config, provenance, data, models, sae (by layer), named_latents (by layer).
        examples: Heatmaps of single images, where they were published; None otherwise.
        lesions: One row per layer, model, concept, method and latent: which lesions its peaks find; None where the
            study did not look for them.
        evidence: One row per layer, model, concept and latent that fires, with what it stands for (docs/evidence.md);
            None in findings of earlier versions.
        groups: One row per layer, model, concept and group of images: how well it is told; None likewise.
        views: One row per layer, model, concept and latent: how far views and sides agree on it; None where the study
            did not look, and in findings of earlier versions.
        names: One row per layer, encoder, latent and method: what it is called, with score, chance and q
            (docs/naming.md); None where no name may be told, and in findings of earlier versions.
        histograms: One row per layer, encoder, concept, class and latent that fires: in how many test images of the
            class its maximum lies in each bin; None in findings of earlier versions, as all that follow.
        neighbours: One row per layer, encoder, latent, kind and rank: which latents fire together with it, and whose
            directions are nearest.
        latent_map: One row per layer and latent that fires: its place on a map of the SAE's directions.
        pictures: One row per layer, encoder, latent, kind and rank: an image in which it fires, whose drawings lie in
            `pictures_folder` (docs/findings.md); None where no images may be shown, or none were asked for.
        pictures_folder: Where the files lie that `pictures` names, below `pictures/`; None where there are none.
        repo_id: owner/name of the dataset on the Hub that they were read from; None for what lies on this machine.
        score_cards: Of a study on this machine whose SAEs were audited, their score cards by the layer's folder name.
    """

    origin: str
    latents: pd.DataFrame
    concepts: pd.DataFrame
    interventions: pd.DataFrame
    reconstruction: pd.DataFrame
    localization: pd.DataFrame
    notes: pd.DataFrame
    study: dict[str, Any]
    examples: pd.DataFrame | None = None
    lesions: pd.DataFrame | None = None
    evidence: pd.DataFrame | None = None
    groups: pd.DataFrame | None = None
    views: pd.DataFrame | None = None
    names: pd.DataFrame | None = None
    histograms: pd.DataFrame | None = None
    neighbours: pd.DataFrame | None = None
    latent_map: pd.DataFrame | None = None
    pictures: pd.DataFrame | None = None
    pictures_folder: Path | None = None
    repo_id: str | None = None
    score_cards: Mapping[str, ScoreCard] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, *, origin: str | None = None, repo_id: str | None = None) -> "Findings":
        """Read a staged folder.

        Args:
            folder: The folder, as `stage_findings` wrote it or as it was downloaded.
            origin: Its name in messages and titles; the folder's name when None.
            repo_id: owner/name of the dataset on the Hub that the folder is a copy of.

        Raises:
            InputError: A file is missing or damaged, lacks a column, or is of a newer format.
        """
        path = local_path(folder)
        tables = {
            config: _read(path / parquet_path(config), config)
            for config in CONFIGS
            if config not in OPTIONAL or (path / parquet_path(config)).exists()
        }
        found = cls.of_tables(origin or path.resolve().name, tables)
        where = path if found.pictures is not None else None
        return dataclasses.replace(found, repo_id=repo_id, pictures_folder=where)

    @classmethod
    def of_study(cls, study_folder: str | Path, *, min_group: int = 5) -> "Findings":
        """The findings that a study's folder would be published with.

        Raises:
            InputError: No finished study is there.
        """
        from mammosae_plugin.findings.study_folder import StudyFolder
        from mammosae_plugin.findings.tables import findings_tables

        study = StudyFolder(study_folder)
        found = cls.of_tables(study.folder.resolve().name, findings_tables(study, min_group=min_group))
        return dataclasses.replace(found, score_cards=study_cards(study.folder))

    def with_pictures(self, table: pa.Table | None, told: Mapping[str, Any], folder: Path | None = None) -> "Findings":
        """These with other pictures, or none.

        Args:
            table: The config `pictures`; None for none.
            told: What the study's `data` says of them (docs/findings.md).
            folder: Below which the files lie.
        """
        study = {**self.study, "data": {**self.study["data"], "pictures": dict(told)}}
        pictures = None if table is None else _frame(table)
        return dataclasses.replace(self, pictures=pictures, pictures_folder=folder, study=study)

    @classmethod
    def of_tables(cls, origin: str, tables: Mapping[str, pa.Table]) -> "Findings":
        """From the tables of a staged folder.

        Raises:
            InputError: A newer format.
        """
        (study,) = tables["study"].to_pylist()
        if study["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{origin} has findings of format {study['format_version']}, but this version reads {FORMAT_VERSION}; "
                "install the version of mammosae-plugin that wrote it"
            )
        latents = tables["latents"]
        optional: dict[str, Any] = {config: _frame(tables[config]) for config in OPTIONAL if config in tables}
        return cls(
            origin=origin,
            latents=latents.drop_columns(["concepts", "notes"]).to_pandas(),
            concepts=_tidy_concepts(latents),
            interventions=_frame(tables["interventions"]),
            reconstruction=_frame(tables["reconstruction"]),
            localization=_frame(tables["localization"]),
            notes=_tidy_notes(latents),
            study={key: json.loads(value) if key in JSON_COLUMNS else value for key, value in study.items()},
            **optional,
        )


def _read(path: Path, config: str) -> pa.Table:
    if not path.exists():
        folder = path.parent.parent
        raise InputError(f"{folder} holds no findings (no {parquet_path(config)}); stage them or load them again")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is damaged ({error}); stage or load it again") from error
    missing = [name for name in SCHEMAS[config].names if name not in table.column_names]
    if missing:
        raise InputError(f"{path} is no config of findings: it lacks the column {missing[0]}")
    schema = SCHEMAS[config]
    return pa.table({one.name: _with_all_fields(table[one.name], one.type) for one in schema}, schema=schema)


def _with_all_fields(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of lists of structs, in which fields that an earlier version did not have are missing."""
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return column.cast(kind)
    nested = column.combine_chunks()
    flat = nested.flatten()
    there = {field.name for field in flat.type}
    fields = [
        pc.struct_field(flat, one.name).cast(one.type) if one.name in there else pa.nulls(len(flat), one.type)
        for one in kind.value_type
    ]
    structs = pa.StructArray.from_arrays(fields, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(_offsets(nested), structs)


def _offsets(nested: pa.ListArray) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(nested), 0).to_numpy()
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _frame(table: pa.Table) -> pd.DataFrame:
    """A data frame in which whole numbers stay whole where one is missing."""
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame.astype(dict.fromkeys(frame.columns.intersection(["latent", "class"]), "int64"))


def _tidy_concepts(latents: pa.Table) -> pd.DataFrame:
    """The nested column `concepts` with a row per latent, concept and class."""
    nested = latents["concepts"].combine_chunks()
    flat = nested.flatten()
    by_concept = latents.select(LATENT_KEY).take(pc.list_parent_indices(nested))
    for name in _PER_CONCEPT:
        by_concept = by_concept.append_column(name, pc.struct_field(flat, name))
    lists = {name: pc.struct_field(flat, name) for name in _PER_CLASS}
    parents = pc.list_parent_indices(lists["class_means"])
    lists = {name: _as_long(own, lists["class_means"]) for name, own in lists.items()}
    tidy = by_concept.take(parents)
    rows = pd.Series(parents.to_numpy())
    tidy = tidy.append_column("class", pa.array(rows.groupby(rows).cumcount().to_numpy(), type=pa.int64()))
    for name, column in _PER_CLASS.items():
        tidy = tidy.append_column(column, lists[name].flatten())
    order = [
        *LATENT_KEY,
        "concept",
        "class",
        *_PER_CLASS.values(),
        *(name for name in _PER_CONCEPT if name != "concept"),
    ]
    return _frame(tidy.select(order))


def _as_long(lists: pa.ListArray, other: pa.ListArray) -> pa.ListArray:
    """Lists, or, where an earlier version had none, as many missing values as in others."""
    if lists.null_count < len(lists) or not len(lists):
        return lists
    return pa.ListArray.from_arrays(_offsets(other), pa.nulls(len(other.flatten()), lists.type.value_type))


def _tidy_notes(latents: pa.Table) -> pd.DataFrame:
    """The nested column `notes` with a row per latent and note."""
    nested = latents["notes"].combine_chunks()
    flat = nested.flatten()
    tidy = latents.select(LATENT_KEY).take(pc.list_parent_indices(nested))
    for field in flat.type:
        tidy = tidy.append_column(field.name, pc.struct_field(flat, field.name))
    return _frame(tidy)
