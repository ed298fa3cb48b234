"""What is measured about an SAE while it is trained and at the end, as JSON lines and as a figure."""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from mammosae_plugin import distributed
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path
from mammosae_plugin.provenance import plain
from mammosae_plugin.training.settings import SAETraining

Row = dict[str, Any]
Function = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
DENSITY_EDGES = tuple(-7 + 0.5 * step for step in range(15))  # log10 of the share of rows at which a latent fires


class Measures:
    """Sums over rows, in float64, from which the quality of an SAE follows.

    Args:
        d_in: Width of a row.
        d_sae: Number of latents.
        device: Where the sums lie.
    """

    def __init__(self, d_in: int, d_sae: int, device: str | torch.device) -> None:
        self.n_rows = 0
        self._sum = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._sum_of_squares = torch.zeros_like(self._sum)
        self._squared_error = torch.zeros_like(self._sum)
        self._reconstructed = torch.zeros_like(self._sum)
        self._reconstructed_squares = torch.zeros_like(self._sum)
        self._products = torch.zeros_like(self._sum)
        self._fired = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, rows: torch.Tensor, latents: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Add rows (n, d_in), their latents (n, d_sae) and their reconstruction (n, d_in)."""
        rows, reconstruction = rows.double(), reconstruction.double()
        self.n_rows += len(rows)
        self._sum += rows.sum(0)
        self._sum_of_squares += rows.square().sum(0)
        self._squared_error += (rows - reconstruction).square().sum(0)
        self._reconstructed += reconstruction.sum(0)
        self._reconstructed_squares += reconstruction.square().sum(0)
        self._products += (rows * reconstruction).sum(0)
        self._fired += (latents != 0).sum(0)

    def add_up(self) -> None:
        """Add what the other processes have added to theirs."""
        n_rows = torch.tensor(self.n_rows, device=self._sum.device)
        sums = (self._sum, self._sum_of_squares, self._squared_error, self._fired)
        products = (self._reconstructed, self._reconstructed_squares, self._products)
        distributed.add_up([n_rows, *sums, *products])
        self.n_rows = int(n_rows)

    def row(self) -> Row:
        """The measures of all rows added.

        Returns:
            rows: how many.
            explained_variance: 1 - (sum of squared errors) / (sum of squared deviations from each channel's mean);
                None where the rows do not vary.
            mse: squared error, mean over rows and channels.
            l0: latents that fire per row.
            dead_share: share of the latents that fire at none of the rows.
            slope: of the regression of the rows on their reconstruction, both less each channel's mean: 1 where latents
                have the right size, above 1 where they are too small (shrinkage; Rajamanoharan et al., 2024, give its
                inverse); None where the reconstruction does not vary.
            density: how many latents fire at what share of the rows: `counts` between `log10_edges`, and `never`.
        """
        variation = float((self._sum_of_squares - self._sum.square() / self.n_rows).sum())
        error = float(self._squared_error.sum())
        return {
            "rows": self.n_rows,
            "explained_variance": 1 - error / variation if variation > 0 else None,
            "mse": error / (self.n_rows * len(self._sum)),
            "l0": int(self._fired.sum()) / self.n_rows,
            "dead_share": float((self._fired == 0).double().mean()),
            "slope": self._slope(),
            "density": density_histogram(self._fired.double() / self.n_rows),
        }

    def _slope(self) -> float | None:
        means = self._reconstructed / self.n_rows
        variation = float((self._reconstructed_squares - means * self._reconstructed).sum())
        together = float((self._products - means * self._sum).sum())
        negligible = 1e-9 * float(self._reconstructed_squares.sum())  # what is left of sums of the same numbers
        return together / variation if variation > negligible else None


def measure(function: Function, batches: Iterable[torch.Tensor], d_in: int, d_sae: int, device: str) -> Row:
    """The measures of an SAE on batches of rows (b, d_in); `function` gives latents and reconstruction of a batch.

    Of several processes each looks at some of the batches, which are the same in all.
    """
    measures = Measures(d_in, d_sae, device)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            if number % distributed.world_size() == distributed.rank():
                batch = batch.to(device)
                measures.add(batch, *function(batch))
    measures.add_up()
    return measures.row()


def dead_share(
    encode: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[torch.Tensor], d_sae: int, device: str
) -> tuple[int, float]:
    """How many rows batches of rows (b, d_in) have, and the share of the latents that fire at none of them.

    Of several processes each looks at some of the batches, which are the same in all.
    """
    fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
    n_rows = 0
    with torch.no_grad():
        for number, batch in enumerate(batches):
            n_rows += len(batch)
            if number % distributed.world_size() == distributed.rank():
                fired += (encode(batch.to(device)) != 0).sum(0)
    distributed.add_up([fired])
    return n_rows, float((fired == 0).double().mean())


def problems_of(config: SAETraining, last: Row) -> list[str]:
    """What a user must know of a trained SAE before using it: a sentence for each, none where all is well.

    Args:
        config: How it was trained.
        last: The final line of its metrics.
    """
    advice = "lower sparsity" if config.k is None else "lower lr"
    if last["l0"] == 0:
        return [f"no latent fires at any of {last['rows']} rows: the SAE is dead; {advice}, or scale the rows"]
    found = []
    if config.k is not None and not config.kind.k_is_a_limit and not 0.8 <= last["l0"] / config.k <= 1.25:
        found.append(f"{last['l0']:.3g} latents fire per row, but k is {config.k:g}")
    if last["explained_variance"] is not None and last["explained_variance"] < 0:
        found.append(f"the explained variance is {last['explained_variance']:.3g}: a constant would explain more")
    if last["dead_share_in_training"] > 0.5:
        found.append(
            f"{last['dead_share_in_training']:.0%} of the latents fire at none of {last['rows_in_training']} training "
            "rows; lower d_sae, or train longer"
        )
    return found


def density_histogram(share: torch.Tensor) -> Row:
    """How many latents fire at what share (d_sae,) of the rows, on a logarithmic scale."""
    fires = share[share > 0].double().log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1]).cpu()
    counts = torch.histogram(fires, torch.tensor(DENSITY_EDGES, dtype=torch.float64)).hist
    return {"log10_edges": list(DENSITY_EDGES), "counts": counts.int().tolist(), "never": int((share == 0).sum())}


@torch.no_grad()
def step_row(trainer: SAETrainer[Any, Any], output: TrainStepOutput) -> Row:
    """What a training step says about its own batch, and about the latents that have not fired for the window.

    Args:
        trainer: The SAELens `SAETrainer`, after the step.
        output: What its `step` returned, in each process for its part of the batch.
    """
    rows, latents = output.sae_in, output.feature_acts
    measures = Measures(rows.shape[1], latents.shape[1], rows.device)
    measures.add(rows, latents, output.sae_out)
    measures.add_up()
    measured = measures.row()
    return {
        "loss": distributed.mean(output.loss).item(),
        **{name: float(distributed.mean(value)) for name, value in output.losses.items()},
        **{name: measured[name] for name in ("explained_variance", "l0", "slope")},
        "dead_share": float(trainer.dead_neurons.double().mean()),
        "dead_window_steps": trainer.cfg.dead_feature_window,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        **{f"{name}_coefficient": value for name, value in trainer.get_coefficients().items()},
    }


class MetricsFile:
    """`metrics.jsonl`, which grows while the SAE is trained; a killed run cuts it back to its last checkpoint.

    Args:
        file: The file.
        size: Its size in bytes at the checkpoint from which the run continues; 0 for a new run.

    Raises:
        InputError: The file is shorter than that.
    """

    def __init__(self, file: Path, size: int = 0) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("ab")
        if self.size() < size:
            raise InputError(
                f"{file} has been cut since the last checkpoint; delete its folder, and training starts anew"
            )
        self._file.truncate(size)

    def write(self, row: Row) -> None:
        """Append a row."""
        self._file.write((json.dumps(plain(row), allow_nan=False) + "\n").encode())
        self._file.flush()

    def size(self) -> int:
        """The size in bytes of what is on the disk for good."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(file: str | Path) -> list[Row]:
    """The rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in local_path(file).read_text(encoding="utf-8").splitlines()]


def trained_l0(sae: SAE[Any]) -> float | None:
    """Latents per row that an SAE was trained for: its k, or else the L0 at the end of training; None where unknown."""
    metadata = sae.cfg.metadata.to_dict()
    training = metadata.get("training")
    own = training.get("k") if isinstance(training, dict) else None
    asked = own or getattr(sae.cfg, "k", None) or metadata.get("l0")
    return float(asked) if isinstance(asked, int | float) else None


def draw_metrics(rows: Sequence[Row], file: Path) -> None:
    """Draw the course of a training, and at last how often latents fire, as a PNG.

    Args:
        rows: The rows of a `metrics.jsonl`, of which the last is the final one.
        file: Where the figure goes.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flat
    for axes, name, title in zip(
        panels,
        ("explained_variance", "l0", "dead_share"),
        ("Explained variance", "Latents that fire per row (L0)", "Share of dead latents"),
        strict=False,
    ):
        for of, label in (("batch", "training batch"), ("training", "training rows"), ("validation", "held-out rows")):
            points = [(row["step"], row[name]) for row in rows if row.get("of") == of and row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="" if of == "batch" else "o", markersize=3)
        for row in rows:
            if row.get("of") == "resampling":
                axes.axvline(row["step"], color="0.8", linewidth=0.7, zorder=0)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="small")
    density, axes = rows[-1]["density"], figure.axes[3]
    edges = density["log10_edges"]
    axes.bar(edges[:-1], density["counts"], width=edges[1] - edges[0], align="edge")
    axes.set(
        title=f"How often latents fire ({density['never']} never)",
        xlabel="log10 of the share of rows",
        ylabel="latents",
        xlim=(edges[0], math.ceil(edges[-1])),
    )
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
