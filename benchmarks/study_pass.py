"""A study's pass over an image against the release's: CPU seconds of both, in turns, in one run.

    python benchmarks/study_pass.py [--rounds 3] [--images 3] [--height 1520 --width 912] [--d-sae 16384] [--l0 64]

The release runs network and SAE anew for every setting of Figure 2, here 27 of them: its pass is the encoder in its
manner (`encoder.py`: contiguous memory, padding modules, batch norms by themselves), the SAE's encoding and decoding of
every position, mean and head, in a process with the C library's usual way with memory. Ours is `encode_latents` with
the peaks of all latents and everything else that a table holds, from which every setting follows. The SAE's bias is set
so that about `--l0` of its latents fire.

Printed are medians of CPU seconds an image, one thread each, the ratio of 27 of the release's passes to ours, and what
parts of ours take by themselves.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from encoder import calibrated, plain, plain_features
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import as_images
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.latents.decoding import Decoder
from mammosae_plugin.latents.encoding import rows_at_once
from mammosae_plugin.latents.peak_finder import PeakFinder
from mammosae_plugin.memory import keep_freed_memory

SETTINGS = 27
HOOK = "bn2.hook_out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1520)
    parser.add_argument("--width", type=int, default=912)
    parser.add_argument("--architecture", default="tf_efficientnet_b5")
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--l0", type=float, default=64)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ask, answer = Pipe()
    other = get_context("spawn").Process(target=run_release, args=(options, answer), daemon=True)
    other.start()
    keep_freed_memory()
    network, sae, image = parts(options)
    release, ours = [], []
    with HookedVisionModel(network, ["bn2"]) as model, tempfile.TemporaryDirectory() as name:
        images = as_images(image.repeat(options.images, 1, 1, 1), labels={"Mass": [0] * options.images})
        heads = {"Mass": network.classifier}
        for number in range(options.rounds + 1):  # the first warms up
            ask.send(True)
            release.append(float(ask.recv()))
            folder = Path(name) / str(number)
            ours.append(cpu(lambda: encode_latents(model, sae, images, folder, heads=heads)) / options.images)  # noqa: B023
        ask.send(False)
        shares = own_parts(model, sae, image)
    theirs, own = statistics.median(release[1:]), statistics.median(ours[1:])
    print(f"{options.architecture}, {options.height} x {options.width}, {options.d_sae} latents, one thread")
    print(f"the release's pass            {theirs:7.3f} CPU s an image")
    print(f"encode_latents                {own:7.3f} CPU s an image, its start shared by {options.images}")
    print(f"{SETTINGS} of the one to one of the other {SETTINGS * theirs / own:7.1f}")
    for part, seconds in shares.items():
        print(f"  of it {part:22s} {seconds:7.3f}")


def parts(options: argparse.Namespace) -> tuple[torch.nn.Module, StandardSAE, torch.Tensor]:
    """Network, SAE and image, the same in both processes."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, options.height, options.width)
    network = calibrated(new_classifier(options.architecture, 1, seed=0), image)
    about = SAEMetadata(hook_name=HOOK, layout="channels_last")
    sae = StandardSAE(StandardSAEConfig(d_in=network.num_features, d_sae=options.d_sae, metadata=about))
    with torch.inference_mode():
        rows = network.forward_features(image).flatten(2)[0].T[::20]
        before = ((rows - sae.b_dec) @ sae.W_enc).flatten()[:4_000_000]
        sae.b_enc.fill_(-float(before.kthvalue(int((1 - options.l0 / options.d_sae) * len(before))).values))
    return network, sae, image


@torch.inference_mode()
def run_release(options: argparse.Namespace, connection: Connection) -> None:
    """In a process of its own: a pass whenever one is asked for, until told to end."""
    torch.set_num_threads(1)
    network, sae, image = parts(options)
    reference = plain(network)

    def run() -> torch.Tensor:
        features = plain_features(reference, image)
        rows = features.flatten(2)[0].T
        decoded = sae.decode(sae.encode(rows))
        return network.classifier(decoded.mean(0))

    while connection.recv():
        connection.send(cpu(run))


@torch.inference_mode()
def own_parts(model: HookedVisionModel, sae: StandardSAE, image: torch.Tensor) -> dict[str, float]:
    reading = model.read(image, HOOK).value[0]
    rows = reading.reshape(-1, reading.shape[-1])
    blocks = rows.split(rows_at_once(sae))
    latents = [sae.encode(block) for block in blocks]
    decode = Decoder(sae)

    def peaks() -> None:
        finder = PeakFinder(5, reading.shape[1])
        for each in latents:
            finder.add(each)
        finder.found()

    return {
        "network": least(lambda: model.read(image, HOOK)),
        "encoder product": least(lambda: [sae.encode(block) for block in blocks]),
        "decoding": least(lambda: [decode(each) for each in latents]),
        "(decoding, dense)": least(lambda: [sae.decode(each) for each in latents]),
        "peaks": least(peaks),
        "latents that fire": sum(int(torch.count_nonzero(each)) for each in latents) / len(rows),
    }


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def least(run: Callable[[], object]) -> float:
    return min(cpu(run) for _ in range(3))


if __name__ == "__main__":
    main()
