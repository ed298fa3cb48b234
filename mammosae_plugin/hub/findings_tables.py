"""The tables of a findings dataset, computed from a study's folder without a network or an image.

Whatever is a statistic of fewer patients than `min_group` is null.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mammosae_plugin.hub.findings_schema import CONCEPT, FORMAT_VERSION, NOTE, SCHEMAS
from mammosae_plugin.notes import Note, read_notes
from mammosae_plugin.probing import Score, class_mean_latents, rank_latents
from mammosae_plugin.study_folder import Encoder, LayerResults, StudyFolder

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Row = dict[str, Any]
Mask = NDArray[np.bool_]

TRAINING, TEST = "training", "test"
_METRIC_COLUMNS = [field.name for field in SCHEMAS["interventions"] if field.type == pa.float64()]


def findings_tables(study: StudyFolder, *, min_group: int = 5) -> dict[str, pa.Table]:
    """Every config of a study's findings but `examples`.

    Args:
        study: The study.
        min_group: Statistics of fewer patients than this are null.

    Returns:
        The tables of `findings_schema.SCHEMAS` by config.
    """
    groups = {
        (layer.name, encoder.name, concept): Groups.of(encoder.table, concept, _unit(layer))
        for layer in study.layers
        for encoder in layer.encoders.values()
        for concept in encoder.concepts
    }
    latents = [
        _latents(layer, encoder, groups, read_notes(study.folder), min_group)
        for layer in study.layers
        for encoder in layer.encoders.values()
    ]
    return {
        "latents": pa.concat_tables(latents),
        **{config: _rows(config, study, groups, min_group) for config in ("interventions", "reconstruction")},
        "localization": _rows("localization", study, groups, min_group),
        "study": _study(study, groups, min_group),
    }


@dataclass(frozen=True)
class Groups:
    """How many images and patients stand behind the statistics of one concept.

    Attributes:
        training_images: (n_class,) images of each class of the training split.
        training_patients: (n_class,) patients.
        test_patients: (n_class,) patients of the test split.
        boxed_patients: Patients of the test split with a box of the concept.
    """

    training_images: NDArray[np.int64]
    training_patients: NDArray[np.int64]
    test_patients: NDArray[np.int64]
    boxed_patients: int

    @classmethod
    def of(cls, table: "LatentTable", concept: str, unit: str) -> "Groups":
        """Count them in a latents table."""

        def counts(split: str) -> tuple[list[int], list[int]]:
            rows = table.rows(concept, split=split, unit=unit)
            classes = [rows.labels == label for label in table.classes(concept)]
            return (
                [len(np.unique(rows.image_rows[own])) for own in classes],
                [len(set(rows.patient_ids[own])) for own in classes],
            )

        training_images, training_patients = counts(TRAINING)
        boxed: set[Any] = set()
        if concept in table.concepts:
            own = table.findings[(table.findings[concept] == 1) & table.findings["xmin"].notna()]
            images = table.images.loc[own["image_row"].unique()]
            boxed = set(images.loc[images["split"] == TEST, "patient_id"])
        return cls(np.array(training_images), np.array(training_patients), np.array(counts(TEST)[1]), len(boxed))


GroupsOf = Mapping[tuple[str, str, str], Groups]


def examples_table(study: StudyFolder, hash_ids: Callable[[Sequence[str]], Sequence[str]]) -> pa.Table:
    """The config `examples`: maps over positions of the best latents of class 1, for the images whose maps were kept.

    Args:
        study: The study.
        hash_ids: Gives what stands for ids of images and patients.

    Returns:
        One row per layer, encoder, concept, image and latent.
    """
    rows: list[Row] = []
    for layer in study.layers:
        top: int = layer.results["config"]["analysis"]["top"]
        for encoder in layer.encoders.values():
            table = encoder.table
            images = [row for row in range(len(table.images)) if len(table.map_latents(row))]
            chosen = table.images.iloc[images]
            image_hashes, patient_hashes = (
                hash_ids([str(one) for one in chosen[name]]) for name in ("image_id", "patient_id")
            )
            for concept in encoder.concepts:
                best = _class_1_latents(layer, encoder.model, concept)[:top]
                for row, image, patient in zip(images, image_hashes, patient_hashes, strict=True):
                    kept = set(table.map_latents(row).tolist())
                    latents = [latent for latent in best if latent in kept]
                    common = {"image": image, "patient": patient, "layer": layer.name, "encoder": encoder.name}
                    label = int(table.images[concept].iloc[row])
                    rows += [
                        {**common, "latent": latent, "concept": concept, "label": label, "heatmap": heatmap.tolist()}
                        for latent, heatmap in zip(latents, table.maps(latents, row), strict=True)
                    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["examples"])


def _class_1_latents(layer: LayerResults, model: str, concept: str) -> list[int]:
    """The best latents of a concept's class 1, as the study ranked them."""
    wanted = (model, concept, 1)
    rows = layer.results["rankings"]
    return next((row["latents"] for row in rows if (row["model"], row["concept"], row["class"]) == wanted), [])


