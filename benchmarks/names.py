"""Do names by labels say what is true? On phantoms with planted latents, and with latents that were trained.

    python benchmarks/names.py [--seeds 3] [--patients 500] [--folder named]

Phantoms (CC and MLO of one breast) have a mass, calcifications or an architectural distortion in a quarter of the
patients each, and a lead letter in 30 % of the images, all independent.

*Planted*: latents that fire in a given share of the images that have one attribute, and in 5 % of the others as
strongly, are named beside as many that fire at random in 20 % of the images.

*Trained*: an encoder learns on other phantoms where findings and letters lie, an SAE is trained on its final map, and
counterfactual pairs, which differ in one attribute alone, tell what each latent answers to: the truth of a latent is
the attribute that it selectively answers to (`pair_responses`). Names are found in the phantoms' training split and
checked in test; counted is how many of these latents bear that attribute's name; strong are those that the attribute
alone moves by a fifth or more of their mean activation in the 20 strongest images. As a control every latent's
activations are dealt out among the patients, and what still has a name is counted. Prints tables.
"""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.backbone_classifier import BackboneClassifier
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.analysis import pair_responses
from mammosae_plugin.datasets import VinDrMammo, make_phantom_pairs, make_phantoms, read_pairs
from mammosae_plugin.interpretation import name_by_labels, name_by_labels_of
from mammosae_plugin.interpretation.attributes import attributes_of
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.training import SAETraining, train_sae

