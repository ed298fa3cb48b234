"""The tables of a findings dataset, computed from a study's folder without a network or an image.

Whatever is a statistic of fewer patients than `min_group`, or gives one away, is null: `small_groups` has the rule.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mammosae_plugin.adapters.sources import is_on_hub
from mammosae_plugin.analysis.probing import Score, class_mean_latents, rank_latents
from mammosae_plugin.config import BELOW_ROOT
from mammosae_plugin.findings.about import About, places
from mammosae_plugin.findings.notes import Note, read_notes, with_readers
from mammosae_plugin.findings.study_folder import Encoder, LayerResults, StudyFolder
from mammosae_plugin.privacy.small_groups import Firing, Mask, Weights, hidden_latents, is_few, rare_rows
from mammosae_plugin.schema.findings import CONCEPT, FORMAT_VERSION, NOTE, SCHEMAS, names_of, struct_of
from mammosae_plugin.schema.results import ROLE_NUMBERS, TRAINED_HERE, stated_role

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Row = dict[str, Any]

TRAINING, TEST = "training", "test"


def findings_tables(study: StudyFolder, *, min_group: int = 5, about: About | None = None) -> dict[str, pa.Table]:
    """Every config of a study's findings but `examples`.

    Args:
        study: The study.
        min_group: Statistics of fewer patients than this are null.
        about: Where its SAEs and classifiers are published, if the study's folder does not know it.

    Returns:
        The tables of `schema.findings.SCHEMAS` by config.
    """
    groups, hidden = _groups(study.layers), _hidden(study, min_group)
    latents = [
        _latents(layer, encoder, groups, hidden[layer.name, encoder.name], read_notes(study.folder), min_group)
        for layer in study.layers
        for encoder in layer.encoders.values()
    ]
    return {
        "latents": pa.concat_tables(latents),
        **{
            config: _rows(config, study, groups, hidden, min_group)
            for config in ("interventions", "reconstruction", "localization")
        },
        "study": _study(study, groups, hidden, min_group, about or About().with_record(study.folder)),
    }


@dataclass(frozen=True)
class Groups:
    """How many images and patients stand behind the statistics of one concept.

    Attributes:
        training_images: (n_class,) images of each class of the training split.
        training_patients: (n_class,) patients.
        test_patients: (n_class,) patients of the test split.
        boxed_patients: Patients of the test split with a box of the concept.
        boxed_in_training: The same of the training split.
    """

    training_images: NDArray[np.int64]
    training_patients: NDArray[np.int64]
    test_patients: NDArray[np.int64]
    boxed_patients: int
    boxed_in_training: int = 0

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
        boxed = table.images[_with_boxes(table, concept)]
        in_test, in_training = (
            int(boxed.loc[boxed["split"] == split, "patient_id"].nunique()) for split in (TEST, TRAINING)
        )
        test_patients = np.array(counts(TEST)[1])
        return cls(np.array(training_images), np.array(training_patients), test_patients, in_test, in_training)

    def are_small(self, split: str, min_group: int) -> bool:
        """Whether a class has too few patients, so that neither is told how many images a class has."""
        patients = self.training_patients if split == TRAINING else self.test_patients
        return bool(patients.min() < min_group)

    def boxes_are_few(self, split: str, min_group: int) -> bool:
        """Whether too few patients have a box of the concept."""
        return bool(is_few(self.boxed_in_training if split == TRAINING else self.boxed_patients, min_group))

    def tells_precision(self, min_group: int) -> bool:
        """Whether average precision is told: of enough patients with boxes, whose number may be told too."""
        return self.boxed_patients >= min_group and not self.are_small(TEST, min_group)


GroupsOf = Mapping[tuple[str, str, str], Groups]


def _with_boxes(table: "LatentTable", concept: str) -> Mask:
    """(n_images,) images with a box of the concept."""
    found = np.zeros(len(table.images), dtype=np.bool_)
    if concept in table.concepts:
        own = table.findings[(table.findings[concept] == 1) & table.findings["xmin"].notna()]
        found[own["image_row"].to_numpy()] = True
    return found


@dataclass(frozen=True)
class Hidden:
    """The latents of an encoder of which something is not told, because they fire in few patients: (d_sae,) bool each.

    Attributes:
        activity: Of which the activity in the test split.
        silence: Of which the share of test images in which they fire: in a few patients only they do not.
        class_means: By concept, of which the class means of the training split and what is computed from them.
        effects: By concept, of which the effect on the logit in the test split.
        boxes: By concept, of which the average precision.
    """

    activity: Mask
    silence: Mask
    class_means: Mapping[str, Mask]
    effects: Mapping[str, Mask]
    boxes: Mapping[str, Mask]

    @classmethod
    def of(cls, encoder: Encoder, unit: str, min_group: int) -> "Hidden":
        """Find them in the encoder's latents table."""
        table = encoder.table
        split = table.images["split"].to_numpy()

        def firing(rows: Mask) -> Firing:
            return Firing(table.max_latents[np.flatnonzero(rows)], table.images["patient_id"].to_numpy()[rows])

        def class_sums(concept: str, of: str) -> list[Weights]:
            rows = table.rows(concept, split=of, unit=unit)
            own = [rows.image_rows[rows.labels == label] for label in table.classes(concept)]
            return [np.bincount(images, minlength=len(split))[split == of] for images in own]

        test, train = firing(split == TEST), firing(split == TRAINING)
        means = {concept: class_sums(concept, TRAINING) for concept in encoder.concepts}
        # An effect is a known weight times a mean over the test images of class 1.
        effects = {one: class_sums(one, TEST)[1:] for one in encoder.concepts if len(table.classes(one)) == 2}
        in_test = hidden_latents(
            test, {"": [np.ones(int((split == TEST).sum()), dtype=np.int64)], **effects}, min_group
        )
        return cls(
            activity=in_test.pop(""),
            silence=np.asarray(is_few(test.n_silent_patients(), min_group)),
            class_means=hidden_latents(train, means, min_group),
            effects=in_test,
            boxes={
                concept: np.asarray(is_few(test.n_patients(_with_boxes(table, concept)[split == TEST]), min_group))
                for concept in encoder.concepts
            },
        )


