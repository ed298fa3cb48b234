"""The shuffled stream of rows: its rate against `cat` of the same files, its mixing against a full shuffle, its memory.

    python benchmarks/reservoir.py [--gigabytes 2] [--d-in 2048] [--dtype float16] [--rounds 3] [--folder FOLDER]

Writes a store of random rows in shards of 64 images with 348 rows each (a quarter of a 48 x 29 map), then alternates
between `cat` of its shards and one epoch of batches of 4096 rows: first with the files dropped from the page cache (the
disk's rate), then with the files in it. Without `crc32` and the finite check the stream would be faster and blind.
A process of its own reads one epoch per size of the reservoir and tells its peak memory.

Mixing is the mean entropy, in nats, of the images in a batch of 4096, over that of a full shuffle, for the real case of
16,000 images (5.6 million rows, 250 shards), where only the rows' image numbers are moved.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.reservoir import BlockReader, shuffled_batches
from mammosae_plugin.activations.store import DTYPES, rows_per_block, seal_store, shard_tensors
from mammosae_plugin.shards import run_shards

IMAGES_PER_SHARD, ROWS_PER_IMAGE, BATCH = 64, 348, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--dtype", default="float16", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Write the store here, on the disk that is to be measured.")
    parser.add_argument("--one-epoch", metavar="ROWS", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_epoch:
        one_epoch(ActivationStore(options.folder), options.one_epoch)
        # getrusage would give the peak of the parent process, where that is higher.
        status = Path("/proc/self/status").read_text()
        print(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**10)
        return
    print_mixing()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store = random_store(Path(name), options)
        print_rates(store, options.rounds)
        print_memory(store)


def random_store(folder: Path, options: argparse.Namespace) -> ActivationStore:
    n_rows = IMAGES_PER_SHARD * ROWS_PER_IMAGE
    dtype = DTYPES[options.dtype]
    n_shards = max(1, round(options.gigabytes * 1e9 / (n_rows * options.d_in * dtype.itemsize)))
    rows = torch.randn(n_rows, options.d_in).to(dtype)

    def compute(items: range) -> dict[str, torch.Tensor]:
        image = torch.arange(IMAGES_PER_SHARD).repeat_interleave(ROWS_PER_IMAGE) + items.start * IMAGES_PER_SHARD
        position = torch.arange(ROWS_PER_IMAGE).repeat(IMAGES_PER_SHARD)
        return shard_tensors([rows], [image], [position], seed=[0, items.start])

    run_shards(folder, {"random": True}, n_shards, 1, compute, description="write rows", unit="shard")
    ids = [str(number) for number in range(n_shards * IMAGES_PER_SHARD)]
    return seal_store(folder, {"hook_name": "random", "image_ids": ids}, d_in=options.d_in, dtype=options.dtype)


def one_epoch(store: ActivationStore, reservoir_rows: int | None = None) -> None:
    for _ in islice(store.batches(BATCH, reservoir_rows=reservoir_rows), store.n_rows // BATCH):
        pass


def print_rates(store: ActivationStore, rounds: int) -> None:
    shards = sorted(store.folder.glob("shard-*"))
    n_bytes = sum(path.stat().st_size for path in shards)
    print(
        f"\n{store.n_rows} rows of {store.d_in} {store.manifest['dtype']}, {n_bytes / 1e9:.2f} GB, {len(shards)} shards"
    )
    for cached in (False, True):
        seconds: dict[str, list[float]] = {"cat": [], "reservoir": []}
        for _ in range(rounds):
            for way, times in seconds.items():
                for path in shards:
                    drop_or_fill_cache(path, cached)
                start = time.perf_counter()
                if way == "cat":
                    subprocess.run(["cat", *map(str, shards)], stdout=subprocess.DEVNULL, check=True)
                else:
                    one_epoch(store)
                times.append(time.perf_counter() - start)
        print("files in the page cache" if cached else "files on the disk")
        for way, times in seconds.items():
            rates = [f"{n_bytes / 1e9 / value:.2f}" for value in (statistics.median(times), min(times))]
            print(f"  {way:10} {rates[0]} GB/s in the median, {rates[1]} at best")
        median = {way: statistics.median(times) for way, times in seconds.items()}
        print(f"  ratio {median['cat'] / median['reservoir']:.2f}, {store.n_rows / median['reservoir']:,.0f} rows/s")


def drop_or_fill_cache(path: Path, cached: bool) -> None:
    with path.open("rb") as file:
        if cached:
            while file.read(2**24):
                pass
        else:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def print_memory(store: ActivationStore) -> None:
    print("\npeak memory of a process that reads one epoch")
    row_bytes = store.d_in * store.dtype.itemsize
    for share in (64, 8, 2):
        rows = store.n_rows // share
        command = [sys.executable, __file__, "--folder", str(store.folder), "--one-epoch", str(rows)]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"  reservoir {rows:8} rows = {rows * row_bytes / 2**20:7.0f} MiB: {peak:7.0f} MiB")


def print_mixing(n_images: int = 16_000, d_in: int = 2048, dtype: torch.dtype = torch.float16) -> None:
    rng = np.random.default_rng(0)
    shard = np.repeat(np.arange(IMAGES_PER_SHARD), ROWS_PER_IMAGE)
    image = np.concatenate([rng.permutation(shard) + first for first in range(0, n_images, IMAGES_PER_SHARD)])
    rows = torch.from_numpy(image.astype(np.float32))[:, None]
    step, n_batches = rows_per_block(d_in, dtype), 200
    blocks = [block for part in torch.split(rows, len(shard)) for block in torch.split(part, step)]
    lengths = np.array([len(block) for block in blocks])
    reader = BlockReader(lengths, blocks.__getitem__, 1, torch.float32)
    shuffled = rows[torch.from_numpy(rng.permutation(len(rows)))]
    full = mean_entropy(list(torch.split(shuffled, BATCH))[:n_batches])
    print(f"entropy of the images in a batch of {BATCH}: {n_images} images, {len(rows)} rows; full shuffle {full:.3f}")
    for mebibytes in (64, 256, 1024, 4096):
        reservoir_rows = mebibytes * 2**20 // (d_in * dtype.itemsize)
        batches = islice(shuffled_batches(reader, BATCH, seed=0, reservoir_rows=reservoir_rows), n_batches)
        found = mean_entropy(batches)
        print(f"  reservoir {mebibytes:5} MiB ({reservoir_rows:8} rows): {found:.3f} nats, {found / full:.1%}")


def mean_entropy(batches: "list[torch.Tensor] | islice[torch.Tensor]") -> float:
    found = []
    for batch in batches:
        shares = np.unique(batch.numpy(), return_counts=True)[1] / len(batch)
        found.append(-(shares * np.log(shares)).sum())
    return float(np.mean(found))


if __name__ == "__main__":
    main()
