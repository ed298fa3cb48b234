"""How much of a feature map's energy is its mean: the constant offset that an SAE's decoder bias has to carry.

    python benchmarks/mean_share.py [--image-size 1520 912] [--images 4] [--layers layer_38 bn2] [--checkpoint FILE]
                                    [--keep FOLDER]

A full-size EfficientNet-B5 on phantoms: with random weights and batch norms calibrated on the first two images, or as
`--checkpoint` has them (a Mammo-CLIP file, as `load_mammo_clip` reads it). For each layer: the squared norm of the mean
row over the mean squared norm of the rows, and the rows' width. `--keep` leaves the rows in FOLDER/rows, a store for
each layer, which `peers.py --store` trains on.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.adapters import HookedVisionModel, load_mammo_clip, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, nargs=2, default=(1520, 912))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--layers", nargs="+", default=["layer_24", "layer_38", "bn2"])
    parser.add_argument("--checkpoint")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    size = tuple(options.image_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        make_phantoms(folder / "phantoms", n_patients=options.images, images_per_patient=1, image_size=size)
        data = VinDrMammo(folder / "phantoms", image_size=size)
        if options.checkpoint:
            network = load_mammo_clip(options.checkpoint)
        else:
            network = new_classifier("tf_efficientnet_b5", 1, seed=0)
            calibrate(network, torch.stack([data[number]["image"] for number in range(min(2, len(data)))]))
        with HookedVisionModel(network, options.layers) as model:
            names = [model.resolve_hook_name(layer) for layer in options.layers]
            stores = extract_activations(model, data, folder / "rows", hook_names=names, batch_size=1)
        print("| layer | width | the mean's share of the energy |")
        print("|---|---|---|")
        for layer, rows in zip(options.layers, stores.values(), strict=True):
            print(f"| {layer} ({rows.manifest['hook_name']}) | {rows.d_in} | {mean_share(rows):.1%} |")


def mean_share(store: ActivationStore) -> float:
    """The squared norm of the mean row over the mean squared norm of the rows."""
    total, energy = torch.zeros(store.d_in, dtype=torch.float64), 0.0
    for rows, _, _ in store.shards():
        total += rows.double().sum(0)
        energy += float(rows.double().square().sum())
    return float(total.square().sum() / store.n_rows / energy)


@torch.no_grad()
def calibrate(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give the batch norms the statistics of their inputs, so that no layer is nearly dead."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    network.eval()


if __name__ == "__main__":
    main()