HiddenOf = Mapping[tuple[str, str], Hidden]


def _hidden(study: StudyFolder, min_group: int) -> HiddenOf:
    return {
        (layer.name, encoder.name): Hidden.of(encoder, _unit(layer), min_group)
        for layer in study.layers
        for encoder in layer.encoders.values()
    }


def _groups(layers: Sequence[LayerResults]) -> GroupsOf:
    return {
        (layer.name, encoder.name, concept): Groups.of(encoder.table, concept, _unit(layer))
        for layer in layers
        for encoder in layer.encoders.values()
        for concept in encoder.concepts
    }


def separation_rows(study: StudyFolder, *, min_group: int = 5) -> list[Row]:
    """How well each classifier separates the test images: the rows of reconstruction without the SAE, primary layer."""
    layer = study.layer()
    groups = {key[2]: group for key, group in _groups([layer]).items()}
    ends = [f"auroc{end}" for end in ("", "_low", "_high")]
    names = ("model", "concept", "n_rows", "n_positive", "n_patients", *ends)
    return [
        _without(
            {name: row.get(name) for name in names},
            (*ends, "n_positive") if groups[row["concept"]].are_small(TEST, min_group) else (),
        )
        for row in layer.results["reconstruction"]
        if row["variant"] == "without_sae"
    ]


