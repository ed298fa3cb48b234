"""Nested SAEs of four configurations trained in one pass over the rows against four runs, side by side.

    python benchmarks/several_saes.py [--d-in 1024 --latents 1024 --rows 65536 --batch 2048 --epochs 2] [--rounds 3]

The configurations are four of SAIL's grid (levels of a 64th, 16th, quarter and all of the latents, budgets 5, 10, 20
and 30 at each), with tied weights on rows of length 1. The two ways take turns; both read the rows from the store on
disk, measure every SAE at the end and write it (but draw no figure), and end with the same weights, which is checked.
Printed are medians of seconds and of CPU seconds (which say the same on a machine that has other work), the ratio, and
what reading the rows once takes by itself: of four runs one pass spares three such readings, and no step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mammosae_plugin.activations import ActivationStore, write_store
from mammosae_plugin.training import SAETraining, train_sae, train_saes
from mammosae_plugin.training import sae as training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=1024)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    widths = [options.latents // part for part in (64, 16, 4, 1)]
    settings = {
        f"k{k}": SAETraining(
            architecture="matryoshka_independent",
            architecture_settings={"tied_weights": True},
            matryoshka_widths=tuple(widths),
            matryoshka_k=tuple(min(k, width) for width in widths),
            k=k,
            d_sae=options.latents,
            normalize_activations="unit_l2",
            batch_size=options.batch,
            epochs=options.epochs,
            dead_feature_window=2,
            lr=1e-4,
        )
        for k in (5, 10, 20, 30)
    }
    training.draw_metrics = lambda *_: None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = rows_of_one_vector(folder / "rows", options.rows, options.d_in)
        steps = int(options.rows * options.epochs // options.batch)
        together: list[tuple[float, float]] = []
        apart: list[tuple[float, float]] = []
        reading: list[tuple[float, float]] = []
        for number in range(options.rounds):
            place = folder / str(number)

            def one_pass(place: Path = place) -> Any:
                return train_saes(store, place / "together", settings, device=options.device)

            def four_runs(place: Path = place) -> Any:
                return {
                    name: train_sae(store, place / "apart" / name, config, device=options.device)
                    for name, config in settings.items()
                }

            def read() -> None:
                for _, batch in zip(range(steps), store.batches(options.batch), strict=False):
                    batch.sum()

            first, second = (one_pass, four_runs) if number % 2 == 0 else (four_runs, one_pass)
            found = {}
            for way in (first, second):
                seconds, saes = timed(way)
                found[way] = saes
                (together if way is one_pass else apart).append(seconds)
            reading.append(timed(read)[0])
            for key in settings:
                assert torch.equal(found[one_pass][key].W_dec, found[four_runs][key].W_dec) or options.device != "cpu"

    print(
        f"four SAEs of {options.d_in} x {options.latents}, {steps} steps of {options.batch} rows, {options.device}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds}"
    )
    for what, times in (("one pass", together), ("four runs", apart), ("reading the rows once", reading)):
        wall, cpu = (statistics.median(part) for part in zip(*times, strict=True))
        print(f"{what:22s} {wall:8.2f} s, {cpu:8.2f} CPU s")
    wall, cpu = (
        statistics.median(one[part] / other[part] for one, other in zip(apart, together, strict=True))
        for part in (0, 1)
    )
    print(f"four runs take {wall:.2f} times as long as one pass, {cpu:.2f} times the CPU seconds")


def timed(function: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds and CPU seconds of a call, and what it gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function()
    return (time.perf_counter() - wall, time.process_time() - cpu), found


def rows_of_one_vector(folder: Path, n_rows: int, d_in: int) -> ActivationStore:
    """Rows (n, d_in) of sparse combinations of directions, one per image, as embeddings are stored."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * d_in, d_in, generator=generator) / d_in**0.5

    def shards() -> Any:
        for start in range(0, n_rows, 8192):
            n = min(8192, n_rows - start)
            chosen = torch.randint(len(directions), (n, 16), generator=generator)
            rows = (directions[chosen] * torch.rand(n, 16, 1, generator=generator)).sum(1)
            yield rows, torch.arange(start, start + n), torch.zeros(n, dtype=torch.int64)

    described = {
        "hook_name": "pooled", "image_size": [1, 1], "dataset_name": "synthetic", "dataset": "synthetic",
        "splits": ["training"], "model": "synthetic", "architecture": "synthetic", "source": {},
        "image_ids": [f"image-{number}" for number in range(n_rows)], "patients": list(range(n_rows)),
    }  # fmt: skip
    return write_store(folder, list(shards()), described)


if __name__ == "__main__":
    main()
