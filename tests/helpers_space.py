"""Synthetic findings with realistic content, and the headless browser that looks at them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_results import named_latent

from mammosae_plugin.hub.findings import Findings
from mammosae_plugin.schema.findings import CONCEPT, JSON_COLUMNS, SCHEMAS, parquet_path

Row = dict[str, Any]

KS = (0, 1, 5, 10, 50, 100, 250, 512)
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
_AUROC = {"Mass": 0.79, "Suspicious_Calcification": 0.93, "Architectural_Distortion": None}


def chromium() -> str | None:
    """The browser of this machine, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for found in map(shutil.which, names) if found), None)


def running_browser() -> Iterator[Any]:
    """That browser, for as long as a fixture lasts; tests that need it are skipped where it is not there."""
    if chromium() is None:
        pytest.skip("no Chromium on this machine: the pages cannot be looked at")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser (pip install '.[dev]')"
    )
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        yield running
        running.close()


def read_data(folder: Path, name: str) -> Any:
    """The JSON value of one data file of a Space."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="utf-8")
    start = f'mammosae.data["{name}"] = '
    assert text.startswith(start)
    assert text.endswith(";\n")
    return json.loads(text[len(start) : -2])


def synthetic_findings(
    *,
    d_sae: int = 512,
    layers: Sequence[str] = ("blocks_4", "final"),
    notes: Sequence[Row] | None = None,
    sae: str = "a",
    seed: int = 0,
    noise: float = 0.0,
    origin: str = "somebody/phantom-findings",
    on_hub: bool = True,
    title: str = "Concept latents of phantom mammograms",
) -> Findings:
    """Findings of two models on two concepts, and a third concept whose positive class was suppressed.

    `pretrained` shares a latents table between its concepts, `finetuned` has one per concept. With the same `seed`, and
    some `noise`, the findings are those of a replication.
    """
    encoders = {
        "pretrained": ("pretrained", ["Mass", "Suspicious_Calcification", "Architectural_Distortion", "density"]),
        "finetuned/Mass": ("finetuned", ["Mass"]),
        "finetuned/Suspicious_Calcification": ("finetuned", ["Suspicious_Calcification"]),
    }
    latents, concepts, models, interventions, reconstruction, localization = ([] for _ in range(6))
    named: dict[str, dict[str, list[Row]]] = {layer: {} for layer in layers}
    for i, layer in enumerate(layers):
        for j, (encoder, (model, names)) in enumerate(encoders.items()):
            rng = np.random.default_rng([seed, i, j])
            other = np.random.default_rng([seed + 1000, i, j])
            table, parts = _table(rng, other, d_sae, names, noise, linear=layer == layers[-1])
            place = {"layer": layer, "hook_name": "bn2.hook_out" if layer == layers[-1] else "blocks.4.hook_out"}
            latents.append(table.assign(**place, encoder=encoder))
            for concept, part in parts.items():
                own = part.assign(layer=layer, encoder=encoder, concept=concept)
                concepts.append(own)
                row = {"layer": layer, "model": model, "concept": concept}
                models.append(_model(row, place["hook_name"], encoder, linear=layer == layers[-1]))
                if concept != "density":
                    best = own[own["class"] == 1].sort_values("rank")["latent"].head(10).tolist()
                    auroc = _AUROC[concept]
                    interventions += _interventions(row, auroc)
                    reconstruction += _reconstruction(row, auroc)
                    localization += _localization(row, own, best, known=auroc is not None)
                    if auroc is not None:
                        named[layer][f"{model}/{concept}"] = [
                            named_latent(latent, "background" if n == 2 else "concept")
                            for n, latent in enumerate(best[:4])
                        ]
    order = ["layer", "hook_name", "encoder", "latent", "firing_rate", "max_activation", "mean_activation"]
    return Findings(
        origin=origin,
        latents=pd.concat(latents, ignore_index=True)[order].astype({"max_activation": "float32"}),
        concepts=pd.concat(concepts, ignore_index=True)[
            [*("layer", "encoder", "latent", "concept", "class", "n_images", "class_mean")]
            + [*("mean_low", "mean_high", "score", "rank")]
            + ["average_precision", "ablation_effect"]
        ].astype({"n_images": "Int64", "rank": "Int64"}),
        interventions=pd.DataFrame(interventions).astype({"k": "Int64", "n_latents": "Int64"}),
        reconstruction=pd.DataFrame(reconstruction).astype({"n_rows": "Int64"}),
        localization=pd.DataFrame(localization).astype(
            dict.fromkeys(("n_images", "n_boxes", "n_predictions", "rank"), "Int64")
        ),
        notes=_notes(notes or [], layers[-1]),
        study=_study(layers, encoders, models, named, d_sae=d_sae, sae=sae, title=title),
        repo_id=origin if on_hub else None,
    )


def synthetic_evidence(findings: Findings, *, model: str, encoder: str, concept: str, layer: str) -> pd.DataFrame:
    """Evidence on the latents of a table that fire: of every fourth the place and with it the verdict is suppressed."""
    own = findings.latents.query("layer == @layer and encoder == @encoder and firing_rate > 0").reset_index(drop=True)
    rng, n = np.random.default_rng(7), len(own)
    frame = pd.DataFrame(index=range(n), columns=SCHEMAS["evidence"].names, dtype=object)
    frame[["layer", "model", "concept"]] = layer, model, concept
    frame["latent"] = own["latent"]
    words = np.array(["concept", "context", "shortcut", "unclear"])[rng.integers(0, 4, n)]
    hidden = np.arange(n) % 4 == 0
    frame["verdict"] = np.where(hidden, None, words)
    frame["reason"] = np.where(hidden, None, "it goes with the concept, but does not lie in the boxes")
    frame["statistic"] = np.where(rng.random(n) < 0.5, "max", "mean")
    for name in ("auroc", "reliance"):
        frame[name] = rng.random(n).round(6)
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - 0.05, frame[name] + 0.05
    frame["place"] = np.where(hidden, np.nan, 3 * rng.random(n))
    frame["place_reason"] = np.where(hidden, None, "")
    frame["auroc_q"], frame["n_tests"] = rng.random(n), n
    frame["covariate"] = np.array(["site", "age", ""])[rng.integers(0, 3, n)]
    frame["covariate_kind"] = frame["covariate"].map({"site": "acquisition", "age": "patient", "": ""})
    frame["covariate_r"] = np.where(frame["covariate"] == "", np.nan, rng.random(n))
    frame["covariate_q"] = np.where(frame["covariate"] == "", np.nan, rng.random(n))
    return frame.astype(dict.fromkeys(("auroc", "place", "reliance", "auroc_q", "covariate_r"), float))


def _table(
    rng: np.random.Generator,
    other: np.random.Generator,
    d_sae: int,
    names: Sequence[str],
    noise: float,
    *,
    linear: bool,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Latents, a third of them dead, and what they are for each concept."""
    live = rng.random(d_sae) > 1 / 3
    rate = np.where(live, np.clip(10 ** rng.normal(-1.6, 0.7, d_sae), 1 / 240, 1), 0.0)
    strength = rng.gamma(2.0, 0.05, d_sae) * (1 + noise * other.normal(0, 0.5, d_sae) ** 2)
    latents = pd.DataFrame(
        {
            "latent": np.arange(d_sae),
            "firing_rate": rate,
            # Of a latent that fires in fewer than 5 patients the maximum is suppressed.
            "max_activation": np.where(rate * 240 >= 5, 8 * strength, np.nan),
            "mean_activation": rate * strength * 0.2,
        }
    )
    parts = {}
    for concept in names:
        counts = [140, 210, 160, 50] if concept == "density" else [429, 131]
        shares = np.array(counts) / sum(counts)
        lift = np.exp(rng.normal(0, 0.4, (len(counts), d_sae)))
        lift[-1, rng.choice(d_sae, 8, replace=False)] *= 6
        means = rate * strength * 0.2 * lift * (1 + noise * other.random((len(counts), d_sae)))
        scores = means - shares @ means
        ranks = np.empty(means.shape, dtype=np.int64)
        np.put_along_axis(ranks, np.argsort(-scores, axis=1, kind="stable"), np.arange(1, d_sae + 1)[None], axis=1)
        precision = np.full(d_sae, np.nan)
        if concept in ("Mass", "Suspicious_Calcification"):
            best = np.argsort(ranks[-1])[:10]
            precision[best] = np.sort(rng.beta(1.5, 4, 10))[::-1]
        effect = -rng.normal(2, 1, d_sae) * means[-1] if linear and len(counts) == 2 else np.full(d_sae, np.nan)
        hidden = concept == "Architectural_Distortion"
        if hidden:
            effect[:] = np.nan
        parts[concept] = pd.concat(
            pd.DataFrame(
                {
                    "latent": np.arange(d_sae),
                    "class": label,
                    "n_images": pd.array([None if hidden and label == 1 else counts[label]] * d_sae, dtype="Int64"),
                    "class_mean": np.nan if hidden and label == 1 else means[label],
                    "mean_low": np.nan if hidden and label == 1 else 0.9 * means[label],
                    "mean_high": np.nan if hidden and label == 1 else 1.1 * means[label],
                    "score": np.nan if hidden else scores[label],
                    "rank": pd.array([None] * d_sae if hidden else ranks[label], dtype="Int64"),
                    "average_precision": precision,
                    "ablation_effect": effect,
                }
            )
            for label in range(len(counts))
        )
    return latents, parts


