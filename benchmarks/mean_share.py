"""How much of a feature map's energy is its mean: the constant offset that an SAE's decoder bias has to carry.

    python benchmarks/mean_share.py [--image-size 760 456] [--images 2] [--layers layer_38 bn2]

A full-size EfficientNet-B5 with random weights, batch norms calibrated on the images themselves, on phantoms. For each
layer: the squared norm of the mean row over the mean squared norm of the rows, and the rows' width.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, nargs=2, default=(760, 456))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--layers", nargs="+", default=["layer_24", "layer_38", "bn2"])
    options = parser.parse_args()
    size = tuple(options.image_size)
    with tempfile.TemporaryDirectory() as folder:
        make_phantoms(Path(folder), n_patients=options.images, images_per_patient=1, image_size=size, mass_share=1.0)
        data = VinDrMammo(folder, image_size=size)
        images = torch.stack([data[number]["image"] for number in range(options.images)])
    network = new_classifier("tf_efficientnet_b5", 1, seed=0)
    calibrate(network, images)
    with HookedVisionModel(network, options.layers) as model:
        names = {layer: model.resolve_hook_name(layer) for layer in options.layers}
        with torch.no_grad():
            _, cache = model.run_with_cache(images, names_filter=list(names.values()))
    print("| layer | width | the mean's share of the energy |")
    print("|---|---|---|")
    for layer, name in names.items():
        rows = cache[name].flatten(0, 2).double()
        share = rows.mean(0).square().sum() / rows.square().sum(1).mean()
        print(f"| {layer} ({name}) | {rows.shape[1]} | {share:.1%} |")


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
