"""Codes of stored embeddings: `encode_rows` against one row per forward pass, all levels decoded, dense rows on disk.

    python benchmarks/encode_rows.py
    python benchmarks/encode_rows.py --rows 2000 --theirs 100
    python benchmarks/encode_rows.py --sizes 50000 200000 900000 --d-in 1024 --l0 41

The second way is that of SAIL's released script: a loader of single rows, the SAE's whole forward pass (every level
encoded and decoded), and a parquet file of all latents of every row as raw float32 bytes. It is run on `--theirs` rows
and its time and disk are told for all of them; both ways take the same rows and the same SAE, on the same threads.

With `--sizes`, instead, the memory and disk of `encode_rows` alone: for each number of rows a file of noise with 121
columns of labels, which is written and read in pieces, and a process of its own, whose largest memory is told.
"""

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.activations.embedding_files import write_vectors
from mammosae_plugin.latents import encode_rows


def sae_of(d_in: int, levels: list[int], l0: float) -> StandardSAE:
    """Random directions, and a bias with which so many latents fire on rows of noise."""
    metadata = SAEMetadata(input_normalization="unit_l2", levels=levels)
    d_sae = levels[-1]
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True, metadata=metadata))
    weight = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0)), dim=1)
    quantile = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - l0 / d_sae)))
    bias = torch.full((d_sae,), -quantile / d_in**0.5)
    sae.load_state_dict({"W_enc": weight.T.contiguous(), "W_dec": weight, "b_enc": bias, "b_dec": torch.zeros(d_in)})
    return sae.eval()


@torch.no_grad()
def one_at_a_time(rows: np.ndarray, sae: StandardSAE, levels: list[int], path: Path) -> np.ndarray:
    """The codes (n, d_sae) of rows, which are written to a parquet file."""
    codes = []
    for row in torch.utils.data.DataLoader(torch.from_numpy(rows), batch_size=1):
        unit = torch.nn.functional.normalize(row, dim=-1)
        for level in levels:
            latents = torch.relu((unit - sae.b_dec) @ sae.W_enc[:, :level] + sae.b_enc[:level])
            _ = latents @ sae.W_dec[:level] + sae.b_dec
        codes.append(latents[0].numpy())
    found = np.stack(codes)
    write_vectors(path, pd.DataFrame({"image_id": [str(n) for n in range(len(rows))]}), [found])
    return found


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def noise(n: int, d_in: int, block: int = 1024) -> Iterator[np.ndarray]:
    """Rows (n, d_in) of noise, a block at a time."""
    drawn = np.random.default_rng(0)
    for start in range(0, n, block):
        yield drawn.standard_normal((min(block, n - start), d_in), dtype=np.float32)


