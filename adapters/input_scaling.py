"""SAELens's scaling of the rows that an SAE is trained on: folded into the weights, or refused.

SAELens's trainer keeps the scale (or the whitening) of its rows beside the SAE and folds it in when training ends. A
checkpoint of a run that is under way has it in `activation_scaler.json`; used without it, the SAE would see rows of
another size than it was trained on.
"""

__all__ = ["fold_scaling_beside", "keep_scale_of", "NOT_IN_THE_WEIGHTS", "refuse_unfolded_scaling"]

import math
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import SafetensorError

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError
from mammosae_plugin.errors import InputError

NOT_IN_THE_WEIGHTS = ("expected_average_only_in", "covariance_whitening")
"""SAELens's scalings whose numbers lie beside the weights until they are folded in."""


def fold_scaling_beside(sae: SAE[Any], folder: Path) -> bool:
    """Fold the scaling that SAELens's trainer left in the folder into the SAE, and say so in its metadata.

    Args:
        sae: The SAE of that folder, as SAELens loads it; it is changed.
        folder: A checkpoint of SAELens's trainer, or any folder.

    Returns:
        Whether there was something to fold. Without a file that says by what, nothing is: an SAE that needs it is then
        refused where it is applied.

    Raises:
        CheckpointFormatError: The file is damaged, or says otherwise than the SAE's config.
    """
    file = folder / ACTIVATION_SCALER_CFG_FILENAME
    if not file.is_file():
        return False
    scaler = ActivationScaler()
    try:
        scaler.load(file)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise CheckpointFormatError(
            f"{file} is damaged ({type(error).__name__}), so that the scale of the SAE's rows is not known; restore it"
        ) from error
    factor, whitening = scaler.scaling_factor, scaler.whitening
    found = {"expected_average_only_in": factor is not None, "covariance_whitening": whitening is not None}
    said = sae.cfg.normalize_activations
    if said in NOT_IN_THE_WEIGHTS and not any(found.values()):
        return False
    for name, there in found.items():
        if there != (name == said):
            raise CheckpointFormatError(
                f"{folder}: cfg.json says normalize_activations {said!r}, but {file.name} beside it "
                f"{'has' if there else 'lacks'} what {name!r} leaves; put back the two files of one checkpoint"
            )
    if factor is not None:
        if not isinstance(factor, (int, float)) or not math.isfinite(factor) or factor <= 0:
            raise CheckpointFormatError(f"{file} says that rows are scaled by {factor!r}; restore it")
        sae.fold_activation_norm_scaling_factor(factor)
        sae.cfg.metadata.folded_scaling_factor = factor
    if whitening is not None:
        sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
        sae.cfg.metadata.folded_whitening = True
    return factor is not None or whitening is not None


def refuse_unfolded_scaling(sae: SAE[Any], name: str) -> None:
    """Refuse an SAE whose input was scaled in training by numbers that it does not apply itself.

    Args:
        sae: A SAELens SAE.
        name: Where it is to be applied.

    Raises:
        InputError: It is such a one.
    """
    scaling = sae.cfg.normalize_activations
    if scaling == "none":
        return
    probe = torch.linspace(-1, 2, sae.cfg.d_in, device=sae.b_dec.device, dtype=sae.b_dec.dtype)[None]
    scaled = sae.run_time_activation_norm_fn_in(probe)  # type: ignore[has-type]  # lambdas without a type
    sae.run_time_activation_norm_fn_out(probe)  # type: ignore[has-type]  # takes away what the former left
    if torch.equal(scaled, probe):
        raise InputError(
            f"the SAE for {name!r} was trained on scaled rows ({scaling}) and would see them unscaled: the scale is "
            f"not in its weights; load the checkpoint's folder with its {ACTIVATION_SCALER_CFG_FILENAME}, or fold it "
            "in first (fold_activation_norm_scaling_factor or fold_activation_whitening)"
        )


def keep_scale_of(sae: SAE[Any], rows: torch.Tensor) -> None:
    """Have an SAE that scales each row by itself decode as for these rows, (..., d_in); its encoding does the same.

    SAELens's decoding takes away what encoding left for it, so that a second one would fail.
    """
    sae.run_time_activation_norm_fn_in(rows)  # type: ignore[has-type]
