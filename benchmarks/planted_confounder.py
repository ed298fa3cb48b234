"""A shortcut whose truth is known: a lead letter that goes with a finding in training images and not in test images.

    python benchmarks/planted_confounder.py [--seeds 10] [--patients 500] [--folder planted]

Each seed draws phantoms (CC and MLO of one breast); the letter agrees with the finding, an architectural distortion, in
90 % of the training images and in 50 % of the test images. Its encoder learned on other phantoms, where the two are
independent, in which cells of its map distortions and letters lie, as a network that knows its domain; a head is fitted
to its frozen features on the training images, an SAE is trained on its final map there, and the seed asks `confounders`
for shortcuts, with the letter among the covariates and without knowing of it. The truth is told by pairs of phantoms
that differ in the letter or in the finding alone: a latent is of the letter where it answers to it (q at most 0.05) and
more than to the finding. Precision is the share of the flagged latents that are; recall the share, of those that carry
at least 5 % of what the letter does to the logit, that are flagged. Then the flagged latents are taken out (`repair`),
and the AUROCs where letter and finding agree and where they disagree are held against those of a head fitted on these
images without letters: how far the worse of the two lies behind. Last, labels are exchanged among patients, and the
flagged latents are counted. Prints tables in Markdown. What a seed gave is kept in --folder, and a killed run
continues there.
"""

import argparse
import shutil
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from torch import nn
from torch.nn import functional

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.backbone_classifier import BackboneClassifier
from mammosae_plugin.adapters.classifier import head_of
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.analysis import confounders, pair_responses
from mammosae_plugin.datasets import VinDrMammo, make_phantom_pairs, make_phantoms, read_pairs
from mammosae_plugin.files import read_json, write_json
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.measures.statistics import ranking_metrics
from mammosae_plugin.study.repairing import repair
from mammosae_plugin.training import ClassifierTraining, SAETraining, train_classifier, train_sae

