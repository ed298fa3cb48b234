"""What planted latents, a trained SAE and untrained SAEs score on the same counterfactual phantoms.

    python benchmarks/counterfactuals.py [--pairs 20 --training-pairs 40 --seeds 3] [--network encoder.safetensors]

Rows are the positions of the final map of a small network: with random weights, or of a file such as a demo's
encoder.safetensors. First as the network gives them; then with a direction of its own for each finding and marker
planted in the positions of the second image that the box touches, as long as a share of a row's mean length. Planted
latents read these directions, whatever the network; where nothing is planted they stand for what the images truly
differ in (1 in the second image, 0 in the first, and noise). The SAE is trained on pairs of other patients and has 256
latents, of which 6 fire at a position, as have the untrained ones. A latent's maximum over positions counts. Printed is
the mean over findings and markers of the concept score beside random mixtures alone, and beside untrained SAEs, each of
which is held against the others.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mammosae_plugin.activations import extract_activations, write_store
from mammosae_plugin.adapters import HookedVisionModel, load_classifier, new_classifier
from mammosae_plugin.analysis import PairResponses, beside_untrained, pair_responses_of
from mammosae_plugin.analysis.spatial import box_region, cell_shares
from mammosae_plugin.datasets import PAIR_ATTRIBUTES, VinDrMammo, make_phantom_pairs, read_pairs
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training.controls import untrained_like

SIZE, CORNERS = (256, 160), ["xmin", "ymin", "xmax", "ymax"]
GLOBAL = ("density", "noise", "blur", "contrast", "exposure")
# The muscle's second image is the first of other pairs, in which nothing must be planted.
PLANTED = [name for name in PAIR_ATTRIBUTES if name not in (*GLOBAL, "pectoral_muscle")]
ATTRIBUTES = [*PLANTED, *GLOBAL]
TRAINING = SAETraining(architecture="batchtopk", k=6, d_sae=256, epochs=20, batch_size=1024, lr=1e-3,
                       dead_feature_window=100, normalize_activations="expected_average_only_in")  # fmt: skip


class Rows:
    """The rows of the images of pairs, (images, positions, d_in), and what may be planted in them."""

    def __init__(self, folder: Path, network: Path | None, n_pairs: int, seed: int) -> None:
        self.folder = folder
        file = make_phantom_pairs(folder / "pairs", n_pairs=n_pairs, attributes=ATTRIBUTES, image_size=SIZE, seed=seed)
        self.pairs = read_pairs(file)
        images = VinDrMammo(folder / "pairs", image_size=SIZE)
        model = new_classifier("tinynet_e", 0, seed=0) if network is None else load_classifier(network)
        with HookedVisionModel(model, ["bn2"]) as hooked:
            store = extract_activations(hooked, images, folder / "rows", hook_name="bn2", batch_size=8)
        image, position = (np.asarray(labels) for labels in store.labels()[:2])
        rows = store.take(np.arange(store.n_rows)).float()[torch.from_numpy(np.lexsort((position, image)))]
        self.rows = rows.reshape(len(store.image_ids), -1, rows.shape[1])
        self.number_of = {image_id: number for number, image_id in enumerate(store.image_ids)}
        self.manifest, self.grid = store.manifest, store.manifest["layout"]["grid"]
        self.sides = [self.pairs[f"image_id_{side}"].map(self.number_of).to_numpy() for side in "ab"]

    def planted(self, directions: torch.Tensor, length: float) -> torch.Tensor:
        """The rows with each attribute's direction (d_in, attributes) added where its box is."""
        changed = self.rows.clone()
        for place, pair in enumerate(self.pairs.to_dict("records")):
            if length and pair["attribute"] in PLANTED:
                region = cell_shares(box_region(np.array([[pair[name] for name in CORNERS]]), SIZE), self.grid) > 0
                direction = directions[:, PLANTED.index(pair["attribute"])]
                changed[self.sides[1][place], torch.from_numpy(region.ravel())] += length * direction
        return changed

    def answers(self, codes: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> PairResponses:
        """What latents answer to."""
        with torch.no_grad():
            values = torch.stack([codes(image).max(0).values for image in rows]).numpy()
        return self.scored(values[self.sides[1]] - values[self.sides[0]])

    def scored(self, changes: np.ndarray) -> PairResponses:
        """The scores of changes (pairs, latents)."""
        return pair_responses_of(changes, self.pairs["attribute"], self.pairs["patient_id"], n_permutations=10)


def compared(train: Rows, test: Rows, strength: float, n_seeds: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """What each kind of SAE scores."""
    directions = torch.from_numpy(np.random.default_rng(0).normal(size=(train.rows.shape[2], len(PLANTED)))).float()
    directions /= directions.norm(dim=0)
    length = strength * float(train.rows.norm(dim=2).mean())
    rows, seen = test.planted(directions, length), train.planted(directions, length)
    flat = seen.reshape(-1, seen.shape[2])
    names = ("hook_name", "image_size", "dataset_name", "dataset", "image_ids", "patients", "splits", "model",
             "architecture", "source")  # fmt: skip
    shards = [(flat[part], part // seen.shape[1], part % seen.shape[1]) for part in torch.arange(len(flat)).split(4000)]
    store = write_store(train.folder / f"planted-{strength}", shards, {name: train.manifest[name] for name in names})
    sae = train_sae(store, train.folder / f"sae-{strength}", TRAINING).to("cpu")
    sample = flat[torch.from_numpy(np.random.default_rng(0).permutation(len(flat))[:8192])]
    untrained = [test.answers(untrained_like(sae, sample, seed=seed).encode, rows) for seed in range(n_seeds)]
    if strength:
        found = test.answers(lambda one: torch.relu((one - flat.mean(0)) @ directions - length / 2), rows)
    else:
        truth = test.pairs["attribute"].to_numpy()[:, None] == np.array(PLANTED)
        found = test.scored(truth + 0.05 * np.random.default_rng(0).normal(size=truth.shape))
    yield "planted", beside_untrained(found, untrained).attributes
    trained = test.answers(sae.encode, rows)
    yield "trained", beside_untrained(trained, untrained).attributes
    scores = [one.attributes.set_index("attribute") for one in untrained]
    beside = beside_untrained(trained, untrained).attributes.set_index("attribute")["concept_score_untrained"]
    alone = pd.concat([one["concept_score"] for one in scores]).groupby(level=0).mean()
    best = pd.concat([one["best_selectivity"] for one in scores]).groupby(level=0).mean()
    yield "untrained", pd.DataFrame({"concept_score": beside, "alone": alone, "best_selectivity": best}).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--training-pairs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        train, test = (
            Rows(Path(name) / kind, options.network, n_pairs, seed)
            for seed, (kind, n_pairs) in enumerate((("train", options.training_pairs), ("test", options.pairs)), 1)
        )
        for strength in (0, 0.25, 0.5, 1):
            for kind, frame in compared(train, test, strength, options.seeds):
                own = frame[frame["attribute"].isin(PLANTED)]
                if "alone" not in own:
                    mixed = own["best_selectivity_mixed"]
                    own = own.assign(alone=((own["best_selectivity"] - mixed) / (1 - mixed)).clip(lower=0))
                told = own[["best_selectivity", "alone", "concept_score"]].astype(float)
                print(
                    f"strength {strength:<5}{kind:10} best selectivity {told.iloc[:, 0].mean():.2f}, concept score "
                    f"beside mixtures {told.iloc[:, 1].mean():.2f}, beside untrained SAEs {told.iloc[:, 2].mean():.2f} "
                    f"(largest {told.iloc[:, 2].max():.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
