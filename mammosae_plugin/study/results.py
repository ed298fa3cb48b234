"""What a study found at a layer, as plain values that `findings.layers` writes."""

__all__ = ["results", "Row", "side_by_side"]

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.adapters.sources import classifier_weights
from mammosae_plugin.analysis.evidence import join_lesions
from mammosae_plugin.config import portable_config
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.measures.units import count_units, grouped_rows
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.schema.results import FORMAT_VERSION, TRAINED_HERE, best_row, recovered, swept_reference
from mammosae_plugin.study.claims import claims
from mammosae_plugin.study.explained import explained_rows
from mammosae_plugin.study.images import TEST, TRAINING
from mammosae_plugin.study.inputs import ModelPair, StudyInputs
from mammosae_plugin.study.latent_names import names_of_layer
from mammosae_plugin.study.layer import LayerStudy
from mammosae_plugin.study.pages import map_of_layer
from mammosae_plugin.study.repairs import repairs
from mammosae_plugin.training.metrics import trained_l0

Row = dict[str, Any]


def results(layer: LayerStudy, side_by_side: list[Row], primary: str) -> Row:
    """Everything that figures, tables and the report of a layer say, but for the date.

    Args:
        layer: The layer.
        side_by_side: What `side_by_side` gave; empty for a study of one layer.
        primary: The name of the layer whose report lies at the top.
    """
    study, config = layer.study, layer.config
    found: Row = {
        "format_version": FORMAT_VERSION,
        "title": config.report.title,
        "paper_setting": config.report.paper_setting,
        "data_kind": config.data.about.name,
        "config": portable_config(config),
        "provenance": {
            "packages": package_versions(),
            "checkpoints": _checkpoints(layer),
            "dataset_fingerprint": study.content,
            "seed": config.seed,
            **environment(),
        },
        "data": _data(study),
        "models": _models(layer),
        "tables": [{**vars(pair), "table": table.folder.name} for pair, table in layer.tables.items()],
        "sae": _sae(layer),
        "sae_quality": layer.sae_quality.to_dict("records"),
        "reconstruction": layer.reconstruction.to_dict("records"),
        "rankings": layer.rankings(),
        "interventions": layer.interventions.to_dict("records"),
        "n_controls": layer.n_controls,
        "localization": layer.localization.to_dict("records"),
        "baselines": layer.baselines.to_dict("records"),
        **({"lesions": layer.lesions.to_dict("records")} if len(layer.lesions) else {}),
        "named_latents": layer.named_latents(),
        "evidence": join_lesions(layer.evidence, layer.lesions).to_dict("records") if len(layer.evidence) else [],
        "groups": layer.groups.to_dict("records"),
        **({"views": layer.views.to_dict("records")} if len(layer.views) else {}),
        **({"pairs": layer.answers.to_dict("records")} if len(layer.answers) else {}),
        **({"repair": repaired} if (repaired := repairs(layer)) else {}),
        **({"names": names.to_dict("records")} if len(names := names_of_layer(layer)) else {}),
    }
    if len(layer.explained):
        found["explained"] = explained_rows(layer.explained, found)
    found["checks"] = claims(found, top=config.analysis.top)
    if side_by_side:
        found["layer"] = {"name": layer.name, "primary": primary}
        found["layers"] = side_by_side
    described: Row = plain(found)
    return described


def side_by_side(layers: Sequence[LayerStudy]) -> list[Row]:
    """One row per layer, model and concept: the SAE, how well latents separate, and how well they localize."""
    return [_layer_row(layer, pair) for layer in layers for pair in layer.study.pairs]


def _layer_row(layer: LayerStudy, pair: ModelPair) -> Row:
    def own(frame: pd.DataFrame, **equal: Any) -> list[Row]:
        rows = [row for row in frame.to_dict("records") if (row["model"], row["concept"]) == (pair.model, pair.concept)]
        return [
            {str(key): value for key, value in row.items()} for row in rows if all(row[k] == equal[k] for k in equal)
        ]

    table, top = layer.tables[pair], layer.config.analysis.top
    (quality,) = own(layer.sae_quality, split=TEST)
    variants = {row["variant"]: row for row in own(layer.reconstruction)}
    auroc = {variant: row["auroc"] for variant, row in variants.items()}
    reference = swept_reference(own(layer.interventions), variants["without_sae"])
    sweep = {row["mode"]: row for row in own(layer.interventions, k=top, error_term=False)}
    single: Row = next(iter(own(layer.single_latents)), {})
    boxes, baselines = own(layer.localization), own(layer.baselines)
    channels, cams = ([row for row in baselines if row["method"] == method] for method in ("channel", "grad_cam"))
    best = best_row(boxes) if boxes else None
    return {
        "layer": layer.name,
        "hook_name": layer.hook_name,
        "model": pair.model,
        "concept": pair.concept,
        "grid": list(table.grid),
        "d_in": table.d_in,
        "d_sae": table.d_sae,
        **{name: quality[name] for name in ("explained_variance", "l0", "dead_share")},
        "trained_l0": trained_l0(layer.sae),
        "auroc_without_sae": auroc["without_sae"],
        "auroc_with_sae": auroc["with_sae"],
        "single_latent": int(single["latent"]) if single else None,
        "single_latent_auroc": single.get("auroc"),
        "single_latent_auroc_low": single.get("auroc_low"),
        "single_latent_auroc_high": single.get("auroc_high"),
        "recovered": recovered(sweep["activate"]["auroc"], reference),
        "removal_excess": sweep["deactivate"]["random_auroc_mean"] - sweep["deactivate"]["auroc"],
        "best_latent": best["latent"] if best else None,
        "best_latent_ap": _precision(boxes),
        "best_channel_ap": _precision(channels),
        "gradcam_ap": _precision(cams),
    }


