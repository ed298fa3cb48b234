"""SAE recipes side by side on phantoms, at one L0: explained variance, dead latents, AUROC cost, localization.

    python benchmarks/recipes.py [--layer layer_10] [--d-sae 1024] [--sparsity 6e-3] [--epochs 16] [--only gated topk]

A small network learns masses and calcifications on phantoms; SAEs of every recipe are trained on its training images
at one layer. The paper's recipe at the lambda given sets L0. The others get it by k or, where k does not set it, by a
search for the lambda that gives it to 10 % on the training rows, of three trainings at most.
Everything is judged on the test images; a latent is dead if it fires at no position of any training image. "Best AP"
is, as in Table 2 of the paper, of the ten best latents of class 1 by their score on the training images, the mean of
both findings. Prints a table in Markdown. Files are kept in --folder, and a killed run continues there.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.adapters import HookedVisionModel, load_mammo_clip, new_classifier
from mammosae_plugin.analysis.reconstruction import reconstruction_metrics, reconstruction_quality
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.files import read_json, write_json
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.localization import localize
from mammosae_plugin.probing import class_mean_latents, rank_latents
from mammosae_plugin.training import ClassifierTraining, SAETraining, train_classifier, train_sae
from mammosae_plugin.training.metrics import read_metrics

CONCEPTS = ("Mass", "Suspicious_Calcification")
TOLERANCE, SEARCH_STEPS, TOP = 0.1, 3, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("recipes"))
    parser.add_argument("--layer", default="layer_10")
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--sparsity", type=float, default=6e-3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--classifier-epochs", type=int, default=12)
    parser.add_argument("--phantoms", type=Path, help="phantoms that are already there, of 256 x 160")
    parser.add_argument("--classifier", type=Path, help="a classifier of both findings that is already trained")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="some of the recipes")
    options = parser.parse_args()

    images = VinDrMammo(phantoms(options), image_size=(256, 160))
    training = images.select(split="training")
    classifier = trained_classifier(options, training)
    work = options.folder / f"{options.layer}-{options.d_sae}-{options.sparsity:g}-{options.epochs}"
    rows: list[tuple[str, list[dict[str, float]]]] = []
    with HookedVisionModel(classifier, [options.layer]) as model:
        hook_name = model.resolve_hook_name(options.layer)
        store = extract_activations(
            model, training, options.folder / "rows" / options.layer, hook_name=hook_name, batch_size=8
        )
        paper = SAETraining(**shared_settings(options, store.n_rows), sparsity=options.sparsity)
        train_sae(store, work / "paper" / "0" / "0", paper)
        l0 = read_metrics(work / "paper" / "0" / "0" / "metrics.jsonl")[-1]["l0"]
        for name, settings in recipes(options, paper, l0).items():
            if options.only and name not in options.only:
                continue
            results = []
            for seed in range(options.seeds):
                folder = work / name / str(seed)
                sae, best, sparsity = at_l0(store, folder, settings.model_copy(update={"seed": seed}), l0)
                results.append({**judged(model, sae, images, best), "lambda": sparsity})
            rows.append((name, results))
            print_table(rows[-1:], header=len(rows) == 1)


def phantoms(options: argparse.Namespace) -> Path:
    if options.phantoms:
        return options.phantoms
    folder = options.folder / "phantoms"
    if not (folder / "vindr_detection_v1_folds.csv").exists():
        make_phantoms(
            folder,
            n_patients=options.patients,
            images_per_patient=2,
            image_size=(256, 160),
            mass_share=0.5,
            calcification_share=0.5,
            seed=0,
        )
    return folder


def trained_classifier(options: argparse.Namespace, training: VinDrMammo) -> Any:
    if options.classifier:
        return load_mammo_clip(options.classifier)
    config = ClassifierTraining(
        kind="finetuned", epochs=options.classifier_epochs, lr=2e-3, weight_decay=1e-3, augmentation="flips"
    )
    return train_classifier(
        new_classifier("tinynet_e", 0, seed=0), training, CONCEPTS, options.folder / "classifier.safetensors", config
    )


def shared_settings(options: argparse.Namespace, n_rows: int) -> dict[str, Any]:
    epoch = n_rows // options.batch_size
    return {
        "d_sae": options.d_sae,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "normalize_activations": "expected_average_only_in",
        "dead_feature_window": epoch,
        "log_every": epoch,
        "evaluate_every": 4 * epoch,
        "checkpoint_every": 2 * epoch,
    }


def recipes(options: argparse.Namespace, paper: SAETraining, l0: float) -> dict[str, SAETraining]:
    """Settings of every recipe."""
    shared = paper.model_dump(exclude={"sparsity"})
    first_guess = {"sparsity": paper.sparsity}
    resampled = {"resample_epochs": max(2, options.epochs / 8)}
    at_rows = {"init": "data_points", "init_bias": "geometric_median"}
    whole, k = max(1, round(l0)), round(l0, 1)
    own: dict[str, dict[str, Any]] = {
        "paper": first_guess,
        "paper, resampled": first_guess | resampled,
        "paper, resampled every epoch": first_guess
        | {"resample_epochs": 1.1, "dead_feature_window": paper.dead_feature_window // 2},
        "paper, from data points": first_guess | at_rows,
        "batchtopk": {"architecture": "batchtopk", "k": k},
        "batchtopk, from data points": {"architecture": "batchtopk", "k": k} | at_rows,
        "batchtopk, short window": {"architecture": "batchtopk", "k": k}
        | {"dead_feature_window": max(2, paper.dead_feature_window // 10)},
        "batchtopk, a quarter of the latents": {"architecture": "batchtopk", "k": k, "d_sae": options.d_sae // 4},
        "paper, a quarter of the latents": first_guess | {"d_sae": options.d_sae // 4},
        "topk": {"architecture": "topk", "k": whole},
        "topk, a quarter of the latents": {"architecture": "topk", "k": whole, "d_sae": options.d_sae // 4},
        "matryoshka": {"architecture": "matryoshka_batchtopk", "k": k},
        "jumprelu": {"architecture": "jumprelu", "k": k, "jumprelu_threshold": 0.5, "jumprelu_bandwidth": 0.5}
        | {"sparsity": paper.sparsity / 10, "pre_act_loss": 3e-6},
        "matryoshka, a quarter of the latents": {"architecture": "matryoshka_batchtopk", "k": k}
        | {"d_sae": options.d_sae // 4},
        "gated": {"architecture": "gated"} | first_guess,
        "matching pursuit": {"architecture": "matching_pursuit", "k": whole},
    }
    return {name: SAETraining(**(shared | settings)) for name, settings in own.items()}


def at_l0(store: ActivationStore, folder: Path, config: SAETraining, l0: float) -> tuple[Any, Path, float]:
    """An SAE of the settings whose L0 is the one asked for, its folder, and the lambda that gives it.

    L0 falls with lambda, about as a power of it; the search is a bisection in log lambda once both sides are known.
    """
    low, high, sparsity = 0.0, math.inf, config.sparsity
    best: tuple[float, Any, Path, float] | None = None
    k_sets_it = config.k is not None
    for number in range(1 if k_sets_it else SEARCH_STEPS):
        tried = folder / str(number)
        sae = train_sae(store, tried, config.model_copy(update={"sparsity": sparsity}))
        excess = max(read_metrics(tried / "metrics.jsonl")[-1]["l0"], 1e-3) / l0
        if best is None or abs(math.log(excess)) < best[0]:
            best = (abs(math.log(excess)), sae, tried, sparsity)
        if abs(math.log(excess)) <= TOLERANCE:
            break
        low, high = (sparsity, high) if excess > 1 else (low, sparsity)
        sparsity = math.sqrt(low * high) if low > 0 and math.isfinite(high) else sparsity * excess
    assert best is not None
    return best[1:]


def judged(model: HookedVisionModel, sae: Any, images: VinDrMammo, folder: Path) -> dict[str, float]:
    kept = folder / "judged.json"
    if not kept.exists():
        linear = model.model.classifier
        heads = {name: one_output(linear, number) for number, name in enumerate(CONCEPTS)}

        def best_latents(table: LatentTable) -> list[int]:
            return sorted({int(latent) for name in CONCEPTS for latent in ten_best(table, name)})

        table = encode_latents(
            model, sae, images, folder / "table", heads=heads, map_latents=best_latents, batch_size=8
        )
        quality = reconstruction_quality(table, "test")
        costs, precisions = [], []
        for name in CONCEPTS:
            metrics = reconstruction_metrics(table, name, n_bootstrap=0).set_index("variant")
            costs.append(-float(metrics.loc["difference", "auroc"]))
            precisions.append(localize(table, ten_best(table, name), name)["average_precision"].max())
        write_json(
            kept,
            {
                "l0": quality.l0,
                "explained_variance": quality.explained_variance,
                "dead_share": reconstruction_quality(table, "training").dead_share,
                "auroc_cost": float(np.mean(costs)),
                "best_ap": float(np.mean(precisions)),
            },
        )
    found: dict[str, float] = read_json(kept)
    return found


def one_output(linear: nn.Linear, number: int) -> nn.Linear:
    head = nn.Linear(linear.in_features, 1)
    head.load_state_dict({"weight": linear.weight[number : number + 1], "bias": linear.bias[number : number + 1]})
    return head


def ten_best(table: LatentTable, concept: str) -> np.ndarray:
    return rank_latents(class_mean_latents(table, concept, score="centered_mean")).indices[1, :TOP]


def print_table(rows: list[tuple[str, list[dict[str, float]]]], *, header: bool) -> None:
    if header:
        print("| recipe | L0 | explained variance | dead latents | AUROC cost | best AP | lambda |")
        print("|---|---|---|---|---|---|---|", flush=True)
    for name, results in rows:
        mean = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
        print(
            f"| {name} | {mean['l0']:.1f} | {mean['explained_variance']:.4f} | {100 * mean['dead_share']:.1f} % | "
            f"{mean['auroc_cost']:+.4f} | {mean['best_ap']:.3f} | {mean['lambda']:.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
