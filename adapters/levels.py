"""The levels of nested (Matryoshka) SAEs: level l is the first m_l latents, and decodes with their rows alone."""

__all__ = ["decode_level", "LEVELS", "levels_of"]

from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.topk_sae import act_times_W_dec

LEVELS = "levels"  # in an SAE's metadata


def levels_of(sae: SAE[Any]) -> tuple[int, ...]:
    """The numbers of latents of the levels, rising to d_sae; () of an SAE that is not nested.

    They are in the metadata of what `train_sae` saves and of SAIL's checkpoints, in `training_architecture_details` of
    what SAELens saves, and in the configuration of an SAE in training.
    """
    metadata: Any = sae.cfg.metadata
    details = metadata.training_architecture_details
    named = metadata.levels or (details.get("matryoshka_widths") if isinstance(details, dict) else None)
    named = named or getattr(sae.cfg, "matryoshka_widths", None)
    if not isinstance(named, (list, tuple)) or not named:
        return ()
    widths = tuple(int(width) for width in named)
    return widths if widths[-1] == sae.cfg.d_sae else (*widths, int(sae.cfg.d_sae))


def decode_level(sae: SAE[Any], latents: torch.Tensor) -> torch.Tensor:
    """The reconstruction (..., d_in) from the first m latents (..., m) alone.

    It is that of `sae.decode` where the others are 0, of an SAE that decodes linearly, as nested ones do.
    """
    rescales = bool(getattr(sae.cfg, "rescale_acts_by_decoder_norm", False))
    decoded: torch.Tensor = act_times_W_dec(latents, sae.W_dec[: latents.shape[-1]], rescales) + sae.b_dec
    return decoded
