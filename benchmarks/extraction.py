"""Extraction of activations: peak memory at two numbers of images, and what worker processes and half precision bring.

    python benchmarks/extraction.py [--images 50 400] [--architecture NAME] [--height 380 --width 228] [--rounds 2]

Every figure is that of a process of its own, which opens generated mammograms, extracts a quarter of the positions of
the final map, and tells its peak memory (VmHWM) and the seconds of the extraction alone. Memory is that of all images
against the first few: it must not grow. Workers decode and preprocess images while the network runs; on a machine with
as many busy cores as the network has threads they cannot help much.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=(50, 400))
    parser.add_argument("--architecture", default="tf_efficientnet_b0")
    parser.add_argument("--height", type=int, default=380)
    parser.add_argument("--width", type=int, default=228)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--once", nargs=4, metavar=("IMAGES", "PHANTOMS", "WORKERS", "AUTOCAST"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.once:
        once(options)
        return
    few, many = sorted(options.images)
    with tempfile.TemporaryDirectory() as name:
        size = (options.height, options.width)
        make_phantoms(Path(name), n_patients=many, images_per_patient=1, image_size=size)
        print(f"{options.architecture} at {size[0]} x {size[1]}, a quarter of the positions of its final map")
        peaks = [run(name, n, 0, "none")[0] for n in (few, many)]
        print(f"peak memory with {few:4} images {peaks[0]:8.0f} MiB")
        print(f"peak memory with {many:4} images {peaks[1]:8.0f} MiB, {peaks[1] / peaks[0]:.3f} times as much")
        seconds: dict[tuple[int, str], list[float]] = {
            (0, "none"): [],
            (1, "none"): [],
            (2, "none"): [],
            (0, "bfloat16"): [],
        }
        for _ in range(options.rounds):
            for way, times in seconds.items():
                times.append(run(name, few, *way)[1] / few)
        first = statistics.median(seconds[0, "none"])
        for (workers, autocast), times in seconds.items():
            median = statistics.median(times)
            print(
                f"{workers} workers, autocast {autocast:8} {median:8.3f} s an image, {first / median:.2f} times as fast"
            )


def run(phantoms: str, n_images: int, num_workers: int, autocast: str) -> tuple[float, float]:
    """Peak memory in MiB and seconds of an extraction in a process of its own."""
    once = ["--once", str(n_images), phantoms, str(num_workers), autocast]
    command = [sys.executable, __file__, *sys.argv[1:], *once]
    peak, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(peak), float(seconds)


def once(options: argparse.Namespace) -> None:
    n_images, phantoms, num_workers, autocast = options.once
    images = VinDrMammo(phantoms, image_size=(options.height, options.width))
    images = images.select(image_ids=images.images["image_id"][: int(n_images)])
    model = HookedVisionModel(new_classifier(options.architecture, 1, seed=0), ["bn2"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extract_activations(
            model,
            images,
            folder,
            fraction=0.25,
            dtype="float16",
            batch_size=options.batch_size,
            num_workers=int(num_workers),
            autocast=None if autocast == "none" else autocast,
        )
        seconds = time.perf_counter() - start
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 2**10
    print(peak, seconds)


if __name__ == "__main__":
    main()
