"""Load a pretrained SAE from the Hub and see which of its latents fire in one mammogram, and where.

    python examples/look_at_one_mammogram.py hub://KKNakka/MammoSAE/sparse_autoencoder_final.pt \\
        --network b5-model-best-epoch-7.tar --image mammogram.png

The network must be the one whose activations the SAE was trained on. Without `--network` a network of the SAE's
architecture with random weights takes its place, and without `--image` a phantom is drawn: that shows the steps, and
runs anywhere.
"""

import argparse
import tempfile

import numpy as np
import torch

from mammosae_plugin.adapters import HookedVisionModel, load_mammo_clip, load_vision_sae, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms, preprocess
from mammosae_plugin.datasets.preprocessing import read_png
from mammosae_plugin.visualization import save_figure
from mammosae_plugin.visualization.heatmaps import plot_heatmaps


def main() -> None:
    """Read the arguments, run the network on one image up to the SAE's layer, and show its strongest latents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", help="hub://owner/name[@revision]/id, or a folder that SAELens wrote")
    parser.add_argument("--network", help="a checkpoint of the network")
    parser.add_argument("--image", help="an 8-bit PNG of the network's input size")
    parser.add_argument("--latents", type=int, default=3, help="how many latents to show")
    parser.add_argument("--output", default="latents.png", help="where the figure goes")
    arguments = parser.parse_args()

    sae = load_vision_sae(arguments.sae)
    about = sae.cfg.metadata
    size = tuple(about.image_size or (1520, 912))
    if arguments.network:
        network = load_mammo_clip(arguments.network)
    else:
        network = new_classifier(about.model_name or "tf_efficientnet_b5", n_class=1, seed=0)
    pixels, boxes = (read_png(arguments.image, size), np.zeros((0, 4))) if arguments.image else phantom(size)

    with HookedVisionModel(network) as model, torch.no_grad():
        activations = model.read(preprocess(pixels, "image")[None], about.hook_name or "bn2.hook_out").value
        latents = sae.encode(activations)[0]  # (h, w, d_sae), channels last
    maxima, best = latents.amax(dim=(0, 1)).topk(arguments.latents)

    print(f"{int((latents > 0).any(dim=0).any(dim=0).sum())} of {sae.cfg.d_sae} latents fire somewhere; the strongest:")
    for latent, maximum in zip(best.tolist(), maxima.tolist(), strict=True):
        row, column = divmod(int(latents[..., latent].argmax()), latents.shape[1])
        print(
            f"  latent {latent:5d}: maximum {maximum:.4g}, in row {row}, column {column} of {tuple(latents.shape[:2])}"
        )

    maps = latents[..., best].permute(2, 0, 1).numpy()
    gray = pixels if pixels.ndim == 2 else pixels.mean(axis=2).astype(np.uint8)
    figure = plot_heatmaps(
        [gray],
        maps[None],
        [boxes],
        best.tolist(),
        maps.mean(axis=(1, 2))[None],
        titles=["the image"],
        title="The strongest latents",
    )
    save_figure(figure, arguments.output)
    print(f"where they fire: {arguments.output}")


def phantom(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A drawn mammogram with a mass: uint8 (H, W), and its boxes (n, 4) in pixels."""
    with tempfile.TemporaryDirectory() as folder:
        make_phantoms(folder, n_patients=2, images_per_patient=2, image_size=size, mass_share=1.0)
        dataset = VinDrMammo(folder, image_size=size)
        number = next(i for i in range(len(dataset)) if len(dataset[i]["boxes"]["Mass"]))
        return dataset.gray(number), dataset[number]["boxes"]["Mass"].numpy()


if __name__ == "__main__":
    main()
