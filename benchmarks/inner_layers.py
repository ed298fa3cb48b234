"""What one intervention costs at each layer: the rest of the network behind it against the whole network.

    python benchmarks/inner_layers.py [--height 1520 --width 912] [--architecture NAME] [--layers layer_8 ...]

The released code runs the whole network with a masked SAE in it for every mask. Here the layer's output is kept on
disk, an image is encoded once, and a mask costs a decode and the part of the network behind the layer. All three are
timed in turns in one run, on one image: the plain network, the network with a masked SAE in it, and one mask among
`--masks` (the image's encoding included). The share is that of a mask in the plain network's time. `difference` is the
largest between a logit found either way, beside the largest `effect` of a mask on the logit.

    python benchmarks/inner_layers.py --concepts 10 [--models 3] [--images 200]

What a study asks for at inner layers (sweeps with and without the error term, roles, evidence) with several
classifiers on one encoder: the passes of the rest of a small network when each analysis of each concept runs its own
masks, and when all are run at once; and, at the first layer of the first model, CPU seconds of both on some images.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.activations import cache_layer_outputs
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.analysis.intervention import single_ablations, sweep
from mammosae_plugin.analysis.probing import class_mean_latents, rank_latents
from mammosae_plugin.analysis.roles import latent_roles
from mammosae_plugin.datasets import VinDrMammo, as_images, make_phantoms
from mammosae_plugin.datasets.any_images import AnyImages
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.latents.kept_passes import AskedMasks, KeptPasses
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
    parser.add_argument("--concepts", type=int, default=0, help="count passes of a study with so many classifiers")
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--measured", type=int, default=20, help="images on which both are timed")
    options = parser.parse_args()
    if options.concepts:
        count_passes(options.concepts, options.models, options.images, options.measured)
        return
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


def count_passes(n_concepts: int, n_models: int, n_images: int, n_measured: int) -> None:
    """Print the passes of every layer of every model either way, their sums, and what either costs."""
    rng, layers = np.random.default_rng(0), ("layer_4", "layer_6", "layer_8")
    names = [f"concept_{number}" for number in range(n_concepts)]
    images = as_images(
        torch.randn(n_images, 3, 96, 64, generator=torch.Generator().manual_seed(0)),
        labels={name: rng.random(n_images) < 0.3 for name in names},
        split=["training" if number < n_images // 2 else "test" for number in range(n_images)],
    )
    sums = np.zeros(2, dtype=np.int64)
    print("model  layer     images  masks asked  that differ  passes each by itself   at once  ratio")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_models):
            network = calibrated(new_classifier("tinynet_e", 1, seed=number), images[0]["image"][None])
            torch.manual_seed(number)
            heads = {name: torch.nn.Linear(network.classifier.in_features, 1) for name in names}
            for layer in layers:
                with HookedVisionModel(network, [layer]) as model:
                    place = Path(folder) / f"{number}-{layer}"
                    found = _passes_of(model, layer, images, heads, place, n_measured if not sums.any() else 0)
                sums += found[:2]
                told = f"{found[2]:7d} {found[3]:12,d} {found[4]:12,d} {found[0]:22,d} {found[1]:9,d}"
                print(f"{number:5d}  {layer:8} {told} {found[0] / found[1]:6.2f}", flush=True)
    print(f"all: {sums[0]:,} passes each by itself, {sums[1]:,} at once: {sums[0] / sums[1]:.2f} times fewer")


def _passes_of(
    model: HookedVisionModel,
    layer: str,
    images: AnyImages,
    heads: dict[str, torch.nn.Linear],
    folder: Path,
    n_measured: int,
) -> tuple[int, int, int, int, int]:
    hook_name = model.resolve_hook_name(layer)
    d_in = model.hook_shapes[hook_name][-1]
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=8 * d_in, k=16, metadata=SAEMetadata(hook_name=hook_name)))
    table = encode_latents(model, sae, images, folder / "table", heads=heads, batch_size=8)
    together, alone = AskedMasks(table), []
    analyses = [analysis for concept in heads for analysis in analyses_of(table, concept)]
    for analysis in analyses:
        together.by(analysis)
        alone.append(AskedMasks(table))
        alone[-1].by(analysis)
    if n_measured:
        outputs = cache_layer_outputs(model, images, folder / "outputs", hook_name=layer, batch_size=8)
        rows = np.array(together.image_rows[:n_measured])
        began = time.process_time()
        passes = MaskedPasses(model, sae, outputs, heads)
        expected = [analysis(OnSome(passes, rows)) for analysis in analyses]
        each = time.process_time() - began
        few = AskedMasks(table)
        for analysis in analyses:
            few.by(lambda asked, analysis=analysis: analysis(OnSome(asked, rows)))
        began = time.process_time()
        kept = KeptPasses(folder / "kept", few, lambda: MaskedPasses(model, sae, outputs, heads))
        found = [analysis(OnSome(kept, rows)) for analysis in analyses]
        at_once = time.process_time() - began
        difference = max(float(np.abs(one - other).max()) for one, other in zip(expected, found, strict=True))
        largest = max(float(np.abs(one).max()) for one in expected)
        print(
            f"{layer} on {len(rows)} images: each by itself {passes.n_passes:,} passes, {each:.1f} CPU s; at once "
            f"{kept.n_passes:,} passes, {at_once:.1f} CPU s: {each / at_once:.1f} times less; logits "
            f"(up to {largest:.0f}) differ by at most {difference:.1e}"
        )
    separate = sum(asked.count(asked.image_rows) for asked in alone)
    n_rows = len(together.image_rows)
    return separate, together.count(together.image_rows), n_rows, together.n_asked, together.n_masks


class OnSome:
    """Passes of some images alone, which end an analysis with its logits."""

    def __init__(self, passes: Any, rows: np.ndarray) -> None:
        self.passes, self.rows = passes, rows

    def logits(self, table: LatentTable, kept: np.ndarray, **asked: Any) -> np.ndarray:
        raise Answer(self.passes.logits(table, kept, **{**asked, "image_rows": self.rows}))


class Answer(Exception):
    """The logits that an analysis asked for."""


def analyses_of(table: LatentTable, concept: str) -> list[Callable[[Any], Any]]:
    """What a study asks of passes for one concept, as functions of the passes."""
    ranking = rank_latents(class_mean_latents(table, concept, split="training", score="centered_mean"))
    rows = np.unique(table.rows(concept, split="test").image_rows)
    removed: dict[str, Any] = {"head": concept, "image_rows": rows}
    best = np.intersect1d(ranking.indices[1, :10], table.live_latents("test"))
    asked = [
        *(partial(sweep, table, ranking, concept=concept, n_controls=3, error_term=error) for error in (False, True)),
        partial(latent_roles, table, ranking, concept, n_controls=3),
        partial(single_ablations, table, best, n_controls=0, **removed),
    ]

    def answered(analysis: Callable[..., Any], passes: Any) -> Any:
        try:
            return analysis(passes=passes)
        except Answer as answer:
            return answer.args[0]

    return [partial(answered, analysis) for analysis in asked]


@contextmanager
def timed(seconds: list[float], *, per: int = 1) -> Iterator[None]:
    """Append the block's time, divided by `per`."""
    start = time.perf_counter()
    yield
    seconds.append((time.perf_counter() - start) / per)


if __name__ == "__main__":
    main()
