"""Scores of 8,192 latents over 50,000 images against one latent at a time, and their memory at more rows.

    python benchmarks/scores.py [--images 50000 --latents 8192 --active 40 --labels 121 --d 256] [--share 0.01]
    python benchmarks/scores.py --rows 200000     # memory alone: peak with so many rows, in a process of its own

*Monosemanticity*: `monosemanticity_of` against SAIL's way, written from its formulas: of every latent a dense column
is sorted, walked down for the strongest image of each group, and the label rows of the first 10 and 50 are compared by
one matrix product. The slow way runs on a share of the latents, spread evenly over all, and is scaled up; both ways
must give the same numbers there. SAIL looks up the group of every row in a data frame, which is timed too. Seconds are
those of the CPU.

*Label-free score*: `activation_similarity_of` of as many latents against the loop over pairs of images, N = 2,000, by
NumPy rows: one pass over the 2 million pairs for each latent, which a few latents are timed with.

*Memory*: the peak of a process that reads codes and embeddings from disk, as `monosemanticity` and
`activation_similarity` take them from tables and stores, above what it held before the scores.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from mammosae_plugin.analysis import activation_similarity_of, monosemanticity_of
from mammosae_plugin.analysis.codes import as_codes
from mammosae_plugin.analysis.similarity import pair_similarity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--active", type=int, default=40, help="active latents per image")
    parser.add_argument("--labels", type=int, default=121)
    parser.add_argument("--d", type=int, default=256, help="width of the embeddings")
    parser.add_argument("--share", type=float, default=0.01, help="of the latents, by the slow way")
    parser.add_argument("--rows", type=int, help="print the peak memory with so many rows, and nothing else")
    options = parser.parse_args()
    if options.rows:
        print(memory(options.rows, options.latents, options.active, options.labels, options.d))
        return
    for rows in (options.images, 4 * options.images):
        command = [sys.executable, __file__, "--rows", str(rows)]
        for name in ("latents", "active", "labels", "d"):
            command += [f"--{name}", str(getattr(options, name))]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="", flush=True)
    codes, labels, groups = problem(options.images, options.latents, options.active, options.labels)
    labels_by_one_latent_at_a_time(codes, labels, groups, options.share)
    pairs(options.latents, options.active, options.d)


def problem(
    n_images: int, n_latents: int, n_active: int, n_labels: int
) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Codes where some latents are frequent and most are rare, labels, and 25 images of each group."""
    rng = np.random.default_rng(0)
    frequent = 1 / np.sqrt(np.arange(1, n_latents + 1))
    latents = rng.choice(n_latents, size=n_images * n_active, p=frequent / frequent.sum())
    rows = np.repeat(np.arange(n_images), n_active)
    values = rng.random(len(rows), dtype=np.float32) + 0.01
    codes = sparse.csr_array(sparse.coo_array((values, (rows, latents)), shape=(n_images, n_latents)))
    return codes, rng.random((n_images, n_labels), dtype=np.float32) < 0.1, np.arange(n_images) // 25


def labels_by_one_latent_at_a_time(
    codes: sparse.csr_array, labels: np.ndarray, groups: np.ndarray, share: float
) -> None:
    nulls = {10: 0.05, 50: 0.05}
    start = time.process_time()
    found = monosemanticity_of(codes, labels, groups, null=nulls)
    fast = time.process_time() - start
    chosen = np.unique(np.linspace(0, codes.shape[1] - 1, max(2, round(share * codes.shape[1]))).astype(int))
    dense = codes.toarray()  # as SAIL holds them: a latent is a column of a row-wise array
    frame = pd.DataFrame({"image_id": groups} | {f"column {n}": groups.astype(str) for n in range(20)})
    told = []
    for ids in (groups, frame):
        start = time.process_time()
        slow_scores = {int(latent): one_latent(dense[:, latent], labels, ids) for latent in chosen}
        told.append((time.process_time() - start) / len(chosen) * codes.shape[1])
    scored = found.set_index("latent")
    for latent, scores in slow_scores.items():
        for n, (coherence, specificity) in scores.items():
            mine = scored.loc[latent, [f"coherence_{n}", f"specificity_{n}"]].to_numpy(dtype=float)
            np.testing.assert_allclose(mine, [coherence, specificity], atol=1e-5)
    print(
        f"monosemanticity, {codes.shape[1]:,} latents, {codes.shape[0]:,} images, {labels.shape[1]} labels: "
        f"{fast:.2f} s; one latent at a time {told[0]:.0f} s (from {len(chosen)} latents), {told[0] / fast:.0f} times; "
        f"with the look-ups in a data frame of SAIL's code {told[1]:.0f} s, {told[1] / fast:.0f} times"
    )


