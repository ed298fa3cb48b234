"""What a study keeps of its latents, in `results/findings`: every number, and of how few patients which of them are.

A folder per latents table, named like it, with a parquet file per table of `schema.findings.KEPT` and the plan by which
they were made. Whoever publishes or compares takes the numbers from here, and leaves out what the smallest group that
they name asks for (`tables`); nobody ranks, counts or reads a latents table again.
"""

__all__ = [
    "class_means",
    "Kept",
    "OfConcept",
    "PLAN",
    "read_kept",
    "read_page",
    "TEST",
    "TRAINING",
    "with_boxes",
    "write_findings",
]

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mammosae_plugin.analysis.histograms import class_mean_intervals, count_activations
from mammosae_plugin.analysis.probing import Score, class_mean_latents, rank_latents
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file, write_json
from mammosae_plugin.findings.layers import read_table, write_layers, write_table
from mammosae_plugin.findings.study_folder import RESULTS_FOLDER, Encoder, LayerResults, StudyFolder, layers_of
from mammosae_plugin.own_files import empty_staging, replace_files
from mammosae_plugin.privacy.small_groups import Differences, Firing, Mask, Weights
from mammosae_plugin.schema.columns import struct_of
from mammosae_plugin.schema.findings import KEPT, KEPT_CONCEPT, KEPT_SCHEMAS
from mammosae_plugin.schema.names import FINDINGS_FOLDER
from mammosae_plugin.schema.pages import N_BINS, PAGE_SCHEMAS
from mammosae_plugin.schema.results import Results
from mammosae_plugin.version import __version__

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

PLAN = "plan.json"
TRAINING, TEST = "training", "test"
COMPARED_SUMS = (
    "both classes of the test split"  # of what small groups are looked for in; findings of less are not read
)


