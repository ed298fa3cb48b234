"""Repairs as a part of a study: which latents of each classifier, the file of it, and what it does on test images."""

__all__ = ["check_repairs", "repair_lines", "repairs"]

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.adapters import Classifier
from mammosae_plugin.adapters.folding import fold_latents, project_head
from mammosae_plugin.analysis.confounding import SHORTCUT
from mammosae_plugin.analysis.covariates import covariate_columns
from mammosae_plugin.config.repair import RepairSettings
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file, write_json
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.own_files import put_aside
from mammosae_plugin.progress import progress
from mammosae_plugin.provenance import plain
from mammosae_plugin.schema.repairs import FROC_COLUMNS, PERFORMANCE_COLUMNS, REPAIR_COLUMNS
from mammosae_plugin.study import plans
from mammosae_plugin.study.held_out import held_out_change
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.inputs import ModelPair, StudyInputs
from mammosae_plugin.study.layer import LayerStudy
from mammosae_plugin.study.repairing import Repair, groups_of, repair, repaired_logits, require_group

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def check_repairs(study: StudyInputs) -> None:
    """See, before anything is trained, that the data have the columns by which repairs are to be told apart.

    Raises:
        InputError: They have not, or a column is of ids.
    """
    settings, columns = study.config.analysis.repair, study.all_images.images.columns
    for name in (settings.groups or ()) if settings is not None else ():
        require_group(name)
        if name not in columns:
            raise InputError(
                f"analysis.repair.groups names {name!r}, no column of the images; they have "
                f"{', '.join(map(str, columns))}"
            )


def repair_lines(row: Row) -> list[str]:
    """A row of `repairs` for a terminal; nothing where nothing was repaired."""
    if row["reason"]:
        return []
    stages: dict[str, Row] = {one["stage"]: one for one in row["performance"] if one["group"] == "all"}
    before, after = stages["before"], stages["after"]
    if after["auroc"] is None:
        told = "no AUROC"
    else:
        told = f"AUROC {before['auroc']:.3f} before, {after['auroc']:.3f} after"
        ends = [after[f"auroc_change_{end}"] for end in ("low", "high")]
        told += f", change {after['auroc_change']:+.3f} " + (
            "without an interval" if None in ends else "[{:+.3f}, {:+.3f}]".format(*ends)
        )
    latents = ", ".join(map(str, row["latents"]))
    return [f"{row['model']}/{row['concept']} with latents {latents} times {row['scale']:g}: {told}; {row['file']}"]


def repairs(layer: LayerStudy) -> list[Row]:
    """What the repairs of a layer's classifiers did: a row per finding, or pair that the settings name.

    Args:
        layer: The layer.

    Returns:
        Rows of `schema.repairs.REPAIR_COLUMNS` behind model and concept; empty where `analysis.repair` is null.
    """
    settings = layer.config.analysis.repair
    if settings is None:
        return []
    pairs = [pair for pair in layer.study.pairs if pair.concept in layer.study.findings or settings.of(pair.key)]
    bar = progress(pairs, description="repair", unit="classifier", to=layer.work / "repaired", delay=2, leave=False)
    return [{**vars(pair), **_row(layer, pair, settings)} for pair in bar]


def _row(layer: LayerStudy, pair: ModelPair, settings: RepairSettings) -> Row:
    named = settings.of(pair.key)
    latents = _shortcuts(layer, pair) if named is None else list(named)
    about: Row = dict.fromkeys(column.name for column in REPAIR_COLUMNS)
    about |= {"latents": latents, "chosen": "verdict" if named is None else "settings", "scale": settings.scale}
    about |= {"kind": settings.kind, "reason": "", "groups": [], "performance": [], "froc": [], "notes": []}
    about |= {"held_out_first": [], "held_out_second": []}
    if reason := _why_not(layer, latents, settings):
        return {**about, "reason": reason}
    try:
        return {**about, **_repaired(layer, pair, latents, settings)}
    except InputError as error:  # such as an SAE whose latents no file can hold: the rest of the study stands
        logger.warning("%s at %s is not repaired: %s", pair.key, layer.name, error)
        return {**about, "reason": str(error).replace(f"{layer.study.output}/", "")}  # as in a report that is handed on


def _shortcuts(layer: LayerStudy, pair: ModelPair) -> list[int]:
    found = layer.evidence
    return _called(found[(found["model"] == pair.model) & (found["concept"] == pair.concept)])


def _called(found: pd.DataFrame) -> list[int]:
    """The latents with the verdict, those on which the classifier rests most first."""
    if "verdict" not in found:
        return []
    own = found[found["verdict"] == SHORTCUT]
    order = own["reliance"].abs().sort_values(ascending=False, kind="stable").index
    return [int(one) for one in own["latent"].loc[order]]


def _why_not(layer: LayerStudy, latents: Sequence[int], settings: RepairSettings) -> str:
    if settings.latents != SHORTCUT and layer.study.has_several_layers and not layer.is_final:
        return "the settings name latents of the final map"
    if not latents:
        return "no latent is called a shortcut" if settings.latents == SHORTCUT else "the settings name no latent of it"
    if layer.is_inner and not settings.inner:
        return (
            "at an inner layer the repaired network must be run on all test images; analysis.repair.inner: true has "
            "it done"
        )
    return ""


