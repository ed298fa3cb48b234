"""The tables of a findings dataset, from what a study kept: without a network, an image or a latents table.

Whatever is a statistic of fewer patients than `min_group`, or gives one away, is null: `small_groups` has the rule, and
`schema.findings` says which columns are such statistics.
"""

__all__ = [
    "class_1_latents", "examples_table", "findings_tables", "Groups", "latents_table", "Row", "rows_table",
    "separation_rows", "shared_named_latents", "shared_quality", "shared_role", "Tellable", "tellable", "ToldOf",
    "with_told_pictures",
]  # fmt: skip

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mammosae_plugin.findings.about import About, places
from mammosae_plugin.findings.kept import TEST, TRAINING, Kept, read_kept, read_page
from mammosae_plugin.findings.names import names_table
from mammosae_plugin.findings.notes import Note, read_notes, with_readers
from mammosae_plugin.findings.shared_study import sae_origin, shared_config, shared_provenance
from mammosae_plugin.findings.study_folder import Encoder, LayerResults, StudyFolder
from mammosae_plugin.findings.told_evidence import told_evidence, told_groups, told_views
from mammosae_plugin.findings.told_pages import told_histograms, told_map, told_neighbours
from mammosae_plugin.privacy.small_groups import Mask, is_few, rare_rows
from mammosae_plugin.schema.columns import struct_of
from mammosae_plugin.schema.findings import CONCEPT, FORMAT_VERSION, NOTE, OPTIONAL, SCHEMAS, names_of
from mammosae_plugin.schema.results import ROLE_NUMBERS, run_patients, stated_role

Row = dict[str, Any]
_OF_ROWS = ("interventions", "reconstruction", "localization", "lesions", "evidence", "groups", "views")
_OF_MAPS = ("localization", "lesions")  # rows of latents and of what stands beside them, by rank
_OF_EFFECT = (
    *("effect_with", "effect_without", "effect", "effect_low", "effect_high", "effect_share"),
    *("reliance", "reliance_low", "reliance_high", "verdict", "reason"),  # the verdict rests on the reliance
)


def findings_tables(study: StudyFolder, *, min_group: int = 5, about: About | None = None) -> dict[str, pa.Table]:
    """Every config of a study's findings but `examples`.

    Args:
        study: The study.
        min_group: Statistics of fewer patients than this are null.
        about: Where its SAEs and classifiers are published, if the study's folder does not know it.

    Returns:
        The tables of `schema.findings.SCHEMAS` by config.

    Raises:
        InputError: The study was run with a version that did not keep its findings.
    """
    told, notes = tellable(study.layers, min_group), read_notes(study.folder)
    names = names_table(study.layers, told, min_group)
    return {
        "latents": pa.concat_tables(
            latents_table(layer, encoder, told[layer.name, encoder.name], notes)
            for layer in study.layers
            for encoder in layer.encoders.values()
        ),
        **{
            one: rows
            for one in _OF_ROWS
            if len(rows := rows_table(one, study, told)) or one not in OPTIONAL or _looked(one, study, min_group)
        },
        **({"names": names} if len(names) else {}),
        **_pages(study, told, min_group),
        "study": _study(study, told, min_group, about or About().with_record(study.folder)),
    }


def _pages(study: StudyFolder, told: "ToldOf", min_group: int) -> dict[str, pa.Table]:
    """The configs of which pages are made; those of a study that kept none are left out."""
    histograms = [
        told_histograms(layer, name, told[layer.name, name], min_group)
        for layer in study.layers
        for name in layer.encoders
    ]
    found = {"histograms": pa.concat_tables(histograms)}
    if (neighbours := read_page(study.folder, "neighbours")) is not None:
        found["neighbours"] = told_neighbours(neighbours, told, min_group)
    if (places := read_page(study.folder, "latent_map")) is not None:
        found["latent_map"] = told_map(places, told)
    return found


@dataclass(frozen=True)
class Groups:
    """How many images and patients stand behind the statistics of one concept.

    Attributes:
        training_patients: (n_class,) patients of each class of the training split.
        test_patients: (n_class,) the same of the test split.
        boxed_patients: Patients of the test split with a box of the concept.
        boxed_in_training: The same of the training split.
    """

    training_patients: NDArray[np.int64]
    test_patients: NDArray[np.int64]
    boxed_patients: int
    boxed_in_training: int = 0

    @classmethod
    def of(cls, kept: Kept, concept: str) -> "Groups":
        """From what a study kept."""
        training, test = (kept.by_class[concept, split] for split in (TRAINING, TEST))
        patients = [np.array(one["n_patients"]) for one in (training, test)]
        return cls(patients[0], patients[1], test["n_boxed"], training["n_boxed"])

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


