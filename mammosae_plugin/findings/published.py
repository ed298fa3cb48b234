"""Findings of a study in memory, the same from a staged folder, the Hub or the study itself."""

__all__ = ["Findings", "LATENT_KEY"]

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            n_images, class_mean, score, rank, average_precision, ablation_effect. The last two are of the concept, and
            repeat for each class.
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
        return dataclasses.replace(cls.of_tables(origin or path.resolve().name, tables), repo_id=repo_id)

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
        return cls(
            origin=origin,
            latents=latents.drop_columns(["concepts", "notes"]).to_pandas(),
            concepts=_tidy_concepts(latents),
            interventions=_frame(tables["interventions"]),
            reconstruction=_frame(tables["reconstruction"]),
            localization=_frame(tables["localization"]),
            notes=_tidy_notes(latents),
            study={key: json.loads(value) if key in JSON_COLUMNS else value for key, value in study.items()},
            examples=_frame(tables["examples"]) if "examples" in tables else None,
            lesions=_frame(tables["lesions"]) if "lesions" in tables else None,
            evidence=_frame(tables["evidence"]) if "evidence" in tables else None,
            groups=_frame(tables["groups"]) if "groups" in tables else None,
            views=_frame(tables["views"]) if "views" in tables else None,
            names=_frame(tables["names"]) if "names" in tables else None,
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
    return table.select(SCHEMAS[config].names).cast(SCHEMAS[config])


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


def _tidy_notes(latents: pa.Table) -> pd.DataFrame:
    """The nested column `notes` with a row per latent and note."""
    nested = latents["notes"].combine_chunks()
    flat = nested.flatten()
    tidy = latents.select(LATENT_KEY).take(pc.list_parent_indices(nested))
    for field in flat.type:
        tidy = tidy.append_column(field.name, pc.struct_field(flat, field.name))
    return _frame(tidy)
