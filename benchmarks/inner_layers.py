"""What one intervention costs at each layer: the rest of the network behind it against the whole network.

    python benchmarks/inner_layers.py [--height 1520 --width 912] [--architecture NAME] [--layers layer_8 ...]

The released code runs the whole network with a masked SAE in it for every mask. Here the layer's output is kept on
disk, an image is encoded once, and a mask costs a decode and the part of the network behind the layer. All three are
timed in turns in one run, on one image: the plain network, the network with a masked SAE in it, and one mask among
`--masks` (the image's encoding included). The share is that of a mask in the plain network's time. `difference` is the
largest between a logit found either way, beside the largest `effect` of a mask on the logit.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.activations import cache_layer_outputs
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.latents.masked_passes import MaskedPasses

LAYERS = ("layer_5", "layer_12", "layer_20", "layer_27", "layer_33", "layer_38", "layer_39")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1520)
    parser.add_argument("--width", type=int, default=912)
    parser.add_argument("--architecture", default="tf_efficientnet_b5")
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", type=int, default=4)
    options = parser.parse_args()
    size = (options.height, options.width)
    print(f"{options.architecture}, {size[0]} x {size[1]}, {torch.get_num_threads()} threads, {options.masks} masks")
    print("layer            grid  d_in MB/image  network  spliced     mask  share   effect difference")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_phantoms(folder / "phantoms", n_patients=2, images_per_patient=1, image_size=size, test_share=0.5)
        images = VinDrMammo(folder / "phantoms", image_size=size).select(split="test")
        classifier = calibrated(new_classifier(options.architecture, 1, seed=0), images[0]["image"][None])
        for layer in options.layers:
            with HookedVisionModel(classifier, [layer]) as model:
                measure(model, layer, images, classifier.classifier, folder / layer, options.rounds, options.masks)


def calibrated(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Random weights whose batch norms know their inputs, so that no map is nearly zero."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.cat([images, images.flip(-1)]))
    return model.eval()


def measure(
    model: HookedVisionModel,
    layer: str,
    images: VinDrMammo,
    head: torch.nn.Linear,
    folder: Path,
    rounds: int,
    n_masks: int,
) -> None:
    """Print one row: the plain network's time, a mask's, their ratio, and the agreement of logits."""
    hook_name = model.resolve_hook_name(layer)
    d_in = model.hook_shapes[hook_name][-1]
    metadata = SAEMetadata(hook_name=hook_name)
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=8 * d_in, k=min(32, d_in), metadata=metadata))
    with torch.no_grad():
        sae.W_dec.mul_(0.01)  # small edits: a random network amplifies large ones beyond comparison
    table = encode_latents(model, sae, images, folder / "table", heads={"Mass": head})
    outputs = cache_layer_outputs(model, images, folder / "outputs", hook_name=layer)
    rng = np.random.default_rng(0)
    image, row = images[0]["image"][None], np.zeros(1, dtype=np.int64)
    acts = f"{hook_name}.hook_sae_acts_post"
    times: dict[str, list[float]] = {"network": [], "spliced": [], "mask": []}
    effects, differences = [], []
    for _ in range(rounds):
        kept = rng.random((sae.cfg.d_sae, n_masks)) < 0.5
        mask = torch.from_numpy(kept[:, 0])

        def masked(latents: torch.Tensor, hook: object, mask: torch.Tensor = mask) -> torch.Tensor:  # noqa: ARG001
            return latents * mask

        with torch.inference_mode():
            with timed(times["network"]):
                plain = model(image)
            with timed(times["spliced"]):
                spliced = model.run_with_hooks_with_saes(
                    image, saes=sae, use_error_term=True, fwd_hooks=[(acts, masked)]
                )
        passes = MaskedPasses(model, sae, outputs, {"Mass": head})
        with timed(times["mask"], per=n_masks):
            found = passes.logits(table, kept, head="Mass", error_term=True, image_rows=row)
        effects.append(abs(float(spliced - plain)))
        differences.append(abs(float(spliced) - float(found[0, 0, 0])))
    full, whole, one = (statistics.median(times[name]) for name in ("network", "spliced", "mask"))
    grid = " x ".join(map(str, table.grid))
    print(
        f"{layer:10} {grid:>10} {d_in:5d} {outputs.nbytes_per_image / 1e6:8.1f} {full:7.3f}s {whole:7.3f}s {one:7.3f}s "
        f"{one / full:6.2f} {max(effects):8.1e} {max(differences):10.1e}",
        flush=True,
    )


@contextmanager
def timed(seconds: list[float], *, per: int = 1) -> Iterator[None]:
    """Append the block's time, divided by `per`."""
    start = time.perf_counter()
    yield
    seconds.append((time.perf_counter() - start) / per)


if __name__ == "__main__":
    main()