@dataclass(frozen=True)
class Tellable:
    """What may be told of one encoder at one layer, if nothing is told of fewer than `min_group` patients.

    Of latents that fire in few patients something is not told: (d_sae,) bool each.

    Attributes:
        kept: What the study kept.
        min_group: The smallest group.
        groups: By concept, its classes.
        activity: Latents of which the activity in the test split is not told.
        silence: The same of the share of test images in which they fire: in a few patients only they do not.
        class_means: By concept, of the class means of the training split and what is computed from them.
        effects: By concept, of the effect on the logit in the test split.
        boxes: By concept, of the average precision.
    """

    kept: Kept
    min_group: int
    groups: Mapping[str, Groups]
    activity: Mask
    silence: Mask
    class_means: Mapping[str, Mask]
    effects: Mapping[str, Mask]
    boxes: Mapping[str, Mask]

    @classmethod
    def of(cls, kept: Kept, concepts: Sequence[str], min_group: int) -> "Tellable":
        """Find it from the counts that were kept."""
        in_test = kept.differences(TEST).hidden(min_group)
        nested = kept.latents["concepts"].combine_chunks().flatten()
        boxed = pc.struct_field(nested, "n_boxed").to_numpy().reshape(kept.d_sae, -1)
        return cls(
            kept,
            min_group,
            {concept: Groups.of(kept, concept) for concept in concepts},
            activity=in_test.pop(""),
            silence=np.asarray(is_few(kept.latents["n_silent"].to_numpy(), min_group)),
            class_means=kept.differences(TRAINING).hidden(min_group),
            effects=in_test,
            boxes={one: np.asarray(is_few(boxed[:, place], min_group)) for place, one in enumerate(concepts)},
        )


ToldOf = Mapping[tuple[str, str], Tellable]
"""By layer and encoder."""


def tellable(layers: Sequence[LayerResults], min_group: int) -> dict[tuple[str, str], Tellable]:
    """What may be told of a study, by layer and encoder.

    Raises:
        InputError: The study was run with a version that did not keep its findings.
    """
    return {
        (layer.name, encoder.name): Tellable.of(read_kept(layer.study_folder, encoder), encoder.concepts, min_group)
        for layer in layers
        for encoder in layer.encoders.values()
    }


def _groups_of(layer: LayerResults, told: ToldOf) -> dict[tuple[str, str], tuple[Groups, Tellable]]:
    """By model and concept, at one layer."""
    return {
        (encoder.model, concept): (told[layer.name, encoder.name].groups[concept], told[layer.name, encoder.name])
        for encoder in layer.encoders.values()
        for concept in encoder.concepts
    }


def separation_rows(study: StudyFolder, *, min_group: int = 5) -> list[Row]:
    """How well each classifier separates the test images: the rows of reconstruction without the SAE, primary layer."""
    layer = study.layer()
    groups = _groups_of(layer, tellable([layer], min_group))
    ends = [f"auroc{end}" for end in ("", "_low", "_high")]
    names = ("model", "concept", "n_rows", "n_positive", "n_patients", *ends)
    return [
        _without(
            {name: row.get(name) for name in names},
            (*ends, "n_positive") if groups[row["model"], row["concept"]][0].are_small(TEST, min_group) else (),
        )
        for row in layer.results["reconstruction"]
        if row["variant"] == "without_sae"
    ]


def examples_table(
    study: StudyFolder, hash_ids: Callable[[Sequence[str]], Sequence[str]], *, min_group: int = 5
) -> pa.Table:
    """The config `examples`: maps over positions of the best latents of class 1, for the images whose maps were kept.

    Of single images a study keeps nothing in its results: this alone reads its latents tables, in `work`. Patients
    whose images and labels, taken together, fewer than `min_group` patients have are left out: whoever has the
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
                best = class_1_latents(layer, encoder.model, concept)[:top]
                for row, image, patient in zip(images, image_hashes, patient_hashes, strict=True):
                    kept = set(table.map_latents(row).tolist())
                    latents = [latent for latent in best if latent in kept]
                    common = {"image": image, "patient": patient, "layer": layer.name, "encoder": encoder.name}
                    known = int(table.images[concept].iloc[row])
                    label = None if known < 0 else known
                    rows += [
                        {**common, "latent": latent, "concept": concept, "label": label, "heatmap": heatmap.tolist()}
                        for latent, heatmap in zip(latents, table.maps(latents, row), strict=True)
                    ]
    rows.sort(key=lambda row: (row["image"], row["layer"], row["encoder"], row["concept"]))
    return pa.Table.from_pylist(rows, schema=SCHEMAS["examples"])


def class_1_latents(layer: LayerResults, model: str, concept: str) -> list[int]:
    """The best latents of a concept's class 1, as the study ranked them."""
    wanted = (model, concept, 1)
    rows = layer.results["rankings"]
    return next((row["latents"] for row in rows if (row["model"], row["concept"], row["class"]) == wanted), [])