MAP, PIXELS, SIZE = "features", Preprocessing(mean=0.25, std=0.25, scale="full_range", channels=1), (128, 96)
FINDINGS = ("Mass", "Suspicious_Calcification", "Architectural_Distortion")
NAMES = {**{name: name for name in FINDINGS}, "letter": "marker"}
HITS, N_PLANTED, STRONG = (1.0, 0.8, 0.6, 0.4), 40, 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("named"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=12, help="of the encoder")
    parser.add_argument("--d-sae", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = options.folder / "pairs"
    make_phantom_pairs(pairs, n_pairs=30, attributes=[*NAMES], image_size=SIZE, seed=1000)
    planted, trained = [], []
    for seed in range(options.seeds):
        folder = options.folder / str(seed)
        images = phantoms(folder / "images", options.patients, 100 + seed, letters=True)
        network = taught(folder, options.patients, options.epochs, seed)
        with HookedVisionModel(network.network, [MAP]) as model:
            rows = extract_activations(
                model, images.select(split="training"), folder / "rows", hook_name=MAP, batch_size=16
            )
            settings: dict[str, Any] = {"architecture": "topk", "k": 4, "d_sae": options.d_sae, "lr": 2e-3}
            sae = train_sae(
                rows, folder / "sae", SAETraining(epochs=2, batch_size=512, dead_feature_window=100, **settings)
            )
            table = encode_latents(model, sae, images, folder / "table", heads={}, batch_size=16, peaks=0)
            both = VinDrMammo(pairs, image_size=SIZE).with_preprocessing(PIXELS)
            of_pairs = encode_latents(model, sae, both, folder / "of_pairs", heads={}, batch_size=16, peaks=0)
        planted += of_planted(table, seed)
        trained.append(of_trained(table, of_pairs, read_pairs(pairs / "pairs.csv"), seed))
        print(f"seed {seed} is done", flush=True)
    told = pd.DataFrame(planted).groupby("fires in", sort=False).mean()
    print(f"\n{told.to_string()}")
    counts = pd.DataFrame(trained)
    print(f"\n{counts.to_string(index=False)}\n\n{counts.sum().to_string()}")


def phantoms(folder: Path, patients: int, seed: int, *, letters: bool) -> VinDrMammo:
    """Two images of each patient."""
    shares: dict[str, Any] = dict.fromkeys(("mass_share", "calcification_share", "other_share"), 0)
    marker: dict[str, Any] = {"marker": "letter", "marker_share": 0.3} if letters else {}
    make_phantoms(
        folder, n_patients=patients, images_per_patient=2, image_size=SIZE, test_share=0.5, seed=seed,
        finding_shares=dict.fromkeys(FINDINGS, 0.25), **shares, **marker,
    )  # fmt: skip
    return VinDrMammo(folder, image_size=SIZE).with_preprocessing(PIXELS)


def of_planted(table: LatentTable, seed: int) -> list[dict[str, Any]]:
    """How many planted latents have the right name, a wrong one, or none, by how reliably they fire."""
    rng = np.random.default_rng(seed)
    images = table.images[table.images["split"] == "training"]
    values = attributes_of(table, None, None, "training").loc[images.index]
    groups, found = images["patient_id"].to_numpy(), []
    for hits in HITS:
        truth = [[*NAMES.values()][number % len(NAMES)] for number in range(N_PLANTED)]
        own = values[truth].to_numpy() == 1
        fires = np.where(own, rng.random(own.shape) < hits, rng.random(own.shape) < 0.05)
        at_random = rng.random((len(images), N_PLANTED)) < 0.2
        codes = np.hstack([fires, at_random]) * rng.uniform(0.5, 2, (len(images), 2 * N_PLANTED))
        names = name_by_labels_of(codes, values, groups).latents["name"].to_numpy()
        planted = names[:N_PLANTED]
        found.append(
            {
                "fires in": f"{hits:.0%} of its images",
                "right": np.mean(planted == np.array(truth)),
                "wrong": np.mean((planted != np.array(truth)) & (planted != "")),
                "random latents named": np.mean(names[N_PLANTED:] != ""),
            }
        )
    return found


def of_trained(table: LatentTable, of_pairs: LatentTable, pairs: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Latents that selectively answer to one attribute in pairs, and what they are called."""
    answers = pair_responses(of_pairs, pairs, statistic="max", n_permutations=0, seed=seed).latents
    selective = answers[answers["selective"] & (answers["sign"] == 1)].sort_values("response", ascending=False)
    selective = selective.drop_duplicates("latent").set_index("latent")
    truth = selective["attribute"]
    strongest = np.sort(table.max_latents[:, truth.index].toarray(), axis=0)[-20:].mean(axis=0)
    strong = selective["response"] >= STRONG * strongest
    names = name_by_labels(table).latents.set_index("latent")["name"]
    called = names.reindex(truth.index, fill_value="")
    right = called == truth.map(NAMES)
    return {
        "live": len(names),
        "named": int((names != "").sum()),
        "of known truth": len(truth),
        "right": int(right.sum()),
        "wrong": int((~right & (called != "")).sum()),
        "no name": int((called == "").sum()),
        "strong": int(strong.sum()),
        "strong, right": int((right & strong).sum()),
        "dealt out": len(names),
        "dealt out, named": named_by_chance(table, seed),
    }


def named_by_chance(table: LatentTable, seed: int) -> int:
    """How many latents have a name when their activations are dealt out among the patients of the training split."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(table.images["split"] == "training")
    codes = table.max_latents[rows][:, table.live_latents("training")].toarray().reshape(len(rows) // 2, 2, -1)
    dealt = np.stack([rng.permuted(rng.permutation(own), axis=1) for own in np.moveaxis(codes, 2, 0)], axis=2)
    values = attributes_of(table, None, None, "training").iloc[rows]
    groups = table.images["patient_id"].to_numpy()[rows]
    found = name_by_labels_of(dealt.reshape(len(rows), -1), values, groups)
    return found.n_named


def encoder() -> nn.Module:
    """A small network whose last map has a cell for every 8 x 8 pixels."""
    layers: list[nn.Module] = []
    for wide, out, stride in ((1, 16, 2), (16, 32, 2), (32, 48, 2), (48, 48, 1)):
        layers += [nn.Conv2d(wide, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]
    parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict([*parts.items(), ("head", nn.Linear(48, 1))]))


def taught(folder: Path, patients: int, epochs: int, seed: int) -> BackboneClassifier:
    """An encoder that learned on phantoms of its own where findings and letters lie."""
    marked = phantoms(folder / "taught", patients, 5000 + seed, letters=True)
    plain = phantoms(folder / "taught_plain", patients, 5000 + seed, letters=False)
    inputs = torch.stack([marked[at]["image"] for at in range(len(marked))])
    changed = (inputs - torch.stack([plain[at]["image"] for at in range(len(plain))])).abs()
    targets = torch.zeros(len(inputs), len(NAMES), SIZE[0] // 8, SIZE[1] // 8)
    targets[:, -1] = functional.max_pool2d(changed, 8)[:, 0] > 0.05
    at = {image_id: row for row, image_id in enumerate(marked.images["image_id"])}
    x, y = (torch.arange(SIZE[1] // 8) + 0.5) * 8, (torch.arange(SIZE[0] // 8) + 0.5) * 8
    for found in marked.findings.dropna(subset=["xmin"]).itertuples():
        across, down = (x > found.xmin - 4) & (x < found.xmax + 4), (y > found.ymin - 4) & (y < found.ymax + 4)
        inside = down[:, None] & across[None]
        for channel, finding in enumerate(FINDINGS):
            if getattr(found, finding) == 1:
                targets[at[found.image_id], channel][inside] = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, tells = encoder(), nn.Conv2d(48, len(NAMES), 1)
        optimizer = torch.optim.AdamW([*network.parameters(), *tells.parameters()], lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * (len(inputs) // 32))
        weight = torch.full((len(NAMES), 1, 1), 5.0)
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs))[: len(inputs) // 32 * 32].split(32):
                told = tells(network.features(inputs[batch]))
                loss = functional.binary_cross_entropy_with_logits(told, targets[batch], pos_weight=weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    name = f"{Path(__file__).stem}:encoder"
    return BackboneClassifier(network.eval(), library="function", architecture=name, preprocessing=PIXELS)


if __name__ == "__main__":
    main()
