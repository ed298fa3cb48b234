"""What an SAE wants done to its rows before it sees them, where that is in its metadata and not in its weights.

SAIL trains on rows of length 1. SAELens has no such normalisation (`constant_norm_rescale` decodes only what it encoded
just before, and not linearly), so plain SAELens computes on rows as they are given. Whatever of ours applies an SAE
goes through `normalized`.
"""

__all__ = ["INPUT_NORMALIZATION", "input_normalization", "normalized", "of_unit_length", "rescaled", "UNIT_L2"]

from typing import Any

import torch
from sae_lens import SAE

from mammosae_plugin.errors import InputError

INPUT_NORMALIZATION = "input_normalization"  # in an SAE's metadata, and in the header of a table that was made so
UNIT_L2 = "unit_l2"
_SHORTEST = 1e-12  # a row of zeros stays one


def input_normalization(sae: SAE[Any]) -> str | None:
    """What an SAE's metadata says of its input: "unit_l2" (rows of length 1), or None.

    Raises:
        InputError: It says something else.
    """
    named: Any = sae.cfg.metadata.input_normalization
    if named in (None, "none"):
        return None
    if named != UNIT_L2:
        raise InputError(
            f"the SAE's metadata says input_normalization {named!r}, which this version cannot do; it knows {UNIT_L2!r}"
        )
    return UNIT_L2


def of_unit_length(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (..., d) divided by their lengths, and the lengths (..., 1)."""
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(_SHORTEST)
    return rows / lengths, lengths


def normalized(sae: SAE[Any], rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows as the SAE wants them.

    Args:
        sae: A SAELens SAE.
        rows: (..., d_in) as the network gives them.

    Returns:
        The rows for `sae.encode`, and what its reconstruction is to be multiplied by to be in the units of the rows
        given, (..., 1); of an SAE that takes rows as they are these rows themselves, and None.

    Raises:
        InputError: The metadata names a normalisation that is not known.
    """
    if input_normalization(sae) is None:
        return rows, None
    return of_unit_length(rows.to(sae.dtype))


def rescaled(reconstruction: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """A reconstruction (..., d_in) in the units of the rows that were given to `normalized`."""
    return reconstruction if lengths is None else reconstruction * lengths