# latents


def latents_table(layer: LayerResults, encoder: Encoder, told: Tellable, notes: Sequence[Note]) -> pa.Table:
    """One row per latent of one encoder at one layer."""
    latents = told.kept.latents
    own = [note for note in notes if note.layer == layer.name and note.encoder in (None, encoder.name)]
    texts = {"layer": layer.name, "hook_name": layer.hook_name, "encoder": encoder.name}
    columns: dict[str, Any] = {name: pa.repeat(text, latents.num_rows) for name, text in texts.items()}
    columns["latent"] = latents["latent"]
    for name in names_of("latents", "group"):
        if name in latents.column_names:
            hidden = told.activity | told.silence if name == "firing_rate" else told.activity
            columns[name] = _null_where(latents[name].combine_chunks(), hidden)
    columns["concepts"] = _concepts(told, encoder.concepts)
    columns["notes"] = pa.array(_notes_of_latents(own, told.kept.d_sae), type=pa.list_(struct_of(NOTE)))
    return pa.table({name: columns[name] for name in SCHEMAS["latents"].names}, schema=SCHEMAS["latents"])


def _null_where(values: pa.Array, hidden: Mask) -> pa.Array:
    return pc.if_else(pa.array(hidden), pa.scalar(None, values.type), values)


def _concepts(told: Tellable, concepts: Sequence[str]) -> pa.ListArray:
    """The column `concepts`, without what would tell of few patients.

    What is shown of the other classes would give a hidden one away, by the total: all of a concept's go with it.
    """
    nested = told.kept.latents["concepts"].combine_chunks()
    flat, n = nested.flatten(), told.kept.d_sae
    groups = [told.groups[one] for one in concepts]
    small = np.array([one.are_small(TRAINING, told.min_group) for one in groups])
    own = np.stack([told.class_means[one] for one in concepts], axis=1)  # (d_sae, n_concepts), as all below
    per_class = {
        "count": np.broadcast_to(small, own.shape),
        "group": own | small,
    }
    few_with = np.array([one.test_patients[1] < told.min_group for one in groups])
    singles = {
        "average_precision": np.stack([told.boxes[one] for one in concepts], axis=1)
        | own
        | [not one.tells_precision(told.min_group) for one in groups],
        "ablation_effect": np.stack([told.effects.get(one, np.zeros(n, dtype=bool)) for one in concepts], axis=1)
        | few_with,
    }
    fields = []
    for column in CONCEPT:
        values = pc.struct_field(flat, column.name)
        if pa.types.is_list(column.dtype):
            widths = pc.list_value_length(values).to_numpy()
            inner = values.flatten()
            if column.name == "ranks":
                inner = pa.array(_ranks_of_shown(inner.to_numpy().reshape(n, -1), ~own, widths[: len(concepts)]))
            hidden = np.repeat(per_class[column.privacy].ravel(), widths)
            offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]).astype(np.int32))
            values = pa.ListArray.from_arrays(offsets, _null_where(inner, hidden))
        elif column.privacy == "group":
            values = _null_where(values, singles[column.name].ravel())
        fields.append(values)
    structs = pa.StructArray.from_arrays(fields, fields=list(struct_of(CONCEPT)))
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * len(concepts)), structs)