def megabytes_of_memory(which: str) -> float:
    """Of this process: VmRSS, now, or VmHWM, at most; Linux alone tells."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+) kB", status)[1]) / 1e3


def _encode_alone(source: Path, table_at: Path, d_in: int, levels: list[int], l0: float, to: Any) -> None:
    sae = sae_of(d_in, levels, l0)
    before, start, cpu = megabytes_of_memory("VmRSS"), time.perf_counter(), time.process_time()
    table = encode_rows(source, sae, table_at)
    (seconds, cpu_seconds), peak = (now - then for now, then in _times(start, cpu)), megabytes_of_memory("VmHWM")
    fired = sum(table.reconstruction_sums(split)["l0"] for split in table.splits)
    to.send(
        {
            "l0": fired / len(table.images),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "memory_before": before,
            "memory_at_most": peak,
        }
    )


def of_size(n: int, d_in: int, levels: list[int], l0: float, n_labels: int = 121) -> dict[str, float]:
    """Memory (MB) of a process that encodes so many rows, and what files take (MB)."""
    labels = np.random.default_rng(1).random((n, n_labels)) < 0.1
    known = pd.DataFrame(labels.astype(np.int8), columns=[f"organ_{at}" for at in range(n_labels)])
    known.insert(0, "image_id", [f"ct/s{row // 300:04d}/z/{row % 300:04d}" for row in range(n)])
    with tempfile.TemporaryDirectory() as scratch:
        source, table_at = Path(scratch) / "rows_train.parquet", Path(scratch) / "table"
        write_vectors(source, known, noise(n, d_in))
        context = multiprocessing.get_context("spawn")  # a process that inherits no memory
        read, write = context.Pipe(duplex=False)
        child = context.Process(target=_encode_alone, args=(source, table_at, d_in, levels, l0, write))
        child.start()
        write.close()
        found: dict[str, float] = read.recv()
        child.join()
        of_labels = sum(path.stat().st_size for path in table_at.rglob("*.parquet"))
        sizes = {"rows": source.stat().st_size, "table": n_bytes(table_at), "labels_in_it": of_labels}
    return {"n": n, **found, **{f"disk_{name}": size / 1e6 for name, size in sizes.items()}}


def _times(start: float, cpu: float) -> list[tuple[float, float]]:
    """Now and then, of the clock and of the process; the latter hardly feels what else the machine does."""
    return [(time.perf_counter(), start), (time.process_time(), cpu)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--theirs", type=int, default=400, help="rows of the slow way")
    parser.add_argument("--d-in", type=int, default=1536)
    parser.add_argument("--levels", type=int, nargs="+", default=[128, 512, 2048, 8192])
    parser.add_argument("--l0", type=float, default=40.0, help="latents that fire per row, about")
    parser.add_argument("--sizes", type=int, nargs="+", help="memory and disk at so many rows, instead")
    args = parser.parse_args()
    if args.sizes:
        for size in args.sizes:
            print(json.dumps(of_size(size, args.d_in, args.levels, args.l0)))
            sys.stdout.flush()
        return
    rows = np.random.default_rng(0).standard_normal((args.rows, args.d_in), dtype=np.float32)
    sae = sae_of(args.d_in, args.levels, args.l0)
    with tempfile.TemporaryDirectory() as scratch:
        source, table_at, dense = (Path(scratch) / name for name in ("rows.parquet", "table", "dense.parquet"))
        known = pd.DataFrame({"image_id": [str(n) for n in range(args.rows)]})
        write_vectors(source, known, (rows[start : start + 1024] for start in range(0, args.rows, 1024)))
        theirs = min(args.theirs, args.rows)
        one_at_a_time(rows[:8], sae, args.levels, dense)  # threads and allocators are warm
        start, cpu = time.perf_counter(), time.process_time()
        wanted = one_at_a_time(rows[:theirs], sae, args.levels, dense)
        slow, slow_cpu = ((now - then) / theirs * args.rows for now, then in _times(start, cpu))
        start, cpu = time.perf_counter(), time.process_time()
        table = encode_rows(source, sae, table_at)
        fast, fast_cpu = (now - then for now, then in _times(start, cpu))
        codes = table.codes()
        np.testing.assert_allclose(codes[:theirs].toarray(), wanted, atol=1e-5)
        ours, of_dense = n_bytes(table_at), dense.stat().st_size / theirs * args.rows
        result = {
            "rows": args.rows,
            "d_in": args.d_in,
            "levels": args.levels,
            "l0": codes.nnz / args.rows,
            "threads": torch.get_num_threads(),
            "seconds": {"encode_rows": fast, "one_at_a_time": slow, "ratio": slow / fast},
            "cpu_seconds": {"encode_rows": fast_cpu, "one_at_a_time": slow_cpu, "ratio": slow_cpu / fast_cpu},
            "megabytes": {
                "encode_rows": ours / 1e6,
                "one_at_a_time_snappy": of_dense / 1e6,
                "ratio_to_snappy": of_dense / ours,
                "dense_float32": 4e-6 * args.rows * args.levels[-1],
                "ratio_to_dense_float32": 4 * args.rows * args.levels[-1] / ours,
            },
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