def examples_table(
    study: StudyFolder, hash_ids: Callable[[Sequence[str]], Sequence[str]], *, min_group: int = 5
) -> pa.Table:
    """The config `examples`: maps over positions of the best latents of class 1, for the images whose maps were kept.

    Patients whose images and labels, taken together, fewer than `min_group` patients have are left out: whoever has the
    dataset's labels could tell them by these alone.

    Args:
        study: The study.
        hash_ids: Gives what stands for ids of images and patients.
        min_group: How many patients must look the same.

    Returns:
        One row per layer, encoder, concept, image and latent, by the hash of the image: not in the dataset's order.
    """
    rows: list[Row] = []
    for layer in study.layers:
        top: int = layer.results["config"]["analysis"]["top"]
        for encoder in layer.encoders.values():
            table = encoder.table
            images = [row for row in range(len(table.images)) if len(table.map_latents(row))]
            chosen = table.images.iloc[images]
            labels = list(chosen[list(study.concepts)].itertuples(index=False, name=None))
            kept_here = ~rare_rows(chosen["patient_id"].tolist(), labels, min_group)
            images, chosen = list(np.array(images, dtype=int)[kept_here]), chosen[kept_here]
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
    rows.sort(key=lambda row: (row["image"], row["layer"], row["encoder"], row["concept"]))
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
    layer: LayerResults, encoder: Encoder, groups: GroupsOf, hidden: Hidden, notes: Sequence[Note], min_group: int
) -> pa.Table:
    """One row per latent of one encoder at one layer."""
    table = encoder.table
    n = table.d_sae
    of_concept = [
        _of_concept(layer, encoder, concept, groups[layer.name, encoder.name, concept], hidden, min_group)
        for concept in encoder.concepts
    ]
    own = [note for note in notes if note.layer == layer.name and note.encoder in (None, encoder.name)]
    columns = {
        "layer": pa.array([layer.name]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "hook_name": pa.array([layer.hook_name]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "encoder": pa.array([encoder.name]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "latent": pa.array(np.arange(n)),
        **_activity(table, hidden),
        "concepts": _interleaved(of_concept, n),
        "notes": pa.array(_notes_of_latents(own, n), type=pa.list_(struct_of(NOTE))),
    }
    return pa.table(columns, schema=SCHEMAS["latents"])


def _activity(table: "LatentTable", hidden: Hidden) -> dict[str, pa.Array]:
    """How often and how strongly each latent fires in the test split."""
    images = np.flatnonzero((table.images["split"] == TEST).to_numpy())
    means, maxima = table.mean_latents[images], table.max_latents[images]
    n = table.d_sae
    largest = np.full(n, -np.inf, dtype=np.float32)
    np.maximum.at(largest, maxima.indices, maxima.data)
    rates = np.bincount(maxima.indices, minlength=n) / len(images)
    averages = np.bincount(means.indices, weights=means.data.astype(np.float64), minlength=n) / len(images)
    return {
        "firing_rate": pa.array(rates, mask=hidden.activity | hidden.silence),
        "max_activation": pa.array(largest, mask=hidden.activity | (rates == 0)),
        "mean_activation": pa.array(averages, mask=hidden.activity),
    }


@dataclass(frozen=True)
class _OfConcept:
    """What the latents of an encoder are for one concept; one row per latent, one column per class."""

    concept: str
    n_images: NDArray[np.int64]  # (n_class,)
    small: bool  # a class has too few patients
    hidden: Mask  # (d_sae,) latents whose class means would tell of few patients
    class_means: NDArray[np.float64]  # (d_sae, n_class)
    scores: NDArray[np.float64]  # (d_sae, n_class)
    ranks: NDArray[np.int64]  # (d_sae, n_class)
    average_precision: NDArray[np.float64]  # (d_sae,), NaN where unknown
    ablation_effect: NDArray[np.float64]  # (d_sae,), NaN where unknown


def _of_concept(
    layer: LayerResults, encoder: Encoder, concept: str, groups: Groups, hidden: Hidden, min_group: int
) -> _OfConcept:
    table, unit = encoder.table, _unit(layer)
    score: Score = layer.results["config"]["analysis"]["score"]
    means = class_mean_latents(table, concept, split=TRAINING, unit=unit)
    ranking = rank_latents(class_mean_latents(table, concept, split=TRAINING, unit=unit, score=score))
    own, scores, ranks = hidden.class_means[concept], np.empty_like(ranking.scores), np.empty_like(ranking.indices)
    np.put_along_axis(scores, ranking.indices, ranking.scores, axis=1)
    # Among the latents that are shown: a gap would tell between which scores a hidden one lies.
    np.put_along_axis(ranks, ranking.indices, np.cumsum(~own[ranking.indices], axis=1), axis=1)
    precision = np.full(table.d_sae, np.nan)
    if groups.tells_precision(min_group):
        for latent, value in _precisions(layer, encoder.model, concept):
            precision[latent] = value
    precision[own | hidden.boxes[concept]] = np.nan
    effect = np.full(table.d_sae, np.nan)
    if len(means) == 2 and table.readout_kind == "linear" and groups.test_patients[1] >= min_group:
        present = table.rows(concept, split=TEST, unit=unit)
        image_rows = present.image_rows[present.labels == 1]
        chosen = table.mean_latents[image_rows]
        mean = np.bincount(chosen.indices, weights=chosen.data.astype(np.float64), minlength=table.d_sae)
        # What a logit loses with the latent: see `intervention`; 0.0 where the latent does not fire, not -0.0.
        effect = 0.0 - mean / len(image_rows) * table.readout(concept).weight[:, 0]
        effect[hidden.effects[concept]] = np.nan
    small = groups.are_small(TRAINING, min_group)
    return _OfConcept(concept, groups.training_images, small, own, means.T, scores.T, ranks.T, precision, effect)


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

    def masked(one: _OfConcept) -> Mask:
        return np.broadcast_to((one.hidden | one.small)[:, None], one.scores.shape)

    def per_concept(pick: Any) -> pa.Array:
        values = np.stack([pick(one) for one in of_concept], axis=1).ravel()
        return pa.array(values, mask=np.isnan(values))

    # What is shown of the other classes would give a hidden one away, by the total: all of a concept's go with it.
    names = pa.array([one.concept for one in of_concept]).take(pa.array(np.tile(np.arange(len(of_concept)), n)))
    fields = {
        "concept": names,
        "n_images": per_class(lambda one: (one.n_images, np.full_like(one.n_images, one.small, dtype=bool)), np.int64),
        "class_means": per_class(lambda one: (one.class_means, masked(one)), np.float64),
        "scores": per_class(lambda one: (one.scores, masked(one)), np.float64),
        "ranks": per_class(lambda one: (one.ranks, masked(one)), np.int64),
        "average_precision": per_concept(lambda one: one.average_precision),
        "ablation_effect": per_concept(lambda one: one.ablation_effect),
    }
    structs = pa.StructArray.from_arrays(list(fields.values()), fields=list(struct_of(CONCEPT)))
    offsets = np.arange(n + 1, dtype=np.int32) * len(of_concept)
    return pa.ListArray.from_arrays(pa.array(offsets), structs)


def _notes_of_latents(notes: Sequence[Note], n: int) -> list[list[Row]]:
    rows: list[list[Row]] = [[] for _ in range(n)]
    for note in notes:
        rows[note.latent].append({field.name: getattr(note, field.name) for field in NOTE})
    return rows


# The rows of results.json


def _rows(config: str, study: StudyFolder, groups: GroupsOf, hidden: HiddenOf, min_group: int) -> pa.Table:
    """A part of every layer's results as one table; metrics of too few patients are null."""
    found = []
    for layer in study.layers:
        encoder_of = {
            (encoder.model, concept): encoder.name
            for encoder in layer.encoders.values()
            for concept in encoder.concepts
        }
        for row in _rows_of(config, layer):
            encoder = encoder_of[row["model"], row["concept"]]
            group, not_told = groups[layer.name, encoder, row["concept"]], hidden[layer.name, encoder]
            shown = (
                _localization(row, group, not_told, min_group)
                if config == "localization"
                else _without(row, names_of(config, "count", "group") if group.are_small(TEST, min_group) else ())
            )
            if shown is not None:
                found.append({"layer": layer.name, **shown})
    if config == "localization":
        _renumber(found)
    schema = SCHEMAS[config]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in found], schema=schema)


def _without(row: Row, columns: Iterable[str]) -> Row:
    return {**row, **dict.fromkeys(columns)}


def _localization(row: Row, group: Groups, hidden: Hidden, min_group: int) -> Row | None:
    """A row of Table 2 as far as it may be told; None where which latents are judged would tell how they rank."""
    of_latent = row["method"] == "latent"
    if group.are_small(TRAINING, min_group) or (of_latent and hidden.class_means[row["concept"]][row["latent"]]):
        return None
    if not group.tells_precision(min_group):
        return _without(row, names_of("localization", "count", "group"))
    few = of_latent and hidden.boxes[row["concept"]][row["latent"]]
    return _without(row, ("average_precision", "n_predictions") if few else ())


def _renumber(rows: Sequence[Row]) -> None:
    """Ranks among the latents that are shown."""
    last: dict[tuple[Any, ...], int] = {}
    for row in rows:
        place = tuple(row[name] for name in ("layer", "model", "concept", "method", "threshold", "iou_threshold"))
        row["rank"] = last[place] = last.get(place, 0) + 1


def _rows_of(config: str, layer: LayerResults) -> list[Row]:
    results = layer.results
    if config == "localization":
        return [{"method": "latent", **row} for row in results["localization"]] + results.get("baselines", [])
    return results["interventions"] if config == "interventions" else results["reconstruction"]


# study


def _study(study: StudyFolder, groups: GroupsOf, hidden: HiddenOf, min_group: int, about: About) -> pa.Table:
    """The one row that says what the others are from."""
    results, notes = study.results, read_notes(study.folder)
    classifiers = places(study.folder, about, "model", study.classifiers)
    published = places(study.folder, about, "sae", study.saes)
    models = [
        {
            "layer": layer.name,
            "encoder": encoder.name,
            **row,
            "readout": encoder.table.readout_kind,
            "published": classifiers.get(f"{row['name']}/{row['concept']}"),
        }
        for layer in study.layers
        for row in layer.results["models"]
        for encoder in layer.encoders.values()
        if row["name"] == encoder.model and row["concept"] in encoder.concepts
    ]
    saes = {
        layer.name: {
            **layer.results["sae"],
            "source": _origin(layer.results["sae"]),
            "published": layer.results["sae"].get("published") or published.get(layer.name),
            "hook_name": layer.hook_name,
            "quality": shared_quality(layer, min_group=min_group),
        }
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
        "provenance": _json(_shared_provenance(results["provenance"])),
        "data": _json(_shared_data(results["data"], groups, min_group)),
        "models": _json(models),
        "sae": _json(saes),
        "named_latents": _json(
            {layer.name: _named_latents(layer, groups, hidden, notes, min_group) for layer in study.layers}
        ),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["study"])


def shared_quality(layer: LayerResults, *, min_group: int) -> list[Row]:
    """The rows of `sae_quality`, without the AUROC cost where a class has too few patients in the split."""
    small = {
        (encoder.model, concept, split)
        for encoder in layer.encoders.values()
        for concept in encoder.concepts
        for split in (TRAINING, TEST)
        if Groups.of(encoder.table, concept, _unit(layer)).are_small(split, min_group)
    }
    return [
        {
            name: value
            for name, value in row.items()
            if name != "auroc_cost" or (row["model"], row["concept"], row["split"]) not in small
        }
        for row in layer.results["sae_quality"]
    ]


def shared_named_latents(study: StudyFolder, *, min_group: int) -> dict[str, Row]:
    """By layer and "model/concept", the latents that a study names and the numbers of them that may go out."""
    groups, hidden, notes = _groups(study.layers), _hidden(study, min_group), read_notes(study.folder)
    return {layer.name: _named_latents(layer, groups, hidden, notes, min_group) for layer in study.layers}


def _named_latents(
    layer: LayerResults, groups: GroupsOf, hidden: HiddenOf, notes: Sequence[Note], min_group: int
) -> Row:
    """The latents that the study names, their roles (readers' first) and the numbers behind, by "model/concept".

    Latents of which a number is hidden are left out.
    """
    named, found = with_readers(layer.results["named_latents"], notes, layer), {}
    for encoder in layer.encoders.values():
        not_told = hidden[layer.name, encoder.name]
        for concept in encoder.concepts:
            group, pair = groups[layer.name, encoder.name, concept], f"{encoder.model}/{concept}"
            if pair in named and not group.are_small(TRAINING, min_group):
                hide = [not_told.class_means[concept], not_told.effects.get(concept, not_told.class_means[concept])]
                listed = [one for one in named[pair] if not any(mask[one["latent"]] for mask in hide)]
                found[pair] = [shared_role(one, min_group) for one in listed]
    return found


def shared_role(named: Row, min_group: int) -> Row:
    """A named latent without numbers of fewer patients than `min_group`, and without a role that rested on them."""
    kept = {name: named[name] for name in ("latent", "role", "reason", "by", *ROLE_NUMBERS) if name in named}
    for name in ("with", "without"):
        n, firing = (int(kept.get(f"n_{kind}_{name}") or 0) for kind in ("patients", "firing"))
        if n < min_group or 0 < firing < min_group:
            kept = {name: value for name, value in kept.items() if name not in ROLE_NUMBERS}
            kept["reason"] = kept["reason"] if "by" in kept else f"its numbers are of fewer than {min_group} patients"
            break
        if 0 < n - firing < min_group:  # how few it is silent in
            kept |= dict.fromkeys(("fires_with", "fires_without"))
    kept = {name: value for name, value in kept.items() if name not in ("n_firing_with", "n_firing_without")}
    if "place" in kept and (kept.get("n_patients_boxed") or 0) < min_group:
        kept |= dict.fromkeys(name for name in ROLE_NUMBERS if name.startswith("place") or name == "n_patients_boxed")
    return kept | {"role": stated_role(kept)}


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


_FILE = re.compile(r".+\.(?:pt|pth|tar|ckpt|bin|safetensors|npz|json)", re.IGNORECASE | re.DOTALL)
LOCAL_FOLDER = "a local folder"


def _without_folder(name: Any) -> Any:
    """The name of a file of weights, or a place on the Hub; of a folder on this machine not even its name."""
    return name if not isinstance(name, str) or is_on_hub(name) or _FILE.fullmatch(name) else LOCAL_FOLDER


def _origin(sae: Mapping[str, Any]) -> str:
    """Where an SAE came from, as it may be told."""
    source = str(sae["source"])
    return source if sae.get("published") or source == TRAINED_HERE else str(_without_folder(source))


def _shared_config(config: Mapping[str, Any]) -> Row:
    """The configuration without what is about the machine where it ran: folders, files of SAEs, its device.

    SAEs that were read from the Hub keep their place there.
    """

    def without(section: Mapping[str, Any], *keys: str) -> Row:
        return {key: value for key, value in section.items() if key not in keys}

    kept = without(config, "output", "device", "num_workers")
    sae = without(config["sae"], "path", "paths")
    if is_on_hub(config["sae"].get("path")):
        sae["path"] = config["sae"]["path"]
    if paths := {layer: place for layer, place in (config["sae"].get("paths") or {}).items() if is_on_hub(place)}:
        sae["paths"] = paths
    models = [
        {
            **model,
            "encoder": _without_folder(model.get("encoder")),
            "classifiers": model.get("classifiers")
            and {concept: _without_folder(place) for concept, place in model["classifiers"].items()},
        }
        for model in config["models"]
    ]
    data = without(config["data"], "root")
    for name in BELOW_ROOT & data.keys():
        data[name] = re.split(r"[/\\]", str(data[name]))[-1]
    return {**kept, "data": data, "sae": sae, "models": models}


def _shared_provenance(provenance: Mapping[str, Any]) -> Row:
    """Versions and checksums, with the names of files of weights but of no folder."""
    checkpoints = [{**row, "file": _without_folder(row["file"])} for row in provenance["checkpoints"]]
    return {**provenance, "checkpoints": checkpoints}


_DATA = ("image_size", "unit", "splits")


def _shared_data(data: Mapping[str, Any], groups: GroupsOf, min_group: int) -> Row:
    """What is known of the data; of a concept whose class, or whose boxes, few patients have, no count of these."""
    by_concept = {concept: group for (_, _, concept), group in groups.items()}

    def shared(row: Row) -> Row:
        group, split = by_concept[row["concept"]], row["split"]
        small = group.are_small(split, min_group)
        no_boxes = small or group.boxes_are_few(split, min_group)
        told = {name: value for name, value in row.items() if name != "n_positive_patients"}
        return _without(told, (*(("n_positive",) if small else ()), *(("n_boxes",) if no_boxes else ())))

    return {**{name: data[name] for name in _DATA}, "concepts": [shared(row) for row in data["concepts"]]}
