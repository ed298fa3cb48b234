"""The L0 that was asked for, where the architecture does not set it by itself: JumpReLU SAEs with a `k`.

The penalty on L0 alone does not bring it to k: what lambda does depends on the rows' scale, the width and the length of
the run. So the thresholds themselves are held there, by one factor for all of them, which leaves their differences to
the gradient; and at the end the factor is set that gives k on a sample of the rows.
"""

__all__ = ["hold_l0", "set_l0"]

import torch
from sae_lens import JumpReLUTrainingSAE

from mammosae_plugin import distributed

_CHUNK = 1024
_GAIN = 0.01  # the thresholds' largest relative change in a step, where L0 is e times k or more


@torch.no_grad()
def hold_l0(sae: JumpReLUTrainingSAE, latents: torch.Tensor, k: float) -> None:
    """Move the thresholds of a JumpReLU SAE in training towards those at which k latents fire.

    Args:
        sae: A SAELens `JumpReLUTrainingSAE`.
        latents: (b, d_sae) of the step's rows, of which each process has its part.
        k: Latents that shall fire per row.
    """
    l0 = distributed.mean((latents > 0).sum(1).float().mean())
    sae.threshold.mul_(torch.exp(_GAIN * torch.log(l0 / k).clamp(-1, 1)))


@torch.no_grad()
def set_l0(sae: JumpReLUTrainingSAE, rows: torch.Tensor, k: float) -> None:
    """Scale the thresholds of a JumpReLU SAE in training so that k latents per row fire, on average.

    Args:
        sae: A SAELens `JumpReLUTrainingSAE`.
        rows: (n, d_in) in the units of the training.
        k: Latents that shall fire per row.
    """
    n_kept = int(k * len(rows))
    largest = torch.empty(0, device=sae.device)
    for start in range(0, len(rows), _CHUNK):
        _, before = sae.encode_with_hidden_pre(rows[start : start + _CHUNK].to(sae.device))
        # How large a factor leaves each of them firing; none does where the latent is not positive.
        ratios = (before / sae.threshold.clamp_min(1e-12)).flatten()
        largest = torch.cat([largest, ratios[ratios > 0]])
        largest = largest.topk(min(n_kept + 1, len(largest))).values
    if len(largest) > n_kept:
        sae.threshold.mul_((largest[n_kept - 1] + largest[n_kept]) / 2)
