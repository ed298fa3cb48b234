"""A training step of `train_sae` against SAELens's own and a bare torch step of the same mathematics, in one run.

    python benchmarks/training_step.py [--d-in 2048 --d-sae 16384 --batch 4096] [--architecture standard] [--steps 7]
    python benchmarks/training_step.py --architecture topk --batch 512 --k 32 --dead 0.2

The bare step is written here by hand: forward, loss, backward, clipping of the gradient at norm 1, Adam; it knows no
auxiliary loss. SAELens's is the `step` of its `SAETrainer` on its own class with the same settings. Ours is what the
training loop does for every batch, with what it counts (which latents fired) and writes. All start from the same
weights and take turns on the same batches, and after the last step their weights are compared. `--dead` is the share of
latents that count as dead in every step, which the auxiliary loss is about (SAELens's and ours). Printed are medians
and minima (CPU seconds of all threads; on a GPU seconds), the ratios, rows per second, and what share of the machine's
own rate of matrix products (measured here at the sizes of the step) the dense step's products would come to in the time
of ours: above 1 for a step that makes fewer. `--device cuda` and `--autocast` (bfloat16) do the same there.
"""

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.store import write_store
from mammosae_plugin.training import SAETraining
from mammosae_plugin.training import sae as training
from mammosae_plugin.training.rows import TrainingRows

BARE = ("standard", "topk", "batchtopk")
OTHER = ("abstopk", "matryoshka_batchtopk", "matryoshka_independent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--architecture", default="standard", choices=[*BARE, *OTHER])
    parser.add_argument("--k", type=int, default=64, help="latents that fire per row, where the architecture has k")
    parser.add_argument("--dead", type=float, default=0.0, help="share of the latents that count as dead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true")
    options = parser.parse_args()
    seconds, differences = measured(options)
    rate = matrix_rate(options)
    products = 5  # two forward; three backward, for the decoder, the latents and the encoder: the rows need no gradient
    work = 2 * products * options.batch * options.d_in * options.d_sae
    ours = seconds["ours"]
    print(
        f"{options.architecture}, {options.d_in} x {options.d_sae}, {options.batch} rows, {options.device}, "
        f"{'bfloat16 autocast' if options.autocast else 'float32'}, {torch.get_num_threads()} threads, "
        f"{options.dead:.0%} dead"
    )
    for name, each in seconds.items():
        median, least = statistics.median(each), min(each)
        print(f"{name:26s} {median:9.4f} s median, {least:9.4f} s least", end="")
        print(
            f"; {median / statistics.median(ours):.2f} and {least / min(ours):.2f} times ours" if name != "ours" else ""
        )
    print(f"rows per second            {options.batch / statistics.median(ours):9.0f}")
    print(f"share of the matrix rate   {work / min(ours) / rate:9.2f} of {rate / 1e9:.0f} GFLOP/s")
    for name, apart in differences.items():
        print(f"{name} differ by {apart:.1e} of the change in {options.steps + 1} steps")


def measured(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each step by whose it is; and how far weights are apart after them, by the pair."""
    settings: dict[str, Any] = {} if options.architecture == "standard" else {"k": options.k}
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
        batch = next(store.batches(options.batch)).to(options.device)
        saelens = saelens_trainer(run.trainer, config)
        start = {name: each.detach().clone() for name, each in saelens.sae.named_parameters()}
        steps: dict[str, Callable[[], Any]] = {
            "ours": lambda: run.step(batch),
            "SAELens's own": lambda: saelens.step(batch),
        }
        bare = None
        if options.architecture in BARE and not options.dead:
            bare = BareStep(run.trainer.sae, config, options)
            steps["the bare step"] = lambda: bare(batch)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(options.steps + 1):  # the first warms up
            for name, step in steps.items():
                for trainer in (run.trainer, saelens):
                    mark_dead(trainer, options.dead)
                taken = timed(step, options.device)
                if number:
                    seconds[name].append(taken)
        weights, saelens_weights = dict(run.trainer.sae.named_parameters()), dict(saelens.sae.named_parameters())
        differences = {"ours and SAELens's own": difference(weights, saelens_weights, start)}
        if bare is not None:
            differences["the bare step and SAELens's own"] = difference(bare.by_name, saelens_weights, start)
        run.close()
    return seconds, differences


def saelens_trainer(like: SAETrainer[Any, Any], config: SAETraining) -> SAETrainer[Any, Any]:
    """SAELens's own trainer on its own class, from the weights of another."""
    cfg = copy.deepcopy(like.sae.cfg)
    sae = config.kind.sae(cfg)
    sae.load_state_dict(like.sae.state_dict())
    return SAETrainer(like.cfg, sae, iter(()))


def mark_dead(trainer: SAETrainer[Any, Any], share: float) -> None:
    silent = trainer.n_forward_passes_since_fired
    silent.zero_()
    silent[: int(share * len(silent))] = trainer.cfg.dead_feature_window + 1


Weights = Mapping[str, torch.Tensor]


@torch.no_grad()
def difference(ours: Weights, theirs: Weights, start: Weights) -> float:
    """The norm of the difference of the weights over that of the change from the start."""
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
    moved = sum(float((theirs[name] - start[name]).double().square().sum()) for name in ours)
    return (apart / moved) ** 0.5


class BareStep:
    """The same step by hand, on copies of an SAE's weights."""

    def __init__(self, sae: Any, config: SAETraining, options: argparse.Namespace) -> None:
        self.by_name = {name: each.detach().clone().requires_grad_() for name, each in sae.named_parameters()}
        self.parameters = list(self.by_name.values())
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
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    start = clock()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def matrix_rate(options: argparse.Namespace) -> float:
    """Operations per second of the best of five products of the step's sizes."""
    dtype = torch.bfloat16 if options.autocast else torch.float32
    rows = torch.randn(options.batch, options.d_in, device=options.device, dtype=dtype)
    weights = torch.randn(options.d_in, options.d_sae, device=options.device, dtype=dtype)
    least = min(timed(lambda: torch.mm(rows, weights), options.device) for _ in range(5))
    return 2 * options.batch * options.d_in * options.d_sae / least  # of CPU time: of one thread


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
