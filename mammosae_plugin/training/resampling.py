"""Latents that never fire, started anew from rows that the SAE explains badly; and where latents start at all.

Resampling follows Bricken et al., *Towards Monosemanticity* (2023), which the released scripts of Mammo-SAE use too:
rows are drawn with a probability proportional to the square of their loss; a dead latent's decoder row becomes such a
row's direction, its encoder column the same direction at a fifth of the live latents' mean norm, its bias 0; and Adam
forgets what it knew of it. SAELens has no constraint on the norm of a decoder row, so the new rows get the mean norm of
the live ones.
"""

__all__ = [
    "ENCODER_SHARE", "geometric_median", "resample_dead", "sample_of", "SAMPLE_ROWS", "start_at_data_points",
    "start_bias_at_median",
]  # fmt: skip

from collections.abc import Iterator
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer

from mammosae_plugin import distributed
from mammosae_plugin.errors import InputError

SAMPLE_ROWS = 16384  # rows, or as many as there are latents: 134 MB at a width of 2048
ENCODER_SHARE = 0.2
_MEDIAN_STEPS, _MEDIAN_TOLERANCE = 100, 1e-6


def sample_of(batches: Iterator[torch.Tensor], n_rows: int) -> torch.Tensor:
    """(n_rows, d_in): the first rows of a stream of batches."""
    taken, missing = [], n_rows
    while missing > 0:
        taken.append(next(batches)[:missing])
        missing -= len(taken[-1])
    return torch.cat(taken)


@torch.no_grad()
def resample_dead(trainer: SAETrainer[Any, Any], rows: torch.Tensor, generator: torch.Generator) -> int:
    """Start the dead latents of a `standard` SAE anew.

    Args:
        trainer: A SAELens `SAETrainer`; its SAE, its optimiser's moments and its count of steps since firing change.
        rows: (n, d_in) raw rows to draw directions from.
        generator: A CPU generator that draws them.

    Returns:
        How many latents were dead.
    """
    sae, dead = trainer.sae, trainer.dead_neurons
    n_dead = int(dead.sum())
    if n_dead == 0:
        return 0
    scaled = trainer.activation_scaler(rows.to(sae.device))
    losses = torch.cat([(sae(part) - part).square().sum(1) for part in torch.split(scaled, 4096)])
    weights = losses.double().square().cpu()
    if not weights.sum() > 0:
        weights = torch.ones_like(weights)
    chosen = torch.multinomial(weights, n_dead, replacement=n_dead > int((weights > 0).sum()), generator=generator)
    directions = torch.nn.functional.normalize(scaled[chosen.to(scaled.device)] - sae.b_dec, dim=1)
    start = sae.cfg.decoder_init_norm or 1.0
    live = ~dead
    decoder_norm = sae.W_dec[live].norm(dim=1).mean() if live.any() else start
    encoder_norm = sae.W_enc[:, live].norm(dim=0).mean() if live.any() else start / ENCODER_SHARE
    sae.W_dec[dead] = directions * decoder_norm
    sae.W_enc[:, dead] = directions.T * (ENCODER_SHARE * encoder_norm)
    sae.b_enc[dead] = 0.0
    for parameter, places in ((sae.W_dec, dead), (sae.W_enc, (slice(None), dead)), (sae.b_enc, dead)):
        for name in ("exp_avg", "exp_avg_sq"):
            if name in trainer.optimizer.state[parameter]:
                trainer.optimizer.state[parameter][name][places] = 0.0
    trainer.n_forward_passes_since_fired[dead] = 0
    distributed.give_to_all(
        [sae.W_dec, sae.W_enc, sae.b_enc]
    )  # each has made them, and one rounding must not part them
    return n_dead


@torch.no_grad()
def start_bias_at_median(trainer: SAETrainer[Any, Any], rows: torch.Tensor) -> None:
    """Set the decoder's bias to the geometric median of raw rows (n, d_in)."""
    sae = trainer.sae
    sae.b_dec.copy_(geometric_median(trainer.activation_scaler(rows.to(sae.device))))


@torch.no_grad()
def start_at_data_points(trainer: SAETrainer[Any, Any], rows: torch.Tensor, generator: torch.Generator) -> None:
    """Set every latent's direction to that of a different row, seen from the decoder's bias; norms stay the first ones.

    Args:
        trainer: A SAELens `SAETrainer` before its first step.
        rows: (n, d_in) raw rows.
        generator: A CPU generator that draws them.

    Raises:
        InputError: Fewer rows than latents differ from the bias.
    """
    sae = trainer.sae
    centred = trainer.activation_scaler(rows.to(sae.device)) - sae.b_dec
    norms = centred.norm(dim=1)
    usable = torch.nonzero(norms > 1e-6 * norms.max())[:, 0]
    if len(usable) < sae.cfg.d_sae:
        raise InputError(
            f"init 'data_points' needs a row for each of {sae.cfg.d_sae} latents, and {len(usable)} of {len(rows)} "
            "rows serve; lower d_sae, keep more positions, or start at random"
        )
    chosen = usable[torch.randperm(len(usable), generator=generator)[: sae.cfg.d_sae].to(usable.device)]
    sae.W_dec.copy_(torch.nn.functional.normalize(centred[chosen], dim=1) * sae.cfg.decoder_init_norm)
    if "W_enc" in dict(sae.named_parameters()):  # matching pursuit has none: it is tied
        sae.W_enc.copy_(sae.W_dec.T)


def geometric_median(rows: torch.Tensor) -> torch.Tensor:
    """(d,): the point with the smallest sum of distances to rows (n, d), by Weiszfeld's iteration (1937)."""
    median = rows.mean(0)
    for _ in range(_MEDIAN_STEPS):
        distances = (rows - median).norm(dim=1)
        weights = 1 / distances.clamp_min(1e-6 * distances.mean().clamp_min(1e-12))
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        done = (moved - median).norm() <= _MEDIAN_TOLERANCE * median.norm()
        median = moved
        if done:
            break
    return median