def _model(row: Row, hook_name: str, encoder: str, *, linear: bool) -> Row:
    return {
        "layer": row["layer"],
        "encoder": encoder,
        "name": row["model"],
        "concept": row["concept"],
        "architecture": "efficientnet_b2",
        "kind": row["model"],
        "hook_name": hook_name,
        "grid": [12, 8],
        "d_in": 1408,
        "readout": "linear" if linear else "network",
    }


def _interventions(row: Row, auroc: float | None) -> list[Row]:
    rows = []
    for mode in ("activate", "deactivate"):
        for n, k in enumerate(KS):
            share = n / (len(KS) - 1)
            value = 0.5 + ((auroc or 0.5) - 0.5) * (1 - (1 - share) ** 3 if mode == "activate" else (1 - share**2))
            random = 0.5 + ((auroc or 0.5) - 0.5) * (share**2 if mode == "activate" else 1 - share**4)
            ends = {"auroc": value, "auroc_low": value - 0.05, "auroc_high": min(1, value + 0.04)}
            ends |= {"random_auroc_mean": random, "random_auroc_low": random - 0.03, "random_auroc_high": random + 0.03}
            if auroc is None:
                ends = dict.fromkeys(ends)
            rows.append({**row, "error_term": False, "mode": mode, "k": k, "n_latents": min(2 * k, 512), **ends})
    return rows


