"""The recommended SAE against those of dictionary_learning, sparsify and overcomplete, on the same batches.

    python benchmarks/peers.py [--half] [--seeds 2] [--steps 2500] [--rows offset ...] [--only "mammosae" ...]
    python benchmarks/peers.py --store maps/rows/bn2.hook_out --d-sae 512 --steps 250 --window 25 --seeds 1

Rows are sparse sums of known directions and a little noise: with a constant offset, as feature maps after a swish have
it, without one, and with features of very different frequency. Or they are those of an activation store (mean_share.py
--keep makes one), scaled to a mean squared norm of 1 as dictionary_learning wants them; a fifth of them, of the same
images, judges. Every method gets the same batches in the same order, as many steps, the width and the k; where its own
settings leave the learning rate open, that of its own rule. The number of rows after which a latent counts as dead is
ours for all: the peers' 10 million is more than a short run has.

Judged is each SAE as its user runs it afterwards, on rows that nobody was trained on: explained variance, L0, and, on
all training rows, the share of dead latents; and the share of the true directions that a decoder row meets with a
cosine above 0.9, where they are known. Prints a table in Markdown. benchmarks/README.md says how to install the peers;
those that are missing are left out.
"""

import argparse
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.store import write_store
from mammosae_plugin.measures.reconstruction import measure
from mammosae_plugin.training import SAETraining, train_sae

N_ROWS, N_HELD_OUT = 65536, 16384
FOUND = 0.9

Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Size(NamedTuple):
    """Of the problem."""

    d_in: int = 64
    d_sae: int = 512
    n_features: int = 256
    k: int = 6  # latents per row, and features in a row on average
    batch_size: int = 256

    @property
    def lr(self) -> float:
        """What dictionary_learning and sparsify choose for the width (Gao et al., 2024)."""
        return 2e-4 / self.scale

    @property
    def scale(self) -> float:
        return (self.d_sae / 2**14) ** 0.5


HALF = Size(32, 256, 128, 4, 128)