def _unit(layer: LayerResults) -> str:
    return str(layer.results["data"]["unit"])


# latents


def _latents(
    layer: LayerResults, encoder: Encoder, groups: GroupsOf, notes: Sequence[Note], min_group: int
) -> pa.Table:
    """One row per latent of one encoder at one layer."""
    table = encoder.table
    n = table.d_sae
    activity = _activity(table, min_group)
    of_concept = [
        _of_concept(layer, encoder, concept, groups[layer.name, encoder.name, concept], min_group)
        for concept in encoder.concepts
    ]
    own = [note for note in notes if note.layer == layer.name and note.encoder in (None, encoder.name)]
    columns = {
        "layer": pa.array([layer.name]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "hook_name": pa.array([layer.hook_name]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "encoder": pa.array([encoder.name]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "latent": pa.array(np.arange(n)),
        **activity,
        "concepts": _interleaved(of_concept, n),
        "notes": pa.array(_notes_of_latents(own, n), type=pa.list_(NOTE)),
    }
    return pa.table(columns, schema=SCHEMAS["latents"])


def _activity(table: "LatentTable", min_group: int) -> dict[str, pa.Array]:
    """How often and how strongly each latent fires in the test split."""
    images = np.flatnonzero((table.images["split"] == TEST).to_numpy())
    means, maxima = table.mean_latents[images], table.max_latents[images]
    n = table.d_sae
    largest = np.full(n, -np.inf, dtype=np.float32)
    np.maximum.at(largest, maxima.indices, maxima.data)
    patients = pd.factorize(table.images["patient_id"].to_numpy(dtype=object)[images])[0]
    of_patient = csr_array((np.ones(len(images)), (patients, np.arange(len(images)))))
    fires = csr_array((np.ones(len(maxima.data)), maxima.indices, maxima.indptr), shape=maxima.shape)
    n_patients = np.bincount((of_patient @ fires).indices, minlength=n)  # one entry per patient and latent
    return {
        "firing_rate": pa.array(np.bincount(maxima.indices, minlength=n) / len(images)),
        "max_activation": pa.array(largest, mask=n_patients < max(min_group, 1)),
        "mean_activation": pa.array(
            np.bincount(means.indices, weights=means.data.astype(np.float64), minlength=n) / len(images)
        ),
    }


@dataclass(frozen=True)
class _OfConcept:
    """What the latents of an encoder are for one concept; one row per latent, one column per class."""

    concept: str
    n_images: NDArray[np.int64]  # (n_class,)
    small: Mask  # (n_class,) classes of too few patients
    class_means: NDArray[np.float64]  # (d_sae, n_class)
    scores: NDArray[np.float64]  # (d_sae, n_class)
    ranks: NDArray[np.int64]  # (d_sae, n_class)
    average_precision: NDArray[np.float64]  # (d_sae,), NaN where unknown
    ablation_effect: NDArray[np.float64]  # (d_sae,), NaN where unknown


def _of_concept(layer: LayerResults, encoder: Encoder, concept: str, groups: Groups, min_group: int) -> _OfConcept:
    table, unit = encoder.table, _unit(layer)
    score: Score = layer.results["config"]["analysis"]["score"]
    means = class_mean_latents(table, concept, split=TRAINING, unit=unit)
    ranking = rank_latents(class_mean_latents(table, concept, split=TRAINING, unit=unit, score=score))
    ranks = np.empty_like(ranking.indices)
    np.put_along_axis(ranks, ranking.indices, np.arange(1, table.d_sae + 1)[None], axis=1)
    scores = np.take_along_axis(ranking.scores, ranks - 1, axis=1)
    precision = np.full(table.d_sae, np.nan)
    if groups.boxed_patients >= min_group:
        for latent, value in _precisions(layer, encoder.model, concept):
            precision[latent] = value
    effect = np.full(table.d_sae, np.nan)
    if len(means) == 2 and table.readout_kind == "linear" and groups.test_patients[1] >= min_group:
        present = table.rows(concept, split=TEST, unit=unit)
        image_rows = present.image_rows[present.labels == 1]
        chosen = table.mean_latents[image_rows]
        mean = np.bincount(chosen.indices, weights=chosen.data.astype(np.float64), minlength=table.d_sae)
        # What a logit loses with the latent: see `intervention`; 0.0 where the latent does not fire, not -0.0.
        effect = 0.0 - mean / len(image_rows) * table.readout(concept).weight[:, 0]
    small = groups.training_patients < min_group
    return _OfConcept(concept, groups.training_images, small, means.T, scores.T, ranks.T, precision, effect)


def _precisions(layer: LayerResults, model: str, concept: str) -> Iterable[tuple[int, float]]:
    """Latent and average precision, by the study's first threshold and IoU."""
    rows = [row for row in layer.results["localization"] if (row["model"], row["concept"]) == (model, concept)]
    for row in rows:
        if all(row[key] == rows[0][key] for key in ("threshold", "iou_threshold")):
            yield row["latent"], np.nan if row["average_precision"] is None else row["average_precision"]


def _interleaved(of_concept: Sequence[_OfConcept], n: int) -> pa.ListArray:
    """The column `concepts`: for every latent the list of what it is for each concept, without a loop over latents."""

    def per_class(pick: Any, kind: type) -> pa.ListArray:
        """A list over classes in every (latent, concept), from arrays (d_sae, n_class) with nulls where masked."""
        parts = [pick(one) for one in of_concept]
        values = np.concatenate([np.broadcast_to(value, (n, value.shape[-1])) for value, _ in parts], axis=1)
        masks = np.concatenate([np.broadcast_to(mask, (n, mask.shape[-1])) for _, mask in parts], axis=1)
        widths = [value.shape[-1] for value, _ in parts]
        ends = np.add.outer(np.arange(n) * sum(widths), np.array(list(accumulate(widths)))).ravel()
        flat = pa.array(values.ravel().astype(kind), mask=masks.ravel())
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), flat)

    def per_concept(pick: Any) -> pa.Array:
        values = np.stack([pick(one) for one in of_concept], axis=1).ravel()
        return pa.array(values, mask=np.isnan(values))

    # The centred scores of the other classes would give a suppressed one away: all of a concept's go with it.
    any_small = {id(one): np.broadcast_to(one.small.any(), one.small.shape) for one in of_concept}
    names = pa.array([one.concept for one in of_concept]).take(pa.array(np.tile(np.arange(len(of_concept)), n)))
    fields = {
        "concept": names,
        "n_images": per_class(lambda one: (one.n_images, one.small), np.int64),
        "class_means": per_class(lambda one: (one.class_means, one.small), np.float64),
        "scores": per_class(lambda one: (one.scores, any_small[id(one)]), np.float64),
        "ranks": per_class(lambda one: (one.ranks, any_small[id(one)]), np.int64),
        "average_precision": per_concept(lambda one: one.average_precision),
        "ablation_effect": per_concept(lambda one: one.ablation_effect),
    }
    structs = pa.StructArray.from_arrays(list(fields.values()), fields=list(CONCEPT))
    offsets = np.arange(n + 1, dtype=np.int32) * len(of_concept)
    return pa.ListArray.from_arrays(pa.array(offsets), structs)


def _notes_of_latents(notes: Sequence[Note], n: int) -> list[list[Row]]:
    rows: list[list[Row]] = [[] for _ in range(n)]
    for note in notes:
        rows[note.latent].append({field.name: getattr(note, field.name) for field in NOTE})
    return rows


# The rows of results.json


def _rows(config: str, study: StudyFolder, groups: GroupsOf, min_group: int) -> pa.Table:
    """A part of every layer's results as one table; metrics of too few patients are null."""
    found = []
    for layer in study.layers:
        group_of = {
            (encoder.model, concept): groups[layer.name, encoder.name, concept]
            for encoder in layer.encoders.values()
            for concept in encoder.concepts
        }
        for row in _rows_of(config, layer):
            group = group_of[row["model"], row["concept"]]
            behind = group.boxed_patients if config == "localization" else group.test_patients.min()
            if config == "localization" and group.training_patients.min() < min_group:
                continue  # which latents are judged here would tell how they rank in the small class
            if behind < min_group:
                row = {**row, **dict.fromkeys([*_METRIC_COLUMNS, *_COUNTS], None)}
            found.append({"layer": layer.name, **row})
    schema = SCHEMAS[config]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in found], schema=schema)