def one_latent(activations: np.ndarray, labels: np.ndarray, ids: Any) -> dict[int, tuple[float, float]]:
    """Coherence and specificity of the first 10 and 50 images, as SAIL computes them."""
    seen: set[int] = set()
    top: list[int] = []
    for row in np.argsort(activations)[::-1]:
        if activations[row] <= 0 or len(top) == 50:
            break
        group = ids.iloc[row]["image_id"] if isinstance(ids, pd.DataFrame) else ids[row]
        if group not in seen:
            seen.add(group)
            top.append(int(row))
    scores = {}
    for n in (10, 50):
        if len(top) < n:
            continue
        own = labels[top[:n]].astype(np.float32)
        both, sizes = own @ own.T, own.sum(axis=1)
        either = sizes[:, None] + sizes[None, :] - both
        alike = np.ones((n, n))
        alike[either > 0] = both[either > 0] / either[either > 0]
        coherence = alike[np.triu_indices(n, k=1)].mean()
        share = own.sum(axis=0) / max(own.sum(), 1)
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        scores[n] = (float(coherence), float(1 - entropy / np.log(labels.shape[1])) if own.any() else 0.0)
    return scores


def pairs(n_latents: int, n_active: int, d: int, *, n_images: int = 2000, n_timed: int = 3) -> None:
    codes, _, _ = problem(n_images, n_latents, n_active, 1)
    rows = np.random.default_rng(1).normal(size=(n_images, d)) + 0.2
    start = time.process_time()
    found = activation_similarity_of(codes, rows)
    fast = (time.process_time() - start) / n_latents
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    dense = sparse.csc_array(codes)[:, list(range(n_timed))].toarray().astype(np.float64)
    start = time.process_time()
    for latent in range(n_timed):
        a, over, weight = dense[:, latent], 0.0, 0.0
        for i in range(1, n_images):  # every pair of images once, as the formula has it
            product = a[i] * a[:i]
            over += product @ (unit[:i] @ unit[i])
            weight += product.sum()
        np.testing.assert_allclose(found[latent], over / weight, atol=1e-9)
    slow = (time.process_time() - start) / n_timed
    print(
        f"label-free score, {n_images:,} images of width {d}, {n_latents:,} latents: {fast * n_latents:.2f} s, "
        f"{fast * 1e6:.0f} us a latent; the loop over pairs {slow:.2f} s a latent: {slow / fast:,.0f} times"
    )


def memory(n_rows: int, n_latents: int, n_active: int, n_labels: int, d: int) -> str:
    codes, labels, groups = problem(n_rows, n_latents, n_active, n_labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_rows, d))
        for first in range(0, n_rows, 10_000):
            stored[first : first + 10_000] = np.random.default_rng(first).normal(
                size=(len(stored[first : first + 10_000]), d)
            )
        stored.flush()
        rows = np.load(path, mmap_mode="r")
        before = peak()
        start = time.process_time()
        monosemanticity_of(codes, labels, groups)
        by_labels, seconds = peak(), time.process_time() - start
        start = time.process_time()
        pair_similarity(
            as_codes(codes),
            lambda: (
                (np.arange(i, min(i + 1024, n_rows)), np.asarray(rows[i : i + 1024])) for i in range(0, n_rows, 1024)
            ),
            groups,
            np.ones(n_latents, dtype=bool),
        )
        without, other = peak(), time.process_time() - start
    return (
        f"{n_rows:,} rows: codes and labels {before:.2f} GB; peak after monosemanticity {by_labels:.2f} GB "
        f"({seconds:.1f} s), after the label-free score with errors {without:.2f} GB ({other:.1f} s)"
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