class Task(NamedTuple):
    """What every method gets."""

    store: ActivationStore
    size: Size
    steps: int
    window: int  # steps without firing after which a latent is dead
    seed: int
    folder: Path

    @property
    def warm_up(self) -> int:
        """The peers' 1,000 steps, or two fifths of a shorter run."""
        return min(1000, 2 * self.steps // 5)

    def batches(self) -> Iterator[torch.Tensor]:
        stream = self.store.batches(self.size.batch_size, seed=self.seed)
        return (next(stream) for _ in range(self.steps))


class Trained(NamedTuple):
    """An SAE as it is used: rows to latents and reconstruction, and its directions (d_sae, d_in)."""

    encode: Encode
    directions: torch.Tensor


def rows_of_store(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, d_in) of a store to train on, and a fifth to judge by, drawn from all images."""
    store = ActivationStore(folder)
    rows = store.rows_of(range(len(store.image_ids)))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    rows *= rows.square().sum(1).mean().rsqrt()
    return rows[len(rows) // 5 :], rows[: len(rows) // 5]


def synthetic_rows(kind: str, seed: int, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, d_in) and the true directions (n_features, d_in), of which k are in a row, on average."""
    n_features, k = size.n_features, size.k
    generator = torch.Generator().manual_seed(seed)
    n_rows = N_ROWS + N_HELD_OUT
    directions = normalize(torch.randn(n_features, size.d_in, generator=generator), dim=1)
    share = torch.full((n_features,), k / n_features)
    if kind == "skewed":
        share = 1 / torch.arange(1.0, n_features + 1).sqrt()
        share *= k / share.sum()
    present = torch.rand(n_rows, n_features, generator=generator) < share
    strength = 0.5 + torch.rand(n_rows, n_features, generator=generator)
    rows = (present * strength) @ directions + 0.05 * torch.randn(n_rows, size.d_in, generator=generator)
    if kind != "no offset":
        rows -= rows.mean(0)
        energy = rows.square().sum(1).mean()
        offset = normalize(torch.randn(size.d_in, generator=generator), dim=0)
        rows += offset * (0.42 / (1 - 0.42) * energy).sqrt()  # 42 % of the energy
    return rows, directions


def recommended(size: Size, steps: int, window: int) -> dict[str, Any]:
    """The settings that docs/choosing-an-sae.md says to start with, for rows of a size and a number of steps."""
    return {
        "architecture": "topk",
        "k": size.k,
        "d_sae": size.d_sae,
        "lr": size.lr,
        "lr_warm_up_steps": steps // 10,
        "lr_decay_steps": steps // 5,
        "normalize_activations": "expected_average_only_in",
        "dead_feature_window": window,
    }


def ours(task: Task, **settings: Any) -> Trained:
    """`train_sae` as docs/choosing-an-sae.md recommends it."""
    config = SAETraining(
        **{
            **recommended(task.size, task.steps, task.window),
            "epochs": (task.steps + 0.5) * task.size.batch_size / task.store.n_rows,
            "batch_size": task.size.batch_size,
            "checkpoint_every": task.steps,
            "evaluate_every": task.steps,
            "seed": task.seed,
            **settings,
        }
    )
    sae = train_sae(task.store, task.folder, config)
    return Trained(lambda rows: (latents := sae.encode(rows), sae.decode(latents)), sae.W_dec.detach())


def of_dictionary_learning(task: Task, trainer: str = "BatchTopKTrainer") -> Trained:
    """Its trainer's `update`, step by step."""
    kind = getattr(importlib.import_module("dictionary_learning.trainers"), trainer)
    training = kind(
        task.steps,
        task.size.d_in,
        task.size.d_sae,
        task.size.k,
        layer=0,
        lm_name="",
        warmup_steps=task.warm_up,
        seed=task.seed,
        device="cpu",
    )
    training.dead_feature_threshold = task.window * task.size.batch_size
    for step, rows in enumerate(task.batches()):
        training.update(step, rows)
    sae = training.ae
    return Trained(lambda rows: (latents := sae.encode(rows), sae.decode(latents)), sae.decoder.weight.detach().T)


def of_sparsify(task: Task, optimizer: str = "signum", aux: float = 0.0) -> Trained:
    """Its sparse coder, with the steps of its trainer, which itself wants a language model to run."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # there is no GPU to compile for
    sparsify = importlib.import_module("sparsify")
    torch.manual_seed(task.seed)
    sae = sparsify.SparseCoder(task.size.d_in, sparsify.SparseCoderConfig(num_latents=task.size.d_sae, k=task.size.k))
    scale = task.size.scale
    schedule: Any = None
    if optimizer == "signum":
        sign = importlib.import_module("sparsify.sign_sgd").SignSGD(sae.parameters(), lr=5e-3 / scale)
        steps: Any = importlib.import_module("schedulefree").ScheduleFreeWrapper(sign, momentum=0.95)
        steps.train()
    else:
        steps = torch.optim.Adam(sae.parameters(), lr=task.size.lr)
        warm = importlib.import_module("transformers").get_linear_schedule_with_warmup
        schedule = warm(steps, task.warm_up, task.steps)
    idle = torch.zeros(task.size.d_sae, dtype=torch.long)
    for step, rows in enumerate(task.batches()):
        if step == 0:
            sae.b_dec.data = rows.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        dead = idle > task.window * task.size.batch_size if aux else None
        out = sae(rows, dead_mask=dead)
        (out.fvu + aux * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        steps.step()
        steps.zero_grad()
        if schedule is not None:
            schedule.step()
        idle += len(rows)
        idle[out.latent_indices.flatten()] = 0
    if optimizer == "signum":
        steps.eval()  # its averaged weights

    def encode(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        acts, indices, before = sae.encode(rows)
        return torch.zeros_like(before).scatter(1, indices, acts), sae.decode(acts, indices)

    return Trained(encode, sae.W_dec.detach())


def of_overcomplete(task: Task, kind: str = "BatchTopKSAE") -> Trained:
    """Its `train_sae` with Adam, its cosine schedule and its auxiliary loss."""
    overcomplete = importlib.import_module("overcomplete.sae")
    cosine = importlib.import_module("overcomplete.sae.optimizer").CosineScheduler
    losses = importlib.import_module("overcomplete.sae.losses")
    torch.manual_seed(task.seed)
    top_k = task.size.k * (task.size.batch_size if kind == "BatchTopKSAE" else 1)
    sae = getattr(overcomplete, kind)(task.size.d_in, task.size.d_sae, top_k=top_k)
    adam = torch.optim.Adam(sae.parameters(), lr=task.size.lr)
    schedule = cosine(adam, task.size.lr, task.size.lr / 100, task.steps, warmup_iters=task.steps // 20)
    overcomplete.train_sae(sae, task.batches(), losses.top_k_auxiliary_loss, adam, schedule, nb_epochs=1, monitoring=0)
    sae.eval()
    return Trained(lambda rows: sae(rows)[1:], sae.get_dictionary().detach())


METHODS: dict[str, Callable[[Task], Trained]] = {
    "mammosae topk": ours,
    "mammosae batchtopk": partial(ours, architecture="batchtopk"),
    "dictionary_learning BatchTopK": of_dictionary_learning,
    "dictionary_learning TopK": partial(of_dictionary_learning, trainer="TopKTrainer"),
    "sparsify": of_sparsify,
    "sparsify, Adam, auxk 1/32": partial(of_sparsify, optimizer="adam", aux=1 / 32),
    "overcomplete BatchTopKSAE": of_overcomplete,
    "overcomplete TopKSAE": partial(of_overcomplete, kind="TopKSAE"),
}
"""By the name of the package and what of it is trained."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["offset", "no offset", "skewed"])
    parser.add_argument("--only", nargs="*", default=[], help="methods whose name begins with one of these")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--half", action="store_true", help="half of every size: width, latents, features, batch")
    parser.add_argument("--store", type=Path, help="an activation store, in place of synthetic rows")
    parser.add_argument("--d-sae", type=int, default=512, help="with --store: latents")
    parser.add_argument("--k", type=int, default=32, help="with --store: latents per row")
    parser.add_argument("--window", type=int, default=250, help="steps without firing after which a latent is dead")
    options = parser.parse_args()
    print("| rows | method | L0 | explained variance | dead latents | features found |")
    print("|---|---|---|---|---|---|", flush=True)
    for kind in [options.store.name] if options.store else options.rows:
        for name, method in METHODS.items():
            if options.only and not name.startswith(tuple(options.only)):
                continue
            package = name.split()[0].rstrip(",")
            if package != "mammosae" and importlib.util.find_spec(package) is None:
                continue
            results = [run(kind, method, seed, options) for seed in range(options.seeds)]
            print(f"| {kind} | {name} | {line(results)} |", flush=True)


def run(kind: str, method: Callable[[Task], Trained], seed: int, options: argparse.Namespace) -> dict[str, float]:
    directions: torch.Tensor | None = None
    if options.store:
        training, held_out = rows_of_store(options.store)
        size = Size(training.shape[1], options.d_sae, 0, options.k)
    else:
        size = HALF if options.half else Size()
        rows, directions = synthetic_rows(kind, seed, size)
        training, held_out = rows.split([N_ROWS, N_HELD_OUT])
    with tempfile.TemporaryDirectory() as name:
        store = store_of(training, Path(name) / "rows")
        task = Task(store, size, options.steps, options.window, seed, Path(name) / "sae")
        trained = method(task)
    with torch.no_grad():
        on_others, on_all = (
            measure(trained.encode, part.split(4096), size.d_in, size.d_sae, "cpu") for part in (held_out, training)
        )
    found = float("nan")
    if directions is not None:
        cosines = normalize(directions, dim=1) @ normalize(trained.directions, dim=1).T
        found = float((cosines.amax(1) > FOUND).double().mean())
    return {
        "l0": on_others["l0"],
        "explained_variance": on_others["explained_variance"],
        "dead": on_all["dead_share"],
        "found": found,
    }


def store_of(rows: torch.Tensor, folder: Path) -> ActivationStore:
    image = torch.arange(len(rows)) // 64
    position = torch.arange(len(rows)) % 64
    described = {
        "hook_name": "synthetic",
        "image_size": [8, 8],
        "dataset_name": "synthetic",
        "dataset": "synthetic",
        "splits": ["training"],
        "model": "synthetic",
        "architecture": "synthetic",
        "source": {},
        "image_ids": [str(number) for number in range(int(image[-1]) + 1)],
    }
    return write_store(
        folder, list(zip(rows.split(8192), image.split(8192), position.split(8192), strict=True)), described
    )


def line(results: list[dict[str, float]]) -> str:
    """Means over the seeds, and the range where there are several."""

    def cell(key: str, form: Callable[[float], str]) -> str:
        values = [result[key] for result in results]
        spread = f" ({form(min(values))} to {form(max(values))})" if len(values) > 1 else ""
        return form(float(np.mean(values))) + spread if not np.isnan(values).any() else "not known"

    return " | ".join(
        [
            cell("l0", "{:.2f}".format),
            cell("explained_variance", "{:.3f}".format),
            cell("dead", "{:.1%}".format),
            cell("found", "{:.0%}".format),
        ]
    )


if __name__ == "__main__":
    main()
