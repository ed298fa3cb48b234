"""Codes of stored embeddings: `encode_rows` against one row per forward pass, all levels decoded, dense rows on disk.

    python benchmarks/encode_rows.py
    python benchmarks/encode_rows.py --rows 2000 --theirs 100

The second way is that of SAIL's released script: a loader of single rows, the SAE's whole forward pass (every level
encoded and decoded), and a parquet file of all latents of every row as raw float32 bytes. It is run on `--theirs` rows
and its time and disk are told for all of them; both ways take the same rows and the same SAE, on the same threads.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

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
    args = parser.parse_args()
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
