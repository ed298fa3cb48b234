"""Figure 2 from the latents table against running the network for every k, on the same images, in one run.

    python benchmarks/sweep.py [--images 8] [--height 1520 --width 912] [--architecture NAME] [--d-sae 16384]

The reference does what the released code does: for each k and mode it runs the whole network with the masked SAE in it.
The table needs one pass (timed as `encode`), after which each k is a sparse product (timed as `sweep`). The largest
difference of a logit between the two is printed with the times.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.intervention import DEFAULT_KS, intervene, latent_group
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.probing import class_mean_latents, rank_latents

MODES = ("activate", "deactivate")
ACTS = "bn2.hook_out.hook_sae_acts_post"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--height", type=int, default=1520)
    parser.add_argument("--width", type=int, default=912)
    parser.add_argument("--architecture", default="tf_efficientnet_b5")
    parser.add_argument("--d-sae", type=int, default=16384)
    options = parser.parse_args()
    size = (options.height, options.width)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_phantoms(
            folder / "phantoms",
            n_patients=options.images,
            images_per_patient=1,
            image_size=size,
            test_share=0.5,
            mass_share=0.5,
        )
        images = VinDrMammo(folder / "phantoms", image_size=size)
        classifier = calibrated(new_classifier(options.architecture, 1, seed=0), images[0]["image"][None])
        sae = StandardSAE(
            StandardSAEConfig(
                d_in=classifier.num_features,
                d_sae=options.d_sae,
                apply_b_dec_to_input=True,
                metadata=SAEMetadata(hook_name="bn2.hook_out", layout="channels_last"),
            )
        )
        with HookedVisionModel(classifier, ["bn2"]) as model, torch.inference_mode():
            model(images[0]["image"][None])  # warm up

            start = time.perf_counter()
            table = encode_latents(model, sae, images, folder / "table", heads={"Mass": classifier.classifier})
            encode = time.perf_counter() - start

            ranking = rank_latents(class_mean_latents(table, "Mass"))
            ks = sorted({min(k, options.d_sae) for k in DEFAULT_KS})
            settings = [(mode, latent_group(ranking, k)) for mode in MODES for k in ks]

            start = time.perf_counter()
            fast = [intervene(table, group, mode=mode, head="Mass") for mode, group in settings]
            sweep = time.perf_counter() - start

            number_of = {image_id: number for number, image_id in enumerate(images.images["image_id"])}
            order = [number_of[image_id] for image_id in table.images["image_id"]]
            start = time.perf_counter()
            slow = [spliced(model, sae, images, order, mode, group) for mode, group in settings]
            reference = time.perf_counter() - start

    difference = max(np.abs(one - other).max() for one, other in zip(fast, slow, strict=True))
    print(
        f"{len(order)} images of {size[0]} x {size[1]}, {options.architecture}, "
        f"{options.d_sae} latents, {len(settings)} settings"
    )
    print(f"running the network for each setting  {reference:10.3f} s")
    print(f"the pass that makes the table         {encode:10.3f} s")
    print(f"the sweep from the table              {sweep:10.3f} s")
    print(f"ratio, pass and sweep                 {reference / (encode + sweep):10.1f}")
    print(f"ratio, sweep alone                    {reference / sweep:10.1f}")
    print(f"largest difference of a logit         {difference:10.2e}")


def calibrated(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Random weights whose batch norms know their inputs, so that the final map is not zero."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def spliced(
    model: HookedVisionModel, sae: StandardSAE, images: VinDrMammo, order: list[int], mode: str, group: np.ndarray
) -> np.ndarray:
    """(n, 1) logits of the network with the masked SAE in it."""
    mask = torch.full((sae.cfg.d_sae,), float(mode == "deactivate"))
    mask[torch.from_numpy(group)] = float(mode == "activate")
    hooks = [(ACTS, lambda value, hook: value * mask)]  # noqa: ARG005
    logits = [model.run_with_hooks_with_saes(images[i]["image"][None], saes=sae, fwd_hooks=hooks) for i in order]
    return torch.cat(logits).numpy()


if __name__ == "__main__":
    main()
