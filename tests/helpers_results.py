"""Builders of a synthetic study: what was found at a layer, class means, and phantom-like heatmap panels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.findings.layers import read_layers, write_layers
from mammosae_plugin.report.page import render_pages
from mammosae_plugin.visualization import HeatmapPanels

MODELS = ("pretrained", "finetuned")
CONCEPTS = ("Mass", "Suspicious_Calcification")
KS = (0, 1, 5, 10, 50, 100, 250, 512)
D_SAE = 512
_AUROC = {
    ("pretrained", "Mass"): 0.787,
    ("finetuned", "Mass"): 0.913,
    ("pretrained", "Suspicious_Calcification"): 0.842,
    ("finetuned", "Suspicious_Calcification"): 0.968,
}


def synthetic_results(
    *,
    paper_setting: bool = False,
    data_kind: str = "phantom",
    include_images: bool = False,
    seed: int = 0,
    baselines: bool = False,
    layers: Sequence[str] = (),
) -> dict[str, Any]:
    """Results of two models on two concepts with plausible numbers, as a study finds them at a layer.

    With `baselines` there are raw channels and Grad-CAM; `layers` are the layers of the study, the last one primary.
    """
    rng = np.random.default_rng(seed)
    pairs = [(model, concept) for concept in CONCEPTS for model in MODELS]
    results: dict[str, Any] = {
        "format_version": 1,
        "title": "Concept latents of phantom mammograms",
        "paper_setting": paper_setting,
        "data_kind": data_kind,
        "created": "2025-11-20",
        "config": {
            "title": "Concept latents of phantom mammograms",
            "concepts": list(CONCEPTS),
            "sweep": {"ks": list(KS), "n_controls": 20, "n_bootstrap": 1000},
            "report": {"include_images": include_images},
            "seed": 0,
        },
        "provenance": {
            "packages": {"mammosae-plugin": "0.1.0", "torch": "2.8.0", "sae-lens": "6.54.12", "timm": "1.0.31"},
            "checkpoints": [
                {"name": f"{model} {concept}", "file": f"{model}_{concept}.safetensors", "sha256": f"{i:064x}"}
                for i, (model, concept) in enumerate(pairs, start=11)
            ],
            "dataset_fingerprint": "c0ffee" * 10 + "abcd",
            "seed": 0,
            "python": "3.11.9",
            "platform": "Linux x86_64",
        },
        "data": {
            "image_size": [380, 228],
            "unit": "image",
            "splits": [
                {"split": "training", "n_images": 560, "n_patients": 140, "n_rows": 611},
                {"split": "test", "n_images": 240, "n_patients": 60, "n_rows": 259},
            ],
            "concepts": [
                {
                    "concept": concept,
                    "split": split,
                    "n_positive": positive,
                    "n_images": images,
                    "n_boxes": positive + 4,
                }
                for concept, split, positive, images in (
                    ("Mass", "training", 131, 560),
                    ("Mass", "test", 57, 240),
                    ("Suspicious_Calcification", "training", 118, 560),
                    ("Suspicious_Calcification", "test", 49, 240),
                )
            ],
            "n_quarantined": 3,
            "quarantine": [
                {"image_id": "bad_one.png", "reason": "constant image"},
                {"image_id": "bad_two.png", "reason": "truncated file"},
                {"image_id": "bad_three.png", "reason": "constant image"},
            ],
            "n_clipped_boxes": 5,
        },
        "models": [
            {
                "name": model,
                "concept": concept,
                "architecture": "tinynet_e",
                "kind": model,
                "hook_name": "bn2.hook_out",
                "grid": [12, 8],
                "d_in": 1280,
            }
            for model, concept in pairs
        ],
        "tables": [{"model": model, "concept": concept, "table": f"{model}-{concept}"} for model, concept in pairs],
        "sae": {
            "source": "trained in this study",
            "architecture": "standard",
            "d_in": 1280,
            "d_sae": D_SAE,
            "sha256": "5ae" * 21 + "0",
            "trained_on": "finetuned / Suspicious_Calcification",
            "training": {"epochs": 40, "learning_rate": 0.0003, "l1_coefficient": 3e-05, "n_rows": 53760},
        },
        "sae_quality": [
            {
                "model": model,
                "concept": concept,
                "split": "test",
                "explained_variance": 0.90 + 0.02 * i,
                "mse": 0.0123,
                "l0": 18.4 + i,
                "n_live": 201 + i,
                "n_dead": D_SAE - 201 - i,
                "dead_share": (D_SAE - 201 - i) / D_SAE,
                "n_positions": 240 * 96,
                "n_images": 240,
            }
            for i, (model, concept) in enumerate(pairs)
        ],
        "reconstruction": [],
        "rankings": [],
        "interventions": [],
        "localization": [],
        "named_latents": {},
        "checks": [
            {"name": "finetuned test AUROC, Mass", "value": 0.913, "threshold": 0.9, "direction": ">=", "passed": True},
            {
                "name": "AUROC lost by the SAE, Mass",
                "value": 0.023,
                "threshold": 0.02,
                "direction": "<=",
                "passed": False,
            },
        ],
    }
    for model, concept in pairs:
        _one_model(results, model, concept, rng)
    if baselines:
        results["baselines"] = [row for model, concept in pairs for row in _baselines(model, concept)]
    if layers:
        results["layer"] = {"name": layers[-1], "primary": layers[-1]}
        results["layers"] = [
            _layer(layer, number, len(layers), model, concept)
            for number, layer in enumerate(layers)
            for model, concept in pairs
        ]
    return results


def _baselines(model: str, concept: str) -> list[dict[str, Any]]:
    """Ten raw channels, which do worse than the finetuned latents, and Grad-CAM, which beats all on calcification."""
    base = {"model": model, "concept": concept, "threshold": "percentile 95", "iou_threshold": 0.25}
    counts = {"n_images": 55, "n_boxes": 61, "n_predictions": 140}
    rows = [
        base | counts | {"method": "channel", "rank": rank, "latent": 100 + rank, "average_precision": 0.01 * rank}
        for rank in range(1, 11)
    ]
    precision = 0.05 if concept == "Mass" else 0.4
    return [*rows, base | counts | {"method": "grad_cam", "rank": 1, "latent": -1, "average_precision": precision}]


def _layer(layer: str, number: int, n_layers: int, model: str, concept: str) -> dict[str, Any]:
    """A row of `layers`: later ones separate better, and the one before the last localizes best."""
    auroc = 0.62 + 0.3 * (number + 1) / n_layers - 0.04 * (model == "pretrained") - 0.03 * (concept == "Mass")
    precision = (0.31 if number == n_layers - 2 else 0.12) - 0.05 * (model == "pretrained") + 0.02 * (concept == "Mass")
    return {
        "layer": layer,
        "hook_name": f"blocks.{number}.0.hook_out",
        "model": model,
        "concept": concept,
        "grid": [96 >> number, 60 >> number],
        "d_in": 24 << number,
        "d_sae": 192 << number,
        "explained_variance": 0.91 - 0.03 * number,
        "l0": 14.2 + 3 * number,
        "dead_share": 0.21,
        "auroc_without_sae": _AUROC[model, concept],
        "auroc_with_sae": _AUROC[model, concept] - 0.004 * (n_layers - number),
        "single_latent": 17 * (number + 3),
        "single_latent_auroc": auroc,
        "single_latent_auroc_low": auroc - 0.04,
        "single_latent_auroc_high": auroc + 0.03,
        "recovered": 0.62 + 0.1 * number,
        "removal_excess": 0.08 + 0.05 * number,
        "best_latent": 11 * (number + 2),
        "best_latent_ap": precision,
        "best_channel_ap": 0.6 * precision,
        "gradcam_ap": 0.2,
    }


def whole_report(results: Any, figures_folder: Path) -> str:
    """All pages of a layer's report, one behind the other."""
    return "".join(render_pages(results, figures_folder).values())