MAP, PIXELS = "features", Preprocessing(mean=0.25, std=0.25, scale="full_range", channels=1)
PROBE = ClassifierTraining(kind="pretrained", l2=10.0)
SIZE, CONCEPT, LETTER, LEAST_SHARE = (128, 96), "Architectural_Distortion", "letter", 0.05
KNOWN: dict[str, Any] = {"marker": "acquisition", "view": "acquisition", "density": "patient"}
COVARIATES = {"the letter is a covariate": KNOWN, "nobody knows of it": {**KNOWN} | {}}
COVARIATES["nobody knows of it"].pop("marker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("planted"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=12, help="of the encoder")
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
    marker = {"marker": LETTER, "marker_finding": CONCEPT, "marker_agreement": (0.9, 0.5)}
    marked = phantoms(folder / "marked", options.patients, 100 + seed, marker)
    plain = phantoms(folder / "plain", options.patients, 100 + seed, {})
    base = taught(options, seed)
    confounded, clean = (
        train_classifier(base, images.select(split="training"), CONCEPT, folder / f"{name}.safetensors", PROBE)
        for name, images in (("confounded", marked), ("clean", plain))
    )
    table, sae = encoded(options, confounded, marked, folder)
    pairs = read_pairs(options.folder / "pairs" / "pairs.csv")
    with HookedVisionModel(confounded.network, [MAP]) as model:
        images = VinDrMammo(options.folder / "pairs", image_size=SIZE).with_preprocessing(PIXELS)
        of_pairs = encode_latents(model, sae, images, folder / "of_pairs", heads={}, batch_size=16, peaks=0)
    truth = truths(of_pairs, pairs, table)
    result: dict[str, Any] = {"n_live": len(table.live_latents("test"))}
    result["n_carriers"] = int(truth["carries"].sum())
    rows = table.rows(CONCEPT, split="test")
    disagree = table.images["marker"].to_numpy()[rows.image_rows] != rows.labels

    def auroc(logits: np.ndarray, chosen: np.ndarray) -> float:
        return float(ranking_metrics(logits[chosen], rows.labels[chosen]).auroc)

    own = table.logits(CONCEPT)[rows.image_rows]
    others = logits_of(clean, marked, table)[rows.image_rows]
    result["auroc"] = {
        "confounded": [auroc(own, ~disagree), auroc(own, disagree)],
        "clean": [auroc(others, ~disagree), auroc(others, disagree)],
    }
    never = logits_of(clean, plain, table)[rows.image_rows]
    result["auroc"]["never"] = [auroc(never, ~disagree), auroc(never, disagree)]
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
            done = repair(table, confounded, sae, flagged, head=CONCEPT, n_bootstrap=0)
            after = logits_of(done.classifier, marked, table)[rows.image_rows]
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


def encoder() -> nn.Module:
    """A small network whose last map has a cell for every 8 x 8 pixels."""
    layers: list[nn.Module] = []
    for wide, out, stride in ((1, 16, 2), (16, 32, 2), (32, 48, 2), (48, 48, 1)):
        layers += [nn.Conv2d(wide, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]
    parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict([*parts.items(), ("head", nn.Linear(48, 1))]))


def phantoms(folder: Path, patients: int, seed: int, marker: dict[str, Any]) -> VinDrMammo:
    """Two images of each patient, half of whom have the finding."""
    shares: dict[str, Any] = dict.fromkeys(("mass_share", "calcification_share", "other_share"), 0)
    make_phantoms(
        folder, n_patients=patients, images_per_patient=2, image_size=SIZE, test_share=0.5, seed=seed,
        finding_shares={CONCEPT: 0.5}, **shares, **marker,
    )  # fmt: skip
    return VinDrMammo(folder, image_size=SIZE).with_preprocessing(PIXELS)


def taught(options: argparse.Namespace, seed: int) -> BackboneClassifier:
    """An encoder that learned on phantoms of its own where the finding and letters lie, whatever goes with it."""
    own = options.folder / str(seed)
    marked = phantoms(own / "taught", options.patients, 5000 + seed, {"marker": LETTER})
    plain = phantoms(own / "taught_plain", options.patients, 5000 + seed, {})
    inputs = torch.stack([marked[at]["image"] for at in range(len(marked))])
    changed = (inputs - torch.stack([plain[at]["image"] for at in range(len(plain))])).abs()
    targets = torch.zeros(len(inputs), 2, SIZE[0] // 8, SIZE[1] // 8)
    targets[:, 1] = functional.max_pool2d(changed, 8)[:, 0] > 0.05
    at = {image_id: row for row, image_id in enumerate(marked.images["image_id"])}
    for found in marked.findings.dropna(subset=["xmin"]).itertuples():
        x, y = (torch.arange(SIZE[1] // 8) + 0.5) * 8, (torch.arange(SIZE[0] // 8) + 0.5) * 8
        inside = ((x > found.xmin) & (x < found.xmax))[None] & ((y > found.ymin) & (y < found.ymax))[:, None]
        targets[at[found.image_id], 0][inside] = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = encoder()
        tells = nn.Conv2d(48, 2, 1)
        optimizer = torch.optim.AdamW([*network.parameters(), *tells.parameters()], lr=3e-3)
        steps = options.epochs * (len(inputs) // 32)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        weight = torch.tensor([5.0, 5.0])[:, None, None]
        for _ in range(options.epochs):
            for batch in torch.randperm(len(inputs))[: len(inputs) // 32 * 32].split(32):
                told = tells(network.features(inputs[batch]))
                loss = functional.binary_cross_entropy_with_logits(told, targets[batch], pos_weight=weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    name = f"{Path(__file__).stem}:encoder"
    return BackboneClassifier(network.eval(), library="function", architecture=name, preprocessing=PIXELS)


def encoded(
    options: argparse.Namespace, classifier: BackboneClassifier, images: VinDrMammo, folder: Path
) -> tuple[LatentTable, SAE[Any]]:
    with HookedVisionModel(classifier.network, [MAP]) as model:
        store = extract_activations(
            model, images.select(split="training"), folder / "rows", hook_name=MAP, batch_size=16
        )
        config = SAETraining(
            architecture="topk", k=4, d_sae=options.d_sae, epochs=2, batch_size=512, lr=2e-3, dead_feature_window=100
        )
        sae = train_sae(store, folder / "sae", config)
        table = encode_latents(
            model, sae, images, folder / "table", heads={CONCEPT: head_of(classifier)}, batch_size=16, peaks=0,
            map_latents=range(options.d_sae),
        )  # fmt: skip
    shutil.rmtree(folder / "rows")
    return table, sae


def truths(of_pairs: LatentTable, pairs: pd.DataFrame, table: LatentTable) -> pd.DataFrame:
    """By latent: whether it is of the letter, and its share of what the letter does to the logit."""
    answers = pair_responses(of_pairs, pairs, statistic="mean", n_bootstrap=0, n_permutations=0).latents
    by_latent = {name: own.set_index("latent") for name, own in answers.groupby("attribute")}
    letter, finding = by_latent[LETTER], by_latent[CONCEPT]
    effect = np.abs(letter["response"] * table.readout(CONCEPT).weight[letter.index, 0])
    found = pd.DataFrame({"share": effect / effect.sum()})
    found["of_letter"] = (letter["q"] <= 0.05) & (letter["response"].abs() > finding["response"].abs())
    found["carries"] = found["of_letter"] & (found["share"] >= LEAST_SHARE)
    return found


@torch.inference_mode()
def logits_of(classifier: Any, images: VinDrMammo, table: LatentTable) -> np.ndarray:
    """Logits of the table's images, in its order."""
    place = {image_id: at for at, image_id in enumerate(images.images["image_id"])}
    order = [place[image_id] for image_id in table.images["image_id"]]
    return np.concatenate([classifier(images[at]["image"][None]).double().numpy() for at in order])


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
    print("\n| network | letter and finding agree | disagree | worse of the two | behind |\n|---|---|---|---|---|")
    clean = np.array([each["auroc"]["clean"] for each in found])
    for name in ("confounded", *COVARIATES, "clean", "never"):
        own = np.array([each["auroc"][name] for each in found])
        behind = clean.min(axis=1) - own.min(axis=1)
        error = behind.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        said = {
            "confounded": "as trained",
            "clean": "trained without letters",
            "never": "trained without letters, on images without letters",
        }.get(name, f"repaired, {name}")
        agree, disagree, worse = own[:, 0].mean(), own[:, 1].mean(), own.min(axis=1).mean()
        print(f"| {said} | {agree:.3f} | {disagree:.3f} | {worse:.3f} | {behind.mean():+.3f} ± {error:.3f} |")
    permuted = np.concatenate([each["permuted"] for each in found])
    print(f"\nFlagged under {len(permuted)} exchanges of labels: {permuted.mean():.1%} (most {permuted.max():.1%})")
    print(f"Live latents: {np.mean([each['n_live'] for each in found]):.0f}; seeds: {n}")


if __name__ == "__main__":
    main()