_COUNTS = ("n_positive", "n_images", "n_boxes", "n_predictions")


def _rows_of(config: str, layer: LayerResults) -> list[Row]:
    results = layer.results
    if config == "localization":
        return [{"method": "latent", **row} for row in results["localization"]] + results.get("baselines", [])
    return results["interventions"] if config == "interventions" else results["reconstruction"]


# study


def _study(study: StudyFolder, groups: GroupsOf, min_group: int) -> pa.Table:
    """The one row that says what the others are from."""
    results = study.results
    models = [
        {"layer": layer.name, "encoder": encoder.name, **row, "readout": encoder.table.readout_kind}
        for layer in study.layers
        for row in layer.results["models"]
        for encoder in layer.encoders.values()
        if row["name"] == encoder.model and row["concept"] in encoder.concepts
    ]
    saes = {
        layer.name: {**layer.results["sae"], "hook_name": layer.hook_name, "quality": layer.results["sae_quality"]}
        for layer in study.layers
    }
    row = {
        "format_version": FORMAT_VERSION,
        "title": results["title"],
        "created": results["created"],
        "data_kind": results["data_kind"],
        "min_group": min_group,
        "layers": [layer.name for layer in study.layers],
        "concepts": list(study.concepts),
        "config": _json(_shared_config(results["config"])),
        "provenance": _json(results["provenance"]),
        "data": _json(_shared_data(results["data"], min_group)),
        "models": _json(models),
        "sae": _json(saes),
        "named_latents": _json({layer.name: _named_latents(layer, groups, min_group) for layer in study.layers}),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["study"])


