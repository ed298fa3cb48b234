"""What the whole pipeline costs as the number of images grows: it must be a straight line.

    python benchmarks/pipeline.py [--images 50 100 200 400] [--rounds 2] [--architecture tinynet_e]

For every number of images, in a process of its own: activation rows of the training half, an SAE of two epochs on
them, the latents table of all images, then ranking, sweep and localization. Phantoms and network are made beforehand,
and a small run before the clock starts pays for what is paid once per process. Prints seconds per stage (medians over
the rounds), peak memory, and the exponent b of seconds = a * images ** b, fitted to the logarithms by least squares.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.intervention import sweep
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.localization import localize
from mammosae_plugin.probing import class_mean_latents, rank_latents
from mammosae_plugin.training import SAETraining, train_sae

STAGES = ("extract", "train", "encode", "analyse")
WARM_UP = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=(50, 100, 200, 400))
    parser.add_argument("--architecture", default="tinynet_e")
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--once", nargs=2, metavar=("IMAGES", "PHANTOMS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options)))
        return
    sizes = sorted(options.images)
    measured: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
    with tempfile.TemporaryDirectory() as name:
        make_phantoms(
            Path(name),
            n_patients=sizes[-1],
            images_per_patient=1,
            image_size=(options.height, options.width),
            mass_share=0.5,
        )
        for _ in range(options.rounds):
            for n in sizes:
                measured[n].append(run(name, n))
    print("images " + " ".join(f"{stage:>9}" for stage in (*STAGES, "all", "per image")) + "  peak MiB")
    totals = []
    for n, runs in measured.items():
        parts = [statistics.median(each[stage] for each in runs) for stage in STAGES]
        totals.append(statistics.median(sum(each[stage] for stage in STAGES) for each in runs))
        seconds = " ".join(f"{value:8.2f}s" for value in [*parts, totals[-1], totals[-1] / n])
        print(f"{n:6} {seconds} {statistics.median(each['peak'] for each in runs):9.0f}")
    exponent = np.polyfit(np.log(sizes), np.log(totals), 1)[0]
    slope, start = np.polyfit(sizes, totals, 1)
    residual = np.asarray(totals) - (slope * np.asarray(sizes) + start)
    share = 1 - residual.var() / np.var(totals)
    print(f"exponent {exponent:.3f}; line {start:.2f} s + {1000 * slope:.1f} ms an image, R^2 {share:.4f}")


def run(phantoms: str, n_images: int) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--once", str(n_images), phantoms]
    found: dict[str, float] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    )
    return found


def once(options: argparse.Namespace) -> dict[str, float]:
    n_images, phantoms = int(options.once[0]), options.once[1]
    every = VinDrMammo(phantoms, image_size=(options.height, options.width))
    # Every other image of each split, and so on, keeps the shares of splits and findings.
    chosen = np.linspace(0, len(every.images) - 1, n_images).round().astype(int)
    classifier = new_classifier(options.architecture, 1, seed=0)
    with HookedVisionModel(classifier, ["bn2"]) as model, tempfile.TemporaryDirectory() as name:
        ids = every.images["image_id"]
        first = np.linspace(0, len(ids) - 1, WARM_UP).round().astype(int)
        pipeline(options, model, every.select(image_ids=list(ids.iloc[first])), Path(name) / "warm-up")
        seconds = pipeline(options, model, every.select(image_ids=list(ids.iloc[chosen])), Path(name) / "run")
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 2**10
    return {**seconds, "peak": peak}


def pipeline(
    options: argparse.Namespace, model: HookedVisionModel, images: VinDrMammo, folder: Path
) -> dict[str, float]:
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - start

    with timed("extract"):
        store = extract_activations(
            model, images.select(split="training"), folder / "rows", hook_name="bn2", batch_size=4, dtype="float16"
        )
    with timed("train"):
        config = SAETraining(d_sae=options.d_sae, epochs=2, batch_size=256, lr=1e-3, sparsity=1e-3)
        sae = train_sae(store, folder / "sae", config)
    with timed("encode"):
        heads = {"Mass": model.model.classifier}
        table = encode_latents(model, sae, images, folder / "table", heads=heads, map_latents=range(32), batch_size=4)
    with timed("analyse"):
        ranking = rank_latents(class_mean_latents(table, "Mass", score="centered_mean"))
        sweep(table, ranking, concept="Mass", ks=[1, 10, 100], n_bootstrap=200)
        localize(table, range(10), "Mass")
    return seconds


if __name__ == "__main__":
    main()