def _reconstruction(row: Row, auroc: float | None) -> list[Row]:
    rows = []
    for variant, cost in (("without_sae", 0.0), ("with_sae", 0.014)):
        value = None if auroc is None else auroc - cost
        low, high = (None, None) if value is None else (value - 0.06, value + 0.05)
        rows.append({**row, "variant": variant, "n_rows": 240, "auroc": value, "auroc_low": low, "auroc_high": high})
    return rows


def _localization(row: Row, own: pd.DataFrame, best: Sequence[int], *, known: bool) -> list[Row]:
    precision = own[own["class"] == 0].set_index("latent")["average_precision"]
    rows = []
    for threshold, factor in (("percentile 95", 1.0), ("relative 0.3", 0.8)):
        for rank, latent in enumerate(best, start=1):
            value = precision[latent] * factor if known else None
            counts = {"n_images": 58, "n_boxes": 63, "n_predictions": 70 + rank} if known else {}
            rows.append(
                {
                    **row,
                    "method": "latent",
                    "threshold": threshold,
                    "iou_threshold": 0.25,
                    "rank": rank,
                    "latent": latent,
                    "average_precision": value,
                    **{name: counts.get(name) for name in ("n_images", "n_boxes", "n_predictions")},
                }
            )
    return rows


def _notes(notes: Sequence[Row], layer: str) -> pd.DataFrame:
    usual = {
        "layer": layer,
        "encoder": "pretrained",
        "author": "Reader A",
        "label": None,
        "concept": None,
        "confidence": None,
        "created": "2026-11-20T09:30:00+00:00",
    }
    columns = ["layer", "encoder", "latent", "author", "text", "label", "concept", "confidence", "created"]
    return pd.DataFrame([{**usual, **note} for note in notes], columns=columns).astype({"confidence": "Int64"})