def _ranks_of_shown(ranks: NDArray[np.int64], shown: Mask, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks among the latents that are shown: a gap would tell between which scores a hidden one lies.

    Args:
        ranks: (d_sae, classes of all concepts side by side).
        shown: (d_sae, n_concepts).
        widths: (n_concepts,) how many classes each has.
    """
    order = np.argsort(ranks, axis=0, kind="stable")
    counted = np.cumsum(np.take_along_axis(np.repeat(shown, widths, axis=1), order, axis=0), axis=0)
    found = np.empty_like(ranks)
    np.put_along_axis(found, order, counted, axis=0)
    return found.ravel()


def _notes_of_latents(notes: Sequence[Note], n: int) -> list[list[Row]]:
    rows: list[list[Row]] = [[] for _ in range(n)]
    for note in notes:
        rows[note.latent].append({field.name: getattr(note, field.name) for field in NOTE})
    return rows


# The rows of every layer


def rows_table(config: str, study: StudyFolder, told: ToldOf) -> pa.Table:
    """A part of every layer's results as one table; metrics of too few patients are null."""
    found = []
    for layer in study.layers:
        groups = _groups_of(layer, told)
        for row in _rows_of(config, layer, next(iter(told.values())).min_group):
            group, of_encoder = groups[row["model"], row["concept"]]
            shown: Row | None = row
            if config in _OF_MAPS:
                shown = _localization(config, row, group, of_encoder)
            elif config in ("evidence", "views"):
                shown = _of_latent(config, row, group, of_encoder)
                if shown is not None and config == "evidence" and run_patients(layer.results):
                    shown = _without(shown, _OF_EFFECT)  # in how few patients of a sample it fires is not known
            elif group.are_small(TEST, of_encoder.min_group) or _ran_on_few(config, row, of_encoder.min_group):
                shown = _without(row, names_of(config, "count", "group"))
            if shown is not None:
                found.append({"layer": layer.name, **shown})
    if config in _OF_MAPS:
        _renumber(found)
    schema = SCHEMAS[config]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in found], schema=schema)


def _looked(config: str, study: StudyFolder, min_group: int) -> bool:
    """Whether a study looked for what maps find, even where nothing of it may be told."""
    return config in _OF_MAPS and any(_rows_of(config, layer, min_group) for layer in study.layers)


def _of_latent(config: str, row: Row, group: Groups, told: Tellable) -> Row | None:
    """A latent's evidence, or agreement, as far as it may be told; None where nothing of it may be."""
    concept, latent = row["concept"], row["latent"]
    small = any(group.are_small(split, told.min_group) for split in (TRAINING, TEST))
    masks = (told.activity, told.class_means[concept], told.effects.get(concept))
    if small or any(mask is not None and mask[latent] for mask in masks):
        return None
    if config == "views":
        return told_views(row, min_group=told.min_group)
    no_boxes = not group.tells_precision(told.min_group) and group.boxed_patients > 0
    return told_evidence(
        row,
        silent=bool(told.silence[latent]),
        no_boxes=no_boxes or bool(told.boxes[concept][latent]),
        min_group=told.min_group,
    )


def _ran_on_few(config: str, row: Row, min_group: int) -> bool:
    """Whether a class has few patients among those that networks were run on, which may be a sample."""
    fewest = row.get("fewest_patients")
    return config == "interventions" and fewest is not None and fewest < min_group


def _without(row: Row, columns: Iterable[str]) -> Row:
    return {**row, **dict.fromkeys(columns)}


def _localization(config: str, row: Row, group: Groups, told: Tellable) -> Row | None:
    """A row of Table 2, or of lesions, as far as it may be told; None where whose it is would tell how latents rank."""
    of_latent = row["method"] == "latent"
    hidden = told.class_means[row["concept"]]
    if group.are_small(TRAINING, told.min_group) or (of_latent and hidden[row["latent"]]):
        return None
    if (member := row.get("best_member", -1)) >= 0 and (hidden[member] or told.boxes[row["concept"]][member]):
        row = _without(row, ("best_member", "gain", "gain_low", "gain_high"))
    if not group.tells_precision(told.min_group):
        return _without(row, (*names_of(config, "count", "group"), *(("best_member",) if config == "lesions" else ())))
    few = of_latent and told.boxes[row["concept"]][row["latent"]]
    of_few = ("average_precision", "n_predictions") if config == "localization" else names_of(config, "group")
    return _without(row, of_few if few else ())


def _renumber(rows: Sequence[Row]) -> None:
    """Ranks among the latents that are shown."""
    last: dict[tuple[Any, ...], int] = {}
    for row in rows:
        place = tuple(row.get(name) for name in ("layer", "model", "concept", "method", "threshold", "iou_threshold"))
        row["rank"] = last[place] = last.get(place, 0) + 1


def _rows_of(config: str, layer: LayerResults, min_group: int) -> list[Row]:
    results = layer.results
    if config == "localization":
        return [{"method": "latent", **row} for row in results["localization"]] + results.get("baselines", [])
    rows: list[Row] = results.get(config, [])  # type: ignore[assignment]
    if config != "groups":
        return rows
    return [
        row
        for _, own in groupby(rows, key=lambda row: (row["model"], row["concept"]))
        for row in told_groups(list(own), min_group)
    ]


