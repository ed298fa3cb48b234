"""A training step of `train_sae` against a bare torch step of the same mathematics, in one run.

    python benchmarks/training_step.py [--d-in 2048 --d-sae 16384 --batch 4096] [--architecture standard] [--steps 7]

The bare step is written here by hand: forward, loss, backward, clipping of the gradient at norm 1, Adam. The other is
what the training loop does for every batch, with what it counts (which latents fired) and writes. Both start from the
same weights and take turns on the same batches, and after the last step their weights are compared. Printed are medians
and minima, the ratio, rows per second, and the share of the machine's own rate of matrix products (measured here at the
sizes of the step) that the step's products come to. `--device cuda` and `--autocast` (bfloat16) do the same there.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.store import write_store
from mammosae_plugin.training import SAETraining
from mammosae_plugin.training import sae as training
from mammosae_plugin.training.rows import TrainingRows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--architecture", default="standard", choices=["standard", "topk", "batchtopk"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true")
    options = parser.parse_args()

    settings: dict[str, Any] = {} if options.architecture == "standard" else {"k": 64}
    config = SAETraining(
        architecture=options.architecture,
        d_sae=options.d_sae,
        batch_size=options.batch,
        epochs=10_000,
        checkpoint_every=10**9,
        evaluate_every=10**9,
        autocast=options.autocast,
        **settings,
    )
    with tempfile.TemporaryDirectory() as name:
        store = small_store(Path(name) / "rows", options.d_in, options.batch)
        job = training._Job(Path(name) / "sae", config, {}, options.device, None, None)
        run = training._Run(job, {"steps": 10**6, "config": {}}, TrainingRows(store, options.batch, 0))
        bare = BareStep(run.trainer.sae, config, options)
        batch = next(store.batches(options.batch)).to(options.device)
        ours, theirs = [], []
        for step in range(options.steps + 1):  # the first warms up
            pair = (timed(lambda: run.step(batch), options.device), timed(lambda: bare(batch), options.device))
            if step:
                ours.append(pair[0])
                theirs.append(pair[1])
        difference = max(
            float((mine - other).abs().max())
            for mine, other in zip(run.trainer.sae.parameters(), bare.parameters, strict=True)
        )
        run.close()

    rate = matrix_rate(options)
    products = 5  # two forward; three backward, for the decoder, the latents and the encoder: the rows need no gradient
    work = 2 * products * options.batch * options.d_in * options.d_sae
    median, least = statistics.median(ours), min(ours)
    print(
        f"{options.architecture}, {options.d_in} x {options.d_sae}, {options.batch} rows, {options.device}, "
        f"{'bfloat16 autocast' if options.autocast else 'float32'}, {torch.get_num_threads()} threads"
    )
    print(f"the training loop's step   {median:9.4f} s median, {least:9.4f} s least")
    print(f"the bare step              {statistics.median(theirs):9.4f} s median, {min(theirs):9.4f} s least")
    medians, leasts = median / statistics.median(theirs), least / min(theirs)
    print(f"ratio                      {medians:9.3f} of medians, {leasts:.3f} of least")
    print(f"rows per second            {options.batch / median:9.0f}")
    print(f"share of the matrix rate   {work / least / rate:9.2f} of {rate / 1e9:.0f} GFLOP/s")
    print(f"largest difference of a weight after {options.steps + 1} steps {difference:.1e}")


class BareStep:
    """The same step by hand, on copies of an SAE's weights."""

    def __init__(self, sae: Any, config: SAETraining, options: argparse.Namespace) -> None:
        self.parameters = [parameter.detach().clone().requires_grad_() for parameter in sae.parameters()]
        self.by_name = dict(zip((name for name, _ in sae.named_parameters()), self.parameters, strict=True))
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, betas=(0.9, 0.999))
        self.coefficient = config.sparsity * options.d_in
        self.k, self.architecture = config.k, config.architecture
        self.threshold, self.threshold_lr = torch.zeros((), dtype=torch.float64), config.threshold_lr
        self.context: Callable[[], Any] = (
            (lambda: torch.autocast(torch.device(options.device).type, torch.bfloat16))
            if options.autocast
            else contextlib.nullcontext
        )

    def __call__(self, rows: torch.Tensor) -> None:
        named = self.by_name
        with self.context():
            norms = named["W_dec"].norm(dim=1)
            before = (rows - named["b_dec"]) @ named["W_enc"] + named["b_enc"]
            if self.architecture == "standard":
                latents = torch.relu(before)
                error = latents @ named["W_dec"] + named["b_dec"] - rows
                loss = error.square().sum(1).mean() + self.coefficient * (latents * norms).sum(1).mean()
            else:
                weighted = torch.relu(before * norms)
                n_kept = int(self.k or 0)
                flat = weighted if self.architecture == "topk" else weighted.flatten()
                kept = flat.topk(n_kept if self.architecture == "topk" else n_kept * len(rows), dim=-1, sorted=False)
                latents = torch.zeros_like(flat).scatter(-1, kept.indices, kept.values).reshape(weighted.shape)
                if self.architecture == "batchtopk":  # the threshold of the SAE that is saved
                    lowest = kept.values.detach()[kept.values > 0].min().double()
                    self.threshold = (1 - self.threshold_lr) * self.threshold + self.threshold_lr * lowest
                error = (latents / norms) @ named["W_dec"] + named["b_dec"] - rows
                loss = error.square().sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(step: Callable[[], None], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(options: argparse.Namespace) -> float:
    """Operations per second of the best of five products of the step's sizes."""
    dtype = torch.bfloat16 if options.autocast else torch.float32
    rows = torch.randn(options.batch, options.d_in, device=options.device, dtype=dtype)
    weights = torch.randn(options.d_in, options.d_sae, device=options.device, dtype=dtype)
    least = min(timed(lambda: torch.mm(rows, weights), options.device) for _ in range(5))
    return 2 * options.batch * options.d_in * options.d_sae / least


def small_store(folder: Path, d_in: int, batch: int) -> ActivationStore:
    rows = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0)).relu()
    numbers = torch.arange(batch)
    described = {
        "hook_name": "bn2.hook_out",
        "image_size": [1520, 912],
        "dataset_name": "random",
        "dataset": "random",
        "splits": ["training"],
        "model": "random",
        "architecture": "random",
        "source": {},
        "image_ids": ["random"],
        "patients": [0],
    }
    return write_store(folder, [(rows, torch.zeros_like(numbers), numbers)], described)


if __name__ == "__main__":
    main()