@dataclass(frozen=True)
class Kept:
    """What is kept of one encoder at one layer.

    Attributes:
        latents: A row per latent.
        classes: A row per concept and split: how many images and patients each class has, how many patients boxes.
        sums: A row per split and two sums over images: how many patients they differ by, for every latent.
        signs: A row per combination of classes that test images have.
        histograms: A row per latent, bin of its activation and sign: how many test images and patients.
    """

    latents: pa.Table
    classes: pa.Table
    sums: pa.Table
    signs: pa.Table
    histograms: pa.Table

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.latents.num_rows)

    @cached_property
    def by_class(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """(concept, split) -> n_images and n_patients of each class, and n_boxed."""
        return {(row["concept"], row["split"]): row for row in self.classes.to_pylist()}

    def differences(self, split: str) -> Differences:
        """In how many patients' images latents fire, of those by which sums of a split differ."""
        own = self.sums.filter(pc.equal(self.sums["split"], split))
        patients = own["n_patients"].combine_chunks().flatten().to_numpy().reshape(own.num_rows, -1)
        names = zip(own["one"].to_pylist(), own["other"].to_pylist(), strict=True)
        return Differences.read(self.d_sae, dict(zip(names, patients, strict=True)))

    @classmethod
    def of(cls, layer: LayerResults, encoder: Encoder) -> "Kept":
        """Compute it from the encoder's latents table and the layer's results."""
        table, unit = encoder.table, _unit(layer)
        counted = {name: _of_split(encoder, unit, name) for name in (TRAINING, TEST)}
        latents = _latents(layer, encoder, counted[TEST].firing)
        classes = list(_classes(table, encoder.concepts, unit))
        return cls(
            latents,
            pa.Table.from_pylist(classes, schema=KEPT_SCHEMAS["classes"]),
            _sums({name: one.differences for name, one in counted.items()}),
            *_histograms(table, encoder.concepts),
        )

    @classmethod
    def read(cls, folder: Path) -> "Kept":
        """Read what `write` wrote.

        Raises:
            InputError: It is not there, or is damaged.
        """
        return cls(*(read_table(folder / f"{name}.parquet", KEPT_SCHEMAS[name]) for name in KEPT))

    def write(self, folder: Path) -> None:
        """Write a parquet file per table."""
        for name in KEPT:
            write_table(getattr(self, name), folder / f"{name}.parquet")


def _unit(layer: LayerResults) -> str:
    """What the study counts, by the name of `measures.units.EvaluationUnit`."""
    return str(layer.results["data"]["unit"])


def read_kept(study_folder: Path, encoder: Encoder) -> Kept:
    """What a study kept of an encoder.

    Raises:
        InputError: The study was run with an earlier version, which did not keep as much or did not compare as much.
    """
    folder = study_folder / RESULTS_FOLDER / FINDINGS_FOLDER / encoder.table_folder.name
    plan = read_json(folder / PLAN) if (folder / PLAN).is_file() else {}
    if plan.get("sums") != COMPARED_SUMS or plan.get("columns") != _COLUMNS:
        raise InputError(
            f"{folder} was written by an earlier version, which kept less, or compared fewer sums when it looked for "
            "those that give few patients away; run `mammosae study` with its configuration again, which writes it "
            "from what it kept"
        )
    return Kept.read(folder)


def write_findings(
    study_folder: Path, found: Mapping[str, Results], pages: Mapping[str, pd.DataFrame] | None = None
) -> StudyFolder:
    """Write what a study found; what it keeps of an encoder and was made by the same plan stays as it is.

    Args:
        study_folder: The study's output folder.
        found: What was found, by layer in the study's order.
        pages: What pages show of all layers, by the names of `schema.pages.KEPT_PAGES`.

    Returns:
        The study as whoever comes after reads it.
    """
    folder = study_folder / RESULTS_FOLDER / FINDINGS_FOLDER
    staged = empty_staging(folder)
    try:
        write_layers(found, staged)
        for name, frame in (pages or {}).items():
            table = pa.Table.from_pandas(frame, schema=PAGE_SCHEMAS[name], preserve_index=False)
            write_table(table, staged / f"{name}.parquet")
        for layer in layers_of(study_folder, found):
            for encoder in layer.encoders.values():
                name, plan = encoder.table_folder.name, _plan(layer, encoder)
                if _is_made(folder / name, plan):
                    shutil.copytree(folder / name, staged / name)
                else:
                    Kept.of(layer, encoder).write(staged / name)
                    write_json(staged / name / PLAN, plan)
        replace_files(staged, folder)
    finally:
        shutil.rmtree(staged)
    return StudyFolder(study_folder)


def read_page(study_folder: Path, name: str) -> pa.Table | None:
    """What a study keeps of all layers for pages, by a name of `schema.pages.KEPT_PAGES`; None if it keeps none.

    Raises:
        InputError: It is damaged.
    """
    file = study_folder / RESULTS_FOLDER / FINDINGS_FOLDER / f"{name}.parquet"
    return read_table(file, PAGE_SCHEMAS[name]) if file.exists() else None


def class_means(layer: LayerResults) -> pd.DataFrame:
    """Both classes' mean activations of every live latent: model, concept, latent, score_mean_0, score_mean_1, ..."""
    frames = []
    for encoder in layer.encoders.values():
        nested = read_kept(layer.study_folder, encoder).latents["concepts"].combine_chunks().flatten()
        for place, concept in enumerate(encoder.concepts):
            own = nested.take(pa.array(np.arange(place, len(nested), len(encoder.concepts))))
            means = pc.struct_field(own, "class_means").flatten().to_numpy().reshape(len(own), -1)
            live = np.flatnonzero((means != 0).any(axis=1))
            scores = {f"score_mean_{number}": column for number, column in enumerate(means[live].T)}
            frames.append(pd.DataFrame({"model": encoder.model, "concept": concept, "latent": live, **scores}))
    return pd.concat(frames, ignore_index=True)


_COLUMNS = {name: [str(field) for field in schema] for name, schema in KEPT_SCHEMAS.items()}


def _plan(layer: LayerResults, encoder: Encoder) -> dict[str, Any]:
    """What the kept numbers depend on."""
    from mammosae_plugin.latents.table import TABLE

    return {
        "mammosae_plugin": __version__,
        "table": sha256_of_file(encoder.table_folder / TABLE),
        "concepts": list(encoder.concepts),
        "unit": _unit(layer),
        "sums": COMPARED_SUMS,
        "score": layer.results["config"]["analysis"]["score"],
        "localization": [row for row in layer.results["localization"] if row["model"] == encoder.model],
        "columns": _COLUMNS,
    }


def _is_made(folder: Path, plan: Mapping[str, Any]) -> bool:
    names = [PLAN, *(f"{name}.parquet" for name in KEPT)]
    return all((folder / name).is_file() for name in names) and read_json(folder / PLAN) == plan


# How many images and patients


def with_boxes(table: "LatentTable", concept: str) -> Mask:
    """(n_images,) images with a box of the concept."""
    found = np.zeros(len(table.images), dtype=np.bool_)
    if concept in table.concepts:
        own = table.findings[(table.findings[concept] == 1) & table.findings["xmin"].notna()]
        found[own["image_row"].to_numpy()] = True
    return found


def _classes(table: "LatentTable", concepts: Sequence[str], unit: str) -> Iterator[dict[str, Any]]:
    for concept in concepts:
        boxed = table.images[with_boxes(table, concept)]
        for split in (TRAINING, TEST):
            rows = table.rows(concept, split=split, unit=unit)
            classes = [rows.labels == label for label in table.classes(concept)]
            yield {
                "concept": concept,
                "split": split,
                "n_images": [len(np.unique(rows.images_of(own))) for own in classes],
                "n_patients": [len(set(rows.patient_ids[own])) for own in classes],
                "n_boxed": int(boxed.loc[boxed["split"] == split, "patient_id"].nunique()),
            }


@dataclass(frozen=True)
class _OfSplit:
    """In whom latents fire, and the sums that are told of a split."""

    firing: Firing
    differences: Differences


def _of_split(encoder: Encoder, unit: str, name: str) -> _OfSplit:
    table = encoder.table
    split = table.images["split"].to_numpy()
    firing = Firing(
        table.max_latents[np.flatnonzero(split == name)], table.images["patient_id"].to_numpy()[split == name]
    )

    def class_sums(concept: str) -> list[Weights]:
        rows = table.rows(concept, split=name, unit=unit)
        chosen = [rows.of_rows(rows.labels == label) for label in table.classes(concept)]
        weights = None if rows.unit_of_row is None else rows.weights  # whole numbers, or shares of units
        return [
            np.bincount(rows.image_rows[own], None if weights is None else weights[own], len(split))[split == name]
            for own in chosen
        ]

    if name == TRAINING:
        sums = {concept: class_sums(concept) for concept in encoder.concepts}
    else:  # activity; effects, a known weight times a mean over the images of class 1; roles state that of class 0 too
        effects = {one: class_sums(one) for one in encoder.concepts if len(table.classes(one)) == 2}
        sums = {"": [np.ones(int((split == name).sum()), dtype=np.int64)], **effects}
    return _OfSplit(firing, Differences.of(firing, sums))


def _sums(differences: Mapping[str, Differences]) -> pa.Table:
    rows = [(split, *pair, n) for split, of in differences.items() for pair, n in of.patients.items()]
    splits, ones, others, patients = zip(*rows, strict=True)
    ends = np.cumsum([0, *map(len, patients)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(patients).astype(np.int32)))
    columns = [pa.array(splits), pa.array(ones), pa.array(others), lists]
    return pa.table(columns, schema=KEPT_SCHEMAS["sums"])


def _histograms(table: "LatentTable", concepts: Sequence[str]) -> Iterator[pa.Table]:
    """The tables `signs` and `histograms`."""
    found = count_activations(table, concepts, split=TEST, n_bins=N_BINS)
    for name, frame in (("signs", found.signs), ("histograms", found.cells)):
        yield pa.Table.from_pandas(frame, schema=KEPT_SCHEMAS[name], preserve_index=False)


# latents


def _latents(layer: LayerResults, encoder: Encoder, in_test: Firing) -> pa.Table:
    table = encoder.table
    n = table.d_sae
    columns = {
        "latent": pa.array(np.arange(n)),
        **_activity(table),
        "n_silent": pa.array(in_test.n_silent_patients()),
        "concepts": _interleaved([_of_concept(layer, encoder, one, in_test) for one in encoder.concepts], n),
    }
    return pa.table(columns, schema=KEPT_SCHEMAS["latents"])


def _activity(table: "LatentTable") -> dict[str, pa.Array]:
    """How often and how strongly each latent fires in the test split."""
    images = np.flatnonzero((table.images["split"] == TEST).to_numpy())
    means, maxima = table.mean_latents[images], table.max_latents[images]
    n = table.d_sae
    largest = np.full(n, -np.inf, dtype=np.float32)
    np.maximum.at(largest, maxima.indices, maxima.data)
    rates = np.bincount(maxima.indices, minlength=n) / len(images)
    averages = np.bincount(means.indices, weights=means.data.astype(np.float64), minlength=n) / len(images)
    return {
        "firing_rate": pa.array(rates),
        "max_activation": pa.array(largest, mask=rates == 0),
        "mean_activation": pa.array(averages),
    }


OfConcept = dict[str, Any]
"""What the latents of an encoder are for one concept, by the fields of `schema.findings.KEPT_CONCEPT`: its name;
(n_class,) or (d_sae, n_class) of lists over classes; (d_sae,) of others."""


def _of_concept(layer: LayerResults, encoder: Encoder, concept: str, in_test: Firing) -> OfConcept:
    table, unit = encoder.table, _unit(layer)
    score: Score = layer.results["config"]["analysis"]["score"]
    means = class_mean_latents(table, concept, split=TRAINING, unit=unit)
    ranking = rank_latents(class_mean_latents(table, concept, split=TRAINING, unit=unit, score=score))
    scores, ranks = np.empty_like(ranking.scores), np.empty_like(ranking.indices)
    np.put_along_axis(scores, ranking.indices, ranking.scores, axis=1)
    np.put_along_axis(ranks, ranking.indices, np.broadcast_to(np.arange(1, table.d_sae + 1), ranks.shape), axis=1)
    low, high = class_mean_intervals(table, concept, split=TRAINING, unit=unit)
    rows = table.rows(concept, split=TRAINING, unit=unit)
    is_test = (table.images["split"] == TEST).to_numpy()
    return {
        "concept": concept,
        "n_images": np.array(
            [len(np.unique(rows.images_of(rows.labels == label))) for label in table.classes(concept)]
        ),
        "class_means": means.T,
        "class_mean_low": low.T,
        "class_mean_high": high.T,
        "scores": scores.T,
        "ranks": ranks.T,
        "average_precision": _precisions(layer, encoder.model, concept, table.d_sae),
        "ablation_effect": _effects(table, concept, unit),
        "n_boxed": in_test.n_patients(with_boxes(table, concept)[is_test]),
    }


def _precisions(layer: LayerResults, model: str, concept: str, n: int) -> NDArray[np.float64]:
    """(n,) average precision by the study's first threshold and IoU, NaN where it was not measured."""
    found = np.full(n, np.nan)
    rows = [row for row in layer.results["localization"] if (row["model"], row["concept"]) == (model, concept)]
    for row in rows:
        if all(row[key] == rows[0][key] for key in ("threshold", "iou_threshold")):
            found[row["latent"]] = np.nan if row["average_precision"] is None else row["average_precision"]
    return found


def _effects(table: "LatentTable", concept: str, unit: str) -> NDArray[np.float64]:
    """(d_sae,) what the logit loses with each latent, where it is linear in them (see `intervention`); else NaN."""
    rows = table.rows(concept, split=TEST, unit=unit)
    present = rows.labels == 1
    if len(table.classes(concept)) != 2 or table.readout_kind != "linear" or not present.any():
        return np.full(table.d_sae, np.nan)
    chosen = rows.mean(table.mean_latents[rows.image_rows])[np.flatnonzero(present)]
    mean = np.bincount(chosen.indices, weights=chosen.data.astype(np.float64), minlength=table.d_sae)
    # 0.0 where the latent does not fire, not -0.0.
    return np.asarray(0.0 - mean / present.sum() * table.readout(concept).weight[:, 0])


def _interleaved(of_concepts: Sequence[OfConcept], n: int) -> pa.ListArray:
    """The column `concepts`: for every latent the list of what it is for each concept, without a loop over latents."""

    def column(name: str, kind: pa.DataType) -> pa.Array:
        values = [one[name] for one in of_concepts]
        if pa.types.is_list(kind):
            wide = [np.broadcast_to(value, (n, value.shape[-1])) for value in values]
            widths = [value.shape[-1] for value in wide]
            ends = np.add.outer(np.arange(n) * sum(widths), np.array(list(accumulate(widths)))).ravel()
            flat = pa.array(np.concatenate(wide, axis=1).ravel(), type=kind.value_type, from_pandas=True)
            return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), flat)
        if pa.types.is_string(kind):
            return pa.array(values).take(pa.array(np.tile(np.arange(len(values)), n)))
        stacked = np.stack(values, axis=1).ravel()
        missing = np.isnan(stacked) if stacked.dtype.kind == "f" else None
        return pa.array(stacked, type=kind, mask=missing)

    fields = [column(one.name, one.dtype) for one in KEPT_CONCEPT]
    structs = pa.StructArray.from_arrays(fields, fields=list(struct_of(KEPT_CONCEPT)))
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * len(of_concepts)), structs)