def _named_latents(layer: LayerResults, groups: GroupsOf, min_group: int) -> Row:
    """The latents that the study names and their roles, by "model/concept"."""
    large = {
        f"{encoder.model}/{concept}"
        for encoder in layer.encoders.values()
        for concept in encoder.concepts
        if groups[layer.name, encoder.name, concept].training_patients.min() >= min_group
    }
    return {pair: named for pair, named in layer.results["named_latents"].items() if pair in large}


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _shared_config(config: Mapping[str, Any]) -> Row:
    """The configuration without what is about the machine where it ran: folders, files of SAEs, its device."""

    def without(section: Mapping[str, Any], *keys: str) -> Row:
        return {key: value for key, value in section.items() if key not in keys}

    kept = without(config, "output", "device", "num_workers")
    return {**kept, "data": without(config["data"], "root"), "sae": without(config["sae"], "path", "paths")}


def _shared_data(data: Mapping[str, Any], min_group: int) -> Row:
    """What is known of the data, without the list of images in quarantine and without small counts."""
    kept = {key: value for key, value in data.items() if key != "quarantine"}
    small = {
        (row["concept"], row["split"])
        for row in data["concepts"]
        if min(row["n_positive"], row["n_images"] - row["n_positive"]) < min_group
    }
    concepts = [
        {**row, **dict.fromkeys(("n_positive", "n_boxes") if (row["concept"], row["split"]) in small else ())}
        for row in data["concepts"]
    ]
    return {**kept, "concepts": concepts}
