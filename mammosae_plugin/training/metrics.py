"""What is measured about an SAE while it is trained and at the end, as JSON lines and as a figure."""

__all__ = ["draw_metrics", "MetricsFile", "problems_of", "read_metrics", "Row", "step_row", "trained_l0"]

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from mammosae_plugin import distributed
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path
from mammosae_plugin.measures.reconstruction import Measures
from mammosae_plugin.provenance import plain
from mammosae_plugin.training.settings import SAETraining

Row = dict[str, Any]
_OF_LEVELS = {
    "mse": "MSE",
    "explained_variance": "Explained variance",
    "r2": "R²",
    "l0": "Latents per row (L0)",
    "alive": "Latents that fire",
    "mean_absolute_correlation": "Mean |correlation|",
}


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
    """Draw the course of a training, how often latents fire at last, and of nested SAEs that of each level, as a PNG.

    Args:
        rows: The rows of a `metrics.jsonl`, of which the last is the final one.
        file: Where the figure goes.
    """
    nested = [row for row in rows if row.get("levels")]
    figure = Figure(figsize=(9, 12 if nested else 6), layout="constrained")
    FigureCanvasAgg(figure)
    above: Figure | SubFigure = figure
    if nested:
        parts: Any = figure.subfigures(2, 1)
        above = parts[0]
        _draw_levels(nested, parts[1])
    panels = above.subplots(2, 2).flatten()
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
    density, axes = rows[-1]["density"], panels[3]
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


def _draw_levels(rows: Sequence[Row], figure: SubFigure) -> None:
    """The course of every level of nested SAEs, each the first so many latents."""
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, _OF_LEVELS.items(), strict=True):
        for number, level in enumerate(rows[-1]["levels"]):
            points = [(row["step"], value) for row in rows if (value := row["levels"][number][name]) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=str(level["width"]), marker="o", markersize=3)
        axes.set(title=title, xlabel="step")
    figure.axes[0].legend(title="latents", fontsize="small")