def read_report(results_folder: Path) -> str:
    """All pages of a layer's report as they were written, one behind the other."""
    pages = [results_folder / "report.html", *sorted((results_folder / "concepts").glob("*.html"))]
    return "".join(page.read_text(encoding="utf-8") for page in pages)


def named_latent(latent: int, role: str, **changed: Any) -> dict[str, Any]:
    """A row of `named_latents` with the numbers behind the role."""
    auroc, place = {"concept": (0.83, 4.2), "background": (0.51, 0.98)}.get(role, (0.62, None))
    row = {"latent": latent, "role": role, "reason": f"as a {role} latent"}
    row |= {"n_patients_with": 57, "n_patients_without": 183, "n_firing_with": 55, "n_firing_without": 120}
    row |= {"mean_with": 0.031, "mean_without": 0.012, "fires_with": 0.96, "fires_without": 0.66}
    row |= {"auroc": auroc, "auroc_low": auroc - 0.05, "auroc_high": auroc + 0.05}
    row |= {"ablation": 0.41, "ablation_low": 0.3, "ablation_high": 0.52, "ablation_share": 0.2}
    row |= {"ablation_random": 0.08, "n_random": 99, "place": place, "n_patients_boxed": 55}
    row |= {"undefined_share": 0.0, "place_undefined_share": place and 0.0}
    return row | {f"place_{end}": place and place * by for end, by in (("low", 0.8), ("high", 1.2))} | changed