# study


def _study(study: StudyFolder, told: ToldOf, min_group: int, about: About) -> pa.Table:
    """The one row that says what the others are from."""
    results, notes = study.results, read_notes(study.folder)
    classifiers = places(study.folder, about, "model", study.classifiers)
    published = places(study.folder, about, "sae", study.saes)
    models = [
        {
            "layer": layer.name,
            "encoder": encoder.name,
            **row,
            "readout": row.get("readout"),
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
            "source": sae_origin(layer.results["sae"]),
            "published": layer.results["sae"].get("published") or published.get(layer.name),
            "hook_name": layer.hook_name,
            "quality": _quality(layer, told, min_group),
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
        "config": _json(shared_config(results["config"])),
        "provenance": _json(shared_provenance(results["provenance"])),
        "data": _json(_shared_data(results["data"], told, min_group)),
        "models": _json(models),
        "sae": _json(saes),
        "named_latents": _json({layer.name: _named_latents(layer, told, notes, min_group) for layer in study.layers}),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["study"])


def shared_quality(layer: LayerResults, *, min_group: int) -> list[Row]:
    """The rows of `sae_quality`, without the AUROC cost where a class has too few patients in the split."""
    return _quality(layer, tellable([layer], min_group), min_group)


def _quality(layer: LayerResults, told: ToldOf, min_group: int) -> list[Row]:
    groups = _groups_of(layer, told)

    def small(row: Row) -> bool:
        return groups[row["model"], row["concept"]][0].are_small(row["split"], min_group)

    return [
        {name: value for name, value in row.items() if name != "auroc_cost" or not small(row)}
        for row in layer.results["sae_quality"]
    ]


def shared_named_latents(study: StudyFolder, *, min_group: int) -> dict[str, Row]:
    """By layer and "model/concept", the latents that a study names and the numbers of them that may go out."""
    told, notes = tellable(study.layers, min_group), read_notes(study.folder)
    return {layer.name: _named_latents(layer, told, notes, min_group) for layer in study.layers}


def _named_latents(layer: LayerResults, told: ToldOf, notes: Sequence[Note], min_group: int) -> Row:
    """The latents that the study names, their roles (readers' first) and the numbers behind, by "model/concept".

    Latents of which a number is hidden are left out.
    """
    named, found = with_readers(layer.results["named_latents"], notes, layer), {}
    for (model, concept), (group, of_encoder) in _groups_of(layer, told).items():
        pair = f"{model}/{concept}"
        if pair in named and not group.are_small(TRAINING, min_group):
            means = of_encoder.class_means[concept]
            hide = means | of_encoder.effects.get(concept, means)
            of_sample = run_patients(layer.results) is not None
            own = [_without_ablation(one) if of_sample else one for one in named[pair]]
            found[pair] = [shared_role(one, min_group) for one in own if not hide[one["latent"]]]
    return found


def _without_ablation(named: Row) -> Row:
    """A named latent without what rests on a sample of patients, in how few of whom it fires is not known."""
    reason = named["reason"] if "by" in named else "what it does to the logit is of a sample of patients"
    return _without(named, [name for name in ROLE_NUMBERS if name.startswith("ablation")]) | {"reason": reason}


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


def with_told_pictures(study: pa.Table, told: Mapping[str, Any]) -> pa.Table:
    """The config `study`, whose `data` say whether there are pictures, and how many or why not."""
    (row,) = study.to_pylist()
    data = json.loads(row["data"]) | {"pictures": dict(told)}
    return pa.Table.from_pylist([row | {"data": _json(data)}], schema=study.schema)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


_DATA = ("image_size", "unit", "splits", "vocabulary")


def _shared_data(data: Mapping[str, Any], told: ToldOf, min_group: int) -> Row:
    """What is known of the data; of a concept whose class, or whose boxes, few patients have, no count of these."""
    by_concept = {concept: group for one in told.values() for concept, group in one.groups.items()}

    def shared(row: Row) -> Row:
        group, split = by_concept[row["concept"]], row["split"]
        small = group.are_small(split, min_group)
        no_boxes = small or group.boxes_are_few(split, min_group)
        told = {name: value for name, value in row.items() if name != "n_positive_patients"}
        return _without(told, (*(("n_positive",) if small else ()), *(("n_boxes",) if no_boxes else ())))

    return {
        **{name: data[name] for name in _DATA if name in data},
        "concepts": [shared(row) for row in data["concepts"]],
    }
