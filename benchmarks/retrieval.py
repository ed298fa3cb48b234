"""Retrieval of handwritten digits (scikit-learn's 1,797) by the latents of an SAE, beside an untrained one's.

    python benchmarks/retrieval.py [--seeds 3] [--latents 256 --k 8 --epochs 200]

A top-k SAE of the 64 pixels is trained on half of the images; the other half ask and are found. The untrained one has
the same shape and its first random weights. Every image is a group of its own, as nothing is known of the writers.
Printed are precision of the first ten and mAP, the mean over ten digits and over seeds, with the lowest and the highest
seed.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sae_lens.saes.sae import SAEMetadata
from sklearn.datasets import load_digits

from mammosae_plugin.activations import write_store
from mammosae_plugin.analysis import retrieval_scores_of
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training.new_sae import new_training_sae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--k", type=int, default=8, help="active latents per image")
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()
    found = pd.concat([scores(seed, options) for seed in range(options.seeds)])
    found = found.groupby(["source", "method", "k", "seed"], sort=False)[
        ["precision", "average_precision", "dense_cosine"]
    ].mean()
    by_seed = found.groupby(["source", "method", "k"], sort=False)
    for name, rows in by_seed:
        cells = [f"{rows[one].mean():.3f} ({rows[one].min():.3f} to {rows[one].max():.3f})" for one in rows.columns]
        print(f"{' '.join(map(str, name)):30}", *cells, sep="  ")


def scores(seed: int, options: argparse.Namespace) -> pd.DataFrame:
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))
    rows = torch.tensor(digits.data / 16, dtype=torch.float32)
    rows = rows - rows[order[:898]].mean(dim=0)
    training, test = rows[order[:898]], rows[order[898:]]
    settings = SAETraining(
        architecture="topk",
        d_sae=options.latents,
        k=options.k,
        lr=1e-3,
        epochs=options.epochs,
        batch_size=128,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        sae = train_sae(store_of(training, Path(folder) / "rows"), Path(folder) / "sae", settings)
    untrained = new_training_sae(settings, 64, metadata=SAEMetadata(), device="cpu")
    with torch.no_grad():
        codes, beside = (one.encode(test).numpy() for one in (sae, untrained))
    labels = {str(digit): digits.target[order[898:]] == digit for digit in range(10)}
    found = retrieval_scores_of(
        codes, labels, np.arange(len(test)), untrained=beside, embeddings=test.numpy(), k=(1, 2, 5, 8), n=10,
        n_bootstrap=0, n_draws=0, seed=seed,
    )  # fmt: skip
    return found.assign(seed=seed)


def store_of(rows, folder):
    described = {
        "hook_name": "pixels", "image_size": [8, 8], "dataset_name": "digits", "dataset": "digits",
        "splits": ["training"], "model": "pixels", "architecture": "pixels", "source": {},
        "image_ids": [str(number) for number in range(len(rows))],
    }  # fmt: skip
    image = torch.arange(len(rows))
    return write_store(folder, [(rows, image, torch.zeros_like(image))], described)


if __name__ == "__main__":
    main()
