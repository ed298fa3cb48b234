"""Two processes of torchrun against one: the scaling curve of extraction and of SAE training.

    python benchmarks/processes.py [--processes 1 2] [--rounds 3] [--device cpu] [--threads 1]

Each job runs with one process and with several, in turns, in one run of this script: images per second from phantoms
to an activation store, and rows per second of SAE training at a fixed global batch. Every process has as many threads
as `--threads` says, so that on a CPU two processes have twice the cores of one. What one start costs (imports, joining,
the network) is outside the time. Printed are medians and the most, the ratio to one process, and the efficiency: that
ratio over the number of processes; and the CPU seconds of all processes together, which say what the division itself
costs also on a machine that has other work. With several GPUs: `--device cuda --processes 1 2 4`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mammosae_plugin import distributed
from mammosae_plugin.activations import ActivationStore, extract_activations, extraction, write_store
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.training import SAETraining
from mammosae_plugin.training import sae as training
from mammosae_plugin.training.rows import TrainingRows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--architecture", default="tf_efficientnet_b0")
    parser.add_argument("--image-size", type=int, nargs=2, default=(380, 228))
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sae", default="standard", choices=["standard", "topk", "batchtopk"])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    multiprocessing.set_forkserver_preload(["mammosae_plugin.training"])  # imported once for all processes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_phantoms(
            folder / "phantoms", n_patients=options.images, images_per_patient=1, image_size=options.image_size
        )
        write_rows(folder / "rows", options)
        found: dict[tuple[str, int], list[float]] = {}
        for round_number in range(options.rounds):
            for n in options.processes:
                for what, rate in launch(n, folder, round_number, options).items():
                    found.setdefault((what, n), []).append(rate)
    print(
        f"{options.architecture} at {options.image_size[0]} x {options.image_size[1]}, {options.images} images; "
        f"{options.sae} {options.d_in} x {options.d_sae}, {options.batch} rows a step; {options.device}, "
        f"{options.threads} threads a process"
    )
    for what, unit in (("extraction", "images/s"), ("training", "rows/s")):
        first, first_cpu = (statistics.median(found[name, options.processes[0]]) for name in (what, f"{what} CPU"))
        for n in options.processes:
            rates, cpu = found[what, n], statistics.median(found[f"{what} CPU", n])
            ratio = statistics.median(rates) / first
            print(
                f"{what:10} {n} processes {statistics.median(rates):9.2f} {unit} median, {max(rates):9.2f} most, "
                f"{ratio:.2f} times {options.processes[0]}, efficiency {ratio * options.processes[0] / n:.0%}; "
                f"{cpu:.2f} CPU s in all, {cpu / first_cpu:.2f} times"
            )


def launch(n: int, folder: Path, round_number: int, options: argparse.Namespace) -> dict[str, float]:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id="benchmark",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="forkserver",
    )
    out = folder / f"{n}-{round_number}"
    elastic_launch(config, work)(folder, out, options)
    rates: dict[str, float] = json.loads((out / "rates.json").read_text())
    return rates


def work(folder: Path, out: Path, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    device = distributed.place(options.device)
    extraction.IMAGES_PER_SHARD = 2
    images = VinDrMammo(folder / "phantoms", image_size=tuple(options.image_size))
    model = HookedVisionModel(new_classifier(options.architecture, 1, seed=0), ["bn2"])
    model.to(device)
    model.read(images[0]["image"][None].to(device), model.final_hook or "")
    extracted, extracted_cpu = timed(
        lambda: extract_activations(model, images, out / "store", fraction=0.25, dtype="float16", device=device)
    )
    trained, trained_cpu = timed_training(folder, out, device, options)
    found = {
        "extraction": len(images) / extracted,
        "extraction CPU": extracted_cpu,
        "training": options.batch * options.steps / trained,
        "training CPU": trained_cpu,
    }
    if distributed.is_main():
        (out / "rates.json").write_text(json.dumps(found))
    distributed.stop()


def timed_training(folder: Path, out: Path, device: str, options: argparse.Namespace) -> tuple[float, float]:
    settings: dict[str, Any] = {} if options.sae == "standard" else {"k": 32}
    config = SAETraining(
        architecture=options.sae, d_sae=options.d_sae, batch_size=options.batch, checkpoint_every=10**9,
        evaluate_every=10**9, **settings,
    )  # fmt: skip
    rows = TrainingRows(ActivationStore(folder / "rows"), options.batch, 0)
    run = training._Run(
        training._Job(out / "sae", config, {}, device, None, None), {"steps": 10**6, "config": {}}, rows
    )
    batches = rows.batches(part=(distributed.rank(), distributed.world_size()))
    run.step(next(batches).to(device))

    def steps() -> None:
        for _ in range(options.steps):
            run.step(next(batches).to(device))
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    seconds = timed(steps)
    run.close()
    return seconds


def timed(job: Any) -> tuple[float, float]:
    """Seconds from when all processes begin to when all have ended, and CPU seconds of all."""
    distributed.on_main(lambda: None)
    start, start_cpu = time.perf_counter(), time.process_time()
    job()
    distributed.on_main(lambda: None)
    seconds = time.perf_counter() - start
    cpu = torch.tensor([time.process_time() - start_cpu])
    distributed.add_up([cpu])
    return seconds, float(cpu)


def write_rows(folder: Path, options: argparse.Namespace) -> None:
    rows = torch.randn(4 * options.batch, options.d_in, generator=torch.Generator().manual_seed(0)).relu()
    numbers = torch.arange(len(rows))
    described = {
        "hook_name": "bn2.hook_out", "image_size": [1520, 912], "dataset_name": "random", "dataset": "random",
        "splits": ["training"], "model": "random", "architecture": "random", "source": {}, "image_ids": ["random"],
        "patients": [0],
    }  # fmt: skip
    write_store(folder, [(rows, torch.zeros_like(numbers), numbers)], described)


if __name__ == "__main__":
    main()
