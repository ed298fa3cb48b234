"""AUROC of classifiers trained by either recipe on phantoms, with the same weights to begin with, rate and epochs.

python benchmarks/classifier_recipes.py --epochs 12 --seeds 2
"""

import argparse
import tempfile
from pathlib import Path

import torch

from mammosae_plugin.adapters import load_mammo_clip, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.measures.statistics import ranking_metrics
from mammosae_plugin.training import ClassifierTraining, train_classifier

CONCEPTS = ("Mass", "Suspicious_Calcification")
IMAGE_SIZE = (192, 128)


def main() -> None:
    """Train, judge on the test split and print a row of a table per recipe and concept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = {"mass_share": 0.5, "calcification_share": 0.5}
        make_phantoms(
            folder / "data", n_patients=options.patients, images_per_patient=2, image_size=IMAGE_SIZE, **shares
        )
        images = VinDrMammo(folder / "data", image_size=IMAGE_SIZE)
        training, test = images.select(split="training"), images.select(split="test")
        batch = torch.stack([test[item]["image"] for item in range(len(test))])
        for recipe in ("mammosae", "mammo_clip"):
            for seed in range(options.seeds):
                settings = ClassifierTraining(recipe=recipe, epochs=options.epochs, lr=options.lr, seed=seed)
                file = folder / f"{recipe}-{seed}.safetensors"
                train_classifier(new_classifier("tinynet_e", 0, seed=seed), training, CONCEPTS, file, settings)
                with torch.inference_mode():
                    logits = load_mammo_clip(file)(batch).double().numpy()
                aurocs = [
                    ranking_metrics(logits[:, [column]], test.images[concept].to_numpy())[0]
                    for column, concept in enumerate(CONCEPTS)
                ]
                print(recipe, seed, *(f"{auroc:.3f}" for auroc in aurocs), flush=True)


if __name__ == "__main__":
    main()
