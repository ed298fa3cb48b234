"""A shortcut whose truth is known: a lead letter that goes with masses in training images and not in test images.

    python benchmarks/planted_confounder.py [--seeds 10] [--patients 300] [--folder planted]

Phantoms (CC and MLO of one breast) are drawn once; the letter agrees with the mass in 90 % of the training images and
in 50 % of the test images. Each seed makes a network (trained, or with --kind
pretrained of random frozen weights with a fitted head) and an SAE of its final map on the training images, and asks
`confounders` for shortcuts, with the letter among the covariates and without knowing of it. The truth is told by pairs
of phantoms that differ in the letter or in a mass alone: a latent is of the letter where it answers to it (q at most
0.05) and more than to a mass. Precision is the share of the flagged latents that are; recall the share, of those that
carry at least 5 % of what the letter does to the logit, that are flagged. Then the flagged latents are taken out
(`repair`), and the AUROC where the letter and the mass disagree is compared with that of a network that was trained on
the same images without letters. Last, labels are exchanged among patients, and the flagged latents are counted.
Prints tables in Markdown. What was computed of a seed is kept in --folder, and a killed run continues there.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel, load_classifier, new_classifier
from mammosae_plugin.analysis import confounders, pair_responses
from mammosae_plugin.datasets import VinDrMammo, make_phantom_pairs, make_phantoms, read_pairs
from mammosae_plugin.files import read_json, write_json
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.measures.statistics import ranking_metrics
from mammosae_plugin.study.repairing import repair
from mammosae_plugin.training import ClassifierTraining, SAETraining, train_classifier, train_sae

SIZE, CONCEPT, LETTER, LEAST_SHARE = (128, 96), "Mass", "letter", 0.05
KNOWN: dict[str, Any] = {"marker": "acquisition", "view": "acquisition", "density": "patient"}
COVARIATES = {"the letter is a covariate": KNOWN, "nobody knows of it": {**KNOWN} | {}}
COVARIATES["nobody knows of it"].pop("marker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("planted"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--kind", choices=["pretrained", "finetuned"], default="finetuned")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--d-sae", type=int, default=128)
    parser.add_argument("--permutations", type=int, default=20, help="exchanges of labels, over all seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_phantom_pairs(options.folder / "pairs", n_pairs=30, attributes=[LETTER, CONCEPT], image_size=SIZE, seed=1000)
    found = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        kept = options.folder / str(seed) / "found.json"
        if not kept.exists():
            start = time.perf_counter()
            write_json(kept, one_seed(options, seed, options.folder / str(seed)))
            print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        found.append(read_json(kept))
    print_tables(found)


def one_seed(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    marked, plain = phantoms(options)
    confounded, clean = (
        trained(options, images.select(split="training"), folder / f"{name}.safetensors", seed)
        for name, images in (("confounded", marked), ("clean", plain))
    )
    table, sae = encoded(options, confounded, marked, folder)
    pairs = read_pairs(options.folder / "pairs" / "pairs.csv")
    with HookedVisionModel(load_classifier(folder / "confounded.safetensors"), ["bn2"]) as model:
        images = VinDrMammo(options.folder / "pairs", image_size=SIZE)
        of_pairs = encode_latents(model, sae, images, folder / "of_pairs", heads={}, batch_size=16, peaks=0)
    truth = truths(of_pairs, pairs, table)
    result: dict[str, Any] = {"n_live": len(table.live_latents("test"))}
    result["n_carriers"] = int(truth["carries"].sum())
    rows = table.rows(CONCEPT, split="test")
    disagree = table.images["marker"].to_numpy()[rows.image_rows] != rows.labels

    def auroc(logits: np.ndarray, chosen: np.ndarray) -> float:
        return float(ranking_metrics(logits[chosen], rows.labels[chosen]).auroc)

    own = table.logits(CONCEPT)[rows.image_rows]
    others = logits_of(clean, marked)[rows.image_rows]
    result["auroc"] = {
        "confounded": [auroc(own, ~disagree), auroc(own, disagree)],
        "clean": [auroc(others, ~disagree), auroc(others, disagree)],
    }
    repaired = folder / "confounded.safetensors"
    for name, covariates in COVARIATES.items():
        verdicts = confounders(table, CONCEPT, covariates=covariates, seed=seed)
        flagged = verdicts.loc[verdicts["verdict"] == "shortcut", "latent"].tolist()
        carriers = set(truth.index[truth["carries"]])
        result[name] = {
            "verdicts": verdicts["verdict"].value_counts().to_dict(),
            "n_flagged": len(flagged),
            "n_right": int(truth["of_letter"].reindex(flagged, fill_value=False).sum()),
            "n_found": len(carriers & set(flagged)),
            "share_of_effect": float(truth["share"].reindex(flagged, fill_value=0).sum()),
            "concept_called": int((verdicts["verdict"] == "concept").sum()),
        }
        if flagged:
            done = repair(table, load_classifier(repaired), sae, flagged, head=CONCEPT, n_bootstrap=0)
            after = logits_of(done.classifier, marked)[rows.image_rows]
        else:
            after = own
        result["auroc"][name] = [auroc(after, ~disagree), auroc(after, disagree)]
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(max(1, options.permutations // options.seeds)):
        exchanged = permuted(table, rng)
        verdicts = confounders(exchanged, CONCEPT, covariates=KNOWN, seed=seed)
        shares.append(float((verdicts["verdict"] == "shortcut").mean()))
    result["permuted"] = shares
    return result


def phantoms(options: argparse.Namespace) -> tuple[VinDrMammo, VinDrMammo]:
    """Images with letters, and the same without."""
    shared: dict[str, Any] = {
        "n_patients": options.patients,
        "images_per_patient": 2,
        "image_size": SIZE,
        "test_share": 0.5,
        "seed": 100,
        "mass_share": 0,
        "calcification_share": 0,
        "other_share": 0,
        "finding_shares": {CONCEPT: 0.5},
    }
    marked, plain = options.folder / "marked", options.folder / "plain"
    make_phantoms(marked, **shared, marker=LETTER, marker_finding=CONCEPT, marker_agreement=(0.9, 0.5))
    make_phantoms(plain, **shared)
    return VinDrMammo(marked, image_size=SIZE), VinDrMammo(plain, image_size=SIZE)


def trained(options: argparse.Namespace, images: VinDrMammo, path: Path, seed: int) -> Any:
    own = {"epochs": options.epochs, "lr": 2e-3, "batch_size": 32, "weight_decay": 1e-3, "augmentation": "flips"}
    config = ClassifierTraining(kind=options.kind, seed=seed, **(own if options.kind == "finetuned" else {"l2": 10.0}))
    if not path.exists():
        train_classifier(new_classifier("test_efficientnet", 0, seed=seed), images, CONCEPT, path, config)
    return load_classifier(path)


def encoded(
    options: argparse.Namespace, classifier: Any, images: VinDrMammo, folder: Path
) -> tuple[LatentTable, SAE[Any]]:
    head = classifier.classifier
    with HookedVisionModel(classifier, ["bn2"]) as model:
        store = extract_activations(
            model, images.select(split="training"), folder / "rows", hook_name="bn2", batch_size=16
        )
        config = SAETraining(
            architecture="topk", k=8, d_sae=options.d_sae, epochs=30, batch_size=256, lr=2e-3, dead_feature_window=100
        )
        sae = train_sae(store, folder / "sae", config)
        table = encode_latents(
            model, sae, images, folder / "table", heads={CONCEPT: head}, batch_size=16, peaks=0,
            map_latents=range(options.d_sae),
        )  # fmt: skip
    shutil.rmtree(folder / "rows")
    return table, sae


def truths(of_pairs: LatentTable, pairs: pd.DataFrame, table: LatentTable) -> pd.DataFrame:
    """By latent: whether it is of the letter, and its share of what the letter does to the logit."""
    answers = pair_responses(of_pairs, pairs, statistic="mean", n_bootstrap=0, n_permutations=0).latents
    by_latent = {name: own.set_index("latent") for name, own in answers.groupby("attribute")}
    letter, mass = by_latent[LETTER], by_latent[CONCEPT]
    effect = np.abs(letter["response"] * table.readout(CONCEPT).weight[letter.index, 0])
    found = pd.DataFrame({"share": effect / effect.sum()})
    found["of_letter"] = (letter["q"] <= 0.05) & (letter["response"].abs() > mass["response"].abs())
    found["carries"] = found["of_letter"] & (found["share"] >= LEAST_SHARE)
    return found


@torch.inference_mode()
def logits_of(classifier: Any, images: VinDrMammo) -> np.ndarray:
    found = [classifier(images[at]["image"][None]).double().numpy() for at in range(len(images))]
    return np.concatenate(found)


def permuted(table: LatentTable, rng: np.random.Generator) -> LatentTable:
    """The same table with the labels of breasts exchanged among patients."""
    other = LatentTable(table.folder)
    images = table.images.copy()
    for split in table.splits:
        rows = np.flatnonzero(images["split"] == split)
        patients, number = np.unique(images["patient_id"].to_numpy()[rows].astype(str), return_inverse=True)
        label = pd.Series(images[CONCEPT].to_numpy()[rows]).groupby(number).max().to_numpy()
        images.loc[rows, CONCEPT] = rng.permutation(label)[number]
    other.images = images
    return other


def print_tables(found: list[dict[str, Any]]) -> None:
    n = len(found)
    print("\n| | flagged per seed | precision | recall | share of the letter's effect flagged |\n|---|---|---|---|---|")
    for name in COVARIATES:
        own = [each[name] for each in found]
        flagged, right = sum(each["n_flagged"] for each in own), sum(each["n_right"] for each in own)
        carriers, hit = sum(each["n_carriers"] for each in found), sum(each["n_found"] for each in own)
        share = np.mean([each["share_of_effect"] for each in own])
        print(
            f"| {name} | {flagged / n:.1f} | {right / max(flagged, 1):.2f} ({right} of {flagged}) | "
            f"{hit / max(carriers, 1):.2f} ({hit} of {carriers}) | {share:.2f} |"
        )
    print("\n| network | AUROC, letter and mass agree | they disagree | less than without letters |\n|---|---|---|---|")
    clean = np.array([each["auroc"]["clean"] for each in found])
    for name in ("confounded", *COVARIATES, "clean"):
        own = np.array([each["auroc"][name] for each in found])
        behind = clean[:, 1] - own[:, 1]
        error = behind.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        said = {"confounded": "as trained", "clean": "trained without letters"}.get(name, f"repaired, {name}")
        print(f"| {said} | {own[:, 0].mean():.3f} | {own[:, 1].mean():.3f} | {behind.mean():.3f} ± {error:.3f} |")
    permuted = np.concatenate([each["permuted"] for each in found])
    print(f"\nFlagged under {len(permuted)} exchanges of labels: {permuted.mean():.1%} (most {permuted.max():.1%})")
    print(f"Live latents: {np.mean([each['n_live'] for each in found]):.0f}; seeds: {n}")


if __name__ == "__main__":
    main()