def _precision(rows: list[Row]) -> float | None:
    """The best average precision; 0 where nothing was found, None where nothing was looked for."""
    best = best_row(rows) if rows else None
    return None if not rows else best["average_precision"] if best else 0.0


def _checkpoints(layer: LayerStudy) -> list[dict[str, str]]:
    study = layer.study
    files = [(pair.key, file) for pair in study.pairs for file in study.classifier_files[pair]]
    if layer.sae_file is not None:
        files.append(("sae", layer.sae_weights))
    return [
        {"name": name, "file": file.name, "sha256": sha256_of_file(classifier_weights(file))} for name, file in files
    ]


def _data(study: StudyInputs) -> Row:
    config, splits, concepts = study.config.data, [], []
    boxed = study.all_images.concepts
    unit, where = config.evaluation_unit, f"the dataset {study.all_images.name}"
    for split in (TRAINING, TEST):
        part = study.split(split)
        several = {"n_units": count_units(part.images, unit, where)} if unit.has_several_images else {}
        splits.append(
            {
                "split": split,
                "n_images": len(part),
                "n_patients": int(part.images["patient_id"].nunique()),
                "n_rows": len(part.findings),
                **several,
            }
        )
        for concept in study.config.concepts:
            labels = (part.findings if config.unit == "finding_row" else part.images)[concept].to_numpy()
            patients, n = part.images.loc[part.images[concept] > 0, "patient_id"], len(labels)
            if several:
                everywhere = np.ones(len(part.images), dtype=np.bool_)
                units = grouped_rows(part.images, study.concepts[concept], chosen=everywhere, unit=unit, where=where)
                labels, patients = units.labels, pd.Series(units.patient_ids[units.labels > 0])
                n = several["n_units"]
            positive = part.findings[part.findings[concept] > 0]
            concepts.append(
                {
                    "concept": concept,
                    "split": split,
                    "n_positive": int((labels > 0).sum()),
                    "n_positive_patients": int(patients.nunique()),
                    "n_images": n,
                    **({"n_missing": missing} if (missing := n - int((labels >= 0).sum())) else {}),
                    "n_boxes": int(positive["xmin"].notna().sum()) if concept in boxed else 0,
                }
            )
    n_not_used = int((~study.dataset.images["split"].isin((TRAINING, TEST))).sum())
    quarantine = study.quarantine
    hidden = [reason.replace(image_id, "…") for image_id, reason in quarantine.itertuples(index=False, name=None)]
    reasons = pd.Series(hidden, dtype=object).value_counts().sort_index()
    # Of real patients the report says how many and why, not who; the quarantine file has the list.
    listed = [{"reason": str(reason), "n": int(n)} for reason, n in reasons.items()]
    if config.phantom:
        listed = [{str(key): value for key, value in row.items()} for row in quarantine.to_dict("records")]
    return {
        "image_size": list(config.image_size),
        "unit": str(unit),
        "splits": splits,
        "about": asdict(config.about),
        "vocabulary": study.concepts.to_json(),
        "concepts": concepts,
        **({"n_not_used": n_not_used} if n_not_used else {}),
        "n_quarantined": len(quarantine),
        "quarantine": listed,
        **study.boxes,
        "suspects": [
            {"suspicion": str(kind), "n": int(n)}
            for kind, n in study.suspects["suspicion"].value_counts().sort_index().items()
        ],
    }


def _models(layer: LayerStudy) -> list[Row]:
    described = []
    for pair in layer.study.pairs:
        model, train = layer.study.facts(pair), layer.study.model_config(pair.model).train
        described.append(
            {
                "name": pair.model,
                "concept": pair.concept,
                "architecture": model.architecture,
                "library": model.kind,
                "preprocessing": model.preprocessing.describe(),
                "kind": train.kind if train is not None else pair.model,
                "hook_name": layer.hook_name,
                "grid": list(layer.tables[pair].grid),
                "d_in": layer.tables[pair].d_in,
                "readout": layer.tables[pair].readout_kind,
            }
        )
    return described


def _sae(layer: LayerStudy) -> Row:
    cfg, config, given = layer.sae.cfg, layer.config.sae, layer.sae_source
    return {
        "source": given.name if given is not None else TRAINED_HERE,
        "published": given.published() if given is not None else None,
        "architecture": cfg.architecture(),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "sha256": sha256_of_file(layer.sae_weights),
        "tensors": tensors_fingerprint(layer.sae.state_dict()),
        "trained_l0": trained_l0(layer.sae),
        "latent_map": map_of_layer(layer)[1],
        "trained_on": f"{config.train.model}/{config.train.concept}" if config.train is not None else None,
        "training": None
        if config.train is None
        else {
            "share_of_positions": config.train.fraction if config.train.count is None else None,
            "positions_per_image": config.train.count,
            **config.train.training.acting(),
        },
    }