def _one_model(results: dict[str, Any], model: str, concept: str, rng: np.random.Generator) -> None:
    auroc = _AUROC[model, concept]
    with_sae = auroc - (0.0213 if model == "pretrained" else 0.0041)
    base = {"model": model, "concept": concept}
    others = {"precision": 0.31, "recall": 0.77, "f1": 0.44, "accuracy": 0.86}
    for variant, value in (("without_sae", auroc), ("with_sae", with_sae), ("difference", with_sae - auroc)):
        row = {**base, "variant": variant, "n_rows": 240, "n_positive": 57, "n_patients": 60}
        width = 0.006 if variant == "difference" else 0.031
        metrics = {"auroc": value, "average_precision": value * 0.6, **others}
        if variant == "difference":
            metrics = dict.fromkeys(metrics, 0.0) | {"auroc": value, "average_precision": value * 0.6}
        for metric, point in metrics.items():
            low, high = point - width, point + width
            if variant != "difference":
                low, high = max(low, 0.0), min(high, 1.0)
            row |= {metric: point, f"{metric}_low": low, f"{metric}_high": high}
        results["reconstruction"].append(row)

    latents = rng.permutation(D_SAE)[:40]
    results["named_latents"][f"{model}/{concept}"] = [
        *(named_latent(int(latent), "concept") for latent in latents[:5]),
        *(named_latent(int(latent), "background") for latent in latents[20:23]),
    ]
    for class_id, chosen in ((0, latents[20:40]), (1, np.concatenate([latents[:8], latents[20:32]]))):
        scores = np.sort(rng.gamma(2.0, 0.4, 20))[::-1]
        results["rankings"].append(
            {
                **base,
                "score": "mean",
                "class": class_id,
                "latents": [int(latent) for latent in chosen],
                "scores": [float(score) for score in scores],
                "test_mean_activation": [float(score * 0.95) for score in scores],
            }
        )
    for error_term in (False, True):
        for mode in ("activate", "deactivate"):
            for k in KS:
                group = 1 - np.exp(-k / 3)
                random = 1 - np.exp(-k / 90)
                left, left_random = (group, random) if mode == "activate" else (1 - group, 1 - random)
                row = {
                    **base,
                    "error_term": error_term,
                    "mode": mode,
                    "k": k,
                    "n_latents": min(2 * k, D_SAE),
                    "n_live": min(2 * k, 205),
                }
                value = 0.5 + (with_sae - 0.5) * left
                chance = 0.5 + (with_sae - 0.5) * left_random
                for metric, point in {"auroc": value, "average_precision": value * 0.6, **others}.items():
                    row |= {
                        metric: point,
                        f"{metric}_low": max(point - 0.03, 0),
                        f"{metric}_high": min(point + 0.03, 1),
                    }
                for kind, center in (("random", chance), ("mass", 0.6 * chance + 0.4 * value)):
                    row |= {
                        f"{kind}_auroc_mean": center,
                        f"{kind}_auroc_low": center - 0.06,
                        f"{kind}_auroc_high": min(center + 0.05, 0.99),
                    }
                if k == 0:
                    row |= {f"mass_auroc_{name}": None for name in ("mean", "low", "high")}
                results["interventions"].append(row)
    for rank in range(1, 11):
        precision = 0.316 if rank == 2 and model == "finetuned" else 0.002 * (11 - rank)
        results["localization"].append(
            {
                **base,
                "threshold": "percentile 95",
                "iou_threshold": 0.25,
                "rank": rank,
                "latent": int(latents[rank - 1]),
                "n_images": 55,
                "n_boxes": 61,
                "average_precision": precision,
                "n_predictions": 140,
            }
        )


