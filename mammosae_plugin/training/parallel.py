"""One step of SAELens's trainer over the rows of several processes, equal to the step of one process on all rows.

Each process has an equal part of the batch and the same SAE. Losses are means over rows, so the mean of the processes'
gradients, which torch's DistributedDataParallel forms during the backward pass, is the gradient of the whole batch, and
clipping and Adam see what they would see in one process. What is not a mean over rows is shared besides:

- batch top-k chooses its k latents per row among all rows of the batch, so the processes' candidates are compared
  (`GlobalBatchTopK`), and its threshold follows the least of all that were chosen;
- a latent has fired if it did in any process, which decides what counts as dead, and how often it fired is added up.
"""

__all__ = ["check_batch_size", "GlobalBatchTopK", "over_processes", "ParallelStep"]

from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, TrainingSAE
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mammosae_plugin import distributed
from mammosae_plugin.errors import InputError


def check_batch_size(batch_size: int) -> None:
    """See that a batch can be divided among the processes.

    Raises:
        InputError: It cannot.
    """
    size = distributed.world_size()
    if batch_size % size:
        raise InputError(
            f"a batch of {batch_size} rows cannot be divided equally among {size} processes; choose a batch_size that "
            f"is a multiple of {size}, or another number of processes"
        )


class ParallelStep:
    """The step of a SAELens `SAETrainer`, to which each process gives its part of the batch.

    With one process it is the trainer's own step, and nothing else.

    Args:
        trainer: The trainer, with its state and weights set; all processes get the weights of the first.
    """

    def __init__(self, trainer: SAETrainer[Any, Any]) -> None:
        self._trainer = trainer
        if distributed.world_size() > 1:
            # The trainer asks its SAE for the forward pass of training, and gets that of torch's wrapper.
            wrapped = DistributedDataParallel(_ForwardPass(trainer.sae), gradient_as_bucket_view=True)
            trainer.sae.training_forward_pass = lambda step_input: wrapped(step_input)  # as a module it would be a part

    def __call__(self, rows: torch.Tensor) -> TrainStepOutput:
        """Step on this process's rows (b / world_size, d_in); returns SAELens's output for these rows."""
        trainer, size = self._trainer, distributed.world_size()
        if size == 1:
            return trainer.step(rows)
        before = trainer.act_freq_scores.clone()
        output = trainer.step(rows)
        fired = trainer.act_freq_scores - before
        distributed.add_up([fired])
        trainer.act_freq_scores = before + fired
        distributed.least(trainer.n_forward_passes_since_fired)
        trainer.n_training_samples += (size - 1) * len(rows)
        return output

    def close(self) -> None:
        """Give the SAE its own forward pass back."""
        self._trainer.sae.__dict__.pop("training_forward_pass", None)


class _ForwardPass(nn.Module):
    def __init__(self, sae: TrainingSAE[Any]) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, step_input: TrainStepInput) -> TrainStepOutput:
        return type(self.sae).training_forward_pass(self.sae, step_input)


class GlobalBatchTopK(BatchTopK):
    """Batch top-k among the rows of all processes, while gradients are recorded: evaluations are each process's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, d_sae) pre-activations of this process's rows, b in each, to latents of which k per row are left."""
        size, rank = distributed.world_size(), distributed.rank()
        if size == 1 or not torch.is_grad_enabled():
            kept: torch.Tensor = super().forward(x)
            return kept
        flat = x.relu().flatten()
        n_kept = int(self.k * len(x) * size)
        best = flat.topk(min(n_kept, len(flat)))
        candidates = distributed.gathered(best.values.float())
        chosen = candidates.flatten().topk(n_kept).indices
        mine = chosen[chosen // candidates.shape[1] == rank] % candidates.shape[1]
        places = best.indices[mine]
        return torch.zeros_like(flat).scatter(-1, places, flat[places]).reshape(x.shape)


class _OverProcesses:
    """What batch top-k SAEs share beyond the mean of gradients."""

    cfg: Any

    def get_activation_fn(self) -> nn.Module:
        """The choice of the latents of a batch."""
        return GlobalBatchTopK(self.cfg.k)

    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: torch.Tensor) -> None:
        """Let the threshold of the SAE that is saved follow the least activation chosen in any process."""
        positive = acts_topk[acts_topk > 0]
        least = positive.min().float() if len(positive) else torch.tensor(torch.inf, device=acts_topk.device)
        distributed.least(least)
        super().update_topk_threshold(least.nan_to_num(posinf=0.0)[None])  # type: ignore[misc]


def over_processes(kind: type[TrainingSAE[Any]]) -> type[TrainingSAE[Any]]:
    """The class of a training SAE whose batch is that of all processes.

    Of other than batch top-k SAEs it is the class itself: their losses are means over rows.
    """
    if not issubclass(kind, BatchTopKTrainingSAE):
        return kind
    return type(f"Parallel{kind.__name__}", (_OverProcesses, kind), {"__doc__": kind.__doc__})