def _study(
    layers: Sequence[str],
    encoders: Row,
    models: list[Row],
    named: Row,
    *,
    d_sae: int,
    sae: str,
    title: str,
) -> Row:
    concepts = list(dict.fromkeys(concept for _, names in encoders.values() for concept in names))
    quality = [{"model": "pretrained", "split": "test", "explained_variance": 0.912, "l0": 31.5, "dead_share": 0.33}]
    return {
        "format_version": 1,
        "title": title,
        "created": "2026-11-20",
        "data_kind": "phantom",
        "min_group": 5,
        "layers": list(layers),
        "concepts": concepts,
        "config": {"title": title, "concepts": concepts, "analysis": {"score": "centered_mean"}, "seed": 0},
        "provenance": {"packages": {"mammosae-plugin": "0.1.0", "torch": "2.8.0"}, "seed": 0, "python": "3.11.9"},
        "data": {
            "image_size": [380, 228],
            "splits": [
                {"split": "training", "n_images": 560, "n_patients": 140},
                {"split": "test", "n_images": 240, "n_patients": 60},
            ],
            "concepts": [{"concept": "Mass", "split": "test", "n_positive": 58, "n_images": 240, "n_boxes": 63}],
        },
        "models": models,
        "sae": {
            layer: {
                "architecture": "standard",
                "d_in": 1408,
                "d_sae": d_sae,
                "sha256": f"{sae}{i}".ljust(64, "0"),
                "source": "trained in this study",
                "hook_name": "bn2.hook_out",
                "quality": quality,
            }
            for i, layer in enumerate(layers)
        },
        "named_latents": named,
    }


def write_findings(findings: Findings, folder: Path) -> Path:
    """Findings as the folder of a dataset, without its card."""
    per_class = {field.name: field.each for field in CONCEPT if field.each}
    nested: dict[tuple[Any, ...], list[Row]] = {}
    for (*place, concept), rows in findings.concepts.groupby(["layer", "encoder", "latent", "concept"], sort=False):
        rows = rows.sort_values("class")
        single = {name: _plain(rows[name].iloc[0]) for name in ("average_precision", "ablation_effect")}
        lists = {name: [_plain(value) for value in rows[column]] for name, column in per_class.items()}
        nested.setdefault(tuple(place), []).append({"concept": concept, **lists, **single})
    notes: dict[tuple[Any, ...], list[Row]] = {}
    for note in findings.notes.to_dict("records"):
        place = tuple(note.pop(name) for name in ("layer", "encoder", "latent"))
        notes.setdefault(place, []).append({name: _plain(value) for name, value in note.items()})
    latents = []
    for row in findings.latents.to_dict("records"):
        place = (row["layer"], row["encoder"], row["latent"])
        plain = {name: _plain(value) for name, value in row.items()}
        latents.append({**plain, "concepts": nested[place], "notes": notes.get(place, [])})
    study = {name: json.dumps(value) if name in JSON_COLUMNS else value for name, value in findings.study.items()}
    tables: dict[str, list[Row]] = {"latents": latents, "study": [study]}
    for config in ("interventions", "reconstruction", "localization"):
        records = getattr(findings, config).to_dict("records")
        tables[config] = [{name: _plain(value) for name, value in row.items()} for row in records]
    for config, records in tables.items():
        path = folder / parquet_path(config)
        path.parent.mkdir(parents=True)
        schema = SCHEMAS[config]
        whole = [{name: row.get(name) for name in schema.names} for row in records]
        pq.write_table(pa.Table.from_pylist(whole, schema=schema), path)
    return folder


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else value