def _repaired(
    layer: LayerStudy,
    pair: ModelPair,
    latents: Sequence[int],
    settings: RepairSettings,
) -> Row:
    analysis, table = layer.config.analysis, layer.tables[pair]
    columns = _group_columns(layer, pair, table, settings)
    what = {"latents": list(latents), "scale": settings.scale, "kind": settings.kind}
    froc_reason = _why_no_froc(layer, pair, settings)
    measured: dict[str, Any] = {
        "group": columns,
        "split": TEST,
        "unit": layer.unit,
        "froc": not froc_reason,
        "n_bootstrap": analysis.n_bootstrap,
        "min_patients": analysis.min_patients,
        "seed": layer.config.seed,
    }
    held_out = settings.held_out and settings.latents == SHORTCUT and not layer.is_inner
    if held_out:
        measured["held_out"] = {**analysis.evidence.model_dump(), **analysis.confounders.model_dump(mode="json")}
    where = {"device": layer.config.device, "batch_size": layer.config.batch_size}

    def compute(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
        arguments = {name: value for name, value in measured.items() if name != "held_out"}
        images, classifier = layer.study.split(TEST), layer.study.classifier(pair)
        done = repair(table, classifier, layer.sae, head=pair.concept, images=images, **{**what, **arguments, **where})
        told = {
            "performance": _records(done.performance, PERFORMANCE_COLUMNS),
            "froc": [] if done.froc is None else _records(done.froc, FROC_COLUMNS),
            **{f"difference_{name}": value for name, value in done.difference.items()},
            **(_held_out(layer, pair, table, classifier, what) if held_out else {}),
            "notes": [note for note in done.notes if not note.startswith("FROC")],
        }
        return pd.DataFrame({"told": [json.dumps(plain(told))]})

    told = json.loads(layer.kept("repair", pair, {**what, **measured}, compute)["told"].iloc[0])
    file = _file(layer, pair, table, what)
    place = {"file": file.relative_to(layer.study.output).as_posix(), "sha256": sha256_of_file(file)}
    return {**told, **place, "groups": columns, "froc_reason": froc_reason}


def _held_out(
    layer: LayerStudy, pair: ModelPair, table: LatentTable, classifier: Classifier, what: Mapping[str, Any]
) -> Row:
    analysis, scale, kind = layer.config.analysis, what["scale"], what["kind"]
    return held_out_change(
        table,
        pair.concept,
        lambda part: _called(layer.told(part, pair)),
        lambda latents: repaired_logits(table, classifier, layer.sae, pair.concept, latents, scale, kind),
        split=TEST,
        unit=layer.unit,
        n_bootstrap=analysis.n_bootstrap,
        min_patients=analysis.min_patients,
        seed=layer.config.seed,
    )


def _records(frame: pd.DataFrame, columns: Sequence[Any]) -> list[Row]:
    return [{one.name: row[one.name] for one in columns} for row in frame.to_dict("records")]


def _group_columns(layer: LayerStudy, pair: ModelPair, table: LatentTable, settings: RepairSettings) -> list[str]:
    """The columns that make groups; of those that nobody named, the ones that can."""
    if settings.groups is not None:
        return list(settings.groups)
    rows = table.rows(pair.concept, split=TEST, unit=layer.unit)
    found = []
    for name in covariate_columns(table, pair.concept, layer.covariates):
        try:
            if len(groups_of(table, rows, name)) > 1:
                found.append(name)
        except InputError:  # such as a column of many words
            logger.info("repairs of %s are not told apart by %s", pair.key, name)
    return found


def _why_no_froc(layer: LayerStudy, pair: ModelPair, settings: RepairSettings) -> str:
    if pair not in layer.study.pairs_with_boxes:
        return "no test image has a box of the finding"
    if layer.is_inner:
        return "it is of the final map, through the head"
    if not settings.froc:
        return "both networks would be run on all test images; analysis.repair.froc: true has it done"
    return ""


def _file(layer: LayerStudy, pair: ModelPair, table: LatentTable, what: Mapping[str, Any]) -> Path:
    """The repaired classifier, written where it is not there as it was written.

    A file under its name that was changed since is the user's and is renamed.
    """
    plan = plans.of_analysis("repaired", table=table.folder.name, model=pair.model, concept=pair.concept, settings=what)
    path = plans.keep(plan, layer.work / "repaired" / f"{pair.model}-{pair.concept}-{plans.digest(plan)}.safetensors")
    record = path.with_suffix(".json")
    if path.exists():
        if record.exists() and read_json(record).get("sha256") == sha256_of_file(path):
            return path
        logger.warning("%s was changed; it is kept as %s", path, put_aside(path).name)
    classifier, scale, hook_name = layer.study.classifier(pair), what["scale"], table.hook_name
    if what["kind"] == "exact":
        made = fold_latents(classifier, layer.sae, what["latents"], scale=scale, hook_name=hook_name)
    else:
        made = project_head(classifier, layer.sae, what["latents"], scale=scale)
    latents = tuple(what["latents"])
    Repair(made, pair.concept, latents, scale, what["kind"], hook_name, pd.DataFrame()).save(path)
    write_json(record, {**what, "sha256": sha256_of_file(path)})
    return path