def synthetic_class_means(results: dict[str, Any], seed: int = 0) -> pd.DataFrame:
    """Class means of 205 live latents per model, heavy-tailed, named concept latents above the diagonal."""
    rng = np.random.default_rng(seed)
    frames = []
    for row in results["models"]:
        named = results["named_latents"][f"{row['name']}/{row['concept']}"]
        rest = np.setdiff1d(np.arange(D_SAE), [entry["latent"] for entry in named])
        latents = np.concatenate([[entry["latent"] for entry in named], rng.permutation(rest)[: 205 - len(named)]])
        mean_0 = rng.lognormal(-5.5, 1.9, len(latents))
        mean_1 = mean_0 * rng.lognormal(0.0, 0.35, len(latents))
        for position, entry in enumerate(named):
            mean_0[position] = 0.02 * (1 + position) ** 1.5 if entry["role"] == "concept" else 1.0 + 0.4 * position
            mean_1[position] = mean_0[position] * (9 if entry["role"] == "concept" else 1.05)
        mean_0[-3:] = 0.0
        order = np.argsort(latents)
        frames.append(
            pd.DataFrame(
                {
                    "model": row["name"],
                    "concept": row["concept"],
                    "latent": latents[order],
                    "score_mean_0": mean_0[order],
                    "score_mean_1": mean_1[order],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def synthetic_panels(
    results: dict[str, Any],
    *,
    image_size: tuple[int, int] = (380, 228),
    n_images: int = 3,
    n_latents: int = 10,
    seed: int = 0,
) -> list[HeatmapPanels]:
    """Breast-shaped grey images with a bright mass each, and maps of which the first follows the mass."""
    rng = np.random.default_rng(seed)
    height, width = image_size
    y, x = np.mgrid[0:height, 0:width]
    grid = (height // 32, width // 32)
    panels = []
    for row in results["models"]:
        ranking = next(
            r for r in results["rankings"] if (r["model"], r["concept"], r["class"]) == (row["name"], row["concept"], 1)
        )
        images, boxes, maps = [], [], np.zeros((n_images, n_latents, *grid), dtype=np.float32)
        for i in range(n_images):
            breast = (x / (0.8 * width)) ** 2 + ((y - height / 2) / (0.47 * height)) ** 2 < 1
            tissue = 70 + 30 * np.sin(x / 17 + i) * np.cos(y / 23) + rng.normal(0, 6, image_size)
            cx, cy, radius = width * (0.3 + 0.1 * i), height * (0.4 + 0.08 * i), width * 0.07
            mass = 110 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * (radius / 1.6) ** 2))
            images.append((np.clip(tissue + mass, 0, 255) * breast).astype(np.uint8))
            boxes.append(np.array([[cx - radius, cy - radius, cx + radius, cy + radius]], dtype=np.float32))
            gy, gx = (np.mgrid[0 : grid[0], 0 : grid[1]] + 0.5) * 32
            for latent in range(n_latents):
                spread = 30 + 25 * latent
                peak = np.exp(-((gx - cx - 9 * latent) ** 2 + (gy - cy) ** 2) / (2 * spread**2))
                maps[i, latent] = np.maximum(peak * (3 - 0.2 * latent) - 0.2 * (latent % 3), 0)
            maps[i, n_latents - 1 - i] = 0
        panels.append(
            HeatmapPanels(
                model=row["name"],
                concept=row["concept"],
                images=images,
                heatmaps=maps,
                boxes=boxes,
                latents=ranking["latents"][:n_latents],
                activations=maps.mean(axis=(2, 3)),
                titles=[f"phantom {i + 1}\n{'L' if i % 2 else 'R'} CC" for i in range(n_images)],
            )
        )
    return panels


def write_study(results: dict[str, Any], folder: Path, *others: dict[str, Any]) -> Path:
    """Write the findings of a study of a layer, or of several, into the study's `folder`, and give it back."""
    found = {one.get("layer", {"name": "bn2"})["name"]: one for one in (results, *others)}
    write_layers(found, findings_of(folder))
    return folder


def findings_of(folder: Path) -> Path:
    """Where the findings of the study in `folder` lie."""
    return folder / "results" / "findings"


def edit_study(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the study in `folder` found at each layer."""
    found = read_layers(findings_of(folder))
    for results in found.values():
        change(results)
    write_layers(found, findings_of(folder))
